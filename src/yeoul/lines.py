"""Sentences on a terminal: cut between words where it ends, and left on one line where something else reads them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TextIO

from yeoul.foreign_text import for_stream


def folded(text: str, stream: TextIO | None = None, *, first: str = "", others: str = "") -> str:
    """Each line of `text` as lines that a terminal need not cut: as wide as it is, and at most 100 columns.

    Args:
        stream: where the text goes; one that is not a terminal gets it as it is. None folds it in any case.
        first, others: what stands before the first line, and before those that are cut off it.
    """
    if stream is not None and not stream.isatty():
        return first + text
    width = min(shutil.get_terminal_size().columns, 100)
    lines = [
        textwrap.wrap(
            line, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
        )
        for line in text.split("\n")
    ]
    return "\n".join("\n".join(parts) for parts in lines)


def fitting(parts: list[str], width: int, separator: str = " · ") -> str:
    """As many of `parts`, the most important first, as one line of `width` columns holds; at least the first."""
    line, *rest = parts
    for part in rest:
        if len(line) + len(separator) + len(part) > width:
            break
        line += separator + part
    return line[:width]


def tell(text: str) -> None:
    """Print sentences of the program's own, in which names from other people's files may stand."""
    print(folded(for_stream(text, sys.stdout), sys.stdout), flush=True)
