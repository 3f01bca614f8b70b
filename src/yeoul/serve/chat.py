"""`POST /v1/chat/completions`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from yeoul.infer.params import SamplingParams
from yeoul.infer.requests import Event, Grammar, Usage
from yeoul.serve.answers import (
    Answer,
    Running,
    merged,
    sampling_params,
    start,
    stops_when_left,
    timings,
    unless_gone,
    usage_of,
)
from yeoul.serve.errors import ApiError
from yeoul.serve.grammar import grammar_of, schema_grammar
from yeoul.serve.logprobs import chat_logprobs
from yeoul.serve.prompts import Prompt, chat_prompt, offered_tools, plain_message
from yeoul.serve.schema import ChatRequest
from yeoul.serve.served import ServedModel
from yeoul.serve.tools import Call, Style, ToolReader, forced_schema, style_of

EVENT_STREAM = "text/event-stream; charset=utf-8"
PING_LINE = ": ping\n\n"
DONE = "data: [DONE]\n\n"
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A chat request, understood.

    Attributes:
        params: of each choice.
        logprobs: alternatives of each token; None does not tell them.
        style: how the model writes calls of tools; None where it was offered none.
        forced: the answer has to be such a call.
    """

    served: ServedModel
    prompt: Prompt
    params: tuple[SamplingParams, ...]
    grammar: Grammar | None = None
    logprobs: int | None = None
    style: Style | None = None
    forced: bool = False

    def start(self) -> list[Running]:
        """Sets the engine to it."""
        return start(self.served, self.prompt, self.params, logprobs=self.logprobs, grammar=self.grammar)

    def writers(self) -> list[Writer]:
        """One for each choice."""
        return [Writer(self) for _ in self.params]


