"""The gated delta rule by chunks of C positions, with its gradient written out. See `yeoul.ops.delta_rule`.

X are the rows of a chunk that read the state, one below the other: its keys K and the queries Q of all heads that
share it. L is the decay from one position of the chunk to a later one; r, w and z are what decay leaves of the old
state for a row, of a row for the new state, and of the old state for the new one. With T = (I + A)^-1, the inverse of
a unit lower triangle,

    U = T b (V - r K S)       O = (Q K^T * L) U + r Q S       S <- z S + K^T w U

T stands before D columns, not before the M of K: the published form (Yang and others 2024, equations 10 and 11) solves
for T b K first, which saves a product in the loop where features are few. Here they are many and values few. The
inverse loses nothing against substitution, because it has no entry above 1. Backward, from dO and the gradient dS of
the state after the chunk,

    dU = (Q K^T * L)^T dO + w K dS          dR = T^T dU          Y = [-b r dR ; r dO]
    dS <- z dS + X^T Y                      dV = b dR            G = [-b dR U^T below the diagonal ; dO U^T] * L
    dX = G K + Y S^T                        dK += G^T X + w U dS^T

The gradient of the log-decay is summed from all that it weighs (`yeoul.ops.decay`). Kept for the gradient are the rows
X, a state for each chunk, and terms of C or D columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from yeoul.ops.decay import decay_gradient
from yeoul.ops.first_order import first_order
from yeoul.ops.inputs import Inputs, sum_dtype


def chunked(x: Inputs, beta: Tensor, state: Tensor, c: int, products: torch.dtype) -> tuple[Tensor, Tensor]:
    """The chunked form of `yeoul.ops.delta_rule.delta_rule`, for T > 0.

    Args:
        x: the inputs.
        beta: (B, G, T), 0 at padding.
        state: (B, G, M, D), what came before.
        c: positions of a chunk.
        products: dtype of the factors of products over features or with the state: that of the arithmetic or a
            narrower one. Everything else, the state itself included, is in the dtype of the arithmetic.

    Returns:
        Output (B, G, R, T, D), anything at padding, and the final state, both in the dtype of the arithmetic.
    """
    options = (c, x.dtype, products)
    out, last = _Chunked.apply(x.q, x.k, x.v, beta, x.log_decay, state, x.segment, x.valid, options)
    return out, last


# How many features the rows of a block have together: what keeps a block's arrays in the caches of a CPU; elsewhere
# starting a kernel costs more than reading memory.
NUMBERS_ON_CPU = 1 << 22
NUMBERS_ELSEWHERE = 1 << 28


class _Weights(NamedTuple):
    """Decay, and 0 where a border between sequences is crossed. N and P = B G are 1 where nothing depends on them."""

    inside: Tensor  # (N, P, C, C): from position j to position i >= j of a chunk
    read: Tensor  # (N, P, C, 1): from the state before the chunk to position i
    write: Tensor  # (N, P, C, 1): from position j to the state after the chunk
    keep: Tensor  # (N, P, 1, 1): from the state before to the state after the chunk


class _Block(NamedTuple):
    """What the gradient needs of a block of N chunks; S is (1 + R) C, the rows of a chunk that read the state."""

    rows: Tensor  # (N, P, S, M): keys, then queries
    values: Tensor  # (N, P, C, D)
    strength: Tensor  # (N, P, C, 1)
    scores: Tensor  # (N, P, S, C): X K^T * L
    inverse: Tensor  # (N, P, C, C): T
    states: Tensor  # (N, P, D, M): before each chunk, transposed
    seen: Tensor  # (N, P, S, D): X S
    u: Tensor  # (N, P, C, D)
    inside: Tensor  # the four fields of `_Weights`
    read: Tensor
    write: Tensor
    keep: Tensor

    @property
    def weights(self) -> _Weights:
        """The last four."""
        return _Weights(*self[-4:])


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        state: Tensor,
        segment: Tensor | None,
        valid: Tensor | None,
        options: tuple[int, torch.dtype, torch.dtype],
    ) -> tuple[Tensor, Tensor]:
        c, dtype, products = options
        (b, g, r, t, m), d = q.shape, v.shape[-1]
        blocks, keep = [], any(ctx.needs_input_grad)
        out = torch.empty(b, g, r, t, d, dtype=dtype, device=v.device)
        s = torch.empty(b * g, d, m, dtype=dtype, device=v.device).copy_(state.flatten(0, 1).mT)
        for part in _parts(q, c):
            weights = _weights(log_decay, segment, part, (b, g, t, c), v.device, dtype)
            block = _prepared(q[..., part, :], k[..., part, :], v[..., part, :], beta[..., part],
                              None if valid is None else valid[:, part], weights, options)  # fmt: skip
            for i in range(len(block.u)):
                before = block.states[i].copy_(s)
                seen, at = block.seen[i], _Weights(*(_at(weight, i) for weight in weights))
                seen.copy_(torch.bmm(block.rows[i], before.mT))
                right = torch.addcmul(block.values[i], at.read, seen[:, :c], value=-1).mul_(block.strength[i])
                torch.bmm(block.inverse[i], right, out=block.u[i])
                written = (at.write * block.u[i]).to(products)
                _add_product(s.mul_(at.keep), written.mT, block.rows[i, :, :c])
            rows = _batched(block.scores[:, :, c:], block.u).unflatten(2, (r, c))
            rows.addcmul_(weights.read[:, :, None], block.seen[:, :, c:].unflatten(2, (r, c)))
            _put(rows, out[..., part, :])
            if keep:
                blocks.append(block)
        if keep:
            ctx.options, ctx.sizes = options, (b, g, r, t)
            ctx.given = [None if x is None else (x.dtype, x.shape) for x in (q, k, v, beta, log_decay, state)]
            ctx.save_for_backward(*(x for block in blocks for x in block))
        return out, s.mT.contiguous().unflatten(0, (b, g))

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(d_out.device.type, enabled=False):
            return _gradients(ctx, d_out, d_last)


def _parts(q: Tensor, c: int) -> list[slice]:
    """Positions of one block after another."""
    b, g, r, t, m = q.shape
    numbers = NUMBERS_ON_CPU if q.device.type == "cpu" else NUMBERS_ELSEWHERE
    size = c * max(1, numbers // max(1, b * g * (1 + r) * c * m))
    return [slice(start, min(start + size, t)) for start in range(0, t, size)]


def _prepared(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, valid: Tensor | None, weights: _Weights,
    options: tuple[int, torch.dtype, torch.dtype],
) -> _Block:  # fmt: skip
    """A block of positions, with everything that does not depend on the state."""
    c, dtype, products = options
    (b, g, r, t, m), d = q.shape, v.shape[-1]
    n, p = -(-t // c), b * g
    rows = torch.empty(n, p, 1 + r, c, m, dtype=products, device=q.device)
    _cut(k[:, :, None], c, valid, rows[:, :, :1])
    _cut(q, c, valid, rows[:, :, 1:])
    rows = rows.flatten(2, 3)
    values = _cut(v[:, :, None], c, valid, _like(v, n, p, 1, c, d, dtype=dtype)).squeeze(2)
    strength = _cut(beta[:, :, None, :, None], c, None, _like(v, n, p, 1, c, 1, dtype=dtype)).squeeze(2)
    scores = _batched(rows, rows[:, :, :c].mT).to(dtype)
    scores.unflatten(2, (1 + r, c)).mul_(weights.inside[:, :, None])
    unit = torch.eye(c, dtype=dtype, device=v.device).expand(n, p, c, c)
    inverse = torch.linalg.solve_triangular(strength * scores[:, :, :c], unit, upper=False, unitriangular=True)
    states, seen = _like(rows, n, p, d, m), _like(values, n, p, (1 + r) * c, d)
    return _Block(rows, values, strength, scores, inverse, states, seen, torch.empty_like(values), *weights)


def _gradients(ctx: Any, d_out: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
    c, dtype, _ = ctx.options
    b, g, r, t = ctx.sizes
    d_q, d_k, d_v, d_beta = (torch.empty(x[1], dtype=x[0], device=d_out.device) for x in ctx.given[:4])
    d_decay = torch.empty(b, g, t, dtype=dtype, device=d_out.device) if ctx.needs_input_grad[4] else None
    d_s = torch.empty_like(d_last.flatten(0, 1).mT, dtype=dtype, memory_format=torch.contiguous_format)
    d_s.copy_(d_last.flatten(0, 1).mT)
    size = len(_Block._fields)
    saved = ctx.saved_tensors  # unpacked once: gradient checkpointing refuses a second time
    blocks = [_Block(*saved[i : i + size]) for i in range(0, len(saved), size)]
    end = t
    for block in reversed(blocks):
        n, p, _, d = block.u.shape
        part = slice((end - 1) // c * c - (n - 1) * c, end)
        end = part.start
        rows = _cut(d_out[..., part, :], c, None, _like(block.u, n, p, r, c, d)).flatten(2, 3)
        y, d_right, after, d_write = _through_states(block, rows, d_s, ctx.options)
        d_scores = torch.empty_like(block.scores)
        torch.neg(_batched(d_right, block.u.mT).tril_(-1), out=d_scores[:, :, :c])
        d_scores[:, :, c:] = _batched(rows, block.u.mT)
        errors = torch.addcmul(block.values, block.read, block.seen[:, :, :c], value=-1)
        d_strength = (d_right * errors).sum(-1) + (d_scores[:, :, :c] * block.scores[:, :, :c]).sum(-1)
        _put(d_strength[:, :, None, :, None], d_beta[:, :, None, part, None])
        d_scores[:, :, :c].mul_(block.strength)
        if d_decay is not None:
            d_rates = _d_rates(block, d_scores, y, d_write, after)
            _put(d_rates[:, :, None, :, None], d_decay[:, :, None, part, None])
        d_queries, d_keys = _d_features(block, d_scores, y, after, ctx.options[2])
        _put(d_queries, d_q[..., part, :])
        _put(d_keys, d_k[:, :, None, part])
        _put((block.strength * d_right)[:, :, None], d_v[:, :, None, part])
    if d_decay is not None:
        d_decay = d_decay.sum((0, 2)) if len(ctx.given[4][1]) == 1 else d_decay
        d_decay = d_decay.to(ctx.given[4][0])
    d_state = d_s.mT.to(ctx.given[5][0]).unflatten(0, (b, g))
    return d_q, d_k, d_v, d_beta, d_decay, d_state, None, None, None


def _through_states(
    block: _Block, d_out: Tensor, d_s: Tensor, options: tuple[int, torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chunk by chunk from the last; d_s (P, D, M), the gradient of the state after the block, becomes that before it.

    Returns:
        Y (N, P, S, D), dR (N, P, C, D), the gradient of the state after each chunk (N, P, D, M), and what the weights
        of the writes times their gradients come to (N, P, C).
    """
    (c, dtype, products), weights, u = options, block.weights, block.u
    y, d_right, after = torch.empty_like(block.seen), torch.empty_like(u), torch.empty_like(block.states)
    by_head = d_out.unflatten(2, (-1, c))
    torch.mul(by_head, weights.read[:, :, None], out=y.unflatten(2, (-1, c))[:, :, 1:])
    d_u = _batched(block.scores[:, :, c:].mT, d_out)
    d_write = _like(u, *u.shape[:3])
    for i in reversed(range(len(u))):
        after[i] = d_s
        at = _Weights(*(_at(weight, i) for weight in weights))
        later = torch.bmm(block.rows[i, :, :c], after[i].mT).to(dtype).mul_(at.write)
        torch.bmm(block.inverse[i].mT, d_u[i].add_(later), out=d_right[i])
        y[i, :, :c] = (d_right[i] * block.strength[i]).mul_(at.read).neg_()
        _add_product(d_s.mul_(at.keep), y[i].to(products).mT, block.rows[i])
        torch.sum(later.mul_(u[i]), dim=-1, out=d_write[i])
    return y, d_right, after, d_write


