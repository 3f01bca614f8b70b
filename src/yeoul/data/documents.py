"""Documents from files, folders, the hub and the built-in corpus, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yeoul.data.dialogs import render_dialog
from yeoul.data.reading import DEFAULT, Columns, Reading
from yeoul.data.record_files import TEXT_COLUMNS, find_column, good_records, is_unicode, listed, read_records
from yeoul.data.sources import Source, Spec, resolve
from yeoul.data.streams import lines_of
from yeoul.errors import UserError

LONGEST_BLOCK = 100_000
"""A block of plain text without blank lines is cut at the first line end after this many characters."""
LONGEST_LINE = 2**20
"""A line of plain text that is longer is cut before the last space within so many characters, or there."""


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """Which part of a record is its text, and which records belong together; see `read_documents`."""

    text_column: str | None = None
    join_by: str | None = None


def read_documents(
    spec: Spec,
    *,
    text_column: str | None = None,
    join_by: str | None = None,
    revision: str | None = None,
    reading: Reading = DEFAULT,
) -> Iterator[str]:
    """Stream the documents of a data specification.

    Formats: .txt (a document is a block of lines between blank lines), .jsonl and .json (strings, objects with a
    column of text, or dialogs `{"dialogs": [{"id", "conversation": [{"speaker", "utterance"}]}]}`), .csv, .tsv
    (never quoted) and .parquet; each also compressed as .xz, .gz or .zst.

    Args:
        spec: file, folder (read recursively, sorted), "builtin", "builtin:5MB", Hub dataset "org/name"; several
            separated by commas or as a sequence.
        text_column: column of tables and JSON objects that holds the text; None finds it by its usual names.
        join_by: column whose equal values make one document of several records, joined by newlines.
        revision: branch, tag or commit of Hub datasets.
        reading: encoding and bounds of the files.

    Returns:
        an iterator over texts that are not blank. Paths are checked at once, contents while reading.

    Raises:
        UserError: wrong path, unknown kind, no text at all, text in another encoding, malformed record, missing column,
            damaged archive; it names the file and, where there is one, the line.
    """
    selection = _Selection(text_column=text_column, join_by=join_by)
    return _documents(resolve(spec, revision, reading), selection, reading)


def check_documents(
    spec: Spec, *, text_column: str | None = None, join_by: str | None = None, reading: Reading = DEFAULT
) -> None:
    """Read the first text of each part of a data specification, before anything that takes long is begun.

    Args and errors are those of `read_documents`; what follows the first text is not checked.
    """
    selection = _Selection(text_column=text_column, join_by=join_by)
    for source in resolve(spec, reading=reading):
        texts = (True for path, kind in source.files for _ in _texts(path, kind, selection, reading))
        if not source.builtin_bytes and not any(texts):
            raise UserError("there is no text in the data", source.name)


def _documents(sources: list[Source], selection: _Selection, reading: Reading) -> Iterator[str]:
    for source in sources:
        empty = True
        for document in _source_documents(source, selection, reading):
            if document and not document.isspace():
                empty = False
                yield document
        if empty:
            raise UserError("there is no text in the data", source.name)


def _source_documents(source: Source, selection: _Selection, reading: Reading) -> Iterator[str]:
    if source.builtin_bytes:
        from yeoul.data.builtin import generate_documents

        yield from generate_documents(target_bytes=source.builtin_bytes)
    for path, kind in source.files:
        pairs = _texts(path, kind, selection, reading)
        if selection.join_by and kind != ".txt":
            yield from _joined(pairs)
        else:
            yield from (text for _, text in pairs)


def _texts(path: Path, kind: str, selection: _Selection, reading: Reading) -> Iterator[tuple[str | None, str]]:
    """The texts of a file, those that are not blank, each with the key by which it is joined to others."""
    if kind == ".txt":
        return ((None, block) for block in text_blocks(path, reading))
    return _record_texts(path, kind, selection, reading)


def text_blocks(path: Path, reading: Reading = DEFAULT) -> Iterator[str]:
    """Blocks of lines of a text file, separated by blank lines; very long ones are cut, so that memory is bounded."""
    block: list[str] = []
    size = 0
    for line in lines_of(path, reading):
        if line.error is not None:
            raise line.error
        for text in (line.text,) if len(line.text) <= LONGEST_LINE else _pieces_of_line(line.text):
            blank = not text or text.isspace()
            if not blank:
                block.append(text)
                size += len(text)
            if block and (blank or size >= LONGEST_BLOCK):
                yield "\n".join(block)
                block, size = [], 0
    if block:
        yield "\n".join(block)


def _pieces_of_line(line: str) -> Iterator[str]:
    """Pieces that are themselves blocks, for each is longer than `LONGEST_BLOCK`, but for the last."""
    at = 0
    while len(line) - at > LONGEST_LINE:
        space = line.rfind(" ", at + LONGEST_BLOCK, at + LONGEST_LINE)
        end = at + LONGEST_LINE if space < 0 else space
        yield line[at:end]
        at = end
    yield line[at:]


# -- records


class _TextColumn:
    """The column of a table with the text: chosen by the columns, where these say which hold text, or by a row."""

    def __init__(self, selection: _Selection) -> None:
        self.selection = selection
        self.name: str | None = None

    def check(self, columns: Columns, path: Path) -> list[str] | None:
        """The columns that have to be read; None for all. Raises `UserError`."""
        _check_join(columns.names, self.selection, path)
        if columns.textual is None:
            return None
        self.name = _choose_column(columns.names, columns.textual, self.selection, path)
        if self.name not in columns.textual:
            raise UserError(f'the column "{self.name}" does not hold text', path)
        return [name for name in (self.name, self.selection.join_by) if name is not None]

    def of(self, row: dict[str, Any], path: Path) -> str:
        if self.name is None:
            textual = [name for name, cell in row.items() if not _is_number(cell)]
            self.name = _choose_column(list(row), textual, self.selection, path)
        return self.name


def _choose_column(columns: Sequence[str], textual: Sequence[str], selection: _Selection, where: object) -> str:
    """The column with the text: the named or a usual one of `columns`, or the only one of those that hold text."""
    found = find_column(columns, selection.text_column, TEXT_COLUMNS, where)
    if found is not None:
        return found
    candidates = [name for name in textual if name != selection.join_by]
    if len(candidates) == 1:
        return candidates[0]
    what = f"it is not clear which column is the text; there are: {listed(columns)}"
    raise UserError(what, where, "name the text column")


def _check_join(columns: Sequence[str], selection: _Selection, where: object) -> None:
    if selection.join_by is not None and selection.join_by not in columns:
        raise UserError(f'there is no column "{selection.join_by}" to join by; there are: {listed(columns)}', where)


def _joined(records: Iterable[tuple[Any, str]]) -> Iterator[str]:
    """Join the texts that share a key by newlines, in the order in which the keys first appear."""
    groups: dict[Any, list[str]] = {}
    for key, text in records:
        groups.setdefault(key, []).append(text)
    while groups:  # a document leaves memory when it is handed on
        yield "\n".join(groups.pop(next(iter(groups))))


def _is_number(cell: str) -> bool:
    return cell.strip().replace(".", "").replace("-", "").replace(",", "").isdigit()


def _record_texts(path: Path, kind: str, selection: _Selection, reading: Reading) -> Iterator[tuple[str | None, str]]:
    column, is_json = _TextColumn(selection), kind in (".json", ".jsonl")
    for where, record in good_records(read_records(path, kind, column.check, reading)):
        text = _json_text(record, selection, where) if is_json else _text(record[column.of(record, path)], where)
        if not text.strip():
            continue
        if not selection.join_by:
            yield None, text
            continue
        if is_json:
            _check_join(list(record) if isinstance(record, dict) else [], selection, where)
        key = record[selection.join_by]
        if isinstance(key, dict | list | UserError):
            raise UserError("the column to join by holds lists or objects", where)
        yield str(key), text


def _json_text(record: Any, selection: _Selection, where: str) -> str:
    """The text of one JSON record: a string, a dialog, or an object with a column of text; "" for null."""
    if isinstance(record, str):
        return _text(record, where)
    if not isinstance(record, dict):
        raise UserError("the record is neither a string nor an object", where)
    if isinstance(record.get("conversation"), list) and not selection.text_column:
        return _text(render_dialog(record["conversation"], where), where)
    textual = [name for name, value in record.items() if isinstance(value, str)]
    return _text(record[_choose_column(list(record), textual, selection, where)], where)


def _text(value: Any, where: str) -> str:
    """A text, or several as one, each on lines of its own; "" for null."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if value is not None and not isinstance(value, str):
        raise UserError("the column of the text does not hold text", where)
    text = value or ""
    if not is_unicode(text):
        raise UserError("the text has half of a surrogate pair, which is not a character", where)
    return text
