"""Triton kernels of chunked linear attention; `triton_chunked` launches them and holds the formulas.

Every tile is float32, padded with zeros to its block size; products accumulate in float32. b is a row of the
batch, h a query head, g its key-value head, c a chunk of C positions. q, k and v are read through their strides
(their last axis is contiguous), everything else is contiguous. Arguments, with P = NC * C positions:

    valid   (B, P) 0 at padding and past T
    ids     (B, P) number of the sequence
    high, low  (B, G, P) their sum is the log-decay summed from the chunk's start
    read    (B, G, P) factor from the state before the chunk to a position
    write   (B, G, P) factor from a position to the state after the chunk
    chain   (B, G, NC) factor from the state before the chunk to the state after it
    s, z    (B, G, NC + 1, M, D) and (B, G, NC + 1, M): the state before each chunk and after the last
    d_s, d_z  likewise, their gradients
    scale, d_under  (B, H, T) 1 / max(n, eps), and the gradient of the denominator n

BM and BD are the block sizes of what a program computes, IM and ID of what it sums over.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(
    base: tl.tensor, rows: tl.tensor, stride: tl.tensor, columns: tl.tensor, keep: tl.tensor, width: tl.constexpr
) -> tl.tensor:
    """Rows of a matrix; zeros where a row is not kept and from column `width` on."""
    inside = keep[:, None] & (columns < width)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _rounded(x: tl.tensor) -> tl.tensor:
    """float32 to the nearest TensorFloat32 (13 bits of the mantissa less), ties away from 0; NaN stays NaN."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _product(a: tl.tensor, b: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """a @ b in "ieee" or "tf32"; the hardware would cut TensorFloat32 off, and so make every sum too small."""
    if PRECISION == "tf32":
        a, b = _rounded(a), _rounded(b)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _part(base: tl.tensor, m: tl.tensor, d: tl.tensor, M: tl.constexpr, D: tl.constexpr) -> tl.tensor:
    """Elements of an (M, D) state at two-dimensional indices; zeros outside."""
    return tl.load(base + m * D + d, mask=(m < M) & (d < D), other=0.0)


@triton.jit
def _inside(high: tl.tensor, low: tl.tensor, ids: tl.tensor, C: tl.constexpr) -> tl.tensor:
    """(C, C) decay from position j to position i of a chunk; 0 for i < j and between sequences.

    The difference of two sums in two parts each keeps what a float32 sum would lose. The exponent is masked
    before exp: above the diagonal it may be large.
    """
    i = tl.arange(0, C)
    upper, lower, sequence = tl.load(high + i), tl.load(low + i), tl.load(ids + i)
    seen = (i[:, None] >= i[None, :]) & (sequence[:, None] == sequence[None, :])
    exponent = (upper[:, None] - upper[None, :]) + (lower[:, None] - lower[None, :])
    return tl.exp(tl.where(seen, exponent, float("-inf")))


@triton.jit
def ready(x: tl.tensor) -> None:
    """Write 1: whether Triton can compile and run at all."""
    tl.store(x, 1.0)


@triton.jit
def states(
    k: tl.tensor, v: tl.tensor, valid: tl.tensor, write: tl.tensor, chain: tl.tensor, s: tl.tensor, z: tl.tensor,
    k_b: tl.tensor, k_g: tl.tensor, k_t: tl.tensor, v_b: tl.tensor, v_g: tl.tensor, v_t: tl.tensor, NC: tl.tensor,
    G: tl.constexpr, M: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Fill s and z from their first entry on. Programs: (B * G, blocks of M, blocks of D)."""
    bg = tl.program_id(0).to(tl.int64)
    b, g = bg // G, bg % G
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    s += bg * (NC + 1) * M * D
    z += bg * (NC + 1) * M
    at, here = m[:, None] * D + d[None, :], (m < M)[:, None] & (d < D)[None, :]
    state = tl.load(s + at, mask=here, other=0.0)
    total = tl.load(z + m, mask=m < M, other=0.0)
    for c in range(NC):
        t = (c * C + tl.arange(0, C)).to(tl.int64)
        keep = tl.load(valid + b * NC * C + t) != 0
        keys = _tile(k, t, k_t, m, keep, M) * tl.load(write + bg * NC * C + t)[:, None]
        kept = tl.load(chain + bg * NC + c)
        state = state * kept + _product(tl.trans(keys), _tile(v, t, v_t, d, keep, D), PRECISION)
        total = total * kept + tl.sum(keys, axis=0)
        s += M * D
        z += M
        tl.store(s + at, state, mask=here)
        if tl.program_id(2) == 0:
            tl.store(z + m, total, mask=m < M)


