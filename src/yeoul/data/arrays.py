"""NumPy's .npy files, damaged ones among them."""

from __future__ import annotations

import tokenize
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from yeoul.errors import UserError

_HEADER_ERRORS = (
    OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, TypeError, OverflowError, MemoryError,
    RecursionError,
)  # fmt: skip
"""What numpy raises for one damage or another."""


def open_npy(path: Path, fix: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of a .npy file as a map of the file, which has to be as long as its header says.

    Args:
        path: the file; archives (.npz) and arrays of objects are refused.
        fix: what to do about a damaged one.

    Raises:
        UserError: it is not there or damaged.
    """
    if not path.is_file():
        raise UserError("no such file", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of headers as Python 2 wrote them
            return np.lib.format.open_memmap(path, mode="r")
    except (*_HEADER_ERRORS, UserWarning) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(f"the .npy file is damaged: {reason}", path, fix) from None
