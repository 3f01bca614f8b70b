"""The gradient of the log-decay in the chunked forms, from all that decay weighs, each term times its gradient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def decay_gradient(pairs: Tensor, read: Tensor, write: Tensor, kept: Tensor) -> Tensor:
    """Gradient of the log-decay at each position of a chunk, (..., C).

    The decay g_t stands in what goes from j < t to i >= t: between positions of the chunk, from the state before it to
    a position i >= t, from a position j < t to the state after it, and from state to state. Only these terms are
    summed. The shorter way, the suffix sums of q . dq - k . dk, is a difference of sums that hold all other pairs too,
    a position and itself among them, whose weight is 1: where the decay is strong nothing is left but their rounding.

    Args:
        pairs: (..., C, C), the weighted score of query i and key j times the gradient of it; what stands on and above
            the diagonal does not matter.
        read: (..., C), what position i reads of the state before the chunk, times its gradient.
        write: (..., C), what position j writes into the state after the chunk, times its gradient.
        kept: (...), what remains of the state before in the state after the chunk, times its gradient.
    """
    before = F.pad(pairs.cumsum(-1)[..., :-1], (1, 0))  # [i, t]: the sum over j < t
    across = before.tril().sum(-2)
    later = read.flip(-1).cumsum(-1).flip(-1)
    return across + state_gradient(later, write, kept)


def state_gradient(later: Tensor, write: Tensor, kept: Tensor) -> Tensor:
    """The part of `decay_gradient` that goes through the states, with the suffix sums of `read`: (..., C)."""
    return later + F.pad(write.cumsum(-1)[..., :-1], (1, 0)) + kept[..., None]
