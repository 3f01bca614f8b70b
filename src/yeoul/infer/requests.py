"""What is asked of `yeoul.infer.serving.Engine`, and what it answers: plain values, without torch.

A server makes a `Request` of what a client sent, hands it to `Engine.submit` with a function, and that function gets an
`Event` after another until one has a `finish_reason`. That one comes exactly once, whatever happens.

    ticket = engine.submit(request, on_event)   # from any thread; QueueFull, UserError
    ticket.cancel()                             # from any thread, at any time, also twice
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from yeoul.infer.params import SamplingParams

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length", "cancelled", "error"]
EndedBy = Literal["eos", "string", "grammar"]


class QueueFull(Exception):
    """As many requests wait as may wait: come again later (HTTP 429)."""


class Closed(Exception):
    """The engine is closing and takes no more requests (HTTP 503)."""


class Matcher(Protocol):
    """How far one answer has come in a grammar."""

    def mask(self) -> np.ndarray:
        """Which ids may come next: (V,) bool, or (ceil(V / 32),) uint32 or int32, the lowest bit first, as llguidance
        gives it. Ids beyond its end may not. A mask may be used again by the next call."""
        ...

    def accept(self, token: int) -> None:
        """Goes on by a token that the last mask allowed."""
        ...

    def is_done(self) -> bool:
        """Whether the answer is complete, so that nothing may follow."""
        ...


class Grammar(Protocol):
    """A language that answers are held to."""

    def matcher(self) -> Matcher:
        """A fresh state, for one answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued.

    For several choices of one prompt, submit as many requests with different seeds: the prompt is read once, and the
    others go on from its snapshot.

    Attributes:
        ids: the whole prompt, begun as the model's texts are.
        params: sampling, length, stop strings, seed.
        logprobs: reports each drawn token with its log-probability and so many alternatives, the likeliest first, the
            drawn one among them where it is one of them; None reports no numbers. They are those of the model: of the
            logits as they are, before bias, penalties, temperature, cuts and grammar, as vLLM and llama.cpp report them
            by default.
        prompt_logprobs: the same for each token of the prompt, given those before it; the whole prompt is then read.
        marks: numbers of leading ids behind which a snapshot is worth keeping, such as the ends of messages.
        grammar: the answer is held to it; None to nothing.
        keep: leaves snapshots for requests that begin alike.
    """

    ids: tuple[int, ...]
    params: SamplingParams = SamplingParams()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    marks: tuple[int, ...] = ()
    grammar: Grammar | None = None
    keep: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token with its log-probability; NaN where none was asked for."""

    id: int
    logprob: float = float("nan")
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a request has cost.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: how many of them were not read, because a snapshot had them.
        completion_tokens: drawn, with the end-of-text token where one ended the answer.
        queue_seconds: from `submit` until its prompt began to be read.
        prefill_seconds: from then until its first token was drawn.
        decode_seconds: from then until its end.
        error: what went wrong, where `finish_reason` is "error".
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What has come of a request since its last event.

    Attributes:
        text: what may be shown now: whole characters, nothing of a stop string, no special token.
        tokens: drawn since the last event, those of no text and the end-of-text token included. Text that may begin a
            stop string is withheld, but not its tokens: add up the texts of the tokens to align both.
        prompt: once, with `prompt_logprobs`: of each token of the prompt, None for the first.
        finish_reason: in the last event: "stop" (see `ended_by`), "length" (max_tokens, or the context is full),
            "cancelled", "error" (see `Usage.error`).
        ended_by: with "stop": an end-of-text token, a stop string, or a grammar that is complete.
        usage: in the last event.
    """

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    prompt: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    ended_by: EndedBy | None = None
    usage: Usage | None = None


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Where an engine stands, for `/metrics` and `/health`.

    Attributes:
        waiting: requests that nothing was done for yet.
        reading: whose prompts are being read.
        decoding: that a token is drawn for at every step.
        max_rows, max_waiting: of the engine.
        cache_bytes: of what requests in flight remember.
        snapshots, snapshot_bytes: kept for later requests.
        prompt_tokens: read since the engine was made, without those that a snapshot had.
        cached_tokens: that a snapshot had.
        completion_tokens: drawn.
        requests: that were submitted and not refused.
        finished: by `finish_reason`.
        hits: requests that began from a snapshot.
        steps: decode steps.
        native: whether decode steps go through the native library.
    """

    waiting: int
    reading: int
    decoding: int
    max_rows: int
    max_waiting: int
    cache_bytes: int
    snapshots: int
    snapshot_bytes: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    requests: int
    finished: dict[str, int]
    hits: int
    steps: int
    native: bool


class Ticket(Protocol):
    """A request that was taken."""

    def cancel(self) -> None:
        """Ends it at the next step; nothing where it has ended. Its last event says "cancelled"."""
        ...


def allowed_ids(mask: Any, size: int) -> Any:
    """A `Matcher.mask` as (size,) bool."""
    import numpy as np

    given = np.asarray(mask)
    if given.dtype != np.bool_:
        given = np.unpackbits(np.ascontiguousarray(given).view(np.uint8), bitorder="little").astype(np.bool_)
    if len(given) >= size:
        return given[:size]
    return np.concatenate((given, np.zeros(size - len(given), dtype=np.bool_)))


def check_request(request: Request, vocab_size: int) -> None:
    """Raises ValueError where a request's own numbers cannot be meant; ids are the engine's to check."""
    for name, value in (("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if value is not None and not 0 <= value <= vocab_size:
            raise ValueError(f"{name} is {value}, but must be between 0 and {vocab_size}")
    _increasing(request.marks, len(request.ids))


def _increasing(marks: Sequence[int], end: int) -> None:
    if any(not 0 < mark <= end for mark in marks):
        raise ValueError(f"marks must be between 1 and {end}, the number of ids")
