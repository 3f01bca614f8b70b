"""`make gpu` at toy sizes on a CPU, every stage of it, and what it does where something cannot run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.gpu import __main__ as main

    return main


@pytest.mark.slow
def test_every_stage_runs_at_toy_sizes(tmp_path: Path) -> None:
    """In a process of its own, as Triton decides when it is imported whether it interprets."""
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert list(found["stages"]) == ["tests", "kernels", "decode", "train", "linearize", "large"]
    assert found["torch"] == torch.__version__ and found["peaks"]["product_flops"] > 0
    for name, stage in found["stages"].items():
        assert stage["rows"] and stage["seconds"] > 0
        reasons = {row["skipped"] for row in stage["rows"] if "skipped" in row}
        assert reasons <= {"fla cannot be imported"}, (name, reasons)
        assert f"== {name}\n" in done.stdout
    rows = found["stages"]["kernels"]["rows"]
    assert {row["kind"] for row in rows if row["method"] == "yeoul"} == {"sum", "retention", "gated", "delta"}
    assert all(0 < row["seconds_5_95"][0] <= row["seconds"] for row in rows if "seconds" in row)
    decode = found["stages"]["decode"]["rows"]
    assert {row["method"] for row in decode} == {"graph", "eager", "transformers graph", "transformers compiled"}
    for row in decode:
        if row["method"] == "graph":
            assert row["graph"].startswith(f"{row['context']} keys" if row["kind"] == "softmax" else "one for all")
    constant = {row["cache_bytes"] for row in decode if (row["kind"], row["batch"]) == ("hybrid", 1) and "graph" in row}
    assert len(constant) == 1
    (trained,) = (row for row in found["stages"]["train"]["rows"] if row["method"] == "yeoul.pretrain")
    assert trained["share_of_product"] > 0
    assert found["stages"]["linearize"]["rows"][0]["tokens"] == trained["tokens"] // 16


def test_without_a_gpu_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "torch sees none; --tiny" in capsys.readouterr().err and not list(tmp_path.iterdir())


HEAD = {"device": "none", "driver": None, "torch": "2", "cuda": None, "triton": None}


def test_a_row_is_there_as_soon_as_it_is_measured_and_says_why_it_is_not(gpu: ModuleType, tmp_path: Path) -> None:
    from benchmarks.gpu.report import Report

    out, later = tmp_path / "a" / "gpu.json", time.monotonic() + 60
    book = Report(out, HEAD)
    book.begin("kernels")

    def fails(error: BaseException) -> Any:
        def call() -> Any:
            raise error

        return call

    book.measure("kernels", {"method": "good"}, later, lambda: {"seconds": 0.5})
    assert json.loads(out.read_text())["stages"]["kernels"]["rows"] == [{"method": "good", "seconds": 0.5}]
    book.measure("kernels", {"method": "full"}, later, fails(torch.OutOfMemoryError("much")))
    book.measure("kernels", {"method": "absent"}, later, fails(ImportError("no module", name="fla.ops")))
    book.measure("kernels", {"method": "broken"}, later, fails(RuntimeError("an\nerror")))
    book.measure("kernels", {"method": "late"}, time.monotonic() - 1, fails(AssertionError("called")))
    with pytest.raises(KeyboardInterrupt):
        book.measure("kernels", {"method": "stopped"}, later, fails(KeyboardInterrupt()))
    rows = json.loads(out.read_text())["stages"]["kernels"]["rows"]
    assert [row.get("skipped") for row in rows] == [
        None, "out of memory", "fla.ops cannot be imported", "RuntimeError: an", "no time left",
    ]  # fmt: skip
    again = Report(out, HEAD, append=True)
    again.begin("decode")
    assert list(json.loads(out.read_text())["stages"]) == ["kernels"], "an empty stage is written with its first row"
    again.note("decode", seconds=1)
    assert list(json.loads(out.read_text())["stages"]) == ["kernels", "decode"]


def test_after_a_lost_device_another_process_goes_on(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks.gpu import report, setting

    begun, called = [], []

    def run(self: setting.Setting, stage: str, book: report.Report) -> None:
        begun.append(stage)
        raise report.DeviceLost

    monkeypatch.setattr(setting.Setting, "run", run)
    monkeypatch.setattr(setting.Setting, "of", lambda *a, **k: setting.Setting(
        tiny=True, device=torch.device("cpu"), dtype=torch.float32, end=k["end"], train_minutes=1.0
    ))  # fmt: skip
    monkeypatch.setattr(gpu.subprocess, "call", lambda command: called.append(command) or 0)
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # is put back afterwards
    assert gpu.main(["--tiny", "--stages", "decode", "kernels", "train", "--out", str(tmp_path / "x.json")]) == 0
    assert begun == ["kernels"]
    (command,) = called
    assert command[command.index("--stages") + 1 :][:3] == ["decode", "train", "--budget"]
    assert "--append" in command and "--tiny" in command


def test_times_have_a_median_and_a_spread(gpu: ModuleType) -> None:
    from benchmarks.gpu.setting import spread

    found = spread([float(n) for n in range(1, 102)])
    assert (found.low, found.median, found.high, found.count) == (6.0, 51.0, 96.0, 101)
    assert spread([2.0]).row() == {"seconds": 2.0, "seconds_5_95": [2.0, 2.0], "count": 1}


def test_work_is_counted_as_said(gpu: ModuleType) -> None:
    from benchmarks.gpu.kernels import Case

    assert Case("softmax", (1, 10, 1, 4), 4).work("forward") == (2 * 10 * 10 * 4, 2 * 10 * 16)
    flops, moved = Case("sum", (2, 10, 3, 4), 8).work("forward+backward")
    assert flops == 3 * 60 * (2 * 64 * 12 + 4 * 32) and moved == 2 * 60 * (24 + 40 + 4)
