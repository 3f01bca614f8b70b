"""Softmax attention over the last w positions, in blocks: linear time, and in terms that a linear part can join."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from yeoul.ops.exact_pairs import Kept
from yeoul.ops.fused import fused_attention, fuses


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here serves training too
def _band(window: int, device: torch.device) -> Tensor:
    """(w, 2w) bool: query i of a block sees the w keys that end with itself, which is key w + i of its two blocks."""
    i = torch.arange(window, device=device)[:, None]
    j = torch.arange(2 * window, device=device)[None]
    return (j > i) & (j <= i + window)


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """cap * tanh(scores / cap), any shape: keeps scores within (-cap, cap) (Gemma 2, section 2)."""
    return torch.tanh(scores / cap) * cap


class Terms(NamedTuple):
    """A part of an attention's sums, to which those of another part can be added: see `join_terms`.

    Attributes:
        numerator: (B, H, T, D), values times their weights, without the factor e^log_scale.
        denominator: (B, H, T, 1), the sum of these weights.
        log_scale: (B, H, T, 1), logarithm of the factor that was left out of both.
    """

    numerator: Tensor
    denominator: Tensor
    log_scale: Tensor


LEAST_FUSED = 128
"""Windows below have blocks so small that PyTorch's fused gradient is slower than ours."""
LEAST_DENOMINATOR = 1e-30
"""Features of the exponential kernel span e^-60 ... e^50, so that a usual epsilon would cut real sums."""


def join_terms(first: Terms, second: Terms, *, use_first: bool = True, use_second: bool = True) -> Tensor:
    """One normalisation for both parts: their scales are brought to the larger of the two. (B, H, T, D).

    Args:
        first: for instance a softmax window, from `window_terms` or `ring_terms`.
        second: for instance what a linear state gives.
        use_first: False leaves the part out; the scale stays.
        use_second: likewise.
    """
    common = torch.maximum(first.log_scale, second.log_scale)
    a = torch.exp(first.log_scale - common) * use_first
    b = torch.exp(second.log_scale - common) * use_second
    total = (a * first.denominator + b * second.denominator).clamp_min(LEAST_DENOMINATOR)
    return (a * first.numerator + b * second.numerator) / total


class Sinks(NamedTuple):
    """Attention sinks: the first s tokens of a text, which every later query of it sees (arXiv 2309.17453).

    Queries stand in blocks of w. Within its own block a query sees sinks as it sees all keys that are not after it;
    those before the block come from here, and so the keys of the block before do not count where they are sinks.

    Attributes:
        k: (B, G, n or 1, s, D), sinks of the text to which the first query of each of the n = ceil(T / w) blocks
            belongs, or the same for all blocks.
        v: (B, G, n or 1, s, D).
        column: (B or 1, n or 1, s) int64, where each stands, the first query at 0 and earlier calls below 0; not below
            the block's own columns, such as T, where there is none.
        is_sink: (B or 1, w + T) bool, which of the window's keys are sinks; at padding it says nothing.
    """

    k: Tensor
    v: Tensor
    column: Tensor
    is_sink: Tensor


def first_columns(seq_ids: Tensor) -> Tensor:
    """Column at which each column's sequence begins, (B, T) int64; a run of equal ids is a sequence."""
    begins = F.pad(seq_ids[:, 1:] != seq_ids[:, :-1], (1, 0), value=True)
    columns = torch.arange(seq_ids.shape[1], device=seq_ids.device)
    return torch.where(begins, columns, 0).cummax(dim=1).values


def sinks_of(k: Tensor, v: Tensor, window: int, count: int, seq_ids: Tensor | None = None) -> Sinks:
    """The first `count` tokens of every sequence as sinks, for whole sequences that begin in this call.

    Args:
        k: (B, G, T, D), of the queries, without those of the window before the first.
        v: (B, G, T, D).
        window: w.
        count: s.
        seq_ids: (B, T) int64, packed sequences, negative for padding; None is one sequence a row without padding.
    """
    (B, G, T, _), device = k.shape, k.device
    if seq_ids is None:
        columns = torch.arange(T, device=device)
        is_sink = F.pad(columns < count, (window, 0))[None]
        return Sinks(k[:, :, None, :count], v[:, :, None, :count], columns[None, None, :count], is_sink)
    first = first_columns(seq_ids)
    is_sink = torch.arange(T, device=device) - first < count
    column = first[:, ::window, None] + torch.arange(count, device=device)  # (B, n, s)
    index = column.clamp_max(T - 1).view(B, 1, -1, 1)
    at = lambda x: x.gather(2, index.expand(B, G, -1, x.shape[3])).unflatten(2, (-1, count))  # noqa: E731
    # a column that belongs to the next text is not before the block, so that nobody sees it
    column = column.masked_fill((seq_ids[:, ::window] < 0)[..., None], T)
    return Sinks(at(k), at(v), column, F.pad(is_sink, (window, 0)))


