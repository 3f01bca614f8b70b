"""Which of the keys that have left a window stay exact: the best so far by a score that each of them brings along.

With room for L pairs, a query sees those L keys of its text that have left the window by then and score highest; of
equal scores the older stays. So a key stays from when it leaves the window until L others that score higher have left
as well, and never comes back. That depends on the scores alone: the order of eviction is known before anything is
read, and whole sequences, pieces of them and single tokens have the same pairs. A score that depends on the key and
nothing later is KVzap's (arXiv 2601.07891); that what gives way enters a linear state is LoLA's (arXiv 2505.23666).
It goes in blocks of w queries, which beside the keys of two blocks see the L pairs that were there before the block:
attention over T (L + 2 w) keys, and T (L + w)^2 / w comparisons of scores, in place of a loop over tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING = -torch.inf
"""Score of a place that holds no pair."""


class Selection(NamedTuple):
    """What becomes of the keys of a call. Columns count those that were kept before first, then all others.

    Attributes:
        kept: (B, G, n, L) int64, columns of the pairs that are there before each of the n = ceil(T / w) blocks of
            queries, oldest first; any column where there are fewer.
        seen: (B, G, n, w, L + w) bool, whether query i of a block sees each of these, and by them each of the w keys
            that leave the window in the block.
        evicted: (B, G, T) int64, column of the pair that a query finds evicted; any column where `written` is False.
        written: (B, G, T) bool, whether there is one.
        last: (B, G, L) int64, columns of the pairs that are there after the last query, oldest first.
        last_valid: (B, G, L) bool, which of these there are; they come first.
    """

    kept: Tensor
    seen: Tensor
    evicted: Tensor
    written: Tensor
    last: Tensor
    last_valid: Tensor


class Kept(NamedTuple):
    """The pairs that queries in blocks of w see beside their window: see `Selection`.

    Attributes:
        k: (B, G, n, L, D).
        v: (B, G, n, L, D).
        seen: (B, G, n, w, L + w) bool.
    """

    k: Tensor
    v: Tensor
    seen: Tensor


@torch.no_grad()
def select_pairs(
    scores: Tensor,
    leaving: Tensor,
    room: int,
    block: int,
    *,
    before: Tensor | None = None,
    seq_ids: Tensor | None = None,
) -> Selection:
    """Follows the pairs through a call of T queries.

    Args:
        scores: (B, G, T), of the key that leaves the window at each query.
        leaving: (B or 1, T) bool, whether one does; it is of the query's own text.
        room: L, how many pairs there is room for.
        block: w, how many queries a block has.
        before: (B, G, N) scores of the pairs that are kept from earlier calls, oldest first, `NOTHING` where there is
            none; they are of the first query's text. None means N = 0.
        seq_ids: (B, T) int64, texts of the queries; pairs are not kept beyond their text. None: one text a row.
    """
    (B, G, T), w, device = scores.shape, block, scores.device
    n = -(-T // w)
    pad = n * w - T
    old = scores.new_empty(B, G, 0) if before is None else before
    arriving = scores.masked_fill(~leaving[:, None], NOTHING)
    arriving = F.pad(arriving, (0, pad), value=NOTHING).view(B, G, n, w)
    texts = None if seq_ids is None else F.pad(seq_ids, (0, pad), value=-1).view(B, 1, n, w)
    columns = old.shape[2] + torch.arange(n * w, device=device).view(n, w)

    have = F.pad(old, (0, max(0, room - old.shape[2])), value=NOTHING)  # scores of what is kept, oldest first
    where = torch.arange(have.shape[2], device=device).clamp_max(max(0, old.shape[2] - 1)).expand(B, G, -1)
    text = None if texts is None else texts[:, :, 0, :1].expand(B, 1, have.shape[2])
    held = have > NOTHING
    upto = torch.ones(w, w, dtype=torch.bool, device=device).triu()  # leaver j has left by query i
    kept, seen, evicted, written = [], [], [], []
    for number in range(n):
        here = torch.cat((have, arriving[:, :, number]), -1)  # (B, G, L + w), oldest first
        index = torch.cat((where, columns[number].expand(B, G, w)), -1)
        there = here > NOTHING
        N = have.shape[2]
        age = torch.arange(N + w, device=device)
        beaten = _beats(here, here, age)  # (B, G, N + w, N + w): [j, i] where i beats j
        mine: Tensor | None = None
        if texts is not None and text is not None:
            of = torch.cat((text, texts[:, :, number]), -1)  # (B, 1, N + w)
            beaten = beaten & (of[..., :, None] == of[..., None, :])
            mine = of[..., None, :] == texts[:, :, number, :, None]  # (B, 1, w, N + w)
        rank = beaten[..., :N].sum(-1, keepdim=True, dtype=torch.int32)
        rank = rank + beaten[..., N:].cumsum(-1, dtype=torch.int32)  # (B, G, N + w, w): how many beat j at query i
        inside = (rank < room).transpose(-1, -2) & there[:, :, None]
        inside = inside & torch.cat((upto.new_ones(w, N), upto.T), -1)  # (B, G, w, N + w)
        if mine is not None:
            inside = inside & mine
        was = torch.cat((F.pad(held, (0, w))[:, :, None], inside[:, :, :-1]), 2)
        was = was | torch.cat((upto.new_zeros(w, N), torch.eye(w, dtype=torch.bool, device=device)), -1)
        gone = was & there[:, :, None] & ~inside
        if mine is not None:
            gone = gone & mine
        written.append(gone.any(-1))
        evicted.append(index.gather(2, gone.byte().argmax(-1)))
        kept.append(where)
        seen.append(inside)
        last = inside[:, :, -1] if number < n - 1 or not pad else inside[:, :, w - 1 - pad]
        order = torch.sort(last.byte(), dim=-1, descending=True, stable=True).indices[..., :room]
        held = last.gather(2, order)
        have, where = here.gather(2, order).masked_fill(~held, NOTHING), index.gather(2, order)
        if texts is not None and text is not None:
            text = texts[:, :, number, -1 - (pad if number == n - 1 else 0), None].expand(B, 1, order.shape[2])
    if not n:
        none = scores.new_empty(B, G, 0)
        seen_by_none = leaving.new_empty(B, G, 0, w, have.shape[2] + w)
        return Selection(where.new_empty(B, G, 0, have.shape[2]), seen_by_none, none.long(), none.bool(), where, held)
    flat = lambda parts: torch.stack(parts, 2).flatten(2)[:, :, :T]  # noqa: E731
    return Selection(torch.stack(kept, 2), torch.stack(seen, 2), flat(evicted), flat(written), where, held)


def _beats(scores: Tensor, others: Tensor, age: Tensor) -> Tensor:
    """[j, i]: whether i is kept rather than j: it scores higher, or as high and is older. (..., N) to (..., N, N)."""
    a, b = scores[..., :, None], others[..., None, :]
    return (b > a) | ((b == a) & (age[None, :] < age[:, None]))


def take(x: Tensor, columns: Tensor) -> Tensor:
    """(B, G or 1, N, ...) at columns (B, G, ...) int64: (B, G, those, ...)."""
    (B, G), rest = columns.shape[:2], x.shape[3:]
    flat = columns.flatten(2)
    index = flat[(..., *(None for _ in rest))].expand(*flat.shape, *rest)
    return x.expand(B, G, *x.shape[2:]).gather(2, index).unflatten(2, columns.shape[2:])
