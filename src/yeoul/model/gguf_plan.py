"""What llama.cpp says of a decoder: one row an architecture of llama.cpp; metadata of the GGUF file, without tensors.

Keys are those of the GGUF specification. A row says what llama.cpp's graph of that architecture computes; a model that
computes something else is refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yeoul.errors import UserError
from yeoul.model.config import ATTENTION_FREE, LINEAR_KINDS, ModelConfig

YARN_BETAS = (32.0, 1.0)
"""Fast and slow beta that llama.cpp takes for these architectures."""
EXACT_GELU = "llama.cpp computes GELU by its tanh approximation, this model the exact one: logits differ a little"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What llama.cpp's graph of one architecture computes.

    Attributes:
        families: `ModelConfig.family` of models that are published as this architecture.
        needs: field of ModelConfig -> the values that it may have here.
        windows: has layers of sliding attention; otherwise all of them see everything.
        neighbours: rotates neighbouring dimensions instead of halves, so rows of q and k are reordered.
        fused: q, k and v are one tensor; q, k, v and the MLP all have biases.
        scaled_embeddings: multiplies embeddings by the root of the hidden size.
        softcaps: always has both soft caps.
        rope_factors: divides each rotary frequency by a factor of the tensor `rope_freqs`.
        square: the attention's output projection has as many columns as rows.
        own_output: False where the output is always the embedding, True where it is always a tensor of its own.
    """

    families: tuple[str, ...]
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    windows: bool = False
    neighbours: bool = False
    fused: bool = False
    scaled_embeddings: bool = False
    softcaps: bool = False
    rope_factors: bool = False
    square: bool = False
    own_output: bool | None = None


EITHER = (False, True)
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "norm": ("rmsnorm",),
    "norm_placement": ("pre",),
    "positions": ("rotary",),
    "mlp": ("swiglu",),
    "qk_norm": (False,),
    "parallel_residual": (False,),
    "attention_output_bias": (False,),
    "mlp_bias": (False,),
    "attention_softcap": (None,),
    "logit_softcap": (None,),
    "rope_local_theta": (None,),
}
_GEMMA = {**PLAIN, "mlp": ("geglu",)}
_GPT = {**PLAIN, "norm": ("layernorm",), "mlp": ("gelu",), "attention_output_bias": EITHER, "mlp_bias": EITHER}


def _without(needs: Mapping[str, tuple[Any, ...]], *names: str) -> dict[str, tuple[Any, ...]]:
    return {name: values for name, values in needs.items() if name not in names}


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        families=("llama", "mistral"), neighbours=True, rope_factors=True,
        needs={**PLAIN, "attention_output_bias": EITHER, "mlp_bias": EITHER},
    ),
    "qwen2": Architecture(families=("qwen2",), needs=PLAIN, square=True),
    "qwen3": Architecture(families=("qwen3",), needs={**PLAIN, "qk_norm": (True,)}),
    "gemma": Architecture(families=("gemma",), needs=_GEMMA, scaled_embeddings=True, own_output=False),
    "gemma2": Architecture(
        families=("gemma2",), windows=True, scaled_embeddings=True, softcaps=True, own_output=False,
        needs={**_without(_GEMMA, "attention_softcap", "logit_softcap"), "norm_placement": ("sandwich",)},
    ),
    "gemma3": Architecture(
        families=("gemma3_text",), windows=True, scaled_embeddings=True,
        needs={
            **_without(_GEMMA, "logit_softcap", "rope_local_theta"),
            "norm_placement": ("sandwich",), "qk_norm": (True,),
        },
    ),
    "exaone4": Architecture(
        families=("exaone4",), rope_factors=True, square=True,
        needs={**PLAIN, "norm_placement": ("post",), "qk_norm": (True,)},
    ),
    "gpt2": Architecture(
        families=("gpt2",), fused=True, square=True, needs={**_GPT, "positions": ("learned",)},
    ),
    "gptneox": Architecture(
        families=("gpt_neox",), fused=True, square=True, own_output=True,
        needs={**_GPT, "parallel_residual": EITHER},
    ),
}  # fmt: skip
"""llama.cpp's name -> what it computes; earlier rows are preferred for models of no published family."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Architecture, metadata without the tokenizer, and what the user should know."""

    architecture: str
    metadata: dict[str, Any]
    notes: tuple[str, ...]


def plan(config: ModelConfig) -> Plan:
    """How llama.cpp says this model.

    Raises:
        UserError: it cannot; the sentence names what stands in the way.
    """
    other = sorted({kind for kind in config.attention if kind in ATTENTION_FREE})
    if other:
        raise UserError(f"llama.cpp has no layers of kind {' or '.join(other)}, so this model cannot be exported")
    linear = sorted({kind for kind in config.attention if kind in LINEAR_KINDS})
    if linear:
        raise UserError(
            f"llama.cpp has no {' or '.join(linear)} attention, so a linearized model cannot be exported",
            fix="export the model that it was made from",
        )
    own = [name for name, row in ARCHITECTURES.items() if config.family in row.families]
    reasons = {name: _obstacles(config, name) for name in dict.fromkeys([*own, *ARCHITECTURES])}
    name = next((name for name, obstacles in reasons.items() if not obstacles), None)
    if name is None:
        nearest = own[0] if own else min(reasons, key=lambda name: len(reasons[name]))
        raise UserError(f"llama.cpp's {nearest} model cannot say this one: {'; '.join(reasons[nearest])}")
    notes: list[str] = []
    metadata = _metadata(config, name, notes)
    if config.mlp != "swiglu" and config.activation == "gelu":
        notes.append(EXACT_GELU)
    return Plan(architecture=name, metadata=metadata, notes=tuple(notes))


