"""Text that a model or somebody else wrote, made harmless for where it is shown: a terminal, a spreadsheet."""

from __future__ import annotations

import re
import sys
from typing import TextIO

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What steers a terminal, or the direction of the text around it; not tab and line break."""
FORMULA = re.compile(r"(?![-+]?(?:\d[\d,.]*(?:[eE][-+]?\d+)?%?)?$)[=+\-@\t\r]")
"""How cells begin that a spreadsheet computes; numbers, and a sign alone, are none."""


def visible(text: str) -> str:
    """The text with its control characters written out, as \\x1b for the one that begins a terminal's commands."""
    return CONTROLS.sub(lambda match: _written(ord(match[0])), text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def for_stream(text: str, stream: TextIO) -> str:
    """`visible` where a person reads it in a terminal; a pipe or a file gets the text as it is, as from `ls`."""
    return visible(text) if stream.isatty() else text


def say(text: str, *, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """`print` of text that others wrote."""
    stream = sys.stdout if file is None else file
    print(for_stream(text, stream), end=end, file=stream, flush=flush)


def spreadsheet_cell(text: str) -> str:
    """A cell of a table that spreadsheets open: behind an apostrophe where they would compute it.

    As OWASP says under "CSV Injection".
    """
    return f"'{text}" if FORMULA.match(text) else text
