"""Token shards as an endless, resumable stream of batches."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.resumable import ResumableLoader, generator
from yeoul.data.shards import TokenShards
from yeoul.data.windows import TextStream
from yeoul.errors import UserError

OPEN_ROWS = 64
"""How many rows wait for pieces that fit while documents are packed."""


class Piece(NamedTuple):
    """A run of tokens that is predicted as one sequence of `length` inputs, text from `start` on, labels one further.

    Before the text stand the tokens that begin one, which count for the length; see `TextStream`.
    """

    start: int
    length: int


Row = list[Piece]


def pack_rows(pieces: Iterable[Piece], context: int) -> Iterator[Row]:
    """Pack pieces into rows of at most `context` tokens: best fit among `OPEN_ROWS` rows, in a fixed order.

    Args:
        pieces: none longer than `context`.
    """
    rows: dict[int, Row] = {}
    spaces: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for number, piece in enumerate(pieces):
        place = bisect_left(spaces, (piece.length, -1))
        if place < len(spaces):
            free, row = spaces.pop(place)
        else:
            if len(spaces) >= OPEN_ROWS:
                yield rows.pop(spaces.pop(0)[1])
            free, row = context, number
            rows[row] = []
        rows[row].append(piece)
        if free == piece.length:
            yield rows.pop(row)
        else:
            insort(spaces, (free - piece.length, row))
    yield from rows.values()


class _Pieces:
    """Documents cut into pieces of at most `context` inputs; piece numbers follow the documents.

    Args:
        stream: the documents.
        context: with the begin tokens that each piece gets.
        score_first: the first token behind a piece's begin tokens is one of its labels, so that none is left out; see
            `TextStream.window`.
    """

    def __init__(self, stream: TextStream, context: int, score_first: bool) -> None:
        self.offsets, self.size = np.asarray(stream.offsets), len(stream.begin)
        self.more = int(score_first and self.size > 0)
        self.step = context - self.size + self.more
        """Tokens of text by which two pieces of a document are apart."""
        labels = np.maximum(np.diff(self.offsets) - self.size - 1 + self.more, 0)
        self.first = np.concatenate(([0], np.cumsum(-(-labels // self.step))))
        """(num_documents + 1,): number of the first piece of each document."""

    def __len__(self) -> int:
        return int(self.first[-1])

    def __call__(self, number: int) -> Piece:
        document = int(np.searchsorted(self.first, number, side="right")) - 1
        before = (number - int(self.first[document])) * self.step
        start = int(self.offsets[document]) + self.size + before
        left = int(self.offsets[document + 1]) - 1 + self.more - start
        return Piece(start, self.size - self.more + min(self.step, left))


def _batch(
    stream: TextStream, rows: list[Row], context: int, isolated: bool, *, padding: int, score_first: bool
) -> Batch:
    """Rows of pieces as tensors (len(rows), context); what no piece covers is padding."""
    shape = (len(rows), context)
    input_ids = np.full(shape, padding, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    seq_ids = np.full(shape, -1, dtype=np.int64)
    for b, row in enumerate(rows):
        column = 0
        for number, (start, length) in enumerate(row):
            place = slice(column, column + length)
            input_ids[b, place], labels[b, place] = stream.window(start, length, score_first=score_first)
            positions[b, place], seq_ids[b, place] = np.arange(length), number
            column += length
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions) if isolated else None,
        seq_ids=torch.from_numpy(seq_ids) if isolated else None,
    )


class PackedLoader(ResumableLoader[Row]):
    """Endless training batches from token shards, in an order that depends on the seed alone.

    Without `isolate_documents` a row is a window of the token stream, documents follow one another in it, and windows
    start at another offset in each epoch. With it a row holds whole documents (long ones in pieces), each a sequence of
    its own with positions from 0: no document sees another. Each row, document and piece begins as the model's texts
    do, with `shards.begin`.

    Args:
        shards: tokens.
        batch_size: rows of a batch.
        context: tokens of a row.
        seed: of the order.
        rank, world_size: this process takes every `world_size`-th batch; all processes together draw each row once.

    Raises:
        UserError: fewer tokens than one row needs.
    """

    def __init__(
        self,
        shards: TokenShards,
        batch_size: int = 8,
        context: int = 512,
        seed: int = 0,
        isolate_documents: bool = False,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} and context {context} must be at least 1")
        _check_context(shards, context)
        super().__init__(seed, rank, world_size)
        self.shards, self.batch_size, self.context = shards, batch_size, context
        self.isolate_documents, self.place = isolate_documents, shards.folder
        self._stream = shards.stream
        self._pieces = _Pieces(self._stream, context, score_first=False) if isolate_documents else None
        if self._pieces is None and self._stream.size < context + 1:
            raise UserError(
                f"the data has {self._stream.size:,} tokens, a context of {context:,} needs {context + 1:,}",
                shards.folder,
                "give more text or a shorter context",
            )
        if self._pieces is not None and len(self._pieces) == 0:
            raise UserError("no document has two tokens", shards.folder, "give more text")

    def _epoch_items(self, epoch: int) -> Iterator[Row]:
        draw = generator(self.seed, epoch)
        if self._pieces is not None:
            order = draw.permutation(len(self._pieces))
            return pack_rows((self._pieces(number) for number in order), self.context)
        stream, begin = self._stream, len(self.shards.begin)
        step, spare = self.context - begin, stream.size - 1 - self.context
        shift = int(draw.integers(min(step, spare + 1)))
        windows = draw.permutation((stream.size - 1 - begin - shift) // step)
        return ([Piece(stream.text_at(shift + int(window) * step), self.context)] for window in windows)

    def next_batch(self) -> Batch:
        """The next batch; the epoch ends nowhere, a batch may reach into the next one."""
        rows = self._next_of_rank(self.batch_size)
        return _batch(
            self._stream, rows, self.context, self.isolate_documents, padding=self.shards.eos_id, score_first=False
        )

    def _settings(self) -> dict[str, Any]:
        begin = {"begin": list(self.shards.begin)} if self.shards.begin else {}
        tokens = self.shards.num_tokens
        return begin | {"context": self.context, "isolate_documents": self.isolate_documents, "tokens": tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ResumableLoader`."""
        if state.get("begin", []) != list(self.shards.begin):
            raise UserError(
                "the run was started with sequences that begin differently from the texts of this tokenizer",
                self.shards.folder,
                "begin it again (--overwrite) or choose another --out",
            )
        super().load_state_dict(state)


