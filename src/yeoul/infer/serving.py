"""Many requests to one model at a time: what a server runs.

    engine = Engine(model, tokenizer, max_rows=32)
    engine.start()                                   # a thread of its own; without it, call step() again and again
    ticket = engine.submit(Request(ids=ids, params=SamplingParams(max_tokens=64)), on_event)
    engine.close(drain=True)

`on_event` is called with `yeoul.infer.requests.Event`s from the engine's thread and must not block. Each step reads
pieces of prompts (`yeoul.infer.scheduler`), one text at a time, and draws a token for everybody whose prompt is read,
in one pass through the model (`yeoul.infer.rows`). Greedy ids are those that the request alone would get.

**Snapshots.** What is remembered of a text is kept where its prompt ends, where its answer ends, at the request's marks
and every `snapshot_every` tokens, and a later request begins from the longest beginning that it shares with a text that
is kept; softmax models share any beginning. It is evicted by bytes (`yeoul.infer.prefixes`). An engine has one model,
with its adapter, and snapshots of its own.

**Rotations by the length of the text** (longrope, dynamic) are those of each text alone: a text that outgrows the
length at which longrope changes is read again from its beginning, and snapshots serve only texts that are turned alike.

An exception in a step ends the requests that it concerns, with "error"; the others go on.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from yeoul import runtime
from yeoul.errors import UserError
from yeoul.infer.drawing import PIECE, draw, prompt_logprobs
from yeoul.infer.engine import end_ids
from yeoul.infer.generation import check_bias
from yeoul.infer.in_flight import InFlight
from yeoul.infer.next_token import NextToken
from yeoul.infer.packed import packed
from yeoul.infer.prefixes import Prefixes
from yeoul.infer.requests import (
    Closed,
    EndedBy,
    EngineStats,
    Event,
    FinishReason,
    Request,
    Ticket,
    TokenLogprob,
    check_request,
)
from yeoul.infer.rows import Rows, joinable
from yeoul.infer.scheduler import Job, Scheduler, State
from yeoul.infer.static_step import parts
from yeoul.model.cache import Cache, KVCache
from yeoul.units import count

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

T = TypeVar("T")
logger = logging.getLogger(__name__)

TRIM_SECONDS = 10.0
"""Between two times that free memory is given back to the system, at least."""
WORTH = 16
"""Tokens that a snapshot must spare a text that has been read in part."""
FEW = 16
"""Tokens of a piece that the native library reads sooner than PyTorch does."""
APART = 64
"""Tokens that marks must be apart for a snapshot at each, but for the last: small pieces cost more a token."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Memory of a text, and the logits (1, V) behind its last token where they are known."""

    cache: Cache
    logits: Tensor | None = None


class _Ticket:
    """See `yeoul.infer.requests.Ticket`."""

    def __init__(self, engine: Engine, one: InFlight) -> None:
        self._engine, self._one = engine, one

    def cancel(self) -> None:
        """See there."""
        self._engine._cancel(self._one)


