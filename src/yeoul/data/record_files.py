"""The one reader of files with records: texts, tables and JSON, compressed or not.

`read_records` reads one file; a damaged record costs only itself: what is wrong with it stands in its place. `Records`
reads all files of a data specification, and raises or counts the records that cannot be used. What leaves no records
to tell apart (a damaged archive, a .json that is not JSON) is always raised.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from yeoul.data.reading import AS_CP949, DEFAULT, CheckColumns, Columns, Reading, Row, not_text
from yeoul.data.sources import Spec, resolve
from yeoul.data.streams import Line, lines_of, read_whole
from yeoul.data.typographic import parse_any_marks
from yeoul.errors import UserError
from yeoul.safe_json import JSONError
from yeoul.units import count

TEXT_COLUMNS = ("text", "document", "content", "sentence", "body", "story", "review", "utterance")
"""Columns taken for the text when none is named, the first that is there."""
COMPLAINTS = 5
"""Complaints about skipped records that are kept as text, at most; all are counted."""
_LARGEST_FIELD = 2**31 - 1
_OF_A_LINE = 200
"""Bytes of memory that a line takes beside its text, until its row ends."""
_ONE_COMMA_TOO_MANY = "put texts that hold commas in quotation marks"

OnBadRecord = Literal["error", "skip"]
R = TypeVar("R")


# -- one file


def _any_columns(columns: Columns, path: Path) -> None:
    """Takes every table."""


def read_records(
    path: Path, kind: str, check_columns: CheckColumns = _any_columns, reading: Reading = DEFAULT
) -> Iterator[Row]:
    """Records of one file.

    Args:
        path: the file, compressed or not.
        kind: ".txt", ".jsonl", ".json", ".csv", ".tsv" or ".parquet".
        check_columns: called with the columns of a table before its first row.
        reading: encoding and bounds.

    Returns:
        pairs of place ("file:line"; "file, record 3" in .json; "file, row 3" in .parquet) and value: a line of text,
        what JSON holds, or for tables a dict by column; a `UserError` instead where the record cannot be read.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    if kind == ".txt":
        return ((f"{path}:{line.number}", line.error or line.text) for line in lines_of(path, reading))
    if kind == ".jsonl":
        return _jsonl_rows(path, reading)
    if kind == ".json":
        return _json_rows(path, reading)
    if kind == ".parquet":
        from yeoul.data.parquet import parquet_rows

        return parquet_rows(path, check_columns, reading)
    return _delimited_rows(path, kind, check_columns, reading)


def good_records(rows: Iterable[Row]) -> Iterator[Row]:
    """The same records.

    Raises:
        UserError: at the first that cannot be read.
    """
    for where, value in rows:
        if isinstance(value, UserError):
            raise value
        yield where, value


# -- columns


