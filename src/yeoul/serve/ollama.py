"""Ollama's two routes that its clients need: `/api/chat` and `/api/tags`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field, StrictBool, StrictStr

from yeoul.serve.answers import merged, stops_when_left, unless_gone
from yeoul.serve.chat import UNBUFFERED, Plan, Screened, Writer, plan_chat, whole_choices
from yeoul.serve.errors import ApiError
from yeoul.serve.schema import Body, ChatRequest, Tool
from yeoul.serve.served import Models, ServedModel
from yeoul.version import VERSION

OPTIONS = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "seed": "seed", "stop": "stop",
    "repeat_penalty": "repetition_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}  # fmt: skip
"""Ollama's names of what OpenAI calls otherwise."""


class OllamaFunction(Body):
    """A function with its arguments as values."""

    name: StrictStr
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaCall(Body):
    """A call in an assistant's message."""

    function: OllamaFunction


class OllamaMessage(Body):
    """One message."""

    role: StrictStr
    content: StrictStr = ""
    tool_calls: list[OllamaCall] | None = None
    tool_name: StrictStr | None = None


class OllamaChat(Body):
    """`POST /api/chat`."""

    model: StrictStr
    messages: list[OllamaMessage] = Field(default_factory=list, max_length=10_000)
    stream: StrictBool = True
    format: Literal["json", ""] | dict[str, Any] | None = None
    tools: list[Tool] | None = None
    options: dict[str, Any] | None = None

    def as_chat(self, name: str) -> ChatRequest:
        """The same as OpenAI has it."""
        options = self.options or {}
        values: dict[str, Any] = {OPTIONS[key]: value for key, value in options.items() if key in OPTIONS}
        most = options.get("num_predict")
        if isinstance(most, int) and most > 0:
            values["max_tokens"] = most
        if self.format:
            schema = {"type": "object"} if self.format == "json" else self.format
            values["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        messages = [_message(message) for message in self.messages]
        tools = None if not self.tools else [tool.model_dump(exclude_none=True) for tool in self.tools]
        return ChatRequest.model_validate({**values, "model": name, "messages": messages, "tools": tools})


def _message(message: OllamaMessage) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [
            {"type": "function", "function": {
                "name": call.function.name, "arguments": json.dumps(call.function.arguments, ensure_ascii=False),
            }}
            for call in message.tool_calls
        ]  # fmt: skip
    return made | ({"name": message.tool_name} if message.tool_name else {})


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _named(models: Models, name: str) -> ServedModel:
    """Ollama's clients write `name:latest` for `name`."""
    names = {model.name for model in models}
    return models.named(name if name in names else name.removesuffix(":latest"))


def _end(writer: Writer, refused: str | None) -> dict[str, Any]:
    """What the last line tells."""
    usage = writer.answer.usage
    reason = "length" if writer.finish_reason == "length" else "stop"
    found: dict[str, Any] = {"done": True, "done_reason": reason if refused is None else "content_filter"}
    if usage is not None:
        nanoseconds = lambda seconds: round(1e9 * seconds)  # noqa: E731
        whole = usage.queue_seconds + usage.prefill_seconds + usage.decode_seconds
        found |= {
            "total_duration": nanoseconds(whole), "load_duration": nanoseconds(usage.queue_seconds),
            "prompt_eval_count": usage.prompt_tokens, "prompt_eval_duration": nanoseconds(usage.prefill_seconds),
            "eval_count": usage.completion_tokens, "eval_duration": nanoseconds(usage.decode_seconds),
        }  # fmt: skip
    return found


def _said(text: str, writer: Writer | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if writer is not None and writer.calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": _values(call.arguments)}} for call in writer.calls
        ]
    return message


def _values(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return {}


def install(app: FastAPI, models: Models) -> None:
    """The routes."""

    @app.get("/api/tags", tags=["ollama"])
    def tags() -> dict[str, Any]:
        """The models that are here."""
        return {"models": [_tag(model) for model in models]}

    @app.get("/api/version", tags=["ollama"])
    def version() -> dict[str, str]:
        """Of this server."""
        return {"version": VERSION}

    @app.post("/api/chat", tags=["ollama"])
    async def chat(body: OllamaChat, http: HttpRequest) -> Response:
        """The answer to a conversation: lines of JSON, or one object."""
        served = _named(models, body.model)
        if not body.messages:
            return JSONResponse({"model": body.model, "created_at": _now(), "message": _said(""), "done": True,
                                 "done_reason": "load"})  # fmt: skip
        request = body.as_chat(served.name)
        plan = await run_in_threadpool(plan_chat, request, served)
        screened = Screened(request, served)
        if (reason := await screened.reason(None)) is not None:
            raise ApiError(400, f"Not answered: {reason}.", code="content_filter")
        running = plan.start()
        if body.stream:
            pieces = _lines(body.model, plan, running, screened)
            left = stops_when_left(pieces, running)
            return StreamingResponse(left(), media_type="application/x-ndjson", headers=UNBUFFERED)
        (writer,) = await unless_gone(http, running, whole_choices(plan, running))
        refused = await screened.reason(writer.text)
        message = _said(writer.text, writer) if refused is None else _said(f"Not shown: {refused}.")
        return JSONResponse({"model": body.model, "created_at": _now(), "message": message, **_end(writer, refused)})


async def _lines(name: str, plan: Plan, running: list[Any], screened: Screened) -> AsyncIterator[str]:
    (writer,) = plan.writers()

    def line(message: dict[str, Any], **more: Any) -> str:
        made = {"model": name, "created_at": _now(), "message": message, "done": False, **more}
        return json.dumps(made, ensure_ascii=False) + "\n"

    try:
        async for found in merged(running):
            if found is None:  # lines of JSON have no comments
                continue
            text = writer.take(found[1])
            if text and screened.screen is None:
                yield line(_said(text))
    except ApiError as error:
        yield json.dumps({"error": error.message}) + "\n"
        return
    refused = await screened.reason(writer.text)
    if refused is not None:
        yield line(_said(f"Not shown: {refused}."))
    elif screened.screen is not None and writer.text:
        yield line(_said(writer.text))
    if writer.calls and refused is None:
        yield line(_said("", writer))
    yield line(_said(""), **_end(writer, refused))


def _tag(served: ServedModel) -> dict[str, Any]:
    config = served.model.config
    sizes = [(parameter.numel(), parameter.element_size()) for parameter in served.model.parameters()]
    return {
        "name": served.name, "model": served.name,
        "modified_at": datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z"),
        "size": sum(count * size for count, size in sizes), "digest": served.tokenizer.fingerprint,
        "details": {
            "format": "safetensors", "family": "yeoul", "families": ["yeoul"],
            "parameter_size": f"{served.model.num_parameters() / 1e6:.0f}M",
            "quantization_level": str(served.model.dtype).removeprefix("torch."), "parent_model": "",
            "context_length": config.max_position_embeddings,
        },
    }  # fmt: skip
