"""A request on its way: its text so far, what it has cost, and the events that tell of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from yeoul.infer.engine import RowText
from yeoul.infer.requests import EndedBy, Event, FinishReason, Matcher, Request, TokenLogprob, Usage
from yeoul.infer.sample import counts_tokens, own_generators, seen_tokens, shape_of
from yeoul.infer.scheduler import Job

if TYPE_CHECKING:
    from yeoul.model.cache import Cache
    from yeoul.text.tokenizer import Tokenizer


class InFlight:
    """A request that was taken.

    Args:
        request: what was asked for.
        on_event: is told of it.
        tokenizer: of the model.
        limit: new tokens at most.
        vocab_size: ids below it are drawn.
        device: of the model.
        marks_apart: tokens that its marks must be apart, but for the last.

    Attributes:
        job: of the scheduler.
        text: ids of prompt and answer.
        read: how many of them are in `cache`, while it has no row.
        cache: its memory, while it has no row.
        row: number of its row, -1 without one.
        reading: how many ids have to be read before a token is drawn; -1 while it decodes.
        shape: rows of equal shapes are drawn together.
        seen, counts: (V,) of the prompt and the answer, and of the answer, where sampling goes by them.
    """

    def __init__(
        self,
        request: Request,
        on_event: Callable[[Event], None],
        tokenizer: Tokenizer,
        *,
        limit: int,
        vocab_size: int,
        device: torch.device,
        marks_apart: int,
    ) -> None:
        params, prompt = request.params, list(request.ids)
        self.request, self.params, self.on_event, self.limit = request, params, on_event, limit
        self.job = Job(len(prompt), len(prompt) + limit)
        self.text, self.prompt_size, self._ids = prompt, len(prompt), np.array(prompt, np.int64)
        self.read, self.row, self.reading = 0, -1, len(prompt)
        self.cache: Cache | None = None
        self.generator = own_generators([params])[0]
        self.shape = shape_of(params)
        self.matcher: Matcher | None = request.grammar.matcher() if request.grammar is not None else None
        self.seen: Tensor | None = None
        if params.repetition_penalty != 1:
            self.seen = seen_tokens([prompt], vocab_size, device)[0]
        self.counts: Tensor | None = None
        if counts_tokens(params):
            self.counts = torch.zeros(vocab_size, dtype=torch.int32, device=device)
        self.marks = _apart(request.marks, marks_apart)
        self.cancelled = False
        self.cached = self.drawn = 0
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self._shown = RowText(tokenizer, params.stop, prompt)
        self._tokens: list[TokenLogprob] = []
        self._text = ""
        self._prompt: tuple[TokenLogprob | None, ...] | None = None
        self._began = time.perf_counter()
        self._times: list[float] = []  # when reading began, and when the first token was drawn

    @property
    def last(self) -> int:
        """The token drawn last."""
        return self.text[-1]

    @property
    def new_ids(self) -> int:
        """How many ids the answer has."""
        return len(self.text) - self.prompt_size

    def array(self, length: int) -> np.ndarray:
        """The first ids, (length,) int64."""
        return self._ids[:length] if length <= self.prompt_size else np.array(self.text[:length], np.int64)

    def begins(self) -> None:
        """Its prompt begins to be read."""
        if not self._times:
            self._times.append(time.perf_counter())

    def prompt_is_read(self) -> None:
        """All of it; its first token is drawn next."""
        if len(self._times) == 1:
            self._times.append(time.perf_counter())
            if self.request.prompt_logprobs is not None:
                self._prompt = tuple(self.prompt_logprobs)

    def takes(self, token: TokenLogprob, ends: frozenset[int]) -> tuple[FinishReason, EndedBy | None] | None:
        """Takes note of a token that was drawn; how the answer ended with it, None where it goes on."""
        self.drawn += 1
        self._tokens.append(token)
        if token.id in ends and not self.params.ignore_eos:
            return "stop", "eos"
        self.text.append(token.id)
        if self.seen is not None:
            self.seen[token.id] = True
        if self.counts is not None:
            self.counts[token.id] += 1
        if self.matcher is not None:
            self.matcher.accept(token.id)
        self._text += self._shown.push(token.id)
        if self._shown.matcher.stopped:
            return "stop", "string"
        if self.matcher is not None and self.matcher.is_done():
            return "stop", "grammar"
        return ("length", None) if self.new_ids >= self.limit else None

    def tell(self) -> None:
        """An event, where there is something to show."""
        if self._text or self._prompt is not None:
            self.on_event(self._event(None, None, None))

    def end(self, reason: FinishReason, by: EndedBy | None, error: str | None) -> None:
        """The last event."""
        if reason != "error":
            self._text += self._shown.flush()
        now = time.perf_counter()
        times = [self._began, *self._times, *[now] * (3 - len(self._times))]
        usage = Usage(
            prompt_tokens=self.prompt_size, cached_tokens=self.cached, completion_tokens=self.drawn,
            queue_seconds=times[1] - times[0], prefill_seconds=times[2] - times[1], decode_seconds=times[3] - times[2],
            error=error,
        )  # fmt: skip
        self.on_event(self._event(reason, by, usage))

    def _event(self, reason: FinishReason | None, by: EndedBy | None, usage: Usage | None) -> Event:
        event = Event(
            text=self._text, tokens=tuple(self._tokens), prompt=self._prompt, finish_reason=reason, ended_by=by,
            usage=usage,
        )  # fmt: skip
        self._text, self._prompt = "", None
        self._tokens.clear()
        return event


def _apart(marks: tuple[int, ...], least: int) -> list[int]:
    """Marks that are so many tokens apart, chosen from the last on, in order."""
    chosen: list[int] = []
    for mark in sorted(set(marks), reverse=True):
        if not chosen or chosen[-1] - mark >= least:
            chosen.append(mark)
    return chosen[::-1]
