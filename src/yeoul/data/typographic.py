"""JSON as it is printed in courses and written by word processors, whose quotation marks are typographic."""

from __future__ import annotations

import re
from typing import Any

from yeoul.safe_json import JSONError, parse

MARKS = "“”„‟＂"
"""What stands where a straight mark belongs."""
_ANY = MARKS + '"'
_PLAIN = re.compile(rf"[^{_ANY}\\{{}}\[\]:,]+|.", re.DOTALL)
_ENDS = {
    "key": re.compile(r"\s{0,99}:"),
    # A comma is the text's own unless another value follows; in an object, a key with its colon.
    "{": re.compile(rf"\s{{0,99}}(?:[}}\]]|\Z|,\s{{0,99}}[{_ANY}][^{_ANY}]{{0,99}}[{_ANY}]\s{{0,99}}:)"),
    "[": re.compile(rf"\s{{0,99}}(?:[}}\]]|\Z|,\s{{0,99}}(?:[{_ANY}{{\[\d-]|true|false|null))"),
}
"""What stands behind the mark that ends a text."""


def parse_any_marks(text: str, **options: Any) -> Any:
    """`parse`; a text that is not JSON only because of its typographic marks is read as if these were straight.

    Raises:
        JSONError: it is none even so.
    """
    try:
        return parse(text, **options)
    except JSONError as error:
        if not re.search(rf"[{{\[,:]\s{{0,99}}[{MARKS}]", text):
            raise
        try:
            return parse(straightened(text), **options)
        except JSONError:
            reason = f"{error.reason}; some of its quotation marks are typographic (“ ”), and JSON has straight ones"
            raise JSONError(reason, error.line, error.column) from None


def straightened(text: str) -> str:
    """The same text with straight marks around keys and values; marks inside them stay as they are."""
    made, at, inside, key = list[str](), 0, list[str](), False
    while at < len(text):
        found = _PLAIN.match(text, at)
        assert found is not None
        part, at = found[0], found.end()
        if part in MARKS or part == '"':
            ending = _ENDS["key" if key else inside[-1] if inside else "["]
            content, at = _content(text, at, straight=part == '"', ending=ending)
            made.append(f'"{content}"')
            continue
        if part in ("{", "["):
            inside.append(part)
        elif part in ("}", "]") and inside:
            inside.pop()
        if part in ("{", "[", "}", "]", ",", ":"):
            key = part in ("{", ",") and bool(inside) and inside[-1] == "{"
        made.append(part.replace("\u00a0", " "))
    return "".join(made)


def _content(text: str, start: int, *, straight: bool, ending: re.Pattern[str]) -> tuple[str, int]:
    """What stands between a mark and the one that ends it, as JSON writes it, and the place behind."""
    parts, at = list[str](), start
    for mark in re.compile(rf"\\.|[{_ANY}]", re.DOTALL).finditer(text, start):
        if mark[0][0] == "\\":
            continue
        if mark[0] == '"' if straight else ending.match(text, mark.end()):
            return "".join(parts) + text[at : mark.start()], mark.end()
        if mark[0] == '"':
            parts.append(text[at : mark.start()] + '\\"')
            at = mark.end()
    return "".join(parts) + text[at:], len(text)
