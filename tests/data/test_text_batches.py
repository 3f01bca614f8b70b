"""Texts in batches: every one once, in an order that can be taken up again."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from yeoul.data.batch import IGNORE
from yeoul.data.text_batches import TextBatch, TextLoader, text_batch, text_batches
from yeoul.errors import UserError


def items(count: int, ways: int = 1) -> list[tuple[np.ndarray, ...]]:
    """Texts that are told by their first token."""
    draw = np.random.default_rng(0)
    return [tuple(np.r_[n, draw.integers(1, 9, draw.integers(0, 30))] for _ in range(ways)) for n in range(count)]


def loader(texts: list[tuple[np.ndarray, ...]], **settings: float) -> TextLoader:
    values: dict[str, float] = dict(batch_size=8, seed=3, pad_id=0) | settings
    return TextLoader(texts, np.arange(len(texts)), **values)  # type: ignore[arg-type]


def test_a_batch_holds_texts_side_by_side() -> None:
    batch = text_batch([((5, 6), (7,)), ((1, 2, 3), (4, 9))], np.array([0.5, 1.0], dtype=np.float32), pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 0], [1, 2, 3], [7, 0, 0], [4, 9, 0]]
    assert batch.labels.tolist() == [[6, IGNORE, IGNORE], [2, 3, IGNORE], [IGNORE] * 3, [9, IGNORE, IGNORE]]
    assert batch.mask.sum(1).tolist() == [2, 3, 1, 2] and batch.ways == 2
    assert batch.targets is not None and batch.targets.dtype == torch.float32
    there = batch.to("cpu")
    assert isinstance(there, TextBatch) and there.ways == 2 and torch.equal(there.targets, batch.targets)


def test_every_example_comes_once_an_epoch_with_its_target() -> None:
    stream = loader(items(150))
    for _ in range(2):
        seen = []
        for _ in range(stream.epoch_batches):
            batch = stream.next_batch()
            assert batch.targets is not None and torch.equal(batch.input_ids[:, 0], batch.targets)
            seen += batch.targets.tolist()
        assert sorted(seen) == list(range(150))


def test_rows_of_a_batch_are_alike_in_length() -> None:
    stream = loader(items(400))
    batches = [stream.next_batch() for _ in range(50)]
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    assert tokens > 0.9 * sum(batch.input_ids.numel() for batch in batches)


def test_batches_as_they_were_drawn() -> None:
    """Without likeness, lengths of a batch are as different as those of all texts; the examples are known by number."""
    texts = items(400)
    spreads = {}
    for alike in (True, False):
        stream = loader(texts, bucket_by_length=alike)
        batches = [stream.next_batch() for _ in range(stream.epoch_batches)]
        for batch in batches:
            assert batch.numbers is not None and torch.equal(batch.input_ids[:, 0], batch.numbers)
            there = batch.to("cpu")
            assert there.numbers is not None and torch.equal(there.numbers, batch.numbers)
        assert sorted(int(n) for batch in batches for n in batch.numbers) == list(range(400))  # type: ignore[union-attr]
        spreads[alike] = np.mean([batch.mask.sum(1).float().std() for batch in batches])
    assert spreads[True] < 1 and spreads[False] > 6
    with pytest.raises(UserError, match="bucket_by_length = True, now it is False"):
        loader(texts, bucket_by_length=False).load_state_dict(loader(texts).state_dict())


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_the_order_is_the_seeds_and_can_be_taken_up(drop: float) -> None:
    texts = items(60, ways=2)
    whole = loader(texts, drop=drop)
    batches = [whole.next_batch() for _ in range(20)]
    begun = loader(texts, drop=drop)
    for _ in range(11):
        begun.next_batch()
    again = loader(texts, drop=drop)
    again.load_state_dict(begun.state_dict())
    for wanted in batches[11:]:
        assert torch.equal(again.next_batch().input_ids, wanted.input_ids)
    other = loader(texts, drop=drop, seed=4)
    assert any(not torch.equal(other.next_batch().input_ids[:, 0], b.input_ids[:, 0]) for b in batches[:3])
    with pytest.raises(UserError, match="examples = 60, now it is 59"):
        loader(texts[1:], drop=drop).load_state_dict(whole.state_dict())


def test_dropping_leaves_a_token_of_every_text() -> None:
    texts = [(np.arange(1, 41),), (np.array([7]),)]
    stream = TextLoader(texts, None, batch_size=2, seed=0, pad_id=0, drop=0.5)
    lengths = np.array([sorted(stream.next_batch().mask.sum(1).tolist()) for _ in range(200)])
    assert (lengths[:, 0] == 1).all() and 18 < lengths[:, 1].mean() < 22


def test_one_pass_for_scoring() -> None:
    texts = items(21)
    passed = list(text_batches(texts, np.arange(21), batch_size=4, pad_id=0))
    assert sorted(np.concatenate([chosen for chosen, _ in passed])) == list(range(21))
    assert all(batch.targets.tolist() == list(chosen) for chosen, batch in passed)  # type: ignore[union-attr]
    widths = [batch.input_ids.shape[1] for _, batch in islice(passed, 5)]
    assert widths == sorted(widths, reverse=True)
