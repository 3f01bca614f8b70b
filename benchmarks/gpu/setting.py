"""Where and how a run measures: device, sizes, clocks, and the two peaks that shares are of."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.gpu.report import Report, Row
from torch import Tensor

from yeoul import runtime
from yeoul.model.config import ModelConfig, preset
from yeoul.ops import triton_chunked

FLUSH = 256 * 2**20
"""Bytes that are written before each measured call, so that it does not find its inputs in the cache (as do_bench)."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a call: median, and the 5th and 95th percentile of so many."""

    median: float
    low: float
    high: float
    count: int

    def row(self) -> Row:
        """As values of a row."""
        return {"seconds": self.median, "seconds_5_95": [self.low, self.high], "count": self.count}


@dataclass(kw_only=True)
class Setting:
    """What all stages share.

    Attributes:
        tiny: toy sizes.
        device: of everything.
        dtype: of weights and inputs.
        end, deadline: of the run and of the stage that is running, on the monotonic clock.
        product, copy: floating-point operations a second of a large product, and bytes read and written a second of a
            large copy, measured by `peaks`.
        run_folder: of the pretraining, which the linearization goes on from.
        train_tokens: that it was trained on.
    """

    tiny: bool
    device: torch.device
    dtype: torch.dtype
    end: float
    train_minutes: float
    deadline: float = 0.0
    product: float | None = None
    copy: float | None = None
    run_folder: Any = None
    train_tokens: int = 0

    @classmethod
    def of(cls, tiny: bool, *, end: float, train_minutes: float) -> Setting:
        """On the GPU; on the CPU where a toy run finds none."""
        gpu = torch.cuda.is_available()
        if tiny:
            torch.compiler.set_stance("force_eager")  # a compilation takes minutes, however small the model
        return cls(
            tiny=tiny, device=torch.device("cuda" if gpu else "cpu"), dtype=torch.bfloat16 if gpu else torch.float32,
            end=end, train_minutes=train_minutes,
        )  # fmt: skip

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """Our Triton kernels take tensors of a CPU too, in Triton's interpreter, where a toy run has no GPU."""
        before = triton_chunked.DEVICES
        triton_chunked.DEVICES = before if self.on_gpu else ("cuda", "cpu")
        triton_chunked.why_not.cache_clear()
        try:
            yield
        finally:
            triton_chunked.DEVICES = before
            triton_chunked.why_not.cache_clear()

    @property
    def on_gpu(self) -> bool:
        """Whether anything is measured on a GPU at all."""
        return self.device.type == "cuda"

    def shape(self, name: str, **changes: Any) -> ModelConfig:
        """A model by size: "160m" is 159 million parameters, "1b" 1.0 and "7b" 7.2 billion; toys where all is."""
        sizes: dict[str, dict[str, Any]] = {
            "160m": dict(preset="350m", num_layers=12, vocab_size=8000),
            "1b": dict(preset="1b", vocab_size=32_000),
            "7b": dict(
                preset="1b", hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, intermediate_size=14_336,
                vocab_size=32_000, tie_embeddings=False,
            ),
        }  # fmt: skip
        chosen = dict(preset="1m", num_layers=1, num_kv_heads=2, vocab_size=2048) if self.tiny else sizes[name]
        return preset(chosen.pop("preset"), **(chosen | changes))

    def head(self) -> Row:
        """What the figures are measured on."""
        head: Row = {"device": "cpu", "driver": None, "memory": None}
        if self.on_gpu:
            told = subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            properties = torch.cuda.get_device_properties(self.device)
            head = {
                "device": properties.name, "driver": told.stdout.strip() or None, "memory": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
            }  # fmt: skip
        known = {name: _version(name) for name in ("triton", "transformers", "flash-linear-attention", "fla-core")}
        return {
            **head, "torch": torch.__version__, "cuda": torch.version.cuda, **known,
            "python": platform.python_version(), "dtype": str(self.dtype), "tiny": self.tiny,
            "machine": runtime.machine(),
        }  # fmt: skip

    def run(self, stage: str, book: Report) -> None:
        """Runs a stage."""
        book.begin(stage)
        if self.product is None and stage != "tests":
            self.peaks(book)
        importlib.import_module(f"benchmarks.gpu.{stage}").run(self, book)
        if self.on_gpu:
            torch.cuda.empty_cache()

    def peaks(self, book: Report) -> None:
        """Measures the two peaks: after half a second of products, so that clocks are up."""
        side, numbers = (8192, 2**30 // 2) if self.on_gpu else (128, 2**18)
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        for until in (0.5,) if self.on_gpu else ():
            start = time.perf_counter()
            while time.perf_counter() - start < until:
                a @ b
                torch.cuda.synchronize()
        product = self.time(lambda: a @ b, flush=False)
        source = torch.randn(numbers, device=self.device).to(self.dtype)
        target = torch.empty_like(source)
        copy = self.time(lambda: target.copy_(source), flush=False)
        self.product, self.copy = 2 * side**3 / product.median, 2 * source.nbytes / copy.median
        book.values["peaks"] = {
            "product_side": side, "product_flops": self.product, "product": product.row(),
            "copy_bytes": source.nbytes, "copy_bytes_per_second": self.copy, "copy": copy.row(),
        }  # fmt: skip
        print(f"   product {self.product / 1e12:,.4g} TFLOP/s, copy {self.copy / 1e9:,.4g} GB/s", flush=True)

    def shares(self, seconds: float, *, flops: float | None = None, moved: float | None = None) -> Row:
        """Rates of a call that takes so long, and what share of the peaks they are."""
        row: Row = {}
        if flops is not None:
            row |= {"flops": flops, "tflops": flops / seconds / 1e12}
            row["share_of_product"] = None if self.product is None else flops / seconds / self.product
        if moved is not None:
            row |= {"bytes": moved, "gbytes": moved / seconds / 1e9}
            row["share_of_copy"] = None if self.copy is None else moved / seconds / self.copy
        return row

    def time(self, call: Callable[[], Any], *, seconds: float | None = None, flush: bool = True) -> Times:
        """Times a call: after warming up, as often as fits into some seconds, 5 to 500 times.

        Args:
            call: what is timed.
            seconds: 0.15 by default.
            flush: write over the cache before each call.
        """
        seconds = (0.0 if self.tiny else 0.15) if seconds is None else seconds
        call()
        once = self.once(call, None)
        for _ in range(0 if self.tiny else max(2, min(50, int(0.03 / once)))):
            call()
        erased = torch.empty(FLUSH, dtype=torch.int8, device=self.device) if flush and self.on_gpu else None
        count = 2 if self.tiny else max(5, min(500, int(seconds / once)))
        times = [self.once(call, erased) for _ in range(count)]
        return spread(times)

    def once(self, call: Callable[[], Any], erased: Tensor | None) -> float:
        """Seconds of one call, after which the device is waited for; `erased` is written to before it."""
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return max(time.perf_counter() - start, 1e-9)
        if erased is not None:
            erased.zero_()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return max(first.elapsed_time(last) / 1e3, 1e-9)

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """How far allocations rise during a call."""
        if not self.on_gpu:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> int:
        """Bytes that may be allocated."""
        if not self.on_gpu:
            return runtime.memory_available()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])


def spread(times: list[float]) -> Times:
    """Median and percentiles of times."""
    if len(times) == 1:
        return Times(median=times[0], low=times[0], high=times[0], count=1)
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    return Times(median=statistics.median(times), low=cuts[0], high=cuts[-1], count=len(times))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
