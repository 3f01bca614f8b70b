"""What differs between published model families: how `config.json` reads, and what the tensors are called.

Every family is one row of `FAMILIES`. A reader takes fields out of `Fields`, which knows what nobody has read: such a
field is an error that names it, unless it is known to change nothing that is computed (`NEUTRAL`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from yeoul.errors import UserError, shown
from yeoul.model.config import LINEAR_KINDS, MOST_LAYERS, FeatureMapConfig, ModelConfig, is_positive, is_whole
from yeoul.model.rope import RopeScaling

Json = Mapping[str, Any]
Tensors = dict[str, Tensor]

NEUTRAL = frozenset(
    """
    architectures model_type transformers_version _name_or_path auto_map dtype torch_dtype use_cache tie_encoder_decoder
    attn_implementation _attn_implementation _attn_implementation_autoset attn_implementation_internal
    attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn initializer_range
    gradient_checkpointing use_bfloat16 pretraining_tp cache_implementation hybrid_cache sep_token_id
    decoder_start_token_id task_specific_params problem_type id2label label2id num_labels finetuning_task
    return_dict output_hidden_states output_attentions output_scores return_dict_in_generate torchscript
    chunk_size_feed_forward prefix do_sample temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids min_length max_length num_beams num_beam_groups diversity_penalty
    early_stopping num_return_sequences remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id tf_legacy_loss n_ctx is_decoder tokenizer_class
    yeoul_version author created_date license
    """.split()
)
"""Fields of config.json that change no logits: dropout, training, generation, labels, provenance."""


SIZES = frozenset(
    """
    vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size
    max_position_embeddings original_max_position_embeddings n_embd n_layer n_head n_inner n_positions
    """.split()
)
COUNTS = frozenset({"sliding_window", "max_window_layers"})
NUMBERS = frozenset(
    """
    rms_norm_eps layer_norm_eps layer_norm_epsilon initializer_range rope_theta rotary_emb_base rope_local_base_freq
    partial_rotary_factor rotary_pct query_pre_attn_scalar final_logit_softcapping attn_logit_softcapping
    """.split()
)
FLAGS = frozenset(
    """
    tie_word_embeddings attention_bias mlp_bias use_sliding_window use_parallel_residual scale_attn_weights
    scale_attn_by_inverse_layer_idx add_cross_attention use_bidirectional_attention
    """.split()
)
"""Fields of config.json by what they hold: positive whole numbers, whole numbers, positive numbers, true or false."""


def _check_kind(name: str, value: object) -> None:
    """A UserError where a field holds something that no field of its name can."""
    if name in SIZES:
        fits, wanted = is_whole(value, 1), "a positive whole number"
    elif name in COUNTS:
        fits, wanted = is_whole(value, 0), "a whole number"
    elif name in NUMBERS:
        fits, wanted = is_positive(value), "a positive number"
    elif name in FLAGS:
        fits, wanted = isinstance(value, bool), "true or false"
    else:
        return
    if not fits and value is not None:
        raise UserError(f"{name} of config.json must be {wanted}, not {shown(value)}")


class Fields:
    """A `config.json` that remembers which of its fields were read."""

    def __init__(self, values: Json) -> None:
        self.values, self.unread = values, set(values)

    def get(self, name: str, default: Any = None) -> Any:
        """The field's value, null included; `default` where it is absent; a UserError where it is of another kind."""
        self.unread.discard(name)
        value = self.values.get(name, default)
        _check_kind(name, value)
        return value

    def need(self, name: str) -> Any:
        """The field's value; a UserError where it is absent."""
        if self.values.get(name) is None:
            raise UserError(f"config.json has no {shown(name)}")
        return self.get(name)

    def refuse(self, *names: str) -> None:
        """A UserError where one of these is set to anything but null, false, 0 or 1."""
        for name in names:
            if self.get(name) not in (None, False, 0, 1):
                raise UserError(f"{shown(name)} of config.json is not supported: it changes what the model computes")

    def finish(self) -> None:
        """A UserError that names a field which nobody has read."""
        for name in sorted(self.unread - NEUTRAL):
            if self.values[name] in (None, False) or name.startswith(("_", "unsloth")):
                continue
            kind = shown(self.values.get("model_type"))
            raise UserError(
                f"config.json has a field {shown(name)} that is not known for model_type {kind}",
                fix="remove it from config.json if it does not change what the model computes",
            )


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the tensors of a family are called.

    Attributes:
        prefix: before everything but `outer`; a published folder may lack it.
        layers: the list of blocks.
        top: their module -> ours, outside the blocks.
        inner: their module or parameter -> ours, inside a block.
        fused: module with queries, keys and values in one; "" has none.
        by_head: rows of the fused module lie as (head, q k v, head size); else as (q k v, head, head size).
        transposed: modules whose weight is (in, out).
        outer: top modules that stand outside the prefix.
        ignored: endings of tensors that are recomputed.
    """

    prefix: str = "model."
    layers: str = "layers"
    top: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, str] = field(default_factory=dict)
    fused: str = ""
    by_head: bool = False
    transposed: frozenset[str] = frozenset()
    outer: frozenset[str] = frozenset({"lm_head"})
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published architecture.

    Attributes:
        read: `config.json` and the names of the tensors -> ModelConfig.
        write: ModelConfig -> the family's own `config.json`; `write_config` reads it back to see whether it says all.
        names: what its tensors are called.
    """

    read: Callable[[Fields, frozenset[str]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    names: Names = field(default_factory=Names)


def _special_ids(c: Fields, **defaults: int | None) -> dict[str, Any]:
    ids: dict[str, Any] = {}
    for name in ("bos", "eos", "pad"):
        value = c.get(f"{name}_token_id", defaults.get(name))
        values = value if isinstance(value, list) else [value]
        if not all(token is None or is_whole(token, -1) for token in values):
            raise UserError(f"{name}_token_id of config.json must be the id of a token, not {shown(value)}")
        first, *others = values or [None]
        ids[f"{name}_id"] = first
        if name == "eos":
            ids["other_eos_ids"] = tuple(others)
    return ids


def _write_special_ids(config: ModelConfig) -> dict[str, Any]:
    eos = [config.eos_id, *config.other_eos_ids] if config.other_eos_ids else config.eos_id
    return {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}


def _activation(c: Fields, name: str, default: str, known: Mapping[str, str]) -> str:
    value = c.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name} of config.json is {shown(value)}, which is not supported in this family")
    return known[value]


SILU = {"silu": "silu", "swish": "silu"}
GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
TANH = {"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # Gemma's "gelu" has always meant the approximation


@dataclass(frozen=True)
class _Rope:
    """What one dictionary of rotary parameters says."""

    theta: float | None
    share: float | None
    scaling: RopeScaling | None


def _parse_rope(values: object, where: str, lengths: tuple[int | None, int]) -> _Rope:
    """One `rope_parameters` or `rope_scaling`; `lengths` are the original (or None) and the largest position."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} of config.json must be an object, not {shown(values)}")
    rest = {key: value for key, value in values.items() if value is not None}
    kinds = (rest.pop("rope_type", None), rest.pop("type", None))
    kind = next((k for k in kinds if k is not None), "default")
    theta, share = rest.pop("rope_theta", None), rest.pop("partial_rotary_factor", None)
    _check_kind("rope_theta", theta)
    _check_kind("partial_rotary_factor", share)
    for neutral in ("finetuned",):
        rest.pop(neutral, None)
    if kind == "su":  # what longrope was first called
        kind = "longrope"
    if kind in ("llama3", "yarn", "longrope"):
        original, longest = lengths
        if original is not None:
            rest["original_max_position_embeddings"] = original
        rest.setdefault("original_max_position_embeddings", longest)
    elif kind != "default":
        rest.pop("original_max_position_embeddings", None)
    if kind == "default":
        if rest:
            raise UserError(
                f"{where} of config.json has a field {shown(sorted(rest)[0])} but no rope_type that reads it"
            )
        return _Rope(theta, share, None)
    if unknown := sorted(set(rest) - set(RopeScaling.__dataclass_fields__)):
        raise UserError(
            f"{where} of config.json has a field {shown(unknown[0])} that is not known for type {shown(kind)}"
        )
    return _Rope(theta, share, RopeScaling(rope_type=str(kind), **rest))


def _read_rope(c: Fields, default_theta: float, longest: int) -> tuple[_Rope, _Rope | None]:
    """The rotation of the full layers and, where config.json tells them apart, of the sliding ones."""
    new, old = c.get("rope_parameters"), c.get("rope_scaling")
    original = c.get("original_max_position_embeddings")
    lengths = (original if isinstance(original, int) else None, longest)
    theta = c.get("rope_theta") or c.get("rotary_emb_base") or default_theta
    share = c.get("partial_rotary_factor")
    local: _Rope | None = None
    if isinstance(new, Mapping) and {"full_attention", "sliding_attention"} & set(new):
        if unknown := set(new) - {"full_attention", "sliding_attention"}:
            raise UserError(f"rope_parameters of config.json has a field {shown(sorted(unknown)[0])} that is not known")
        if new.get("sliding_attention") is not None:
            local = _parse_rope(new["sliding_attention"], "rope_parameters", lengths)
        new = new.get("full_attention")
    rope = _parse_rope(old or new or {}, "rope_scaling" if old else "rope_parameters", lengths)
    return _Rope(rope.theta or theta, rope.share or share, rope.scaling), local


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    """Both generations of config.json."""
    scaling = None if config.rope_scaling is None else config.rope_scaling.to_dict()
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
    }


def _layer_kinds(c: Fields, layers: int, window: object, is_sliding: Callable[[int], bool]) -> dict[str, Any]:
    """Kinds of the layers and their window: as `layer_types` says, else as the family's rule does."""
    types = c.get("layer_types")
    if types is None:
        types = ["sliding_attention" if is_sliding(i) else "full_attention" for i in range(layers)]
    known = {"full_attention": "softmax", "sliding_attention": "sliding"}
    if not isinstance(types, list) or len(types) != layers:
        raise UserError(f"layer_types of config.json does not name {layers} layers")
    for kind in types:
        if not isinstance(kind, str) or kind not in known:
            raise UserError(f"layer_types of config.json has {shown(kind)}, which is not supported")
    kinds = tuple(known[kind] for kind in types)
    if "sliding" not in kinds or window is None:
        return {"attention": ("softmax",) * layers}
    return {"attention": kinds, "sliding_window": window}


def _write_layer_kinds(config: ModelConfig) -> dict[str, Any]:
    names = {"softmax": "full_attention", "sliding": "sliding_attention"}
    types = [names.get(kind, kind) for kind in config.attention]
    return {"layer_types": types, "sliding_window": _sliding_window(config)}


def _sliding_window(config: ModelConfig) -> int | None:
    return (config.sliding_window or config.window) if "sliding" in config.attention else None


def _count(c: Fields, name: str = "num_hidden_layers") -> int:
    """How many layers, few enough to make a list of."""
    value: int = c.need(name)
    if value > MOST_LAYERS:
        raise UserError(f"{name} of config.json is {shown(value)}, but no model has more than {MOST_LAYERS:,} layers")
    return value


def _read_shape(c: Fields, *, max_positions: int, heads: int | None = None, eps: float = 1e-6) -> dict[str, Any]:
    """The fields that Llama and its descendants share."""
    rope, _ = _read_rope(c, 10_000.0, longest := c.get("max_position_embeddings", max_positions))
    if rope.share not in (None, 1, 1.0):
        raise UserError("partial_rotary_factor of config.json is not supported in this family")
    return dict(
        vocab_size=c.need("vocab_size"),
        hidden_size=c.need("hidden_size"),
        num_layers=_count(c),
        num_heads=c.need("num_attention_heads"),
        num_kv_heads=c.get("num_key_value_heads", heads),
        intermediate_size=c.need("intermediate_size"),
        max_position_embeddings=longest,
        norm_eps=c.get("rms_norm_eps", eps),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        initializer_range=c.get("initializer_range", 0.02),
    )


def _write_shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        **_write_rope(config),
        **_write_special_ids(config),
    }


def _read_llama(c: Fields, names: frozenset[str]) -> ModelConfig:
    _activation(c, "hidden_act", "silu", SILU)
    return ModelConfig(
        **_read_shape(c, max_positions=2048),
        head_dim=c.get("head_dim"),
        attention_bias=c.get("attention_bias", False),
        mlp_bias=c.get("mlp_bias", False),
        tie_embeddings=c.get("tie_word_embeddings", False),
        **_special_ids(c, bos=1, eos=2),
    )


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", **_write_shape(config), **biases}


def _read_mistral(c: Fields, names: frozenset[str]) -> ModelConfig:
    _activation(c, "hidden_act", "silu", SILU)
    window = c.get("sliding_window", 4096)
    return ModelConfig(
        **_read_shape(c, max_positions=4096 * 32, heads=8),
        head_dim=c.get("head_dim"),
        attention=("sliding",) if window else ("softmax",),
        sliding_window=window or None,
        tie_embeddings=c.get("tie_word_embeddings", False),
        **_special_ids(c, bos=1, eos=2),
    )


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    window = _sliding_window(config)
    return {"architectures": ["MistralForCausalLM"], "hidden_act": "silu", "sliding_window": window} | _write_shape(
        config
    )


def _read_qwen(c: Fields, names: frozenset[str], *, third: bool) -> ModelConfig:
    """Qwen 2 and 2.5: biases of queries, keys and values; Qwen 3: norms of queries and keys."""
    _activation(c, "hidden_act", "silu", SILU)
    window, first = c.get("sliding_window", 4096), c.get("max_window_layers", 28)
    slides = bool(c.get("use_sliding_window", False)) and window is not None
    first = 28 if first is None else first
    layers = _layer_kinds(c, _count(c), window if slides else None, lambda i: slides and i >= first)
    if third:
        differences = dict(head_dim=c.get("head_dim", 128), qk_norm=True, attention_bias=c.get("attention_bias", False))
    else:
        differences = dict(attention_bias=True, attention_output_bias=False, head_dim=c.get("head_dim"))
    return ModelConfig(
        **_read_shape(c, max_positions=32768, heads=32),
        **layers,
        **differences,
        tie_embeddings=c.get("tie_word_embeddings", False),
        **_special_ids(c),
    )


def _write_qwen(config: ModelConfig, *, third: bool) -> dict[str, Any]:
    slides = "sliding" in config.attention
    first = config.attention.index("sliding") if slides else config.num_layers
    out = {"architectures": [f"Qwen{3 if third else 2}ForCausalLM"], "hidden_act": "silu", **_write_shape(config)}
    out |= {**_write_layer_kinds(config), "use_sliding_window": slides, "max_window_layers": first}
    return out | ({"attention_bias": config.attention_bias} if third else {})


def _read_gemma(c: Fields, names: frozenset[str], *, generation: int) -> ModelConfig:
    """Gemma 1, 2 and 3 (text)."""
    field_name = "hidden_activation" if generation > 1 or c.get("hidden_activation") else "hidden_act"
    c.get("hidden_act")
    activation = _activation(c, field_name, "gelu_pytorch_tanh", TANH)
    if c.get("use_bidirectional_attention"):
        raise UserError("use_bidirectional_attention of config.json is not supported: the model is no decoder")
    shape = _read_shape(c, max_positions=131_072 if generation == 3 else 8192, heads=(16, 4, 4)[generation - 1])
    layers = shape["num_layers"]
    differences: dict[str, Any] = {}
    if generation > 1:
        pattern = c.get("sliding_window_pattern", 6) if generation == 3 else 2
        if not is_whole(pattern, 1):
            raise UserError(f"sliding_window_pattern of config.json cannot be {shown(pattern)}")
        scalar = c.get("query_pre_attn_scalar", 256) or 256
        differences = _layer_kinds(c, layers, c.get("sliding_window", 4096), lambda i: (i + 1) % pattern != 0)
        differences |= dict(
            norm_placement="sandwich",
            attention_scale=scalar**-0.5,
            logit_softcap=c.get("final_logit_softcapping", 30.0 if generation == 2 else None),
        )
    if generation == 2:
        differences |= dict(attention_softcap=c.get("attn_logit_softcapping", 50.0))
    if generation == 3:
        c.refuse("attn_logit_softcapping")
        rope, local = _read_rope(c, 1_000_000.0, shape["max_position_embeddings"])
        local_theta = c.get("rope_local_base_freq", 10_000.0)
        if local is not None and local.scaling is not None:
            raise UserError("stretched rotary positions of sliding layers are not supported")
        shape |= dict(rope_theta=rope.theta)
        differences |= dict(qk_norm=True, rope_local_theta=(local.theta if local else None) or local_theta)
    return ModelConfig(
        **shape,
        **differences,
        head_dim=c.get("head_dim", 256),
        norm_zero_centered=True,
        mlp="geglu",
        activation=activation,
        embedding_scale=shape["hidden_size"] ** 0.5,
        attention_bias=c.get("attention_bias", False),
        tie_embeddings=c.get("tie_word_embeddings", True),
        **_special_ids(c, bos=2, eos=1, pad=0),
    )


def _write_gemma(config: ModelConfig, *, generation: int) -> dict[str, Any]:
    name = ("Gemma", "Gemma2", "Gemma3")[generation - 1]
    out = {"architectures": [f"{name}ForCausalLM"], **_write_shape(config), "attention_bias": config.attention_bias}
    out |= {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    if generation == 1:
        return out
    assert config.head_dim is not None
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = round(scale**-2) if abs(round(scale**-2) ** -0.5 - scale) < 1e-12 else scale**-2
    out |= {**_write_layer_kinds(config), "query_pre_attn_scalar": scalar}
    out |= {"final_logit_softcapping": config.logit_softcap}
    if generation == 2:
        return out | {"attn_logit_softcapping": config.attention_softcap}
    local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
    out["rope_parameters"] = {"full_attention": out["rope_parameters"], "sliding_attention": local}
    return out | {"rope_local_base_freq": config.rope_local_theta}


def _read_exaone4(c: Fields, names: frozenset[str]) -> ModelConfig:
    """EXAONE 4: norms behind attention and MLP; beside sliding layers, full ones have no positions."""
    _activation(c, "hidden_act", "silu", SILU)
    window, pattern, layers = c.get("sliding_window", 4096), c.get("sliding_window_pattern", 4), _count(c)
    if isinstance(pattern, str) and pattern and not set(pattern) - {"L", "G"}:
        local = [pattern[i % len(pattern)] == "L" and i < layers - 1 for i in range(layers)]
    elif is_whole(pattern, 0) or pattern is None:
        local = [bool(window and pattern and (i + 1) % pattern) for i in range(layers)]
    else:
        raise UserError(f"sliding_window_pattern of config.json cannot be {shown(pattern)}")
    kinds = _layer_kinds(c, layers, window, lambda i: local[i])
    return ModelConfig(
        **_read_shape(c, max_positions=2048, heads=32, eps=1e-5),
        **kinds,
        no_rope_layers=tuple(i for i, kind in enumerate(kinds["attention"]) if kind == "softmax" and window),
        head_dim=c.get("head_dim"),
        norm_placement="post",
        qk_norm=True,
        tie_embeddings=c.get("tie_word_embeddings", False),
        **_special_ids(c, bos=0, eos=2),
    )


def _write_exaone4(config: ModelConfig) -> dict[str, Any]:
    out = {"architectures": ["Exaone4ForCausalLM"], "hidden_act": "silu", **_write_shape(config)}
    out |= _write_layer_kinds(config)
    if config.no_rope_layers and out["sliding_window"] is None:
        out["sliding_window"] = 4096  # no layer slides, and none has positions
    return out | {"sliding_window_pattern": None}


def _read_gpt2(c: Fields, names: frozenset[str]) -> ModelConfig:
    """GPT-2 and KoGPT2."""
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if c.get(name):
            raise UserError(f"{shown(name)} of config.json is not supported: it changes what the model computes")
    hidden = c.need("n_embd")
    activation = _activation(c, "activation_function", "gelu_new", GELU)
    return ModelConfig(
        vocab_size=c.need("vocab_size"),
        hidden_size=hidden,
        num_layers=_count(c, "n_layer"),
        num_heads=c.need("n_head"),
        intermediate_size=c.get("n_inner") or 4 * hidden,
        max_position_embeddings=c.get("n_positions", 1024),
        norm="layernorm",
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        mlp="gelu",
        activation=activation,
        attention_scale=None if c.get("scale_attn_weights", True) else 1.0,
        attention_bias=True,
        mlp_bias=True,
        tie_embeddings=c.get("tie_word_embeddings", True),
        initializer_range=c.get("initializer_range", 0.02),
        **_special_ids(c, bos=50256, eos=50256),
    )


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position_embeddings,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "scale_attn_weights": config.attention_scale is None,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        **_write_special_ids(config),
    }


def _read_neox(c: Fields, names: frozenset[str]) -> ModelConfig:
    """GPT-NeoX; the authors' DiJiang models have the same config.json and are told by their tensors."""
    official = any(name.endswith("attention.proj_matrix") for name in names)
    activation = _activation(c, "hidden_act", "gelu", GELU)
    hidden, heads = c.need("hidden_size"), c.need("num_attention_heads")
    longest = c.get("max_position_embeddings", 2048)
    rope, _ = _read_rope(c, 10_000.0, longest)
    percent = c.get("rotary_pct", 0.25) or 0.25
    share = percent if rope.share is None else rope.share
    rotated = int(hidden // heads * min(share, 1))
    if share > 1 or rotated < 1:
        raise UserError(f"the share of a head that is rotated (rotary_pct) cannot be {shown(share)}")
    bias = c.get("attention_bias", True)
    return ModelConfig(
        vocab_size=c.need("vocab_size"),
        hidden_size=hidden,
        num_layers=_count(c),
        num_heads=heads,
        intermediate_size=c.need("intermediate_size"),
        max_position_embeddings=longest,
        norm="layernorm",
        norm_eps=c.get("layer_norm_eps", 1e-5),
        rope_theta=rope.theta or 10_000.0,
        rope_scaling=rope.scaling,
        rotary_dim=rotated,
        attention=("dijiang-official",) if official else ("softmax",),
        mlp="gelu",
        activation=activation,
        attention_bias=bias,
        mlp_bias=True,
        parallel_residual=c.get("use_parallel_residual", True),
        tie_embeddings=c.get("tie_word_embeddings", False),
        initializer_range=c.get("initializer_range", 0.02),
        **_special_ids(c, bos=0, eos=2),
    )


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    assert config.rotary_dim is not None and config.head_dim is not None
    share, rope = config.rotary_dim / config.head_dim, _write_rope(config)
    rope["rope_parameters"]["partial_rotary_factor"] = share
    del rope["rope_theta"]
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "attention_bias": config.attention_bias,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": share,
        "rotary_emb_base": config.rope_theta,
        **rope,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        **_write_special_ids(config),
    }


def _read_native(c: Fields, names: frozenset[str]) -> ModelConfig:
    ignored = (
        "architectures",
        "model_type",
        "dtype",
        "torch_dtype",
        "yeoul_version",
        "auto_map",
        "transformers_version",
    )
    return ModelConfig.from_dict({key: c.get(key) for key in c.values if key not in ignored})


def _write_native(config: ModelConfig) -> dict[str, Any]:
    return {"architectures": ["YeoulForCausalLM"], **config.to_dict()}


GPT2_NAMES = Names(
    prefix="transformer.",
    layers="h",
    top={"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm"},
    inner={
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    fused="attn.c_attn",
    transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
NEOX_NAMES = Names(
    prefix="gpt_neox.",
    top={"embed_in": "embed_tokens", "final_layer_norm": "norm", "embed_out": "lm_head"},
    inner={
        "input_layernorm": "input_layernorm",
        "post_attention_layernorm": "post_attention_layernorm",
        "attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
        **{f"attention.{part}": f"self_attn.{part}" for part in ("proj_matrix", "D1", "D2", "W_G", "group_norm")},
    },
    fused="attention.query_key_value",
    by_head=True,
    outer=frozenset({"embed_out"}),
    ignored=("masked_bias", "inv_freq", ".attention.bias"),
)

FAMILIES: dict[str, Family] = {
    "llama": Family(read=_read_llama, write=_write_llama),
    "mistral": Family(read=_read_mistral, write=_write_mistral),
    "qwen2": Family(read=functools.partial(_read_qwen, third=False), write=functools.partial(_write_qwen, third=False)),
    "qwen3": Family(read=functools.partial(_read_qwen, third=True), write=functools.partial(_write_qwen, third=True)),
    **{
        name: Family(
            read=functools.partial(_read_gemma, generation=n), write=functools.partial(_write_gemma, generation=n)
        )
        for n, name in enumerate(("gemma", "gemma2", "gemma3_text"), start=1)
    },
    "exaone4": Family(read=_read_exaone4, write=_write_exaone4),
    "gpt2": Family(read=_read_gpt2, write=_write_gpt2, names=GPT2_NAMES),
    "gpt_neox": Family(read=_read_neox, write=_write_neox, names=NEOX_NAMES),
    "yeoul": Family(read=_read_native, write=_write_native),
}
OTHERS = {
    "gemma3": "it sees images too: give a text model of this family (gemma3_text)",
    "exaone": "convert it to a Llama folder first, which it equals but for its names",
}
"""model_types that are not read, and what to do instead."""


def read_config(config: Json, names: frozenset[str]) -> tuple[str, ModelConfig]:
    """The family and our description of a published `config.json`.

    Args:
        config: what the file holds.
        names: of the tensors in the folder.

    Raises:
        UserError: an unknown family, or a field that is missing, ill-typed, impossible or not known.
    """
    kind = config.get("model_type")
    if kind is None:
        raise UserError("config.json has no 'model_type'")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        fix = OTHERS.get(kind, f"known are {known}") if isinstance(kind, str) else f"known are {known}"
        raise UserError(f"model_type {shown(kind)} of config.json is not known", fix=fix)
    fields = Fields(config)
    fields.get("model_type")
    if config.get("quantization_config"):
        what = "the weights are quantized (quantization_config of config.json), which cannot be read"
        raise UserError(what, fix="give the folder of the full weights")
    try:
        described = FAMILIES[kind].read(fields, names)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"a field of config.json has an impossible value: {reason}") from None
    fields.finish()
    return kind, described if kind == "yeoul" else described.with_(family=kind)


def relevant(config: ModelConfig) -> ModelConfig:
    """The description without settings that its layers do not read."""
    changes: dict[str, Any] = {"window": ModelConfig.window, "sliding_window": _sliding_window(config)}
    if not set(config.attention) & set(LINEAR_KINDS):
        changes |= {"feature_map": FeatureMapConfig(), "state_update": ModelConfig.state_update}
    else:
        changes["window"] = config.window
    if config.mlp == "swiglu":
        changes["activation"] = ModelConfig.activation
    if config.positions != "rotary":
        changes |= dict(rope_theta=ModelConfig.rope_theta, rope_scaling=None, rotary_dim=None, no_rope_layers=())
    if config.rope_local_theta is not None and "sliding" not in config.attention:
        changes["rope_local_theta"] = None
    if config.attention_scale is not None and config.attention_scale == config.head_dim**-0.5:  # type: ignore[operator]
        changes["attention_scale"] = None
    return config.with_(**changes)


def write_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a model: that of the family it came from, or of another that says it exactly, else our own."""
    first = config.family if config.family in FAMILIES else None
    for name in dict.fromkeys(n for n in (first, *FAMILIES) if n is not None):
        try:
            out = {"model_type": name, **FAMILIES[name].write(config), "dtype": str(dtype).removeprefix("torch.")}
            if name == "yeoul" or relevant(read_config(out, frozenset())[1]) == relevant(config):
                return out
        except UserError:
            continue
    raise AssertionError("our own config.json says everything")


def count_layers(tensors: Iterable[str], family: str) -> int:
    """Number of different blocks that the names of a folder's tensors speak of."""
    block = re.compile(rf"(?:^|\.){FAMILIES[family].names.layers}\.(\d{{1,9}})\.")
    return len({int(found[1]) for name in tensors if (found := block.search(name))})


def to_ours(name: str, tensor: Tensor, config: ModelConfig, family: str) -> Iterator[tuple[str, Tensor]]:
    """One published tensor -> ours: (name, tensor) pairs; none for tensors that are recomputed.

    Args:
        name: as published.
        tensor: any dtype, perhaps on the meta device.
        config: of the model.
        family: a key of `FAMILIES`.

    Raises:
        UserError: a fused projection of another shape.
    """
    names = FAMILIES[family].names
    if name.endswith(names.ignored):
        return
    inside = name.removeprefix(names.prefix)
    block = re.fullmatch(rf"{names.layers}\.(\d+)\.(.+)", inside)
    if block is None:
        module, _, leaf = inside.rpartition(".")
        ours = names.top.get(module, module)
        if ours == "lm_head":
            if not config.tie_embeddings or leaf != "weight":
                yield f"lm_head.{leaf}", tensor
            return
        yield f"model.{ours}.{leaf}" if module else inside, tensor
        return
    prefix, rest = f"model.layers.{block[1]}.", block[2]
    module, _, leaf = rest.rpartition(".")
    if module in names.transposed and leaf == "weight":
        tensor = tensor.T if tensor.dim() == 2 else tensor
    if module == names.fused and names.fused:
        H, G, D = config.heads
        if tensor.dim() < 1 or tensor.shape[0] != 3 * H * D:
            shape = shown(tuple(tensor.shape))
            raise UserError(f"tensor {shown(name)} has shape {shape}, config.json asks for {3 * H * D} outputs")
        layout = (H, 3, D) if names.by_head else (3, H, D)
        parts = tensor.reshape(*layout, *tensor.shape[1:]).unbind(1 if names.by_head else 0)
        for letter, part in zip("qkv", parts, strict=True):
            yield f"{prefix}self_attn.{letter}_proj.{leaf}", part.reshape(H * D, *tensor.shape[1:])
        return
    yield prefix + _renamed(rest, names.inner), tensor


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def to_published(tensors: Mapping[str, Tensor], config: ModelConfig, family: str) -> Tensors:
    """Our tensors under the family's names and in its layout: the inverse of `to_ours`.

    Args:
        tensors: ours, by name, perhaps on the meta device; queries, keys and values of a fused family together.
        config: of the model.
        family: a key of `FAMILIES`.
    """
    names = FAMILIES[family].names
    out: Tensors = {}
    for name, tensor in tensors.items():
        projection = re.fullmatch(r"(.+\.self_attn\.)([qkv])_proj\.(\w+)", name) if names.fused else None
        if projection:
            stem, letter, leaf = projection.groups()
            if letter != "q":
                continue
            parts = [tensors[f"{stem}{letter}_proj.{leaf}"] for letter in "qkv"]
            H, _, D = config.heads
            if names.by_head:
                split = [part.reshape(H, D, *part.shape[1:]) for part in parts]
                tensor = torch.stack(split, 1).reshape(3 * H * D, *tensor.shape[1:])
            else:
                tensor = torch.cat(parts)
        published = published_name(name, family)
        if any(published.endswith(f".{module}.weight") for module in names.transposed):
            tensor = tensor.T
        out[published] = tensor
    return out


def published_name(name: str, family: str) -> str:
    """What a family calls our tensor, or the one that ours is a part of."""
    names = FAMILIES[family].names
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if block is None:
        top = {new: old for old, new in names.top.items()}
        module, _, leaf = name.removeprefix("model.").rpartition(".")
        module = top.get(module, module)
        return ("" if module in names.outer else names.prefix) + f"{module}.{leaf}"
    inner = {new: old for old, new in names.inner.items()}
    if names.fused:
        inner |= {f"self_attn.{letter}_proj": names.fused for letter in "qkv"}
    return f"{names.prefix}{names.layers}.{block[1]}.{_renamed(block[2], inner)}"
