"""A batch of prompts in flight through one model and one cache.

Prefill in chunks, then one column of tokens a step; rows that are done leave the batch.
Shapes: B rows in flight, T columns, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from yeoul.data.padding import pad_batch
from yeoul.errors import UserError
from yeoul.infer.next_token import NextToken
from yeoul.infer.params import SamplingParams
from yeoul.infer.sample import counts_tokens, own_generators, row_generators, sample_rows, seen_tokens
from yeoul.infer.speculation import Pace
from yeoul.units import count

if TYPE_CHECKING:
    from yeoul.infer.speculation import Drafter
    from yeoul.model.cache import Cache
    from yeoul.model.decoder import Decoder

PREFILL_CHUNK = 2048
"""Columns of a prompt that go through the model at once: bounds the memory of long prompts."""

MOST_UNREAD = 16
"""Tokens behind the cache, of which wrong guesses leave some, from which on they are read without guesses."""

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(slots=True)
class Row:
    """One sequence in flight: `ids` are its new tokens, `limit` how many it may get."""

    index: int
    prompt: list[int]
    params: SamplingParams
    limit: int
    ids: list[int]
    finish_reason: FinishReason | None = None
    seconds: float = 0.0
    cache_bytes: int = 0


class Generation:
    """A batch of prompts in flight.

    Args:
        model: on any device, in any dtype; dropout is off while it runs.
        prompts: token ids, at least one each; different lengths are padded on the left.
        params: of all prompts, where row i draws with seed + i; or those of each, with its own seed.
        eos_ids: tokens that end a sequence, unless its `params.ignore_eos`.
        pad_id: any valid token; it is masked.
        vocab_size: only ids below it are drawn (a model's table is often longer than its tokenizer's).
        rows: numbers of the prompts, for their seeds and messages; 0, 1, ... by default.
        cache: what an earlier generation left, for one prompt that begins with the `cached` ids in it.
        drafter: guesses tokens of a batch of one, which are verified together (`yeoul.infer.speculation`); not asked
            where rotations go by the length of the text.
        draft_tokens: guessed at most at a time.
        next_token: of an earlier generation of the same model, whose decoder serves again; None makes one.

    Raises:
        UserError: a prompt is empty, or longer than the model's context.
    """

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        eos_ids: Collection[int] = (),
        pad_id: int = 0,
        vocab_size: int | None = None,
        rows: Sequence[int] | None = None,
        cache: Cache | None = None,
        cached: int = 0,
        prefill_chunk: int = PREFILL_CHUNK,
        drafter: Drafter | None = None,
        draft_tokens: int = 0,
        next_token: NextToken | None = None,
    ) -> None:
        self.model, self.pad_id, self.prefill_chunk = model, pad_id, prefill_chunk
        self.vocab_size = min(vocab_size or model.config.vocab_size, model.config.vocab_size)
        self.eos_ids = frozenset(eos_ids)
        self.device = model.device
        indices = list(range(len(prompts))) if rows is None else list(rows)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        self.rows = [self._row(i, list(ids), own) for i, ids, own in zip(indices, prompts, each, strict=True)]
        shared = isinstance(params, SamplingParams)
        self.generators = row_generators(each[0].seed if each else None, indices) if shared else own_generators(each)
        self.seen: Tensor | None = None
        if any(own.repetition_penalty != 1 for own in each):
            self.seen = seen_tokens(prompts, self.vocab_size, self.device)
        self.counts: Tensor | None = None
        if any(counts_tokens(own) for own in each):
            self.counts = torch.zeros(len(prompts), self.vocab_size, dtype=torch.int32, device=self.device)
        self.cache, self._cached = cache, cached
        self._tokens: Tensor | None = None  # (B,) drawn, not yet read by the model
        self._batch = list(self.rows)  # the rows of the cache, in order
        self._fed = 0  # drawn tokens that the model has read, of each row
        self._start = time.perf_counter()
        self.prefill_seconds = 0.0
        if drafter is not None and len(prompts) != 1:
            raise ValueError(f"guesses are for one text at a time, not {len(prompts)}")
        switches = model.config.rope_switch is not None  # a text that is read anew there has no place to go back to
        self.drafter = None if switches else drafter
        self._pace = Pace(draft_tokens)
        self._ready: list[int] = []  # tokens drawn, but not yet given out
        self._back: tuple[Cache, int] | None = None  # the cache before the last guesses, and how much was read then
        self.guessed = self.right = 0
        self._next = next_token or NextToken(model)

    def _row(self, index: int, prompt: list[int], params: SamplingParams) -> Row:
        config = self.model.config
        if not prompt:
            raise UserError("the prompt is empty", where=f"prompt {index + 1}")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise UserError(
                f"the prompt has a token beyond the model's {config.vocab_size}",
                where=f"prompt {index + 1}", fix="use the tokenizer that the model was trained with",
            )  # fmt: skip
        check_bias(params, self.vocab_size)
        limit = params.max_tokens
        if config.bounded_context is not None:
            limit = min(limit, config.bounded_context - len(prompt))
            if limit < 1:
                raise UserError(
                    f"context longer than the model's: the prompt has {count(len(prompt), 'token')}, but "
                    f"prompt and answer together may have {config.bounded_context}",
                    where=f"prompt {index + 1}", fix="shorten the prompt",
                )  # fmt: skip
        return Row(index, prompt, params, limit, [])

    @property
    def cached_ids(self) -> list[int]:
        """The ids in the cache of a batch of one: all but the last drawn, and more that wrong guesses left unread."""
        (row,) = self.rows
        return row.prompt + row.ids[: self._fed]

    def finish(self, row: Row, reason: FinishReason) -> None:
        """Takes a row out of the batch, from the next step on."""
        row.finish_reason = reason
        self._ready.clear()
        if self._back is not None and self._fed > len(row.ids):  # guesses have been read that are no part of the text
            self.cache, self._fed = self._back
        row.seconds = time.perf_counter() - self._start
        row.cache_bytes = self.cache.nbytes() if self.cache is not None else 0

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int]]:
        """One more token for every working row; those that ended with it have their `finish_reason`.

        The end-of-text token is returned, but not appended to the row's ids. [] when all rows are done.
        """
        if not self.rows:
            return []
        if self._tokens is not None and self.drafter is not None:
            if self.rows[0].finish_reason is not None:
                return []
            if not self._ready:
                self._speculate(self.drafter)
            drawn = [(self.rows[0], self._ready.pop(0))]
        else:
            logits = self._prefill() if self._tokens is None else self._decode()
            if logits is None:
                return []
            self._tokens = self._draw(logits)
            drawn = list(zip(self._batch, self._tokens.tolist(), strict=True))
        for row, token in drawn:
            if token in self.eos_ids and not row.params.ignore_eos:
                self.finish(row, "eos")
                continue
            row.ids.append(token)
            if len(row.ids) >= row.limit:
                self.finish(row, "length")
        return drawn

    def _draw(self, logits: Tensor) -> Tensor:
        """The next token (B,) of each row from its logits (B, V)."""
        params = [row.params for row in self._batch]
        tokens = sample_rows(logits[:, : self.vocab_size], params, self.generators, self.seen, self.counts)  # (B,)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        if self.counts is not None:
            self.counts.scatter_add_(1, tokens[:, None], torch.ones_like(self.counts[:, :1]))
        return tokens

    def _speculate(self, drafter: Drafter) -> None:
        """Draws one token, and those behind it that were guessed right, with one pass through the model.

        The cache goes on only where all guesses were right. Otherwise it stays where it was, and the tokens behind it,
        which are few, are read again with the next guesses: a pass costs about as much for some tokens as for one.
        """
        (row,) = self.rows
        assert self.cache is not None
        text = row.prompt + row.ids
        unread = text[len(row.prompt) + self._fed :]
        room = row.limit - len(row.ids) - 1
        most = min(self._pace.now, room) if len(unread) <= MOST_UNREAD else 0
        guesses = drafter.guess(text, most) if most > 0 else []
        self._back = (self.cache.snapshot(), self._fed) if guesses else None
        ids = torch.tensor(unread + guesses, device=self.device)
        logits = self._next.after_each(ids, self.cache, len(guesses) + 1)  # (guesses + 1, V)
        right = 0
        for place, guess in enumerate([*guesses, None]):
            token = int(self._draw(logits[place : place + 1])[0])
            self._ready.append(token)
            if token != guess or (token in self.eos_ids and not row.params.ignore_eos):
                break
            right += 1
        if guesses:
            self._pace.told(len(guesses), right)
            self.guessed, self.right = self.guessed + len(guesses), self.right + right
        if self._back is None or right == len(guesses):
            self._fed += len(unread) + len(guesses)
        else:
            self.cache, self._fed = self._back

    def _prefill(self) -> Tensor:
        """Reads the prompts, equal ones once; returns the logits (B, V) behind their last tokens."""
        distinct = list(dict.fromkeys(tuple(row.prompt) for row in self.rows))
        logits = self._read_texts([list(prompt) for prompt in distinct], self.cache)
        if not bool(torch.isfinite(logits).all()):
            raise UserError(
                "the model computes numbers that are not finite (NaN or infinity)", fix="load it with --dtype float32"
            )
        if len(distinct) < len(self.rows):
            assert self.cache is not None
            place = {prompt: i for i, prompt in enumerate(distinct)}
            index = torch.tensor([place[tuple(row.prompt)] for row in self.rows], device=self.device)
            self.cache.reorder(index)
            logits = logits.index_select(0, index)
        self.prefill_seconds = time.perf_counter() - self._start
        return logits

    def _read_texts(self, texts: list[list[int]], cache: Cache | None) -> Tensor:
        """Reads texts, into a new cache or from where one ends; returns the logits (B, V) behind their last tokens."""
        known = 0 if cache is None else self._cached
        ids, mask = pad_batch([text[known:] for text in texts], self.pad_id, side="left")
        if cache is None:
            cache = self.model.new_cache(len(texts))
            cache.expect(torch.tensor([len(text) for text in texts]))
        T, padding = ids.shape[1], ids.shape[1] - int(mask.sum(1).min())
        # the first chunk reaches into every row, so that no row of a chunk is nothing but padding
        end = min(T, max(self.prefill_chunk, padding + 1))
        start = 0
        while end < T:
            self._read(ids, mask, cache, start, end, last=False)
            start, end = end, min(T, end + self.prefill_chunk)
        self.cache = cache
        return self._read(ids, mask, cache, start, end, last=True)

    def _read(self, ids: Tensor, mask: Tensor, cache: Cache, start: int, end: int, last: bool) -> Tensor:
        """Sends columns start..end of the padded prompts through the model; logits (B, V) if the last."""
        columns, part = ids[:, start:end].to(self.device), mask[:, start:end]
        padded = None if bool(part.all()) else part.to(self.device)
        if last:
            return self._logits(columns, padded, cache)
        return self.model.hidden(columns, padded, cache=cache)

    def _decode(self) -> Tensor | None:
        """Drops rows that are done, reads the tokens drawn last; logits (B, V), or None if no row is left."""
        assert self._tokens is not None and self.cache is not None
        keep = [i for i, row in enumerate(self._batch) if row.finish_reason is None]
        if not keep:
            return None
        if len(keep) < len(self._batch):
            index = torch.tensor(keep, device=self.device)
            self.cache.reorder(index)
            self._tokens = self._tokens.index_select(0, index)
            self.seen = None if self.seen is None else self.seen.index_select(0, index)
            self.counts = None if self.counts is None else self.counts.index_select(0, index)
            self.generators = [self.generators[i] for i in keep]
            self._batch = [self._batch[i] for i in keep]
        self._fed += 1
        if self._outgrown():
            return self._read_texts([row.prompt + row.ids for row in self._batch], None)
        return self._next(self._tokens, self.cache)

    def _outgrown(self) -> bool:
        """Whether a text has become one token longer than what its rotation goes by: see `yeoul.model.rope`."""
        switch = self.model.config.rope_switch
        return switch is not None and any(len(row.prompt) + len(row.ids) == switch + 1 for row in self._batch)

    def _logits(self, ids: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        """Logits (B, V) behind the last of (B, T) ids."""
        return self.model(ids, mask, cache=cache, logits_to_keep=1)[:, -1]


def check_bias(params: SamplingParams, vocab_size: int) -> None:
    """Raises UserError where a bias is for an id that is never drawn."""
    for token, _ in params.logit_bias:
        if token >= vocab_size:
            raise UserError(f"--logit-bias names the token {token}, but only those below {vocab_size} are drawn")


@contextlib.contextmanager
def evaluating(model: Decoder) -> Iterator[None]:
    """Dropout off inside, as before outside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
