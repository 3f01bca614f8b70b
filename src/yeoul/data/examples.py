"""Token sequences of their own, each token trained or not, as batches: packed or padded, and never mixed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.conversations import Conversation, PlainText, Record
from yeoul.data.loader import Piece, pack_rows
from yeoul.data.record_files import Records
from yeoul.data.resumable import ResumableLoader, generator
from yeoul.errors import UserError

POOL = 50
"""Batches that are drawn together and sorted by length when rows are padded."""
STEPS = {True: 32, False: 8}
"""The width of batches, packed or not, is a multiple of this, so that few shapes occur."""


class Example(NamedTuple):
    """One sequence: `ids` (N,) int32, and `trained` (N,) bool: whether `ids[t]` is a label."""

    ids: np.ndarray
    trained: np.ndarray


class Fitted(NamedTuple):
    """Examples that fit into a context, how many were cut for it, and how many then had nothing left to train."""

    examples: list[Example]
    cut: int
    dropped: int


Render = Callable[[Sequence[Mapping[str, Any]]], "tuple[list[int], list[bool]]"]


def make_examples(
    records: Records[Any] | Iterable[Record],
    render: Render,
    encode: Callable[[str], list[int]],
) -> list[Example]:
    """Conversations and plain texts as tokens.

    A conversation that the chat template refuses is a bad record like any other: `Records` raises or counts it.

    Args:
        render: messages to ids and which of them are trained, as `functools.partial(render_chat, tokenizer)`.
        encode: a plain text to ids, with the tokens that begin and end a text; all of them are trained.

    Raises:
        UserError: see above, with the place of the record.
    """
    examples: list[Example] = []
    for record in records:
        if isinstance(record, PlainText):
            ids = encode(record.text)
            trained = [True] * len(ids)
        elif isinstance(record, Conversation):
            try:
                ids, trained = render(record.messages)
            except UserError as error:
                complain_of(record.where, error, records)
                continue
        else:
            raise TypeError(f"{type(record).__name__} is not a single sequence")
        examples.append(Example(np.asarray(ids, dtype=np.int32), np.asarray(trained, dtype=bool)))
    return examples


def complain_of(where: str, error: UserError, records: Records[Any] | Iterable[Any]) -> None:
    """Of a record that was read and cannot be rendered: counted where bad ones are skipped, else raised."""
    placed = UserError(error.what, f"{where}, {error.where}" if error.where else where, error.fix)
    if not isinstance(records, Records):
        raise placed from None
    records.complain(placed, was_read=True)


def fit_examples(examples: Iterable[Example], context: int) -> Fitted:
    """Keep the first `context` + 1 tokens of each (so many make `context` labels) and drop what has no label then."""
    kept: list[Example] = []
    cut = dropped = 0
    for ids, trained in examples:
        if len(ids) > context + 1:
            cut += 1
            ids, trained = ids[: context + 1], trained[: context + 1]
        if trained[1:].any():
            kept.append(Example(ids, trained))
        else:
            dropped += 1
    return Fitted(kept, cut, dropped)


def in_pieces(examples: Iterable[Example], context: int, begin: Sequence[int] = ()) -> Iterator[Example]:
    """An example that is learned whole continues in further pieces where it is longer than `context`.

    Args:
        begin: tokens that stand before every text: of an example that begins with them each piece does, too. The token
            behind those that a piece was given is not learned, for texts do not begin with it.
    """
    lead = np.asarray(begin, dtype=np.int32)
    for ids, trained in examples:
        if len(ids) <= context + 1 or not trained.all():
            yield Example(ids, trained)
            continue
        own = lead if np.array_equal(ids[: len(lead)], lead) else lead[:0]
        yield Example(ids[: context + 1], trained[: context + 1])
        step = max(1, context - len(own))
        for start in range(context, len(ids) - 1, step):
            piece = np.concatenate((own, ids[start : start + step + 1]))
            marks = np.ones(len(piece), dtype=bool)
            if len(own):
                marks[: len(own) + 1] = False
            yield Example(piece, marks)


def _make_batch(examples: Sequence[Example], rows: list[list[Piece]], width: int, pad_id: int) -> Batch:
    """Rows of whole examples (`Piece.start` is their number) as tensors (len(rows), width)."""
    shape = (len(rows), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    seq_ids = np.full(shape, -1, dtype=np.int64)
    for b, row in enumerate(rows):
        column = 0
        for number, (index, length) in enumerate(row):
            ids, trained = examples[index]
            place = slice(column, column + length)
            input_ids[b, place] = ids[:-1]
            labels[b, place] = np.where(trained[1:], ids[1:], IGNORE)
            positions[b, place], seq_ids[b, place] = np.arange(length), number
            column += length
    return Batch(
        input_ids=torch.from_numpy(input_ids), labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions), seq_ids=torch.from_numpy(seq_ids),
    )  # fmt: skip


def _width(rows: Iterable[list[Piece]], context: int, packing: bool) -> int:
    longest, step = max(sum(piece.length for piece in row) for row in rows), STEPS[packing]
    return min(-(-longest // step) * step, context)


def _checked(examples: Sequence[Example], batch_size: int, context: int) -> Fitted:
    if batch_size < 1 or context < 1:
        raise UserError(f"batch size {batch_size} and context {context} must be at least 1")
    fitted = fit_examples(examples, context)
    if not fitted.examples:
        fix = "give a longer context" if fitted.cut else "give more data"
        raise UserError(f"none of {len(examples):,} examples has a trained token within {context:,} tokens", fix=fix)
    return fitted


class ExampleLoader(ResumableLoader[list[Piece]]):
    """Endless training batches from examples, in an order that depends on the seed alone.

    Packed, a row holds whole examples, best fit first, each a sequence of its own with positions from 0: none sees
    another. Padded, a row holds one, and the rows of a batch are alike in length. Each epoch has every example once.

    Args:
        examples: longer ones are cut, see `fit_examples`; the list is kept, not copied.
        batch_size: rows of a batch.
        context: the most tokens of a row.
        seed: of the order.
        packing: packed or padded.
        pad_id: any valid id, written where there is no token (seq_ids -1).
        rank, world_size: this process takes every `world_size`-th batch; all processes together draw each row once.

    Attributes:
        cut, dropped: examples that lost their end, and those that had no trained token then.
        tokens: positions of one epoch, padding not counted.

    Raises:
        UserError: no example is left.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        context: int,
        seed: int,
        packing: bool,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.examples, self.cut, self.dropped = _checked(examples, batch_size, context)
        self.batch_size, self.context, self.packing, self.pad_id = batch_size, context, packing, pad_id
        self.tokens = sum(len(example.ids) - 1 for example in self.examples)
        self._digest = _digest(self.examples)

    def _epoch_items(self, epoch: int) -> Iterator[list[Piece]]:
        """The rows of one epoch; padded, its last batch is filled from the next epoch, which then begins later."""
        if self.packing:
            return pack_rows((self._piece(index) for index in self._order(epoch)), self.context)
        together, count = self.batch_size * self.world_size, len(self.examples)
        start, end = (-(-number * count // together) * together for number in (epoch, epoch + 1))
        drawn = [self._piece(index) for index in self._drawn(start, end)]
        groups: list[list[Piece]] = []
        for first in range(0, len(drawn), POOL * together):
            pool = sorted(drawn[first : first + POOL * together], key=lambda piece: -piece.length)
            groups += [pool[number : number + together] for number in range(0, len(pool), together)]
        return ([piece] for group in _shuffled(len(groups), self.seed, 2**32 + epoch) for piece in groups[group])

    def _order(self, epoch: int) -> np.ndarray:
        return _shuffled(len(self.examples), self.seed, epoch)

    def _drawn(self, start: int, end: int) -> list[int]:
        """Examples `start` to `end` of the endless stream of epochs."""
        count = len(self.examples)
        stream = [index for epoch in range(start // count, -(-end // count)) for index in self._order(epoch)]
        return stream[start % count :][: end - start]

    def _piece(self, index: int) -> Piece:
        return Piece(int(index), len(self.examples[index].ids) - 1)

    def next_batch(self) -> Batch:
        """The next batch; the epoch ends nowhere, a batch may reach into the next one."""
        rows = self._next_of_rank(self.batch_size)
        return _make_batch(self.examples, rows, _width(rows, self.context, self.packing), self.pad_id)

    def _settings(self) -> dict[str, Any]:
        settings = {"context": self.context, "packing": self.packing}
        settings |= {"examples": len(self.examples), "digest": self._digest}
        return settings if self.packing else settings | {"rows": self.batch_size * self.world_size}


def _shuffled(count: int, seed: int, turn: int) -> np.ndarray:
    """0 ... count-1 in an order that depends on seed and turn alone."""
    return generator(seed, turn).permutation(count)


def _digest(examples: Iterable[Example]) -> int:
    """Changes when a token or its mark does."""
    crc = 0
    for ids, trained in examples:
        crc = zlib.crc32(np.packbits(trained).tobytes(), zlib.crc32(ids.tobytes(), crc))
    return crc


def example_batches(
    examples: Sequence[Example], *, batch_size: int, context: int, packing: bool, pad_id: int
) -> Iterator[Batch]:
    """Batches for scoring: every trained token that fits is a label once; the last batch may have fewer rows.

    Args:
        examples, context, packing, pad_id: as for `ExampleLoader`; what is cut, `fit_examples` counts.

    Raises:
        UserError: no example has a label.
    """
    kept = _checked(examples, batch_size, context).examples
    pieces = [Piece(index, len(example.ids) - 1) for index, example in enumerate(kept)]
    if packing:
        rows = pack_rows(pieces, context)
    else:
        rows = ([piece] for piece in sorted(pieces, key=lambda piece: -piece.length))
    while chunk := list(islice(rows, batch_size)):
        yield _make_batch(kept, chunk, _width(chunk, context, packing), pad_id)