class MissingColumn(UserError):
    """A column that is needed is not there: in a table this is no matter of one record."""


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message, cut where they are many."""
    text = ", ".join(map(str, names)) or "none"
    return text if len(text) <= 200 else f"{text[:197]}..."


def check_column(columns: Collection[str], name: str, where: object) -> str:
    """The name of a column that is there.

    Raises:
        MissingColumn: it is not.
    """
    if name not in columns:
        raise MissingColumn(f'there is no column "{name}"; there are: {listed(columns)}', where)
    return name


def find_column(columns: Collection[str], name: str | None, usual: Sequence[str], where: object) -> str | None:
    """The column that was named, else the first with a usual name, else None.

    Raises:
        MissingColumn: the named one is not there.
    """
    if name is not None:
        return check_column(columns, name, where)
    return next((known for known in usual if known in columns), None)


# -- the files of a data specification


class Records(Generic[R]):
    """Records of all files that a data specification names, one at a time; iterating again reads again.

    Attributes:
        read: records handed on so far in the last reading.
        skipped: records that could not be used; read + skipped are all that there were.
        complaints: what was wrong with the first of them, a sentence each.
    """

    def __init__(
        self,
        spec: Spec,
        make: Callable[[Mapping[str, Any], str, str], R],
        check_columns: CheckColumns,
        *,
        plain_text: tuple[str, str],
        on_bad_record: OnBadRecord = "error",
        reading: Reading = DEFAULT,
    ) -> None:
        """Finds the files; none is opened yet.

        Args:
            spec: as for `read_documents`, without the built-in corpus. Files of plain text are passed over where there
                are others: licences and notes lie beside data.
            make: makes the record from its value, its place and the kind of file; raises `UserError`.
            check_columns: as for `read_records`.
            plain_text: what is wrong where there is nothing but plain text, and how to mend it.
            on_bad_record: "error" raises at the first that cannot be used, "skip" counts it and goes on.
            reading: encoding and bounds of the files.

        Raises:
            UserError: something is not there, or is plain text.
        """
        self.on_bad_record = on_bad_record
        self.read = self.skipped = 0
        self.complaints: list[str] = []
        self._make, self._check_columns, self._reading = make, check_columns, reading
        self._parts: list[tuple[str, list[tuple[Path, str]]]] = []
        for source in resolve(spec, reading=reading):
            files = [(path, kind) for path, kind in source.files if kind != ".txt"]
            if not files:
                raise UserError(plain_text[0], source.name, plain_text[1])
            self._parts.append((source.name, files))

    def __iter__(self) -> Iterator[R]:
        self.read = self.skipped = 0
        self.complaints = []
        for name, files in self._parts:
            before = self.read, self.skipped
            for path, kind in files:
                for where, value in read_records(path, kind, self._check_columns, self._reading):
                    try:
                        record = self._record(value, where, kind)
                    except UserError as error:
                        self.complain(error)
                        continue
                    self.read += 1
                    yield record
            if self.read == before[0]:
                skipped = self.skipped - before[1]
                some = "the only record cannot" if skipped == 1 else f"none of the {skipped:,} records can"
                what = f"{some} be used" if skipped else "there is no record in the data"
                raise UserError(what, name, f"the first complaint: {self.complaints[0]}" if skipped else None)

    def _record(self, value: Any, where: str, kind: str) -> R:
        if isinstance(value, UserError):
            raise value
        if not isinstance(value, Mapping):
            raise UserError("the record is not an object with keys", where)
        return self._make(value, where, kind)

    def complain(self, error: UserError, *, was_read: bool = False) -> None:
        """A record cannot be used: raises the error, or counts it where bad records are skipped.

        Args:
            was_read: it was handed on already, and turned out bad later.
        """
        if self.on_bad_record == "error":
            fix = error.fix or "fix it, or leave out what cannot be used (--on-bad-record skip)"
            raise UserError(error.what, error.where, fix) from None
        self.skipped += 1
        self.read -= was_read
        if len(self.complaints) < COMPLAINTS:
            self.complaints.append(str(error))


# -- JSON


def _twice(where: str, key: str) -> UserError:
    return UserError(f"the key {key} is there twice", where)


def _jsonl_rows(path: Path, reading: Reading) -> Iterator[Row]:
    for number, text, error in lines_of(path, reading):
        where = f"{path}:{number}"
        if error is not None:
            yield where, error
        elif text.strip():
            try:
                value = parse_any_marks(
                    text, finite=False, most_values=reading.most_values, twice=partial(_twice, where)
                )
            except JSONError as wrong:
                yield where, UserError(f"the line {wrong.reason}", where)
            else:
                yield from _opened(where, value, ("dialogs",))


def _json_rows(path: Path, reading: Reading) -> Iterator[Row]:
    data, codec, offset = read_whole(path, reading)
    if not data.strip():
        return
    not_utf8: UserError | None = None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        not_utf8 = not_text(data, error, codec, f"{path}:{line}", offset)
        if not_utf8.fix == AS_CP949:
            raise not_utf8 from None
        # Bytes that are not text become lone surrogates; the record that has them is the one that is refused.
        text = data.decode("utf-8", "surrogateescape")
    del data
    try:
        limit = 8 * reading.most_values
        value = parse_any_marks(text, finite=False, most_values=limit, twice=partial(_twice, str(path)))
    except JSONError as wrong:
        place = f"{path}:{wrong.line}" if wrong.line else str(path)
        raise not_utf8 or UserError(f"the file {wrong.reason}", place) from None
    if isinstance(value, UserError):
        raise value
    if isinstance(value, list):
        rows: Iterator[Row] = ((f"{path}, record {number}", record) for number, record in enumerate(value, 1))
    elif isinstance(value, dict):
        rows = _opened(str(path), value, ("dialogs", "data"))
    else:
        raise UserError("the file is neither a list nor an object", path)
    for where, record in rows:
        if not_utf8 is not None and not is_unicode(json.dumps(record, ensure_ascii=False, default=str)):
            yield where, UserError(not_utf8.what, where, not_utf8.fix)
        else:
            yield where, _placed(record, where)


def _placed(value: Any, where: str) -> Any:
    """The value; an error gets its place."""
    return UserError(value.what, where) if isinstance(value, UserError) else value


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


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


# -- tables


class _Lines(Iterator[str]):
    """Lines for `csv.reader`, which can go back to the second line of a row.

    Raises:
        csv.Error: a row takes more than `largest` bytes of memory.
    """

    def __init__(self, lines: Iterator[Line], largest: int) -> None:
        self.lines, self.largest = lines, largest
        self.row: list[Line] = []
        self.length = 0
        self.ahead: deque[Line] = deque()

    def __next__(self) -> str:
        line = self.ahead.popleft() if self.ahead else next(self.lines)
        self.row.append(line)
        self.length += len(line.text) + _OF_A_LINE
        if self.length > self.largest:
            raise csv.Error("it is longer than a row may be (a quotation mark may be missing)")
        return line.text + "\n"

    def begin(self) -> None:
        """The next line begins a row."""
        self.row, self.length = [], 0

    def go_back(self) -> None:
        """Read again what came behind the first line of this row."""
        self.ahead.extendleft(reversed(self.row[1:]))

    @property
    def error(self) -> UserError | None:
        """What is wrong with the first damaged line of this row."""
        return next((line.error for line in self.row if line.error is not None), None)


def _cells(path: Path, kind: str, reading: Reading) -> Iterator[tuple[int, list[str] | UserError]]:
    """Rows with the line on which they begin.

    A row that breaks the rules of CSV, say by a quotation mark that is never closed, is only as long as its first
    line: reading goes on at the next one, so that it swallows no other.
    """
    if kind == ".tsv":
        for number, text, error in lines_of(path, reading):
            if text or error:
                yield number, error or text.split("\t")
        return
    csv.field_size_limit(_LARGEST_FIELD)
    lines = _Lines(lines_of(path, reading), reading.largest_record)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            first = lines.row[0].number
            yield first, UserError(f"the row that begins here is not valid CSV: {error}", f"{path}:{first}")
            lines.go_back()
            reader = csv.reader(lines, strict=True)
            continue
        if cells is None:
            return
        if cells or lines.error:
            yield lines.row[0].number, lines.error or cells


def _delimited_rows(path: Path, kind: str, check_columns: CheckColumns, reading: Reading) -> Iterator[Row]:
    rows = _cells(path, kind, reading)
    number, header = next(rows, (0, []))
    if isinstance(header, UserError):
        raise header
    columns = [name.strip() for name in header]
    if not any(columns):
        return
    named = [name for name in columns if name]  # spreadsheets write empty columns at the end
    if len(set(named)) < len(named):
        name = next(name for name in named if named.count(name) > 1)
        raise UserError(f'two columns have the same name, "{name}"', f"{path}:{number}", "rename one of them")
    check_columns(Columns(list(dict.fromkeys(columns))), path)
    for number, cells in rows:
        where = f"{path}:{number}"
        if isinstance(cells, UserError):
            yield where, cells
        elif len(cells) != len(columns):
            more = kind == ".csv" and len(cells) > len(columns)
            what = f"the row has {count(len(cells), 'column')}, the header {len(columns)}"
            yield where, UserError(what, where, _ONE_COMMA_TOO_MANY if more else None)
        else:
            yield where, dict(zip(columns, cells, strict=True))
