"""What clients send as what models read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yeoul.serve.errors import ApiError
from yeoul.serve.schema import ChatRequest, Message, NamedTool, Tool
from yeoul.text.chat import render_prompt, takes_tools
from yeoul.text.tokenizer import Tokenizer

TEXTS = ("text", "input_text", "output_text")
"""Types of a message's parts that are read."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is read before an answer.

    Attributes:
        ids: of all of it.
        marks: numbers of leading ids behind which other conversations may go on.
    """

    ids: tuple[int, ...]
    marks: tuple[int, ...] = ()


def plain_message(message: Message, number: int) -> dict[str, Any]:
    """A message as chat templates know it.

    Raises:
        ApiError: a part that is no text, or arguments that are no JSON.
    """
    where = f"messages.{number}"
    given = message.model_dump(exclude_none=True, exclude={"content", "tool_calls"})
    role = "system" if message.role == "developer" else message.role
    made = {**given, "role": role, "content": _text(message, where)}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                **call.model_dump(exclude_none=True),
                "function": _called(call.function.name, call.function.arguments, where),
            }
            for call in message.tool_calls
        ]
    elif message.content is None:
        raise ApiError(400, f"{where}: a message needs content", param=f"{where}.content")
    return made


def _text(message: Message, where: str) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for part in message.content:
        if part.type not in TEXTS or part.text is None:
            what = f'{where}: parts of a message must be texts; this one is "{part.type[:40]}"'
            raise ApiError(400, what, param=f"{where}.content")
    return "".join(part.text or "" for part in message.content)


def _called(name: str, arguments: str, where: str) -> dict[str, Any]:
    """Templates write the arguments themselves, so they get values instead of a text."""
    try:
        values = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ApiError(400, f"{where}: the arguments of a tool call must be a JSON object", param=f"{where}.tool_calls")
    return {"name": name, "arguments": values}


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> Prompt:
    """Ids of a conversation that ends where the answer begins.

    Raises:
        ApiError, UserError: messages that the template refuses, or tools that it does not take.
    """
    if tools and not takes_tools(tokenizer):
        raise ApiError(400, "the chat template of this model takes no tools", param="tools")
    plain = [plain_message(message, number) for number, message in enumerate(messages)]
    ids, marks = render_prompt(tokenizer, plain, tools or None)
    if not ids:
        raise ApiError(400, "the chat template made nothing of these messages", param="messages")
    return Prompt(ids=tuple(ids), marks=tuple(marks))


def offered_tools(body: ChatRequest) -> tuple[list[dict[str, Any]], bool]:
    """The tools that the model is told of, and whether it has to call one of them.

    Raises:
        ApiError: one has to be called that is not there.
    """
    tools = [_plain_tool(tool) for tool in body.tools or []]
    choice = body.tool_choice
    if choice == "none" or not tools:
        if choice == "required" or isinstance(choice, NamedTool):
            raise ApiError(400, "tool_choice asks for a tool, but there are no tools", param="tool_choice")
        return [], False
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not tools:
            raise ApiError(400, "tool_choice names a tool that is not there", param="tool_choice")
    return tools, choice == "required" or isinstance(choice, NamedTool)


def _plain_tool(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(exclude_none=True)