def _obstacles(config: ModelConfig, name: str) -> list[str]:
    """Why llama.cpp's architecture cannot compute this model; empty where it can."""
    row = ARCHITECTURES[name]
    found = [
        f"{what} is {getattr(config, what)!r} and would have to be {' or '.join(map(repr, allowed))}"
        for what, allowed in row.needs.items()
        if getattr(config, what) not in allowed
    ]
    H, _, D = config.heads
    if row.square and H * D != config.hidden_size:
        found.append(f"{H} heads of {D} do not make the hidden size {config.hidden_size}")
    if "rotary" in row.needs["positions"] and name != "gptneox" and config.rotary_dim != D:
        found.append(f"only {config.rotary_dim} of {D} dimensions are rotated")
    scale = math.sqrt(config.hidden_size) if row.scaled_embeddings else 1.0
    if not math.isclose(config.embedding_scale, scale, rel_tol=1e-3):
        found.append(f"embeddings are multiplied by {config.embedding_scale:g} instead of {scale:g}")
    if row.softcaps and (config.attention_softcap is None or config.logit_softcap is None):
        found.append("attention and logits have no soft caps")
    if row.own_output is False and not config.tie_embeddings:
        found.append("the output is not tied to the embeddings")
    if config.no_rope_layers and config.no_rope_layers != _no_rope_layers(config, name):
        found.append("some layers have no rotary positions")
    if config.sinks and "sliding" in config.attention:
        found.append("sliding layers see the first tokens beside their window")
    return found + _rope_obstacles(config, name)


def _rope_obstacles(config: ModelConfig, name: str) -> list[str]:
    scaling = config.rope_scaling
    if scaling is None:
        return []
    kinds = {"linear"} if name == "gemma3" else {"linear", "yarn"}
    if ARCHITECTURES[name].rope_factors:
        kinds |= {"llama3"}
    if scaling.rope_type not in kinds:
        return [f"rotary positions are scaled by {scaling.rope_type!r}"]
    betas = (scaling.beta_fast or 32.0, scaling.beta_slow or 1.0)
    if scaling.rope_type == "yarn" and (betas != YARN_BETAS or scaling.truncate is False):
        return ["YaRN has other betas than 32 and 1, or no truncation"]
    if name == "gemma3" and "sliding" in config.attention and config.rope_local_theta is None:
        return ["rotary positions of sliding layers are scaled"]
    return []


def _has_windows(config: ModelConfig, name: str) -> bool:
    """Whether llama.cpp computes the sliding layers of this model as such; EXAONE 4 is told by its 64 layers."""
    return ARCHITECTURES[name].windows or (name == "exaone4" and config.num_layers == 64)


def _no_rope_layers(config: ModelConfig, name: str) -> tuple[int, ...]:
    if name == "exaone4" and _has_windows(config, name):
        return tuple(i for i, kind in enumerate(config.attention) if kind == "softmax")
    return ()


def _metadata(config: ModelConfig, name: str, notes: list[str]) -> dict[str, Any]:
    H, G, D = config.heads
    row = ARCHITECTURES[name]
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": H,
        "attention.head_count_kv": G,
        "attention.key_length": D,
        "attention.value_length": D,
        f"attention.layer_norm_{'rms_' if config.norm == 'rmsnorm' else ''}epsilon": config.norm_eps,
    }
    if "sliding" in config.attention or name == "gemma2":
        values |= _window_metadata(config, name, notes)
    if config.positions == "rotary":
        values |= {"rope.dimension_count": config.rotary_dim, "rope.freq_base": config.rope_theta}
        values |= _rope_metadata(config)
        if name == "gemma3":
            values["rope.freq_base_swa"] = config.rope_local_theta or config.rope_theta
    if name == "gptneox":
        values["use_parallel_residual"] = config.parallel_residual
    if row.softcaps:
        values["attn_logit_softcapping"] = config.attention_softcap
    if config.logit_softcap is not None:
        values["final_logit_softcapping"] = config.logit_softcap
    return {f"{name}.{key}": value for key, value in values.items()}


def _window_metadata(config: ModelConfig, name: str, notes: list[str]) -> dict[str, Any]:
    window = config.sliding_window or config.window
    if _has_windows(config, name):
        pattern = [kind == "sliding" for kind in config.attention]
        return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}
    if config.max_position_embeddings <= window:
        return {}
    notes.append(
        f"llama.cpp's {name} has no sliding window: the file's context is {window:,} tokens, up to which the result "
        "is the same; beyond it llama.cpp would attend to everything"
    )
    return {"context_length": window}


def _rope_metadata(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type not in ("linear", "yarn"):
        return {}
    assert scaling.factor is not None
    values: dict[str, Any] = {"rope.scaling.type": scaling.rope_type, "rope.scaling.factor": scaling.factor}
    if scaling.rope_type == "yarn":
        values["rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
        # llama.cpp multiplies cosines and sines by 1 + 0.1 ln(factor) on its own.
        usual = 1.0 + 0.1 * math.log(scaling.factor)
        values["rope.scaling.attn_factor"] = config.ropes[0].attention_factor() / usual
    return values
