"""Chunked linear attention against torch's causal softmax attention: time and peak memory as T grows.

    python benchmarks/linear_attention.py --out docs/benchmarks/linear_attention.json

All methods and lengths are timed in turns in one process (median, and quartiles as spread). Peak memory is what
the resident set of a fresh process grew by during one call, its inputs being there before. The last lines are
ratios, of the longest to the shortest length and of the two methods. Random inputs: speed does not depend on them.
On a machine that does other work, `--threads 1`: two threads wait for each other.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from yeoul import runtime
from yeoul.ops.linear_attention import linear_attention

METHODS = ("chunked", "softmax")
PASSES = ("forward", "forward+backward")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=None, help="default: as many as heads")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--chunk-size", type=int, default=64)
    parser.add_argument("--decay", choices=("none", "head", "position"), default="none")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-softmax", action="store_true", help="only linear attention")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    parser.add_argument("--peak-of", nargs=3, default=None, help=argparse.SUPPRESS)  # how it calls itself
    options = parser.parse_args(arguments)
    options.kv_heads = options.kv_heads or options.heads
    return options


def make_call(options: argparse.Namespace, method: str, which: str, t: int) -> Callable[[], Tensor]:
    """One pass of a method at t positions, over inputs made here."""
    grad = which == "forward+backward"
    width = options.features if method == "chunked" else options.head_size
    dtype = getattr(torch, options.dtype)
    q = torch.rand(options.batch, options.heads, t, width, dtype=dtype).requires_grad_(grad)
    k = torch.rand(options.batch, options.kv_heads, t, width, dtype=dtype).requires_grad_(grad)
    v = torch.rand(options.batch, options.kv_heads, t, options.head_size, dtype=dtype).requires_grad_(grad)
    shape = {"none": None, "head": (options.kv_heads,), "position": (options.batch, options.kv_heads, t)}
    size = shape[options.decay]
    decay = None if size is None else (-0.05 * torch.rand(size)).requires_grad_(grad)
    d_out = torch.rand(options.batch, options.heads, t, options.head_size, dtype=dtype)

    def call() -> Tensor:
        if method == "chunked":
            out = linear_attention(q, k, v, decay, chunk_size=options.chunk_size)
        else:
            shared = options.kv_heads != options.heads
            out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        if grad:
            for x in (q, k, v, decay):
                if x is not None:
                    x.grad = None
            out.backward(d_out)
        return out

    return call


def measure_peak(options: argparse.Namespace, method: str, which: str, t: int) -> int:
    """Bytes by which the resident set grows at most during one call, in this process."""
    make_call(options, method, which, 2 * options.chunk_size)()  # what libraries load once
    call = make_call(options, method, which, t)
    before = psutil.Process().memory_info().rss
    out = call()
    peak = _peak_resident()
    del out
    return max(0, peak - before)


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_in_fresh_process(arguments: list[str], method: str, which: str, t: int) -> int:
    command = [sys.executable, __file__, *arguments, "--peak-of", method, which, str(t)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace, arguments: list[str]) -> list[dict[str, Any]]:
    """One record for each method, pass and length. A turn runs all of them, so that ratios are of the same time."""
    methods = METHODS[:1] if options.no_softmax else METHODS
    keys = [(m, w, t) for t in options.positions for m in methods for w in PASSES]
    calls = {key: make_call(options, *key) for key in keys}
    seconds: dict[tuple[str, str, int], list[float]] = {key: [] for key in keys}
    for turn in range(options.turns + 1):  # the first one warms up
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[key].append(time.perf_counter() - start)
    calls.clear()
    records = []
    for (method, which, t), times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        peak = peak_in_fresh_process(arguments, method, which, t)
        records.append(
            {
                "method": method,
                "pass": which,
                "positions": t,
                "seconds": median,
                "seconds_quartiles": [low, high],
                "peak_bytes": peak,
            }
        )
        print(
            f"{method:8} {which:17} {t:6} positions  {median * 1e3:10.1f} ms "
            f"[{low * 1e3:.1f}, {high * 1e3:.1f}]  peak {peak / 2**20:8.1f} MiB",
            flush=True,
        )
    return records


def ratios(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Longest over shortest of each method, and softmax over chunked at each length."""
    by_key = {(r["method"], r["pass"], r["positions"]): r for r in records}
    lengths = sorted({r["positions"] for r in records})
    rows: list[dict[str, Any]] = []

    def add(name: str, over: tuple[str, str, int], under: tuple[str, str, int], size: str) -> None:
        if over in by_key and under in by_key and over != under and by_key[under][size]:
            rows.append({"ratio": name, "value": by_key[over][size] / by_key[under][size]})

    for which in PASSES:
        for what, size in (("time", "seconds"), ("memory", "peak_bytes")):
            for method in METHODS:
                first, last = (method, which, lengths[0]), (method, which, lengths[-1])
                add(f"{method} {which} {what}, {lengths[-1]} / {lengths[0]}", last, first, size)
            for t in lengths:
                name = f"softmax / chunked {which} {what} at {t}"
                add(name, ("softmax", which, t), ("chunked", which, t), size)
    return rows


def main() -> None:
    arguments = sys.argv[1:]
    options = parse(arguments)
    threads = runtime.set_threads(options.threads)
    torch.manual_seed(0)
    if options.peak_of is not None:
        method, which, t = options.peak_of
        print(measure_peak(options, method, which, int(t)))
        return
    shape = f"batch {options.batch}, {options.heads} heads of {options.head_size}, {options.features} features"
    print(f"{runtime.cpu_name()}, {threads} thread(s), torch {torch.__version__}, float32, {shape}")
    records = measure(options, arguments)
    summary = ratios(records)
    for row in summary:
        print(f"{row['ratio']:55} {row['value']:.2f}")
    if options.out is not None:
        values = {
            "command": " ".join(["python", *sys.argv]),
            "cpu": runtime.cpu_name(),
            "threads": threads,
            "torch": torch.__version__,
            "shape": shape,
            "decay": options.decay,
            "chunk_size": options.chunk_size,
            "turns": options.turns,
            "records": records,
            "ratios": summary,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
