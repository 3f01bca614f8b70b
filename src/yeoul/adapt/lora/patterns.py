r"""Regular expressions over module paths, in time that grows with the expression and the path alone.

An adapter's `adapter_config.json` may hold any expression, and it comes from somebody else. Python's own matcher tries
one way after the other, which takes `(a|a)*b` years; here all ways are followed at once (Thompson 1968), over the tree
that Python's own parser makes, so that the syntax is the same. Back references alone have no such machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from yeoul.errors import UserError, shown

LONGEST = 10_000
"""Characters of an expression."""
MOST_STATES = 2_000
"""Of the machine; counted repetitions are so many copies."""

Test = Callable[[str, int], bool]
"""Of a path and a place in it."""


@dataclass
class State:
    """A step: `test` of the character here (or of the place, where it takes none), and where to go on."""

    test: Test | None = None
    takes: bool = False
    nexts: list[State] = field(default_factory=list)
    last: bool = False


def check_expression(expression: str) -> None:
    """UserError where it is none, or one that is not read here."""
    _machine(expression)


@lru_cache(maxsize=2**16)
def matches(expression: str, path: str) -> bool:
    """`re.fullmatch(expression, path)` as a truth value."""
    if _is_plain(expression):
        return re.fullmatch(expression, path) is not None
    return _reaches(_machine(expression), path, 0, whole=True)


def _is_plain(expression: str) -> bool:
    """Whether there is only one way to match: the names of modules, which adapters have by the hundred."""
    return set(expression).isdisjoint("*+?{|") and len(expression) <= LONGEST


@lru_cache(maxsize=1024)
def _machine(expression: str) -> State:
    from re import _parser  # type: ignore[attr-defined]  # where Python's own tree is to be had

    if len(expression) > LONGEST:
        raise UserError(f"{shown(expression)} is longer than {LONGEST:,} characters")
    try:
        tree = _parser.parse(expression)
        return _Builder().sequence(tree, State(last=True), tree.state.flags)
    except (re.error, RecursionError, OverflowError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{shown(expression)} is not a regular expression: {reason}") from None
    except _Unknown as unknown:
        raise UserError(f"the regular expression {shown(expression)} {unknown}") from None


class _Unknown(Exception):
    """What is not read of an expression, as the end of a sentence."""


class _Builder:
    """From the parser's tree to states, each part made for the state that follows it."""

    def __init__(self) -> None:
        self.count = 0

    def state(self, nexts: Iterable[State], test: Test | None = None, takes: bool = False) -> State:
        self.count += 1
        if self.count > MOST_STATES:
            raise _Unknown("is too large")
        return State(test, takes, list(nexts))

    def sequence(self, items: Any, following: State, flags: int) -> State:
        for operation, value in reversed(list(items)):
            following = self.part(str(operation), value, following, flags)
        return following

    def part(self, operation: str, value: Any, following: State, flags: int) -> State:
        if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self.state([following], _character(operation, value, flags), takes=True)
        if operation == "BRANCH":
            return self.state([self.sequence(way, following, flags) for way in value[1]])
        if operation == "SUBPATTERN":
            _, more, less, inside = value
            return self.sequence(inside, following, (flags | more) & ~less)
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            return self.repeat(value, following, flags)
        if operation == "AT":
            return self.state([following], _place(str(value)))
        if operation in ("ASSERT", "ASSERT_NOT"):
            return self.state([following], self.look(value, flags, operation == "ASSERT"))
        raise _Unknown("uses a back reference or another feature that is not supported")

    def repeat(self, value: tuple[int, Any, Any], following: State, flags: int) -> State:
        least, most, inside = value
        if int(most) > MOST_STATES:  # without end, or as good as
            loop = self.state([following])
            loop.nexts.append(self.sequence(inside, loop, flags))
            following = loop
        else:
            end = following
            for _ in range(int(most) - least):
                following = self.state([self.sequence(inside, following, flags), end])
        for _ in range(least):
            self.count += 1  # an empty part costs, too
            following = self.sequence(inside, following, flags)
            if self.count > MOST_STATES:
                raise _Unknown("is too large")
        return following

    def look(self, value: tuple[int, Any], flags: int, wanted: bool) -> Test:
        direction, inside = value
        start, width = self.sequence(inside, State(last=True), flags), inside.getwidth()[0]
        known = dict[tuple[str, int], bool]()

        def test(path: str, at: int) -> bool:
            if (path, at) not in known:
                begin = at if direction > 0 else at - width
                text = path if direction > 0 else path[:at]
                known[path, at] = begin >= 0 and _reaches(start, text, begin, whole=direction < 0)
            return known[path, at] == wanted

        return test


def _reaches(start: State, path: str, at: int, *, whole: bool) -> bool:
    """Whether the end can be reached from a place in the path: at its end, or anywhere."""
    here = _closure([start], path, at)
    while not (any(state.last for state in here) and (not whole or at == len(path))):
        if at == len(path) or not here:
            return False
        taken = [state for state in here if state.takes and state.test is not None and state.test(path, at)]
        at += 1
        here = _closure([state.nexts[0] for state in taken], path, at)
    return True


def _closure(states: list[State], path: str, at: int) -> list[State]:
    """All states that are reached without taking a character."""
    seen, waiting, found = set[int](), states, list[State]()
    while waiting:
        state = waiting.pop()
        if id(state) in seen:
            continue
        seen.add(id(state))
        if state.takes or state.last:
            found.append(state)
        elif state.test is None or state.test(path, at):
            waiting += state.nexts
    return found


def _character(operation: str, value: Any, flags: int) -> Test:
    """Of one character; letters of both kinds where the expression ignores that."""
    if operation == "ANY":
        return lambda path, at: True
    items = [("LITERAL", value)] if "LITERAL" in operation else [(str(kind), inside) for kind, inside in value]
    wanted = operation != "NOT_LITERAL" and items[0][0] != "NEGATE"
    either = bool(flags & re.IGNORECASE)

    def test(path: str, at: int) -> bool:
        char = path[at]
        kinds = {char, char.lower(), char.upper()} if either else {char}
        return any(_is(kind, inside, one) for one in kinds for kind, inside in items) == wanted

    return test


def _is(kind: str, value: Any, char: str) -> bool:
    if kind == "LITERAL":
        return ord(char[0]) == value
    if kind == "RANGE":
        return bool(value[0] <= ord(char[0]) <= value[1])
    name = str(value).removeprefix("CATEGORY_")
    found = {"DIGIT": char.isdecimal(), "SPACE": char.isspace(), "WORD": _is_word(char)}
    return found.get(name.removeprefix("NOT_"), False) != name.startswith("NOT_") if kind == "CATEGORY" else False


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _place(name: str) -> Test:
    """Of a place between characters."""
    if "BEGINNING" in name:
        return lambda path, at: at == 0
    if "END" in name:
        return lambda path, at: at == len(path)

    def boundary(path: str, at: int) -> bool:
        before, after = at > 0 and _is_word(path[at - 1]), at < len(path) and _is_word(path[at])
        return (before != after) == ("NON" not in name)

    return boundary
