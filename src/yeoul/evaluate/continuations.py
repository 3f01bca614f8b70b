"""Log-likelihoods of continuations, in which what several texts begin with is read once.

The four answers to a question share all that stands before them, and the questions of a few-shot task their examples.
Texts are therefore put into a tree of prefixes. What stands at a node is read once; the cache behind it, of whatever
kind a layer has, is a snapshot from which all that continues there goes on, as rows of a batch.

Shapes: B rows, T columns, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from yeoul.data.padding import pad_batch
from yeoul.errors import UserError
from yeoul.evaluate.perplexity import logits_at_once
from yeoul.infer.generation import PREFILL_CHUNK, evaluating

if TYPE_CHECKING:
    from yeoul.model.cache import Cache
    from yeoul.model.decoder import Decoder

LEAST_SAVED = 16
"""Tokens that a snapshot must save: below it, calls of the model cost more than tokens."""


class Likelihood(NamedTuple):
    """What a model thinks of a continuation.

    Attributes:
        logprob: its log-likelihood in nats, summed over its tokens.
        greedy: whether each of its tokens is the likeliest one, so that greedy decoding would say it.
    """

    logprob: float
    greedy: bool


@dataclass(slots=True)
class _Wish:
    """A continuation of a row: its tokens stand behind the positions from `first` on."""

    number: int
    first: int
    tokens: list[int]


@dataclass(slots=True)
class _Row:
    """Tokens to read, and what is asked of them; `first` is the first position whose prediction counts."""

    ids: list[int]
    first: int
    wishes: list[_Wish] = field(default_factory=list)


@dataclass(slots=True)
class _Branch:
    """Rows that share their first `shared` tokens, `count` of them, in the order of the alphabet."""

    shared: int
    members: list[_Row | _Branch] = field(default_factory=list)
    count: int = 0

    def add(self, member: _Row | _Branch) -> None:
        self.members.append(member)
        self.count += member.count if isinstance(member, _Branch) else 1


@dataclass(slots=True)
class _Node:
    """Tokens start ... end of `ids`, that are read once, and what goes on behind them."""

    ids: list[int]
    start: int
    end: int
    rows: list[_Row] = field(default_factory=list)
    nodes: list[_Node] = field(default_factory=list)


def score_continuations(
    model: Decoder,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 8,
    longest: int | None = None,
    share: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """The log-likelihood of each continuation, given what stands before it.

    The same as reading each text alone, whatever the layers of the model are (1e-5, as all forms agree).

    Args:
        model: on any device, in any dtype; it is left in the mode in which it came.
        pairs: (ids before, ids of the continuation), with the tokens that begin a text of the model; neither is empty.
        batch_size: rows at a time.
        longest: tokens that are read of a text at most; of a longer one the beginning is left out. None: the model's
            own length.
        share: read what several texts begin with once; otherwise each text is read from its beginning.
        progress: called with the number of pairs that are done, as they are.

    Raises:
        UserError: a pair with an empty half, or a continuation longer than `longest`.
    """
    if not pairs:
        return []
    longest = longest or model.config.max_position_embeddings
    rows = _rows(pairs, longest)
    scorer = _Scorer(model, len(pairs), batch_size, progress)
    with evaluating(model), torch.inference_mode():
        for alike in _by_rotation(model, rows):
            scorer.root(_planned(alike, LEAST_SAVED if share else None))
    return [Likelihood(*found) for found in zip(scorer.logprobs.tolist(), scorer.greedy.tolist(), strict=True)]


def _rows(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int) -> list[_Row]:
    """What is read, equal texts once, in the order of the alphabet."""
    rows: dict[tuple[int, ...], _Row] = {}
    for number, (before, continuation) in enumerate(pairs):
        if not before or not continuation:
            raise UserError("a text needs a token before the ones that are scored, and one that is", f"text {number}")
        if len(continuation) > longest:
            what = f"a continuation has {len(continuation):,} tokens, but the model reads {longest:,}"
            raise UserError(what, f"text {number}", "give a longer context")
        ids = [*before, *continuation][-(longest + 1) : -1]
        first = len(ids) - len(continuation)
        row = rows.setdefault(tuple(ids), _Row(ids, first))
        row.first = min(row.first, first)
        row.wishes.append(_Wish(number, first, list(continuation)))
    return [rows[key] for key in sorted(rows)]


def _by_rotation(model: Decoder, rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows whose rotary positions are turned alike: of some models that depends on how long the whole text is."""
    ropes = [rope for rope in model.config.ropes if rope.by_length]
    groups: dict[tuple[int, ...], list[_Row]] = {}
    for row in rows:
        key = tuple(int(rope.variant(torch.tensor(len(row.ids)))) for rope in ropes)
        groups.setdefault(key, []).append(row)
    yield from groups.values()


