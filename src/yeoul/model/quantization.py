"""`quantization_config` of config.json: which modules of a model have low-bit weights.

It is as the library compressed-tensors has it (its formats "int-quantized" for 8 bits and "pack-quantized" for fewer);
what the tensors are called is in `yeoul.model.quantized_folder`. It names a scheme for classes of modules ("Linear") or
for paths, and what has none:

    {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
     "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true,
       "strategy": "group", "group_size": 64, "dynamic": false}, "input_activations": null}},
     "ignore": ["lm_head"]}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yeoul.errors import UserError, shown

BITS = (8, 6, 4)
GROUP_SIZES = (32, 64, 128)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The modules of a layer that are quantized."""
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
FIELD = "quantization_config"
MOST_EXPRESSIONS = 200
SLOW = re.compile(r"\)[*+?{]|\{|\(\?|\\[1-9]")
"""What expressions of module names do without: repeated groups, counts, look-around, references."""
FORMATS = {8: "int-quantized", 6: "pack-quantized", 4: "pack-quantized"}
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


def check_shape(in_features: int, bits: int, group_size: int) -> None:
    """A UserError where a weight cannot be quantized so."""
    if bits not in BITS:
        raise UserError(f"weights of {bits} bits are not supported", fix="use 8 or 4")
    if group_size and in_features % group_size:
        raise UserError(
            f"groups of {group_size} do not divide the {in_features} inputs of a layer",
            fix="use a smaller group size",
        )
    if bits == 4 and in_features % 8:
        raise UserError(f"4 bits need a multiple of 8 inputs, and a layer has {in_features}", fix="use 8 bits")
