"""Greedy generation against transformers, on a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from yeoul.infer.engine import generate_ids
from yeoul.infer.sample import SamplingParams
from yeoul.model.checkpoint import load_model

transformers = pytest.importorskip("transformers")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [100, 3], list(range(20, 45))]
GREEDY = SamplingParams(max_tokens=64, temperature=0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=151, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, rope_theta=10000.0,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, folder


def reference(model: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    """Left-padded batch through transformers' own generate."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=64, **settings)
    return [row[width:].tolist() for row in out]


def test_greedy_64_tokens_are_identical(llama: tuple[Any, Path]) -> None:
    theirs, folder = llama
    ours = load_model(folder)
    for prompt in PROMPTS:
        expected = reference(theirs, [prompt], eos_token_id=None)
        assert len(expected[0]) == 64
        assert generate_ids(ours, [prompt], GREEDY) == expected


def test_a_left_padded_batch_is_identical(llama: tuple[Any, Path]) -> None:
    theirs, folder = llama
    expected = reference(theirs, PROMPTS, eos_token_id=None)
    assert generate_ids(load_model(folder), PROMPTS, GREEDY) == expected


def test_repetition_penalty_and_end_are_identical(llama: tuple[Any, Path]) -> None:
    theirs, folder = llama
    params = SamplingParams(max_tokens=64, temperature=0, repetition_penalty=1.3)
    ours = load_model(folder)
    alone = [generate_ids(ours, [p], params)[0] for p in PROMPTS]
    # in a batch transformers also penalises the padding token, so rows are compared one by one
    assert alone == [reference(theirs, [p], eos_token_id=None, repetition_penalty=1.3)[0] for p in PROMPTS]
    end = alone[2][9]
    assert generate_ids(ours, [PROMPTS[2]], params, eos_ids=[end]) == [alone[2][: alone[2].index(end)]]