# -- the tree


def _planned(rows: list[_Row], least: int | None) -> _Node:
    """What is read once, and what behind it; `least` tokens must be saved, None saves nothing."""
    root = _Node([], 0, 0)
    if least is None:
        root.rows = rows
        return root
    open_ones = [(_tree(rows), root)]
    while open_ones:
        branch, node = open_ones.pop()
        for member in branch.members:
            if isinstance(member, _Row):
                node.rows.append(member)
            elif _is_worth_it(member, node.end, least):
                child = _Node(_first_row(member).ids, node.end, member.shared)
                node.nodes.append(child)
                open_ones.append((member, child))
            else:
                open_ones.append((member, node))
    return root


def _tree(rows: list[_Row]) -> _Branch:
    """Sorted rows as branches by what neighbours share: never the position whose prediction is the first to count."""
    root = _Branch(0)
    path, last = [root], rows[0]
    for row in rows[1:]:
        shared = min(len(commonprefix((last.ids, row.ids))), last.first, row.first)
        member: _Row | _Branch = last
        while path[-1].shared > shared:
            path[-1].add(member)
            member = path.pop()
        if path[-1].shared < shared:
            path.append(_Branch(shared))
        path[-1].add(member)
        last = row
    member = last
    while path:
        path[-1].add(member)
        member = path.pop()
    return root


def _first_row(branch: _Branch) -> _Row:
    member: _Row | _Branch = branch
    while isinstance(member, _Branch):
        member = member.members[0]
    return member


def _is_worth_it(branch: _Branch, known: int, least: int) -> bool:
    """Whether a snapshot behind what a branch shares saves enough.

    One from which further ones would go on must also be longer than these are: beginnings of questions are read one
    beside the other, but those that go on from a snapshot one after the other.
    """
    own = branch.shared - known
    if own * (branch.count - 1) < least:
        return False
    inner = [m.shared - branch.shared for m in branch.members if isinstance(m, _Branch)
             and (m.shared - branch.shared) * (m.count - 1) >= least]  # fmt: skip
    return not inner or own * len(inner) >= sum(inner)


# -- reading it


