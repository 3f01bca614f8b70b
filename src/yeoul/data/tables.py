"""Records of the table-like formats (.csv, .tsv, .parquet, .json, .jsonl), and the text in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yeoul.data.dialogs import render_dialog
from yeoul.data.streams import COMPRESSED, open_bytes, read_all, read_lines
from yeoul.errors import UserError

TEXT_COLUMNS = ("text", "document", "content", "sentence", "body", "story", "review", "utterance")
"""Columns taken for the text when none is named, the first that is there."""

_LARGEST_FIELD = 2**31 - 1


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


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a .csv (quoted as in RFC 4180) or .tsv file (never quoted, a row a line), with their line numbers."""
    stem = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    if stem.suffix.lower() == ".tsv":
        for number, line in read_lines(path):
            if line:
                yield number, line.split("\t")
        return
    csv.field_size_limit(_LARGEST_FIELD)
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    first = 1
    try:
        for cells in reader:
            if cells:
                yield first, cells
            first = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"the row that begins here is not valid CSV: {error}", f"{path}:{first}") from error


def delimited_documents(path: Path, selection: Selection) -> Iterator[str]:
    """Texts of a .csv or .tsv file, whose first row names the columns."""
    rows = _cells(path)
    _, header = next(rows, (0, []))
    columns = [name.strip() for name in header]
    if not columns:
        return
    _check_join(columns, selection, path)

    def records() -> Iterator[tuple[str, str]]:
        text = key = -1
        for number, cells in rows:
            if text < 0:
                textual = [name for name, cell in zip(columns, cells, strict=False) if not _is_number(cell)]
                text = columns.index(choose_column(columns, textual, selection, path))
                key = columns.index(selection.join_by) if selection.join_by else text
            if len(cells) <= max(text, key):
                raise UserError(f"the row has {len(cells)} columns, the header {len(columns)}", f"{path}:{number}")
            if cells[text].strip():
                yield cells[key], cells[text]

    yield from join_records(records()) if selection.join_by else (text for _, text in records())


def _record_text(record: Any, selection: Selection, where: str) -> str:
    """The text of one JSON record: a string, a dialog, or an object with a column of text; "" for null."""
    if isinstance(record, str):
        text = record
    elif isinstance(record, dict) and isinstance(record.get("conversation"), list) and not selection.text_column:
        text = render_dialog(record["conversation"], where)
    elif isinstance(record, dict):
        textual = [name for name, value in record.items() if isinstance(value, str)]
        value = record[choose_column(list(record), textual, selection, where)]
        if value is not None and not isinstance(value, str):
            raise UserError("the column of the text does not hold text", where)
        text = value or ""
    else:
        raise UserError("the record is neither a string nor an object", where)
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError("the text has half of a surrogate pair, which is no character", where)
    return text


def record_documents(records: Iterable[tuple[str, Any]], selection: Selection) -> Iterator[str]:
    """Texts of JSON records, each with the place that an error names."""

    def pairs() -> Iterator[tuple[Any, str]]:
        for where, record in records:
            text = _record_text(record, selection, where)
            if not text.strip():
                continue
            if selection.join_by:
                _check_join(list(record) if isinstance(record, dict) else [], selection, where)
                yield str(record[selection.join_by]), text
            else:
                yield None, text

    yield from join_records(pairs()) if selection.join_by else (text for _, text in pairs())


def jsonl_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file with one JSON value a line; empty lines are passed over."""
    for number, line in read_lines(path):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
                raise UserError(f"the line is not valid JSON: {reason}", f"{path}:{number}") from error


def json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a .json file: a list of strings or objects, {"dialogs": [...]} or {"data": [...]}, or one object."""
    text = read_all(path)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the file is not valid JSON: {error.msg}", f"{path}:{error.lineno}") from error
    except RecursionError as error:
        raise UserError("the JSON is nested too deep", path) from error
    name = "record"
    if isinstance(value, dict):
        lists = [key for key in ("dialogs", "data") if isinstance(value.get(key), list)]
        name, value = (lists[0], value[lists[0]]) if lists else (name, [value])
    if not isinstance(value, list):
        raise UserError("the file holds neither a list nor an object", path)
    for number, record in enumerate(value, 1):
        yield f"{path}, {name} {number}", record


def parquet_documents(path: Path, selection: Selection) -> Iterator[str]:
    """Texts of a .parquet file, a row group at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading .parquet needs the package pyarrow", path, "pip install pyarrow") from error
    with open_bytes(path) as file:
        try:
            packed = path.suffix.lower() in COMPRESSED
            table = pq.ParquetFile(pa.BufferReader(file.read()) if packed else pa.PythonFile(file, mode="r"))
            schema = table.schema_arrow
            _check_join(schema.names, selection, path)
            textual = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
            column = choose_column(schema.names, textual, selection, path)
            if column not in textual:
                raise UserError(f'the column "{column}" does not hold text', path)
            key = selection.join_by or column

            def pairs() -> Iterator[tuple[Any, str]]:
                for batch in table.iter_batches(batch_size=4096, columns=list({column, key})):
                    keys = batch.column(key).to_pylist()
                    for value, text in zip(keys, batch.column(column).to_pylist(), strict=True):
                        if text and text.strip():
                            yield value, text

            yield from join_records(pairs()) if selection.join_by else (text for _, text in pairs())
        except (pa.ArrowException, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"the file is no readable Parquet: {reason}", path) from error
