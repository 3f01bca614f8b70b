"""An n-gram model of token ids: interpolated, modified Kneser-Ney (Chen and Goodman 1999, section 3).

The oldest language model still in use, and what a neural one has to beat. With h the n - 1 tokens before w and h' the
same without the first of them,

    p(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / c(h) * p(w | h'),

c counting texts at the highest order and below it the different tokens that stand before (continuations), Nk(h) the
words that follow h k times. The lowest order is interpolated with the uniform distribution over the vocabulary. The
discounts D1, D2 and D3 of each order are estimated from how many n-grams occur once to four times.

The text is one stream: documents follow one another, as rows of training have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from yeoul.errors import UserError

Ids = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
MOST_ORDER = 10


class _Order(NamedTuple):
    """The n-grams of one length n, sorted by `key`: the number of the first n - 1 tokens times V, plus the last token.

    Attributes:
        key: (N,) int64.
        counts: (N,) int64, c.
        total: (contexts,), c(h) of every n-1-gram.
        rest: (contexts,), what the discounts free of c(h), in counts.
        discounts: D1, D2, D3.
    """

    key: Ids
    counts: Ids
    total: Numbers
    rest: Numbers
    discounts: tuple[float, float, float]

    def find(self, key: Ids) -> Ids:
        """Places of some keys, -1 for those that are not there."""
        place = np.searchsorted(self.key, key)
        place[place == len(self.key)] = 0
        return np.where(self.key[place] == key, place, -1)


@dataclass(frozen=True)
class NGram:
    """Made by `fit`; scores texts by `losses`.

    Attributes:
        orders: from 1 to n.
        vocabulary: V.
    """

    orders: tuple[_Order, ...]
    vocabulary: int

    @classmethod
    def fit(
        cls, tokens: Sequence[int] | npt.NDArray[Any], vocabulary: int, order: int = 5, *,
        discounts: tuple[float, float, float] | None = None,
    ) -> NGram:  # fmt: skip
        """Counts a text.

        Args:
            tokens: ids from 0 to `vocabulary` - 1.
            vocabulary: V.
            order: n, tokens of the longest n-grams.
            discounts: D1, D2 and D3 of every order; estimated when not given.

        Raises:
            UserError: the text is shorter than `order`, or the order is out of range.
        """
        if not 1 <= order <= MOST_ORDER:
            raise UserError(f"n-grams of order {order} cannot be counted", "order", f"use 1 to {MOST_ORDER}")
        text = np.asarray(tokens, dtype=np.int64)
        if len(text) < order:
            raise UserError(f"the text has {len(text)} tokens, too few for n-grams of order {order}")
        numbers = np.zeros(
            len(text) + 1, dtype=np.int64
        )  # of the n-gram that ends before each place; 0 is the empty one
        keys, counts, ends = [], [], []
        for n in range(1, order + 1):
            key, first, number, count = np.unique(
                numbers[n - 1 : -1] * vocabulary + text[n - 1 :], return_index=True, return_inverse=True,
                return_counts=True,
            )  # fmt: skip
            numbers = np.concatenate((np.zeros(n, dtype=np.int64), number))
            keys.append(key)
            counts.append(count)
            ends.append((first + n, numbers))
        contexts = [1, *(len(key) for key in keys)]
        for n in range(order - 1):  # how many different tokens stand before each: of the next order, by what ends it
            first, _ = ends[n + 1]
            counts[n] = np.bincount(ends[n][1][first], minlength=len(keys[n]))
        return cls(
            tuple(_order(key, count, contexts[n], vocabulary, discounts)
                  for n, (key, count) in enumerate(zip(keys, counts, strict=True))),
            vocabulary,
        )  # fmt: skip

    def losses(self, tokens: Sequence[int] | npt.NDArray[Any]) -> Numbers:
        """Nats of each token of a text, (N,), given those before it, of which the last n - 1 count."""
        text = np.asarray(tokens, dtype=np.int64)
        p = np.full(len(text), 1 / self.vocabulary)
        before = np.zeros(
            len(text), dtype=np.int64
        )  # number of the n-1-gram before each token; -1 where it is not known
        for n, order in enumerate(self.orders):
            known = before >= 0
            key = np.where(known, before * self.vocabulary + text, -1)
            place = order.find(key)
            h = np.where(known, before, 0)
            seen = known & (order.total[h] > 0)
            count = np.where(place >= 0, order.counts[place], 0)
            kept = np.maximum(count - _discount(count, order.discounts), 0)
            total = np.maximum(order.total[h], 1)
            p = np.where(seen, kept / total + order.rest[h] / total * p, p)
            before = np.concatenate(([-1], place[:-1])) if len(place) else place
            before[: n + 1] = -1
        losses: Numbers = -np.log(p)
        return losses

    @property
    def nbytes(self) -> int:
        """Of all counts."""
        return sum(
            array.nbytes for order in self.orders for array in (order.key, order.counts, order.total, order.rest)
        )

    @property
    def size(self) -> int:
        """Different n-grams of all orders."""
        return sum(len(order.key) for order in self.orders)


def _order(
    key: Ids, count: Ids, contexts: int, vocabulary: int, discounts: tuple[float, float, float] | None
) -> _Order:
    h = key // vocabulary
    given = discounts or _estimated(count)
    total: Numbers = np.bincount(h, weights=count, minlength=contexts).astype(np.float64)
    freed = np.minimum(_discount(count, given), count)
    rest: Numbers = np.bincount(h, weights=freed, minlength=contexts).astype(np.float64)
    return _Order(key, count, total, rest, given)


def _discount(count: Ids, discounts: tuple[float, float, float]) -> Numbers:
    found: Numbers = np.array((0.0, *discounts))[np.minimum(count, 3)]
    return found


def _estimated(count: Ids) -> tuple[float, float, float]:
    """D1, D2 and D3 (equation 26); half of the count where too few n-grams are rare."""
    n1, n2, n3, n4 = (int((count == times).sum()) for times in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return (0.5, 1.0, 1.5)
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return tuple(d if 0 < d <= k else k / 2 for k, d in enumerate(found, start=1))  # type: ignore[return-value]