def evaluation_batches(
    shards: TokenShards,
    *,
    batch_size: int,
    context: int,
    max_tokens: int | None = None,
    isolate_documents: bool = False,
) -> Iterator[Batch]:
    """Batches for scoring, in order: every token but the first (of each document, if isolated) is a label once.

    Where texts begin with a token, each row (each document and each further piece of it, if isolated) begins with it.
    It takes a place in the row and is not a label; the first token of the text, which follows it, is scored.

    The last row may be padded (seq_ids -1, labels `IGNORE`) and the last batch may have fewer rows.

    Args:
        max_tokens: score at most so many tokens from the beginning; None for all.

    Raises:
        UserError: there is no token to score.
    """
    _check_context(shards, context)
    stream = shards.stream
    pieces: Iterable[Piece]
    if isolate_documents:
        cut = _Pieces(stream, context, score_first=True)
        pieces = (cut(number) for number in range(len(cut)))
    else:
        pieces = _in_order(stream, context)
    pieces = _limited(pieces, max_tokens, max(0, len(shards.begin) - 1))
    rows = pack_rows(pieces, context) if isolate_documents else ([piece] for piece in pieces)
    some = False
    while chunk := list(islice(rows, batch_size)):
        some = True
        padded = any(sum(piece.length for piece in row) < context for row in chunk)
        yield _batch(stream, chunk, context, isolate_documents or padded, padding=shards.eos_id, score_first=True)
    if not some:
        raise UserError(f"the data has {shards.num_tokens} tokens, too few to score", shards.folder)


def _check_context(shards: TokenShards, context: int) -> None:
    least = len(shards.begin) + 1
    if context < least:
        raise UserError(f"the context of {context} must be at least {least}")


def _in_order(stream: TextStream, context: int) -> Iterator[Piece]:
    """Pieces of which each token of text is a label once; without begin tokens, all but the first."""
    begin = len(stream.begin)
    if not begin:
        last = stream.size - 1
        yield from (Piece(start, min(context, last - start)) for start in range(0, last, context))
        return
    place = 0
    while place < stream.size:
        place = stream.text_at(place)
        labels = min(context - begin + 1, stream.size - place)
        yield Piece(place, begin - 1 + labels)
        place += labels


def _limited(pieces: Iterable[Piece], max_tokens: int | None, more: int) -> Iterator[Piece]:
    """Pieces up to a total of labels; a piece has so many `more` inputs."""
    left = max_tokens
    for piece in pieces:
        if left is not None and left <= 0:
            return
        yield piece if left is None else Piece(piece.start, min(piece.length, left + more))
        left = None if left is None else left - (piece.length - more)
