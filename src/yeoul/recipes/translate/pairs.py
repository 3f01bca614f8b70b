"""Sentences with their translations, from two files of lines or from a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from yeoul.data.labelled import read_pairs
from yeoul.data.reading import DEFAULT, Reading, text_of
from yeoul.errors import UserError
from yeoul.files import write_text
from yeoul.plain_text import split_lines
from yeoul.recipes.translate.prompts import turns
from yeoul.units import count


class Pair(NamedTuple):
    """A sentence and how it reads in the other language; "" where nobody has said."""

    source: str
    target: str


def read_lines(file: Path, reading: Reading = DEFAULT) -> list[str]:
    """The lines of a file, empty ones too, but for those at its end.

    Raises:
        UserError: a file that is missing or empty; text that is not in its encoding.
    """
    try:
        lines = split_lines(text_of(file.read_bytes(), str(file), reading))
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", file) from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError("the file is empty", file)
    return [line.strip() for line in lines]


def aligned(source: Path, target: Path | None, reading: Reading = DEFAULT) -> list[Pair]:
    """The lines of two files that say the same; pairs of which one is empty are left out.

    Raises:
        UserError: a file that cannot be read, or other numbers of lines.
    """
    sources = read_lines(source, reading)
    if target is None:
        return [Pair(line, "") for line in sources if line]
    targets = read_lines(target, reading)
    if len(sources) != len(targets):
        raise UserError(
            f"the files are not aligned: {count(len(sources), 'line')} against {len(targets):,}", f"{source}, {target}"
        )
    return [Pair(*pair) for pair in zip(sources, targets, strict=True) if all(pair)]


def from_table(data: str, columns: Sequence[str] | None, reading: Reading = DEFAULT) -> list[Pair]:
    """The pairs of a table or of JSON lines.

    Args:
        data: a file or folder, as for fine-tuning.
        columns: two names; None for the usual ones.

    Raises:
        UserError: it cannot be read, or has no such columns.
    """
    if columns is not None and len(columns) != 2:
        raise UserError(f"{count(len(columns), 'column')} given, but a pair has two", "--columns")
    found = read_pairs(data, pair_columns=None if columns is None else (columns[0], columns[1]), reading=reading)
    return [Pair(pair.first.strip(), pair.second.strip()) for pair in found.records]


def write_dialogs(pairs: Sequence[Pair], file: Path, languages: tuple[str, str]) -> None:
    """Pairs as conversations for `yeoul finetune`, one a line: asked as `yeoul translate --chat` asks.

    Raises:
        UserError: a pair without a translation.
    """
    import json

    if not all(pair.target for pair in pairs):
        raise UserError("conversations need translations", fix="give --target too")
    lines = [json.dumps({"messages": turns([pair], languages)}, ensure_ascii=False) for pair in pairs]
    write_text(file, "".join(line + "\n" for line in lines))
