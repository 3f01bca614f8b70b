"""Run by `test_native` with a library that is built with sanitizers: every operation, and damaged programs.

    LD_PRELOAD=libasan.so python native_sanitized.py LIBRARY

What reads or writes where it must not ends the process.
"""

from __future__ import annotations

import ctypes
import random
import sys

import torch

from models import VOCAB, make
from yeoul.infer.native import binding
from yeoul.infer.native.binding import NativeError, Operation
from yeoul.infer.native.decoder import NativeDecoder
from yeoul.infer.rows import Rows

LIMITS = (-(2**63), -2, -1, 0, 1, 2, 3, 7, 63, 2**20, 2**31, 2**33, 2**62, 2**63 - 1)
SMALL = ("gemma-like", "hybrid-convolution", "exact-codebook", "exact-delta", "separate", "gated-hybrid", "classic")
DAMAGES = 150


def run(native: NativeDecoder, rows: int, steps: int) -> None:
    """Some tokens of a new text, past the end of every window."""
    cache = native.model.new_cache(rows)
    ids = torch.randint(VOCAB, (rows, 9))
    with torch.inference_mode():
        native.model(ids, cache=cache)
        for _ in range(steps):
            assert native.takes(cache, rows)
            logits = native.step(torch.randint(VOCAB, (rows,)), cache)
            assert bool(torch.isfinite(logits).all())


def come_and_go(kind: str) -> None:
    """Rows of any length, with places of their own."""
    rows = Rows(make(kind).eval(), 3)
    with torch.inference_mode():
        for turn in range(12):
            if rows.count < 3:
                text = rows.model.new_cache(1)
                rows.model(torch.randint(VOCAB, (1, 9 + 7 * turn)), cache=text)
                rows.join(text)
            for _ in range(4):
                assert bool(torch.isfinite(rows.step(torch.randint(VOCAB, (rows.count,)))).all())
            if turn % 2:
                rows.leave(0)
    assert rows.native


def damage(operations: ctypes.Array[Operation], chance: random.Random) -> None:
    """One number of one operation becomes another."""
    operation = operations[chance.randrange(len(operations))]
    value = chance.choice(LIMITS)
    match chance.randrange(4):
        case 0:
            operation.n[chance.randrange(len(operation.n))] = value
        case 1:
            operation.n[chance.randrange(4)] += chance.choice((-1, 1))
        case 2:
            operation.b[chance.randrange(len(operation.b))] = chance.choice((-1, 0, 1, 5, 40, 2**31 - 1))
        case _:
            operation.kind = chance.randrange(-1, len(binding.KINDS) + 1)


def main() -> None:
    binding.location = lambda: sys.argv[1]  # type: ignore[assignment]
    torch.manual_seed(0)
    assert binding.native_library() is not None, binding.why_not()
    for isa in binding.instruction_sets():
        for kind in SMALL:
            run(NativeDecoder(make(kind).eval(), 3, threads=2, isa=isa), 3, 30)
    for kind in SMALL:
        come_and_go(kind)
    found, chance, refused = binding.native_library(), random.Random(0), 0
    whole = found.yeoul_load

    def damaged(*arguments: object) -> object:
        damage(arguments[8], chance)  # type: ignore[arg-type]
        return whole(*arguments)

    found.yeoul_load = damaged
    for number in range(DAMAGES):
        model = make(SMALL[number % len(SMALL)]).eval()
        try:
            native = NativeDecoder(model, 2, threads=1)
            run(native, 2, 3)
        except NativeError:
            refused += 1
        except AssertionError:  # what is computed need not be right
            pass
    print(f"{refused} of {DAMAGES} damaged programs were refused")
    assert refused > DAMAGES // 4


if __name__ == "__main__":
    main()
