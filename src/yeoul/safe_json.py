"""The one reader of JSON that others wrote: its size, depth and numbers have bounds, and what is wrong is one sentence.

Python's own reader takes hundreds of megabytes for a file that is made for it, stops with an error of its own at deep
nesting and at long numbers, hands on the last of two values of one key, and reads NaN, which is not JSON.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from yeoul.errors import UserError, shown
from yeoul.plain_text import decode_marked
from yeoul.units import size

LARGEST = 4 * 2**20
"""No config.json, index or header comes near so many bytes: a model of 1,000 layers has an index of 1 MiB."""
MOST_VALUES = 2**18
"""In one of them: what bounds the memory that its objects take, 50 MiB."""
DEEPEST = 100
"""Lists and objects inside one another; Python's own functions over values end at some hundreds."""
LONGEST_NUMBER = 300
"""Digits: every such whole number can be made a float."""
DAMAGED = "copy or download it again"


class JSONError(ValueError):
    """No JSON that is read.

    Attributes:
        reason: what is wrong, a clause that lacks its subject: "is not UTF-8 text".
        line, column: where, counted from 1, when that is known.
    """

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        self.reason, self.line, self.column = reason, line, column
        super().__init__(f"it {reason}")


def parse(
    data: bytes | str,
    *,
    finite: bool = True,
    most_values: int | None = None,
    twice: Callable[[str], Any] | None = None,
) -> Any:
    """The value of a JSON text.

    Args:
        data: bytes may begin with a byte-order mark.
        finite: refuse NaN and infinities. Python and pandas write them, so what they wrote has to be read with them.
        most_values: refuse more, before any is made.
        twice: what stands in the place of an object that has a key twice, from the key as a sentence shows it; without
            it such an object is an error, unless both values are the same.

    Raises:
        JSONError: it is none, or beyond a bound.
    """
    try:
        text = decode_marked(data) if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise JSONError(f"is not UTF-8 text at byte {error.start}") from None
    if not text or text.isspace():
        raise JSONError("is empty")
    openings = text.count("[") + text.count("{")
    if most_values is not None and openings + text.count(",") > most_values:
        raise JSONError(f"holds more than {most_values:,} values, as none of its kind does")
    constant: Callable[[str], Any] = _no_number if finite else float
    try:
        value = json.loads(
            text,
            object_pairs_hook=partial(_object, twice),
            parse_int=_whole,
            parse_float=_finite if finite else None,
            parse_constant=constant,
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, character {error.colno}"
        raise JSONError(f"is not JSON: {error.msg} ({place})", error.lineno, error.colno) from None
    except RecursionError:
        raise JSONError("is nested too deeply") from None
    if openings > DEEPEST and _deeper_than(value, DEEPEST):
        raise JSONError("is nested too deeply")
    return value


def parse_object(data: bytes | str, *, finite: bool = True, most_values: int | None = None) -> dict[str, Any]:
    """The same for a text whose value has to be an object."""
    value = parse(data, finite=finite, most_values=most_values)
    if not isinstance(value, dict):
        raise JSONError("is not a JSON object")
    return value


def read(
    file: Path,
    *,
    largest: int = LARGEST,
    most_values: int | None = MOST_VALUES,
    finite: bool = True,
    fix: str | None = DAMAGED,
) -> Any:
    """The value of a JSON file.

    Args:
        file: where it is.
        largest: bytes; nothing of a larger file is parsed.
        most_values, finite: see `parse`.
        fix: what to do about a damaged file.

    Raises:
        UserError: it is not there, or as in `parse`; names the file.
    """
    data = read_bytes(file, largest)
    try:
        return parse(data, finite=finite, most_values=most_values)
    except JSONError as error:
        raise UserError(f"the file {error.reason}", file, fix) from None


def read_object(
    file: Path,
    *,
    largest: int = LARGEST,
    most_values: int | None = MOST_VALUES,
    finite: bool = True,
    fix: str | None = DAMAGED,
) -> dict[str, Any]:
    """The same for a file whose value has to be an object."""
    value = read(file, largest=largest, most_values=most_values, finite=finite, fix=fix)
    if not isinstance(value, dict):
        raise UserError("the file is not a JSON object", file, fix)
    return value


def read_bytes(file: Path, largest: int) -> bytes:
    """A file as it is, when it has at most `largest` bytes.

    Raises:
        UserError: it has more, is not there, or is no ordinary file (a device has no end, a pipe may wait for ever).
    """
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError("this is not a file", file, DAMAGED)
        with file.open("rb") as opened:
            data = opened.read(min(about.st_size, largest) + 1)
    except FileNotFoundError:
        raise UserError("no such file", file) from None
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror or error}", file) from None
    if len(data) > largest:
        raise UserError(f"the file has more than {size(largest)}, as none of its kind does", file, DAMAGED)
    return data


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise JSONError(f"has a number of {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JSONError(f"has the number {shown(digits)[1:-1]}, which is too large")
    return value


def _no_number(name: str) -> NoReturn:
    raise JSONError(f"has {name} in the place of a number, which is not JSON")


def _object(twice: Callable[[str], Any] | None, pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    seen = set()
    for key, value in pairs:
        if twice is not None and key in seen:
            return twice(shown(key))
        if twice is None and values[key] != value:
            raise JSONError(f"has the key {shown(key)} twice, with different values")
        seen.add(key)
    return values


def _deeper_than(value: Any, limit: int) -> bool:
    """Whether lists and objects lie more than `limit` deep in one another."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)
