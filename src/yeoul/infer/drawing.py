"""The next token of each of many requests: settings, grammars and reports of their own, drawn together where alike.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yeoul.infer.in_flight import InFlight
from yeoul.infer.requests import TokenLogprob, allowed_ids
from yeoul.infer.sample import sample

NOT_FINITE = "the model computes numbers that are not finite (NaN or infinity); load it with --dtype float32"
PIECE = 64
"""Positions of a prompt whose logits are computed at a time."""


def draw(requests: Sequence[InFlight], logits: Tensor, vocab_size: int) -> list[TokenLogprob | Exception]:
    """One token for each request, or why there is none; each as it would be drawn alone.

    Args:
        requests: B.
        logits: (B, V) fp32, which may be overwritten.
        vocab_size: only ids below it are drawn.
    """
    found: list[TokenLogprob | Exception | None] = [None] * len(requests)
    if not bool(torch.isfinite(logits.sum())):
        for row, finite in enumerate(torch.isfinite(logits.sum(-1)).tolist()):
            if not finite:
                found[row] = ValueError(NOT_FINITE)
                logits[row] = 0
    asked = [row for row, one in enumerate(requests) if one.request.logprobs is not None]
    raw = _normalised(logits[torch.tensor(asked)], vocab_size) if asked else None  # before a grammar changes them
    logits = logits[:, :vocab_size]
    for row, one in enumerate(requests):
        if one.matcher is not None and found[row] is None:
            try:
                logits[row] = _held_to(logits[row], one)
            except Exception as error:  # of the grammar, which is not ours
                found[row] = error
    tokens = _tokens(requests, logits)
    if raw is not None:
        reports = _reports(raw, [tokens[row] for row in asked], [requests[row].request.logprobs or 0 for row in asked])
        for row, report in zip(asked, reports, strict=True):
            found[row] = found[row] or report
    return [found[row] or TokenLogprob(id=token) for row, token in enumerate(tokens)]


def prompt_logprobs(logits: Tensor, tokens: Tensor, most: int, vocab_size: int) -> list[TokenLogprob]:
    """What (T,) tokens had as log-probabilities under the logits (T, V) fp32 before each, and the likeliest ones."""
    return _reports(_normalised(logits, vocab_size), tokens.tolist(), [most] * len(tokens))


def _tokens(requests: Sequence[InFlight], logits: Tensor) -> list[int]:
    """The ids drawn from (B, V) logits."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, one in enumerate(requests):
        groups.setdefault(one.shape, []).append(row)
    if len(groups) == 1:
        return _alike(requests, logits)
    tokens = [0] * len(requests)
    for rows in groups.values():
        drawn = _alike([requests[row] for row in rows], logits[torch.tensor(rows, device=logits.device)])
        for row, token in zip(rows, drawn, strict=True):
            tokens[row] = token
    return tokens


def _alike(requests: Sequence[InFlight], logits: Tensor) -> list[int]:
    """The same of requests with the same settings."""
    seen = [one.seen for one in requests if one.seen is not None]
    counts = [one.counts for one in requests if one.counts is not None]
    drawn = sample(
        logits, requests[0].params, [one.generator for one in requests],
        torch.stack(seen) if seen else None, torch.stack(counts) if counts else None,
    )  # fmt: skip
    found: list[int] = drawn.tolist()
    return found


def _held_to(logits: Tensor, one: InFlight) -> Tensor:
    """Logits (V,) of which only those are left that a grammar allows."""
    assert one.matcher is not None
    allowed = torch.from_numpy(allowed_ids(one.matcher.mask(), len(logits)))
    if not bool(allowed.any()):
        raise ValueError("the grammar allows no token here")
    return logits.masked_fill(~allowed.to(logits.device), -torch.inf)


def _normalised(logits: Tensor, vocab_size: int) -> Tensor:
    """Log-probabilities (B, vocab_size) under all the logits (B, V)."""
    return logits[:, :vocab_size] - logits.logsumexp(-1, keepdim=True)


def _reports(logprobs: Tensor, tokens: Sequence[int], most: Sequence[int]) -> list[TokenLogprob]:
    """Of each row of (B, V) its token, and so many of the likeliest."""
    index = torch.tensor(tokens, device=logprobs.device)
    beyond = index >= logprobs.shape[1]  # ids that only the model's table has
    own = logprobs.gather(1, index.masked_fill(beyond, 0)[:, None])[:, 0].masked_fill(beyond, -torch.inf).tolist()
    values, ids = logprobs.topk(min(max(most), logprobs.shape[1]), dim=-1)
    rows = zip(tokens, own, most, ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(id=token, logprob=value, top=tuple(zip(top_ids[:k], top_values[:k], strict=True)))
        for token, value, k, top_ids, top_values in rows
    ]
