"""The text in records (.csv, .tsv, .parquet, .json, .jsonl), and which records belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yeoul.data.dialogs import render_dialog
from yeoul.data.reading import DEFAULT, Columns, Reading
from yeoul.data.rows import is_unicode, read_rows
from yeoul.errors import UserError

TEXT_COLUMNS = ("text", "document", "content", "sentence", "body", "story", "review", "utterance")
"""Columns taken for the text when none is named, the first that is there."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of a record is its text, and which records belong together.

    Attributes:
        text_column: column with the text; None takes the first of `TEXT_COLUMNS`, or the only column with text.
        join_by: records with the same value in this column are one document, joined by newlines, consecutive or
            not, in the order of first appearance; this holds the text of a whole file in memory.
    """

    text_column: str | None = None
    join_by: str | None = None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def choose_column(columns: Sequence[str], textual: Sequence[str], selection: Selection, where: object) -> str:
    """The column with the text.

    Args:
        columns: all columns.
        textual: those that hold text, as far as can be seen.

    Raises:
        UserError: the named column is missing, or none is named and several could be meant.
    """
    wanted = selection.text_column
    if wanted is not None:
        if wanted not in columns:
            raise UserError(f'there is no column "{wanted}"; there are: {_listed(columns)}', where)
        return wanted
    for name in TEXT_COLUMNS:
        if name in columns:
            return name
    candidates = [name for name in textual if name != selection.join_by]
    if len(candidates) == 1:
        return candidates[0]
    raise UserError(
        f"it is not clear which column is the text; there are: {_listed(columns)}", where, "name the text column"
    )


def _check_join(columns: Sequence[str], selection: Selection, where: object) -> None:
    if selection.join_by is not None and selection.join_by not in columns:
        raise UserError(f'there is no column "{selection.join_by}" to join by; there are: {_listed(columns)}', where)


def join_records(records: Iterable[tuple[Any, str]]) -> Iterator[str]:
    """Join the texts that share a key by newlines, in the order in which the keys first appear."""
    groups: dict[Any, list[str]] = {}
    for key, text in records:
        groups.setdefault(key, []).append(text)
    while groups:  # a document leaves memory when it is handed on
        yield "\n".join(groups.pop(next(iter(groups))))


def _is_number(cell: str) -> bool:
    return cell.strip().replace(".", "").replace("-", "").replace(",", "").isdigit()


class _TextColumn:
    """The column of a table with the text: chosen by the columns, where these say which hold text, or by a row."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.name: str | None = None

    def check(self, columns: Columns, path: Path) -> list[str] | None:
        """The columns that have to be read; None for all. Raises `UserError`."""
        _check_join(columns.names, self.selection, path)
        if columns.textual is None:
            return None
        self.name = choose_column(columns.names, columns.textual, self.selection, path)
        if self.name not in columns.textual:
            raise UserError(f'the column "{self.name}" does not hold text', path)
        return [name for name in (self.name, self.selection.join_by) if name is not None]

    def of(self, row: dict[str, Any], path: Path) -> str:
        if self.name is None:
            textual = [name for name, cell in row.items() if not _is_number(cell)]
            self.name = choose_column(list(row), textual, self.selection, path)
        return self.name


def record_documents(path: Path, kind: str, selection: Selection, reading: Reading = DEFAULT) -> Iterator[str]:
    """Texts of the records of a file, those that are not blank; for the arguments see `keyed_texts`.

    Raises:
        UserError: a record that cannot be read or has no text, a file that cannot be read.
    """
    pairs = keyed_texts(path, kind, selection, reading)
    return join_records(pairs) if selection.join_by else (text for _, text in pairs)


def keyed_texts(path: Path, kind: str, selection: Selection, reading: Reading = DEFAULT) -> Iterator[tuple[Any, str]]:
    """The text of each record that is not blank, with the key by which records are joined.

    Args:
        path, kind, reading: as for `rows.read_rows`.
        selection: where the text is, and what belongs together.

    Raises:
        UserError: as `record_documents`.
    """
    column = _TextColumn(selection)
    for where, record in read_rows(path, kind, column.check, reading):
        if isinstance(record, UserError):
            raise record
        if kind in (".json", ".jsonl"):
            text = _record_text(record, selection, where)
        else:
            text = _text(record[column.of(record, path)], where)
        if not text.strip():
            continue
        if selection.join_by:
            if kind in (".json", ".jsonl"):
                _check_join(list(record) if isinstance(record, dict) else [], selection, where)
            yield _key(record[selection.join_by], where), text
        else:
            yield None, text


def _key(value: Any, where: str) -> str:
    if isinstance(value, dict | list | UserError):
        raise UserError("the column to join by holds lists or objects", where)
    return str(value)


def _record_text(record: Any, selection: Selection, where: str) -> str:
    """The text of one JSON record: a string, a dialog, or an object with a column of text; "" for null."""
    if isinstance(record, str):
        return _text(record, where)
    if not isinstance(record, dict):
        raise UserError("the record is neither a string nor an object", where)
    if isinstance(record.get("conversation"), list) and not selection.text_column:
        return _text(render_dialog(record["conversation"], where), where)
    textual = [name for name, value in record.items() if isinstance(value, str)]
    return _text(record[choose_column(list(record), textual, selection, where)], where)


def _text(value: Any, where: str) -> str:
    """A text, or several as one, each on lines of its own; "" for null."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if value is not None and not isinstance(value, str):
        raise UserError("the column of the text does not hold text", where)
    text = value or ""
    if not is_unicode(text):
        raise UserError("the text has half of a surrogate pair, which is no character", where)
    return text
