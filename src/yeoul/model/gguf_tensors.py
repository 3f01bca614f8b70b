"""The tensors of a GGUF file under our names, each with what undoes its conversion; only the header is read."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from yeoul.errors import UserError, shown
from yeoul.gguf_header import Header, Tensor
from yeoul.model.config import ModelConfig
from yeoul.model.gguf_names import FUSED, our_name
from yeoul.model.gguf_plan import ARCHITECTURES
from yeoul.model.stored import Encoding, Stored

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types whose bytes are numbers, and what torch calls them."""
QUANTIZED = "bfloat16"
"""What weights of few bits are brought to where no other type is asked for."""
SAME = 2**20
"""Bytes that are compared at a time."""


def gguf_tensors(header: Header, config: ModelConfig) -> dict[str, Stored]:
    """The tensors of a model by our names.

    Args:
        header: of the file.
        config: of `gguf_config`.

    Raises:
        UserError: a tensor whose name is not known for this kind of model, or a fused one of another shape.
    """
    found: dict[str, Stored] = {}
    for name, tensor in header.tensors.items():
        if name == "rope_freqs.weight" and ARCHITECTURES[header.architecture].rope_factors:
            continue  # a part of the description
        if name == "output.weight" and config.tie_embeddings:
            continue
        ours = our_name(name, config.norm_placement)
        if ours is None:
            what = f"the GGUF file has a tensor {shown(name)} that is not known for {shown(header.architecture)}"
            raise UserError(what, header.file)
        for part, stored in _parts(ours, tensor, config):
            if part in found:
                raise UserError(f"tensor {shown(name)} of the GGUF file is there twice", header.file)
            found[part] = _undone(part, stored, tensor.kind, header.architecture, config)
    return found


def stored_type(header: Header) -> str:
    """The type of the weights: that of most numbers, `QUANTIZED` where these have few bits."""
    sizes: dict[str, int] = {}
    for tensor in header.tensors.values():
        name = PLAIN.get(tensor.kind, QUANTIZED)
        sizes[name] = sizes.get(name, 0) + prod(tensor.shape)
    return max(sizes, key=lambda name: sizes[name], default="float32")


def has_own_output(header: Header) -> bool:
    """Whether the output projection is other than the embeddings; some files have these twice, byte for byte."""
    output, table = (header.tensors.get(name) for name in ("output.weight", "token_embd.weight"))
    if output is None or table is None:
        return output is not None
    if (output.kind, output.shape) != (table.kind, table.shape):
        return True
    pairs = zip(_pieces(output), _pieces(table), strict=True)
    return any(one != other for one, other in pairs)


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.start)
        for start in range(0, tensor.nbytes, SAME):
            yield opened.read(min(SAME, tensor.nbytes - start))


def _parts(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Stored]]:
    """The tensor itself, or queries, keys and values of a fused one: their rows follow one another."""
    dtype = PLAIN.get(tensor.kind, QUANTIZED)
    module, _, leaf = name.rpartition(".")
    if not module.endswith(FUSED):
        yield name, Stored(tensor.file, tensor.shape, dtype, tensor.start, tensor.nbytes)
        return
    H, G, D = config.heads
    rows = tensor.shape[0]
    if rows != (H + 2 * G) * D:
        what = f"tensor {shown(name)} has shape {shown(tensor.shape)}, the metadata asks for {(H + 2 * G) * D} rows"
        raise UserError(what, tensor.file)
    start = tensor.start
    for letter, heads in zip("qkv", (H, G, G), strict=True):
        nbytes = tensor.nbytes // rows * heads * D
        part = Stored(tensor.file, (heads * D, *tensor.shape[1:]), dtype, start, nbytes)
        yield f"{module.removesuffix(FUSED)}self_attn.{letter}_proj.{leaf}", part
        start += nbytes


def _undone(name: str, stored: Stored, kind: str, architecture: str, config: ModelConfig) -> Stored:
    """With what undoes the conversion of a tensor."""
    module = name.rpartition(".")[0]
    heads = {"q_proj": config.heads[0], "k_proj": config.heads[1]}.get(module.rpartition(".")[2], 0)
    heads = heads if ARCHITECTURES[architecture].neighbours else 0
    if heads and stored.shape[0] != heads * config.heads[2]:
        heads = 0  # of another shape than the model's, which is said where they are compared
    shift = -1.0 if config.norm_zero_centered and name.endswith("norm.weight") else 0.0
    if kind in PLAIN and not heads and not shift:
        return stored
    return stored._replace(encoding=Encoding(kind, shift, heads))