@triton.jit
def outputs(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, valid: tl.tensor, ids: tl.tensor, high: tl.tensor, low: tl.tensor,
    read: tl.tensor, s: tl.tensor, z: tl.tensor, out: tl.tensor, under: tl.tensor,
    q_b: tl.tensor, q_h: tl.tensor, q_t: tl.tensor, k_b: tl.tensor, k_g: tl.tensor, k_t: tl.tensor,
    v_b: tl.tensor, v_g: tl.tensor, v_t: tl.tensor, T: tl.tensor, NC: tl.tensor, eps: tl.tensor,
    H: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr,
    IM: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """out (B, H, T, D) and the denominator n, under (B, H, T). Programs: (B * H * NC, blocks of D)."""
    bh, c = tl.program_id(0).to(tl.int64) // NC, tl.program_id(0).to(tl.int64) % NC
    b, g = bh // H, bh % H // R
    bg = b * (H // R) + g
    t = c * C + tl.arange(0, C)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    keep = tl.load(valid + b * NC * C + t) != 0
    q += b * q_b + bh % H * q_h
    k += b * k_b + g * k_g
    s += (bg * (NC + 1) + c) * M * D
    z += (bg * (NC + 1) + c) * M
    scores = tl.zeros((C, C), dtype=tl.float32)
    over = tl.zeros((C, BD), dtype=tl.float32)
    n = tl.zeros((C,), dtype=tl.float32)
    for start in range(0, M, IM):
        m = start + tl.arange(0, IM)
        a = _tile(q, t, q_t, m, keep, M)
        scores += _product(a, tl.trans(_tile(k, t, k_t, m, keep, M)), PRECISION)
        over += _product(a, _part(s, m[:, None], d[None, :], M, D), PRECISION)
        n += tl.sum(a * tl.load(z + m, mask=m < M, other=0.0)[None, :], axis=1)
    table = bg * NC * C + c * C
    scores *= _inside(high + table, low + table, ids + b * NC * C + c * C, C)
    decayed = tl.load(read + bg * NC * C + t)
    values = _tile(v + b * v_b + g * v_g, t, v_t, d, keep, D)
    over = over * decayed[:, None] + _product(scores, values, PRECISION)
    if NORMALIZE:
        n = n * decayed + tl.sum(scores, axis=1)
        over /= tl.maximum(n, eps)[:, None]
        if tl.program_id(1) == 0:
            tl.store(under + bh * T + t, n, mask=t < T)
    tl.store(out + (bh * T + t)[:, None] * D + d[None, :], over, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def d_denominators(
    d_out: tl.tensor, out: tl.tensor, under: tl.tensor, scale: tl.tensor, d_under: tl.tensor,
    rows: tl.tensor, eps: tl.tensor, D: tl.constexpr, C: tl.constexpr, ID: tl.constexpr,
) -> None:  # fmt: skip
    """scale = 1 / max(n, eps) and d_under = -d_out . out * scale, 0 below eps. Programs: blocks of B * H * T rows."""
    i = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    keep = i < rows
    product = tl.zeros((C,), dtype=tl.float32)
    for start in range(0, D, ID):
        d = start + tl.arange(0, ID)
        product += tl.sum(_tile(d_out, i, D, d, keep, D) * _tile(out, i, D, d, keep, D), axis=1)
    n = tl.load(under + i, mask=keep, other=1.0)
    inverse = 1.0 / tl.maximum(n, eps)
    tl.store(scale + i, inverse, mask=keep)
    tl.store(d_under + i, tl.where(n >= eps, -product * inverse, 0.0), mask=keep)


@triton.jit
def d_states(
    q: tl.tensor, d_out: tl.tensor, valid: tl.tensor, read: tl.tensor, chain: tl.tensor, scale: tl.tensor,
    d_under: tl.tensor, d_s: tl.tensor, d_z: tl.tensor, q_b: tl.tensor, q_h: tl.tensor, q_t: tl.tensor,
    T: tl.tensor, NC: tl.tensor, G: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    C: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Fill d_s and d_z from their last entry to the first. Programs: (B * G, blocks of M, blocks of D)."""
    bg = tl.program_id(0).to(tl.int64)
    b, g = bg // G, bg % G
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    d_s += (bg * (NC + 1) + NC) * M * D
    d_z += (bg * (NC + 1) + NC) * M
    at, here = m[:, None] * D + d[None, :], (m < M)[:, None] & (d < D)[None, :]
    d_state = tl.load(d_s + at, mask=here, other=0.0)
    d_total = tl.load(d_z + m, mask=m < M, other=0.0)
    for after in range(NC):
        c = NC - 1 - after
        t = (c * C + tl.arange(0, C)).to(tl.int64)
        keep = tl.load(valid + b * NC * C + t) != 0
        decayed = tl.load(read + bg * NC * C + t)
        kept = tl.load(chain + bg * NC + c)
        d_state *= kept
        d_total *= kept
        for r in range(R):
            h = g * R + r
            row = (b * G * R + h) * T + t
            a = _tile(q + b * q_b + h * q_h, t, q_t, m, keep, M) * decayed[:, None]
            d_over = _tile(d_out, row, D, d, keep, D) * tl.load(scale + row, mask=keep, other=0.0)[:, None]
            d_state += _product(tl.trans(a), d_over, PRECISION)
            d_total += tl.sum(a * tl.load(d_under + row, mask=keep, other=0.0)[:, None], axis=0)
        d_s -= M * D
        d_z -= M
        tl.store(d_s + at, d_state, mask=here)
        if tl.program_id(2) == 0:
            tl.store(d_z + m, d_total, mask=m < M)


@triton.jit
def d_queries(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, d_out: tl.tensor, valid: tl.tensor, ids: tl.tensor, high: tl.tensor,
    low: tl.tensor, read: tl.tensor, s: tl.tensor, z: tl.tensor, scale: tl.tensor, d_under: tl.tensor,
    d_q: tl.tensor, products: tl.tensor, q_b: tl.tensor, q_h: tl.tensor, q_t: tl.tensor, k_b: tl.tensor,
    k_g: tl.tensor, k_t: tl.tensor, v_b: tl.tensor, v_g: tl.tensor, v_t: tl.tensor, T: tl.tensor, NC: tl.tensor,
    H: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr,
    ID: tl.constexpr, RATES: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """d_q (B, H, T, M). With RATES also products (blocks, B, H, P): for each position of a chunk, each block of M, the
    sum over queries from there on of what they read of keys before it and of the state, times the gradients.

    Programs: (B * H * NC, blocks of M).
    """
    bh, c = tl.program_id(0).to(tl.int64) // NC, tl.program_id(0).to(tl.int64) % NC
    b, g = bh // H, bh % H // R
    bg = b * (H // R) + g
    t = c * C + tl.arange(0, C)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    keep = tl.load(valid + b * NC * C + t) != 0
    v += b * v_b + g * v_g
    s += (bg * (NC + 1) + c) * M * D
    z += (bg * (NC + 1) + c) * M
    factor = tl.load(scale + bh * T + t, mask=keep, other=0.0)
    d_n = tl.load(d_under + bh * T + t, mask=keep, other=0.0)
    d_scores = tl.zeros((C, C), dtype=tl.float32)
    d_a = tl.zeros((C, BM), dtype=tl.float32)
    for start in range(0, D, ID):
        d = start + tl.arange(0, ID)
        d_over = _tile(d_out, bh * T + t, D, d, keep, D) * factor[:, None]
        d_scores += _product(d_over, tl.trans(_tile(v, t, v_t, d, keep, D)), PRECISION)
        d_a += _product(d_over, _part(s, m[None, :], d[:, None], M, D), PRECISION)
    d_a += d_n[:, None] * tl.load(z + m, mask=m < M, other=0.0)[None, :]
    table = bg * NC * C + c * C
    weights = _inside(high + table, low + table, ids + b * NC * C + c * C, C)
    keys = _tile(k + b * k_b + g * k_g, t, k_t, m, keep, M)
    d_a = d_a * tl.load(read + bg * NC * C + t)[:, None]
    d_scores = (d_scores + d_n[:, None]) * weights
    if RATES:
        i = tl.arange(0, C)
        a = _tile(q + b * q_b + bh % H * q_h, t, q_t, m, keep, M)
        pairs = tl.cumsum(_product(a, tl.trans(keys), PRECISION) * d_scores, axis=0, reverse=True)
        across = tl.sum(tl.where(i[:, None] > i[None, :], pairs, 0.0), axis=1)
        later = across + tl.cumsum(tl.sum(a * d_a, axis=1), axis=0, reverse=True)
        block = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * C
        tl.store(products + block + bh * NC * C + t, later)
    d_a += _product(d_scores, keys, PRECISION)
    tl.store(d_q + (bh * T + t)[:, None] * M + m[None, :], d_a, mask=(t < T)[:, None] & (m < M)[None, :])


@triton.jit
def d_keys(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, d_out: tl.tensor, valid: tl.tensor, ids: tl.tensor, high: tl.tensor,
    low: tl.tensor, write: tl.tensor, d_s: tl.tensor, d_z: tl.tensor, scale: tl.tensor, d_under: tl.tensor,
    d_k: tl.tensor, products: tl.tensor, q_b: tl.tensor, q_h: tl.tensor, q_t: tl.tensor, k_b: tl.tensor,
    k_g: tl.tensor, k_t: tl.tensor, v_b: tl.tensor, v_g: tl.tensor, v_t: tl.tensor, T: tl.tensor, NC: tl.tensor,
    G: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr,
    ID: tl.constexpr, RATES: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """d_k (B, G, T, M). With RATES also products (blocks, B, G, P): what each position writes into the state after its
    chunk, times the gradient, of each block of M.

    Programs: (B * G * NC, blocks of M).
    """
    bg, c = tl.program_id(0).to(tl.int64) // NC, tl.program_id(0).to(tl.int64) % NC
    b, g = bg // G, bg % G
    t = c * C + tl.arange(0, C)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    keep = tl.load(valid + b * NC * C + t) != 0
    v += b * v_b + g * v_g
    d_s += (bg * (NC + 1) + c + 1) * M * D
    d_z += (bg * (NC + 1) + c + 1) * M
    d_rows = tl.zeros((C, BM), dtype=tl.float32)
    for start in range(0, D, ID):
        d = start + tl.arange(0, ID)
        values = _tile(v, t, v_t, d, keep, D)
        d_rows += _product(values, _part(d_s, m[None, :], d[:, None], M, D), PRECISION)
    d_rows += tl.load(d_z + m, mask=m < M, other=0.0)[None, :]
    d_rows *= tl.load(write + bg * NC * C + t)[:, None]
    if RATES:
        keys = _tile(k + b * k_b + g * k_g, t, k_t, m, keep, M)
        block = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * C
        tl.store(products + block + bg * NC * C + t, tl.sum(keys * d_rows, axis=1))
    table = bg * NC * C + c * C
    weights = _inside(high + table, low + table, ids + b * NC * C + c * C, C)
    for r in range(R):
        h = g * R + r
        row = (b * G * R + h) * T + t
        factor = tl.load(scale + row, mask=keep, other=0.0)
        d_scores = tl.zeros((C, C), dtype=tl.float32)
        for start in range(0, D, ID):
            d = start + tl.arange(0, ID)
            d_over = _tile(d_out, row, D, d, keep, D) * factor[:, None]
            d_scores += _product(d_over, tl.trans(_tile(v, t, v_t, d, keep, D)), PRECISION)
        d_scores = (d_scores + tl.load(d_under + row, mask=keep, other=0.0)[:, None]) * weights
        a = _tile(q + b * q_b + h * q_h, t, q_t, m, keep, M)
        d_rows += _product(tl.trans(d_scores), a, PRECISION)
    d_rows = tl.where(keep[:, None], d_rows, 0.0)
    tl.store(d_k + (bg * T + t)[:, None] * M + m[None, :], d_rows, mask=(t < T)[:, None] & (m < M)[None, :])


@triton.jit
def d_values(
    q: tl.tensor, k: tl.tensor, d_out: tl.tensor, valid: tl.tensor, ids: tl.tensor, high: tl.tensor, low: tl.tensor,
    write: tl.tensor, d_s: tl.tensor, scale: tl.tensor, d_v: tl.tensor, q_b: tl.tensor, q_h: tl.tensor,
    q_t: tl.tensor, k_b: tl.tensor, k_g: tl.tensor, k_t: tl.tensor, T: tl.tensor, NC: tl.tensor,
    G: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr,
    IM: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """d_v (B, G, T, D). Programs: (B * G * NC, blocks of D)."""
    bg, c = tl.program_id(0).to(tl.int64) // NC, tl.program_id(0).to(tl.int64) % NC
    b, g = bg // G, bg % G
    t = c * C + tl.arange(0, C)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    keep = tl.load(valid + b * NC * C + t) != 0
    k += b * k_b + g * k_g
    d_s += (bg * (NC + 1) + c + 1) * M * D
    d_rows = tl.zeros((C, BD), dtype=tl.float32)
    for start in range(0, M, IM):
        m = start + tl.arange(0, IM)
        keys = _tile(k, t, k_t, m, keep, M)
        d_rows += _product(keys, _part(d_s, m[:, None], d[None, :], M, D), PRECISION)
    d_rows *= tl.load(write + bg * NC * C + t)[:, None]
    table = bg * NC * C + c * C
    weights = _inside(high + table, low + table, ids + b * NC * C + c * C, C)
    for r in range(R):
        h = g * R + r
        row = (b * G * R + h) * T + t
        scores = tl.zeros((C, C), dtype=tl.float32)
        for start in range(0, M, IM):
            m = start + tl.arange(0, IM)
            a = _tile(q + b * q_b + h * q_h, t, q_t, m, keep, M)
            scores += _product(a, tl.trans(_tile(k, t, k_t, m, keep, M)), PRECISION)
        d_over = _tile(d_out, row, D, d, keep, D) * tl.load(scale + row, mask=keep, other=0.0)[:, None]
        d_rows += _product(tl.trans(scores * weights), d_over, PRECISION)
    tl.store(d_v + (bg * T + t)[:, None] * D + d[None, :], d_rows, mask=(t < T)[:, None] & (d < D)[None, :])
