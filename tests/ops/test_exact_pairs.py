"""Which pairs are kept, against the definition: the best of those that have left the window, one query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yeoul.ops.exact_pairs import NOTHING, Selection, select_pairs, take


def definition(scores: list[float], leaving: list[bool], texts: list[int], room: int) -> list[tuple[set[int], int]]:
    """For each query which keys are kept, by the query at which they left, and which is evicted there, or -1."""
    found: list[tuple[set[int], int]] = []
    kept: list[int] = []
    for t, (leaves, text) in enumerate(zip(leaving, texts, strict=True)):
        kept = [j for j in kept if texts[j] == text]
        gone = -1
        if leaves:
            kept.append(t)
            if len(kept) > room:  # of equals the newest goes
                gone = min(kept, key=lambda j: (scores[j], -j))
                kept.remove(gone)
        found.append((set(kept), gone))
    return found


def kept_at(chosen: Selection, row: int, group: int, query: int, block: int, before: int) -> set[int]:
    """Columns that a query sees beside its window, by the query at which they left."""
    number, place = divmod(query, block)
    seen = chosen.seen[row, group, number, place].tolist()
    room = chosen.kept.shape[3]
    columns = chosen.kept[row, group, number].tolist() + [before + number * block + i for i in range(block)]
    assert len(columns) == len(seen) and room + block == len(seen)
    return {column - before for column, yes in zip(columns, seen, strict=True) if yes}


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize(("room", "block"), [(1, 4), (3, 4), (5, 1), (4, 16), (40, 8)])
def test_equals_its_definition(room: int, block: int, levels: int) -> None:
    """With many equal scores and with few; texts shorter and longer than a block; queries at which nothing leaves."""
    generator = torch.Generator().manual_seed(room * 7 + block)
    T = 37
    scores = torch.randint(0, levels, (2, 3, T), generator=generator).float()
    leaving = torch.rand(2, T, generator=generator) > 0.2
    texts = torch.tensor([[0] * 5 + [1] * 20 + [2] * 12, [0] * 30 + [1] * 3 + [-1] * 4])
    leaving &= texts >= 0
    for seq_ids in (None, texts):
        chosen = select_pairs(scores, leaving, room, block, seq_ids=seq_ids)
        for row in range(2):
            for group in range(3):
                of = [0] * T if seq_ids is None else texts[row].tolist()
                wanted = definition(scores[row, group].tolist(), leaving[row].tolist(), of, room)
                for t, (kept, gone) in enumerate(wanted):
                    assert kept_at(chosen, row, group, t, block, 0) == kept, (row, group, t)
                    written = bool(chosen.written[row, group, t])
                    assert written == (gone >= 0) and (not written or int(chosen.evicted[row, group, t]) == gone)
                there = chosen.last[row, group][chosen.last_valid[row, group]].tolist()
                assert there == sorted(wanted[-1][0])


def test_pieces_give_what_the_whole_gives() -> None:
    generator = torch.Generator().manual_seed(1)
    T, room, block = 50, 6, 7
    scores = torch.randint(0, 9, (2, 2, T), generator=generator).float()
    leaving = torch.rand(2, T, generator=generator) > 0.1
    whole = select_pairs(scores, leaving, room, block)
    for cuts in ([25], [1, 2, 3], [7, 14, 49], [48]):
        columns = torch.zeros(2, 2, room, dtype=torch.int64)  # of the whole, of what is kept
        valid = torch.zeros(2, 2, room, dtype=torch.bool)
        start = 0
        for end in [*cuts, T]:
            before = take(scores, columns).masked_fill(~valid, NOTHING)
            part = select_pairs(scores[:, :, start:end], leaving[:, start:end], room, block, before=before)
            known = torch.cat((columns, torch.arange(start, end).expand(2, 2, -1)), -1)
            written = whole.written[:, :, start:end]
            assert torch.equal(part.written, written)
            assert torch.equal(take(known, part.evicted)[written], whole.evicted[:, :, start:end][written])
            columns, valid, start = take(known, part.last), part.last_valid, end
        assert torch.equal(valid, whole.last_valid) and torch.equal(columns[valid], whole.last[valid])


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 2, 0)])
def test_nothing(shape: tuple[int, int, int]) -> None:
    chosen = select_pairs(torch.zeros(shape), torch.ones(shape[0], shape[2], dtype=torch.bool), 3, 4)
    assert chosen.evicted.shape == shape and chosen.last.shape == (*shape[:2], 3) and not chosen.last_valid.any()


def test_take_follows_heads_and_what_stands_behind() -> None:
    x = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4)
    columns = torch.randint(0, 5, (2, 3, 2, 6), generator=torch.Generator().manual_seed(0))
    found: Tensor = take(x, columns)
    for b in range(2):
        for g in range(3):
            assert torch.equal(found[b, g], x[b, g][columns[b, g]])
    assert torch.equal(take(x[:, :1, :, 0], columns), take(x[:, :1].expand(-1, 3, -1, -1)[..., 0], columns))
