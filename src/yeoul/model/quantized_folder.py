"""Models with low-bit weights from and to folders: what the tensors are called.

They are as the library compressed-tensors has them, and so is what config.json says of them
(`yeoul.model.quantization`), so that what reads its folders reads these. In the place of `weight` a quantized module
has

| bits | tensors |
|---|---|
| 8 | `weight` (out, in) int8, `weight_scale` (out, groups) bfloat16 |
| 6, 4 | `weight_packed` (out, in bits / 32) int32, `weight_scale` as before, `weight_shape` (2) int64: out, in |

A weight is its whole number times the scale of its group of inputs; there is one group with 8 bits unless the folder
says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from yeoul.errors import UserError, shown
from yeoul.model.decoder import Decoder
from yeoul.model.families import FAMILIES
from yeoul.model.quantization import EMBEDDING, FIELD, HEAD, LINEARS, Quantization, Scheme, check_shape
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear, quantized_modules, replace_module
from yeoul.model.tensor_names import names_of
from yeoul.ops.low_bit import pack, unpack


def candidates(model: Decoder) -> Iterator[tuple[str, nn.Module, str]]:
    """(path, module, class) of all that may be quantized, quantized or not; a tied head has no module of its own."""
    for path, module in model.named_modules():
        leaf = path.rpartition(".")[2]
        if path == EMBEDDING:
            yield path, module, "Embedding"
        elif path == HEAD or (path.startswith("model.layers.") and leaf in LINEARS):
            yield path, module, "Linear"


def quantization_of(model: Decoder) -> Quantization | None:
    """What a folder says of a model; None where nothing is quantized."""
    if next(quantized_modules(model), None) is None:
        return None
    linear, table = dict[tuple[int, int], list[str]](), None
    ignore = []
    for path, module, kind in candidates(model):
        if not isinstance(module, QuantizedLinear):
            if kind == "Linear":
                ignore.append(path)
        elif kind == "Embedding":
            table = module.bits, module.group_size
        else:
            linear.setdefault((module.bits, module.group_size), []).append(path)
    most = max(linear, key=lambda scheme: len(linear[scheme]), default=None)
    schemes = [
        Scheme(bits=bits, group_size=group, targets=tuple(paths))
        for (bits, group), paths in linear.items()
        if (bits, group) != most
    ]
    if table is not None and table != most:
        schemes.append(Scheme(bits=table[0], group_size=table[1], targets=(f"re:.*{EMBEDDING.rpartition('.')[2]}$",)))
    if most is not None:
        targets = ("Linear", f"re:.*{EMBEDDING.rpartition('.')[2]}$") if table == most else ("Linear",)
        schemes.append(Scheme(bits=most[0], group_size=most[1], targets=targets))
    if model.config.tie_embeddings:
        ignore.append(HEAD)  # no module of ours; transformers has one, which it ties to the embeddings
    return Quantization(schemes=tuple(schemes), ignore=tuple(ignore))


def families_for(model: Decoder) -> tuple[str, ...]:
    """Families in whose names a quantized model is written; our own is always one.

    Not those that fuse projections, of which these layouts know nothing; and none where transformers could not open
    the folder with compressed-tensors: embeddings that are packed, or that are the output too.
    """
    table = model.model.embed_tokens
    if isinstance(table, QuantizedLinear) and (table.bits != 8 or model.config.tie_embeddings):
        return ()
    return tuple(name for name in FAMILIES if not names_of(name).fused)


def prepare(model: Decoder, quantization: Quantization) -> None:
    """Puts low-bit modules, not filled yet, in the place of those that are quantized.

    Raises:
        UserError: a module does not fit its scheme.
    """
    for path, module, kind in list(candidates(model)):
        scheme = quantization.scheme(path, kind)
        if scheme is None:
            continue
        weight: Any = module.weight
        N, K = weight.shape
        try:
            check_shape(K, scheme.bits, scheme.group_size)
        except UserError as error:
            raise UserError(f"{FIELD} of config.json does not fit {path}: {error.what}") from None
        made = QuantizedEmbedding if kind == "Embedding" else QuantizedLinear
        bias = getattr(module, "bias", None) is not None
        replace_module(model, path, made(K, N, bits=scheme.bits, group_size=scheme.group_size, bias=bias))


# -- tensors


def stored_layout(model: Decoder) -> dict[str, Tensor]:
    """What a folder of a model holds, by our names: shapes and types, on the meta device."""
    plain = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    return to_stored(plain, model)


def to_stored(tensors: Mapping[str, Tensor], model: Decoder) -> dict[str, Tensor]:
    """A model's tensors as a folder has them, by our names of their modules."""
    low, stored = dict(quantized_modules(model)), dict[str, Tensor]()
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if leaf != "weight_packed":
            stored[name] = tensor
            continue
        layer = low[stem]
        if layer.bits == 8:
            stored[f"{stem}.weight"] = tensor
            continue
        stored[name] = pack(tensor, layer.bits) if layer.bits != 4 else tensor
        shape = torch.tensor([layer.out_features, layer.in_features], device="cpu")
        stored[f"{stem}.weight_shape"] = shape.to(tensor.device)
    return stored


def from_stored(name: str, tensor: Tensor, low: Mapping[str, QuantizedLinear]) -> tuple[str, Tensor] | None:
    """One tensor of a folder as the model has it, None for a `weight_shape`: the inverse of `to_stored`.

    Args:
        name: as in `stored_layout`.
        tensor: on the CPU.
        low: the quantized modules by path.

    Raises:
        UserError: a `weight_shape` that is not its module's.
    """
    stem, _, leaf = name.rpartition(".")
    layer = low.get(stem)
    if layer is None:
        return name, tensor
    if leaf == "weight_shape":
        if tensor.tolist() != (wanted := [layer.out_features, layer.in_features]):
            raise UserError(f"tensor {shown(name)} says {shown(tensor.tolist())}, but its module has {wanted}")
        return None
    if leaf == "weight" or (leaf == "weight_packed" and layer.bits == 4):
        return f"{stem}.weight_packed", tensor
    return name, unpack(tensor, layer.bits, layer.in_features) if leaf == "weight_packed" else tensor
