"""The description of a model in a GGUF file: what llama.cpp's graph of its architecture computes, as a ModelConfig.

The inverse of `gguf_plan`, whose rows say what an architecture is. Keys are those of the GGUF specification, and what
is absent has llama.cpp's default. A key of the architecture that nobody has read says something that a ModelConfig
does not: it is an error that names it. Only the header is read, without torch.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from yeoul.errors import UserError, shown
from yeoul.gguf_header import Header, Values, short
from yeoul.model.config import MOST_LAYERS, ModelConfig
from yeoul.model.gguf_names import FUSED
from yeoul.model.gguf_plan import ARCHITECTURES, Architecture
from yeoul.model.gguf_tensors import has_own_output
from yeoul.model.rope import RopeScaling

NEUTRAL = frozenset({"vocab_size", "rope.scaling.finetuned", "pooling_type"})
"""Keys of an architecture that change no logits: the rows of the embeddings are counted, pooling makes vectors."""
LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
"""What all published models with `rope_freqs` have beside their factor (Llama 3.1 and later, EXAONE 4)."""
LAST_TURN = ("eot", "eom")
"""Tokens that end a text beside the end token: of a turn, and of a message to a tool."""


def gguf_config(header: Header) -> ModelConfig:
    """The model of a file.

    Raises:
        UserError: an architecture or a key that is not known, a value that no model has, or no embeddings.
    """
    name = header.architecture
    row = ARCHITECTURES.get(name)
    if row is None:
        fix = f"known are {', '.join(ARCHITECTURES)}"
        raise UserError(f"the architecture {shown(name)} of the GGUF file is not known", header.file, fix)
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise UserError("the GGUF file has no embeddings (token_embd.weight)", header.file)
    reader = _Reader(header, name)
    try:
        found = ModelConfig(
            vocab_size=table.shape[0],
            **reader.shape(),
            **reader.family(row),
            **reader.rotary(row),
            **special_ids(header, table.shape[0]),
            tie_embeddings=not has_own_output(header),
            family=row.families[0],
        )
    except UserError as error:
        raise UserError(error.what, error.where or header.file, error.fix) from None
    reader.finish()
    return found


class _Reader:
    """The keys of one architecture."""

    def __init__(self, header: Header, name: str) -> None:
        self.header, self.name = header, name

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number; of one for each layer, the one that all layers have."""
        full = f"{self.name}.{key}"
        if isinstance(self.header.metadata.get(full), Values):
            found = sorted({*(self.header.get(full, list) or [])}, key=str)
            if len(found) != 1 or not isinstance(found[0], int):
                raise UserError(f"{full} of the metadata differs between the layers: {shown(found)}", self.header.file)
            return found[0]
        return self.header.need(full, int) if default is None else self.header.get(full, int, default) or 0

    def number(self, key: str, default: float | None = None) -> float | None:
        return self.header.get(f"{self.name}.{key}", float, default)

    def needed(self, key: str) -> float:
        return self.header.need(f"{self.name}.{key}", float)

    def shape(self) -> dict[str, Any]:
        layers, hidden, heads = (self.whole(k) for k in ("block_count", "embedding_length", "attention.head_count"))
        if layers > MOST_LAYERS:
            raise UserError(f"the metadata asks for {layers:,} layers, which no model has", self.header.file)
        size = self.whole("attention.key_length", hidden // max(heads, 1))
        if (values := self.whole("attention.value_length", size)) != size:
            raise UserError(f"heads with keys of {size} and values of {values} numbers are not read", self.header.file)
        if self.header.get(f"{self.name}.attention.causal", bool, True) is False:
            raise UserError("the model in the GGUF file is no decoder: it sees what follows", self.header.file)
        self.layers, self.hidden, self.heads, self.size = layers, hidden, heads, size
        self.positions = self.whole("context_length")
        return dict(
            num_layers=layers, hidden_size=hidden, num_heads=heads, head_dim=size,
            num_kv_heads=self.whole("attention.head_count_kv", heads),
            intermediate_size=self.whole("feed_forward_length"), max_position_embeddings=self.positions,
        )  # fmt: skip

    def family(self, row: Architecture) -> dict[str, Any]:
        """What tells the architectures apart."""
        found: dict[str, Any] = {
            key: values[0] for key, values in row.needs.items() if len(values) == 1 and key != "positions"
        }
        rms = found["norm"] == "rmsnorm"
        found |= dict(
            norm_eps=self.needed(f"attention.layer_norm_{'rms_' if rms else ''}epsilon"),
            positions=row.needs["positions"][0],
            attention_bias=self.has("attn_q.bias", f"{FUSED}.bias"),
            attention_output_bias=self.has("attn_output.bias"),
            mlp_bias=self.has("ffn_up.bias"),
        )
        gemma = row.scaled_embeddings
        if gemma:
            found |= dict(norm_zero_centered=True, embedding_scale=self.hidden**0.5)
        if found["mlp"] != "swiglu":
            # llama.cpp computes all of them by tanh, and GPT-NeoX is published with the exact one
            found["activation"] = "gelu" if self.name == "gptneox" else "gelu_tanh"
        if row.softcaps:
            found["attention_softcap"] = self.number("attn_logit_softcapping", 50.0)
            found["logit_softcap"] = self.number("final_logit_softcapping", 30.0)
        elif "logit_softcap" not in found:
            found["logit_softcap"] = self.number("final_logit_softcapping")
        if self.name in WIDE:
            # llama.cpp takes Gemma 27B's scale from the number of layers
            wide = WIDE[self.name] == self.layers
            found["attention_scale"] = (self.hidden // self.heads if wide else self.size) ** -0.5
        if self.name == "gptneox":
            found["parallel_residual"] = self.header.get("gptneox.use_parallel_residual", bool, True)
        return found | self.windows()

    def has(self, *names: str) -> bool:
        """Whether layers have one of these tensors."""
        return any(f"blk.0.{name}" in self.header.tensors for name in names)

    def windows(self) -> dict[str, Any]:
        """Kinds of the layers."""
        if self.name not in PERIODS or (self.name == "exaone4" and self.layers != 64):
            return {}
        default = 0 if self.name == "gemma3" else 4096
        window, key = self.whole("attention.sliding_window", default), f"{self.name}.attention.sliding_window_pattern"
        if isinstance(self.header.metadata.get(key), Values):
            local = [bool(value) for value in self.header.get(key, list) or []]
        else:
            period = self.header.get(key, int, PERIODS[self.name]) or 0
            local = [period == 0 or i % period < period - 1 for i in range(self.layers)]
        if len(local) != self.layers:
            raise UserError(f"{key} of the metadata does not name {self.layers} layers", self.header.file)
        if not window or not any(local):
            return {}
        kinds = tuple("sliding" if is_local else "softmax" for is_local in local)
        full = tuple(i for i, kind in enumerate(kinds) if kind == "softmax") if self.name == "exaone4" else ()
        return dict(attention=kinds, sliding_window=window, no_rope_layers=full)

    def rotary(self, row: Architecture) -> dict[str, Any]:
        """Rotary positions and how they are stretched."""
        if row.needs["positions"] != ("rotary",):
            return {}
        theta, turned = self.number("rope.freq_base", 10_000.0), self.whole("rope.dimension_count", self.size)
        found: dict[str, Any] = dict(rope_theta=theta, rotary_dim=turned, rope_scaling=self.scaling(turned, row))
        if self.name == "gemma3":
            found["rope_local_theta"] = self.number("rope.freq_base_swa", 10_000.0)
        return found

    def scaling(self, turned: int, row: Architecture) -> RopeScaling | None:
        prefix = f"{self.name}.rope.scaling."
        kind = self.header.get(f"{prefix}type", str, "linear")
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 0.0)) or 0.0
        original = self.whole("rope.scaling.original_context_length", self.positions)
        attention = self.number("rope.scaling.attn_factor", 1.0) or 1.0
        fast, slow = (self.number(f"rope.scaling.yarn_beta_{end}") for end in ("fast", "slow"))
        factors = self.header.tensors.get("rope_freqs.weight") if row.rope_factors else None
        if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)) or (kind == "yarn" and not factor):
            return None if factors is None else self.from_factors(self.numbers("rope_freqs.weight"), turned)
        if factors is not None:
            raise UserError("rotary positions that are stretched in two ways are not read", self.header.file)
        if kind == "linear":
            return RopeScaling(rope_type="linear", factor=factor)
        if kind != "yarn":
            raise UserError(f"rotary positions that are scaled by {shown(kind)} are not read", self.header.file)
        # llama.cpp multiplies cosines and sines by 1 + 0.1 ln(factor) on its own
        factor_of_attention = None if attention == 1.0 else short(attention * (1.0 + 0.1 * math.log(factor)))
        return RopeScaling(
            rope_type="yarn", factor=factor, original_max_position_embeddings=original, beta_fast=fast, beta_slow=slow,
            attention_factor=factor_of_attention,
        )  # fmt: skip

    def numbers(self, name: str) -> tuple[float, ...]:
        """A small tensor."""
        tensor = self.header.tensors[name]
        if tensor.kind != "F32" or math.prod(tensor.shape) > 2**16:
            raise UserError(f"tensor {name} is of type {tensor.kind} and shape {tensor.shape}", self.header.file)
        with tensor.file.open("rb") as opened:
            opened.seek(tensor.start)
            return struct.unpack(f"<{math.prod(tensor.shape)}f", opened.read(tensor.nbytes))

    def from_factors(self, factors: tuple[float, ...], turned: int) -> RopeScaling:
        """What divides the frequencies: Llama 3's rule where it gives these factors, else the factors themselves."""
        if len(factors) != turned // 2:
            what = f"rope_freqs.weight has {len(factors)} factors for {turned // 2} pairs"
            raise UserError(what, self.header.file)
        theta = self.number("rope.freq_base", 10_000.0) or 10_000.0
        known = RopeScaling(rope_type="llama3", factor=round(max(factors), 4), **LLAMA3)  # type: ignore[arg-type]
        rule = [_llama3(theta ** (-2 * i / turned), known) for i in range(turned // 2)]
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(rule, factors, strict=True)):
            return known
        own = tuple(map(float, factors))
        return RopeScaling(
            rope_type="longrope", short_factor=own, long_factor=own, attention_factor=1.0,
            original_max_position_embeddings=self.positions,
        )  # fmt: skip

    def finish(self) -> None:
        """A UserError that names a key of the architecture which nobody has read and which says something."""
        prefix = f"{self.name}."
        for key in sorted(self.header.metadata):
            if not key.startswith(prefix) or key in self.header.used or key.removeprefix(prefix) in NEUTRAL:
                continue
            value = self.header.metadata[key]
            if value not in (0, False, ""):
                found = "a list" if isinstance(value, Values) else shown(value)
                what = f"the metadata of the GGUF file has {key} = {found}, which is not known here"
                raise UserError(f"{what} and may change what the model computes", self.header.file)


WIDE = {"gemma2": 46, "gemma3": 62}
"""Layers of Gemma 27B, whose scores are scaled by the width of the model."""
PERIODS = {"gemma2": 2, "gemma3": 6, "exaone4": 4}
"""Every so manieth layer is a full one, the others slide."""


def _llama3(frequency: float, scaling: RopeScaling) -> float:
    """What Llama 3's rule divides a frequency by, see `rotary`."""
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None and high is not None and original is not None and scaling.factor is not None
    smooth = min(max((original * frequency / (2 * math.pi) - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - smooth) / scaling.factor + smooth)


def special_ids(header: Header, size: int) -> dict[str, Any]:
    """The tokens that begin, end and fill texts, as `ModelConfig` has them; those beyond `size` are left out."""
    usual = {"llama": {"bos": 1, "eos": 2}, "t5": {"eos": 1, "padding": 0}}.get(
        header.get("tokenizer.ggml.model", str, "none") or "", {}
    )

    def named(role: str) -> int | None:
        found = header.get(f"tokenizer.ggml.{role}_token_id", int, usual.get(role))
        return found if found is not None and found < size else None

    eos = named("eos")
    ends = dict.fromkeys(i for role in LAST_TURN if (i := named(role)) is not None and i != eos)
    return dict(bos_id=named("bos"), eos_id=eos, pad_id=named("padding"), other_eos_ids=tuple(ends))