def window_terms(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scale: float,
    *,
    valid: Tensor | None = None,
    seq_ids: Tensor | None = None,
    key_seq_ids: Tensor | None = None,
    softcap: float | None = None,
    sinks: Sinks | None = None,
    kept: Kept | None = None,
) -> Terms:
    """The sums of softmax attention over the last `window` keys; the attention itself is `numerator / denominator`.

    Args:
        q: (B, H, T, D).
        k: (B, G, w + T, D), the w keys before the first query, then those of the queries.
        v: (B, G, w + T, E), of any width.
        window: w, how many keys a query sees, itself included.
        scale: factor of the scores.
        valid: (B or 1, w + T) bool, keys that exist; None means all.
        seq_ids: (B, T) int64, packed sequences; a query sees only keys of its own.
        key_seq_ids: (B, w + T), with `seq_ids`.
        softcap: of the scores, see `soft_cap`.
        sinks: tokens that are seen beside the window; None means none.
        kept: keys that have left the window and are seen all the same; None means none.

    Returns:
        In fp32 (fp64 for fp64 inputs); the scale is that of a query's largest score, or of the sum over all of them,
        where that is what the arithmetic gives. A query without any key has numerator, denominator and log_scale 0.
    """
    blocks = _in_blocks(q, k, v, window, valid, seq_ids, key_seq_ids, sinks, kept)
    if softcap is None and fuses(blocks.q, blocks.k, blocks.v):
        out, log_sum = fused_attention(blocks.q, blocks.k, blocks.v, blocks.allowed, scale=scale)
        terms = out.float(), blocks.allowed.any(-1, keepdim=True).float().expand_as(log_sum), log_sum
    else:
        terms = _terms(blocks, scale, softcap)
    return Terms(*(_in_order(x, q.shape) for x in terms))


