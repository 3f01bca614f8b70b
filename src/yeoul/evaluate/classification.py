"""How well classes were told apart: accuracy, F1, confusion matrix."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yeoul.data.text_batches import Item, text_batches
from yeoul.model.decoder import Decoder
from yeoul.model.heads import ClassificationHead, text_hidden

SHOWN = 20
"""Classes shown in a confusion matrix, at most."""


@dataclass(frozen=True)
class ClassScores:
    """The figures of one class; 0 where there are no cases."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ClassificationScores:
    """How predictions agree with the truth.

    Attributes:
        labels: names of the classes.
        confusion: (labels, labels) int64; row: the truth, column: what was predicted.
    """

    labels: tuple[str, ...]
    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the texts whose class was found."""
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    @property
    def classes(self) -> list[ClassScores]:
        """Each class."""
        found = np.diag(self.confusion)
        truth, predicted = self.confusion.sum(1), self.confusion.sum(0)
        return [
            ClassScores(_share(hit, p), _share(hit, t), _share(2 * hit, p + t), int(t))
            for hit, t, p in zip(found, truth, predicted, strict=True)
        ]

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur in the truth or among the predictions, whatever their size."""
        occurs = (self.confusion.sum(0) + self.confusion.sum(1)) > 0
        values = [scores.f1 for scores, there in zip(self.classes, occurs, strict=True) if there]
        return sum(values) / max(1, len(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return {
            "accuracy": self.accuracy, "macro_f1": self.macro_f1, "texts": int(self.confusion.sum()),
            "classes": {name: vars(scores) for name, scores in zip(self.labels, self.classes, strict=True)},
            "confusion": self.confusion.tolist(), "labels": list(self.labels),
        }  # fmt: skip

    def table(self) -> str:
        """Precision, recall and F1 of each class, and the confusion matrix, as lines of text."""
        lines = [["class", "texts", "precision", "recall", "F1"]]
        lines += [
            [name, f"{s.support:,}", f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}"]
            for name, s in zip(self.labels, self.classes, strict=True)
        ]
        text = _aligned(lines)
        if len(self.labels) > SHOWN:
            return f"{text}\n({len(self.labels)} classes: the confusion matrix is in the JSON.)"
        matrix = [["truth / predicted", *self.labels]]
        matrix += [[name, *(f"{n:,}" for n in row)] for name, row in zip(self.labels, self.confusion, strict=True)]
        return f"{text}\n\n{_aligned(matrix)}"


def classification_scores(
    truth: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, labels: Sequence[str]
) -> ClassificationScores:
    """Counts of truth and prediction.

    Args:
        truth, predicted: numbers of classes, (N,).
        labels: their names.
    """
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    return ClassificationScores(tuple(labels), confusion)


def score_classifier(
    model: Decoder,
    head: ClassificationHead,
    items: Sequence[Item],
    targets: np.ndarray,
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, ClassificationScores]:
    """Mean cross-entropy of the classes, and the scores.

    Args:
        items: examples of one text each, as tokens.
        targets: (len(items),) int64, their classes.
        batch_size: texts at a time; changes only rounding.
        dtype: of the products.
    """
    loss, predicted = 0.0, np.zeros(len(items), dtype=np.int64)
    was_training = head.training
    head.eval()
    for chosen, batch in text_batches(items, targets, batch_size=batch_size, pad_id=0):
        here = batch.to(model.device)
        with torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            logits = head(text_hidden(model, here.input_ids, here.mask), here.mask)
        loss += float(torch.nn.functional.cross_entropy(logits, here.targets, reduction="sum"))  # type: ignore[arg-type]
        predicted[chosen] = logits.argmax(-1).cpu().numpy()
    head.train(was_training)
    return loss / max(1, len(items)), classification_scores(targets, predicted, head.labels)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _aligned(rows: list[list[str]]) -> str:
    """Columns side by side: the first to the left, the others to the right; Hangul is two columns wide."""
    widths = [max(_columns(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell + " " * (widths[0] - _columns(cell)) if i == 0 else " " * (widths[i] - _columns(cell)) + cell
                 for i, cell in enumerate(row)]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
