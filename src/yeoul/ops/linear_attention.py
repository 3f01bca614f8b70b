"""Linear attention: attention whose cost is linear in the number of positions and whose memory is one state.

    out_i = sum_j<=i exp(g_{j+1} + ... + g_i) (q_i . k_j) v_j / max(sum_j<=i exp(...) (q_i . k_j), eps)

q and k are feature vectors (a kernel's feature map, applied by the caller) and g <= 0 a log-decay. Three
forms give the same numbers: "quadratic" is this definition, "chunked" is for training and prefill, and
"recurrent" for decoding.

Sources: Katharopoulos et al., "Transformers are RNNs" (2020), section 3; the decay and the chunked form are
those of Sun et al., "Retentive Network" (2023), section 2.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, overload

import torch
from torch import Tensor

from yeoul.ops import triton_chunked
from yeoul.ops.chunked import chunked, sums
from yeoul.ops.inputs import Inputs, LinearState, check_options, prepare, product_dtype
from yeoul.ops.quadratic import bidirectional, everything_sees_everything, quadratic
from yeoul.ops.recurrent import recurrent, recurrent_step

__all__ = ["MODES", "LinearState", "linear_attention", "linear_sums", "recurrent_step"]

MODES = ("chunked", "recurrent", "quadratic")


@overload
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    mode: str = ...,
    causal: bool = ...,
    chunk_size: int = ...,
    normalize: bool = ...,
    eps: float = ...,
    mask: Tensor | None = ...,
    seq_ids: Tensor | None = ...,
    initial_state: LinearState | None = ...,
    return_state: Literal[False] = False,
) -> Tensor: ...


@overload
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    mode: str = ...,
    causal: bool = ...,
    chunk_size: int = ...,
    normalize: bool = ...,
    eps: float = ...,
    mask: Tensor | None = ...,
    seq_ids: Tensor | None = ...,
    initial_state: LinearState | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, LinearState]: ...


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    mode: str = "chunked",
    causal: bool = True,
    chunk_size: int = 64,
    normalize: bool = True,
    eps: float = 1e-12,
    mask: Tensor | None = None,
    seq_ids: Tensor | None = None,
    initial_state: LinearState | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, LinearState]:
    """Attention over feature vectors, in time linear in T ("quadratic" excepted).

    All arithmetic, state and denominator are float32 (float64 when q, k or v is). Where v is bfloat16 or autocast
    asks for it, factors of the products of "chunked" are narrower: TensorFloat32 in the GPU kernels, and bfloat16,
    results too, elsewhere on devices that multiply it in hardware (RMS errors of about 0.5 %); what is summed from
    chunk to chunk is float32 there too. It is differentiable in q, k, v, log_decay
    and initial_state: "chunked" once, the other forms as often as wanted. k and v are never repeated over query
    heads.

    Args:
        q: (B, H, T, M) query features, non-negative unless normalize is False. H is a multiple of G.
        k: (B, G, T, M) key features, likewise.
        v: (B, G, T, D) values.
        log_decay: (G,) or (B, G, T), <= 0: the natural logarithm of the factor by which the state shrinks
            before token t is added. None is no decay. Above 0 the state grows; such values are taken too.
        mode: "chunked" (O(T), matrix products; Triton kernels on NVIDIA GPUs), "recurrent" (O(T), a loop over
            tokens) or "quadratic" (O(T^2), the definition).
        causal: False lets every token see its whole sequence; it takes no log_decay and no initial_state.
        chunk_size: positions that "chunked" treats at once; any value gives the same result.
        normalize: False returns the numerator alone.
        eps: floor of the denominator.
        mask: (B, T) bool, False at padding, anywhere in a row: it adds nothing to the state, the decay stands
            still there, and its output and gradients are exactly 0.
        seq_ids: (B, T) integers, for several sequences in one row: a token sees those of its own sequence,
            which stand together; negative is padding. The state starts anew where the id changes.
        initial_state: what the first sequence of every row has seen before.
        return_state: also return the state after the last sequence of every row.

    Returns:
        (B, H, T, D) in v's dtype, or this and a `LinearState` in the dtype of the arithmetic.

    Raises:
        ValueError: shapes or dtypes do not fit one another, or an option is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    check_options(chunk_size, eps)
    if not causal and (log_decay is not None or initial_state is not None):
        given = "log_decay" if log_decay is not None else "initial_state"
        raise ValueError(f"{given} has no meaning where causal is False: there is no order of time")
    products = product_dtype(q.device, q, k, v, narrow=v.dtype == torch.bfloat16)
    with torch.autocast(q.device.type, enabled=False):
        x = prepare(q, k, v, log_decay, mask, seq_ids, initial_state)
        out, state = _run(x, mode, causal, chunk_size, normalize, eps, products)
        out = out.flatten(1, 2).to(v.dtype)
    return (out, state) if return_state else out


def linear_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    chunk_size: int = 64,
    mask: Tensor | None = None,
    seq_ids: Tensor | None = None,
    initial_state: LinearState | None = None,
) -> tuple[Tensor, LinearState]:
    """Numerators and denominators of causal "chunked" linear attention, which can be joined with those of other parts.

    Arguments as `linear_attention`.

    Returns:
        (B, H, T, D + 1), of which the last column is the denominator, and the state; in the dtype of the arithmetic.
    """
    check_options(chunk_size, 1.0)
    products = product_dtype(q.device, q, k, v, narrow=v.dtype == torch.bfloat16)
    with torch.autocast(q.device.type, enabled=False):
        x = prepare(q, k, v, log_decay, mask, seq_ids, initial_state)
        if x.q.numel() == 0 or x.v.numel() == 0 or triton_chunked.takes(x):
            return _sums_as_values(x, chunk_size)
        out, state = sums(x, chunk_size=chunk_size, products=products)
    return out.flatten(1, 2), state


def _sums_as_values(x: Inputs, chunk_size: int) -> tuple[Tensor, LinearState]:
    """The same by any other form: a column of ones among the values gives the denominator."""
    state = x.state
    if state is not None:
        state = LinearState(torch.cat((state.s, state.z[..., None]), dim=-1), state.z)
    x = dataclasses.replace(x, v=torch.nn.functional.pad(x.v.to(x.dtype), (0, 1), value=1.0), state=state)
    out, after = _run(x, "chunked", True, chunk_size, False, 1.0, None)
    return out.flatten(1, 2), LinearState(after.s[..., :-1].contiguous(), after.s[..., -1].contiguous())


def _run(
    x: Inputs,
    mode: str,
    causal: bool,
    chunk_size: int,
    normalize: bool,
    eps: float,
    products: torch.dtype | None,
) -> tuple[Tensor, LinearState]:
    """Output (B, G, R, T, D) and final state."""
    b, g, r, t, m = x.q.shape
    if t == 0:
        empty = LinearState.zeros(b, g, m, x.v.shape[3], device=x.k.device, dtype=x.dtype)
        return x.v.new_zeros(b, g, r, 0, x.v.shape[3]), x.state or empty
    if not causal:
        whole = everything_sees_everything if mode == "quadratic" or b == 0 else bidirectional
        return whole(x, normalize=normalize, eps=eps)
    if mode == "quadratic" or b == 0:  # the definition takes an empty batch as it is
        return quadratic(x, normalize=normalize, eps=eps)
    if mode == "recurrent":
        return recurrent(x, normalize=normalize, eps=eps)
    if triton_chunked.takes(x):
        return triton_chunked.chunked(x, chunk_size=chunk_size, normalize=normalize, eps=eps)
    return chunked(x, chunk_size=chunk_size, normalize=normalize, eps=eps, products=products)
