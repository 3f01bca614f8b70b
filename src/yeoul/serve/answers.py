"""Requests to the engine, and its events in an asynchronous program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request as HttpRequest

from yeoul.infer.params import SamplingParams
from yeoul.infer.requests import Event, Grammar, QueueFull, Request, TokenLogprob, Usage
from yeoul.serve.errors import ApiError
from yeoul.serve.prompts import Prompt
from yeoul.serve.schema import Sampling
from yeoul.serve.served import ServedModel

T = TypeVar("T")
PING = 10.0
"""Seconds of silence after which a stream shows that it lives."""
LOOK = 0.5
"""Seconds between two looks at whether a client is still there."""
SEEDS = 2**62


def sampling_params(
    body: Sampling, served: ServedModel, prompt: int, *, most: int | None, default: int
) -> SamplingParams:
    """How an answer is drawn.

    Args:
        prompt: tokens of the prompt.
        most: new tokens at most, as the request says.
        default: the same where it does not.

    Raises:
        ApiError: the prompt fills the model's context.
    """
    own, limit = served.defaults, served.model.config.bounded_context
    room = None if limit is None else limit - prompt
    if room is not None and room < 1:
        what = f"the prompt has {prompt:,} tokens, and the model's context {limit:,}"
        raise ApiError(400, what, param="messages", code="context_length_exceeded")
    wanted = max(1, default if most is None else most)
    given = lambda value, other: other if value is None else value  # noqa: E731
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SamplingParams(
        max_tokens=wanted if room is None else min(wanted, room),
        temperature=given(body.temperature, own.temperature),
        top_p=given(body.top_p, own.top_p),
        top_k=max(0, given(body.top_k, own.top_k)),
        min_p=given(body.min_p, own.min_p),
        repetition_penalty=given(body.repetition_penalty, own.repetition_penalty),
        presence_penalty=given(body.presence_penalty, own.presence_penalty),
        frequency_penalty=given(body.frequency_penalty, own.frequency_penalty),
        logit_bias=_biases(body, served),
        stop=stops or own.stop,
        seed=own.seed if body.seed is None else body.seed % SEEDS,
        ignore_eos=given(body.ignore_eos, own.ignore_eos),
    )


def _biases(body: Sampling, served: ServedModel) -> tuple[tuple[int, float], ...]:
    found = []
    for key, value in (body.logit_bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 10 or int(key) >= served.model.config.vocab_size:
            raise ApiError(400, "logit_bias: the keys must be ids of tokens", param="logit_bias")
        found.append((int(key), float(value)))
    return tuple(found)


class Running:
    """An answer in the engine: its events, one after the other.

    The engine's thread hands them to the loop; whoever stops listening cancels the answer.
    """

    def __init__(self, served: ServedModel, request: Request) -> None:
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def hand_over(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        try:
            self._ticket = served.engine.submit(request, hand_over)
        except QueueFull as error:
            raise ApiError(429, str(error), code="queue_full", wait=1) from None
        self._over = False

    async def next(self) -> Event:
        """The next event.

        Raises:
            ApiError: the engine could not go on.
        """
        event = await self._events.get()
        self._over = event.finish_reason is not None
        if event.finish_reason == "error":
            raise ApiError(500, "the model failed on this request; the server's log says why")
        return event

    @property
    def over(self) -> bool:
        """Whether the last event has come."""
        return self._over

    def cancel(self) -> None:
        """Frees its row; nothing happens once it is over."""
        if not self._over:
            self._ticket.cancel()


@dataclass
class Answer:
    """A whole answer.

    Attributes:
        text: without the prompt.
        tokens: as drawn, with logprobs where they were asked for.
        prompt: logprobs of the prompt's tokens, where they were asked for.
    """

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    prompt: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: str = "stop"
    usage: Usage | None = None

    def take(self, event: Event) -> None:
        """Adds an event."""
        self.text += event.text
        self.tokens += event.tokens
        self.prompt = event.prompt if event.prompt is not None else self.prompt
        if event.finish_reason is not None:
            self.finish_reason, self.usage = event.finish_reason, event.usage


def start(
    served: ServedModel, prompt: Prompt, params: Sequence[SamplingParams], *, logprobs: int | None = None,
    prompt_logprobs: int | None = None, grammar: Grammar | None = None,
) -> list[Running]:  # fmt: skip
    """Answers to one prompt, each drawn as its settings say.

    Raises:
        ApiError: the queue is full.
        UserError: the prompt does not fit the model.
    """
    started: list[Running] = []
    try:
        for own in params:
            request = Request(
                ids=prompt.ids, params=own, logprobs=logprobs, prompt_logprobs=prompt_logprobs, marks=prompt.marks,
                grammar=grammar,
            )  # fmt: skip
            started.append(Running(served, request))
    except BaseException:
        for running in started:
            running.cancel()
        raise
    return started


async def whole(running: Sequence[Running]) -> list[Answer]:
    """All answers, whole."""

    async def one(single: Running) -> Answer:
        answer = Answer()
        while not single.over:
            answer.take(await single.next())
        return answer

    return list(await asyncio.gather(*(one(single) for single in running)))


async def merged(running: Sequence[Running]) -> AsyncIterator[tuple[int, Event] | None]:
    """Events of several answers as they come, with the number of the answer; None where nothing came for a while."""
    waiting = {asyncio.ensure_future(single.next()): number for number, single in enumerate(running)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, timeout=PING, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                yield None
            for task in sorted(done, key=lambda task: waiting[task]):
                number = waiting.pop(task)
                event = task.result()
                if not running[number].over:
                    waiting[asyncio.ensure_future(running[number].next())] = number
                yield number, event
    finally:
        for task in waiting:
            task.cancel()


async def unless_gone(http: HttpRequest, running: Sequence[Running], work: Awaitable[T]) -> T:
    """The result of some work on answers that are cancelled when the client goes away.

    Raises:
        ApiError: the client went away.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK)
            if not task.done() and await http.is_disconnected():
                raise ApiError(499, "the client went away")
        return task.result()
    finally:
        task.cancel()
        for single in running:
            single.cancel()


def stops_when_left(pieces: AsyncIterator[str], running: Sequence[Running]) -> Callable[[], AsyncIterator[str]]:
    """The same pieces; however their reader ends, the answers behind them are cancelled."""

    async def read() -> AsyncIterator[str]:
        try:
            async for piece in pieces:
                yield piece
        finally:
            for single in running:
                single.cancel()

    return read


def timings(served: ServedModel, usage: Usage | None) -> dict[str, float]:
    """llama.cpp's, with what ours adds: the wait, and bytes that the conversation holds now."""
    if usage is None:
        return {}
    read = usage.prompt_tokens - usage.cached_tokens
    decoding = 1000 * usage.decode_seconds
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": read,
        "prompt_ms": round(1000 * usage.prefill_seconds, 3),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(decoding, 3),
        "predicted_per_second": round(max(usage.completion_tokens - 1, 0) / max(usage.decode_seconds, 1e-9), 3),
        "queue_ms": round(1000 * usage.queue_seconds, 3),
        "state_bytes": served.state_bytes(usage.prompt_tokens + usage.completion_tokens),
    }


def usage_of(answers: Sequence[Answer]) -> dict[str, object]:
    """OpenAI's usage; the prompt counts once."""
    known = [answer.usage for answer in answers if answer.usage is not None]
    prompt = max((usage.prompt_tokens for usage in known), default=0)
    new = sum(usage.completion_tokens for usage in known)
    cached = min((usage.cached_tokens for usage in known), default=0)
    return {
        "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
