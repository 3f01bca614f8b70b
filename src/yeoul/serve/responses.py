"""`POST /v1/responses`: OpenAI's newer form of a chat, without anything that a server would have to store."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field, StrictBool, StrictStr

from yeoul.serve.answers import merged, stops_when_left, unless_gone, usage_of
from yeoul.serve.chat import (
    EVENT_STREAM,
    PING_LINE,
    UNBUFFERED,
    Plan,
    Screened,
    Writer,
    plan_chat,
    sse,
    whole_choices,
)
from yeoul.serve.errors import ApiError
from yeoul.serve.schema import Body, ChatRequest, Count, Function, JsonSchema, Message, Number, Part
from yeoul.serve.served import Models


class Item(Body):
    """Something in the input: a message, a call of a tool, or what it gave."""

    type: StrictStr | None = None
    role: StrictStr | None = None
    content: StrictStr | list[Part] | None = None
    call_id: StrictStr | None = None
    name: StrictStr | None = None
    arguments: StrictStr | None = None
    output: StrictStr | None = None


class FlatTool(Function):
    """A tool, in the form of this endpoint."""

    type: Literal["function"]


class TextForm(JsonSchema):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class Text(Body):
    """What is asked of the text."""

    format: TextForm | None = None


class ResponseRequest(Body):
    """`POST /v1/responses`."""

    model: StrictStr | None = None
    input: StrictStr | list[Item]
    instructions: StrictStr | None = None
    max_output_tokens: Count | None = None
    temperature: Number | None = Field(None, ge=0, le=100)
    top_p: Number | None = Field(None, gt=0, le=1)
    stream: StrictBool | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | None = None
    text: Text | None = None
    previous_response_id: StrictStr | None = None

    def as_chat(self) -> ChatRequest:
        """The same as a chat.

        Raises:
            ApiError: something that only a server that stores answers could do, or an item that is not known.
        """
        if self.previous_response_id is not None:
            what = "answers are not stored here; send the whole conversation as input (known parts are not read again)"
            raise ApiError(400, what, param="previous_response_id")
        messages = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages += [_message(item, number) for number, item in enumerate(items)]
        if not messages:
            raise ApiError(400, "the input is empty", param="input")
        form = self.text.format if self.text is not None else None
        values: dict[str, Any] = {
            "model": self.model, "messages": [message.model_dump(exclude_none=True) for message in messages],
            "max_tokens": self.max_output_tokens, "temperature": self.temperature, "top_p": self.top_p,
            "tool_choice": self.tool_choice if self.tools else None,
            "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
                      for tool in self.tools or []] or None,
            "response_format": form and {"type": form.type, "json_schema": form.model_dump(by_alias=True)},
        }  # fmt: skip
        return ChatRequest.model_validate(values)


def _message(item: Item, number: int) -> Message:
    if item.type == "function_call" and item.name is not None:
        call = {
            "id": item.call_id,
            "type": "function",
            "function": {"name": item.name, "arguments": item.arguments or "{}"},
        }
        return Message.model_validate({"role": "assistant", "content": None, "tool_calls": [call]})
    if item.type == "function_call_output":
        return Message(role="tool", content=item.output or "", tool_call_id=item.call_id)
    if item.type in (None, "message") and item.role is not None and item.content is not None:
        return Message(role=item.role, content=item.content)
    raise ApiError(400, f"input.{number}: this kind of item is not known here", param="input")


def _parts(writer: Writer, refusal: str | None, ids: dict[str, str]) -> list[dict[str, Any]]:
    """What a finished answer consists of."""
    output: list[dict[str, Any]] = []
    if refusal is not None or writer.text or not writer.calls:
        content = {"type": "output_text", "text": writer.text, "annotations": [], "logprobs": []}
        if refusal is not None:
            content = {"type": "refusal", "refusal": f"Not shown: {refusal}."}
        output.append({
            "type": "message", "id": ids["message"], "role": "assistant", "status": "completed", "content": [content],
        })  # fmt: skip
    for call in writer.calls if refusal is None else ():
        made = call.as_dict()
        output.append({
            "type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": made["id"], "name": call.name,
            "arguments": call.arguments, "status": "completed",
        })  # fmt: skip
    return output


def _envelope(body: ResponseRequest, plan: Plan, ids: dict[str, str], created: int) -> dict[str, Any]:
    params = plan.params[0]
    return {
        "id": ids["response"], "object": "response", "created_at": created, "model": plan.served.name,
        "status": "in_progress", "error": None, "incomplete_details": None, "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens, "output": [], "parallel_tool_calls": True,
        "previous_response_id": None, "store": False, "temperature": params.temperature, "top_p": params.top_p,
        "tool_choice": body.tool_choice or "auto", "metadata": {}, "truncation": "disabled", "usage": None,
        "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or []],
        "text": {"format": {"type": "text"}},
    }  # fmt: skip


def _finished(envelope: dict[str, Any], writer: Writer, output: list[dict[str, Any]]) -> dict[str, Any]:
    usage: dict[str, Any] = usage_of([writer.answer])
    cut = writer.finish_reason == "length"
    return {
        **envelope, "output": output, "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "usage": {
            "input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"], "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }  # fmt: skip


def install(app: FastAPI, models: Models) -> None:
    """The route."""

    @app.post("/v1/responses", tags=["openai"])
    async def create_response(body: ResponseRequest, http: HttpRequest) -> Response:
        """The answer to a conversation, as a list of items."""
        chat = body.as_chat()
        served = models.named(body.model)
        plan = await run_in_threadpool(plan_chat, chat, served)
        screened = Screened(chat, served)
        ids = {"response": f"resp_{uuid.uuid4().hex}", "message": f"msg_{uuid.uuid4().hex}"}
        envelope = _envelope(body, plan, ids, int(time.time()))
        if (reason := await screened.reason(None)) is not None:
            raise ApiError(400, f"Not answered: {reason}.", code="content_filter")
        running = plan.start()
        if not body.stream:
            (writer,) = await unless_gone(http, running, whole_choices(plan, running))
            output = _parts(writer, await screened.reason(writer.text), ids)
            return JSONResponse(_finished(envelope, writer, output))

        async def pieces() -> AsyncIterator[str]:
            number, (writer,) = 0, plan.writers()

            def told(kind: str, **values: Any) -> str:
                nonlocal number
                number += 1
                return f"event: {kind}\n" + sse({"type": kind, "sequence_number": number - 1, **values})

            place = {"item_id": ids["message"], "output_index": 0, "content_index": 0}
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {
                "type": "message",
                "id": ids["message"],
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
            yield told("response.created", response=envelope)
            yield told("response.in_progress", response=envelope)
            begun = False

            def begin() -> list[str]:
                return [
                    told("response.output_item.added", output_index=0, item=item),
                    told("response.content_part.added", **place, part=empty),
                ]

            try:
                async for found in merged(running):
                    if found is None:
                        yield PING_LINE
                        continue
                    text = writer.take(found[1])
                    if text and screened.screen is None:
                        for piece in [] if begun else begin():
                            yield piece
                        begun = True
                        yield told("response.output_text.delta", **place, delta=text, logprobs=[])
            except ApiError as error:
                yield told("error", **error.body()["error"])
                return
            refused = await screened.reason(writer.text)
            output = _parts(writer, refused, ids)
            for index, made in enumerate(output):
                if made["type"] == "message":
                    for piece in [] if begun else begin():
                        yield piece
                    if refused is None:
                        if screened.screen is not None and writer.text:
                            yield told("response.output_text.delta", **place, delta=writer.text, logprobs=[])
                        yield told("response.output_text.done", **place, text=writer.text, logprobs=[])
                    yield told("response.content_part.done", **place, part=made["content"][0])
                else:
                    yield told("response.output_item.added", output_index=index, item={**made, "arguments": ""})
                    where = {"item_id": made["id"], "output_index": index}
                    yield told("response.function_call_arguments.delta", **where, delta=made["arguments"])
                    yield told(
                        "response.function_call_arguments.done", **where, name=made["name"], arguments=made["arguments"]
                    )
                yield told("response.output_item.done", output_index=index, item=made)
            last = _finished(envelope, writer, output)
            yield told(f"response.{last['status']}", response=last)

        left = stops_when_left(pieces(), running)
        return StreamingResponse(left(), media_type=EVENT_STREAM, headers=UNBUFFERED)
