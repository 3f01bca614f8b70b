"""Files as records one at a time, where a damaged record costs only itself.

`tables.py` stops at the first thing that is wrong; here it is handed on in the place of the record, for whoever counts
and names what is skipped. What leaves no records to tell apart (a damaged archive, a .json that is not JSON) is raised.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from yeoul.data.streams import COMPRESSED, decode, open_bytes
from yeoul.errors import UserError, shown

Row = tuple[str, Any]
"""The place of a record, and its value; or the `UserError` that says what is wrong with it."""
CheckColumns = Callable[[list[str], Path], None]
"""Raises where a table has not the columns that are needed."""

_LARGEST_FIELD = 2**31 - 1
_ROWS = 1024
_NOT_UTF8 = "the text is not UTF-8"
_CONVERT = "convert it, for example with: iconv -f CP949 -t UTF-8"


def read_rows(path: Path, kind: str, check_columns: CheckColumns) -> Iterator[Row]:
    """Records of one file.

    Args:
        path: the file, compressed or not.
        kind: ".jsonl", ".json", ".csv", ".tsv" or ".parquet".
        check_columns: called with the columns of a table before its first row.

    Returns:
        pairs of place ("file:line"; "file, record 3" in .json; "file, row 3" in .parquet) and value: what JSON holds,
        or for tables a dict by column; a `UserError` instead where the record cannot be read.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    if kind == ".jsonl":
        return _jsonl_rows(path)
    if kind == ".json":
        return _json_rows(path)
    if kind == ".parquet":
        return _parquet_rows(path, check_columns)
    return _delimited_rows(path, kind, check_columns)


def _raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, byte offset, line without its end); a byte-order mark is dropped."""
    with open_bytes(path) as file:
        offset = 0
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            yield number, offset, line.rstrip(b"\r\n")
            offset += len(raw)


def _parsed(text: str, what: str, where: str) -> Any:
    """The value of a JSON text, or a `UserError`; in the value, an object that has a key twice is one, too."""
    try:
        return _placed(json.loads(text, object_pairs_hook=_object), where)
    except RecursionError:
        return UserError(f"{what} is nested too deep", where)
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}" if what == "the file" else where
        return UserError(f"{what} is not valid JSON: {error.msg} at character {error.colno}", place)
    except ValueError as error:  # a number beyond the digits that Python converts
        return UserError(f"{what} cannot be read: {str(error).partition(';')[0]}", where)


def _object(pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    return UserError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} is there twice")


def _placed(value: Any, where: str) -> Any:
    """The value; an error gets its place."""
    return UserError(value.what, where) if isinstance(value, UserError) else value


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, offset, raw in _raw_lines(path):
        where = f"{path}:{number}"
        try:
            line = decode(raw, path, number, offset)
        except UserError as error:
            yield where, error
            continue
        if line.strip():
            yield from _opened(where, _parsed(line, "the line", where), ("dialogs",))


def _json_rows(path: Path) -> Iterator[Row]:
    with open_bytes(path) as file:
        # Bytes that are no UTF-8 become lone surrogates, which the record is blamed for that has them.
        text = file.read().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if not text.strip():
        return
    value = _parsed(text, "the file", str(path))
    if isinstance(value, UserError):
        raise value
    if isinstance(value, list):
        for number, record in enumerate(value, 1):
            where = f"{path}, record {number}"
            yield where, _placed(record, where)
    elif isinstance(value, dict):
        yield from _opened(str(path), value, ("dialogs", "data"))
    else:
        raise UserError("the file holds neither a list nor an object", path)


def _opened(where: str, value: Any, lists: Iterable[str]) -> Iterator[Row]:
    """The records of an object that holds a list of them under one of `lists`, else the value itself."""
    name = next((key for key in lists if isinstance(value, dict) and isinstance(value.get(key), list)), None)
    if name is None:
        yield where, value
    elif not value[name]:
        yield where, UserError(f'the list "{name}" is empty', where)
    else:
        for number, record in enumerate(value[name], 1):
            place = f"{where}, {name} {number}"
            yield place, _placed(record, place)


class _Lines(Iterator[str]):
    """Lines for `csv.reader`, which can go back to the line behind the beginning of a row."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self.lines = lines
        self.row: list[tuple[int, str]] = []
        self.ahead: deque[tuple[int, str]] = deque()

    def __next__(self) -> str:
        self.row.append(self.ahead.popleft() if self.ahead else next(self.lines))
        return self.row[-1][1] + "\n"

    def begin(self) -> None:
        """The next line begins a row."""
        self.row = []

    def go_back(self) -> None:
        """Read again what came behind the first line of this row."""
        self.ahead.extendleft(reversed(self.row[1:]))


def _cells(path: Path, kind: str) -> Iterator[tuple[int, list[str] | UserError]]:
    """Rows with the line on which they begin.

    A row that breaks the rules of CSV, say by a quotation mark that is never closed, is only as long as its first
    line: reading goes on at the next one, so that it swallows no other.
    """
    decoded = ((number, raw.decode("utf-8", "surrogateescape")) for number, _, raw in _raw_lines(path))
    if kind == ".tsv":
        yield from ((number, line.split("\t")) for number, line in decoded if line)
        return
    csv.field_size_limit(_LARGEST_FIELD)
    lines = _Lines(decoded)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            first = lines.row[0][0]
            yield first, UserError(f"the row that begins here is not valid CSV: {error}", f"{path}:{first}")
            lines.go_back()
            reader = csv.reader(lines, strict=True)
            continue
        if cells is None:
            return
        if cells:
            yield lines.row[0][0], cells


def _delimited_rows(path: Path, kind: str, check_columns: CheckColumns) -> Iterator[Row]:
    rows = _cells(path, kind)
    number, header = next(rows, (0, []))
    if isinstance(header, UserError):
        raise header
    columns = [name.strip() for name in header]
    if not any(columns):
        return
    if not all(map(is_unicode, columns)):
        raise UserError(_NOT_UTF8, f"{path}:{number}", _CONVERT)
    if len(set(columns)) < len(columns):
        raise UserError("two columns have the same name", f"{path}:{number}", "rename one of them")
    check_columns(columns, path)
    for number, cells in rows:
        where = f"{path}:{number}"
        if isinstance(cells, UserError):
            yield where, cells
        elif len(cells) != len(columns):
            yield where, UserError(f"the row has {len(cells)} columns, the header {len(columns)}", where)
        elif not all(map(is_unicode, cells)):
            yield where, UserError(_NOT_UTF8, where, _CONVERT)
        else:
            yield where, dict(zip(columns, cells, strict=True))


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _parquet_rows(path: Path, check_columns: CheckColumns) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading .parquet needs the package pyarrow", path, "pip install pyarrow") from error
    with open_bytes(path) as file:
        try:
            packed = path.suffix.lower() in COMPRESSED
            table = pq.ParquetFile(pa.BufferReader(file.read()) if packed else pa.PythonFile(file, mode="r"))
            check_columns(list(table.schema_arrow.names), path)
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS):
                for value in _values(batch):
                    number += 1
                    where = f"{path}, row {number}"
                    yield where, UserError(_NOT_UTF8, where) if value is None else value
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"the file is no readable Parquet: {reason}", path) from error


def _values(batch: Any) -> Iterator[dict[str, Any] | None]:
    """Rows of an Arrow batch as dicts; None for one whose text is not UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield None
