"""Calls of tools in what a model writes, in the ways in which families of models write them.

Which way it is stands in the chat template: a template that writes `<tool_call>` of earlier calls taught the model to.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yeoul.infer.stopping import StopMatcher


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call.

    Attributes:
        name: of the function.
        arguments: JSON, as a text.
    """

    name: str
    arguments: str

    def as_dict(self, index: int | None = None) -> dict[str, Any]:
        """As OpenAI gives it; with a number in the pieces of a stream."""
        function = {"name": self.name, "arguments": self.arguments}
        made = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        return made if index is None else {"index": index, **made}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a family writes calls.

    Attributes:
        begin: what stands before the first call; "" where a call is the whole answer, from its first brace.
        before, after: what stands before and behind the JSON of each call.
        parameters: the name of the arguments in it.
    """

    begin: str
    before: str
    after: str
    parameters: str = "arguments"


HERMES = Style(begin="<tool_call>", before="<tool_call>\n", after="\n</tool_call>")
"""Qwen, Hermes, and what was made like them."""
MISTRAL = Style(begin="[TOOL_CALLS]", before="[TOOL_CALLS][", after="]")
LLAMA = Style(begin="", before="", after="", parameters="parameters")
"""Llama 3, and templates that do not say."""


def style_of(template: str) -> Style:
    """The way in which models with a chat template write calls."""
    for style in (HERMES, MISTRAL):
        if style.begin in template:
            return style
    return LLAMA


def calls_in(text: str, style: Style) -> list[Call]:
    """The calls in what stands from `Style.begin` on; none where it is not one call after another."""
    found, rest = list[Call](), text.strip()
    while rest:
        rest = re.sub(r"^(?:<tool_call>|</tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|[\s,;])*", "", rest)
        if not rest:
            break
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        for item in value if isinstance(value, list) else [value]:
            call = _call(item, style)
            if call is None:
                return []
            found.append(call)
        rest = rest[end:]
    return found


def _call(value: Any, style: Style) -> Call | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments: Any = next((value[key] for key in (style.parameters, "arguments", "parameters") if key in value), {})
    if isinstance(arguments, str):
        return Call(name=value["name"], arguments=arguments)
    return Call(name=value["name"], arguments=json.dumps(arguments, ensure_ascii=False))


def forced_schema(tools: Sequence[dict[str, Any]], style: Style) -> dict[str, Any]:
    """A JSON schema that a call of one of the tools fits, and nothing else."""
    choices = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                style.parameters: tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", style.parameters],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


class ToolReader:
    """Tells the text of an answer from the calls in it, piece by piece.

    Args:
        style: of the model.
        forced: the answer is nothing but the JSON of one call.
    """

    def __init__(self, style: Style, *, forced: bool = False) -> None:
        self.style, self.forced = style, forced
        self._text, self._begin = "", StopMatcher([style.begin] if style.begin else [])
        self._whole = ""

    def push(self, piece: str) -> str:
        """Takes the next piece; returns the text that is certainly no part of a call."""
        self._whole += piece
        if self.forced:
            return ""
        if not self.style.begin:
            begins = self._whole.lstrip()
            if not begins or begins[0] in "{[<":  # may be a call: only the end will tell
                return ""
            shown, self._text = self._whole[len(self._text) :], self._whole
            return shown
        return self._begin.push(piece)

    def finish(self) -> tuple[str, list[Call]]:
        """At the end: the text that was held back and is none, and the calls."""
        shown = len(self._text) if not self.style.begin else len(self._begin.text)
        calls = calls_in(self._whole if self.forced else self._whole[shown:], self.style)
        if calls and (self.forced or self._begin.stopped or not self.style.begin):
            return "", calls
        return self._whole[shown:], []
