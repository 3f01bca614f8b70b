"""Calls of tools in what models write, however it is cut into pieces."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")

from yeoul.serve.tools import HERMES, LLAMA, MISTRAL, Style, ToolReader, calls_in, style_of  # noqa: E402

HERMES_TEXT = (
    '잠시만요.\n<tool_call>\n{"name": "날씨", "arguments": {"도시": "서울"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
)
MISTRAL_TEXT = '[TOOL_CALLS][{"name": "a", "arguments": {"x": [1, "]"]}}, {"name": "b", "arguments": {}}]'
LLAMA_TEXT = '{"name": "a", "parameters": {"x": "{"}}'


def read(text: str, style: Style, size: int, forced: bool = False) -> tuple[str, list[tuple[str, object]]]:
    reader = ToolReader(style, forced=forced)
    shown = "".join(reader.push(text[start : start + size]) for start in range(0, len(text), size))
    rest, calls = reader.finish()
    return shown + rest, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "text, style, said, calls",
    [
        (HERMES_TEXT, HERMES, "잠시만요.\n", [("날씨", {"도시": "서울"}), ("b", {})]),
        (MISTRAL_TEXT, MISTRAL, "", [("a", {"x": [1, "]"]}), ("b", {})]),
        (LLAMA_TEXT, LLAMA, "", [("a", {"x": "{"})]),
        ("<|python_tag|>" + LLAMA_TEXT, LLAMA, "", [("a", {"x": "{"})]),
        ("그냥 말 {하나}", HERMES, "그냥 말 {하나}", []),
        ("그냥 말 {하나}", LLAMA, "그냥 말 {하나}", []),
        ("  앞에 빈칸", LLAMA, "  앞에 빈칸", []),
        ('{"not": "a call"}', LLAMA, '{"not": "a call"}', []),
        ("글 <tool_call>{broken", HERMES, "글 <tool_call>{broken", []),
        ("a < b <tool", HERMES, "a < b <tool", []),
        ("", HERMES, "", []),
    ],
)
def test_text_and_calls_are_told_apart(text, style, said, calls, size):
    assert read(text, style, size) == (said, calls)


def test_text_is_shown_at_once_where_no_call_can_begin():
    reader = ToolReader(HERMES)
    assert reader.push("안녕 ") == "안녕 "
    assert reader.push("<tool") == ""
    assert reader.push("s>") == "<tools>"


def test_a_forced_call_is_the_whole_answer():
    assert read('{"name": "a", "arguments": {"n": 1}}', HERMES, 3, forced=True) == ("", [("a", {"n": 1})])
    assert read('{"name": "a", "argu', HERMES, 3, forced=True)[1] == []


def test_arguments_that_are_a_text_stay_one():
    (call,) = calls_in('{"name": "a", "arguments": "{\\"x\\": 1}"}', HERMES)
    assert call.arguments == '{"x": 1}'


def test_nesting_beyond_reason_is_no_call():
    assert calls_in('{"name": "a", "arguments": ' + "[" * 100_000, HERMES) == []


def test_the_style_is_read_from_the_template():
    assert style_of("... <tool_call> ...") is HERMES
    assert style_of("[TOOL_CALLS]") is MISTRAL
    assert style_of("nothing of the kind") is LLAMA
