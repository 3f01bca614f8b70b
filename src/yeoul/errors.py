"""The one exception for what a user can mend."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother, _SHORT.maxlevel = 80, 40, 60, 2


class UserError(Exception):
    """Something the user can put right; the command line prints it as one sentence and exits with code 2.

    Args:
        what: what is wrong, as a clause without a full stop.
        where: the file (with line), flag or key at fault.
        fix: what to do about it, as an imperative clause.
    """

    def __init__(self, what: str, where: object | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, None if where is None else str(where), fix
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        remedy = f"; {self.fix}" if self.fix else ""
        return f"{self.what}{place}{remedy}."


def shown(value: object) -> str:
    """A value from a file as a sentence can hold it: on one line and at most 100 characters long."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
