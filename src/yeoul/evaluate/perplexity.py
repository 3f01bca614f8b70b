"""How well a model predicts text: loss, perplexity, bits per byte, and the loss by position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yeoul.data.batch import IGNORE, Batch
from yeoul.errors import UserError

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder

CHUNK_ELEMENTS = 1 << 22
"""Logits in memory at a time (16 MiB in fp32), whatever batch and context are."""
LEAST_ROWS = 32
"""Rows of logits at a time, at least: the whole table is read once for each chunk."""


@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Mean loss of the tokens whose context is `first` to `last` tokens long (both included, counted from
    0)."""

    first: int
    last: int
    loss: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class LMScore:
    """The score of a model on a text.

    Attributes:
        loss: mean negative log-likelihood, nats per token.
        perplexity: exp(loss).
        bits_per_byte: total negative log-likelihood in bits over the UTF-8 bytes that the scored tokens stand
            for; None when the byte lengths are not known. Fair across tokenizers, which loss and perplexity
            are not.
        tokens: how many tokens were scored.
        bytes: how many bytes of text they stand for; None as above.
        by_position: mean loss by position in the sequence, in buckets that double; empty unless asked for.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    bytes: int | None
    by_position: tuple[PositionLoss, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        if not self.by_position:
            del values["by_position"]
        return values


def score(
    model: Decoder,
    batches: Iterable[Batch],
    byte_lengths: Sequence[int] | None,
    *,
    dtype: torch.dtype | None = None,
    by_position: bool = False,
) -> LMScore:
    """Score every label that is not `IGNORE`; sums are kept in float64.

    The model stays on its device and is left in the mode (train or eval) in which it came. The vocabulary's
    logits are made in chunks of rows, so that memory does not grow with batch times vocabulary.

    Args:
        model: a `Decoder`: has `hidden(input_ids, positions=, seq_ids=)` (B, T, hidden) and `unembed` ->
            logits.
        batches: labels are already shifted (see `Batch`).
        byte_lengths: UTF-8 bytes that each token id stands for; None leaves bits per byte out.
        dtype: run under autocast in this type; None or float32 runs as the weights are.
        by_position: also the loss by position, in buckets [0], [1], [2, 3], [4 ... 7], ...

    Raises:
        UserError: there is nothing to score.
    """
    device = next(model.parameters()).device
    lengths = None if byte_lengths is None else torch.tensor(byte_lengths, dtype=torch.int64)
    total, tokens, num_bytes = 0.0, 0, 0
    bucket_sums = torch.zeros(64, dtype=torch.float64)
    bucket_counts = torch.zeros(64, dtype=torch.int64)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, dtype):
            for batch in batches:
                losses, labels, positions = token_losses(model, batch.to(device))
                total += float(losses.sum())
                tokens += labels.numel()
                if lengths is not None:
                    num_bytes += int(lengths[labels].sum())
                if by_position and labels.numel():
                    bucket = _bucket(positions)
                    bucket_sums += torch.bincount(bucket, weights=losses, minlength=64)
                    bucket_counts += torch.bincount(bucket, minlength=64)
    finally:
        model.train(was_training)
    if tokens == 0:
        raise UserError("there is no token to score", fix="give a text of at least two tokens")
    loss = total / tokens
    return LMScore(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=total / math.log(2) / num_bytes if num_bytes else None,
        tokens=tokens,
        bytes=num_bytes if lengths is not None else None,
        by_position=_position_losses(bucket_sums, bucket_counts),
    )


def token_losses(model: Decoder, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihoods of the scored labels: losses (N,) float64, labels (N,), positions (N,), all on
    the CPU.

    Positions are those inside each token's own sequence.
    """
    hidden = model.hidden(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids)  # (B, T, hidden)
    valid = batch.labels != IGNORE  # (B, T)
    labels = batch.labels[valid]  # (N,)
    rows = hidden[valid]  # (N, hidden)
    if batch.positions is None:
        positions = torch.arange(batch.labels.shape[1], device=valid.device).expand_as(batch.labels)[valid]
    else:
        positions = batch.positions[valid]
    losses = torch.empty(labels.numel(), dtype=torch.float64)
    step = logits_at_once(int(model.output_weight.shape[0]))
    for start in range(0, labels.numel(), step):
        logits = model.unembed(rows[start : start + step]).float()  # (chunk, V)
        picked = logits.gather(1, labels[start : start + step, None])[:, 0]
        losses[start : start + step] = (torch.logsumexp(logits, 1) - picked).double().cpu()
    return losses, labels.cpu(), positions.cpu()


def logits_at_once(vocabulary: int) -> int:
    """Rows of logits in memory at a time."""
    return max(LEAST_ROWS, CHUNK_ELEMENTS // vocabulary)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast in `dtype`; nothing for None and float32, which run as the weights are."""
    if dtype is None or dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _bucket(positions: Tensor) -> Tensor:
    """Position 0 -> 0, 1 -> 1, 2-3 -> 2, 4-7 -> 3, ...: the number of binary digits."""
    return torch.frexp(positions.double())[1].to(torch.int64)


def _position_losses(sums: Tensor, counts: Tensor) -> tuple[PositionLoss, ...]:
    return tuple(
        PositionLoss(
            first=(1 << (i - 1)) if i else 0,
            last=(1 << i) - 1,
            loss=float(sums[i] / counts[i]),
            tokens=int(counts[i]),
        )
        for i in range(counts.numel())
        if counts[i] > 0
    )
