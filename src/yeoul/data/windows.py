"""Windows of a stream of documents, each begun as the model expects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yeoul.data.batch import IGNORE


class TextStream:
    """Documents one after the other, each behind the tokens that begin a text, and windows of them.

    Models whose texts begin with a token were trained on `<s> document </s> <s> document </s>`, and attend to the
    nearest such token from everywhere. A window that begins within a document gets one of its own, which takes a place
    in it. No begin token is ever a label.

    Args:
        tokens: (N,), documents, each with the token that ends it.
        offsets: (documents + 1,) int64: where each begins in `tokens`, and the end.
        begin: what stands before a text; where it is empty, the stream is `tokens`.

    Attributes:
        size: tokens of the stream, the begin tokens of the documents among them.
        offsets: the documents' places in the stream, begin tokens first.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, begin: Sequence[int] = ()) -> None:
        self.tokens, self.begin = tokens, np.asarray(begin, dtype=np.int64)
        self._stored = offsets
        self.offsets = offsets + len(begin) * np.arange(len(offsets)) if begin else offsets
        self.size = len(tokens) + len(begin) * (len(offsets) - 1)

    def text_at(self, place: int) -> int:
        """`place`, or the first place behind it that is not a begin token."""
        if not len(self.begin):
            return place
        return max(place, int(self.offsets[self._document(place)]) + len(self.begin))

    def opens(self, place: int) -> bool:
        """Whether the text of a document begins at `place`."""
        return place - int(self.offsets[self._document(place)]) == len(self.begin)

    def _document(self, place: int) -> int:
        return int(np.searchsorted(self.offsets, place, side="right")) - 1

    def window(self, start: int, columns: int, *, score_first: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels, (columns,) int64 each; labels are shifted, `IGNORE` is not scored.

        Args:
            start: where its text begins; no begin token stands there. With begin tokens, it is the first label.
            columns: begin tokens and text.
            score_first: the first label counts even where the window begins within a document. What follows a begin
                token should not be learned from the middle of a text.
        """
        ids, given = self.row(start, columns + 1)
        labels = np.where(given, IGNORE, ids)[1:]
        size = len(self.begin)
        if size and not score_first and not self.opens(start):
            labels[size - 1] = IGNORE
        return ids[:-1], labels

    def row(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of begin tokens and text, (length,) int64, and which of them are begin tokens, of whatever document.

        Args:
            start: as for `window`.
            length: begin tokens and text.
        """
        size = len(self.begin)
        ids, given = self._read(start, start + length - size)
        return np.concatenate((self.begin, ids)), np.concatenate((np.ones(size, dtype=bool), given))

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the stream from `start` to before `stop`, and which of them are begin tokens."""
        size = len(self.begin)
        if not size:
            return self.tokens[start:stop].astype(np.int64), np.zeros(stop - start, dtype=bool)
        places = np.arange(start, stop)
        documents = np.searchsorted(self.offsets, places, side="right") - 1
        inside = places - self.offsets[documents] - size
        given = inside < 0
        ids = self.tokens[self._stored[documents] + np.where(given, 0, inside)].astype(np.int64)
        return np.where(given, self.begin[np.where(given, inside, 0)], ids), given
