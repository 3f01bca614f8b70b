"""What one training or evaluation step sees."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

IGNORE = -100
"""The label of a position that is not scored, as in torch.nn.functional.cross_entropy."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token ids with their targets; every tensor is int64 of shape (B, T).

    Attributes:
        input_ids: tokens.
        labels: already shifted: `labels[b, t]` is the token that follows `input_ids[b, t]`; `IGNORE` is not scored.
        positions: position of each token inside its own sequence; None means 0 ... T-1.
        seq_ids: which sequence of the row a token belongs to, -1 for padding; None means one sequence, no padding.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor | None = None
    seq_ids: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            positions=None if self.positions is None else self.positions.to(device),
            seq_ids=None if self.seq_ids is None else self.seq_ids.to(device),
        )

    @property
    def examples(self) -> int:
        """How many rows, or groups of rows that belong together, there are."""
        return len(self.input_ids)

    def split(self, size: int) -> list[Self]:
        """Batches of at most `size` examples each, in order: sums over them are those over this one."""
        if size >= self.examples:
            return [self]
        return [self._part(start, start + size) for start in range(0, self.examples, size)]

    def _part(self, start: int, end: int) -> Self:
        """Examples `start` to `end`."""
        changes: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = value[start:end]
        return replace(self, **changes)
