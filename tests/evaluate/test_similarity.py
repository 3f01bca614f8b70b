"""Rank correlation against SciPy and by hand; nearest texts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from yeoul.evaluate.similarity import cosines, nearest, pearson, ranks, spearman


def test_by_hand() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    # ranks 1 2.5 2.5 4 and 4 1 2 3: covariance -1.5, lengths sqrt(4.5) and sqrt(5)
    assert spearman(np.array([1, 2, 2, 9]), np.array([8, 1, 2, 3])) == pytest.approx(-1.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman(np.ones(3), np.arange(3)))
    assert cosines(np.array([[3.0, 0], [0, 0]]), np.array([[1.0, 1], [1, 1]])) == pytest.approx([math.sqrt(0.5), 0])


@pytest.mark.parametrize("seed", range(3))
def test_correlations_equal_those_of_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(seed)
    first = draw.normal(size=300).round(1)  # with ties
    second = (first + draw.normal(size=300)).round()
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second)[0], abs=1e-12)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second)[0], abs=1e-12)


def test_the_nearest_come_first() -> None:
    vectors = np.array([[0.0, 2], [1, 1], [-1, 0], [5, 5]])
    rows, scores = nearest(np.array([[1.0, 0], [0, -1]]), vectors, 3)
    assert rows.tolist() == [[1, 3, 0], [2, 1, 3]]  # of equal ones the earlier
    assert scores[0] == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0])
    assert nearest(vectors[:1], vectors, 99)[0].shape == (1, 4)
