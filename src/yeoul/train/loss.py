"""Losses as token sums, and the cross-entropy that never holds the logits of all tokens.

Shapes: N tokens, d width, V vocabulary, C chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from yeoul.data.batch import IGNORE, Batch
from yeoul.ops.first_order import first_order


@dataclass(kw_only=True)
class Loss:
    """What an objective gives for one micro-batch.

    Attributes:
        total: loss summed over the valid tokens, float32 scalar with a gradient.
        count: number of valid tokens; the loop divides once by the count of the whole step.
        parts: further sums over the same tokens, for the log only.
    """

    total: Tensor
    count: int
    parts: dict[str, float] = field(default_factory=dict)


Objective = Callable[[nn.Module, Batch], Loss]


def language_model_objective(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy of the next token, for a model with `hidden()` and `output_weight`."""
    hidden = cast(Any, model).hidden(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids)
    # What an adapter adds to the output stays beside it: the frozen table gets no gradient, which is half the work.
    weight, low = getattr(model, "output_parts", None) or (cast(Tensor, model.output_weight), None)
    labels = batch.labels.flatten()
    total, count = linear_cross_entropy(
        hidden.flatten(0, 1), weight, labels, softcap=softcap_of(model), low=low, once=True
    )
    return Loss(total=total, count=count)


def softcap_of(model: nn.Module) -> float | None:
    """The soft cap of a model's logits, see `linear_cross_entropy`; None where it has none."""
    return cast("float | None", getattr(model, "logit_softcap", None))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int | None = None, softcap: float | None = None,
    low: tuple[Tensor, Tensor] | None = None, once: bool = False,
) -> tuple[Tensor, int]:  # fmt: skip
    """Sum of the cross-entropy of `hidden @ weight.T`, computed a chunk of rows at a time.

    The gradients are made in the forward pass, while a chunk's logits are at hand (as in Liger Kernel,
    arXiv:2410.10989, section 3.2), so memory is O(C V) instead of O(N V). Under autocast, or with bfloat16
    inputs, the products are bfloat16 and everything else is float32.

    Args:
        hidden: (N, d).
        weight: (V, d), the output projection.
        labels: (N,) int64; rows labelled `IGNORE` take no part and cost nothing.
        chunk: rows at a time; None chooses by device and vocabulary. Changes only rounding.
        softcap: logits l become softcap * tanh(l / softcap) (Gemma 2, section 2).
        low: A (r, d) and B (V, r): the weight is weight + B A, which is not made.
        once: there is one backward pass, to which the gradients are handed as they are, without a copy of the size of
            the table; another one is an error.

    Returns:
        The sum over valid rows (float32, or float64 for float64 inputs; differentiable once) and their
        number.
    """
    valid = labels != IGNORE
    count = int(valid.sum())
    if count < labels.numel():
        index = valid.nonzero().squeeze(1)
        hidden, labels = hidden.index_select(0, index), labels.index_select(0, index)
    rows = chunk or logit_rows(hidden.device, weight.shape[0])
    factors = [hidden, weight]
    if low is not None:
        A, B = low
        factors += [hidden.to(A.dtype) @ A.t(), B]
    total = _LinearCrossEntropy.apply(labels, (rows, torch.is_grad_enabled(), softcap, once), *factors)
    return cast(Tensor, total), count


