"""The chunked gated delta rule as it is here against its published form differentiated by torch, and against a sum.

    python benchmarks/delta_rule.py --out docs/benchmarks/delta-rule.json

- "published": Yang and others (2024), equations 10 and 11: the keys' part of the triangular systems is solved before
  the loop over chunks, and autograd records everything. fp32.
- "ours": `yeoul.ops.delta_rule`, fp32; "ours, bf16": the same under bfloat16 autocast (fp32 where the processor has no
  bfloat16 products).
- "sum": `yeoul.linear_attention` with as many features, which has no system to solve. fp32.

All forms and shapes are timed in turns in one process: the median, and quartiles as spread; ratios are against "ours"
of the same turn's shape. "kept" are the bytes that a forward pass keeps for its backward pass. On a machine that does
other work: `--threads 1 --clock cpu`, which counts the process's own time alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from yeoul import linear_attention, runtime
from yeoul.ops.delta_rule import delta_rule

PASSES = ("forward", "forward+backward")
OURS = "ours"


def published(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, chunk_size: int) -> Tensor:
    """Arguments and result are those of `delta_rule`, with as many key-value heads as heads and whole chunks."""
    q, k, v = (x.unflatten(2, (-1, chunk_size)) for x in (q, k, v))  # (B, H, N, C, .)
    beta = beta.unflatten(2, (-1, chunk_size))[..., None]
    sums = log_decay.double().unflatten(2, (-1, chunk_size)).cumsum(-1)
    later = torch.ones(chunk_size, chunk_size, dtype=torch.bool).triu(1)
    inside = (sums[..., :, None] - sums[..., None, :]).float().masked_fill(later, -torch.inf).exp()
    read, write = sums.float().exp()[..., None], (sums[..., -1:] - sums).float().exp()[..., None]
    system = (beta * inside * (k @ k.mT)).tril(-1)
    right = torch.cat((beta * v, beta * read * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    values, erased = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    scores, queries, written = (q @ k.mT) * inside, q * read, (k * write).mT
    state, outputs = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]), []
    # Unbound once: the gradient of an index is as large as what is indexed, which made 64 chunks quadratic.
    chunks = (x.unbind(2) for x in (values, erased, scores, queries, written, read[..., -1:, :]))
    for value, erase, score, query, write_n, keep in zip(*chunks, strict=True):
        u = value - erase @ state
        outputs.append(score @ u + query @ state)
        state = keep * state + write_n @ u
    return torch.cat(outputs, dim=2)


def forms(chunk_size: int) -> dict[str, Callable[..., Tensor]]:
    """What is compared, by name."""

    def narrow(*given: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return delta_rule(*given, chunk_size=chunk_size)

    return {
        "published": lambda *given: published(*given, chunk_size),
        OURS: lambda *given: delta_rule(*given, chunk_size=chunk_size),
        f"{OURS}, bf16": narrow,
        "sum": lambda q, k, v, beta, log_decay: linear_attention(
            q, k, v, log_decay, chunk_size=chunk_size, normalize=False
        ),
    }


def inputs(batch: int, heads: int, positions: int, features: int, head_size: int) -> list[Tensor]:
    """q, k, v, beta, log_decay as in a converted layer: features of length 1, gentle writes, next to no decay."""
    shape = (batch, heads, positions)
    q, k = (F.normalize(torch.randn(*shape, features), dim=-1) for _ in range(2))
    given = [q, k, torch.randn(*shape, head_size), 0.6 * torch.rand(shape), -1e-3 * torch.rand(shape)]
    return [x.requires_grad_() for x in given]


def make_call(run: Callable[..., Tensor], given: list[Tensor], which: str) -> Callable[[], Tensor]:
    """One pass of a form over inputs that require gradients."""
    grad = which != "forward"

    def call() -> Tensor:
        with torch.set_grad_enabled(grad):
            out = run(*given)
        if grad:
            torch.autograd.grad(out, given, torch.ones_like(out), allow_unused=True)  # "sum" has no beta
        return out.detach()

    return call


def kept_bytes(run: Callable[..., Tensor], given: list[Tensor]) -> int:
    """Bytes of all different memory that one forward pass keeps for the backward pass, inputs included."""
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        out = run(*given)
    del out
    return sum(found.values())


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each shape, form and pass."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    chosen = {name: run for name, run in forms(options.chunk_size).items() if name in options.forms}
    calls: dict[tuple[int, int, str, str], Callable[[], Tensor]] = {}
    kept: dict[tuple[int, int, str], int] = {}
    for batch, positions in options.shapes:
        given = inputs(batch, options.heads, positions, options.features, options.head_size)
        for name, run in chosen.items():
            kept[batch, positions, name] = kept_bytes(run, given)
            for which in PASSES:
                calls[batch, positions, name, which] = make_call(run, given, which)
    seconds: dict[tuple[int, int, str, str], list[float]] = {key: [] for key in calls}
    for turn in range(options.turns + 1):  # the first one warms up
        for key, call in calls.items():
            start = clock()
            call()
            if turn:
                seconds[key].append(clock() - start)
    records = []
    for (batch, positions, name, which), times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        own = seconds.get((batch, positions, OURS, which))
        ratio = None if own is None else statistics.median(a / b for a, b in zip(times, own, strict=True))
        records.append({
            "batch": batch, "positions": positions, "form": name, "pass": which, "seconds": median,
            "seconds_quartiles": [low, high], "over_ours": ratio, "kept_bytes": kept[batch, positions, name],
        })  # fmt: skip
    return records


def table(records: list[dict[str, Any]]) -> str:
    """The records as text."""
    lines = [
        f"{'batch':>5} {'positions':>9}  {'form':<12} {'pass':<17} {'ms':>9} {'[quartiles]':<18} {'over ours':>9}"
        f" {'kept':>9}"
    ]
    for r in records:
        low, high = r["seconds_quartiles"]
        ratio = "" if r["over_ours"] is None else f"{r['over_ours']:.2f}"
        spread = f"[{low * 1e3:.1f}, {high * 1e3:.1f}]"
        lines.append(
            f"{r['batch']:>5} {r['positions']:>9,}  {r['form']:<12} {r['pass']:<17} {r['seconds'] * 1e3:>9.1f} "
            f"{spread:<18} {ratio:>9} {r['kept_bytes'] / 2**20:>5.0f} MiB"
        )
    return "\n".join(lines)


def shape(text: str) -> tuple[int, int]:
    """4x1024 -> (4, 1024)."""
    batch, _, positions = text.partition("x")
    return int(batch), int(positions)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=shape, nargs="+", default=[(1, 1024), (4, 1024), (1, 4096)],
                        help="BATCHxPOSITIONS, positions in multiples of the chunk size")  # fmt: skip
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--head-size", type=int, default=65, help="channels of a value, that of ones included")
    parser.add_argument("--chunk-size", type=int, default=64)
    parser.add_argument("--forms", nargs="+", choices=list(forms(64)), default=list(forms(64)))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: the process's own time")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args(arguments)
    if any(t % options.chunk_size for _, t in options.shapes):
        parser.error(f"positions must be multiples of the chunk size, {options.chunk_size}")
    return options


def main() -> None:
    """See the module."""
    options = parse()
    threads = runtime.set_threads(options.threads)
    torch.manual_seed(0)
    sizes = f"{options.heads} heads, {options.features} features, values of {options.head_size}"
    print(f"{runtime.cpu_name()}, {threads} thread(s), torch {torch.__version__}, {options.clock} time, {sizes}")
    records = measure(options)
    print(table(records))
    if options.out is not None:
        values = {
            "command": " ".join(["python", *sys.argv]), "machine": runtime.machine(), "threads": threads,
            "native_bf16": runtime.has_native_bf16(torch.device("cpu")), "clock": options.clock,
            "heads": options.heads, "features": options.features, "head_size": options.head_size,
            "chunk_size": options.chunk_size, "turns": options.turns, "records": records,
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
