"""The rows that a quantization calibrates and scores with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yeoul.data.batch import IGNORE
from yeoul.data.windows import TextStream
from yeoul.recipes.quantize.texts import ROWS, batch_of, rows_of


def stream(begin: tuple[int, ...], *lengths: int) -> TextStream:
    """Documents of the numbers 100, 101, ..."""
    ends = np.cumsum([0, *lengths])
    return TextStream(np.arange(100, 100 + ends[-1]), ends, begin)


def flat(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> list[list[int]]:
    assert all(len(ids) <= ROWS for ids, _ in rows)
    return [row.tolist() for ids, _ in rows for row in ids]


def test_without_begin_tokens_rows_follow_one_another() -> None:
    """Calibration and scoring share a text; a remainder that fills no row is left out."""
    text = stream((), 40, 63)
    first, place = rows_of(text, 0, 10, 3)
    assert flat(first) == [list(range(start, start + 10)) for start in (100, 110, 120)] and place == 30
    second, _ = rows_of(text, place, 11, 99)
    assert flat(second) == [list(range(start, start + 11)) for start in range(130, 195, 11)]
    assert sum(int((batch_of(*part).labels != IGNORE).sum()) for part in second) == 10 * 6


def test_what_fills_no_row_is_one_where_there_is_no_other() -> None:
    assert flat(rows_of(stream((), 5), 0, 10, 3)[0]) == [[100, 101, 102, 103, 104]]
    assert flat(rows_of(stream((7,), 5), 0, 10, 3)[0]) == [[7, 100, 101, 102, 103, 104]]
    assert rows_of(stream((), 1), 0, 10, 3)[0] == [] and rows_of(stream(()), 0, 10, 3)[0] == []


@pytest.mark.parametrize("begin", [(7,), (7, 8)])
def test_rows_begin_as_the_model_expects(begin: tuple[int, ...]) -> None:
    rows, _ = rows_of(stream(begin, 4, 4, 30), 0, 8, 99)
    found = flat(rows)
    assert len(found) > 3
    for row in found:
        assert len(row) == 8 and tuple(row[: len(begin)]) == begin and tuple(row[len(begin) : 2 * len(begin)]) != begin
    text = [token for row in found for token in row if token not in begin]
    assert text == list(range(100, 100 + len(text))) and len(text) > 38 - 8
    for batch in (batch_of(*part) for part in rows):
        assert not set(batch.labels.flatten().tolist()) & set(begin)
