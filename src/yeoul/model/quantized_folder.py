"""Folders with low-bit weights: `quantization_config` of config.json, and what the tensors are called.

Both are as the library compressed-tensors has them (its formats "int-quantized" for 8 bits and "pack-quantized" for
fewer), so that what reads its folders reads these. In the place of `weight` a quantized module has

| bits | tensors |
|---|---|
| 8 | `weight` (out, in) int8, `weight_scale` (out, groups) bfloat16 |
| 6, 4 | `weight_packed` (out, in bits / 32) int32, `weight_scale` as before, `weight_shape` (2) int64: out, in |

A weight is its whole number times the scale of its group of inputs; there is one group with 8 bits unless the folder
says otherwise. `quantization_config` names a scheme for classes of modules ("Linear") or for paths, and what has none:

    {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
     "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true,
       "strategy": "group", "group_size": 64, "dynamic": false}, "input_activations": null}},
     "ignore": ["lm_head"]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yeoul.errors import UserError, shown
from yeoul.model.decoder import Decoder
from yeoul.model.families import FAMILIES
from yeoul.model.quantized import (
    BITS,
    LINEARS,
    QuantizedEmbedding,
    QuantizedLinear,
    check_shape,
    quantized_modules,
    replace_module,
)
from yeoul.model.tensor_names import names_of
from yeoul.ops.low_bit import pack, unpack

FIELD = "quantization_config"
MOST_EXPRESSIONS = 200
SLOW = re.compile(r"\)[*+?{]|\{|\(\?|\\[1-9]")
"""What expressions of module names do without: repeated groups, counts, look-around, references."""
FORMATS = {8: "int-quantized", 6: "pack-quantized", 4: "pack-quantized"}
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_NEUTRAL = frozenset(
    """
    quant_method format quantization_status config_groups ignore version global_compression_ratio sparsity_config
    transform_config kv_cache_scheme
    """.split()
)
_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "type": ("int",), "symmetric": (True,), "dynamic": (False, None), "actorder": (None, False, "static", "weight"),
    "block_structure": (None,), "zp_dtype": (None, "torch.int8"),
}  # fmt: skip
"""Fields of a scheme's weights and the values that change nothing of what its numbers mean."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the modules of some names are quantized.

    Attributes:
        bits: 8, 6 or 4.
        group_size: inputs that share a scale; 0 means all.
        targets: "Linear" or "Embedding", paths, or regular expressions after "re:".
    """

    bits: int
    group_size: int
    targets: tuple[str, ...] = ("Linear",)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Which modules of a model have low-bit weights.

    Attributes:
        schemes: the first one that names a module is its own.
        ignore: paths, classes or regular expressions of modules that stay as they are.
    """

    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...] = ()

    def scheme(self, path: str, kind: str) -> Scheme | None:
        """The scheme of the module at a path; its class is called `kind`. None where it stays as it is."""
        if _named(self.ignore, path, kind):
            return None
        return next((scheme for scheme in self.schemes if _named(scheme.targets, path, kind)), None)

    def to_json(self) -> dict[str, Any]:
        """The content of `quantization_config`."""
        kinds = {FORMATS[scheme.bits] for scheme in self.schemes}
        groups = {}
        for number, scheme in enumerate(self.schemes):
            weights: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False}
            weights |= {"strategy": "group" if scheme.group_size else "channel"}
            weights |= {"group_size": scheme.group_size or None}
            groups[f"group_{number}"] = {
                "targets": list(scheme.targets), "weights": weights, "input_activations": None,
                "output_activations": None, "format": FORMATS[scheme.bits],
            }  # fmt: skip
        return {
            "quant_method": "compressed-tensors",
            "format": kinds.pop() if len(kinds) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(self.ignore),
        }


def _named(words: tuple[str, ...], path: str, kind: str) -> bool:
    return path in words or kind in words or any(re.match(word[3:], path) for word in words if word.startswith("re:"))


def read_quantization(values: object) -> Quantization | None:
    """What `quantization_config` of a config.json says; None where there is none.

    Raises:
        UserError: another method, or something in it that changes what the numbers mean.
    """
    if not values:
        return None
    method = values.get("quant_method") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or method != "compressed-tensors":
        raise UserError(
            f"the weights are quantized by {shown(method)} ({FIELD} of config.json), which is not read",
            fix="give the folder of the full weights, and quantize it: yeoul quantize FOLDER",
        )
    for name, value in values.items():
        if name in ("kv_cache_scheme", "sparsity_config", "transform_config") and value:
            raise UserError(f"{name} in {FIELD} of config.json is not supported")
        if name not in _NEUTRAL:
            raise UserError(f"{FIELD} of config.json has a field {shown(name)} that is not known")
    if values.get("quantization_status", "compressed") != "compressed":
        raise UserError(f"quantization_status in {FIELD} of config.json is not 'compressed'")
    groups, ignore = values.get("config_groups"), values.get("ignore") or []
    if not isinstance(groups, Mapping) or not groups:
        raise UserError(f"{FIELD} of config.json has no config_groups")
    _check_words("ignore", ignore)
    schemes = tuple(_read_scheme(shown(name), group, values.get("format")) for name, group in groups.items())
    return Quantization(schemes=schemes, ignore=tuple(ignore))


def _read_scheme(name: str, group: object, form: object) -> Scheme:
    where = f"{name} of {FIELD} in config.json"
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        raise UserError(f"{where} does not say how weights are quantized")
    for part in ("input_activations", "output_activations"):
        if group.get(part):
            raise UserError(f"{part} of {where} are quantized, which is not supported: only weights may be")
    bits = weights.get("num_bits")
    if bits not in BITS or isinstance(bits, bool):
        raise UserError(f"num_bits of {where} is {shown(bits)}, but only 8, 6 and 4 are read")
    form = group.get("format") or form
    if form != FORMATS[bits]:
        raise UserError(f"the format of {where} is {shown(form)}; with {bits} bits only {FORMATS[bits]!r} is read")
    for field, allowed in _WEIGHTS.items():
        if weights.get(field, allowed[0]) not in allowed:
            raise UserError(f"{field} of {where} is {shown(weights[field])}, which is not supported")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy not in ("group", "channel"):
        raise UserError(f"strategy of {where} is {shown(strategy)}, but only 'group' and 'channel' are read")
    if strategy == "channel":
        size = 0
    elif type(size) is not int or not 1 <= size <= 2**24:
        raise UserError(f"group_size of {where} must be a positive whole number, not {shown(size)}")
    targets = group.get("targets")
    _check_words(f"targets of {name}", targets)
    assert isinstance(targets, list)
    return Scheme(bits=bits, group_size=size, targets=tuple(targets))


def _check_words(name: str, words: object) -> None:
    """A UserError where a list of targets is none, or has an expression that cannot be used."""
    if not isinstance(words, list) or not all(isinstance(word, str) and len(word) < 1000 for word in words):
        raise UserError(f"{name} in {FIELD} of config.json must be a list of names, not {shown(words)}")
    expressions = [word for word in words if word.startswith("re:")]
    if len(expressions) > MOST_EXPRESSIONS:
        raise UserError(f"{name} in {FIELD} of config.json has more than {MOST_EXPRESSIONS} regular expressions")
    for word in expressions:
        try:
            re.compile(word[3:])
        except (re.error, RecursionError, OverflowError):
            raise UserError(f"{shown(word)} in {FIELD} of config.json is not a regular expression") from None
        if SLOW.search(word) or len(re.findall(r"[*+]", word)) > 3:  # could take years on a short path
            raise UserError(f"{shown(word)} in {FIELD} of config.json is more than a name of modules needs")


# -- models


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
