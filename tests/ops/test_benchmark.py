"""The benchmark of linear attention at toy sizes, in this process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def test_the_benchmark_measures_and_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "linear_attention.py"
    spec = importlib.util.spec_from_file_location("benchmark_linear_attention", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    arguments = ["--positions", "32", "64", "--turns", "2", "--heads", "4", "--kv-heads", "2", "--decay", "head"]
    options = benchmark.parse(arguments)
    assert benchmark.measure_peak(options, "chunked", "forward+backward", 64) >= 0
    monkeypatch.setattr(benchmark, "peak_in_fresh_process", lambda arguments, method, which, t: t * 1024)
    records = benchmark.measure(options, arguments)
    assert len(records) == 8 and all(r["seconds"] > 0 for r in records)
    rows = {row["ratio"]: row["value"] for row in benchmark.ratios(records)}
    assert rows["chunked forward memory, 64 / 32"] == 2.0
    assert rows["softmax / chunked forward memory at 64"] == 1.0
