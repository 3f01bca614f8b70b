"""Rows of distillation that ask at their end for what their beginning said."""

from __future__ import annotations

import random

import pytest
import torch

from yeoul.data.loader import PackedLoader
from yeoul.data.shards import TokenShards, build_shards
from yeoul.evaluate.words import whole_words
from yeoul.recipes.linearize.recall_text import RecallLoader
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

WORDS = "강가 마을 아이 물가 하늘 구름 바람 나무 사과 노래 시장 학교 친구 겨울 여름 가을 아침 저녁 바다 이야기".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(_lines(400), TokenizerConfig(vocab_size=350), folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    folder = tmp_path_factory.mktemp("shards") / "data"
    train, _ = build_shards(_lines(600), tokenizer.encode_batch, tokenizer.eos_id or 0, 350, "f", folder)
    return train


def _lines(count: int) -> list[str]:
    dice = random.Random(0)
    return [" ".join(dice.choices(WORDS, k=8)) + ".\n" for _ in range(count)]


def _loader(shards: TokenShards, tokenizer: Tokenizer, share: float) -> RecallLoader:
    return RecallLoader(PackedLoader(shards, batch_size=4, context=96, seed=2), tokenizer, share)


def test_a_share_of_the_rows_ask_for_what_they_said(shards: TokenShards, tokenizer: Tokenizer) -> None:
    plain, mixed, whole = (_loader(shards, tokenizer, share) for share in (0.0, 0.25, 1.0))
    loader = PackedLoader(shards, batch_size=4, context=96, seed=2)
    changed, words = 0, set(whole_words(tokenizer))
    for _ in range(25):
        batches = [loader.next_batch() for loader in (plain, mixed, whole)]
        for batch in batches:
            assert batch.input_ids.shape == batch.labels.shape == (4, 96)
            assert torch.equal(batch.input_ids[:, 1:], batch.labels[:, :-1])
        rows = [torch.cat([batch.input_ids, batch.labels[:, -1:]], 1).tolist() for batch in batches]
        assert torch.equal(batches[0].labels, loader.next_batch().labels)
        for before, some, asked in zip(*rows, strict=True):
            assert some in (before, asked) and asked != before
            changed += some == asked
            if set(asked[-2:]) <= words:  # pairs of words: the last one is told before
                assert any(asked[place : place + 2] == asked[-2:] for place in range(60))
    assert 10 < changed < 42


def test_a_run_goes_on_with_the_same_rows(shards: TokenShards, tokenizer: Tokenizer) -> None:
    loader = _loader(shards, tokenizer, 0.5)
    loader.next_batch()
    place, expected = loader.state_dict(), loader.next_batch()
    again = _loader(shards, tokenizer, 0.5)
    again.load_state_dict(place)
    assert torch.equal(again.next_batch().input_ids, expected.input_ids)


def test_without_words_nothing_is_changed(
    shards: TokenShards, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecallLoader, "words", [])
    expected = _loader(shards, tokenizer, 0.0).next_batch()
    assert torch.equal(_loader(shards, tokenizer, 1.0).next_batch().labels, expected.labels)
