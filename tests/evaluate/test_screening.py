"""Rates of a screen's errors, against scipy's intervals and by counting."""

from __future__ import annotations

import math
import random

import pytest

from yeoul.evaluate.screening import screen_errors, wilson


@pytest.mark.parametrize(("errors", "cases"), [(0, 10), (1, 10), (10, 10), (3, 200), (500, 1000), (0, 100_000)])
def test_the_interval_is_scipys(errors: int, cases: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(errors, cases).proportion_ci(0.95, method="wilson")
    ours = wilson(errors, cases)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert ours.low <= ours.value <= ours.high


def test_nothing_known_without_cases() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1) and math.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_errors_are_counted_at_each_threshold() -> None:
    probabilities, harmful = [0.1, 0.5, 0.7, 0.2, 0.5, 0.9], [False, False, False, True, True, True]
    found = {e.threshold: (e.false_positives.errors, e.false_negatives.errors)
             for e in screen_errors(probabilities, harmful, (0.05, 0.5, 0.51, 0.95))}  # fmt: skip
    assert found == {0.05: (3, 0), 0.5: (2, 1), 0.51: (1, 2), 0.95: (0, 3)}
    (errors,) = screen_errors(probabilities, harmful, [0.5])
    assert errors.to_dict()["false_positives"] == pytest.approx(
        {"errors": 2, "cases": 3, "rate": 2 / 3, "low": wilson(2, 3).low, "high": wilson(2, 3).high}
    )
    (none,) = screen_errors([0.5], [True], [0.5])
    assert none.to_dict()["false_positives"]["rate"] is None


def test_the_interval_holds_what_it_promises() -> None:
    draw, truth, held = random.Random(1), 0.03, 0
    for _ in range(400):
        rate = wilson(sum(draw.random() < truth for _ in range(150)), 150)
        held += rate.low <= truth <= rate.high
    assert held / 400 > 0.92
