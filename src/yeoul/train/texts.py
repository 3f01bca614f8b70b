"""Objectives over whole texts: their classes, and how similar they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.data.batch import Batch
from yeoul.data.text_batches import Item, TextBatch, text_batches
from yeoul.model.decoder import Decoder
from yeoul.model.heads import ClassificationHead, TextVectors, text_hidden
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
            weight, low = decoder.output_parts
            labels = batch.labels.flatten()
            summed, tokens = linear_cross_entropy(
                hidden.flatten(0, 1), weight, labels, softcap=softcap_of(model), low=low, once=True
            )
            total = total + lm_weight * summed * (count / max(1, tokens))
            parts["token_loss"] = float(summed.detach()) * (count / max(1, tokens))
        return Loss(total=total, count=count, parts=parts)

    return objective


def embedding_objective(loss: PairLoss, vectors: TextVectors, known: Tensor | None = None) -> Objective:
    """A loss of the vectors of texts that belong together, counted per example.

    Args:
        loss: of the vectors, in fp32.
        vectors: how they are made.
        known: (examples, ways, width), the pooled states of all examples of the loader, as `pooled_items` gives them;
            where they are known the model is not asked.
    """

    def objective(model: nn.Module, batch: Batch) -> Loss:
        batch = cast(TextBatch, batch)
        if known is None:
            pooled = vectors.pooled(cast(Decoder, model), batch.input_ids, batch.mask)
        else:
            assert batch.numbers is not None
            pooled = known[batch.numbers].transpose(0, 1).flatten(0, 1)  # first texts, then second ones
        with torch.autocast(pooled.device.type, enabled=False):
            mean = loss(vectors(pooled).chunk(batch.ways), batch.targets)
        count = len(batch.input_ids) // batch.ways
        return Loss(total=mean * count, count=count)

    return objective


@torch.no_grad()
def pooled_items(
    model: Decoder, vectors: TextVectors, items: Sequence[Item], *, batch_size: int, dtype: torch.dtype
) -> Tensor:
    """The pooled states of examples' texts, (N, ways, width) fp32 on the model's device.

    Args:
        vectors: its states and pooling; its layers have no part in it.
        items: N examples with the same number of texts.
        batch_size: examples at a time; changes only rounding.
        dtype: in which products are computed.
    """
    ways, device = len(items[0]), model.device
    result = torch.zeros(len(items), ways, vectors.pooled_width(model.config.hidden_size), device=device)
    for chosen, batch in text_batches(items, None, batch_size=batch_size, pad_id=0):
        here = batch.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            pooled = vectors.pooled(model, here.input_ids, here.mask)
        result[torch.from_numpy(chosen).to(device)] = pooled.view(ways, len(chosen), -1).transpose(0, 1)
    return result
