"""Whole texts as batches: one text a row, of similar length or as they were drawn, padded on the right."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.resumable import ResumableLoader
from yeoul.errors import UserError
from yeoul.units import count

POOL = 50
"""Batches that are drawn together and sorted by length."""

Ids = Sequence[int] | np.ndarray
Item = tuple[Ids, ...]
"""One example: the tokens of its texts, one or several, none of them empty."""


@dataclass(frozen=True, kw_only=True)
class TextBatch(Batch):
    """Rows of one text each, and what is to be learned of them.

    With several texts to an example, the rows are all first texts, then all second ones, and so on: B = ways * N.

    Attributes:
        labels: the next token, for an auxiliary loss; `IGNORE` behind a text's last token.
        seq_ids: 0 for tokens, -1 for padding.
        targets: (N,), int64 classes or float32 scores; None where there are none.
        ways: texts of one example.
        numbers: (N,), int64: which of the loader's examples they are; None where it is not known.
    """

    targets: Tensor | None = None
    ways: int = 1
    numbers: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: True for tokens."""
        assert self.seq_ids is not None
        return self.seq_ids >= 0

    def split(self, size: int) -> list[Self]:
        """See `Batch.split`; examples of several texts stay together, for their loss compares them with one another."""
        return [self] if self.ways > 1 else super().split(size)

    def to(self, device: torch.device | str) -> TextBatch:
        """The same batch on another device."""
        plain = super().to(device)
        return TextBatch(
            input_ids=plain.input_ids, labels=plain.labels, seq_ids=plain.seq_ids,
            targets=None if self.targets is None else self.targets.to(device), ways=self.ways,
            numbers=None if self.numbers is None else self.numbers.to(device),
        )  # fmt: skip


def text_batch(items: Sequence[Item], targets: np.ndarray | None, pad_id: int) -> TextBatch:
    """Examples as one batch, as wide as the longest text.

    Args:
        items: N examples with the same number of texts.
        targets: (N,), see `TextBatch`.
        pad_id: written where there is no token; nothing depends on it.
    """
    rows = [item[way] for way in range(len(items[0])) for item in items]
    shape = (len(rows), max(len(row) for row in rows))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    seq_ids = np.full(shape, -1, dtype=np.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = row
        labels[number, : len(row) - 1] = row[1:]
        seq_ids[number, : len(row)] = 0
    return TextBatch(
        input_ids=torch.from_numpy(input_ids), labels=torch.from_numpy(labels), seq_ids=torch.from_numpy(seq_ids),
        targets=None if targets is None else torch.from_numpy(targets), ways=len(items[0]),
    )  # fmt: skip


def by_length(lengths: Sequence[int] | np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Numbers of the texts in batches of similar length, the longest first: what does not fit shows at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class TextLoader(ResumableLoader[np.ndarray]):
    """Endless training batches of examples, in an order that depends on the seed alone.

    Each epoch has every example once; its last batch may be smaller.

    Args:
        items: examples, as tokens.
        targets: (len(items),), see `TextBatch`.
        batch_size: examples in a batch.
        seed: of the order, and of what is dropped.
        pad_id: as in `text_batch`.
        drop: each token is left out with this probability, but never all of a text.
        ends: so many tokens at the beginning and at the end of a text are never left out.
        bucket_by_length: the examples of a batch are of similar length, which saves padding; without, batches are
            random, for losses that compare the examples of a batch.
    """

    def __init__(
        self,
        items: Sequence[Item],
        targets: np.ndarray | None,
        *,
        batch_size: int,
        seed: int,
        pad_id: int,
        drop: float = 0.0,
        bucket_by_length: bool = True,
        ends: tuple[int, int] = (0, 0),
    ) -> None:
        if not items or batch_size < 1:
            raise UserError(f"{count(len(items), 'example')} in batches of {batch_size} cannot be trained on")
        super().__init__(seed)
        self.items, self.targets, self.batch_size = items, targets, batch_size
        self.pad_id, self.drop, self.bucket_by_length, self.ends = pad_id, drop, bucket_by_length, ends
        self.lengths = np.array([max(len(text) for text in item) for item in items])
        self._digest = digest(items, targets)

    @property
    def epoch_batches(self) -> int:
        """Batches of one epoch."""
        return -(-len(self.items) // self.batch_size)

    def _generator(self, epoch: int, *turn: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch, *turn))))

    def _epoch_items(self, epoch: int) -> Iterator[np.ndarray]:
        """The numbers of the examples of each batch."""
        draw = self._generator(epoch)
        order = draw.permutation(len(self.items))
        batches: list[np.ndarray] = []
        drawn = (POOL if self.bucket_by_length else 1) * self.batch_size
        for start in range(0, len(order), drawn):
            pool = order[start : start + drawn]
            batches += [pool[chosen] for chosen in by_length(self.lengths[pool], self.batch_size)]
        return (batches[number] for number in draw.permutation(len(batches)))

    def next_batch(self) -> TextBatch:
        """The next batch."""
        chosen = self._next()
        items = [self.items[number] for number in chosen]
        if self.drop:
            draw = self._generator(self.epoch, self.index - 1)
            items = [tuple(dropped(text, self.drop, draw, self.ends) for text in item) for item in items]
        batch = text_batch(items, None if self.targets is None else self.targets[chosen], self.pad_id)
        return replace(batch, numbers=torch.from_numpy(chosen))

    def _settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed, "batch_size": self.batch_size, "drop": self.drop,
            "bucket_by_length": self.bucket_by_length, "examples": len(self.items), "digest": self._digest,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ResumableLoader`; states of earlier versions call `bucket_by_length` "alike"."""
        super().load_state_dict({"bucket_by_length": state.get("alike")} | state if "alike" in state else state)


def dropped(text: Ids, share: float, generator: np.random.Generator, ends: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The tokens of a text without a random share of them, but for those at its ends; one stays at least."""
    keep = generator.random(len(text)) >= share
    keep[: ends[0]] = keep[len(text) - ends[1] :] = True
    if not keep.any():
        keep[generator.integers(len(text))] = True
    return np.asarray(text)[keep]


def digest(items: Iterable[Item], targets: np.ndarray | None) -> int:
    """Changes when a token or a target does."""
    crc = 0 if targets is None else zlib.crc32(np.ascontiguousarray(targets).tobytes())
    for item in items:
        for text in item:
            crc = zlib.crc32(np.asarray(text, dtype=np.int32).tobytes(), zlib.crc32(b"|", crc))
    return crc


def text_batches(
    items: Sequence[Item], targets: np.ndarray | None, *, batch_size: int, pad_id: int
) -> Iterator[tuple[np.ndarray, TextBatch]]:
    """One pass for scoring: the numbers of the examples and their batch, long ones first."""
    for chosen in by_length([max(len(text) for text in item) for item in items], batch_size):
        yield chosen, text_batch([items[i] for i in chosen], None if targets is None else targets[chosen], pad_id)
