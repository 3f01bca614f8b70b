"""The arithmetic of memory, and what is chosen by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yeoul.train.activations import BlockCost
from yeoul.train.memory import (
    Choice,
    Need,
    Sizes,
    Work,
    activations,
    calibration,
    candidates,
    choose,
    embedding_gradient,
    gradients,
    optimizer_state,
    output_layer,
    predictions,
    rounding,
    saving,
    scoring,
    training,
    worst,
)

SIZES = Sizes(vocabulary=1000, width=8, weights=4 * 10_000, trained=10_000, table=8000, tied=True, embedding=8000)
BLOCKS = [BlockCost(kept=100, backward=30, forward=50), BlockCost(kept=300, backward=20, forward=70)]
WORK = Work(rows=4, context=16)


def test_parts_are_what_their_formulas_say() -> None:
    assert gradients(SIZES) == 4 * 10_000
    assert optimizer_state(SIZES) == 8 * 10_000
    assert optimizer_state(replace(SIZES, muon=2000)) == 8 * 8000 + 4 * 2000
    assert activations(BLOCKS, WORK, 8) == 4 * (100 + 300) + 4 * 30
    recomputed = activations(BLOCKS, replace(WORK, checkpointing=True), 8)
    assert recomputed == 2 * (4 * 16 * 8 * 4) + 4 * (300 + 20)
    assert activations([replace(BLOCKS[0], copies=7)], WORK, 8) == 7 + 4 * 130
    assert output_layer(SIZES, replace(WORK, chunk=10)) == 2 * 4 * 10 * 1000 + 6 * 64 * 8 * 4 + 4 * 8000
    assert output_layer(SIZES, replace(WORK, loss="hidden")) == 6 * 64 * 8 * 4
    assert embedding_gradient(SIZES, WORK) == 4 * 8000
    assert embedding_gradient(SIZES, replace(WORK, micro_batches=2)) == 2 * 4 * 8000
    assert embedding_gradient(replace(SIZES, tied=False), WORK) == 0
    assert saving("x", SIZES, 9).total == 40_000 + 80_000 + 9


def test_a_step_has_two_worst_moments() -> None:
    begins = training("step", SIZES, [BlockCost(kept=10**6, backward=0, forward=0)], WORK)
    assert begins.parts["activations"] == 4 * 10**6 and begins.parts["gradients"] == 0
    ends = training("step", SIZES, BLOCKS, replace(WORK, loss="hidden"))
    assert ends.parts["gradients"] == 40_000 and ends.parts["activations"] == 4 * 30
    more = training("step", SIZES, [BlockCost(kept=10**6, backward=0, forward=0)], replace(WORK, micro_batches=2))
    assert more.total == begins.total + gradients(SIZES)
    teacher = [BlockCost(kept=0, backward=0, forward=10**6)]
    aligned = training("step", SIZES, BLOCKS, replace(WORK, loss="layers"), teacher)
    assert aligned.parts["activations"] == 4 * 10**6 + 6 * 64 * 8 * 4  # the larger of the two blocks
    assert worst([begins, ends]) is begins and ends.with_base("program", 5).total == ends.total + 5


def test_scoring_holds_a_chunk_of_logits_alone() -> None:
    few, many = (scoring("x", SIZES, BLOCKS, WORK, chunk) for chunk in (8, 10**9))
    assert few.parts["output layer"] == 3 * 4 * 8 * 1000
    assert many.parts["output layer"] == 3 * 4 * 64 * 1000


ASKED = Choice(micro_batch=8, checkpointing=False, context=64)


def needed(choice: Choice) -> int:
    """100 at least, 10 for each row, half of that recomputed; half of all with half the context."""
    rows = choice.micro_batch * (5 if choice.checkpointing else 10)
    return 100 + rows * choice.context // 64


def test_candidates_go_from_what_costs_nothing_to_what_changes_the_result() -> None:
    found = [(o.context, o.checkpointing, o.micro_batch) for o in candidates(ASKED, batch=8, contexts=[32])]
    assert found == [(T, again, rows) for T in (64, 32) for again in (False, True) for rows in (8, 4, 2, 1)]
    assert [o.micro_batch for o in candidates(replace(ASKED, micro_batch=6), batch=6)][:4] == [6, 3, 2, 1]
    fixed = candidates(ASKED, batch=8, may_split=False, may_checkpoint=False)
    assert list(fixed) == [ASKED]


@pytest.mark.parametrize(
    "free, expected",
    [
        (1000, ASKED),
        (200, ASKED),  # 180 of 200: nine tenths
        (199, replace(ASKED, micro_batch=1)),  # nothing takes half of it, so the least
        (280, ASKED),
        (123, replace(ASKED, micro_batch=1)),
        (117, replace(ASKED, micro_batch=1, checkpointing=True)),
        (115, replace(ASKED, micro_batch=1, checkpointing=True, context=32)),
        (100, None),
    ],
)
def test_the_first_that_fits_with_the_fewest_changes(free: int, expected: Choice | None) -> None:
    assert choose(list(candidates(ASKED, batch=8, contexts=[32])), needed, free) == expected


def test_smaller_micro_batches_leave_half_of_the_memory_free_where_they_can() -> None:
    options = list(candidates(ASKED, batch=8))
    assert choose(options, lambda o: 100 * o.micro_batch, 700) == replace(ASKED, micro_batch=2)
    assert choose(options, lambda o: 100 * o.micro_batch, 700, comfortable=0.9) == replace(ASKED, micro_batch=4)


def test_needs_are_plain() -> None:
    assert Need(phase="x", parts={"a": 1, "b": 2}).total == 3


def test_quantizing_by_its_formulas() -> None:
    assert rounding(10, 4, False) == 4 * 4 * 40
    assert rounding(10, 4, True) == 6 * 4 * 40 + 4 * 8 * 16
    assert calibration(BLOCKS, 1000, 8, 25) == 1000 + 8 * 70 + 4 * 25
    assert predictions(BLOCKS, 16, 800) == 100 + 300 + 30 + 4 * 4 * 800
