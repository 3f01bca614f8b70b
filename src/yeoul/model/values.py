"""Checks of values that come from files, before anything is built of them."""

from __future__ import annotations

import difflib

from yeoul.errors import UserError, shown


def is_whole(value: object, minimum: int) -> bool:
    """Whether a value from a file is a whole number that is at least `minimum` and fits into 32 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= 2**31


def is_positive(value: object) -> bool:
    """Whether a value from a file is a positive number that torch can take, whole or not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e18


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """A UserError with a suggestion where a value is none of the choices."""
    if value not in choices:
        near = difflib.get_close_matches(shown(value).strip("'"), choices, n=1)
        hint = f"did you mean {shown(near[0])}" if near else f"choose one of {', '.join(choices)}"
        raise UserError(f"{name} cannot be {shown(value)}", fix=hint)


def check_list(name: str, value: object, kind: type) -> None:
    """A UserError where a value is no list of names (kind str) or of whole numbers (kind int)."""
    if not isinstance(value, list | tuple) or not all(type(item) is kind for item in value):
        wanted = {str: "names", int: "whole numbers"}[kind]
        raise UserError(f"{name} must be a list of {wanted}, not {shown(value)}")