class Engine:
    """Answers requests to one model, many at a time.

    Args:
        model: on any device; its weights and mode stay as they are meanwhile.
        tokenizer: of the model.
        max_rows: requests that are read or answered at a time.
        max_waiting: requests that may wait beyond those.
        prefill_tokens: of prompts, read between two steps at most.
        snapshot_bytes: that snapshots may take; 0 keeps none.
        snapshot_every: tokens between snapshots of a long prompt, where the state is not softmax attention's; 0: none.
        cache_bytes: that keys and values of softmax attention may take, as rows times the longest of them; None is half
            of the memory that is available now.

    Attributes:
        vocab_size: ids below it are drawn.
        context: tokens that prompt and answer together may have; None where there is no bound.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        max_rows: int = 32,
        max_waiting: int = 256,
        prefill_tokens: int = 512,
        snapshot_bytes: int = 1 << 29,
        snapshot_every: int = 512,
        cache_bytes: int | None = None,
        native: bool = True,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        self.context = model.config.bounded_context
        self.snapshot_every = snapshot_every
        self._ends = end_ids(model, tokenizer)
        self._native = native
        with torch.inference_mode():
            self._rows = Rows(model, max_rows, native=native)
        self._few = NextToken(model) if native and model.device.type == "cpu" else None
        growing, fixed = self._growth()
        room = self._memory() // 2 if cache_bytes is None else cache_bytes
        cells = max(1, room // growing) if growing else None
        self._scheduler = Scheduler(max_rows, max_waiting, prefill_tokens, cells)
        self._kept: Prefixes[Snapshot] = Prefixes(snapshot_bytes, cuts=not fixed)
        self._keeps = snapshot_bytes > 0
        self._order: list[InFlight] = []  # those that have a row, by its number
        self._young: list[InFlight] = []  # those that decode alone, because their text is too short to join
        self._by_job: dict[Job, InFlight] = {}
        self._lock = threading.Lock()  # of the scheduler, of `_by_job` and of what is counted
        self._to_cancel: list[InFlight] = []
        self._works: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter({"stop": 0, "length": 0, "cancelled": 0, "error": 0})

    # -- from any thread

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Takes a request.

        Args:
            request: what is asked for.
            on_event: is told of it, from the engine's thread; must not block. Raising ends the request.

        Raises:
            QueueFull: as many wait as may.
            Closed: the engine is closing.
            UserError: a prompt that is empty, too long or has ids out of range; a setting that cannot be meant.
        """
        limit = self._limit(request)
        one = InFlight(
            request,
            on_event,
            self.tokenizer,
            limit=limit,
            vocab_size=self.vocab_size,
            device=self.model.device,
            marks_apart=APART,
        )
        with self._lock:
            if self._closing:
                raise Closed("the server is closing")
            self._scheduler.submit(one.job)
            self._by_job[one.job] = one
            self._counts["requests"] += 1
        self._wake.set()
        return _Ticket(self, one)

    def stats(self) -> EngineStats:
        """Where the engine stands."""
        with self._lock:
            scheduler, counts = self._scheduler, self._counts
            return EngineStats(
                waiting=len(scheduler.waiting), reading=len(scheduler.reading), decoding=len(scheduler.decoding),
                max_rows=scheduler.max_rows, max_waiting=scheduler.max_waiting, cache_bytes=self._rows.nbytes(),
                snapshots=len(self._kept), snapshot_bytes=self._kept.bytes, prompt_tokens=counts["prompt_tokens"],
                cached_tokens=counts["cached_tokens"], completion_tokens=counts["completion_tokens"],
                requests=counts["requests"], finished=dict(self._finished), hits=counts["hits"], steps=counts["steps"],
                native=self._rows.native,
            )  # fmt: skip

    def start(self) -> None:
        """Begins to work, in a thread of its own."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._work, name="yeoul-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it works, or would if it were started."""
        return self._thread is None or self._thread.is_alive()

    def known(self, ids: Sequence[int]) -> Cache | None:
        """What is remembered of exactly these ids, as a memory of its own; None where no snapshot is of them."""
        return self._between_steps(lambda: self._known(ids))

    def keep(self, ids: Sequence[int], cache: Cache) -> None:
        """Keeps what is remembered of a text, for requests that begin with it; it is evicted like any snapshot.

        Args:
            ids: of the text.
            cache: of one row, which has read them and nothing else; it stays as it is.
        """
        self._between_steps(lambda: self._keep_given(ids, cache))

    def close(self, drain: bool = True) -> None:
        """Takes no more requests, ends those that there are, and returns then.

        Args:
            drain: answers them all; else they are cancelled.
        """
        with self._lock:
            self._closing = True
            running = list(self._by_job.values())
        if not drain:
            for one in running:
                self._cancel(one)
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        else:
            while self.step():
                pass

    def _cancel(self, one: InFlight) -> None:
        one.cancelled = True
        self._to_cancel.append(one)
        self._wake.set()

    def _limit(self, request: Request) -> int:
        """New tokens at most; UserError where a request cannot be answered."""
        ids, params = request.ids, request.params
        if not ids:
            raise UserError("the prompt is empty")
        if not 0 <= min(ids) <= max(ids) < self.model.config.vocab_size:
            raise UserError(f"the prompt has a token beyond the model's {self.model.config.vocab_size}")
        check_bias(params, self.vocab_size)
        try:
            check_request(request, self.vocab_size)
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.context is None:
            return params.max_tokens
        if len(ids) >= self.context:
            raise UserError(
                f"the prompt has {count(len(ids), 'token')}, but prompt and answer together may have {self.context}",
                fix="shorten the prompt",
            )
        return min(params.max_tokens, self.context - len(ids))

    def _between_steps(self, work: Callable[[], T]) -> T:
        """The result of some work that the engine's thread does before its next step."""
        if self._thread is None or threading.current_thread() is self._thread:
            return work()
        done: Future[T] = Future()
        with self._lock:
            if self._closing:
                raise Closed("the server is closing")
            self._works.append((work, done))
        self._wake.set()
        return done.result()

    # -- the engine's own thread

    def _work(self) -> None:
        trimmed = time.monotonic()
        while True:
            self._wake.clear()
            if time.monotonic() - trimmed > TRIM_SECONDS:
                runtime.return_freed_memory()
                trimmed = time.monotonic()
            try:
                if self.step():
                    continue
            except Exception as error:  # a bug; but those who wait are to know, and others to be answered
                self._begin_anew(error)
            with self._lock:
                if self._closing and self._scheduler.idle and not self._works:
                    return
            self._wake.wait()

    @torch.inference_mode()
    def step(self) -> bool:
        """Reads pieces of prompts and draws a token for everybody else; whether anything is left to do."""
        while self._works:
            work, done = self._works.popleft()
            try:
                done.set_result(work())
            except Exception as error:  # whoever waits for it is told
                done.set_exception(error)
        while self._to_cancel:
            one = self._to_cancel.pop()
            if one.job.state is not State.ENDED:
                self._finish(one, "cancelled")
        with self._lock:
            self._scheduler.begin_step()
        while (reader := self._next_reader()) is not None:
            try:
                self._read_piece(reader)
            except Exception as error:  # the other requests have no part in it
                self._fail(reader, error)
        if self._order:
            self._decode()
        for one in list(self._young):
            try:
                self._decode_alone(one)
            except Exception as error:
                self._fail(one, error)
        return not self._scheduler.idle

    def _begin_anew(self, error: Exception) -> None:
        """Ends all requests with an error, and forgets everything."""
        logger.exception("the engine begins anew")
        old = self._scheduler
        with self._lock, torch.inference_mode():
            lost = list(self._by_job.values())
            self._by_job.clear()
            self._scheduler = Scheduler(old.max_rows, old.max_waiting, old.prefill_tokens, old.max_cells)
            self._finished["error"] += len(lost)
            self._order, self._young = [], []
            self._kept.clear()
            self._rows = Rows(self.model, old.max_rows, native=self._native)
        for one in lost:
            one.job.state = State.ENDED
            try:
                one.end("error", None, str(error) or type(error).__name__)
            except Exception:
                logger.exception("an answer could not be handed over")

    def _next_reader(self) -> InFlight | None:
        with self._lock:
            job = self._scheduler.next_reader()
            return None if job is None else self._by_job[job]

    def _read_piece(self, one: InFlight) -> None:
        """Reads a piece of a prompt; behind the last one the first token is drawn, and the text joins the others."""
        one.begins()
        logits = self._from_snapshot(one)
        if logits is None:
            with self._lock:
                size = self._scheduler.piece(one.job).tokens
            start, end = one.read, min(one.read + size, self._next_stop(one))
            logits = self._read(one, start, end)
            one.read = end
            with self._lock:
                self._counts["prompt_tokens"] += end - start
                self._scheduler.read(one.job, end - start)
            if end < one.reading:
                if self._stops(one, end):
                    self._keep(one, end, minor=True)
                return
        assert one.cache is not None and logits is not None
        one.reading = -1
        one.prompt_is_read()
        self._drawn([one], logits.clone())
        ended = one.job.state is State.ENDED
        if not ended and joinable(one.cache):
            self._join(one)
        elif not ended:
            self._young.append(one)
            return
        if bool(torch.isfinite(logits).all()):
            self._keep(one, one.read, logits=logits)
        one.cache = None

    def _read(self, one: InFlight, start: int, end: int) -> Tensor | None:
        """Sends ids start ... end - 1 of a text through the model; logits (1, V) fp32 if they are the last."""
        model = self.model
        if one.cache is None:
            one.cache = model.new_cache(1)
            for number, like in enumerate(self._rows.layers):
                if isinstance(like, KVCache):  # room for the prompt and no more
                    exact = one.cache.layers[number] = like.room(1)
                    exact.widen(one.reading, [0])
        one.cache.expect(torch.tensor([one.reading]))
        ids = torch.tensor(one.text[start:end], device=model.device)
        most = one.request.prompt_logprobs if one.new_ids == 0 else None
        if most is None and self._few is not None and len(ids) <= FEW:
            logits = self._few.after_each(ids, one.cache, 1)
            return logits if end == one.reading else None
        hidden = model.hidden(ids[None], cache=one.cache)
        if most is not None:
            self._report_prompt(one, hidden, start, end, most)
        return model.unembed(hidden[:, -1]) if end == one.reading else None

    def _report_prompt(self, one: InFlight, hidden: Tensor, start: int, end: int, most: int) -> None:
        """Log-probabilities of the ids behind start ... end - 1, of which the last has none where the prompt ends."""
        if start == 0:
            one.prompt_logprobs.append(None)
        for first in range(start, min(end, one.reading - 1), PIECE):
            last = min(first + PIECE, end, one.reading - 1)
            logits = self.model.unembed(hidden[0, first - start : last - start])
            tokens = torch.tensor(one.text[first + 1 : last + 1])
            one.prompt_logprobs += prompt_logprobs(logits, tokens, most, self.vocab_size)

    def _decode(self) -> None:
        """One more token for everybody who has a row."""
        for one in [one for one in self._order if self._outgrown(one)]:
            self._read_again(one)
        if not self._order:
            return
        rows = list(self._order)
        try:
            tokens = torch.tensor([one.last for one in rows], device=self.model.device)
            logits = self._rows.step(tokens)
            with self._lock:
                self._counts["steps"] += 1
            self._drawn(rows, logits)
        except Exception as error:  # of the whole step: what it has left of their memory cannot be trusted
            logger.exception("a decode step failed")
            for one in rows:
                one.row = -1
            self._order, self._rows = [], Rows(self.model, self._scheduler.max_rows, native=self._native)
            for one in rows:
                if one.job.state is not State.ENDED:
                    self._fail(one, error)

    def _decode_alone(self, one: InFlight) -> None:
        """One more token for a text that cannot join yet."""
        assert one.cache is not None
        ids = torch.tensor([[one.last]], device=self.model.device)
        logits = self.model(ids, cache=one.cache, logits_to_keep=1)[:, -1]
        one.read += 1
        self._drawn([one], logits)
        if one.job.state is not State.ENDED and joinable(one.cache):
            self._young.remove(one)
            self._join(one)
            one.cache = None

    def _drawn(self, requests: list[InFlight], logits: Tensor) -> None:
        """Draws a token for each request from its logits (B, V), tells it, and ends those that end with it."""
        for one, token in zip(requests, draw(requests, logits, self.vocab_size), strict=True):
            try:
                if not isinstance(token, TokenLogprob):
                    raise token
                self._counts["completion_tokens"] += 1
                ending = one.takes(token, self._ends)
                if ending is None:
                    one.tell()
                else:
                    self._finish(one, *ending)
            except Exception as error:  # of its grammar, its text or whoever is told
                self._fail(one, error)

    def _join(self, one: InFlight) -> None:
        assert one.cache is not None
        one.row = self._rows.join(one.cache)
        self._order.append(one)

    def _leave(self, one: InFlight, *, wipe: bool = False) -> None:
        """Gives the row back, where there is one."""
        if one.row >= 0:
            moved = self._order[self._rows.leave(one.row, wipe=wipe)]
            self._order[one.row] = moved
            moved.row = one.row
            self._order.pop()
            one.row = -1
        elif one in self._young:
            self._young.remove(one)

    def _finish(self, one: InFlight, reason: FinishReason, by: EndedBy | None = None, error: str | None = None) -> None:
        """The end of a request, in whatever state it is."""
        with self._lock:
            decoded = one.job.state is State.DECODING
            if not self._scheduler.end(one.job):
                return
            del self._by_job[one.job]
            self._finished[reason] += 1
        if decoded and reason != "error" and (one.row >= 0 or one in self._young):
            try:
                self._keep_answer(one)
            except Exception:  # for want of memory; the answer is there all the same
                logger.exception("a snapshot could not be kept")
        self._leave(one, wipe=reason == "error")
        if one.reading >= 0:
            one.cache = None
        try:
            one.end(reason, by, error)
        except Exception:  # whoever is told has gone
            logger.exception("an answer could not be handed over")

    def _fail(self, one: InFlight, error: Exception) -> None:
        """An exception that concerns one request."""
        logger.error("a request failed", exc_info=error)
        self._finish(one, "error", error=str(error) or type(error).__name__)

    # -- rotations that depend on the length of the text

    def _outgrown(self, one: InFlight) -> bool:
        """Whether a text has become one token longer than what its rotation goes by (`yeoul.model.rope`)."""
        switch = self.model.config.rope_switch
        return switch is not None and len(one.text) == switch + 1 and self._rows.lengths[one.row] == switch

    def _read_again(self, one: InFlight) -> None:
        self._leave(one)
        one.read, one.reading, one.cache = 0, len(one.text), None
        with self._lock:
            self._scheduler.again(one.job, one.reading)

    def _turned(self, length: int) -> Hashable:
        """What rotations go by in a text that was so long when it was read: only alike ones share snapshots."""
        ropes = [rope for rope in self.model.config.ropes if rope.by_length]
        return tuple(int(rope.variant(torch.tensor(length))) for rope in ropes)

    # -- snapshots

    def _growth(self) -> tuple[int, bool]:
        """Bytes that a token adds to the memory of a text, and whether a part of it is a state, which has no front."""
        memories = list(parts(self._rows.layers))
        keys = [part.k for part in memories if isinstance(part, KVCache)]
        growing = sum(2 * k.shape[1] * k.shape[3] * k.element_size() for k in keys if k is not None)
        return growing, len(keys) < len(memories)

    def _memory(self) -> int:
        """Bytes that are free where the model is."""
        if self.model.device.type == "cuda":
            free: int = torch.cuda.mem_get_info(self.model.device)[0]
            return free
        return runtime.memory_available()

    def _stops(self, one: InFlight, length: int) -> bool:
        """Whether a snapshot is taken behind so many ids, on the way through a prompt."""
        if not (self._keeps and one.request.keep) or self._kept.cuts:
            return False
        return length in one.marks or (self.snapshot_every > 0 and length % self.snapshot_every == 0)

    def _next_stop(self, one: InFlight) -> int:
        """Where the next snapshot is taken, or the text ends."""
        if not (self._keeps and one.request.keep) or self._kept.cuts:
            return one.reading
        every = self.snapshot_every
        stop = round(one.read / every + 1) * every if every else one.reading  # no small piece before the first
        return min([one.reading, stop, *(mark for mark in one.marks if mark > one.read)])

    def _keep(self, one: InFlight, length: int, *, minor: bool = False, logits: Tensor | None = None) -> None:
        """Keeps the memory of a text that stands alone; a copy where the text goes on with it."""
        if not (self._keeps and one.request.keep) or one.cache is None:
            return
        self._put(one, length, one.cache.resumed(length) if minor else one.cache, minor=minor, logits=logits)

    def _keep_answer(self, one: InFlight) -> None:
        """Keeps the memory of prompt and answer."""
        if not (self._keeps and one.request.keep):
            return
        cache = one.cache if one.row < 0 else self._rows.lone(one.row)
        length = one.read if one.row < 0 else int(self._rows.lengths[one.row])
        if cache is not None and self._turned(one.prompt_size) == self._turned(length):
            self._put(one, length, cache)

    def _known(self, ids: Sequence[int]) -> Cache | None:
        found = self._kept.find(self._turned(len(ids)), np.asarray(ids, np.int64)) if len(ids) else None
        if found is None or found[0] != len(ids):
            return None
        cache = found[1].cache
        if self._kept.cuts and cache.length > len(ids):
            cache = cache.front(len(ids))
        return cache.resumed(len(ids))

    def _keep_given(self, ids: Sequence[int], cache: Cache) -> None:
        if self._keeps and self._known(ids) is None:  # one that is there may have its logits
            self._kept.put(self._turned(len(ids)), np.asarray(ids, np.int64), Snapshot(cache), cache.nbytes())

    def _put(
        self, one: InFlight, length: int, cache: Cache, *, minor: bool = False, logits: Tensor | None = None
    ) -> None:
        size = cache.nbytes() + (0 if logits is None else logits.numel() * logits.element_size())
        key = self._turned(max(length, one.reading, one.prompt_size))
        cache = cache if self._kept.cuts else packed(cache)
        self._kept.put(key, one.array(length), Snapshot(cache, logits), size, minor=minor)

    def _from_snapshot(self, one: InFlight) -> Tensor | None:
        """Goes on from a snapshot where one knows more of the text; logits (1, V) where it knows all of it."""
        if not self._keeps or (one.request.prompt_logprobs is not None and one.new_ids == 0):
            return None
        key, ids = self._turned(one.reading), one.array(one.reading)
        found = self._kept.find(key, ids)
        if found is not None and found[0] == len(ids) and (found[1].logits is None or found[1].cache.length > len(ids)):
            # behind the last id the logits are not known: it has to be read
            found = (len(ids) - 1, found[1]) if self._kept.cuts else self._kept.find(key, ids[:-1])
        if found is None or found[0] < one.read + (WORTH if one.read else 1):
            return None
        length, snapshot = found
        known = length - one.read
        whole = length == len(ids)
        cache = snapshot.cache
        if self._kept.cuts and cache.length > length:
            cache = cache.front(length)
        one.cache = cache if whole and joinable(cache) else cache.resumed(len(ids))  # what joins is copied then
        one.read = length
        one.cached += known if one.new_ids == 0 else 0
        with self._lock:
            self._counts["cached_tokens"] += known
            self._counts["hits"] += 1
            self._scheduler.known(one.job, known - 1 if whole else known)
            if whole:
                self._scheduler.read(one.job, 1)
        return snapshot.logits if whole else None
