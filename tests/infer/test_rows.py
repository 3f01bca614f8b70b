"""Rows that join and leave at any step say what each says alone: every kind of layer, natively and by PyTorch."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from models import KINDS, VOCAB, make, rms_ratio
from yeoul.infer.native.binding import native_library
from yeoul.infer.rows import Rows, joinable
from yeoul.model.cache import Cache
from yeoul.model.decoder import Decoder

CASES = sorted(KINDS)
FIXED = [
    "softmax",
    "learned",
    "gemma-like",
    "sliding-sinks",
    "hybrid-sinks",
    "exact-delta",
    "convolution",
    "lstm",
    "mixed",
]


def read(model: Decoder, ids: Tensor) -> Cache:
    """The memory of a text, read in two pieces as by an engine."""
    cache, half = model.new_cache(1), len(ids) // 2
    for piece in (ids[:half], ids[half:]):
        if len(piece):
            model.hidden(piece[None], cache=cache)
    return cache


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in CASES for way in ("native", "pytorch", "fixed") if way != "fixed" or kind in FIXED],
)
@torch.inference_mode()
def test_rows_come_and_go_and_each_is_as_alone(kind: str, way: str) -> None:
    """Beyond 64 columns, too; "fixed" is what a GPU records."""
    model = make(kind)
    rows, chance = Rows(model, 5, native=way == "native", fixed=way == "fixed"), random.Random(0)
    if way == "native" and not rows.native:
        pytest.skip("PyTorch alone does this kind")
    alone: list[Cache] = []
    found, joined, left = [], 0, 0
    for _ in range(40):
        if rows.count < 5 and (not rows.count or chance.random() < 0.3):
            ids = torch.randint(VOCAB, (chance.choice((8, 9, 12, 20, 40)),))
            text = read(model, ids)
            assert joinable(text) and rows.join(text) == rows.count - 1
            alone.append(read(model, ids))
            joined += 1
        tokens = torch.randint(VOCAB, (rows.count,))
        wanted = torch.cat([model(t[None, None], cache=c)[:, -1] for t, c in zip(tokens, alone, strict=True)])
        found.append(rms_ratio(rows.step(tokens), wanted))
        if chance.random() < 0.25:
            row = chance.randrange(rows.count)
            text, other = rows.lone(row), alone[row]
            assert text.nbytes() == other.nbytes()
            last = rows.leave(row)
            alone[row] = alone[last]
            alone.pop()
            left += 1
            more = torch.randint(VOCAB, (1, chance.choice((1, 3))))  # PyTorch goes on with what has left
            found.append(rms_ratio(model(more, cache=text), model(more, cache=other)))
            assert torch.equal(text.next_position, other.next_position)
            if chance.random() < 0.5 and rows.count < 5:  # and it comes back
                rows.join(text)
                alone.append(other)
    assert joined > 5 and left > 3
    assert max(found) < 2e-5
    assert rows._static is None or (way == "fixed") is (rows._static.rows == 5)


@pytest.mark.parametrize(
    "kind", ["softmax", "gemma-like", "hybrid-sinks", "exact-delta", "convolution", "lstm", "mixed"]
)
@torch.inference_mode()
def test_memory_is_that_of_the_texts_in_use(kind: str) -> None:
    model = make(kind)
    rows = Rows(model, 3)
    texts = [read(model, torch.randint(VOCAB, (length,))) for length in (9, 30)]
    for text in texts:
        rows.join(text)
    assert rows.nbytes() == sum(text.nbytes() for text in texts)
    rows.leave(0)
    assert rows.nbytes() == texts[1].nbytes()
    rows.leave(0)
    assert rows.nbytes() == 0


@torch.inference_mode()
def test_a_text_without_all_its_sinks_stays_alone() -> None:
    model = make("hybrid-sinks")
    assert not joinable(read(model, torch.randint(VOCAB, (6,)))) and joinable(read(model, torch.randint(VOCAB, (7,))))


@torch.inference_mode()
def test_a_left_padded_row_joins_as_it_would_without_padding() -> None:
    for kind in ("softmax", "sliding-sinks", "exact-sinks", "hybrid-convolution"):
        model = make(kind)
        ids = torch.randint(VOCAB, (2, 17))
        mask = torch.ones_like(ids)
        mask[1, :6] = 0
        batch = model.new_cache(2)
        model.hidden(ids, mask, cache=batch)
        rows, tokens = Rows(model, 2), torch.randint(VOCAB, (20,))
        rows.join(batch.fork(torch.tensor([1])))
        other = read(model, ids[1, 6:])
        for token in tokens:
            assert rms_ratio(rows.step(token[None]), model(token[None, None], cache=other)[:, -1]) < 2e-5


@pytest.mark.skipif(native_library() is None, reason="no native library")
@torch.inference_mode()
def test_the_library_is_bound_once_for_all_who_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("hybrid-sinks")
    rows, bound = Rows(model, 4), list[tuple[int, int]]()
    decoder = rows._decoder
    assert decoder is not None
    real = decoder._bind

    def noted(rows: int, end: int) -> None:
        bound.append((rows, end))
        real(rows, end)

    monkeypatch.setattr(decoder, "_bind", noted)
    for _ in range(6):
        rows.join(read(model, torch.randint(VOCAB, (12,))))
        rows.step(torch.randint(VOCAB, (rows.count,)))
        if rows.count == 4:
            rows.leave(1)
    assert len(bound) == 1
