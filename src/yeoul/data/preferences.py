"""Pairs of answers to one prompt, a better and a worse one, as batches that keep the two together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.conversations import Preference
from yeoul.data.examples import Example, complain_of
from yeoul.data.record_files import Records
from yeoul.data.text_batches import TextLoader, by_length
from yeoul.errors import UserError


class Pair(NamedTuple):
    """The prompt with each of its two answers; `trained` marks the tokens of the answer. `prompt` is text to compare.

    The prompt's own turns of the assistant are not marked: both have them.
    """

    prompt: str
    chosen: Example
    rejected: Example


class FittedPairs(NamedTuple):
    """Pairs that fit into a context, how many were cut for it, and how many no longer differed then."""

    pairs: list[Pair]
    cut: int
    dropped: int


Render = Callable[..., "tuple[list[int], list[bool]]"]


def make_pairs(records: Records[Any] | Iterable[Preference], render: Render) -> list[Pair]:
    """Preferences as tokens.

    A preference that the chat template refuses is a bad record like any other: `Records` raises or counts it.

    Args:
        render: messages to ids and which of them are trained, as `functools.partial(render_chat, tokenizer)`.

    Raises:
        UserError: see above, with the place of the record.
    """
    pairs: list[Pair] = []
    for record in records:
        if not isinstance(record, Preference):
            raise TypeError(f"{type(record).__name__} is not a preference")
        try:
            chosen, rejected = (_example(record.prompt, end, render) for end in (record.chosen, record.rejected))
            if chosen.ids.tolist() == rejected.ids.tolist():
                raise UserError("both answers are the same tokens")
        except UserError as error:
            complain_of(record.where, error, records)
            continue
        pairs.append(Pair(repr(record.prompt), chosen, rejected))
    return pairs


def _example(prompt: Sequence[Mapping[str, Any]], answer: Sequence[Mapping[str, Any]], render: Render) -> Example:
    ids, trained = render([*({**message, "weight": 0} for message in prompt), *answer])
    return Example(np.asarray(ids, dtype=np.int32), np.asarray(trained, dtype=bool))


def fit_pairs(pairs: Iterable[Pair], context: int) -> FittedPairs:
    """Keep the first `context` + 1 tokens of each answer, and drop pairs whose difference is cut off with the rest."""
    kept: list[Pair] = []
    cut = dropped = 0
    for prompt, chosen, rejected in pairs:
        cut += max(len(chosen.ids), len(rejected.ids)) > context + 1
        first, second = (Example(ids[: context + 1], trained[: context + 1]) for ids, trained in (chosen, rejected))
        learned = first.trained[1:].any() and second.trained[1:].any()
        if learned and first.ids.tolist() != second.ids.tolist():
            kept.append(Pair(prompt, first, second))
        else:
            dropped += 1
    return FittedPairs(kept, cut, dropped)


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """N pairs as 2 N rows: all chosen answers, then the rejected ones in the same order; padded on the right.

    Attributes:
        reference: (2 N,) float32, the log-probability of each row's answer in the reference model; None without one.
    """

    reference: Tensor | None = None

    @property
    def examples(self) -> int:
        """Pairs."""
        return len(self.input_ids) // 2

    def _part(self, start: int, end: int) -> Self:
        """Pairs `start` to `end`, each with both of its answers."""
        N, end = self.examples, min(end, self.examples)
        both = lambda x: torch.cat((x[start:end], x[N + start : N + end]))  # noqa: E731
        return replace(
            self, input_ids=both(self.input_ids), labels=both(self.labels),
            seq_ids=None if self.seq_ids is None else both(self.seq_ids),
            reference=None if self.reference is None else both(self.reference),
        )  # fmt: skip

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on another device."""
        plain = super().to(device)
        return PairBatch(
            input_ids=plain.input_ids, labels=plain.labels, seq_ids=plain.seq_ids,
            reference=None if self.reference is None else self.reference.to(device),
        )  # fmt: skip


def pair_batch(pairs: Sequence[Pair], reference: np.ndarray | None, pad_id: int) -> PairBatch:
    """Pairs as one batch, as wide as the longest of their rows.

    Args:
        reference: (len(pairs), 2) float32: of the chosen and the rejected answers.
        pad_id: written where there is no token; nothing depends on it.
    """
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    shape = (len(rows), max(len(row.ids) for row in rows) - 1)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    seq_ids = np.full(shape, -1, dtype=np.int64)
    for number, (ids, trained) in enumerate(rows):
        place = number, slice(len(ids) - 1)
        input_ids[place], seq_ids[place] = ids[:-1], 0
        labels[place] = np.where(trained[1:], ids[1:], IGNORE)
    return PairBatch(
        input_ids=torch.from_numpy(input_ids), labels=torch.from_numpy(labels), seq_ids=torch.from_numpy(seq_ids),
        reference=None if reference is None else torch.from_numpy(np.concatenate((reference[:, 0], reference[:, 1]))),
    )  # fmt: skip


def _lengths(pairs: Sequence[Pair]) -> list[int]:
    return [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in pairs]


class PairLoader(TextLoader):
    """Endless training batches of pairs, drawn and resumed as `TextLoader` does.

    Args:
        pairs: each within the context, see `fit_pairs`.
        reference: (len(pairs), 2) float32, see `pair_batch`. It is computed anew for a resumed run, so the state does
            not depend on it.
        batch_size: pairs in a batch, which has twice as many rows.
        seed: of the order.
        pad_id: as in `pair_batch`.
    """

    def __init__(
        self, pairs: Sequence[Pair], reference: np.ndarray | None, *, batch_size: int, seed: int, pad_id: int
    ) -> None:
        items = [(pair.chosen.ids, pair.rejected.ids) for pair in pairs]
        super().__init__(items, None, batch_size=batch_size, seed=seed, pad_id=pad_id)
        self.pairs, self.reference = pairs, reference

    def next_batch(self) -> PairBatch:  # type: ignore[override]  # a batch, but not of texts
        """The next batch."""
        drawn = self._next()
        reference = None if self.reference is None else self.reference[drawn]
        return pair_batch([self.pairs[number] for number in drawn], reference, self.pad_id)


def pair_batches(pairs: Sequence[Pair], *, batch_size: int, pad_id: int) -> Iterator[tuple[np.ndarray, PairBatch]]:
    """One pass for scoring: the numbers of the pairs and their batch, long ones first."""
    for drawn in by_length(_lengths(pairs), batch_size):
        yield drawn, pair_batch([pairs[number] for number in drawn], None, pad_id)
