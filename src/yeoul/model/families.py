"""What differs between published model families: how `config.json` reads and is written.

Every family is one row of `FAMILIES`. A reader takes fields out of `Fields`, which knows what nobody has read: such a
field is an error that names it, unless it is known to change nothing that is computed (`is_neutral`). What the tensors
are called is in `tensor_names`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError, shown
from yeoul.model.config import LINEAR_KINDS, FeatureMapConfig, ModelConfig, is_whole
from yeoul.model.config_fields import (
    GELU,
    SILU,
    TANH,
    Fields,
    Json,
    read_activation,
    read_count,
    read_layer_kinds,
    read_rope,
    read_shape,
    read_special_ids,
    sliding_window,
    write_layer_kinds,
    write_rope,
    write_shape,
    write_special_ids,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published architecture.

    Attributes:
        read: `config.json` and the names of the tensors -> ModelConfig.
        write: ModelConfig -> the family's own `config.json`; `write_config` reads it back to see whether it says all.
    """

    read: Callable[[Fields, frozenset[str]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]


def _read_llama(c: Fields, names: frozenset[str]) -> ModelConfig:
    read_activation(c, "hidden_act", "silu", SILU)
    return ModelConfig(
        **read_shape(c, max_positions=2048),
        head_dim=c.get("head_dim"),
        attention_bias=c.get("attention_bias", False),
        mlp_bias=c.get("mlp_bias", False),
        tie_embeddings=c.get("tie_word_embeddings", False),
        **read_special_ids(c, bos=1, eos=2),
    )


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", **write_shape(config), **biases}


def _read_mistral(c: Fields, names: frozenset[str]) -> ModelConfig:
    read_activation(c, "hidden_act", "silu", SILU)
    window = c.get("sliding_window", 4096)
    return ModelConfig(
        **read_shape(c, max_positions=4096 * 32, heads=8),
        head_dim=c.get("head_dim"),
        attention=("sliding",) if window else ("softmax",),
        sliding_window=window or None,
        tie_embeddings=c.get("tie_word_embeddings", False),
        **read_special_ids(c, bos=1, eos=2),
    )


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    window = sliding_window(config)
    return {"architectures": ["MistralForCausalLM"], "hidden_act": "silu", "sliding_window": window} | write_shape(
        config
    )


def _read_qwen(c: Fields, names: frozenset[str], *, third: bool) -> ModelConfig:
    """Qwen 2 and 2.5: biases of queries, keys and values; Qwen 3: norms of queries and keys."""
    read_activation(c, "hidden_act", "silu", SILU)
    window, first = c.get("sliding_window", 4096), c.get("max_window_layers", 28)
    slides = bool(c.get("use_sliding_window", False)) and window is not None
    first = 28 if first is None else first
    layers = read_layer_kinds(c, read_count(c), window if slides else None, lambda i: slides and i >= first)
    if third:
        differences = dict(head_dim=c.get("head_dim", 128), qk_norm=True, attention_bias=c.get("attention_bias", False))
    else:
        differences = dict(attention_bias=True, attention_output_bias=False, head_dim=c.get("head_dim"))
    return ModelConfig(
        **read_shape(c, max_positions=32768, heads=32),
        **layers,
        **differences,
        tie_embeddings=c.get("tie_word_embeddings", False),
        **read_special_ids(c),
    )


def _write_qwen(config: ModelConfig, *, third: bool) -> dict[str, Any]:
    slides = "sliding" in config.attention
    first = config.attention.index("sliding") if slides else config.num_layers
    out = {"architectures": [f"Qwen{3 if third else 2}ForCausalLM"], "hidden_act": "silu", **write_shape(config)}
    out |= {**write_layer_kinds(config), "use_sliding_window": slides, "max_window_layers": first}
    return out | ({"attention_bias": config.attention_bias} if third else {})


def _read_gemma(c: Fields, names: frozenset[str], *, generation: int) -> ModelConfig:
    """Gemma 1, 2 and 3 (text)."""
    field_name = "hidden_activation" if generation > 1 or c.get("hidden_activation") else "hidden_act"
    c.get("hidden_act")
    known = TANH if field_name == "hidden_act" else GELU
    activation = read_activation(c, field_name, "gelu_pytorch_tanh", known)
    if c.get("use_bidirectional_attention"):
        raise UserError("use_bidirectional_attention of config.json is not supported: the model is no decoder")
    shape = read_shape(c, max_positions=131_072 if generation == 3 else 8192, heads=(16, 4, 4)[generation - 1])
    layers = shape["num_layers"]
    differences: dict[str, Any] = {}
    if generation > 1:
        # transformers writes it with an underscore, and without one in older versions
        pattern = c.get("sliding_window_pattern", c.get("_sliding_window_pattern", 6)) if generation == 3 else 2
        if not is_whole(pattern, 1):
            raise UserError(f"sliding_window_pattern of config.json cannot be {shown(pattern)}")
        scalar = c.get("query_pre_attn_scalar", 256) or 256
        differences = read_layer_kinds(c, layers, c.get("sliding_window", 4096), lambda i: (i + 1) % pattern != 0)
        differences |= dict(
            norm_placement="sandwich",
            attention_scale=scalar**-0.5,
            logit_softcap=c.get("final_logit_softcapping", 30.0 if generation == 2 else None),
        )
    if generation == 2:
        differences |= dict(attention_softcap=c.get("attn_logit_softcapping", 50.0))
    if generation == 3:
        c.refuse("attn_logit_softcapping")
        rope, local = read_rope(c, 1_000_000.0, shape["max_position_embeddings"])
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
        **read_special_ids(c, bos=2, eos=1, pad=0),
    )


