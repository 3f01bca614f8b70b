"""The folder of a model, and what its config.json and headers say, without torch: what is there and how large it is.

A GGUF file may stand where a folder does: then its metadata say what config.json would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

from yeoul.errors import UserError
from yeoul.gguf_header import gguf_file, gguf_files
from yeoul.model.config import ATTENTION_FREE, ModelConfig
from yeoul.model.families import read_config
from yeoul.model.gguf_folder import gguf_description
from yeoul.model.quantization import EMBEDDING, FIELD, HEAD, LINEARS, Quantization, check_shape, read_quantization
from yeoul.model.tensor_files import FLOATS, Stored, same_numbers, stored_tensors
from yeoul.model.tensor_names import count_layers, names_of, stored_name, to_ours
from yeoul.safe_json import read_object

Shape = tuple[int, ...]


def model_folder(path: Path | str) -> Path:
    """The folder that holds config.json: the one given, or `model/` inside a run's folder; or a GGUF file.

    Raises:
        UserError: nothing there, or several GGUF files of which any may be meant.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("no such model folder", path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (file := gguf_file(path)) is not None:
        return file
    if several := gguf_files(path):
        fix = f"give one of them, such as {several[0]}"
        raise UserError(f"the folder holds {len(several)} GGUF models", path, fix)
    raise UserError("no config.json in this folder", path, "give a Hugging Face model folder or a finished run")


def read_description(folder: Path) -> dict[str, Any]:
    """What config.json of a model's folder holds; of a GGUF file, what it would hold in our own format."""
    return gguf_description(folder) if folder.is_file() else read_object(folder / "config.json")


def said_by(folder: Path) -> str:
    """What says what a model is, for sentences."""
    return "its metadata" if folder.is_file() else "config.json"


def read_family(description: Mapping[str, Any], names: Iterable[str], folder: Path) -> tuple[str, ModelConfig]:
    """The family that names a folder's tensors, and the model.

    Args:
        description: from `read_description`.
        names: of the tensors.
        folder: for sentences.
    """
    try:
        return read_config(description, frozenset(names))
    except UserError as error:
        place = folder if folder.is_file() else folder / "config.json"
        raise UserError(error.what, place, error.fix) from None


def load_quantization(path: Path | str) -> Quantization | None:
    """Which weights of a folder have few bits and stay so; None where none has, as in a GGUF file, whose weights are
    dequantized."""
    folder = model_folder(path)
    if folder.is_file():
        return None
    try:
        return read_quantization(read_object(folder / "config.json").get(FIELD))
    except UserError as error:
        raise UserError(error.what, folder / "config.json", error.fix) from None


@dataclass(frozen=True)
class Described:
    """What config.json and the headers of a folder say, which agree with one another.

    Attributes:
        config: of the model.
        shapes: of its parameters, by our names; of quantized ones as what they stand for.
    """

    config: ModelConfig
    shapes: Mapping[str, Shape]


def describe(folder: Path) -> Described | None:
    """A folder by its headers; None where these do not agree with config.json, or cannot tell by themselves.

    In that case `yeoul.model.checkpoint.load_config`, which compares them with the model itself, says what is wrong.
    What linear layers have beside the projections (feature maps, gates) is taken from the headers, and compared between
    the layers alone.

    Args:
        folder: that of config.json.

    Raises:
        UserError: a file is damaged, or config.json says nothing that is known.
    """
    stored = stored_tensors(folder, twice=False)
    family, config = read_family(read_description(folder), stored, folder)
    if config.tie_embeddings:
        head, table = (stored_name(stored, name, family) for name in (f"{HEAD}.weight", f"{EMBEDDING}.weight"))
        if any(name.startswith(f"{HEAD}.weight_") for name in stored):
            return None
        if head is not None:  # which may be the embeddings once more, or a head of its own, as in transformers
            same = None if table is None else same_numbers(stored[head], stored[table])
            if same is None:
                return None
            config = config.with_(tie_embeddings=same)
    quantization = load_quantization(folder)
    if config.num_layers != count_layers(stored, family) or (quantization is not None and names_of(family).fused):
        return None
    shapes = dict(projection_shapes(config))
    expected = _stored_form(shapes, quantization)
    if expected is None:
        return None
    added: dict[int, dict[str, Shape]] = {i: {} for i, kind in enumerate(config.attention) if kind in ADDING}
    seen = set()
    for published_name, place in stored.items():
        for name, form in to_ours(published_name, _Form(place.shape), config, family):
            if name in seen:
                return None
            seen.add(name)
            if name in expected:
                if not _fits(form.shape, place, *expected[name]):
                    return None
                continue
            match = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.(.+)", name)
            if match is None or int(match[1]) not in added or place.dtype_name not in FLOATS.values():
                return None
            added[int(match[1])][match[2]] = shapes[name] = form.shape
    if not set(expected) <= seen or not _are_added(config, list(added.values())):
        return None
    return Described(config, shapes)


ADDING = ("dijiang", "hybrid")
"""Kinds of attention that have parameters of a feature map and of a state update beside the projections."""


def _are_added(config: ModelConfig, layers: list[dict[str, Shape]]) -> bool:
    """Whether what linear layers have beside the projections, by name, can be what config.json describes."""
    H, G, D = config.heads
    convolution = ((H + 2 * G) * D, config.short_conv) if config.short_conv else None
    return all(
        layer == layers[0]
        and any(name.startswith("feature_map.") for name in layer)
        and layer.get("short_conv.weight") == convolution
        for layer in layers
    )


def _fits(shape: Shape, place: Stored, wanted: Shape, dtype_name: str | None) -> bool:
    """Whether a stored tensor is what is expected; None stands for any floating-point type."""
    return shape == wanted and (place.dtype_name == dtype_name if dtype_name else place.dtype_name in FLOATS.values())


def _stored_form(shapes: Mapping[str, Shape], quantization: Quantization | None) -> dict[str, Any] | None:
    """What a folder has in place of the weights of a model: shapes and whole-number types by our names.

    None where a scheme does not fit.
    """
    expected: dict[str, tuple[Shape, str | None]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        kind = "Embedding" if path == EMBEDDING else "Linear"
        usual = path in (EMBEDDING, HEAD) or (path.startswith("model.layers.") and path.rpartition(".")[2] in LINEARS)
        scheme = quantization.scheme(path, kind) if quantization and leaf == "weight" and usual else None
        if scheme is None:
            expected[name] = shape, None
            continue
        rows, columns = shape
        try:
            check_shape(columns, scheme.bits, scheme.group_size)
        except UserError:
            return None
        expected[f"{path}.weight_scale"] = (rows, columns // (scheme.group_size or columns)), None
        if scheme.bits == 8:
            expected[name] = shape, "int8"
        else:
            expected[f"{path}.weight_packed"] = (rows, -(-columns * scheme.bits // 32)), "int32"
            expected[f"{path}.weight_shape"] = (2,), "int64"
    return expected


def projection_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Shapes of a model's parameters by our names, but for what linear layers have beside the projections."""
    hidden, inner, (H, G, D) = config.hidden_size, config.intermediate_size, config.heads

    def norm(name: str, size: int = hidden) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", (size,)
        if config.norm == "layernorm":
            yield f"{name}.bias", (size,)

    def linear(name: str, rows: int, columns: int, bias: bool | None) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", (rows, columns)
        if bias:
            yield f"{name}.bias", (rows,)

    yield f"{EMBEDDING}.weight", (config.vocab_size, hidden)
    if config.positions == "learned":
        yield "model.embed_positions.weight", (config.max_position_embeddings, hidden)
    norms = {
        "pre": ("input_layernorm", "post_attention_layernorm"),
        "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
        "sandwich": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm"),
    }[config.norm_placement]  # fmt: skip
    for layer, kind in enumerate(config.attention):
        block = f"model.layers.{layer}"
        for name in norms[:1] if config.mlp == "none" else norms:
            yield from norm(f"{block}.{name}")
        attention = f"{block}.self_attn"
        if kind in ATTENTION_FREE:
            yield from ((f"{attention}.{name}", shape) for name, shape in _attention_free_shapes(config, kind))
        else:
            for letter, heads in zip("qkv", (H, G, G), strict=True):
                yield from linear(f"{attention}.{letter}_proj", heads * D, hidden, config.attention_bias)
            yield from linear(f"{attention}.o_proj", hidden, H * D, config.attention_output_bias)
            for letter in "qk" if config.qk_norm else "":
                yield from norm(f"{attention}.{letter}_norm", D)
        if kind == "dijiang-official":
            yield f"{attention}.proj_matrix", (D, D)
            yield from ((f"{attention}.D{i}", (1, H, config.max_position_embeddings, 1)) for i in (1, 2))
            yield f"{attention}.W_G", (hidden, hidden)
            yield from ((f"{attention}.group_norm.{leaf}", (hidden,)) for leaf in ("weight", "bias"))
        if config.mlp != "none":
            for part in ("up",) if config.mlp == "gelu" else ("gate", "up"):
                yield from linear(f"{block}.mlp.{part}_proj", inner, hidden, config.mlp_bias)
            yield from linear(f"{block}.mlp.down_proj", hidden, inner, config.mlp_bias)
    yield from norm("model.norm")
    if not config.tie_embeddings:
        yield f"{HEAD}.weight", (config.vocab_size, hidden)


def _attention_free_shapes(config: ModelConfig, kind: str) -> Iterator[tuple[str, Shape]]:
    """Of a layer without attention, by the names of torch's own modules."""
    d = config.hidden_size
    if kind == "conv":
        yield "conv.weight", (2 * d, d, config.conv_kernel)
        yield "conv.bias", (2 * d,)
        return
    gates = {"lstm": 4, "gru": 3}[kind] * d
    for source in ("ih", "hh"):
        yield f"rnn.weight_{source}_l0", (gates, d)
        yield f"rnn.bias_{source}_l0", (gates,)


class _Form:
    """A shape that is cut and turned as a tensor is: what `to_ours` does with one."""

    def __init__(self, shape: Shape) -> None:
        self.shape = tuple(shape)

    @property
    def T(self) -> Self:
        return type(self)(self.shape[::-1])

    def dim(self) -> int:
        return len(self.shape)

    def reshape(self, *shape: int) -> Self:
        assert prod(shape) == prod(self.shape)
        return type(self)(shape)

    def unbind(self, dim: int) -> list[Self]:
        return [type(self)(self.shape[:dim] + self.shape[dim + 1 :])] * self.shape[dim]
