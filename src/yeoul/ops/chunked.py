"""Linear attention by chunks of C positions: quadratic inside a chunk, a state from chunk to chunk.

With beta_i the log-decay summed from the chunk's start to i, A, K, V the rows of a chunk and [V, 1] the
values with a column of ones (it carries the denominator, so that z is the last column of the state S):

    [N, n] = (A K^T * L) [V, 1] + diag(e^beta) A S           L_ij = e^(beta_i - beta_j) for j <= i, else 0
    S     <- e^(beta_C) S + K^T diag(e^(beta_C - beta)) [V, 1]

No exponent is above 0 when no log-decay is; decay is never factored into queries and keys. Several chunks are
computed at once, as many as fit the cache. The gradient is written out: it computes the scores again instead
of keeping them, so that what training keeps is the inputs, the output and one state for every block.

Factors and results of products may be of a narrower type; what is summed from chunk to chunk, decays and quotients are
in the dtype of the arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from yeoul.ops.blocks import Blocks, Weights
from yeoul.ops.decay import decay_gradient
from yeoul.ops.first_order import first_order
from yeoul.ops.inputs import Inputs, LinearState


class Options(NamedTuple):
    """What is not a tensor.

    Attributes:
        chunk_size: C.
        eps: floor of the denominator; None gives the sums (N, n) themselves, D + 1 columns.
        dtype: of the arithmetic.
        products: of the factors of products, `dtype` or a narrower one.
    """

    chunk_size: int
    eps: float | None
    dtype: torch.dtype
    products: torch.dtype


def chunked(
    x: Inputs, *, chunk_size: int, normalize: bool, eps: float, products: torch.dtype | None = None
) -> tuple[Tensor, LinearState]:
    """Causal linear attention in time and memory linear in T.

    Args:
        x: the inputs, T > 0.
        chunk_size: C.
        normalize: False gives numerators.
        eps: floor of the denominator.
        products: dtype of the factors of products; None is that of the arithmetic.

    Returns:
        Output (B, G, R, T, D) and final state, in the dtype of the arithmetic.
    """
    out, state = _apply(x, Options(chunk_size, eps if normalize else None, x.dtype, products or x.dtype))
    return out if normalize else out[..., :-1], state


def sums(x: Inputs, *, chunk_size: int, products: torch.dtype | None = None) -> tuple[Tensor, LinearState]:
    """As `chunked`, but numerators and, as the last column, denominators: (B, G, R, T, D + 1)."""
    return _apply(x, Options(chunk_size, None, x.dtype, products or x.dtype))


def _apply(x: Inputs, options: Options) -> tuple[Tensor, LinearState]:
    b, g, _, d = x.v.shape
    state = x.state or LinearState.zeros(b, g, x.k.shape[-1], d, device=x.k.device, dtype=x.dtype)
    out, s, z = _Chunked.apply(x.q, x.k, x.v, x.log_decay, state.s, state.z, x.segment, x.valid, options)
    return out, LinearState(s, z)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        s: Tensor,
        z: Tensor,
        segment: Tensor | None,
        valid: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        chunk_size, eps, dtype, products = options
        blocks = Blocks(q, v, log_decay, segment, valid, chunk_size, dtype, products)
        out = torch.empty(*q.shape[:-1], v.shape[-1] + (eps is None), dtype=dtype, device=q.device)
        under = None if eps is None else torch.empty(*q.shape[:-1], 1, dtype=dtype, device=q.device)
        state = torch.cat([s, z[..., None]], dim=-1)
        keep, states = any(ctx.needs_input_grad), []
        for start in blocks.starts:
            if keep:
                states.append(state)
            weights = blocks.weights(start)
            a, keys = blocks.queries(q, start), blocks.keys(k, start)
            values = blocks.keys(v, start, last_column=1.0)
            before, state = _states(weights, state, _outer(_scaled(keys, weights.write), values).to(dtype))
            rows = _product(_scores(blocks, weights, a, keys), values)
            _product(_read(blocks, weights, a), before.to(products), add_to=rows)
            if eps is not None and under is not None:
                rows = rows.to(dtype)
                n = rows[..., -1:]
                blocks.put_queries(n, under, start)
                rows = rows[..., :-1] / n.clamp(min=eps)
            blocks.put_queries(rows, out, start)
        ctx.options = options
        if keep:
            own = out if under is not None else None  # the sums have no quotient to differentiate
            ctx.save_for_backward(q, k, v, log_decay, segment, valid, torch.stack(states), own, under)
        return out, state[..., :-1].contiguous(), state[..., -1].contiguous()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor, d_s: Tensor, d_z: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(d_out.device.type, enabled=False):
            return _gradients(ctx, d_out, d_s, d_z)


def _gradients(ctx: Any, d_out: Tensor, d_s: Tensor, d_z: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, log_decay, segment, valid, states, out, under = ctx.saved_tensors
    chunk_size, eps, dtype, products = ctx.options
    blocks = Blocks(q, v, log_decay, segment, valid, chunk_size, dtype, products)
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    d_decay = None
    if ctx.needs_input_grad[3]:
        d_decay = torch.empty(*k.shape[:-1], 1, dtype=log_decay.dtype, device=k.device)
    d_state = torch.cat([d_s, d_z[..., None]], dim=-1)
    for i in reversed(range(len(states))):
        start = blocks.starts[i]
        weights = blocks.weights(start)
        a, keys = blocks.queries(q, start), blocks.keys(k, start)
        values = blocks.keys(v, start, last_column=1.0)
        written_keys, read = _scaled(keys, weights.write), _read(blocks, weights, a)
        before, _ = _states(weights, states[i], _outer(written_keys, values).to(dtype))
        d_rows = _d_rows(blocks, start, d_out, out, under, eps)
        # (R * C, C) of every chunk: scores, and the gradient of the scores before their decay.
        scores, d_scores = _scores(blocks, weights, a, keys), _product(d_rows, values.transpose(-1, -2))
        pairs = None if d_decay is None else _split(scores.to(dtype) * d_scores, blocks.r).sum(3)
        _inside(blocks, weights, d_scores)
        d_before, d_after = _d_states(weights, _outer(read, d_rows).to(dtype), d_state)
        narrow_after = d_after.to(products)
        d_a = _product(d_rows, before.to(products).transpose(-1, -2))
        if weights.read is not None:
            _split(d_a, blocks.r).mul_(weights.read)
        d_keys = _product(values, narrow_after.transpose(-1, -2))
        if weights.write is not None:
            d_keys.mul_(weights.write)
        if d_decay is not None and pairs is not None:
            kept = torch.linalg.vecdot(before.flatten(-2), d_after.flatten(-2)) * weights.chain.diagonal(-1, -2, -1)
            read_by_row = _dot(a, d_a, dtype).unflatten(-1, (blocks.r, blocks.c)).sum(3)
            rates = decay_gradient(pairs, read_by_row, _dot(keys, d_keys, dtype), kept)
            blocks.put_keys(rates[..., None], d_decay, start)
        _product(d_scores, keys, add_to=d_a)
        _product(d_scores.transpose(-1, -2), a, add_to=d_keys)
        d_values = _product(scores.transpose(-1, -2), d_rows)
        _product(written_keys, narrow_after, add_to=d_values)
        blocks.put_queries(d_a, d_q, start)
        blocks.put_keys(d_keys, d_k, start)
        blocks.put_keys(d_values[..., :-1], d_v, start)
        d_state = d_before
    if d_decay is not None:
        d_decay = d_decay[..., 0]
        if log_decay.dim() == 1:
            d_decay = d_decay.sum((0, 2))
    return d_q, d_k, d_v, d_decay, d_state[..., :-1], d_state[..., -1], None, None, None


def _d_rows(
    blocks: Blocks, start: int, d_out: Tensor, out: Tensor | None, under: Tensor | None, eps: float | None
) -> Tensor:
    """Gradient of [N, n], (B, G, K, R * C, D + 1), from that of N / max(n, eps)."""
    if eps is None or out is None or under is None:
        return blocks.queries(d_out, start)
    wide = blocks.dtype
    d_out, n = blocks.queries(d_out, start, dtype=wide), blocks.queries(under, start, dtype=wide)
    rows = torch.empty(*d_out.shape[:-1], d_out.shape[-1] + 1, dtype=wide, device=d_out.device)
    torch.div(d_out, n.clamp(min=eps), out=rows[..., :-1])
    d_n = torch.linalg.vecdot(rows[..., :-1], blocks.queries(out, start, dtype=wide))
    rows[..., -1] = torch.where(n[..., 0] >= eps, -d_n, 0.0)
    return rows.to(blocks.products)


def _dot(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vecdot(a.to(dtype), b.to(dtype))


def _scores(blocks: Blocks, weights: Weights, a: Tensor, keys: Tensor) -> Tensor:
    """(A K^T) * L of every chunk, (B, G, K, R * C, C)."""
    return _inside(blocks, weights, _product(a, keys.transpose(-1, -2)))


def _inside(blocks: Blocks, weights: Weights, scores: Tensor) -> Tensor:
    """scores * L, in place."""
    by_head = _split(scores, blocks.r)
    if weights.inside is None:
        by_head.tril_()
    else:
        by_head.mul_(weights.inside)
    return scores


def _read(blocks: Blocks, weights: Weights, a: Tensor) -> Tensor:
    """diag(e^beta) A, (B, G, K, R * C, M)."""
    return a if weights.read is None else (_split(a, blocks.r) * weights.read).flatten(3, 4).to(a.dtype)


def _split(rows: Tensor, r: int) -> Tensor:
    """(B, G, K, R * C, F) -> (B, G, K, R, C, F), a view."""
    return rows.unflatten(3, (r, -1))


def _scaled(rows: Tensor, weight: Tensor | None) -> Tensor:
    return rows if weight is None else (rows * weight).to(rows.dtype)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the rows of a chunk of the outer products: (B, G, K, M, D + 1)."""
    return _product(a.transpose(-1, -2), b)


