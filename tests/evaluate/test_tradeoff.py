"""The efficient edge against its definition, and the recommendation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yeoul.evaluate.sampling import Setting, SettingScore
from yeoul.evaluate.tradeoff import efficient, height, tradeoff

NUMBERS = st.floats(0, 4).map(lambda x: round(x, 1))  # coarse, so that there are equals


def score(perplexity: float | None, distinct: float, recall: float | None = None, number: int = 1) -> SettingScore:
    return SettingScore(
        setting=Setting(temperature=number), tokens=8, ended=0.0, perplexity=perplexity, distinct_2=distinct,
        recall=recall,
    )  # fmt: skip


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_the_edge_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    edge = efficient(dict(enumerate(points)))
    unbeaten = {
        (cost, gain)
        for cost, gain in points
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    }
    assert [points[i] for i in edge] == sorted(unbeaten), "each of equal points once, by rising cost"


GREEDY, PLAIN = score(2, 0.2, number=0), score(16, 0.9)


def test_the_knee_is_recommended() -> None:
    scores = [score(3, 0.3), score(4, 0.8), score(15, 0.85), score(5, 0.7), score(None, 1.0), score(200, 1.0)]
    found = tradeoff(scores, GREEDY, PLAIN)
    assert found.edge == (0, 1, 2, 5) and found.chosen == 1 and not found.faithful
    start, end = (math.log(2), 0.2), (math.log(16), 0.9)
    assert height(start, start, end) == height(end, start, end) == 0
    assert height((math.log(4), 0.8), start, end) == pytest.approx(6 / 7 - 1 / 3)
    assert height((1.0, 0.5), end, start) == 0, "no line where plain sampling is the more likely"


def test_what_is_less_likely_than_plain_sampling_is_not_recommended() -> None:
    assert tradeoff([score(9, 0.4), score(17, 1.0)], GREEDY, PLAIN).chosen == 0
    assert tradeoff([score(17, 1.0)], GREEDY, PLAIN).chosen == 0, "unless there is nothing else"


def test_facts_come_before_the_knee() -> None:
    scores = [score(2.5, 0.3, 1.0), score(3, 0.5, 1.0), score(4, 0.8, 0.5), score(15, 0.85, 0.0)]
    found = tradeoff(scores, GREEDY, PLAIN)
    assert found.edge == (0, 1, 2, 3) and found.chosen == 1 and found.faithful
    none = tradeoff([score(2.5, 0.3, 0.0), score(4, 0.8, 0.0), score(15, 0.9, 0.0)], GREEDY, PLAIN)
    assert none.chosen == 1 and not none.faithful


def test_few_settings() -> None:
    assert tradeoff([], GREEDY, PLAIN).chosen is None and tradeoff([score(None, 1.0)], GREEDY, PLAIN).edge == ()
    assert tradeoff([score(3, 0.5)], GREEDY, PLAIN).chosen == 0
    assert tradeoff([score(3, 0.1)], GREEDY, PLAIN).chosen is None, "greedy decoding is better in both"
    assert tradeoff([score(3, 0.5)], score(None, 1.0), PLAIN).chosen == 0, "greedy decoding wrote nothing"
    better = tradeoff([score(1.5, 0.5), score(9, 0.6)], GREEDY, PLAIN)
    assert better.edge == (0, 1) and better.chosen == 0, "under another judge greedy may be beaten"