class _Blocks(NamedTuple):
    """Queries in blocks of m, and what each block may see; a block of one key-value head is a row of a batch, N.

    Attributes:
        q: (N, R, m, D).
        k: (N, 1, S, D).
        v: (N, 1, S, E).
        allowed: (N or 1, 1, m, S) bool.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    allowed: Tensor


def _in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: int,
    valid: Tensor | None,
    seq_ids: Tensor | None,
    key_seq_ids: Tensor | None,
    sinks: Sinks | None,
    kept: Kept | None,
) -> _Blocks:
    (B, H, T, D), G = q.shape, k.shape[1]
    R, n = H // G, -(-T // w)
    m = T if n == 1 else w  # queries of a block: a few that go on from a cache are not made a whole one
    span, pad = w + m, n * m - T
    q = F.pad(q, (0, 0, 0, pad)).view(B, G, R, n, m, D).transpose(2, 3)  # (B, G, n, R, m, D)
    keys, values = (F.pad(x, (0, 0, 0, pad)).unfold(2, span, m).transpose(-1, -2) for x in (k, v))  # (B, G, n, span, D)
    allowed = _band(w, q.device)[:m, :span].view(1, 1, 1, 1, m, span)
    if valid is not None:
        blocks = F.pad(valid, (0, pad)).unfold(1, span, m)
        allowed = allowed & blocks[:, None, :, None, None]  # (B, 1, n, 1, m, span)
    if seq_ids is not None and key_seq_ids is not None:
        mine = F.pad(seq_ids, (0, pad), value=-1).view(B, 1, n, 1, m, 1)
        theirs = F.pad(key_seq_ids, (0, pad), value=-2).unfold(1, span, m).view(B, 1, n, 1, 1, span)
        allowed = allowed & (mine == theirs)
    if sinks is not None:
        allowed = _with_sinks(allowed, sinks, seq_ids, pad)
        keys = torch.cat((keys, sinks.k.expand(-1, -1, n, -1, -1)), dim=-2)
        values = torch.cat((values, sinks.v.expand(-1, -1, n, -1, -1)), dim=-2)
    if kept is not None:
        allowed = _with_kept(allowed, kept)
        keys, values = torch.cat((keys, kept.k), dim=-2), torch.cat((values, kept.v), dim=-2)
    S = keys.shape[-2]  # span, the sinks, and what is kept
    rows = B * G * n if allowed.shape[:3].numel() != 1 else 1
    allowed = allowed.expand(B, G, n, 1, m, S) if rows != 1 else allowed
    one = lambda x: x.reshape(B * G * n, 1, S, x.shape[-1])  # noqa: E731
    return _Blocks(q.reshape(B * G * n, R, m, D), one(keys), one(values), allowed.reshape(rows, 1, m, S))


def _in_order(x: Tensor, like: tuple[int, ...]) -> Tensor:
    """Of blocks (N, R, m, F) to the (B, H, T, F) of the queries' shape (B, H, T, D)."""
    (B, H, T, _), (R, m) = like, x.shape[1:3]
    n, F = -(-T // m), x.shape[3]
    return x.reshape(B, H // R, n, R, m, F).transpose(2, 3).reshape(B, H, n * m, F)[:, :, :T]


def _terms(blocks: _Blocks, scale: float, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Numerator, denominator and log_scale of blocks, each (N, R, m, ...)."""
    (N, R, m, _), S = blocks.q.shape, blocks.k.shape[2]
    wide = torch.promote_types(blocks.q.dtype, torch.float32)
    scores = torch.bmm(blocks.q.flatten(1, 2), blocks.k[:, 0].transpose(1, 2)).to(wide).view(N, R, m, S) * scale
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    scores = scores.masked_fill(~blocks.allowed, -torch.inf)
    shift = scores.detach().amax(-1, keepdim=True)
    shift = shift.masked_fill(shift == -torch.inf, 0)
    weights = torch.exp(scores - shift)
    numerator = torch.bmm(weights.view(N, R * m, S).to(blocks.v.dtype), blocks.v[:, 0]).to(wide)
    return numerator.view(N, R, m, blocks.v.shape[-1]), weights.sum(-1, keepdim=True), shift


def ring_terms(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, *, scale: float, softcap: float | None = None
) -> Terms:
    """The sums of softmax attention of one token's queries over all keys that it sees.

    Args:
        q: (B, H, 1, D).
        k: (B, G, S, D), in any order.
        v: (B, G, S, D).
        valid: (B, S) bool, keys that are tokens; None means all.
        scale: factor of the scores.
        softcap: of the scores, see `soft_cap`.

    Returns:
        Of T = 1, as `window_terms`.
    """
    (B, H, _, D), G = q.shape, k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q.view(B, G, H // G, D), k.transpose(-1, -2)).to(wide) * scale  # (B, G, R, S)
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
    shift = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - shift)
    terms = torch.matmul(weights.to(v.dtype), v).to(wide), weights.sum(-1, keepdim=True), shift
    return Terms(*(x.flatten(1, 2)[:, :, None] for x in terms))


def _with_sinks(allowed: Tensor, sinks: Sinks, seq_ids: Tensor | None, pad: int) -> Tensor:
    """What a query may see of the window's keys, (B or 1, 1, n or 1, 1, m, w + m), with columns for the sinks: + s."""
    m, span = allowed.shape[4:]
    blocks = F.pad(sinks.is_sink, (0, pad)).unfold(1, span, m)  # (B or 1, n, w + m)
    n, this = blocks.shape[1], torch.arange(span, device=blocks.device) >= span - m
    allowed = allowed & (this | ~blocks)[:, None, :, None, None]
    before = sinks.column < torch.arange(n, device=blocks.device)[:, None] * m  # (B or 1, n, s)
    seen = before[:, None, :, None, None]
    if seq_ids is not None:
        mine = F.pad(seq_ids, (0, pad), value=-1).view(-1, 1, n, 1, m, 1)
        seen = seen & (mine == mine[..., :1, :])
    rows = max(allowed.shape[0], seen.shape[0])
    parts = (part.expand(rows, 1, n, 1, m, -1) for part in (allowed, seen))
    return torch.cat(tuple(parts), dim=-1)


def _with_kept(allowed: Tensor, kept: Kept) -> Tensor:
    """What a query may see, (B or 1, 1, n or 1, 1, m, S), with what it sees of the keys that have left: + L."""
    (B, G, n, w, _), m, room = kept.seen.shape, allowed.shape[4], kept.k.shape[3]
    allowed, seen = allowed.expand(B, G, n, 1, m, -1), kept.seen[:, :, :, None, :m]
    leavers = allowed[..., :w] | seen[..., room:]
    return torch.cat((leavers, allowed[..., w:], seen[..., :room]), dim=-1)


def sliding_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scale: float,
    *,
    valid: Tensor | None = None,
    seq_ids: Tensor | None = None,
    key_seq_ids: Tensor | None = None,
    softcap: float | None = None,
    sinks: Sinks | None = None,
) -> Tensor:
    """Softmax attention over the last `window` keys, O(T w); arguments as `window_terms`. Returns (B, H, T, D)."""
    blocks = _in_blocks(q, k, v, window, valid, seq_ids, key_seq_ids, sinks, None)
    fused = softcap is None and fuses(blocks.q, blocks.k, blocks.v, gradient=window >= LEAST_FUSED)
    if fused:
        k, v = (x.expand(-1, blocks.q.shape[1], -1, -1) for x in (blocks.k, blocks.v))
        out = F.scaled_dot_product_attention(blocks.q, k, v, blocks.allowed, scale=scale)
    else:
        numerator, denominator, _ = _terms(blocks, scale, softcap)
        out = (numerator / denominator.clamp_min(LEAST_DENOMINATOR)).to(q.dtype)
    return _in_order(out, q.shape)
