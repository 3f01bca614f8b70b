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


def tradeoff(scores: Sequence[SettingScore], greedy: SettingScore) -> Tradeoff:
    """The efficient edge (Pareto) and its knee.

    The knee is the setting furthest above the straight line between the ends of the edge, in a plane of distinct-2 and
    the logarithm of perplexity, both scaled to the ends; the ends themselves, usually greedy decoding and the wildest
    setting, only where there is nothing between. Where prompts tell facts, only settings that recall as many as the
    best of the edge are considered.
    """
    points = {
        i: (math.log(score.accuracy), score.distinct_2)
        for i, score in enumerate([greedy, *scores], start=-1)  # greedy decoding is -1
        if score.accuracy is not None
    }
    whole = efficient(points)
    edge = [i for i in whole if i >= 0]
    if not edge:
        return Tradeoff(edge=(), chosen=None)
    best = max(scores[i].recall or 0.0 for i in edge)
    faithful = any((scores[i].recall or 0.0) < best for i in edge)
    considered = [i for i in edge if (scores[i].recall or 0.0) >= best]
    between = [i for i in considered if i not in (whole[0], whole[-1])]
    gain = dict(zip(whole, heights([points[i] for i in whole]), strict=True))
    chosen = max(between or considered, key=lambda i: (round(gain[i], 9), -points[i][0]))
    return Tradeoff(edge=tuple(edge), chosen=chosen, faithful=faithful)


def efficient(points: dict[int, tuple[float, float]]) -> list[int]:
    """Keys of the (cost, gain) points that no other beats, by rising cost; of equal points, the first."""
    edge: list[int] = []
    best = -math.inf
    for key in sorted(points, key=lambda key: (points[key][0], -points[key][1])):
        if points[key][1] > best:
            edge.append(key)
            best = points[key][1]
    return edge


def heights(edge: Sequence[tuple[float, float]]) -> list[float]:
    """How far each (cost, gain) of an edge lies above the line between its ends, both scaled to 0 ... 1."""
    (low, bottom), (high, top) = edge[0], edge[-1]
    width, height = high - low, top - bottom
    if width <= 0 or height <= 0:
        return [0.0 for _ in edge]
    return [(gain - bottom) / height - (cost - low) / width for cost, gain in edge]
