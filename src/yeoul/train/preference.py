"""Direct preference optimisation (Rafailov and others 2023, arXiv:2305.18290): better answers become more probable.

Shapes: N pairs, R = 2 N rows (the chosen answers, then the rejected ones), T positions, n tokens, d width,
V vocabulary, C chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.preferences import Pair, PairBatch, pair_batches
from yeoul.model.decoder import Decoder
from yeoul.ops.first_order import first_order
from yeoul.train.loss import Loss, Objective, capped_, softcap_of

LOGITS = 2**23
"""Logits in memory at a time on a CPU (32 MiB); sixteen times as many elsewhere."""


class _TokenLogProbs(torch.autograd.Function):
    """Logits a chunk at a time, and once more in backward.

    What an answer's gradient is multiplied by is known only when both answers of a pair have been scored, so the
    gradients cannot be made in the forward pass as `linear_cross_entropy` makes them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: int, softcap: float | None) -> Tensor:
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.float64 if compute == torch.float64 else torch.float32
        found = torch.empty(len(labels), dtype=exact, device=hidden.device)
        with torch.autocast(device, enabled=False):
            h, w = hidden.to(compute), weight.to(compute)
            for start in range(0, len(labels), rows):
                part = slice(start, start + rows)
                logits, _ = capped_((h[part] @ w.t()).to(exact), softcap)  # (C, V)
                found[part] = logits.gather(1, labels[part, None]).squeeze(1) - logits.logsumexp(1)
        ctx.save_for_backward(hidden, weight, labels)
        ctx.compute, ctx.rows, ctx.softcap = compute, rows, softcap
        return found

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, labels = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(ctx.compute), weight.to(ctx.compute)
            for start in range(0, len(labels), ctx.rows):
                part = slice(start, start + ctx.rows)
                logits, slope = capped_((h[part] @ w.t()).to(grad.dtype), ctx.softcap)
                slopes = logits.softmax(1).mul_(-grad[part, None])  # d log p / d logits = one-hot - p
                slopes.scatter_add_(1, labels[part, None], grad[part, None])
                slopes = (slopes if slope is None else slopes.mul_(slope)).to(ctx.compute)
                if grad_hidden is not None:
                    grad_hidden[part] = slopes @ w
                if grad_weight is not None:
                    grad_weight.add_(slopes.t() @ h[part])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def token_log_probs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int | None = None, softcap: float | None = None
) -> Tensor:
    """Log-probabilities of `labels` under softmax(`hidden @ weight.T`), without the logits of all tokens at once.

    Args:
        hidden: (n, d).
        weight: (V, d), the output projection.
        labels: (n,) int64.
        chunk: rows at a time; None chooses by device and vocabulary. Changes only rounding.
        softcap: see `yeoul.train.loss.linear_cross_entropy`.

    Returns:
        (n,) float32, or float64 for float64 inputs; differentiable once.
    """
    most = LOGITS if hidden.device.type == "cpu" else 16 * LOGITS
    rows = chunk or max(64, most // weight.shape[0])
    return cast(Tensor, _TokenLogProbs.apply(hidden, weight, labels, rows, softcap))


def answer_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """(R,): for each row the sum of the log-probabilities of its labels, for a model with `hidden()`.

    Rows are padded on the right, which needs no mask: attention only looks back.
    """
    hidden = cast(Any, model).hidden(batch.input_ids)  # (R, T, d)
    valid = batch.labels != IGNORE
    found = token_log_probs(
        hidden[valid], cast(Tensor, model.output_weight), batch.labels[valid], softcap=softcap_of(model)
    )
    return found.new_zeros(len(valid)).index_add(0, valid.nonzero()[:, 0], found)


class PreferenceTerms(NamedTuple):
    """Of each pair, (N,) each: the loss, and the rewards of its two answers."""

    loss: Tensor
    chosen: Tensor
    rejected: Tensor

    def sums(self) -> dict[str, float]:
        """Over pairs: the margin (reward of the chosen less that of the rejected), in how many it is above 0, and the
        rewards."""
        margin = (self.chosen - self.rejected).detach()
        return {
            "margin": float(margin.sum()), "accuracy": float((margin > 0).sum()),
            "chosen_reward": float(self.chosen.detach().sum()), "rejected_reward": float(self.rejected.detach().sum()),
        }  # fmt: skip


def preference_terms(policy: Tensor, reference: Tensor, *, beta: float = 0.1, noise: float = 0.0) -> PreferenceTerms:
    """-log sigmoid(beta (log pi(y_w) / ref(y_w) - log pi(y_l) / ref(y_l))), equation 7 of the paper.

    The reward of an answer is beta log pi(y) / ref(y), equation 5 without the term that both answers share.

    Args:
        policy: (R,) log-probabilities of the answers in the trained model.
        reference: (R,), in the model that it began as.
        beta: strength of the pull towards the reference: the larger, the closer the model stays to it.
        noise: share of the pairs that is taken to be the wrong way round (conservative DPO, Mitchell 2023).
    """
    chosen, rejected = (beta * (policy - reference)).chunk(2)
    margin = chosen - rejected
    return PreferenceTerms(-(1 - noise) * F.logsigmoid(margin) - noise * F.logsigmoid(-margin), chosen, rejected)


def preference_objective(*, beta: float = 0.1, noise: float = 0.0) -> Objective:
    """The loss of `PairBatch`es with their reference, a sum over pairs; see `preference_terms`."""

    def objective(model: nn.Module, batch: Batch) -> Loss:
        reference = cast(PairBatch, batch).reference
        assert reference is not None
        terms = preference_terms(answer_log_probs(model, batch), reference, beta=beta, noise=noise)
        return Loss(total=terms.loss.sum(), count=len(terms.loss), parts=terms.sums())

    return objective


def log_probs_of_pairs(
    model: Decoder, pairs: Sequence[Pair], *, batch_size: int, pad_id: int, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """(len(pairs), 2) float32: the log-probabilities of the chosen and the rejected answers, in eval mode.

    Args:
        batch_size: pairs at a time; changes only rounding.
        pad_id: any valid id.
        dtype: of the products.
    """
    found = np.zeros((len(pairs), 2), dtype=np.float32)
    was_training = model.training
    model.eval()
    for drawn, batch in pair_batches(pairs, batch_size=batch_size, pad_id=pad_id):
        with torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            chosen, rejected = answer_log_probs(model, batch.to(model.device)).float().cpu().chunk(2)
        found[drawn, 0], found[drawn, 1] = chosen.numpy(), rejected.numpy()
    model.train(was_training)
    return found


def preference_scores(
    policy: np.ndarray, reference: np.ndarray, *, beta: float = 0.1, noise: float = 0.0
) -> dict[str, float]:
    """Means over pairs: "loss", "margin", "accuracy" and the rewards; arguments as `preference_terms`, (N, 2) each."""
    rows = (torch.from_numpy(values.T.reshape(-1).copy()) for values in (policy, reference))
    terms = preference_terms(*rows, beta=beta, noise=noise)
    sums = {"loss": float(terms.loss.sum()), **terms.sums()}
    return {key: value / len(policy) for key, value in sums.items()}
