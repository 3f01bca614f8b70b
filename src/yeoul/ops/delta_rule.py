"""The gated delta rule: a linear state that corrects what it remembers of a key instead of adding to it.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T        o_t = S_t^T q_t

a_t = exp(g_t) is the gate and b_t in [0, 1] the write strength. k_t and q_t are feature vectors of length 1, which the
caller normalises: then a write with b = 1 replaces what the state gives for k_t by v_t, and no write makes the state
grow. There is no denominator; the read is a sum over q's features as it stands, with no factor.

With u_t = b_t (v_t - k_t^T a_t S_{t-1}), what is written is k_t u_t^T, so that within a chunk that begins with S

    (I + A) U = b V - b e^beta K S        A_ij = b_i e^(beta_i - beta_j) k_i.k_j for j < i, else 0
    O = (Q K^T * L) U + e^beta Q S        L_ij = e^(beta_i - beta_j) for j <= i, else 0
    S <- e^(beta_C) S + K^T e^(beta_C - beta) U

where beta_i is the log-decay summed from the chunk's start to i. No exponent is above 0 when no log-decay is; decay is
never factored into queries and keys. The system is solved by substitution: the product (I - A)(I + A^2)(I + A^4)...
would need fewer steps, but its powers grow like binomial coefficients where keys are alike, as non-negative ones are.

Sources: Schlag, Irie and Schmidhuber (2021), section 4; Yang and others, "Parallelizing Linear Transformers with the
Delta Rule" (2024), section 3, for the chunked form; Yang and others, "Gated Delta Networks" (2025) for the gate.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from yeoul.ops.delta_chunked import chunked
from yeoul.ops.inputs import Inputs, check_options, compute_dtype, prepare, product_dtype, sum_dtype

MODES = ("chunked", "recurrent", "quadratic")


@overload
def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    mode: str = ...,
    chunk_size: int = ...,
    mask: Tensor | None = ...,
    seq_ids: Tensor | None = ...,
    initial_state: Tensor | None = ...,
    return_state: Literal[False] = False,
) -> Tensor: ...


@overload
def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    mode: str = ...,
    chunk_size: int = ...,
    mask: Tensor | None = ...,
    seq_ids: Tensor | None = ...,
    initial_state: Tensor | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    mode: str = "chunked",
    chunk_size: int = 64,
    mask: Tensor | None = None,
    seq_ids: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Gated delta rule over feature vectors, causal, in time linear in T ("quadratic" excepted).

    All arithmetic and the state are float32 (float64 when q, k or v is), with one exception: under bfloat16 autocast,
    on a device that multiplies bfloat16 in hardware, the products of "chunked" over features and with the state round
    their factors and results to bfloat16 (RMS errors of about 0.5 %); what is summed from chunk to chunk is float32
    there too. It is differentiable in q, k, v, beta, log_decay and initial_state: "chunked" once, the other forms as
    often as wanted. k and v are never repeated over query heads.

    Args:
        q: (B, H, T, M) query features of length 1. H is a multiple of G.
        k: (B, G, T, M) key features of length 1; longer ones make the state unstable.
        v: (B, G, T, D) values.
        beta: (B, G, T) write strength in [0, 1].
        log_decay: (G,) or (B, G, T), <= 0: the natural logarithm of the gate a_t. None is a gate of 1.
        mode: "chunked" (O(T), batched matrix products), "recurrent" (O(T), a loop over tokens) or "quadratic" (O(T^2),
            the whole row as one triangular system).
        chunk_size: positions that "chunked" treats at once; any value gives the same result.
        mask: (B, T) bool, False at padding, anywhere in a row: it neither writes nor lets the state decay, and its
            output and gradients are exactly 0.
        seq_ids: (B, T) integers, for several sequences in one row, which stand together; negative is padding. The
            state starts anew where the id changes.
        initial_state: (B, G, M, D), what the first sequence of every row has seen before.
        return_state: also return the state after the last sequence of every row.

    Returns:
        (B, H, T, D) in v's dtype, or this and the state (B, G, M, D) in the dtype of the arithmetic.

    Raises:
        ValueError: shapes or dtypes do not fit one another, or an option is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    check_options(chunk_size, 1.0)
    products = product_dtype(q.device, q, k, v)
    with torch.autocast(q.device.type, enabled=False):
        x = prepare(q, k, v, log_decay, mask, seq_ids, None)
        (b, g, r, t, m), d = x.q.shape, v.shape[3]
        if beta.shape != (b, g, t) or not beta.is_floating_point():
            raise ValueError(
                f"beta must be floating point of shape (B, G, T) = {(b, g, t)}, not {beta.dtype} {tuple(beta.shape)}"
            )
        state = _state(initial_state, (b, g, m, d), v.device, x.dtype)
        strength = beta.to(x.dtype)
        if x.valid is not None:
            strength = strength.masked_fill(~x.valid[:, None], 0.0)
        if t == 0:
            out = x.v.new_zeros(b, g, r, 0, d)
        elif mode == "recurrent":
            out, state = _recurrent(x, strength, state)
        elif mode == "quadratic" or b == 0:  # which takes an empty batch as it is
            out, state = _quadratic(x, strength, state)
        else:
            out, state = chunked(x, strength, state, min(chunk_size, t), products or x.dtype)
        if x.valid is not None:
            out = out.masked_fill(~x.valid[:, None, None, :, None], 0.0)
        out = out.flatten(1, 2).to(v.dtype)
    return (out, state) if return_state else out


def _state(given: Tensor | None, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    if given is None:
        return torch.zeros(shape, device=device, dtype=dtype)
    if given.shape != shape:
        raise ValueError(f"the state must have shape (B, G, M, D) = {shape}, not {tuple(given.shape)}")
    return given.to(dtype)


def delta_step(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    beta_t: Tensor,
    state: Tensor | None,
    log_decay_t: Tensor | None = None,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token: S <- e^g S, then S <- S + b k (v - S^T k)^T, out = S^T q.

    Args:
        q_t: (B, H, M) query features of length 1, H a multiple of G.
        k_t: (B, G, M) key features of length 1.
        v_t: (B, G, D) values.
        beta_t: (B, G) write strength in [0, 1].
        state: (B, G, M, D), what came before, in the dtype of the arithmetic (float32; float64 for float64 inputs);
            None is nothing.
        log_decay_t: (G,) or (B, G); None is no decay.
        inplace: write the new state into the given tensor (nothing may require gradients) and return it.

    Returns:
        (B, H, D) in v_t's dtype, and the state after the token.

    Raises:
        ValueError: shapes do not fit, or `inplace` where gradients are recorded.
    """
    (b, g, m), d = k_t.shape, v_t.shape[2]
    fits = q_t.shape[0] == b and q_t.shape[2] == m and q_t.shape[1] % g == 0
    if not fits or v_t.shape[:2] != (b, g) or beta_t.shape != (b, g):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_t, k_t, v_t, beta_t))
        raise ValueError(f"q_t (B, H, M), k_t (B, G, M), v_t (B, G, D) and beta_t (B, G) do not fit: {shapes}")
    if log_decay_t is not None and log_decay_t.shape not in ((g,), (b, g)):
        raise ValueError(f"log_decay_t must have shape {(g,)} or {(b, g)}, not {tuple(log_decay_t.shape)}")
    given = (q_t, k_t, v_t, beta_t) if state is None else (q_t, k_t, v_t, beta_t, state)
    if inplace and torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise ValueError("inplace=True overwrites what a gradient needs; use it under torch.no_grad()")
    dtype = compute_dtype(q_t, k_t, v_t)
    with torch.autocast(q_t.device.type, enabled=False):
        s = _state(state, (b, g, m, d), k_t.device, dtype)
        q, k, v, beta = (x.to(dtype) for x in (q_t.unflatten(1, (g, q_t.shape[1] // g)), k_t, v_t, beta_t))
        decay = None if log_decay_t is None else log_decay_t.to(dtype).exp()
        out, new = _step(q, k, v, beta, s, decay, inplace)
        if inplace and state is not None and new is not state:
            new = state.copy_(new)  # a state kept in another dtype was converted above
    return out.flatten(1, 2).to(v_t.dtype), new


def _step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, s: Tensor, decay: Tensor | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    """q (B, G, R, M), k (B, G, M), v (B, G, D), beta (B, G), decay (B or none, G): out (B, G, R, D) and the state."""
    if decay is not None:
        s = s.mul_(decay[..., None, None]) if inplace else s * decay[..., None, None]
    written = (v[..., None, :] - k[..., None, :] @ s) * beta[..., None, None]  # (B, G, 1, D)
    s = s.addcmul_(k[..., None], written) if inplace else torch.addcmul(s, k[..., None], written)
    return q @ s, s


def _recurrent(x: Inputs, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token: output (B, G, R, T, D) and final state."""
    q, k, v = x.masked()
    t, inplace, outputs = k.shape[2], not torch.is_grad_enabled(), []
    state = state.clone() if inplace else state
    decay = None if x.log_decay is None else x.log_decay.to(x.dtype).exp()
    for i in range(t):
        if x.segment is not None and i > 0:
            new = (x.segment[:, i] != x.segment[:, i - 1])[:, None, None, None]
            state = state.masked_fill(new, 0.0)
        now = decay if decay is None or decay.dim() == 1 else decay[:, :, i]
        out, state = _step(q[:, :, :, i], k[:, :, i], v[:, :, i], beta[:, :, i], state, now, inplace)
        outputs.append(out)
    return torch.stack(outputs, dim=3), state


def _log_decays(x: Inputs) -> Tensor:
    """Each position's log-decay, (B or 1, G or 1, T), in the dtype in which they are summed."""
    t = x.k.shape[2]
    if x.log_decay is None:
        return torch.zeros(1, 1, t, dtype=x.dtype, device=x.k.device)
    decay = x.log_decay.to(sum_dtype(x.log_decay))
    return decay[None, :, None].expand(1, -1, t) if decay.dim() == 1 else decay


def _exp(exponent: Tensor, hidden: Tensor | None, dtype: torch.dtype) -> Tensor:
    """exp, and 0 where hidden. The exponent is replaced before exp: it may be large there."""
    exponent = exponent.to(dtype)
    return (exponent if hidden is None else exponent.masked_fill(hidden, -torch.inf)).exp()


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """X of (I + A) X = right for the part A of `system` below its diagonal: (..., C, C) and (..., C, F)."""
    return torch.linalg.solve_triangular(system.tril(-1), right, upper=False, unitriangular=True)


def _quadratic(x: Inputs, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The whole row as one system of T equations: output (B, G, R, T, D) and final state."""
    q, k, v = x.masked()
    sums = _log_decays(x).cumsum(-1)  # (B or 1, G or 1, T)
    hidden = torch.ones(sums.shape[-1], sums.shape[-1], dtype=torch.bool, device=k.device).triu(1)
    unread = None
    if x.segment is not None:
        ids = x.segment[:, None]
        hidden, unread = hidden | (ids[..., :, None] != ids[..., None, :]), ids != 0
    weights = _exp(sums[..., :, None] - sums[..., None, :], hidden, x.dtype)  # (B, G, T, T)
    read = _exp(sums, unread, x.dtype)[..., None]
    right = v - read * (k @ state)
    u = _solve(beta[..., None] * weights * (k @ k.transpose(-1, -2)), beta[..., None] * right)
    scores = q @ k.transpose(-1, -2)[:, :, None] * weights[:, :, None]  # (B, G, R, T, T)
    out = scores @ u[:, :, None] + read[:, :, None] * (q @ state[:, :, None])
    state = read[..., -1:, :] * state + (k * weights[..., -1, :, None]).transpose(-1, -2) @ u
    return out, state
