"""Text that knows where each of its characters came from, and the budget of what is made of it.

A chat template may trim, split, replace and reorder what it is given. Which of the rendered characters a message wrote
is therefore no matter of searching: a message's texts are `Tracked`, whose methods are those of `str` and carry the
origins along. What a method cannot tell exactly counts as wholly from the message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

MOST_DIGITS = 10_000
"""Longest number and widest field that a template may make."""
CHARACTERS = 64
"""So many characters copied cost as much as one step."""


class TooMuch(Exception):
    """More work or memory than a template of a conversation needs."""


@dataclass
class Budget:
    """What may still be done.

    Attributes:
        left: steps; copying `CHARACTERS` characters is one.
        end: time of `time.monotonic` at which it is over in any case.
    """

    left: float
    end: float


_BUDGET: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budget(steps: float, seconds: float) -> Iterator[Budget]:
    """Inside, `charge` counts, and `TooMuch` ends what goes beyond."""
    mine = Budget(steps, time.monotonic() + seconds)
    token = _BUDGET.set(mine)
    try:
        yield mine
    finally:
        _BUDGET.reset(token)


def charge(steps: float) -> None:
    """Pays for something before it is done; without a budget it is free."""
    mine = _BUDGET.get(None)
    if mine is not None:
        mine.left -= steps
        if mine.left < 0 or time.monotonic() > mine.end:
            raise TooMuch


class Mark(NamedTuple):
    """Where a character comes from.

    Attributes:
        source: number of the message; None for the template, `MIXED` for several at once.
        block: number of the `{% generation %}` block around it, None outside.
    """

    source: int | None = None
    block: int | None = None


MIXED = -1
WRITTEN = Mark()
"""By the template itself."""
Run = tuple[int, Mark]
"""So many characters of one origin."""


class Tracked(str):
    """A text with the origin of its characters, as runs; equal to the plain text in all else."""

    runs: tuple[Run, ...]

    def __new__(cls, text: str, runs: Iterable[Run]) -> Tracked:
        made = super().__new__(cls, text)
        made.runs = tuple(runs)
        return made

    @classmethod
    def all_from(cls, text: str, mark: Mark) -> Tracked:
        """All of it from one place."""
        return cls(text, ((len(text), mark),) if text else ())

    def __str__(self) -> str:
        return self

    def plain(self) -> str:
        """The text alone."""
        return str.__str__(self)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> str:
        if not isinstance(index, slice):
            at = range(len(self))[index]
            return self._part(at, at + 1)
        start, stop, step = index.indices(len(self))
        if step == 1:
            return self._part(start, max(start, stop))
        marks = [mark for length, mark in self.runs for _ in range(length)][index]
        return Tracked(str.__getitem__(self, index), ((len(list(same)), mark) for mark, same in groupby(marks)))

    def _part(self, start: int, stop: int) -> Tracked:
        runs, at = [], 0
        for length, mark in self.runs:
            begin, end = max(start, at), min(stop, at + length)
            if begin < end:
                runs.append((end - begin, mark))
            at += length
            if at >= stop:
                break
        return Tracked(str.__getitem__(self, slice(start, stop)), runs)

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: Any) -> str:
        if not isinstance(count, int):
            return NotImplemented
        charge(len(self) * count / CHARACTERS)
        return Tracked(str.__mul__(self, count), self.runs * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return percent(self, values)

    # -- the ends

    def strip(self, chars: str | None = None, /) -> str:
        return str(self.lstrip(chars)).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        charge(len(self) * len(chars or " ") / CHARACTERS)
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        charge(len(self) * len(chars or " ") / CHARACTERS)
        return self._part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def center(self, width: Any, fill: str = " ", /) -> str:
        check_width(width)
        return self._beside(str.center(self, width, fill), str.center("\0" * len(self), width, "\1").find("\0"))

    def ljust(self, width: Any, fill: str = " ", /) -> str:
        check_width(width)
        return self._beside(str.ljust(self, width, fill), 0)

    def rjust(self, width: Any, fill: str = " ", /) -> str:
        check_width(width)
        text = str.rjust(self, width, fill)
        return self._beside(text, len(text) - len(self))

    def zfill(self, width: Any, /) -> str:
        check_width(width)
        return whole(str.zfill(self, width), self)

    def _beside(self, text: str, at: int) -> str:
        """A longer text that has this one at a place."""
        return joined((text[: max(at, 0)], self, text[max(at, 0) + len(self) :]))

    # -- parts

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        parts = self._paid(str.split(self, sep, maxsplit))
        at, made = 0, list[str]()
        for part in parts:
            if sep is None:
                at = str.index(self, part, at)
            made.append(self._part(at, at + len(part)))
            at += len(part) + len(sep or "")
        return made

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        self._charge_backward(sep)
        parts = self._paid(str.rsplit(self, sep, maxsplit))
        end, made = len(self), list[str]()
        for part in reversed(parts):
            while sep is None and str.__getitem__(self, end - 1).isspace():
                end -= 1
            made.append(self._part(end - len(part), end))
            end -= len(part) + len(sep or "")
        return made[::-1]

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._paid(str.splitlines(self, keepends))
        at, made = 0, list[str]()
        for line, with_end in zip(lines, str.splitlines(self, True), strict=True):
            made.append(self._part(at, at + len(line)))
            at += len(with_end)
        return made

    def _paid(self, parts: list[str]) -> list[str]:
        charge(len(self) / CHARACTERS + len(parts) * (1 + len(self.runs) / CHARACTERS))
        return parts

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, _, _ = str.partition(self, sep)
        return self._cut(len(before), sep) if len(before) < len(self) else (self, "", "")

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        self._charge_backward(sep)
        before, found, _ = str.rpartition(self, sep)
        return self._cut(len(before), sep) if found else ("", "", self)

    def _cut(self, at: int, sep: str) -> tuple[str, str, str]:
        return self[:at], self[at : at + len(sep)], self[at + len(sep) :]

    def rfind(self, sub: str, *where: Any) -> int:
        self._charge_backward(sub)
        return str.rfind(self, sub, *where)

    def rindex(self, sub: str, *where: Any) -> int:
        self._charge_backward(sub)
        return str.rindex(self, sub, *where)

    def _charge_backward(self, sub: str | None) -> None:
        """Backwards Python searches in the product of both lengths, at worst."""
        charge(len(self) * len(sub or " ") / CHARACTERS)

    # -- other texts

    def replace(self, old: str, new: str, count: Any = -1, /) -> str:
        times = str.count(self, old)
        charge((len(self) + times * len(new)) / CHARACTERS + times)
        text = str.replace(self, old, new, count)
        if not old:
            return whole(text, (self, new))
        parts, at = list[str](), 0
        while (count < 0 or len(parts) < 2 * count) and (found := str.find(self, old, at)) >= 0:
            parts += [self._part(at, found), new]
            at = found + len(old)
        return joined((*parts, self._part(at, len(self))))

    def join(self, items: Iterable[str], /) -> str:
        texts = list(items)
        if not all(isinstance(text, str) for text in texts):
            return str.join(self, texts)  # its own error
        return joined(part for number, text in enumerate(texts) for part in ((self, text) if number else (text,)))

    def lower(self) -> str:
        return self._as_long(str.lower(self))

    def upper(self) -> str:
        return self._as_long(str.upper(self))

    def casefold(self) -> str:
        return self._as_long(str.casefold(self))

    def capitalize(self) -> str:
        return self._as_long(str.capitalize(self))

    def title(self) -> str:
        return self._as_long(str.title(self))

    def swapcase(self) -> str:
        return self._as_long(str.swapcase(self))

    def _as_long(self, text: str) -> str:
        charge(len(text) / CHARACTERS)
        return Tracked(text, self.runs) if len(text) == len(self) else whole(text, self)


METHODS = frozenset(
    """
    capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix
    removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title
    upper zfill
    """.split()
)
"""Methods of a text that a template may call: those that carry the origins along, or give no text."""


def tracked(text: str) -> Tracked:
    """The text itself, or a plain one as the template's own."""
    return text if isinstance(text, Tracked) else Tracked.all_from(text, WRITTEN)


