"""Linear attention token by token: for decoding, where one step costs the same at every position."""

from __future__ import annotations

import torch
from torch import Tensor

from yeoul.ops.inputs import Inputs, LinearState, compute_dtype


def recurrent_step(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    state: LinearState | None,
    log_decay_t: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-12,
    *,
    inplace: bool = False,
) -> tuple[Tensor, LinearState]:
    """One token: S <- e^g S + k v^T, z <- e^g z + k, out = S^T q / max(q . z, eps).

    Args:
        q_t: (B, H, M) query features, H a multiple of G.
        k_t: (B, G, M) key features.
        v_t: (B, G, D) values.
        state: what came before, in the dtype of the arithmetic (float32; float64 for float64 inputs); None is
            nothing.
        log_decay_t: (G,) or (B, G), applied to the state before the token is added; None is no decay.
        normalize: False returns S^T q without the denominator.
        eps: floor of the denominator.
        inplace: write the new state into the given tensors (none may require gradients) and return them.

    Returns:
        (B, H, D) in v_t's dtype, and the state after the token.

    Raises:
        ValueError: shapes do not fit, or `inplace` where gradients are recorded.
    """
    b, g, m = k_t.shape
    d = v_t.shape[2]
    if q_t.shape[0] != b or q_t.shape[2] != m or q_t.shape[1] % g or v_t.shape[:2] != (b, g):
        raise ValueError(
            f"q_t (B, H, M), k_t (B, G, M) and v_t (B, G, D) do not fit: "
            f"{tuple(q_t.shape)}, {tuple(k_t.shape)}, {tuple(v_t.shape)}"
        )
    dtype = compute_dtype(q_t, k_t, v_t)
    if state is None:
        state = LinearState.zeros(b, g, m, d, device=k_t.device, dtype=dtype)
    elif state.s.shape != (b, g, m, d) or state.z.shape != (b, g, m):
        raise ValueError(
            f"state must have shapes {(b, g, m, d)} and {(b, g, m)}, "
            f"not {tuple(state.s.shape)} and {tuple(state.z.shape)}"
        )
    if log_decay_t is not None and log_decay_t.shape not in ((g,), (b, g)):
        raise ValueError(f"log_decay_t must have shape {(g,)} or {(b, g)}, not {tuple(log_decay_t.shape)}")
    if inplace and torch.is_grad_enabled() and any(x.requires_grad for x in (q_t, k_t, v_t, *state)):
        raise ValueError("inplace=True overwrites what a gradient needs; use it under torch.no_grad()")
    device_type = q_t.device.type
    if torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            return _step(q_t, k_t, v_t, state, log_decay_t, normalize, eps, inplace, dtype)
    return _step(q_t, k_t, v_t, state, log_decay_t, normalize, eps, inplace, dtype)


def _step(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    state: LinearState,
    log_decay_t: Tensor | None,
    normalize: bool,
    eps: float,
    inplace: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, LinearState]:
    g = k_t.shape[1]
    q, k, v = q_t.to(dtype).unflatten(1, (g, q_t.shape[1] // g)), k_t.to(dtype), v_t.to(dtype)
    s, z = state.s.to(dtype), state.z.to(dtype)
    outer_k, outer_v = k[..., None], v[..., None, :]
    if log_decay_t is None:
        if inplace:
            s.addcmul_(outer_k, outer_v)
            z.add_(k)
        else:
            s, z = torch.addcmul(s, outer_k, outer_v), z + k
    else:
        decay = log_decay_t.to(dtype).exp()[..., None]  # (B or 1, G, 1)
        if inplace:
            s.mul_(decay[..., None]).addcmul_(outer_k, outer_v)
            z.mul_(decay).add_(k)
        else:
            s, z = torch.addcmul(s * decay[..., None], outer_k, outer_v), torch.addcmul(k, z, decay)
    out = q @ s  # (B, G, R, D)
    if normalize:
        out = out / (q @ z[..., None]).clamp(min=eps)
    if inplace:
        # A state kept in another dtype was converted above: what was computed goes back into it.
        for kept, new in ((state.s, s), (state.z, z)):
            if kept is not new:
                kept.copy_(new)
        return out.flatten(1, 2).to(v_t.dtype), state
    return out.flatten(1, 2).to(v_t.dtype), LinearState(s, z)


def recurrent(x: Inputs, *, normalize: bool, eps: float) -> tuple[Tensor, LinearState]:
    """Causal linear attention as a loop over the T positions; see `recurrent_step` for one of them.

    Returns:
        Output (B, G, R, T, D) and final state, in the dtype of the arithmetic.
    """
    q, k, v = x.masked()
    b, g, r, t, m = q.shape
    d = v.shape[-1]
    state = x.state or LinearState.zeros(b, g, m, d, device=k.device, dtype=x.dtype)
    inplace = not torch.is_grad_enabled()
    if inplace:
        state = LinearState(state.s.clone(), state.z.clone())
    queries, keys, values = q.flatten(1, 2).unbind(2), k.unbind(2), v.unbind(2)
    decays: tuple[Tensor | None, ...] = (None,) * t
    if x.log_decay is not None:
        decays = (x.log_decay,) * t if x.log_decay.dim() == 1 else x.log_decay.unbind(2)
    outputs = []
    for i in range(t):
        if x.segment is not None and i > 0:
            new = (x.segment[:, i] != x.segment[:, i - 1])[:, None, None]
            state = LinearState(state.s.masked_fill(new[..., None], 0.0), state.z.masked_fill(new, 0.0))
        out, state = _step(queries[i], keys[i], values[i], state, decays[i], normalize, eps, inplace, x.dtype)
        outputs.append(out)
    out = torch.stack(outputs, dim=2).unflatten(1, (g, r))
    if x.valid is not None:
        out = out.masked_fill(~x.valid[:, None, None, :, None], 0.0)
    return out, state
