"""The efficient edge against its definition, and the recommendation."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from yeoul.evaluate.sampling import Setting, SettingScore
from yeoul.evaluate.tradeoff import efficient, heights, tradeoff

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


GREEDY = score(2, 0.2, number=0)


def test_the_knee_is_recommended() -> None:
    scores = [score(3, 0.3), score(4, 0.8), score(20, 0.9), score(5, 0.7), score(None, 1.0)]
    found = tradeoff(scores, GREEDY)
    assert found.edge == (0, 1, 2) and found.chosen == 1 and not found.faithful
    curve = [(math.log(2), 0.3), (math.log(4), 0.8), (math.log(20), 0.9)]
    assert heights(curve)[0] == heights(curve)[2] == 0 < heights(curve)[1]


def test_facts_come_before_the_knee() -> None:
    scores = [score(2.5, 0.3, 1.0), score(3, 0.5, 1.0), score(4, 0.8, 0.5), score(20, 0.9, 0.0)]
    found = tradeoff(scores, GREEDY)
    assert found.edge == (0, 1, 2, 3) and found.chosen == 1 and found.faithful
    none = tradeoff([score(2.5, 0.3, 0.0), score(4, 0.8, 0.0), score(20, 0.9, 0.0)], GREEDY)
    assert none.chosen == 1 and not none.faithful


def test_few_settings() -> None:
    assert tradeoff([], GREEDY).chosen is None and tradeoff([score(None, 1.0)], GREEDY).edge == ()
    assert tradeoff([score(3, 0.5)], GREEDY).chosen == 0
    assert tradeoff([score(3, 0.5), score(9, 0.6)], GREEDY).chosen == 0, "an end only where nothing is between"
    assert tradeoff([score(3, 0.1)], GREEDY).chosen is None, "greedy decoding is better in both"
    better = tradeoff([score(1.5, 0.5), score(9, 0.6)], GREEDY)
    assert better.edge == (0, 1) and better.chosen == 0, "under another judge greedy may be beaten"