def logit_rows(device: torch.device, vocabulary: int) -> int:
    """Rows of logits at a time, enough to keep the products busy: 32 MiB of float32 on a CPU, 512 MiB on a GPU; but at
    least 64."""
    elements = 2**23 if device.type == "cpu" else 2**27
    return max(64, elements // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes the loss and the gradients; backward only scales them.

    The logits are the sum of `left @ right.T` over pairs of factors left (N, k), right (V, k). Pairs after the first
    have few columns, and are added in full precision.
    """

    @staticmethod
    def forward(ctx: Any, labels: Tensor, options: tuple[int, bool, float | None, bool], *factors: Tensor) -> Tensor:
        rows, grad_enabled, softcap, once = options
        device = factors[0].device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else factors[0].dtype
        exact = torch.float64 if compute == torch.float64 else torch.float32
        needed = [grad_enabled and need for need in ctx.needs_input_grad[2:]]
        left = range(0, len(factors), 2)
        gradients = [
            None if not needed[i] else torch.empty_like(f) if i in left else torch.zeros_like(f, dtype=exact)
            for i, f in enumerate(factors)
        ]
        total = torch.zeros((), dtype=exact, device=labels.device)
        with torch.autocast(device, enabled=False):
            typed = [factor.to(compute) for factor in factors]
            added = [factor.to(exact) for factor in factors[2:]]
            for start in range(0, len(labels), rows):
                part = slice(start, start + rows)
                product = (typed[0][part] @ typed[1].t()).to(exact)
                for low, up in zip(added[::2], added[1::2], strict=True):
                    product.addmm_(low[part], up.t())
                logits, slope = capped_(product, softcap)  # (C, V)
                total += _loss_then_gradient_(logits, labels[part], any(needed))
                if any(needed):
                    gradient = (logits if slope is None else logits * slope).to(compute)
                    for i in left:
                        if (found := gradients[i]) is not None:
                            found[part] = gradient @ typed[i + 1]
                        if (found := gradients[i + 1]) is not None:
                            _add_product_(found, gradient.t(), typed[i][part])
        keep_gradients(
            ctx, [None if g is None else g.to(f.dtype) for g, f in zip(gradients, factors, strict=True)], once
        )
        return total

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *scaled_gradients(ctx, grad_total)


def keep_gradients(ctx: Any, gradients: list[Tensor | None], once: bool) -> None:
    """Leave gradients, up to a factor, for the backward pass; with `once` for one alone."""
    ctx.gradients = gradients if once else None
    if not once:
        ctx.save_for_backward(*gradients)


def scaled_gradients(ctx: Any, factor: Tensor) -> list[Tensor | None]:
    """What `keep_gradients` left, times the factor.

    A table of 262,144 pieces and a width of 640 has a gradient of 640 MiB: where there is one backward pass it is
    scaled in place and given away.
    """
    if ctx.gradients is None:
        return [None if g is None else g * factor for g in ctx.saved_tensors]
    gradients, ctx.gradients = ctx.gradients, None
    return [None if g is None else g.mul_(factor) for g in gradients]


def capped_(logits: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """`logits` capped in place, and the derivative of the cap (None: 1), both of the same shape."""
    if softcap is None:
        return logits, None
    logits.div_(softcap).tanh_()
    slope = 1 - logits.square()
    return logits.mul_(softcap), slope


def _loss_then_gradient_(logits: Tensor, labels: Tensor, need_grad: bool) -> Tensor:
    """Summed cross-entropy of `logits` (C, V), which becomes softmax minus one-hot in place."""
    index = labels.unsqueeze(1)
    top, chosen = logits.amax(dim=1, keepdim=True), logits.gather(1, index)  # (C, 1)
    if not need_grad:
        return (logits.logsumexp(dim=1, keepdim=True) - chosen).sum()
    # One fused pass instead of subtract, exp, sum, divide. The normaliser comes back out of the largest
    # probability, which is at least 1/V and so loses nothing to underflow.
    torch.softmax(logits, dim=1, out=logits)
    loss = (top - logits.amax(dim=1, keepdim=True).log() - chosen).sum()
    logits.scatter_add_(1, index, logits.new_full((), -1.0).expand(index.shape))
    return loss


def _add_product_(accumulator: Tensor, left: Tensor, right: Tensor) -> None:
    """`accumulator += left @ right`; the sum over chunks stays in the accumulator's own precision."""
    if accumulator.dtype == left.dtype:
        accumulator.addmm_(left, right)
    else:
        accumulator.add_(left @ right)