def _write_gemma(config: ModelConfig, *, generation: int) -> dict[str, Any]:
    name = ("Gemma", "Gemma2", "Gemma3")[generation - 1]
    out = {"architectures": [f"{name}ForCausalLM"], **write_shape(config), "attention_bias": config.attention_bias}
    activation = "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else "gelu"
    if generation == 1 and activation == "gelu":
        raise UserError("the first Gemma has no exact activation: its 'gelu' is the approximation")
    out |= {"hidden_act": activation, "hidden_activation": activation}
    if generation == 1:
        return out
    assert config.head_dim is not None
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = round(scale**-2) if abs(round(scale**-2) ** -0.5 - scale) < 1e-12 else scale**-2
    out |= {**write_layer_kinds(config), "query_pre_attn_scalar": scalar}
    out |= {"final_logit_softcapping": config.logit_softcap}
    if generation == 2:
        return out | {"attn_logit_softcapping": config.attention_softcap}
    local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
    out["rope_parameters"] = {"full_attention": out["rope_parameters"], "sliding_attention": local}
    return out | {"rope_local_base_freq": config.rope_local_theta}


def _read_exaone4(c: Fields, names: frozenset[str]) -> ModelConfig:
    """EXAONE 4: norms behind attention and MLP; beside sliding layers, full ones have no positions."""
    read_activation(c, "hidden_act", "silu", SILU)
    window, pattern, layers = c.get("sliding_window", 4096), c.get("sliding_window_pattern", 4), read_count(c)
    if isinstance(pattern, str) and pattern and not set(pattern) - {"L", "G"}:
        local = [pattern[i % len(pattern)] == "L" and i < layers - 1 for i in range(layers)]
    elif is_whole(pattern, 0) or pattern is None:
        local = [bool(window and pattern and (i + 1) % pattern) for i in range(layers)]
    else:
        raise UserError(f"sliding_window_pattern of config.json cannot be {shown(pattern)}")
    kinds = read_layer_kinds(c, layers, window, lambda i: local[i])
    return ModelConfig(
        **read_shape(c, max_positions=2048, heads=32, eps=1e-5),
        **kinds,
        no_rope_layers=tuple(i for i, kind in enumerate(kinds["attention"]) if kind == "softmax" and window),
        head_dim=c.get("head_dim"),
        norm_placement="post",
        qk_norm=True,
        tie_embeddings=c.get("tie_word_embeddings", False),
        **read_special_ids(c, bos=0, eos=2),
    )


