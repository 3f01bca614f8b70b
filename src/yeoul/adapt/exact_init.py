"""Which keys are worth keeping, from what a teacher's later queries paid them: a ridge regression, in closed form.

The target of a key is the logarithm of the most attention that any query beyond the window pays it, over the query
heads that read it (KVzap's, arXiv 2601.07891, without its norms): what one later query needs
badly is worth a place, not what many need a little, which a state can hold as well. The score has to be known when the
key leaves the window, so that it is regressed on the layer's input, the key and the value. How much less a key is worth
the older it is, that cannot say, because the most attention may be far in its past: several rates are tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from yeoul.model.attention import AttentionContext
from yeoul.model.cache import SCORE
from yeoul.model.linear_attention import LinearAttention
from yeoul.ops.exact_pairs import select_pairs
from yeoul.ops.window import soft_cap

RIDGE = 0.01
"""Penalty of the squared coefficients of standardised inputs, times the number of keys."""
LEAST_ATTENTION = 1e-9
LEAST_QUERIES = 64
"""Queries beyond the window that a key must have had for what they paid it to count."""
RECENCY = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""What a key may lose of its score, which is a logarithm of attention, while a text of the sample goes by."""
LONGER = 2
"""A choice among these must not harm with the value so many places further either, four times as much: it is what keys
lose in texts four times as long."""
NEARLY = 1.01
"""An error that is at most so many times another is as good: without need, a key is worth the same however old."""
END = 8
"""Errors are taken over the last of so many parts of a text: there most is far, and some texts are asked for what their
beginning said."""
NEVER = 2**30
MOST_SCORES = 4 * 1024**2
"""Scores of a head that are looked at together."""


