"""The native library: whether it is there, and its functions."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p

from yeoul import runtime

BUFFERS, NUMBERS, FACTORS = 18, 16, 4
"""Fields of an operation."""
KINDS = (
    "EMBED", "NORM", "LINEAR", "GLU", "ROPE", "CONV", "PUSH", "ATTEND", "MERGE", "HEADS", "FEATURES", "CODE", "GATE",
    "STATE", "DELTA", "JOIN", "CAP",
)  # fmt: skip
"""In the order of csrc/step.cpp, where it is said what each reads and writes."""
IN_STEP, ONE_TEXT, APART = range(3)
"""How the tokens of a run belong together (`enum Order` of csrc/step.cpp): one of each row, all with the same places;
several of one text; one of each row with places of its own."""
ERROR_BYTES = 512


class Buffer(ctypes.Structure):
    """Where numbers lie, and how many bytes there are."""

    _fields_ = [("data", c_void_p), ("bytes", c_int64)]


class Operation(ctypes.Structure):
    """`struct Op` of csrc/step.cpp."""

    _fields_ = [
        ("kind", c_int32), ("flags", c_int32), ("b", c_int32 * BUFFERS), ("n", c_int64 * NUMBERS),
        ("f", c_double * FACTORS),
    ]  # fmt: skip


class NativeError(RuntimeError):
    """The library refused what it was given."""


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The library; None where it was not built, is not of this version, or is switched off (YEOUL_NATIVE=0)."""
    return None if why_not() else _load()


@functools.cache
def why_not() -> str | None:
    """Why there is no library, as the end of a sentence; None where there is one."""
    if not runtime.native_allowed():
        return "it is switched off (YEOUL_NATIVE=0)"
    try:
        found = _load()
    except OSError as error:
        return f"it cannot be loaded ({error})"
    if found is None:
        return "it was not built: install a C++ compiler (Debian, Ubuntu: apt install g++), then Yeoul again"
    if found.yeoul_abi() != 2_000_000 + ctypes.sizeof(Operation) * 1000 + len(KINDS):
        return "it is of another version of Yeoul: install Yeoul again"
    return None


def location() -> str | None:
    """Where the library lies; None where it was not built."""
    spec = importlib.util.find_spec("yeoul.infer.native._step")
    return None if spec is None else spec.origin


@functools.cache
def _load() -> ctypes.CDLL | None:
    path = location()
    if path is None:
        return None
    found = ctypes.CDLL(path)
    number, error = c_int64, (c_char_p, c_int64)
    found.yeoul_abi.restype, found.yeoul_abi.argtypes = number, ()
    found.yeoul_instruction_sets.restype, found.yeoul_instruction_sets.argtypes = None, error
    found.yeoul_load.restype = c_void_p
    found.yeoul_load.argtypes = (
        c_char_p, number, number, POINTER(Buffer), number, POINTER(c_int64), number, number, POINTER(Operation), number,
        number, *error,
    )  # fmt: skip
    found.yeoul_free.restype, found.yeoul_free.argtypes = None, (c_void_p,)
    found.yeoul_bind.restype = c_int
    found.yeoul_bind.argtypes = (c_void_p, number, POINTER(Buffer), number, POINTER(c_int64), number, *error)
    found.yeoul_run.restype = c_int
    found.yeoul_run.argtypes = (
        c_void_p, number, number, c_void_p, c_void_p, c_void_p, number, POINTER(c_float), number, *error
    )  # fmt: skip
    return found


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """What this processor has of the instruction sets that the library knows, best first; () without a library."""
    found = native_library()
    if found is None:
        return ()
    names = ctypes.create_string_buffer(ERROR_BYTES)
    found.yeoul_instruction_sets(names, ERROR_BYTES)
    return tuple(names.value.decode().split(","))