def _states(weights: Weights, state: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """State before each chunk, (B, G, K, M, D + 1), and after the last, (B, G, M, D + 1)."""
    parts = torch.cat([state[:, :, None], written], dim=2)
    return _chained(weights.chain[:, :, :-1], parts), _chained(weights.chain[:, :, -1:], parts)[:, :, 0]


def _d_states(weights: Weights, d_before: Tensor, d_state: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `_states`: of the state before the block, and of what each chunk writes."""
    parts = torch.cat([d_before, d_state[:, :, None]], dim=2)
    back = weights.chain.transpose(-1, -2)
    return _chained(back[:, :, :1], parts)[:, :, 0], _chained(back[:, :, 1:], parts)


def _chained(chain: Tensor, parts: Tensor) -> Tensor:
    """Sums of states: (B or 1, G or 1, I, J) and (B, G, J, M, D + 1) -> (B, G, I, M, D + 1)."""
    b, g, j = parts.shape[:3]
    flat = chain.expand(b, g, -1, j).reshape(b * g, -1, j)
    return torch.bmm(flat, parts.view(b * g, j, -1)).view(b, g, -1, *parts.shape[3:])


def _product(a: Tensor, b: Tensor, add_to: Tensor | None = None) -> Tensor:
    """a @ b for every (B, G, K), added in place to `add_to` where that is given."""
    left, right = a.flatten(0, 2), b.flatten(0, 2)
    if add_to is None:
        return torch.bmm(left, right).unflatten(0, a.shape[:3])
    add_to.view(-1, *add_to.shape[-2:]).baddbmm_(left, right)
    return add_to
