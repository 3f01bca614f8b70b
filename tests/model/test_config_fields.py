"""config.json as transformers writes it: every field of every family is read, neutral or refused, none is dropped."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from yeoul.errors import UserError
from yeoul.model.config import ModelConfig
from yeoul.model.config_fields import is_neutral
from yeoul.model.families import FAMILIES, read_config, relevant, write_config

CLASSES = {
    "llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig", "gemma2": "Gemma2Config", "gemma3_text": "Gemma3TextConfig", "exaone4": "Exaone4Config",
    "gpt2": "GPT2Config", "gpt_neox": "GPTNeoXConfig",
}  # fmt: skip
LEFTOVERS: dict[str, Any] = {
    # written by transformers: of a GGUF file, of its older versions, of other heads
    "unk_token_id": 3, "sep_token_id": 5, "mask_token_id": 4, "decoder_start_token_id": 1, "image_token_index": 262144,
    "_name_or_path": "somebody/model", "_commit_hash": "0a1b", "_attn_implementation_autoset": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_bfloat16": False, "torchscript": False,
    "pruned_heads": {}, "is_encoder_decoder": False, "is_decoder": False, "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None, "tf_legacy_loss": False, "chunk_size_feed_forward": 0, "return_dict": True,
    "output_hidden_states": False, "output_attentions": False, "problem_type": "single_label_classification",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "finetuning_task": "sst2",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "prefix": "> ",
    "tokenizer_class": "GPT2Tokenizer", "gradient_checkpointing": False, "use_cache": True, "pretraining_tp": 2,
    # drawing of tokens
    "max_length": 20, "min_length": 3, "do_sample": True, "early_stopping": "never", "num_beams": 4, "top_k": 50,
    "top_p": 0.9, "temperature": 0.7, "repetition_penalty": 1.1, "bad_words_ids": [[5]], "suppress_tokens": [7],
    "exponential_decay_length_penalty": [10, 1.1], "forced_bos_token_id": 1, "forced_eos_token_id": 2,
    "no_repeat_ngram_size": 2, "renormalize_logits": True,
    # programs that trained it
    "unsloth_version": "2025.1", "unsloth_fixed": True, "neftune_noise_alpha": 5, "use_flash_attn": True,
    "classifier_dropout": 0.1, "max_sequence_length": 2048, "model_max_length": 4096, "base_model_name": "x/y",
    "license": "gemma", "language": ["ko"], "seed": 42, "eos_token": "</s>", "mlx_version": "0.2",
}  # fmt: skip


def written(family: str, **values: Any) -> dict[str, Any]:
    """config.json of a family as transformers writes it, every field of its class included."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, CLASSES[family])(**values)
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def test_every_family_has_its_class() -> None:
    assert set(CLASSES) == set(FAMILIES) - {"yeoul"}


def same(one: ModelConfig, other: ModelConfig) -> bool:
    return relevant(one) == relevant(other)


@pytest.mark.parametrize("family", CLASSES)
def test_all_fields_with_their_defaults_round_trip(family: str) -> None:
    """Ours of theirs, theirs of ours, and ours again."""
    transformers = pytest.importorskip("transformers")
    described = written(family)
    kind, ours = read_config(described, frozenset())
    assert kind == family
    short = json.loads(getattr(transformers, CLASSES[family])().to_json_string())
    back = write_config(ours, torch.float32)
    assert back["model_type"] == family
    theirs = json.loads(getattr(transformers, CLASSES[family]).from_dict(back).to_json_string(use_diff=False))
    for again in (back, theirs, short | described):
        assert same(read_config(again, frozenset())[1], ours)


@pytest.mark.parametrize("family", CLASSES)
def test_what_changes_nothing_passes(family: str) -> None:
    ours = read_config(written(family), frozenset())[1]
    for name, value in LEFTOVERS.items():
        described = written(family)
        if name in described and not is_neutral(name):
            continue
        assert read_config(described | {name: value}, frozenset())[1] == ours, name
    assert read_config(written(family) | {k: v for k, v in LEFTOVERS.items() if is_neutral(k)}, frozenset())[1] == ours


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(
    "field,value",
    [
        ("residual_multiplier", 0.22), ("logit_scale", 0.06), ("alibi", True), ("clip_qkv", 8.0), ("num_experts", 8),
        ("pruned_heads", {"0": [1]}), ("quantization", {"bits": 4}), ("attention_sinks", 4), ("layer_norm_bias", True),
        ("is_encoder_decoder", True), ("kv_lora_rank", 512), ("use_qk_norm", True),
        ("embedding_multiplier", 12), ("no_such_field", "x"), ("attn_temperature_tuning", 4),
    ],
)  # fmt: skip
def test_what_might_change_something_is_refused(family: str, field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"field '{field}' that is not known for model_type '{family}'"):
        read_config(written(family) | {field: value}, frozenset())


