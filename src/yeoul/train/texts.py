"""Objectives over whole texts: their classes, and how alike they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.data.batch import Batch
from yeoul.data.text_batches import TextBatch
from yeoul.model.decoder import Decoder
from yeoul.model.heads import ClassificationHead, Pooling, pool, text_hidden
from yeoul.train.loss import Loss, Objective, linear_cross_entropy, softcap_of

PairLoss = Callable[[tuple[Tensor, ...], Tensor | None], Tensor]
"""Vectors of the first, second ... texts of the examples, (N, d) each, and their scores (N,) -> the mean loss."""


def classification_objective(
    head: ClassificationHead, *, label_smoothing: float = 0.0, lm_weight: float = 0.0
) -> Objective:
    """Cross-entropy of the classes of `TextBatch.targets`, a sum over texts.

    Args:
        head: on the model's hidden states.
        label_smoothing: share of each target that is spread over all classes.
        lm_weight: adds so many times the mean cross-entropy of the next token (Radford and others 2018, section 3.2).
    """

    def objective(model: nn.Module, batch: Batch) -> Loss:
        batch = cast(TextBatch, batch)
        assert batch.targets is not None
        decoder = cast(Decoder, model)
        hidden = text_hidden(decoder, batch.input_ids, batch.mask)
        logits = head(hidden, batch.mask)
        total = F.cross_entropy(logits, batch.targets, label_smoothing=label_smoothing, reduction="sum")
        count = len(logits)
        parts = {"accuracy": float((logits.argmax(-1) == batch.targets).sum())}
        if lm_weight:
            summed, tokens = linear_cross_entropy(
                hidden.flatten(0, 1), decoder.output_weight, batch.labels.flatten(), softcap=softcap_of(model)
            )
            total = total + lm_weight * summed * (count / max(1, tokens))
            parts["token_loss"] = float(summed.detach()) * (count / max(1, tokens))
        return Loss(total=total, count=count, parts=parts)

    return objective


def embedding_objective(loss: PairLoss, pooling: Pooling) -> Objective:
    """A loss of the pooled vectors of texts that belong together, counted per example."""

    def objective(model: nn.Module, batch: Batch) -> Loss:
        batch = cast(TextBatch, batch)
        vectors = pool(text_hidden(cast(Decoder, model), batch.input_ids, batch.mask), batch.mask, pooling)
        with torch.autocast(vectors.device.type, enabled=False):
            mean = loss(vectors.chunk(batch.ways), batch.targets)
        count = len(batch.input_ids) // batch.ways
        return Loss(total=mean * count, count=count)

    return objective