def runs_of(text: str) -> tuple[Run, ...]:
    """Origins of any text."""
    return tracked(text).runs


def joined(parts: Iterable[str]) -> str:
    """Texts one after the other."""
    parts = list(parts)
    charge(len(parts) / 8 + sum(map(len, parts)) / CHARACTERS)
    text = "".join(parts)
    if not any(isinstance(part, Tracked) for part in parts):
        return text
    runs: list[Run] = []
    for part in parts:
        for length, mark in runs_of(part):
            if runs and runs[-1][1] == mark:
                runs[-1] = runs[-1][0] + length, mark
            elif length:
                runs.append((length, mark))
    return Tracked(text, runs)


def origin(value: Any) -> Mark | None:
    """The one origin of all texts in a value, which may hold others; None where all is the template's own."""
    found: Mark | None = None
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tracked):
            for _, mark in value.runs:
                if mark != WRITTEN:
                    found = mark if found in (None, mark) else Mark(MIXED)
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += value
    return found


def whole(text: str, made_of: Any) -> str:
    """A text made of others in an unknown way: it comes from where they come from."""
    if isinstance(text, Tracked) or (mark := origin(made_of)) is None:
        return text
    return Tracked.all_from(text, mark)


def check_width(width: Any) -> None:
    """`TooMuch` for fields that only fill memory."""
    if isinstance(width, int):
        if abs(width) > MOST_DIGITS:
            raise TooMuch
        charge(abs(width) / CHARACTERS)


FIELD = re.compile(r"%(?:\(([^()]*)\))?[-+ #0]*(\*|\d+)?(?:\.(\*|\d*))?[hlL]?(.)", re.DOTALL)


def percent(form: str, values: Any) -> str:
    """`form % values`, each value with its own origin."""
    fields = list(FIELD.finditer(form))
    for field in fields:
        for size in field.group(2, 3):
            if size == "*" or len(size or "") > 9:
                raise TooMuch
            check_width(int(size or 0))
    text = str.__mod__(form, values)
    parts, at, number = list[str](), 0, 0
    given = values if isinstance(values, tuple) else (values,)
    for field in fields:
        parts.append(form[at : field.start()])
        at = field.end()
        if field[4] == "%":
            parts.append("%")
            continue
        value = values[field[1]] if field[1] is not None else given[number]
        number += 1
        plain = field[0] if field[1] is None else field[0].replace(f"({field[1]})", "", 1)
        parts.append(value if plain == "%s" and isinstance(value, str) else whole(plain % (value,), value))
    made = joined((*parts, form[at:]))
    return made if made == text else whole(text, (form, values))
