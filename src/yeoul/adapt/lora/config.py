"""What an adapter is: rank, scaling and the modules that it changes, as PEFT's `adapter_config.json` has them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yeoul.adapt.lora.patterns import check_expression, matches
from yeoul.errors import UserError, shown

CONFIG = "adapter_config.json"
_NEUTRAL = {
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "inference_mode",
    "loftq_config", "lora_ga_config", "megatron_core", "merge_weights", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "task_type",
}  # fmt: skip
"""Keys of PEFT that change nothing of what a saved adapter computes."""
_SAME_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initial values that leave the base weights alone; PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ subtract from them."""

PEFT_RANK, PEFT_ALPHA = 8, 8
"""What PEFT takes where a file does not say it."""
ALL_LINEAR = "all-linear"
MOST_PATTERNS = 10_000
"""Ranks and alphas of single modules: more than any model has modules."""
OUTPUTS = ("lm_head", "embed_out")
"""What an output layer is called; GPT-NeoX's by the second name in transformers before 5."""
_FIELDS = {
    "base_model_name_or_path": "base_model", "r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout",
    "use_rslora": "rslora", "use_dora": "dora", "trainable_token_indices": "token_indices",
    **{name: name for name in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
                               "rank_pattern", "alpha_pattern")},
}  # fmt: skip
"""Key of PEFT -> field of `LoraConfig`."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What an adapter is; the names in brackets are those of `adapter_config.json`.

    Attributes:
        r: rank.
        alpha: the low-rank part is multiplied by alpha / r [lora_alpha].
        dropout: of the input of the low-rank part, while training, in linear layers [lora_dropout].
        target_modules: ends of module paths such as "q_proj", or "all-linear", or a regular expression that must
            match the whole path. Paths are Yeoul's here, and those of transformers in a file. "embed_tokens" and
            "lm_head" are the embedding and the output layer, which "all-linear" leaves out; a list may have it and
            these. Of a model that ties the two, either name means both, with one low-rank part.
        exclude_modules: ends of paths or a regular expression, which stay without.
        layers_to_transform: only these layers, counted from 0; with a list of target modules.
        layers_pattern: what the list of layers is called in the path, such as "layers" or "h".
        rslora: alpha / sqrt(r) instead (Kalajdzievski 2023) [use_rslora].
        dora: a trained length for each row of W + scaling * B A [use_dora].
        rank_pattern: other ranks, by the end of a path or a regular expression for it.
        alpha_pattern: other alphas, likewise.
        token_indices: ids of tokens whose rows of the embedding, and of an output layer tied to it, are trained too;
            or by the name of the table, as {"embed_tokens": ids, "lm_head": ids} [trainable_token_indices].
        base_model: folder or hub id of the model that the adapter is for [base_model_name_or_path].

    Raises:
        UserError: a value that cannot be.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | str = ALL_LINEAR
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    base_model: str | None = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the one way into a frozen class
        if isinstance(self.layers_to_transform, int):
            put("layers_to_transform", (self.layers_to_transform,))
        if isinstance(self.layers_pattern, str):
            put("layers_pattern", (self.layers_pattern,))
        for name in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"):
            value, kind = getattr(self, name), int if name == "layers_to_transform" else str
            if isinstance(value, list | set):
                put(name, value := tuple(value))
            if not isinstance(value, str) and not (isinstance(value, tuple) and all(type(v) is kind for v in value)):
                raise UserError(f"{name} cannot be {value!r}", name)
        tokens = self.token_indices
        for ids in tokens.values() if isinstance(tokens, Mapping) else (tokens,):
            listed = isinstance(ids, list | tuple) and len(set(ids)) == len(ids)
            if not listed or not all(type(i) is int and i >= 0 for i in ids):
                raise UserError(f"token_indices must be different ids, not {ids!r}", "token_indices")
        if not isinstance(tokens, Mapping):
            put("token_indices", tuple(tokens))
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), Mapping):
                raise UserError(f"{name} must map names to numbers", name)
        ranks, alphas = [self.r, *self.rank_pattern.values()], [self.alpha, *self.alpha_pattern.values()]
        if any(type(rank) is not int or rank < 1 for rank in ranks):
            raise UserError(f"ranks must be positive whole numbers, not {ranks!r}", "r")
        if any(type(alpha) not in (int, float) or not math.isfinite(alpha) or not alpha for alpha in alphas):
            raise UserError(f"alphas must be numbers other than 0, not {alphas!r}", "alpha")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, not {self.dropout!r}", "dropout")
        for name, value, kinds in (
            ("rslora", self.rslora, bool), ("dora", self.dora, bool), ("base_model", self.base_model, str | None),
        ):  # fmt: skip
            if not isinstance(value, kinds):
                raise UserError(f"{name} cannot be {value!r}", name)
        if self.layers_to_transform and isinstance(self.target_modules, str):
            raise UserError("layers_to_transform needs a list of target_modules", "layers_to_transform")
        expressions = [v for v in (self.target_modules, self.exclude_modules) if isinstance(v, str)]
        if len(self.rank_pattern) + len(self.alpha_pattern) > MOST_PATTERNS:
            raise UserError(f"there are more than {MOST_PATTERNS:,} patterns of ranks and alphas", "rank_pattern")
        for expression in (*expressions, *self.rank_pattern, *self.alpha_pattern):
            check_expression(expression)
        for name in self.layers_pattern:
            if not re.fullmatch(r"[\w.\\-]{1,100}", name):
                raise UserError(f"layers_pattern must name a list of layers, not {shown(name)}", "layers_pattern")

    def matches(self, path: str, *, linear: bool = True) -> bool:
        """Whether the module of this path takes the adapter (PEFT's rules).

        Args:
            path: of the module.
            linear: whether "all-linear" means it: the linear layers of the blocks, no table of tokens.
        """
        if named(self.exclude_modules, path):
            return False
        targets = (self.target_modules,) if self.target_modules == ALL_LINEAR else self.target_modules
        every = linear and not isinstance(targets, str) and ALL_LINEAR in targets
        if not every and not named(targets, path):
            return False
        if not self.layers_to_transform or path in self.target_modules:
            return True
        lists = [name.replace("\\", "") for name in self.layers_pattern]
        patterns = [rf"(?:^|.*?\.){re.escape(name)}\.(\d+)\." for name in lists] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for pattern in patterns if (match := re.match(pattern, path))), None)
        return found is not None and int(found[1]) in self.layers_to_transform

    def rank(self, path: str) -> int:
        """The rank at a path."""
        return int(_by_pattern(self.rank_pattern, path, self.r))

    def scaling(self, path: str) -> float:
        """What the low-rank part at a path is multiplied by."""
        r = self.rank(path)
        return _by_pattern(self.alpha_pattern, path, self.alpha) / (math.sqrt(r) if self.rslora else r)

    def tokens_of(self, table: str) -> tuple[int, ...]:
        """Ids of the tokens whose rows are trained, of the table whose path ends with this name."""
        if not isinstance(self.token_indices, Mapping):
            return () if table in OUTPUTS else self.token_indices
        names = OUTPUTS if table in OUTPUTS else (table,)
        return next((tuple(ids) for key, ids in self.token_indices.items() if key.rpartition(".")[2] in names), ())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoraConfig:
        """Reads PEFT's `adapter_config.json`.

        Raises:
            UserError: something in it changes what the adapter computes in a way that is not supported, or is unknown.
        """
        values = dict(values)
        if values.pop("peft_type", "LORA") != "LORA":
            raise UserError("only LoRA adapters are read", f"{CONFIG}, peft_type")
        if values.pop("bias", "none") != "none":
            raise UserError("adapters that train biases are not supported", f"{CONFIG}, bias")
        initial = values.pop("init_lora_weights", True)
        if initial not in _SAME_BASE:
            raise UserError(
                f"with {initial!r} the training began by changing the base model", f"{CONFIG}, init_lora_weights",
                "convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion",
            )  # fmt: skip
        settings: dict[str, Any] = {"r": PEFT_RANK, "alpha": PEFT_ALPHA}
        for key, value in values.items():
            if key in _FIELDS:
                if value is not None:
                    settings[_FIELDS[key]] = value
            elif key not in _NEUTRAL and value not in (None, False, "", [], {}):
                raise UserError(f"{key} = {value!r} is not supported", f"{CONFIG}, {key}")
        target = settings.get("target_modules")
        if not target:
            raise UserError("the adapter names no target modules", f"{CONFIG}, target_modules")
        if isinstance(target, str) and target.lower() == ALL_LINEAR:
            settings["target_modules"] = ALL_LINEAR
        try:
            return cls(**settings)
        except UserError as error:
            raise UserError(error.what, CONFIG, error.fix) from None

    def to_dict(self) -> dict[str, Any]:
        """The content of PEFT's `adapter_config.json`."""
        values = {key: getattr(self, name) for key, name in _FIELDS.items()}
        values = {key: list(value) or None if isinstance(value, tuple) else value for key, value in values.items()}
        values |= {key: dict(values[key]) for key in ("rank_pattern", "alpha_pattern")}
        if isinstance(self.token_indices, Mapping):
            values["trainable_token_indices"] = {name: list(ids) for name, ids in self.token_indices.items()}
        fixed = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "init_lora_weights": True}
        return fixed | values | {"inference_mode": True}


def named(modules: tuple[str, ...] | str, path: str) -> bool:
    """Whether a list of ends of paths, or a regular expression, names this path."""
    if isinstance(modules, str):
        return bool(modules) and matches(modules, path)
    return any(path == name or path.endswith(f".{name}") for name in modules)


def _by_pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((value for key, value in patterns.items() if _ends_with(path, key)), default)


def _ends_with(path: str, expression: str) -> bool:
    """Whether an expression matches a path, or what is behind one of its dots; adapters have names by the hundred."""
    if re.fullmatch(r"[\w.]+", expression):
        return any(matches(expression, path[at.end() :]) for at in re.finditer(r"^|\.", path))
    return matches(rf"(?:.*\.)?(?:{expression})", path)
