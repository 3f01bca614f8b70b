"""`config.json` field by field: what is known, what is neutral, and the parts that families share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from yeoul.errors import UserError, shown
from yeoul.model.config import MOST_LAYERS, ModelConfig, is_positive, is_whole
from yeoul.model.rope import RopeScaling

Json = Mapping[str, Any]

NEUTRAL = frozenset(
    """
    architectures model_type auto_map dtype torch_dtype is_decoder tie_encoder_decoder finetuning_task
    attn_implementation attn_implementation_internal experts_implementation cache_implementation hybrid_cache
    chunk_size_feed_forward reorder_and_upcast_attn pretraining_tp initializer_range gradient_checkpointing
    neftune_noise_alpha layerdrop use_bfloat16 fp16 bf16 torchscript torch_compile tf_legacy_loss seed
    return_dict output_hidden_states output_attentions output_logits output_scores return_dict_in_generate
    summary_type summary_use_proj summary_activation summary_proj_to_labels problem_type task_specific_params
    id2label label2id num_labels classifier_bias
    n_ctx model_max_length max_sequence_length max_seq_length max_seq_len seq_length
    padding_side truncation_side prefix chat_template
    author authors license license_name language languages tags base_model datasets created_date
    """.split()
)
"""Fields of config.json that change no logits, of transformers' class for every model and of what trained them:
training, the way to compute, labels, lengths of texts while training, provenance."""
GENERATION = frozenset(
    """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
    begin_suppress_tokens cache_config compile_config constraints continuous_batching_config disable_compile
    diversity_penalty do_sample dola_layers early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty
    epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids generation_config guidance_scale
    is_assistant length_penalty low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens max_time
    min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences penalty_alpha prefill_chunk_size prompt_lookup_num_tokens
    remove_invalid_values renormalize_logits repetition_penalty sequence_bias speculation_type stop_strings
    suppress_tokens target_lookbehind temperature token_healing top_h top_k top_p typical_p use_cache use_mtp
    watermarking_config
    """.split()
)
"""Fields of transformers' GenerationConfig, which older versions wrote into config.json: how tokens are drawn."""
NEUTRAL_KINDS = re.compile(
    r"""
    .*_token_(id|ids|index)            # of a token: unk_token_id, image_token_index
    | (bos|eos|pad|unk|sep|cls|mask)_token  # its text
    | .*_(dropout|pdrop)               # while training, without dropout of whole layers
    | .*_(name|name_or_path|version|revision|date|url|license)  # where it came from
    | tokenizer_.* | (use_)?flash_attn.* | use_flash_attention.* | use_sdpa.* | (fsdp|deepspeed)_.* | unsloth.*
    """,
    re.VERBOSE,
)
"""And kinds of such fields, by their names."""


def is_neutral(name: str) -> bool:
    """Whether a field of this name changes nothing that is computed, whatever it holds. Those that begin with an
    underscore are transformers' own notes about an object."""
    return name in NEUTRAL | GENERATION or name.startswith("_") or NEUTRAL_KINDS.fullmatch(name) is not None


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
        """A UserError where one of these is set to anything but null, false or 0."""
        for name in names:
            if self.get(name):
                raise UserError(f"{shown(name)} of config.json is not supported: it changes what the model computes")

    def finish(self) -> None:
        """A UserError that names a field which nobody has read and which says something: null, false, 0 and what is
        empty do not."""
        for name in sorted(self.unread):
            if is_neutral(name) or self.values[name] in (None, False, 0, "", [], {}):
                continue
            kind = shown(self.values.get("model_type"))
            raise UserError(
                f"config.json has a field {shown(name)} that is not known for model_type {kind}",
                fix="remove it from config.json if it does not change what the model computes",
            )


def read_special_ids(c: Fields, **defaults: int | None) -> dict[str, Any]:
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


def write_special_ids(config: ModelConfig) -> dict[str, Any]:
    eos = [config.eos_id, *config.other_eos_ids] if config.other_eos_ids else config.eos_id
    return {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}


def read_activation(c: Fields, name: str, default: str, known: Mapping[str, str]) -> str:
    value = c.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name} of config.json is {shown(value)}, which is not supported in this family")
    return known[value]


SILU = {"silu": "silu", "swish": "silu"}
GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
TANH = {
    "gelu": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}  # the hidden_act of Gemma 1 was published so, and meant so


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
    rest.pop("finetuned", None)  # says where the stretching came from
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


def read_rope(c: Fields, default_theta: float, longest: int) -> tuple[_Rope, _Rope | None]:
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


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Both generations of config.json."""
    scaling = None if config.rope_scaling is None else config.rope_scaling.to_dict()
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
    }


def read_layer_kinds(c: Fields, layers: int, window: object, is_sliding: Callable[[int], bool]) -> dict[str, Any]:
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


def write_layer_kinds(config: ModelConfig) -> dict[str, Any]:
    names = {"softmax": "full_attention", "sliding": "sliding_attention"}
    types = [names.get(kind, kind) for kind in config.attention]
    return {"layer_types": types, "sliding_window": sliding_window(config)}


def sliding_window(config: ModelConfig) -> int | None:
    return (config.sliding_window or config.window) if "sliding" in config.attention else None


def read_count(c: Fields, name: str = "num_hidden_layers") -> int:
    """How many layers, few enough to make a list of."""
    value: int = c.need(name)
    if value > MOST_LAYERS:
        raise UserError(f"{name} of config.json is {shown(value)}, but no model has more than {MOST_LAYERS:,} layers")
    return value


def read_shape(c: Fields, *, max_positions: int, heads: int | None = None, eps: float = 1e-6) -> dict[str, Any]:
    """The fields that Llama and its descendants share."""
    rope, _ = read_rope(c, 10_000.0, longest := c.get("max_position_embeddings", max_positions))
    if rope.share not in (None, 1, 1.0):
        raise UserError("partial_rotary_factor of config.json is not supported in this family")
    return dict(
        vocab_size=c.need("vocab_size"),
        hidden_size=c.need("hidden_size"),
        num_layers=read_count(c),
        num_heads=c.need("num_attention_heads"),
        num_kv_heads=c.get("num_key_value_heads", heads),
        intermediate_size=c.need("intermediate_size"),
        max_position_embeddings=longest,
        norm_eps=c.get("rms_norm_eps", eps),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        initializer_range=c.get("initializer_range", 0.02),
    )


def write_shape(config: ModelConfig) -> dict[str, Any]:
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
        **write_rope(config),
        **write_special_ids(config),
    }
