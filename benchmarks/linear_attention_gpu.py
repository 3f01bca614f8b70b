"""Linear attention on a CUDA GPU: the Triton kernels against the PyTorch form, softmax and flash-linear-attention.

    python benchmarks/linear_attention_gpu.py --out linear_attention_gpu.json

Every method is timed at every length with CUDA events (median and quartiles of `--turns`), after calls that warm
up; peak memory is what one call allocates beyond its inputs. "softmax" is torch's flash attention. The methods of
flash-linear-attention (`pip install flash-linear-attention`) are left out, with the reason, where it is missing.
They keep no denominator, except chunk_linear_attn; chunk_retention has decays of its own. All take the same random
inputs: speed does not depend on them. A decode step is one token after that many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from yeoul import runtime
from yeoul.ops import triton_chunked
from yeoul.ops.chunked import chunked
from yeoul.ops.inputs import LinearState, prepare
from yeoul.ops.linear_attention import recurrent_step

FLA = ("chunk_simple_gla", "chunk_linear_attn", "chunk_retention")
METHODS = ("triton", "pytorch", "softmax", *FLA)
PASSES = ("forward", "forward+backward", "decode step")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, nargs="+", default=[2048 << i for i in range(7)])
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=None, help="default: as many as heads")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--chunk-size", type=int, default=64)
    parser.add_argument("--decay", choices=("none", "head"), default="head")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args(arguments)
    options.kv_heads = options.kv_heads or options.heads
    return options


def make_call(
    options: argparse.Namespace, method: str, which: str, t: int, device: torch.device
) -> Callable[[], Tensor] | None:
    """One pass of a method over inputs made here; None where the method has no such pass.

    Raises:
        ImportError: flash-linear-attention is not installed.
    """
    b, h, g, d = options.batch, options.heads, options.kv_heads, options.head_size
    width = d if method == "softmax" else options.features
    place: dict[str, Any] = dict(device=device, dtype=runtime.requested_dtype(options.dtype))
    grad = which == "forward+backward"
    if which == "decode step" and method in ("pytorch", "chunk_linear_attn", "chunk_retention"):
        return None  # the step of "triton" and that of chunk_simple_gla
    queries = 1 if which == "decode step" else t
    keys = t if method == "softmax" else queries
    q = torch.rand(b, h, queries, width, **place)
    k, v = torch.rand(b, g, keys, width, **place), torch.randn(b, g, keys, d, **place)
    decay = None if options.decay == "none" else -0.05 * torch.rand(g, device=device)
    if method in FLA:  # (B, T, H, ...), and as many key-value heads as query heads
        k, v = k.repeat_interleave(h // g, dim=1), v.repeat_interleave(h // g, dim=1)
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        decay = None if decay is None else decay.repeat_interleave(h // g)
    leaves = [x.requires_grad_(grad) for x in (q, k, v)]
    forward = (
        _step(method, q, k, v, decay, options) if which == "decode step" else _whole(method, q, k, v, decay, options)
    )
    d_out = torch.randn(b, h, t, d, **place) if method not in FLA else torch.randn(b, t, h, d, **place)

    def call() -> Tensor:
        with torch.set_grad_enabled(grad):
            out = forward()
        if grad:
            for x in leaves:
                x.grad = None
            out.backward(d_out)
        return out

    return call


def _whole(
    method: str, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, options: argparse.Namespace
) -> Callable[[], Tensor]:
    if method == "softmax":
        shared = options.heads != options.kv_heads

        def softmax() -> Tensor:
            with _flash(q):
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)

        return softmax
    if method in FLA:
        function = getattr(_fla(), method)
        given = {"g_gamma": decay} if method == "chunk_simple_gla" else {}
        return lambda: function(q, k, v, scale=1.0, **given)[0]
    form = triton_chunked.chunked if method == "triton" else chunked

    def linear() -> Tensor:
        x = prepare(q, k, v, decay, None, None, None)
        return form(x, chunk_size=options.chunk_size, normalize=True, eps=1e-12)[0].flatten(1, 2).to(v.dtype)

    return linear


def _step(
    method: str, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, options: argparse.Namespace
) -> Callable[[], Tensor]:
    if method == "softmax":
        shared = options.heads != options.kv_heads

        def softmax() -> Tensor:
            with _flash(q):
                return scaled_dot_product_attention(q, k, v, enable_gqa=shared)

        return softmax
    if method in FLA:
        function = _fla().fused_recurrent_simple_gla
        s = torch.rand(q.shape[0], q.shape[2], q.shape[3], v.shape[3], device=q.device)
        return lambda: function(q, k, v, g_gamma=decay, scale=1.0, initial_state=s, output_final_state=True)[0]
    state = LinearState.zeros(*k.shape[:2], k.shape[3], v.shape[3], device=q.device)
    return lambda: recurrent_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], state, decay, inplace=True)[0]


def _flash(q: Tensor) -> Any:
    """Flash attention where it exists: for a short dtype on a GPU; elsewhere what torch has."""
    quick = q.is_cuda and q.dtype != torch.float32
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION] if quick else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _fla() -> argparse.Namespace:
    from fla.ops.linear_attn import chunk_linear_attn
    from fla.ops.retention import chunk_retention
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    return argparse.Namespace(
        chunk_linear_attn=chunk_linear_attn,
        chunk_retention=chunk_retention,
        chunk_simple_gla=chunk_simple_gla,
        fused_recurrent_simple_gla=fused_recurrent_simple_gla,
    )


def measure(options: argparse.Namespace, method: str, which: str, t: int) -> dict[str, Any]:
    """One record: seconds and peak bytes, or why there are none."""
    record: dict[str, Any] = {"method": method, "pass": which, "positions": t}
    try:
        call = make_call(options, method, which, t, torch.device("cuda"))
        if call is None:
            return record | {"skipped": "no pass of its own"}
        for _ in range(3):  # compiles and warms up
            call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        times = []
        for _ in range(options.turns):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    except ImportError as error:
        return record | {"skipped": f"flash-linear-attention is not installed ({error})"}
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return record | {"skipped": "out of memory"}
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return record | {"seconds": median, "seconds_quartiles": [low, high], "peak_bytes": peak}


def line(record: dict[str, Any]) -> str:
    """A record as a line of the table."""
    head = f"{record['method']:18} {record['pass']:17} {record['positions']:7}"
    if "skipped" in record:
        return f"{head}  skipped: {record['skipped']}"
    low, high = (1e3 * x for x in record["seconds_quartiles"])
    time = f"{1e3 * record['seconds']:10.3f} ms [{low:.3f}, {high:.3f}]"
    return f"{head}  {time}  peak {record['peak_bytes'] / 2**20:9.1f} MiB"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA GPU, and torch sees none.", file=sys.stderr)
        return 2
    if (reason := triton_chunked.why_not(torch.device("cuda", torch.cuda.current_device()))) is not None:
        print(f"The kernels cannot run: {reason}.", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    shape = (
        f"batch {options.batch}, {options.heads} heads of {options.head_size} ({options.kv_heads} of keys and values), "
        f"{options.features} features, decay {options.decay}, {options.dtype}"
    )
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {shape}")
    records = []
    for which in PASSES:
        for t in options.positions:
            for method in options.methods:
                records.append(measure(options, method, which, t))
                print(line(records[-1]), flush=True)
    if options.out is not None:
        values = {
            "command": " ".join(["python", *sys.argv]),
            "machine": runtime.machine(),
            "shape": shape,
            "chunk_size": options.chunk_size,
            "turns": options.turns,
            "records": records,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
