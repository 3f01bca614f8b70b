"""A program for the native library: buffers, operations on them, and memory that is bound later."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor

from yeoul.infer.native.binding import ERROR_BYTES, IN_STEP, KINDS, Buffer, NativeError, Operation, native_library

ADD, NO_WAIT, LAYERNORM, NO_INPUT_NORM, IN_ORDER = 1, 2, 4, 8, 16
"""Flags of operations: add to what is in the output; the next operation does not read what this one writes; with a
mean; without the term in |x|^2; tokens of one text are taken one after the other."""
FP32, BF16, INT8, INT4 = range(4)
"""Types of weights and of memory."""
TYPES = {torch.float32: FP32, torch.bfloat16: BF16}

_ACTIVATION, _MEMORY = 1 << 20, 1 << 24
PLACES = 8
"""Numbers of each layer that change with every token."""
PLACES_AT = 9
"""Which of an operation's numbers says where those of its layer begin."""


class Unsupported(Exception):
    """The library does not do this."""


class Builder:
    """Collects what `Program` is made of. Buffers are numbers: constants, activations (fp32), memory."""

    def __init__(self) -> None:
        self.constants: list[Tensor] = []
        self.activations: list[int] = []
        self.memory = 0
        self.in_order = False  # whether what is added depends on what a token before has left
        self.operations: list[tuple[str, int, dict[int, int], dict[int, int], dict[int, float]]] = []

    def constant(self, tensor: Tensor | None, dtype: torch.dtype | None = torch.float32) -> int:
        """A tensor that does not change while the program lives; None as its type is. -1 for no tensor."""
        if tensor is None:
            return -1
        self.constants.append(tensor.detach().to(dtype or tensor.dtype).contiguous())
        return len(self.constants) - 1

    def activation(self, numbers: int) -> int:
        """So many numbers of each row."""
        self.activations.append(numbers)
        return _ACTIVATION + len(self.activations) - 1

    def slot(self) -> int:
        """A tensor of the cache."""
        self.memory += 1
        return _MEMORY + self.memory - 1

    def add(
        self,
        kind: str,
        buffers: Sequence[int] | dict[int, int],
        numbers: Sequence[int],
        factors: Sequence[float] = (),
        *,
        flags: int = 0,
        places: int = 0,
    ) -> int:
        """An operation of a layer whose changing numbers begin at `places`; returns its number."""
        own = dict(buffers) if isinstance(buffers, dict) else dict(enumerate(buffers))
        sizes = dict(enumerate(numbers)) | {PLACES_AT: places}
        flags |= IN_ORDER if self.in_order else 0
        self.operations.append((kind, flags, own, sizes, dict(enumerate(factors))))
        return len(self.operations) - 1

    def number(self, buffer: int) -> int:
        """The number of a buffer among all of them."""
        if buffer >= _MEMORY:
            return len(self.constants) + len(self.activations) + buffer - _MEMORY
        return len(self.constants) + buffer - _ACTIVATION if buffer >= _ACTIVATION else buffer


class Program:
    """What a `Builder` has collected, in the library.

    Args:
        builder: of it.
        result: the activation that is given out.
        width: how many of its numbers.
        layers: how many sets of changing numbers there are.
        max_rows: rows at most.
        threads: that run it.
        isa: instruction set.

    Raises:
        NativeError: something does not fit.
    """

    def __init__(
        self, builder: Builder, result: int, width: int, *, layers: int, max_rows: int, threads: int, isa: str
    ) -> None:
        found = native_library()
        assert found is not None
        self._library, self._constants = found, builder.constants
        self._error = ctypes.create_string_buffer(ERROR_BYTES)
        self.max_rows, self.width, self._memory = max_rows, width, builder.memory
        operations = (Operation * len(builder.operations))()
        for into, (kind, flags, buffers, numbers, factors) in zip(operations, builder.operations, strict=True):
            into.kind, into.flags = KINDS.index(kind), flags
            into.b[:] = [-1] * len(into.b)
            for i, buffer in buffers.items():
                into.b[i] = builder.number(buffer)
            for i, number in numbers.items():
                into.n[i] = number
            for i, factor in factors.items():
                into.f[i] = factor
        self.places = torch.zeros(max_rows, layers + 1, PLACES, dtype=torch.int64).numpy()  # of each token
        self._places = ctypes.c_void_p(self.places.ctypes.data)
        acts = (c_int64 * len(builder.activations))(*builder.activations)
        handle = found.yeoul_load(
            isa.encode(), threads, max_rows, _buffers(builder.constants), len(builder.constants), acts,
            len(builder.activations), builder.memory, operations, len(operations), self.places[0].size, self._error,
            ERROR_BYTES,
        )  # fmt: skip
        if not handle:
            raise NativeError(self._error.value.decode())
        self._handle = ctypes.c_void_p(handle)
        self._result = builder.number(result)
        self._bound: list[Tensor] = []
        weakref.finalize(self, found.yeoul_free, self._handle)

    def bind(self, rows: int, memory: list[Tensor], sizes: Sequence[tuple[int, int, int]]) -> None:
        """Says where the cache lies, and the sizes (operation, number, value) that go with it.

        Raises:
            NativeError: a tensor is too small.
        """
        flat = [number for size in sizes for number in size]
        failed = self._library.yeoul_bind(
            self._handle, rows, _buffers(memory), len(memory), (c_int64 * len(flat))(*flat), len(sizes), self._error,
            ERROR_BYTES,
        )  # fmt: skip
        if failed:
            raise NativeError(self._error.value.decode())
        self._bound = memory  # as long as the library may write there

    def run(self, tokens: Tensor, positions: Tensor, out: Tensor, *, order: int = IN_STEP) -> None:
        """One token of each row, by the first of `places`; or several, each by its own.

        Args:
            tokens: (B,) int64.
            positions: (B,) int64.
            out: (B, width) fp32, gets the result.
            order: how the tokens belong together, see `yeoul.infer.native.binding`.

        Raises:
            NativeError: an id, a position or a place is out of range.
        """
        failed = self._library.yeoul_run(
            self._handle, len(tokens), order, tokens.data_ptr(), positions.data_ptr(), self._places, self._result,
            ctypes.cast(out.data_ptr(), ctypes.POINTER(ctypes.c_float)), self.width, self._error, ERROR_BYTES,
        )  # fmt: skip
        if failed:
            raise NativeError(self._error.value.decode())


def _buffers(tensors: Sequence[Tensor]) -> Any:
    """(data, bytes) of tensors that lie one number behind the other."""
    found = (Buffer * max(1, len(tensors)))()
    for into, tensor in zip(found, tensors, strict=False):
        assert tensor.is_contiguous() and tensor.device.type == "cpu"
        into.data, into.bytes = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    return found
