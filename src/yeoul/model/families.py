"""What differs between published model families: how `config.json` reads, and what the tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yeoul.errors import UserError
from yeoul.model.config import ModelConfig

Json = Mapping[str, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published architecture.

    Attributes:
        read: `config.json` and the names of the tensors -> ModelConfig.
        write: ModelConfig -> the family's own `config.json`, or None where it cannot say it.
        load: one published tensor -> ours, (name, tensor) pairs; nothing for tensors that are recomputed.
    """

    read: Callable[[Json, frozenset[str]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any] | None]
    load: Callable[[str, Tensor, ModelConfig], Iterator[tuple[str, Tensor]]]


def _need(config: Json, key: str) -> Any:
    if key not in config:
        raise UserError(f"config.json has no {key!r}")
    return config[key]


def _rope_theta(config: Json, default: float = 10000.0) -> float:
    """The rotary base, from either generation of config.json; any scaling of it is an error that names it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rotary positions of type {kind!r} are not supported", "config.json, rope_type")
    return float(rope.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or default)


def _special_ids(config: Json) -> dict[str, Any]:
    first = lambda value: value[0] if isinstance(value, list) and value else value  # noqa: E731
    return {name: first(config.get(f"{name[:3]}_token_id")) for name in ("bos_id", "eos_id", "pad_id")}


def _write_special_ids(config: ModelConfig) -> dict[str, Any]:
    return {"bos_token_id": config.bos_id, "eos_token_id": config.eos_id, "pad_token_id": config.pad_id}


def _same_names(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    if not name.endswith("rotary_emb.inv_freq"):
        yield name, tensor


def _read_llama(config: Json, names: frozenset[str]) -> ModelConfig:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UserError(f"activation {activation!r} is not supported in this family", "config.json, hidden_act")
    window = config.get("sliding_window")
    return ModelConfig(
        vocab_size=_need(config, "vocab_size"),
        hidden_size=_need(config, "hidden_size"),
        num_layers=_need(config, "num_hidden_layers"),
        num_heads=_need(config, "num_attention_heads"),
        num_kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        intermediate_size=_need(config, "intermediate_size"),
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(config),
        attention=("sliding",) if window else ("softmax",),
        window=window or 64,
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        tie_embeddings=config.get("tie_word_embeddings", False),
        initializer_range=config.get("initializer_range", 0.02),
        **_special_ids(config),
    )


def _write_llama(config: ModelConfig) -> dict[str, Any] | None:
    """Llama's config, or Mistral's where every layer slides; None where the model is something else."""
    kinds = set(config.attention)
    same = (
        config.norm == "rmsnorm"
        and config.positions == "rotary"
        and config.rotary_dim == config.head_dim
        and config.mlp == "swiglu"
        and not config.parallel_residual
        and config.attention_output_bias == config.attention_bias
        and kinds in ({"softmax"}, {"sliding"})
    )
    sliding = kinds == {"sliding"}
    if not same or (sliding and (config.attention_bias or config.mlp_bias)):
        return None
    out: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if sliding else "LlamaForCausalLM"],
        "model_type": "mistral" if sliding else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        **_write_special_ids(config),
    }
    return out | ({"sliding_window": config.window} if sliding else
                  {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias})  # fmt: skip


def _read_neox(config: Json, names: frozenset[str]) -> ModelConfig:
    """GPT-NeoX; the authors' DiJiang models have the same config.json and are told by their tensors."""
    official = any(name.endswith("attention.proj_matrix") for name in names)
    activation = config.get("hidden_act", "gelu")
    smooth = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    if activation not in smooth:
        raise UserError(f"activation {activation!r} is not supported in this family", "config.json, hidden_act")
    hidden, heads = _need(config, "hidden_size"), _need(config, "num_attention_heads")
    rope = config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    bias = config.get("attention_bias", True)
    return ModelConfig(
        vocab_size=_need(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=_need(config, "num_hidden_layers"),
        num_heads=heads,
        intermediate_size=_need(config, "intermediate_size"),
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        norm="layernorm",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        rope_theta=_rope_theta(config),
        rotary_dim=int(hidden // heads * share),
        attention=("dijiang-official",) if official else ("softmax",),
        mlp="gelu",
        activation=smooth[activation],
        attention_bias=bias,
        mlp_bias=True,
        parallel_residual=config.get("use_parallel_residual", True),
        tie_embeddings=config.get("tie_word_embeddings", False),
        initializer_range=config.get("initializer_range", 0.02),
        **_special_ids(config),
    )


_NEOX = {
    "attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    **{f"attention.{part}": f"self_attn.{part}" for part in ("proj_matrix", "D1", "D2", "W_G", "group_norm")},
}


def _load_neox(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Fused projections are split: their rows lie as (head, q k v, head size)."""
    name = name.removeprefix("gpt_neox.")
    top = {"embed_in": "model.embed_tokens", "final_layer_norm": "model.norm", "embed_out": "lm_head"}
    stem, _, leaf = name.rpartition(".")
    if stem in top:
        if stem != "embed_out" or not config.tie_embeddings:
            yield f"{top[stem]}.{leaf}", tensor
        return
    if leaf in ("masked_bias", "inv_freq") or name.endswith("attention.bias"):
        return
    layers, number, rest = name.split(".", 2) if name.count(".") >= 2 else ("", "", name)
    prefix = f"model.{layers}.{number}."
    if rest.startswith("attention.query_key_value."):
        H, _, D = config.heads
        if tensor.numel() % (3 * H * D) or tensor.shape[0] != 3 * H * D:
            raise UserError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, but config.json asks for {3 * H * D} rows"
            )
        parts = tensor.view(H, 3, D, *tensor.shape[1:]).unbind(1)
        for letter, part in zip("qkv", parts, strict=True):
            yield f"{prefix}self_attn.{letter}_proj.{leaf}", part.reshape(H * D, *tensor.shape[1:]).clone()
        return
    for theirs, ours in _NEOX.items():
        if rest == theirs or rest.startswith(theirs + "."):
            yield prefix + ours + rest[len(theirs) :], tensor
            return
    yield name, tensor


def _write_nothing(config: ModelConfig) -> dict[str, Any] | None:
    return None


def _read_native(config: Json, names: frozenset[str]) -> ModelConfig:
    ignored = ("architectures", "model_type", "dtype", "torch_dtype", "yeoul_version")
    return ModelConfig.from_dict({key: value for key, value in config.items() if key not in ignored})


def _write_native(config: ModelConfig) -> dict[str, Any]:
    return {"architectures": ["YeoulForCausalLM"], "model_type": "yeoul", **config.to_dict()}


FAMILIES: dict[str, Family] = {
    "yeoul": Family(read=_read_native, write=_write_native, load=_same_names),
    "llama": Family(read=_read_llama, write=_write_llama, load=_same_names),
    "mistral": Family(read=_read_llama, write=_write_llama, load=_same_names),
    "gpt_neox": Family(read=_read_neox, write=_write_nothing, load=_load_neox),
}


def read_config(config: Json, names: frozenset[str]) -> tuple[Family, ModelConfig]:
    """The family and our description of a published `config.json`; UserError for a family that we do not know."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"model_type {kind!r} is not known", "config.json", f"known are {', '.join(FAMILIES)}")
    return FAMILIES[kind], FAMILIES[kind].read(config, names)


def write_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a model: a published family's where one says it exactly, else our own."""
    return (_write_llama(config) or _write_native(config)) | {"dtype": str(dtype).removeprefix("torch.")}
