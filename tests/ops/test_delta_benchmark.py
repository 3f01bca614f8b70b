"""The benchmark of the delta rule at toy sizes, in this process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from ops.definition import difference


def test_the_benchmark_compares_what_is_the_same() -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "delta_rule.py"
    spec = importlib.util.spec_from_file_location("benchmark_delta_rule", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    torch.manual_seed(0)
    forms, given = benchmark.forms(16), benchmark.inputs(1, 2, 64, 24, 5)
    assert difference(forms["published"](*given), forms["ours"](*given)) <= 1e-5
    assert difference(forms["ours, bf16"](*given), forms["ours"](*given)) <= 2e-2
    options = benchmark.parse(
        "--shapes 1x64 2x64 --heads 2 --features 24 --head-size 5 --chunk-size 16 --turns 2".split()
    )
    records = benchmark.measure(options)
    assert len(records) == 2 * 4 * 2 and all(r["seconds"] > 0 and r["kept_bytes"] > 0 for r in records)
    ours = [r for r in records if r["form"] == "ours"]
    assert all(r["over_ours"] == 1 for r in ours)
    kept = {r["form"]: r["kept_bytes"] for r in records if r["batch"] == 2}
    assert kept["ours"] < kept["published"]
    assert len(benchmark.table(records).split("\n")) == 1 + len(records)