def _d_features(
    block: _Block, d_scores: Tensor, y: Tensor, after: Tensor, products: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients of queries (N, P, R, C, M) and keys (N, P, 1, C, M); d_scores, before decay, is overwritten."""
    c = block.u.shape[2]
    d_scores.unflatten(2, (-1, c)).mul_(block.inside[:, :, None])
    narrow = d_scores.to(products)
    d_rows = _add_product(_batched(narrow, block.rows[:, :, :c]), y.to(products), block.states)
    d_keys = _batched(narrow.mT, block.rows)
    _add_product(d_keys, (block.write * block.u).to(products), after).add_(d_rows[:, :, :c])
    return d_rows[:, :, c:].unflatten(2, (-1, c)), d_keys[:, :, None]


def _d_rates(block: _Block, d_scores: Tensor, y: Tensor, d_write: Tensor, after: Tensor) -> Tensor:
    """Gradient of the log-decay at each position, (N, P, C), from the gradients of all weights times the weights."""
    c = block.u.shape[2]
    pairs = (d_scores * block.scores).unflatten(2, (-1, c)).sum(2)
    read = (y * block.seen).sum(-1).unflatten(2, (-1, c)).sum(2)
    kept = torch.linalg.vecdot(block.states.flatten(-2), after.flatten(-2)).to(read.dtype) * block.keep[..., 0, 0]
    return decay_gradient(pairs, read, d_write, kept)


def _weights(
    log_decay: Tensor | None,
    segment: Tensor | None,
    part: slice,
    sizes: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> _Weights:
    """The weights of the block of positions `part`; `sizes` are B, G, T and C."""
    b, g, _, c = sizes
    t = part.stop - part.start
    missing = -t % c
    hidden = torch.ones(c, c, dtype=torch.bool, device=device).triu(1)
    unread = unwritten = unkept = None
    if segment is not None:
        own = segment[:, part]
        ids = torch.cat((own, own[:, -1:].expand(-1, missing)), dim=1).unflatten(1, (-1, c))  # (B, N, C)
        # The state before position 0 belongs to sequence 0.
        first = segment[:, part.start - 1, None] if part.start else torch.zeros_like(own[:, :1])
        before = torch.cat((first, ids[:, :-1, -1]), dim=1)[..., None]  # (B, N, 1)
        before, ids = (x.transpose(0, 1).repeat_interleave(g, dim=1) for x in (before, ids))  # (N, P, .)
        hidden = hidden | (ids[..., :, None] != ids[..., None, :])
        unread, unwritten, unkept = ids != before, ids != ids[..., -1:], ids[..., -1:] != before
    if log_decay is None:
        sums = torch.zeros(1, 1, c, dtype=dtype, device=device)
    else:
        decay = log_decay.to(sum_dtype(log_decay))
        if decay.dim() == 1:
            decay = decay[None, :, None].expand(b, -1, t if missing else c)  # all chunks alike, where they are full
        else:
            decay = decay[..., part]
        decay = F.pad(decay, (0, missing)) if missing else decay
        sums = decay.unflatten(2, (-1, c)).permute(2, 0, 1, 3).flatten(1, 2).cumsum(-1)  # (N, P, C)
    inside = _exp(sums[..., :, None] - sums[..., None, :], hidden, dtype)
    read = _exp(sums, unread, dtype)[..., None]
    write = _exp(sums[..., -1:] - sums, unwritten, dtype)[..., None]
    return _Weights(inside, read, write, _exp(sums[..., -1:], unkept, dtype)[..., None])


def _exp(exponent: Tensor, hidden: Tensor | None, dtype: torch.dtype) -> Tensor:
    """exp, and 0 where hidden. The exponent is replaced before exp: it may be large there."""
    exponent = exponent.to(dtype)
    return (exponent if hidden is None else exponent.masked_fill(hidden, -torch.inf)).exp()


def _at(weight: Tensor, i: int) -> Tensor:
    """The weight of chunk i, where all chunks may have the same."""
    return weight[i if len(weight) > 1 else 0]


def _like(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device)


def _batched(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for every (N, P)."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """to + a @ b in place, for every leading index; `to` is contiguous."""
    flat, left, right = (x if x.dim() == 3 else x.flatten(0, 1) for x in (to, a, b))
    if to.dtype == a.dtype:
        flat.baddbmm_(left, right)
    else:
        flat.add_(torch.bmm(left, right))
    return to


def _cut(x: Tensor, c: int, valid: Tensor | None, into: Tensor) -> Tensor:
    """(B, G, R, T, F) into (N, P, R, C, F), zeros at padding and past T."""
    if valid is not None:
        x = x.masked_fill(~valid[:, None, None, :, None], 0.0)
    missing = -x.shape[3] % c
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    into.unflatten(1, x.shape[:2]).copy_(x.unflatten(3, (-1, c)).permute(3, 0, 1, 2, 4, 5))
    return into


def _put(x: Tensor, into: Tensor) -> None:
    """(N, P, R, C, F) into (B, G, R, T, F)."""
    b, _, _, t, _ = into.shape
    x = x.unflatten(1, (b, -1)).permute(1, 2, 3, 0, 4, 5)  # (B, G, R, N, C, F)
    if t == x.shape[3] * x.shape[4]:
        into.unflatten(3, x.shape[3:5]).copy_(x)
    else:
        into.copy_(x.flatten(3, 4)[..., :t, :])