class Writer:
    """One choice while it is written: pieces of text, and at the end the calls."""

    def __init__(self, plan: Plan) -> None:
        tokenizer = plan.served.tokenizer
        self._reader = None if plan.style is None else ToolReader(plan.style, forced=plan.forced)
        special = plan.style is not None and plan.style.begin in tokenizer.special_tokens
        self._decoder = tokenizer.stream(skip_special=False) if special else None
        self.answer, self.text, self.calls = Answer(), "", list[Call]()

    def take(self, event: Event) -> str:
        """What may be shown of an event."""
        self.answer.take(event)
        piece = event.text
        if self._decoder is not None:  # the mark of a call is no text for the engine
            piece = "".join(self._decoder.push(token.id) for token in event.tokens)
            piece += self._decoder.flush() if event.finish_reason else ""
        if self._reader is not None:
            piece = self._reader.push(piece)
            if event.finish_reason is not None:
                rest, self.calls = self._reader.finish()
                piece += rest
        self.text += piece
        return piece

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None before its end."""
        if self.answer.usage is None:
            return None
        return "tool_calls" if self.calls else self.answer.finish_reason


def plan_chat(body: ChatRequest, served: ServedModel) -> Plan:
    """What a request asks for; renders and cuts its messages into tokens, which may take a while.

    Raises:
        ApiError, UserError: it cannot be done.
    """
    tools, forced = offered_tools(body)
    prompt = chat_prompt(served.tokenizer, body.messages, tools)
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    params = sampling_params(body, served, len(prompt.ids), most=most, default=served.defaults.max_tokens)
    style = style_of(served.tokenizer.chat_template or "") if tools else None
    if forced and style is not None:
        grammar: Grammar | None = schema_grammar(forced_schema(tools, style), served.tokenizer, served.ends)
    else:
        grammar = grammar_of(body.response_format, served.tokenizer, served.ends)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
    return Plan(
        served=served, prompt=prompt, params=spread(params, body.n or 1), grammar=grammar,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None, style=style, forced=forced,
    )  # fmt: skip


def spread(params: SamplingParams, choices: int) -> tuple[SamplingParams, ...]:
    """The settings of each of several choices: choice i draws with seed + i."""
    if params.seed is None:
        return (params,) * choices
    return tuple(replace(params, seed=(params.seed + number) % 2**62) for number in range(choices))


class Screened:
    """What a screen says of a conversation; without one, nothing is refused."""

    def __init__(self, body: ChatRequest, served: ServedModel) -> None:
        self.screen = served.screen
        plain = [] if self.screen is None else [plain_message(m, number) for number, m in enumerate(body.messages)]
        self._messages = [{"role": message["role"], "content": message["content"]} for message in plain]

    async def reason(self, answer: str | None) -> str | None:
        """Why the question (None) or an answer is refused; None where it is not."""
        if self.screen is None:
            return None
        return await run_in_threadpool(self.screen, self._messages, answer)


async def complete_chat(body: ChatRequest, served: ServedModel, http: HttpRequest) -> Response:
    """The answer to a request, whole or as a stream."""
    plan = await run_in_threadpool(plan_chat, body, served)
    screened = Screened(body, served)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    if (reason := await screened.reason(None)) is not None:
        return _refusal(body, head, reason)
    running = plan.start()
    if body.stream:
        pieces = _stream(body, plan, head, running, screened)
        return StreamingResponse(stops_when_left(pieces, running)(), media_type=EVENT_STREAM, headers=UNBUFFERED)
    answers = await unless_gone(http, running, whole_choices(plan, running))
    choices = []
    for number, writer in enumerate(answers):
        reason = await screened.reason(writer.text)
        choices.append(_choice(plan, number, writer) if reason is None else _refused_choice(number, reason))
    taken = [writer.answer for writer in answers]
    return JSONResponse({
        **head, "object": "chat.completion", "choices": choices, "usage": usage_of(taken),
        "timings": timings(served, taken[0].usage),
    })  # fmt: skip


async def whole_choices(plan: Plan, running: list[Running]) -> list[Writer]:
    """All choices at their ends."""
    writers = plan.writers()
    async for found in merged(running):
        if found is not None:
            writers[found[0]].take(found[1])
    return writers


def _choice(plan: Plan, number: int, writer: Writer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": writer.text, "refusal": None}
    if writer.calls:
        message |= {"content": writer.text or None, "tool_calls": [call.as_dict() for call in writer.calls]}
    told = chat_logprobs(plan.served.tokenizer, writer.answer.tokens) if plan.logprobs is not None else None
    return {"index": number, "message": message, "logprobs": told, "finish_reason": writer.finish_reason}


def _refused_choice(number: int, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": f"Not shown: {reason}."}
    return {"index": number, "message": message, "logprobs": None, "finish_reason": "content_filter"}


def _refusal(body: ChatRequest, head: dict[str, Any], reason: str) -> Response:
    """The question itself is refused."""
    if not body.stream:
        choices = [_refused_choice(0, reason)]
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage_of([])})

    async def pieces() -> AsyncIterator[str]:
        delta = {"role": "assistant", "content": None, "refusal": f"Not answered: {reason}."}
        yield _event(head, [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])
        yield _event(head, [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "content_filter"}])
        yield DONE

    return StreamingResponse(pieces(), media_type=EVENT_STREAM, headers=UNBUFFERED)


def sse(value: Any) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _event(head: dict[str, Any], choices: list[dict[str, Any]], **more: Any) -> str:
    return sse({**head, "object": "chat.completion.chunk", "choices": choices, **more})


async def _stream(
    body: ChatRequest, plan: Plan, head: dict[str, Any], running: list[Running], screened: Screened
) -> AsyncIterator[str]:
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    more: dict[str, Any] = {"usage": None} if usage else {}
    writers = plan.writers()

    def piece(number: int, delta: dict[str, Any], told: Any = None, reason: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": told, "finish_reason": reason}
        return _event(head, [choice], **more)

    for number in range(len(running)):
        yield piece(number, {"role": "assistant", "content": ""})
    try:
        async for found in merged(running):
            if found is None:
                yield PING_LINE
                continue
            number, event = found
            writer = writers[number]
            text = writer.take(event)
            told = None
            if plan.logprobs is not None and event.tokens:
                told = chat_logprobs(plan.served.tokenizer, event.tokens)
            if (text or told) and screened.screen is None:
                yield piece(number, {"content": text}, told)
            if writer.finish_reason is None:
                continue
            refused = await screened.reason(writer.text)
            if refused is not None:
                yield piece(number, {"refusal": f"Not shown: {refused}."})
                yield piece(number, {}, reason="content_filter")
                continue
            if screened.screen is not None and writer.text:
                yield piece(number, {"content": writer.text})
            if writer.calls:
                yield piece(number, {"tool_calls": [call.as_dict(i) for i, call in enumerate(writer.calls)]})
            yield piece(number, {}, reason=writer.finish_reason)
    except ApiError as error:
        yield sse(error.body())
        yield DONE
        return
    if usage:
        last: Usage | None = writers[0].answer.usage
        yield _event(
            head, [], usage=usage_of([writer.answer for writer in writers]), timings=timings(plan.served, last)
        )
    yield DONE
