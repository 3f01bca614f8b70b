"""Prompts from a file."""

from __future__ import annotations

from pathlib import Path

from yeoul.data.reading import Reading, text_of
from yeoul.errors import UserError
from yeoul.plain_text import split_lines


def read_prompts(file: Path, reading: Reading) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        UserError: a file that is missing or empty; text that is not in its encoding.
    """
    try:
        lines = split_lines(text_of(file.read_bytes(), str(file), reading))
    except OSError as error:
        raise UserError(f"the prompts cannot be read: {error.strerror}", file) from None
    if not (prompts := [line for line in lines if line.strip()]):
        raise UserError("the file has no prompt", file, "write one prompt per line")
    return prompts