def _write_exaone4(config: ModelConfig) -> dict[str, Any]:
    out = {"architectures": ["Exaone4ForCausalLM"], "hidden_act": "silu", **write_shape(config)}
    out |= write_layer_kinds(config)
    if config.no_rope_layers and out["sliding_window"] is None:
        out["sliding_window"] = 4096  # no layer slides, and none has positions
    return out | {"sliding_window_pattern": None}


def _read_gpt2(c: Fields, names: frozenset[str]) -> ModelConfig:
    """GPT-2 and KoGPT2."""
    c.refuse("scale_attn_by_inverse_layer_idx", "add_cross_attention")
    hidden = c.need("n_embd")
    activation = read_activation(c, "activation_function", "gelu_new", GELU)
    return ModelConfig(
        vocab_size=c.need("vocab_size"),
        hidden_size=hidden,
        num_layers=read_count(c, "n_layer"),
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
        **read_special_ids(c, bos=50256, eos=50256),
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
        **write_special_ids(config),
    }


def _read_neox(c: Fields, names: frozenset[str]) -> ModelConfig:
    """GPT-NeoX; the authors' DiJiang models have the same config.json and are told by their tensors."""
    official = any(name.endswith("attention.proj_matrix") for name in names)
    activation = read_activation(c, "hidden_act", "gelu", GELU)
    hidden, heads = c.need("hidden_size"), c.need("num_attention_heads")
    longest = c.get("max_position_embeddings", 2048)
    rope, _ = read_rope(c, 10_000.0, longest)
    percent = c.get("rotary_pct", 0.25) or 0.25
    share = percent if rope.share is None else rope.share
    rotated = int(hidden // heads * min(share, 1))
    if share > 1 or rotated < 1:
        raise UserError(f"the share of a head that is rotated (rotary_pct) cannot be {shown(share)}")
    bias = c.get("attention_bias", True)
    return ModelConfig(
        vocab_size=c.need("vocab_size"),
        hidden_size=hidden,
        num_layers=read_count(c),
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
        **read_special_ids(c, bos=0, eos=2),
    )


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    assert config.rotary_dim is not None and config.head_dim is not None
    share, rope = config.rotary_dim / config.head_dim, write_rope(config)
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
        **write_special_ids(config),
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
        "quantization_config",
    )
    return ModelConfig.from_dict({key: c.get(key) for key in c.values if key not in ignored})


def _write_native(config: ModelConfig) -> dict[str, Any]:
    return {"architectures": ["YeoulForCausalLM"], **config.to_dict()}


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
    "gpt2": Family(read=_read_gpt2, write=_write_gpt2),
    "gpt_neox": Family(read=_read_neox, write=_write_neox),
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
    fields.unread.discard("quantization_config")  # `quantized_folder` reads it
    try:
        described = FAMILIES[kind].read(fields, names)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"a field of config.json has an impossible value: {reason}") from None
    fields.finish()
    return kind, described if kind == "yeoul" else described.with_(family=kind)


def relevant(config: ModelConfig) -> ModelConfig:
    """The description without settings that its layers do not read."""
    changes: dict[str, Any] = {"window": ModelConfig.window, "sliding_window": sliding_window(config)}
    if not set(config.attention) & set(LINEAR_KINDS):
        changes |= {"feature_map": FeatureMapConfig(), "state_update": ModelConfig.state_update, "short_conv": 0}
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


def write_config(
    config: ModelConfig,
    dtype: torch.dtype,
    quantization: Mapping[str, Any] | None = None,
    *,
    families: Collection[str] = tuple(FAMILIES),
) -> dict[str, Any]:
    """`config.json` of a model: that of the family it came from, or of another that says it exactly, else our own.

    Args:
        config: of the model.
        dtype: of its weights.
        quantization: what stands in `quantization_config`.
        families: those that come in question beside our own.
    """
    first = config.family if config.family in families else None
    for name in dict.fromkeys(n for n in (first, *families, "yeoul") if n is not None):
        try:
            out = {"model_type": name, **FAMILIES[name].write(config), "dtype": str(dtype).removeprefix("torch.")}
            if name == "yeoul" or relevant(read_config(out, frozenset())[1]) == relevant(config):
                return out if quantization is None else {**out, "quantization_config": dict(quantization)}
        except UserError:
            continue
    raise AssertionError("our own config.json says everything")
