"""How well vectors of texts say what people say of their likeness, and which texts are nearest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row of one with the same row of the other, (N,) float64; 0 where one is a zero vector.

    Args:
        first, second: (N, d).
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), lengths, out=np.zeros(len(a)), where=lengths > 0)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, (N,) float64; equal values share the mean of theirs."""
    _, group, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Linear correlation; nan where one of them is constant."""
    a, b = (np.asarray(values, dtype=np.float64) - np.mean(values) for values in (first, second))
    lengths = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / lengths) if lengths > 0 else float("nan")


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation with ties (Spearman 1904): Pearson's of the ranks; nan where one of them is constant."""
    return pearson(ranks(first), ranks(second))


def nearest(
    queries: np.ndarray, vectors: np.ndarray, top: int, similarity: str = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `vectors` that are most alike, the most alike first; of equal ones the earlier row.

    Args:
        queries: (Q, d); vectors: (N, d).
        top: how many, at most N.
        similarity: "cosine"; "dot", the product; "euclidean" or "manhattan", the distance with a minus sign.

    Returns:
        row numbers (Q, top) and likenesses (Q, top).
    """
    top = min(top, len(vectors))
    scores = _LIKENESS[similarity](*(np.asarray(values, dtype=np.float32) for values in (queries, vectors)))  # (Q, N)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return order, np.take_along_axis(scores, order, axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    values = np.asarray(vectors, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _distances(order: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Distances of each query from each vector, negative, a query at a time."""
    return lambda queries, vectors: np.stack([-np.linalg.norm(vectors - query, order, axis=1) for query in queries])


_LIKENESS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda queries, vectors: _unit(queries) @ _unit(vectors).T,
    "dot": lambda queries, vectors: queries @ vectors.T,
    "euclidean": _distances(2),
    "manhattan": _distances(1),
}