class _Scorer:
    """Walks the tree, deepest snapshots first, and collects what was found."""

    def __init__(self, model: Decoder, count: int, batch_size: int, progress: Callable[[int], None] | None) -> None:
        self.model, self.batch_size, self.progress = model, batch_size, progress
        self.logprobs = torch.zeros(count, dtype=torch.float64)
        self.greedy = torch.ones(count, dtype=torch.bool)
        self.bound = model.config.bounded_context

    def root(self, node: _Node) -> None:
        """All that there is: rows that share nothing, then beginnings, as many together as rows of a batch."""
        self._read_rows([(0, row) for row in node.rows], None)
        for nodes in _alike(node.nodes, self.batch_size):
            texts = [child.ids[: child.end] for child in nodes]
            cache = self.model.new_cache(len(nodes))
            cache.expect(torch.tensor([self._text_length(child) for child in nodes]))
            self._read_beginnings(texts, cache)
            for place, child in enumerate(nodes):
                self._read_nodes(child, cache, place)
            self._read_rows([(place, row) for place, child in enumerate(nodes) for row in child.rows], cache)

    def _text_length(self, node: _Node) -> int:
        """How long the texts are that go on from a node: of one rotation, so any of them tells."""
        while not node.rows:
            node = node.nodes[0]
        return len(node.rows[0].ids)

    def _read_nodes(self, node: _Node, cache: Cache, place: int) -> None:
        """What goes on from row `place` of a snapshot by snapshots of its own, one after the other."""
        open_ones = [(child, cache, place) for child in node.nodes]
        while open_ones:
            child, before, row = open_ones.pop()
            after = before.fork(torch.tensor([row], device=self.model.device))
            self._read(torch.tensor([child.ids[child.start : child.end]]), after, None)
            open_ones += [(inner, after, 0) for inner in child.nodes]
            self._read_rows([(0, leaf) for leaf in child.rows], after)

    def _read_beginnings(self, texts: list[list[int]], cache: Cache) -> None:
        """Reads texts from their first token, padded on the left."""
        ids, mask = pad_batch(texts, 0, side="left")
        T, padding = ids.shape[1], ids.shape[1] - int(mask.sum(1).min())
        # the first chunk reaches into every row, so that no row of a chunk is nothing but padding
        start, end = 0, min(T, max(PREFILL_CHUNK, padding + 1))
        while start < T:
            part = mask[:, start:end]
            padded = None if bool(part.all()) else part.to(self.model.device)
            self.model.hidden(ids[:, start:end].to(self.model.device), padded, cache=cache)
            start, end = end, min(T, end + PREFILL_CHUNK)

    def _read(self, ids: Tensor, cache: Cache, first: int | None) -> Tensor | None:
        """Reads (B, T) ids into a cache; hidden states from column `first` on, (B, T - first, hidden)."""
        kept = []
        for start in range(0, ids.shape[1], PREFILL_CHUNK):
            hidden = self.model.hidden(ids[:, start : start + PREFILL_CHUNK].to(self.model.device), cache=cache)
            if first is not None and start + hidden.shape[1] > first:
                kept.append(hidden[:, max(0, first - start) :])
        return torch.cat(kept, 1) if kept else None

    def _read_rows(self, rows: list[tuple[int, _Row]], cache: Cache | None) -> None:
        """Reads what is left of rows, each behind its row of the snapshot, and scores them.

        Padding stands on the right, where nothing looks back on it: the caches are not needed any more.

        Args:
            rows: (row of the snapshot, row).
            cache: the snapshot, which stays; None: there is nothing before them.
        """
        known = [0] if cache is None else cache.next_position[:, 0].tolist()
        left = sorted(rows, key=lambda each: known[each[0]] - len(each[1].ids))  # the longest rest first
        for batch in self._batches(left, known):
            starts = [known[place] for place, _ in batch]
            parts = [row.ids[start:] for start, (_, row) in zip(starts, batch, strict=True)]
            if cache is None:
                own = self.model.new_cache(len(batch))
                own.expect(torch.tensor([len(row.ids) for _, row in batch]))
            else:
                own = cache.fork(torch.tensor([place for place, _ in batch], device=self.model.device))
            first = min(row.first - start for start, (_, row) in zip(starts, batch, strict=True))
            hidden = self._read(pad_batch(parts, 0, side="right")[0], own, first)
            assert hidden is not None
            self._score([row for _, row in batch], [start + first for start in starts], hidden)

    def _batches(self, rows: list[tuple[int, _Row]], known: list[int]) -> Iterator[list[tuple[int, _Row]]]:
        """Rows of similar rests, none of which is padded beyond the positions that the model has."""
        batch: list[tuple[int, _Row]] = []
        rest = latest = 0
        for place, row in rows:
            start = known[place]
            beyond = self.bound is not None and max(latest, start) + rest > self.bound
            if batch and (len(batch) == self.batch_size or beyond):
                yield batch
                batch = []
            if not batch:
                rest, latest = len(row.ids) - start, start
            batch.append((place, row))
            latest = max(latest, start)
        if batch:
            yield batch

    def _score(self, rows: list[_Row], offsets: list[int], hidden: Tensor) -> None:
        """Adds up what the model thought of the rows' continuations.

        Args:
            offsets: position of the first column of `hidden` in each row.
            hidden: (B, columns, hidden).
        """
        places, wanted = list[tuple[int, int]](), list[tuple[int, int, int]]()
        for number, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
            begin = len(places) - row.first
            places += [(number, position - offset) for position in range(row.first, len(row.ids))]
            for wish in row.wishes:
                wanted += [(begin + wish.first + i, token, wish.number) for i, token in enumerate(wish.tokens)]
        flat, columns = torch.tensor(places, device=hidden.device).unbind(1)
        states = hidden[flat, columns]  # (N, hidden)
        at, tokens, owners = torch.tensor(sorted(wanted)).unbind(1)
        step = logits_at_once(self.model.config.vocab_size)
        for start in range(0, len(states), step):
            logits = self.model.unembed(states[start : start + step])  # (n, V) fp32
            mine = (at >= start) & (at < start + len(logits))
            lines, goals = (at[mine] - start).to(logits.device), tokens[mine].to(logits.device)
            # as lm-eval computes it: over a vocabulary of 262,144, logsumexp is exact, and 1e-4 away from this
            picked = torch.log_softmax(logits, 1)[lines, goals]
            missed = logits.argmax(1)[lines] != goals
            self.logprobs.index_add_(0, owners[mine], picked.double().cpu())
            self.greedy[owners[mine][missed.cpu()]] = False
        if self.progress is not None:
            self.progress(sum(len(row.wishes) for row in rows))


def _alike(nodes: list[_Node], size: int) -> Iterator[list[_Node]]:
    """Beginnings in batches of similar length, so that little is padding."""
    group: list[_Node] = []
    for node in sorted(nodes, key=lambda node: -node.end):
        if group and (len(group) == size or 4 * node.end < 3 * group[0].end):
            yield group
            group = []
        group.append(node)
    if group:
        yield group
