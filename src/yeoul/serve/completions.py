"""`POST /v1/completions`: of texts or ids, with `echo` and log-probabilities of the prompt."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from yeoul.infer.engine import prompt_ids
from yeoul.infer.params import SamplingParams
from yeoul.infer.requests import TokenLogprob
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
    whole,
)
from yeoul.serve.chat import DONE, EVENT_STREAM, PING_LINE, UNBUFFERED, spread, sse
from yeoul.serve.errors import ApiError
from yeoul.serve.grammar import grammar_of
from yeoul.serve.logprobs import completion_logprobs
from yeoul.serve.prompts import Prompt
from yeoul.serve.schema import CompletionRequest
from yeoul.serve.served import ServedModel

USUAL_TOKENS = 16
"""OpenAI's, where a request does not say how many."""
MOST_PROMPTS = 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, understood: its prompts, and the settings of each prompt's choices."""

    served: ServedModel
    prompts: tuple[Prompt, ...]
    params: tuple[tuple[SamplingParams, ...], ...]


def prompts_of(body: CompletionRequest, served: ServedModel, before: Sequence[int] = ()) -> list[Prompt]:
    """The prompts as ids, behind those of a state; without one, texts are begun as the model's are."""
    given: Any = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise ApiError(400, "there is no prompt", param="prompt")
    if len(given) > MOST_PROMPTS:
        raise ApiError(400, f"there are more than {MOST_PROMPTS:,} prompts", param="prompt")
    begun = (lambda text: prompt_ids(served.tokenizer, text)) if not before else served.tokenizer.encode
    found = [begun(item) if isinstance(item, str) else list(item) for item in given]
    size = served.model.config.vocab_size
    for ids in found:
        if not ids:
            raise ApiError(400, "a prompt is empty", param="prompt")
        if max(ids) >= size:
            raise ApiError(400, f"a prompt has an id beyond the vocabulary of {size:,}", param="prompt")
    return [Prompt(ids=(*before, *ids)) for ids in found]


def plan_completion(body: CompletionRequest, served: ServedModel, before: Sequence[int] = ()) -> Plan:
    """What a request asks for, behind the ids of a state.

    Raises:
        ApiError, UserError: it cannot be done.
    """
    if served.screen is not None:  # it judges questions and answers, not a text and what follows
        what = "this model is behind a screen, which judges conversations; use /v1/chat/completions"
        raise ApiError(403, what, code="screened")
    if body.suffix:
        raise ApiError(400, "a suffix is not supported", param="suffix")
    if body.best_of not in (None, 1, body.n or 1):
        raise ApiError(400, "best_of is not supported beyond n", param="best_of")
    if body.echo and body.stream:
        raise ApiError(400, "echo cannot be streamed", param="echo")
    if before and body.echo:
        raise ApiError(400, "echo of what stands behind a state is not supported", param="echo")
    prompts = prompts_of(body, served, before)
    params = tuple(
        spread(sampling_params(body, served, len(prompt.ids), most=body.max_tokens, default=USUAL_TOKENS), body.n or 1)
        for prompt in prompts
    )
    return Plan(served=served, prompts=tuple(prompts), params=params)


def start_all(body: CompletionRequest, plan: Plan) -> list[Running]:
    """All choices of all prompts, prompt by prompt."""
    grammar = grammar_of(body.response_format, plan.served.tokenizer, plan.served.ends)
    told = body.logprobs if body.echo else None
    running: list[Running] = []
    try:
        for prompt, params in zip(plan.prompts, plan.params, strict=True):
            running += start(plan.served, prompt, params, logprobs=body.logprobs, prompt_logprobs=told, grammar=grammar)
    except BaseException:
        for single in running:
            single.cancel()
        raise
    return running


async def complete(
    body: CompletionRequest, served: ServedModel, http: HttpRequest, before: Sequence[int] = ()
) -> Response:
    """The answer to a request, whole or as a stream; behind the ids of a state, if there are any."""
    plan = await run_in_threadpool(plan_completion, body, served, before)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
        "model": served.name,
    }  # fmt: skip
    running = start_all(body, plan)
    if body.stream:
        pieces = _stream(body, plan, head, running)
        return StreamingResponse(stops_when_left(pieces, running)(), media_type=EVENT_STREAM, headers=UNBUFFERED)
    answers = await unless_gone(http, running, whole(running))
    each = body.n or 1
    choices = [_choice(body, plan, number, answer) for number, answer in enumerate(answers)]
    usage = [usage_of(answers[start : start + each]) for start in range(0, len(answers), each)]
    return JSONResponse({
        **head, "choices": choices, "usage": _summed(usage), "timings": timings(plan.served, answers[0].usage),
    })  # fmt: skip


def _summed(usages: list[dict[str, Any]]) -> dict[str, Any]:
    """The usage of several prompts together."""
    total = {key: sum(usage[key] for usage in usages) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}


def _choice(body: CompletionRequest, plan: Plan, number: int, answer: Answer) -> dict[str, Any]:
    tokenizer, prompt = plan.served.tokenizer, plan.prompts[number // (body.n or 1)].ids
    nothing_new = body.max_tokens == 0  # the engine draws one token all the same
    text, new = ("", []) if nothing_new else (answer.text, answer.tokens)
    told = None
    before = tokenizer.decode(prompt) if body.echo else ""
    if body.logprobs is not None:
        tokens: list[TokenLogprob | None] = [*(answer.prompt or ()), *new]
        ids = [*(prompt if body.echo else ()), *(token.id for token in new)]
        told = completion_logprobs(tokenizer, tokens, ids, body.logprobs)
    reason = "length" if nothing_new else answer.finish_reason
    return {"index": number, "text": before + text, "logprobs": told, "finish_reason": reason}


async def _stream(
    body: CompletionRequest, plan: Plan, head: dict[str, Any], running: list[Running]
) -> AsyncIterator[str]:
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    more: dict[str, Any] = {"usage": None} if usage else {}
    answers = [Answer() for _ in running]
    offsets = [0] * len(running)
    try:
        async for found in merged(running):
            if found is None:
                yield PING_LINE
                continue
            number, event = found
            answers[number].take(event)
            told = None
            if body.logprobs is not None and event.tokens:
                ids = [token.id for token in event.tokens]
                told = completion_logprobs(plan.served.tokenizer, event.tokens, ids, body.logprobs, offsets[number])
                offsets[number] += sum(map(len, told["tokens"]))
            if event.text or told or event.finish_reason:
                choice = {
                    "index": number, "text": event.text, "logprobs": told, "finish_reason": event.finish_reason,
                }  # fmt: skip
                yield sse({**head, "choices": [choice], **more})
    except ApiError as error:
        yield sse(error.body())
        yield DONE
        return
    if usage:
        each = body.n or 1
        parts = [usage_of(answers[start : start + each]) for start in range(0, len(answers), each)]
        yield sse({**head, "choices": [], "usage": _summed(parts), "timings": timings(plan.served, answers[0].usage)})
    yield DONE
