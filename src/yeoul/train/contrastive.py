"""Losses of vectors of texts that belong together.

Shapes: N examples, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(first: Tensor, second: Tensor, negative: Tensor | None = None, *, temperature: float = 0.05) -> Tensor:
    """Each text is to find its partner among those of the batch (van den Oord and others 2018; SimCSE, section 4).

    In both directions: the first texts look among the second ones (and the negatives), the second among the first.

    Args:
        first, second: (N, d), row n of one belongs to row n of the other.
        negative: (N, d), further texts that belong to none of the first.
        temperature: divides the cosines; the smaller, the more the nearest neighbours weigh.

    Returns:
        the mean over examples, a scalar.
    """
    first, second = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    partner = torch.arange(len(first), device=first.device)
    logits = first @ second.T / temperature  # (N, N)
    forward = logits
    if negative is not None:
        forward = torch.cat((logits, first @ F.normalize(negative.float(), dim=-1).T / temperature), 1)
    return (F.cross_entropy(forward, partner) + F.cross_entropy(logits.T, partner)) / 2


def cosent(first: Tensor, second: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """The more similar of two pairs is to have the larger cosine: log(1 + sum exp((cos_j - cos_i) / temperature)).

    The sum is over the pairs i, j of the batch with scores_i > scores_j (CoSENT, Su 2022). Only the order of the scores
    matters, as for the rank correlation by which such vectors are evaluated.

    Args:
        first, second: (N, d).
        scores: (N,), on any scale.
        temperature: of the cosines.

    Returns:
        a scalar.
    """
    cosines = F.cosine_similarity(first.float(), second.float(), dim=-1) / temperature  # (N,)
    wrong = cosines[None, :] - cosines[:, None]  # (i, j): cos_j - cos_i
    wrong = wrong[scores[:, None] > scores[None, :]]
    return torch.cat((wrong.new_zeros(1), wrong)).logsumexp(0)


def cosine_regression(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Mean squared difference of the cosines and the scores (Sentence-BERT, section 3).

    Args:
        first, second: (N, d).
        scores: (N,), from 0 (nothing in common) to 1.

    Returns:
        a scalar.
    """
    return F.mse_loss(F.cosine_similarity(first.float(), second.float(), dim=-1), scores.float())


def pearson(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """1 - Pearson's correlation of the cosines and the scores of the batch.

    Fewer than three pairs, and pairs that all have one score, carry no information: 1, with a gradient of zero.

    Args:
        first, second: (N, d).
        scores: (N,), on any scale.

    Returns:
        a scalar, from 0 to 2.
    """
    cosines = F.cosine_similarity(first.float(), second.float(), dim=-1)  # (N,)
    wanted = scores.float() - scores.float().mean()
    if len(scores) < 3 or not bool(wanted.any()):
        return 1 + 0 * cosines.sum()
    given = cosines - cosines.mean()
    return 1 - (given * wanted).sum() / (given.norm() * wanted.norm()).clamp_min(1e-6)