def another(value: Any) -> Any:
    """A typical other value of a field."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 if value else 1
    if isinstance(value, float):
        return value / 2 if value else 0.1
    if isinstance(value, str):
        return {"silu": "gelu", "gelu": "gelu_new"}.get(value, "gelu" if "gelu" in value else value + "-other")
    if isinstance(value, list):
        return ["full_attention"] * len(value)
    return 3 if value is None else {"other": 1}


@pytest.mark.parametrize("family", CLASSES)
def test_no_field_of_the_class_is_dropped(family: str) -> None:
    """With another value each of them changes our description, is refused, or is known to be neutral."""
    transformers = pytest.importorskip("transformers")
    described = written(family)
    ours = read_config(described, frozenset())[1]
    names = {field.name for field in dataclasses.fields(getattr(transformers, CLASSES[family]))}
    dropped = []
    for name in sorted((names | set(described)) - {"model_type", "rope_parameters"}):
        try:
            changed = read_config(described | {name: another(described.get(name))}, frozenset())[1]
        except UserError:
            continue
        if changed == ours and not is_neutral(name):
            dropped.append(name)
    assert set(dropped) == INERT.get(family, set())


INERT: dict[str, set[str]] = {
    "qwen2": {"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"},
    "qwen3": {"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"},
    "exaone4": {"sliding_window_pattern"},
    "gemma": {"hidden_act"},
}
"""Fields that say nothing beside the others' defaults: no layer slides; each layer's kind is listed; Gemma's "gelu"."""


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_fields_of_windows_count_where_layers_slide(family: str) -> None:
    plain = written(family, num_hidden_layers=8, use_sliding_window=True, sliding_window=16, max_window_layers=4)
    ours = read_config(plain, frozenset())[1]
    assert ours.attention == ("softmax",) * 4 + ("sliding",) * 4 and ours.sliding_window == 16
    assert read_config(plain | {"sliding_window": 8}, frozenset())[1] != ours
    assert read_config(plain | {"layer_types": ["full_attention"] * 8}, frozenset())[1] != ours
    unlisted = {key: value for key, value in plain.items() if key != "layer_types"}
    assert (
        read_config(unlisted, frozenset())[1]
        == ours
        != read_config(unlisted | {"max_window_layers": 2}, frozenset())[1]
    )


@pytest.mark.parametrize("family,field", [("gemma", "hidden_activation"), ("gemma2", "hidden_activation")])
def test_gemma_s_exact_activation_is_told_from_its_approximation(family: str, field: str) -> None:
    exact = read_config(written(family) | {field: "gelu"}, frozenset())[1]
    assert exact.activation == "gelu" != read_config(written(family), frozenset())[1].activation
    back = write_config(exact, torch.float32)
    assert same(read_config(back, frozenset())[1], exact)
    assert back["model_type"] == ("yeoul" if family == "gemma" else family), (
        "transformers takes gelu of Gemma 1 for tanh"
    )


def test_gemma_3_keeps_its_pattern_where_layers_are_not_listed() -> None:
    described = written("gemma3_text", num_hidden_layers=8)
    described.pop("layer_types")
    for name in ("_sliding_window_pattern", "sliding_window_pattern"):
        described.pop("_sliding_window_pattern", None)
        kinds = read_config(described | {name: 4}, frozenset())[1].attention
        assert [i for i, kind in enumerate(kinds) if kind == "softmax"] == [3, 7]


def test_a_model_of_a_gguf_file_is_read(tmp_path: Any) -> None:
    """What transformers writes of one has the id of the unknown token."""
    assert read_config(written("gemma3_text") | {"unk_token_id": 3}, frozenset())[1].family == "gemma3_text"
