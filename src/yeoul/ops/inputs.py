"""What every form of linear attention starts from: checked shapes, one dtype, sequences numbered from 0."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from yeoul import runtime

# exp(-750) is 0 in float32 and float64. The floor keeps a decay of -inf ("forget everything") out of
# differences, where inf - inf would be NaN.
LOG_DECAY_FLOOR = -750.0


class LinearState(NamedTuple):
    """What linear attention remembers of the past; its size does not depend on the number of positions.

    Attributes:
        s: (B, G, M, D) sum of decayed outer products of key features and values, float32 (or float64).
        z: (B, G, M) sum of decayed key features, same dtype.
    """

    s: Tensor
    z: Tensor

    @classmethod
    def zeros(
        cls,
        batch: int,
        groups: int,
        features: int,
        head_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> LinearState:
        """State of an empty past: s (batch, groups, features, head_size) and z (batch, groups, features)."""
        s = torch.zeros(batch, groups, features, head_size, device=device, dtype=dtype)
        return cls(s, torch.zeros(batch, groups, features, device=device, dtype=dtype))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Checked inputs. R = H / G query heads share a state; `dtype` is that of all arithmetic.

    Attributes:
        q: (B, G, R, T, M), input dtype, a view of the caller's tensor.
        k: (B, G, T, M), input dtype.
        v: (B, G, T, D), input dtype.
        log_decay: (G,) or (B, G, T), at least `dtype`, not below LOG_DECAY_FLOOR, 0 at padding; None is none.
        segment: (B, T) int64, 0 for the first sequence of a row, 1 for the next ...; padding has that of the
            token before it (of the first token when there is none). None is one sequence a row.
        valid: (B, T) bool, False at padding; None is no padding.
        state: what the first sequence of each row has seen before, in `dtype`; None is nothing.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    segment: Tensor | None
    valid: Tensor | None
    state: LinearState | None
    dtype: torch.dtype

    def masked(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v in the dtype of the arithmetic, exactly zero at padding (NaN there does not leak)."""
        q, k, v = self.q.to(self.dtype), self.k.to(self.dtype), self.v.to(self.dtype)
        if self.valid is None:
            return q, k, v
        hidden = ~self.valid[:, None, :, None]
        return q.masked_fill(hidden[:, None], 0.0), k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any of the tensors is float64, else float32, whatever they are."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def product_dtype(device: torch.device, *given: Tensor, narrow: bool = False) -> torch.dtype | None:
    """What the factors of large products are rounded to: bfloat16 where autocast or the caller (`narrow`) asks for it
    and the device multiplies it in hardware; None is the usual dtype."""
    if compute_dtype(*given) == torch.float64:
        return None
    asked = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    return torch.bfloat16 if (asked or narrow) and _multiplies_bf16(device) else None


@functools.cache
def _multiplies_bf16(device: torch.device) -> bool:
    return runtime.has_native_bf16(device)


def sum_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which log-decays are summed: float64, so that differences of large sums stay exact."""
    return x.dtype if x.device.type == "mps" else torch.float64


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    mask: Tensor | None,
    seq_ids: Tensor | None,
    state: LinearState | None,
) -> Inputs:
    """Check the arguments of `linear_attention` and bring them to one form.

    Raises:
        ValueError: a shape or dtype does not fit the others.
    """
    _check_shapes(q, k, v)
    (b, h, t, m), (g, d) = q.shape, (k.shape[1], v.shape[3])
    dtype = compute_dtype(q, k, v)
    segment, valid = _sequences(mask, seq_ids, b, t)
    if log_decay is not None:
        if log_decay.shape not in ((g,), (b, g, t)):
            raise ValueError(
                f"log_decay must have shape (G,) = ({g},) or (B, G, T) = ({b}, {g}, {t}), not {tuple(log_decay.shape)}"
            )
        if not log_decay.is_floating_point():
            raise ValueError(f"log_decay must be floating point, not {log_decay.dtype}")
        log_decay = log_decay.to(torch.promote_types(log_decay.dtype, dtype)).clamp(min=LOG_DECAY_FLOOR)
        if valid is not None:
            per_position = log_decay if log_decay.dim() == 3 else log_decay[None, :, None].expand(b, g, t)
            log_decay = per_position.masked_fill(~valid[:, None, :], 0.0)
    if state is not None:
        s, z = state
        if s.shape != (b, g, m, d) or z.shape != (b, g, m):
            raise ValueError(
                f"initial_state must have shapes (B, G, M, D) = {(b, g, m, d)} and (B, G, M) = {(b, g, m)}, "
                f"not {tuple(s.shape)} and {tuple(z.shape)}"
            )
        state = LinearState(s.to(dtype), z.to(dtype))
    # A view: k and v are never repeated over the H / G query heads of a group.
    q = q.unflatten(1, (g, h // g))
    return Inputs(q=q, k=k, v=v, log_decay=log_decay, segment=segment, valid=valid, state=state, dtype=dtype)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, not shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, not {x.dtype}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v must agree in (B, G, T): k has {tuple(k.shape)} and v has {tuple(v.shape)}")
    if (q.shape[0], q.shape[2], q.shape[3]) != (k.shape[0], k.shape[2], k.shape[3]):
        raise ValueError(f"q and k must agree in B, T and M: q has {tuple(q.shape)}, k has {tuple(k.shape)}")
    if k.shape[1] == 0 or q.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"the number of query heads must be a multiple of that of key-value heads: {q.shape[1]} and {k.shape[1]}"
        )


def _sequences(mask: Tensor | None, seq_ids: Tensor | None, b: int, t: int) -> tuple[Tensor | None, Tensor | None]:
    """Number the sequences of each row from 0 in order and find the padding: (segment, valid)."""
    for name, x in (("mask", mask), ("seq_ids", seq_ids)):
        if x is not None and x.shape != (b, t):
            raise ValueError(f"{name} must have shape (B, T) = {(b, t)}, not {tuple(x.shape)}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (True is a token), not {mask.dtype}")
    valid = mask
    segment = None
    if seq_ids is not None:
        if seq_ids.is_floating_point() or seq_ids.dtype == torch.bool:
            raise ValueError(f"seq_ids must be integers, not {seq_ids.dtype}")
        valid = seq_ids >= 0 if mask is None else mask & (seq_ids >= 0)
        if t > 0:
            segment = _number_segments(seq_ids, valid)
    # Where looking is free, a mask that hides nothing costs nothing.
    looks_free = valid is not None and valid.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks_free and valid is not None and bool(valid.all()):
        valid = None
    if looks_free and segment is not None and not bool(segment[:, -1].any()):
        segment = None
    return segment, valid


def _number_segments(seq_ids: Tensor, valid: Tensor) -> Tensor:
    """(B, T) ids with padding anywhere -> (B, T) 0, 0, 1, 1, 1, 2 ...; padding takes its left neighbour's."""
    t = seq_ids.shape[1]
    positions = torch.arange(t, device=seq_ids.device).expand_as(seq_ids)
    last = torch.where(valid, positions, -1).cummax(dim=1).values
    first = valid.to(torch.int64).argmax(dim=1, keepdim=True)
    filled = seq_ids.gather(1, torch.where(last < 0, first, last))
    changes = (filled[:, 1:] != filled[:, :-1]).to(torch.int64).cumsum(1)
    return torch.nn.functional.pad(changes, (1, 0))


def check_options(chunk_size: int, eps: float) -> None:
    """Raise ValueError for a chunk size or eps that makes no sense."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be an integer of at least 1, not {chunk_size!r}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"eps must be positive, not {eps!r}")