class LayerInputs(NamedTuple):
    """What a softmax layer is given and gives.

    Attributes:
        x: (B, T, hidden), what enters the layer.
        q: (B, H, T, D), rotated and normalised.
        k: (B, G, T, D).
        v: (B, G, T, D).
        given: (B, H, T, D), what its attention gives.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    given: Tensor

    def chunks(self) -> Iterator[LayerInputs]:
        """A few texts at a time, so that `MOST_SCORES` bounds the scores of a head, but at least one."""
        rows = max(1, MOST_SCORES // self.x.shape[1] ** 2)
        for parts in zip(*(tensor.split(rows) for tensor in self), strict=True):
            yield LayerInputs(*parts)


def far_mask(length: int, window: int, sinks: int, device: torch.device) -> Tensor:
    """(T, T) bool: key j has left the window of query i and is no sink."""
    place = torch.arange(length, device=device)
    return (place[:, None] - place[None] >= window) & (place[None] >= sinks)


def scores_of(q: Tensor, k: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """Scores of queries (B, R, N, D) on the keys (B, T, D) of their head, (B, R, N, T) fp32."""
    scores = torch.matmul(q.float(), k.float()[:, None].transpose(-1, -2)) * scale
    return scores if softcap is None else soft_cap(scores, softcap)


@torch.no_grad()
def fit_scores(layer: LinearAttention, inputs: LayerInputs) -> list[float]:
    """Sets the layer's `exact_score` from a teacher's attention on whole texts, in O(T^2).

    Returns:
        The correlation of fit and target of each key-value head, on the keys that it was fitted on; NaN and no change
        where the texts are too short to have any key that a query beyond the window could see.
    """
    assert layer.exact_score is not None
    (_, H, T, _), G = inputs.q.shape, inputs.k.shape[1]
    last = T - layer.window - min(LEAST_QUERIES, max(1, (T - layer.window) // 4))
    if last <= layer.sinks + 1:
        return [math.nan] * G
    keys, far = slice(layer.sinks, last), far_mask(T, layer.window, layer.sinks, inputs.k.device)
    later = torch.ones(T, T, dtype=torch.bool, device=inputs.k.device).triu(1)
    found = []
    for g in range(G):
        wanted, given = [], []
        for texts in inputs.chunks():
            k, v = texts.k[:, g], texts.v[:, g]
            scores = scores_of(texts.q[:, g * (H // G) : (g + 1) * (H // G)], k, layer.scale, layer.softcap)
            paid = scores.masked_fill_(later, -torch.inf).softmax(-1).masked_fill_(~far, 0).amax((1, 2))  # (n, T)
            wanted.append(paid[:, keys].clamp_min(LEAST_ATTENTION).log().flatten())
            given.append(torch.cat((texts.x, k, v), -1)[:, keys].flatten(0, 1))
        weight, correlation = _ridge(torch.cat(given).double(), torch.cat(wanted).double())
        layer.exact_score.weight[g] = weight.to(layer.exact_score.weight)
        found.append(correlation)
    return found


@torch.no_grad()
def fit_recency(layer: LinearAttention, inputs: LayerInputs) -> bool:
    """Sets the recency of a layer that is fitted but for it: the smallest that gives nearly the least error, of those
    that would make no text worse, not even one of four times the length.

    On most texts a recency helps, and it takes from those that are asked for what their beginning said: a mean over
    all of them would let recall go. Each text counts alike, at its end. The state was fitted for the keys that it
    holds without recency: where this is True, it should be once more.

    Returns:
        whether any key-value head has one now.
    """
    assert layer.exact_score is not None
    recency, T = layer.exact_score.recency, inputs.k.shape[2]
    recency.zero_()
    if T <= layer.window + layer.sinks + layer.exact:
        return False
    errors = []
    for candidate in RECENCY:
        recency.fill_(candidate / T)
        errors.append(_errors(layer, inputs))
    ratios = torch.stack([error / errors[0].clamp_min(1e-30) for error in errors])  # (candidates, B, G)
    harms = (ratios.amax(1) > NEARLY).cummax(0).values  # (candidates, G)
    harms = torch.cat((harms[LONGER:], torch.ones_like(harms[:LONGER])))
    harms[0] = False
    means = ratios.mean(1).masked_fill(harms, torch.inf)
    enough = (means <= NEARLY * means.amin(0)).int().argmax(0)  # the first
    recency.copy_(torch.tensor(RECENCY).to(recency)[enough.to(recency.device)] / T)
    return bool(recency.any())


def _errors(layer: LinearAttention, inputs: LayerInputs) -> Tensor:
    """(B, G) squared errors of what the layer gives at the end of each text, of each key-value head."""
    found, first = [], inputs.x.shape[1] - max(1, inputs.x.shape[1] // END)
    for texts in inputs.chunks():
        gates = layer.gates(texts.x, AttentionContext(), texts.k, texts.v)
        gap = (layer.attend(texts.q, texts.k, texts.v, gates) - texts.given).float()
        found.append(gap[:, :, first:].unflatten(1, (layer.num_kv_heads, -1)).square().sum((2, 3, 4)))
    return torch.cat(found)


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Coefficients (inputs,) of (N, inputs) for (N,), without the constant, and the fit's correlation with it."""
    mean, spread = x.mean(0), x.std(0).clamp_min(1e-6)
    z, y = (x - mean) / spread, y - y.mean()
    penalty = RIDGE * len(z) * torch.eye(z.shape[1]).to(z)
    weight = torch.linalg.solve(z.T @ z + penalty, z.T @ y)
    correlation = float(torch.corrcoef(torch.stack((z @ weight, y)))[0, 1])
    return weight / spread, correlation


@torch.no_grad()
def entry_times(layer: LinearAttention, inputs: LayerInputs) -> Tensor:
    """The query with which each key enters the state, (B, G, T) int64; `NEVER` for those that do not."""
    (B, G, T, _), w, device = inputs.k.shape, layer.window, inputs.k.device
    entered = torch.full((B, G, T), NEVER, device=device)
    leaving = torch.arange(T, device=device) >= w + layer.sinks
    if not layer.exact:
        entered[:, :, : max(0, T - w)] = torch.arange(w, T, device=device)
        entered[:, :, : layer.sinks] = NEVER
        return entered
    score = layer.gates(inputs.x, AttentionContext(), inputs.k, inputs.v)[SCORE]
    scores = torch.nn.functional.pad(score, (w, 0))[:, :, :T]
    chosen = select_pairs(scores, leaving[None], layer.exact, w)
    times = torch.where(chosen.written, torch.arange(T, device=device), NEVER)
    # column t of the call is key t - w
    place = (chosen.evicted - w).clamp_min(0)
    return entered.scatter_reduce(2, place, times, "amin")
