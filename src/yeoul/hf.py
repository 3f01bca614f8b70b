"""Registers models of model_type "yeoul" with transformers: linearized models, hybrids, what no published family says.

After `import yeoul.hf`, transformers' `AutoConfig`, `AutoModelForCausalLM`, `pipeline`, `Trainer` and PEFT take such a
folder as any other. The computation is `yeoul.model.decoder.Decoder`; this file only speaks transformers' language.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        Cache,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise ImportError("yeoul.hf needs transformers 5 or later: pip install 'yeoul[hf]'") from error

from yeoul.errors import UserError
from yeoul.files import write_text
from yeoul.model import cache as memory
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.parameters import fp32_parameters
from yeoul.model.remote_code import AUTO_MAP, remote_code_files

FIELDS = tuple(field.name for field in fields(ModelConfig))
DEFAULTS = {"vocab_size": 32000, "hidden_size": 768, "num_layers": 12, "num_heads": 12}
"""Sizes of a `YeoulConfig()` without arguments, which transformers wants to be possible."""


class YeoulConfig(PreTrainedConfig):
    """The fields of `ModelConfig` under their own names and under transformers' (num_hidden_layers, eos_token_id ...).

    config.json is what `save_model` writes; `model_config()` gives the `ModelConfig`.

    Raises:
        UserError: fields that contradict one another.
    """

    model_type = "yeoul"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "tie_word_embeddings": "tie_embeddings",
        "bos_token_id": "bos_id",
        "eos_token_id": "eos_id",
        "pad_token_id": "pad_id",
    }
    rope_scaling = None  # a plain attribute; transformers makes it another name of rope_parameters

    def __init__(self, **values: Any) -> None:
        if values.get("quantization_config"):
            raise UserError("transformers cannot open this quantized model", "config.json", "load it with yeoul.load")
        for theirs, ours in self.attribute_map.items():
            if theirs in values:
                values.setdefault(ours, values.pop(theirs))
        given = {name: values.pop(name) for name in FIELDS if name in values}
        for name, value in ModelConfig.from_dict(DEFAULTS | given).to_dict().items():
            setattr(self, name, value)
        super().__init__(**{"auto_map": AUTO_MAP} | values)

    def model_config(self) -> ModelConfig:
        """The present values as a `ModelConfig`."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """All attributes, the mapped ones under both names."""
        return super().to_dict() | {theirs: getattr(self, theirs) for theirs in self.attribute_map}

    def to_diff_dict(self) -> dict[str, Any]:
        """What stands in config.json: the fields of `ModelConfig` and what `yeoul.load` knows beside them."""
        kept = {"architectures", "model_type", "dtype", "auto_map", "quantization_config", *FIELDS}
        return {name: value for name, value in super().to_diff_dict().items() if name in kept}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes config.json, and beside it the file that `trust_remote_code=True` imports."""
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        for name, text in remote_code_files().items():
            write_text(Path(save_directory) / name, text)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: a folder carries `remote_code_files` and not a copy of this module."""


class YeoulCache(Cache):
    """A `yeoul.model.cache.Cache` as transformers hands caches about; it is made at the first call of the model.

    Rows can be reordered, repeated and picked. Columns cannot be taken back: a linear state is a sum.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.memory: memory.Cache | None = None
        self._is_user_defined = False  # transformers marks what a caller gave to generate()

    def __repr__(self) -> str:
        return f"YeoulCache({self.get_seq_length()} columns, {self.nbytes()} bytes)"

    def __len__(self) -> int:
        return 0 if self.memory is None else len(self.memory.layers)

    def nbytes(self) -> int:
        """Bytes remembered by all layers."""
        return 0 if self.memory is None else self.memory.nbytes()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, padding included."""
        return 0 if self.memory is None else self.memory.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it has no end."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns of a mask over all that was seen and `query_length` new ones, and where it begins."""
        return self.get_seq_length() + query_length, 0

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first call."""
        return -1 if self.memory is None else self.memory.next_position.shape[0]

    @property
    def is_initialized(self) -> bool:
        """Whether the model has written to it."""
        return self.memory is not None

    @property
    def is_croppable(self) -> bool:
        """False."""
        return False

    @property
    def is_compileable(self) -> bool:
        """False."""
        return False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the given rows, (B',) int64, in that order."""
        if self.memory is not None:
            self.memory.reorder(beam_idx.to(self.memory.next_position.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the given rows, (B',) int64."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times, side by side."""
        self.reorder_cache(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forgets everything."""
        self.memory = None

    def crop(self, tokens_to_remove: int) -> None:
        """Raises UserError: columns cannot be taken back."""
        raise _cannot_go_back()

    def activate_past_recording(self) -> None:
        """Raises UserError: columns cannot be taken back."""
        raise _cannot_go_back()


def _cannot_go_back() -> UserError:
    return UserError(
        "this kind of generation takes tokens back, and a linear state cannot forget them",
        "assisted, prompt-lookup or contrastive generation",
        "generate greedily, by sampling or by beam search",
    )


class YeoulForCausalLM(PreTrainedModel, GenerationMixin):
    """A `Decoder` as transformers' model for causal language modelling, with the same names of parameters.

    `lm_head` is there with tied embeddings too, as transformers has it; a saved folder holds the weight once.
    """

    config_class = YeoulConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: YeoulConfig) -> None:
        super().__init__(config)
        decoder = Decoder(config.model_config())
        kept = fp32_parameters(decoder)
        self._keep_in_fp32_modules_strict = sorted(kept)  # which transformers reads when it loads a folder
        for name, parameter in decoder.named_parameters():
            if name in kept:
                parameter.data = parameter.data.float()
        self.model = decoder.model
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not config.tie_word_embeddings:
            self.lm_head = decoder.lm_head
        self.gradient_checkpointing = False
        self._fixed = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        decoder._modules = {}
        self.__dict__["_decoder"] = decoder  # not registered: it would double every name
        self.post_init()

    def init_weights(self) -> None:
        """Ties the embeddings; the `Decoder` has drawn the weights when it was made."""
        self.tie_weights(recompute_mapping=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws the parameters of a module that a folder lacked, and leaves those that it had."""
        if not (type(module).__module__.startswith("yeoul.") and hasattr(module, "reset_parameters")):
            super()._init_weights(module)
            return
        own = module.named_parameters(recurse=False)
        loaded = {name: p.clone() for name, p in own if getattr(p, "_is_hf_initialized", False)}
        module.reset_parameters()  # type: ignore[operator]
        for name, value in loaded.items():
            module.get_parameter(name).copy_(value)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As in transformers; what the configuration leaves untrained stays so."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in model._fixed:
            model.get_parameter(name).requires_grad_(False)
        return loaded

    def _present_decoder(self) -> Decoder:
        """The decoder over this model's modules as they are now: PEFT or a new vocabulary may have put in others."""
        decoder: Decoder = copy.copy(self.__dict__["_decoder"])
        decoder._modules = {}
        decoder.model = self.model
        if not decoder.config.tie_embeddings:
            decoder.lm_head = self.lm_head  # type: ignore[assignment]
        decoder.training, decoder.gradient_checkpointing = self.training, self.gradient_checkpointing
        return decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: YeoulCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **loss_arguments: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, T, V) fp32, and what else is asked for.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), or (B, past + T) with a cache: 1 for tokens, 0 for padding on either side (with a
                cache: on the left).
            position_ids: (B or 1, T) int64. Without mask and cache a position that does not follow the one before
                begins a new sequence of a packed row, as in transformers. With a cache they must be what follows.
            past_key_values: from an earlier call; is appended to.
            inputs_embeds: (B, T, hidden) in place of input_ids, before positions and scaling.
            labels: (B, T) int64, the inputs themselves: they are shifted here; -100 takes no part.
            use_cache: None means True, except in training, with labels or position_ids, and with padding on the right.
            output_attentions: cannot be True.
            output_hidden_states: the embeddings, and what each block gives, the last one normed.
            return_dict: False gives a tuple.
            logits_to_keep: only the last so many positions, or those named in a tensor; 0 means all.
            loss_arguments: for the loss, such as Trainer's num_items_in_batch.

        Raises:
            UserError: a mask, positions or a cache of another kind than these.
        """
        if output_attentions:
            raise UserError("attention weights are never made whole, so they cannot be returned", "output_attentions")
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("the model takes either input_ids or inputs_embeds")
        past = 0 if past_key_values is None else _own(past_key_values).get_seq_length()
        B, T = (input_ids if input_ids is not None else inputs_embeds).shape[:2]  # type: ignore[union-attr]
        mask = _new_columns(attention_mask, past, T)
        if use_cache is None:
            plain = not self.training and labels is None and position_ids is None
            use_cache = past_key_values is not None or (plain and (mask is None or bool(mask[:, -1].all())))
        decoder = self._present_decoder()
        cache = past_key_values if past_key_values is not None else YeoulCache() if use_cache else None
        if cache is not None and cache.memory is None:
            cache.memory = decoder.new_cache(B)
        recorder = _Recorder(decoder, inputs_embeds, bool(output_hidden_states))
        places = _positions(position_ids, mask, cache, B, T)
        with recorder:
            hidden = decoder.hidden(
                input_ids if input_ids is not None else torch.zeros(B, T, dtype=torch.int64, device=self.device),
                mask, cache=None if cache is None else cache.memory,
                positions=places.get("positions"), seq_ids=places.get("seq_ids"),
            )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = decoder.cap(self.lm_head(hidden[:, kept])).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **loss_arguments)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache if use_cache else None,
            hidden_states=(*recorder.states, hidden) if output_hidden_states else None,
        )  # fmt: skip
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> None:
        """Transformers' hook: a `YeoulCache` in place of a `DynamicCache`."""
        if generation_config.is_assistant:
            raise _cannot_go_back()
        kind, given = generation_config.cache_implementation, model_kwargs.get("past_key_values")
        if kind not in (None, "dynamic"):
            raise UserError(f"there is no {kind} cache for this model", "cache_implementation", "leave it out")
        if given is not None:
            _own(given)._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = YeoulCache()


class _Recorder:
    """While open: puts embeddings in place of the looked-up ones, and keeps what enters each block."""

    def __init__(self, decoder: Decoder, embeddings: Tensor | None, keep_states: bool) -> None:
        self.decoder, self.embeddings, self.keep_states = decoder, embeddings, keep_states
        self.states: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        if self.embeddings is not None:
            table = self.decoder.model.embed_tokens
            self._handles.append(table.register_forward_hook(lambda *_: self.embeddings))
        if self.keep_states:
            for block in self.decoder.layers:
                self._handles.append(block.register_forward_pre_hook(lambda _, inputs: self.states.append(inputs[0])))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _own(cache: Any) -> YeoulCache:
    if not isinstance(cache, YeoulCache):
        fix = "leave past_key_values out, or begin with yeoul.hf.YeoulCache()"
        raise UserError(f"a {type(cache).__name__} cannot hold this model's state", "past_key_values", fix)
    return cache


def _new_columns(mask: Tensor | None, past: int, T: int) -> Tensor | None:
    """The part of a mask (B, T) or (B, past + T) that belongs to the new columns: (B, T)."""
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[1] not in (T, past + T):
        raise UserError(
            f"a mask of shape {tuple(mask.shape)} does not fit {past} columns in the cache and {T} new ones",
            "attention_mask", "give (B, T), or (B, past + T), with 1 for tokens and 0 for padding",
        )  # fmt: skip
    return mask[:, -T:]


def _positions(
    position_ids: Tensor | None, mask: Tensor | None, cache: YeoulCache | None, B: int, T: int
) -> dict[str, Tensor]:
    """The arguments `positions` and `seq_ids` of `Decoder.hidden`; none where the decoder finds them itself."""
    if position_ids is None:
        return {}
    if cache is None or cache.memory is None:
        if mask is not None:
            return {"positions": position_ids}
        jumps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
        packed = {"seq_ids": jumps.long().cumsum(1).expand(B, -1)} if bool(jumps.any()) else {}
        return {"positions": position_ids} | packed
    tokens = torch.ones(B, T, dtype=torch.bool, device=position_ids.device) if mask is None else mask.bool()
    expected = cache.memory.next_position + tokens.long().cumsum(1) - 1
    if bool(((position_ids != expected) & tokens).any()):
        fix = "leave position_ids out"
        raise UserError("with a cache positions follow the cache and the mask, and these do not", "position_ids", fix)
    return {}


AutoConfig.register("yeoul", YeoulConfig, exist_ok=True)
AutoModelForCausalLM.register(YeoulConfig, YeoulForCausalLM, exist_ok=True)
