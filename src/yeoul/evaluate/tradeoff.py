"""Accuracy against diversity: which settings no other beats in both, and which of those is the best bargain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yeoul.evaluate.sampling import SettingScore


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """Settings compared by perplexity (less is more accurate) and distinct-2 (more is more varied).

    Attributes:
        edge: indices of the settings that no other is at least as good as in both and better in one, greedy decoding
            counted as one, the most accurate first.
        chosen: index of the recommended one, which is on the edge; None where nothing is more varied than greedy
            decoding, or nothing could be compared.
        faithful: whether only settings of the edge were considered that recall as many facts as the best of them.
    """

    edge: tuple[int, ...]
    chosen: int | None
    faithful: bool = False


def tradeoff(scores: Sequence[SettingScore], greedy: SettingScore, plain: SettingScore) -> Tradeoff:
    """The efficient edge (Pareto) and its knee.

    The knee is the setting of the edge furthest above the straight line from greedy decoding to plain sampling
    (temperature 1, nothing ruled out), in a plane of distinct-2 and the logarithm of perplexity. Text less likely than
    that of plain sampling is less likely than the model itself holds text to be, so settings beyond it are recommended
    only where there are no others. Where prompts tell facts, only those are considered that recall as many as the best.
    """
    points = {
        i: (math.log(score.accuracy), score.distinct_2)
        for i, score in enumerate([greedy, *scores], start=-1)  # greedy decoding is -1
        if score.accuracy is not None
    }
    edge = [i for i in efficient(points) if i >= 0]
    if not edge or greedy.accuracy is None or plain.accuracy is None:
        return Tradeoff(edge=tuple(edge), chosen=edge[0] if edge else None)
    within = [i for i in edge if points[i][0] <= math.log(plain.accuracy)] or edge
    best = max(scores[i].recall or 0.0 for i in within)
    considered = [i for i in within if (scores[i].recall or 0.0) >= best]
    ends = points[-1], (math.log(plain.accuracy), plain.distinct_2)
    chosen = max(considered, key=lambda i: (round(height(points[i], *ends), 9), -points[i][0]))
    return Tradeoff(edge=tuple(edge), chosen=chosen, faithful=len(considered) < len(within))


def efficient(points: dict[int, tuple[float, float]]) -> list[int]:
    """Keys of the (cost, gain) points that no other beats, by rising cost; of equal points, the first."""
    edge: list[int] = []
    best = -math.inf
    for key in sorted(points, key=lambda key: (points[key][0], -points[key][1])):
        if points[key][1] > best:
            edge.append(key)
            best = points[key][1]
    return edge


def height(point: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> float:
    """How far a (cost, gain) lies above the line between two others, in shares of their distances; 0 without a line."""
    width, rise = end[0] - start[0], end[1] - start[1]
    if width <= 0 or rise <= 0:
        return 0.0
    return (point[1] - start[1]) / rise - (point[0] - start[0]) / width
