"""The tests that need a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.setting import Setting

ROOT = Path(__file__).resolve().parents[2]


def run(bench: Setting, book: Report) -> None:
    """Runs pytest on each file that has such tests."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    for path in files[:1] if bench.tiny else files:
        name = str(path.relative_to(ROOT))
        book.measure("tests", {"method": name}, bench.deadline, lambda name=name: _outcome(name, bench))
    book.finish("tests", {"method": "file", "passed": "passed", "failed": "failed", "not_run": "skipped"})


def _outcome(name: str, bench: Setting) -> Row:
    command = [sys.executable, "-m", "pytest", name, "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    left = max(20.0, bench.deadline - time.monotonic())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    found = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {
        "passed": found.get("passed", 0), "failed": found.get("failed", 0) + found.get("error", 0),
        "not_run": found.get("skipped", 0), "summary": last, "failures": failures[:50],
        **({} if found else {"skipped": f"pytest ended with {done.returncode}: {last[-200:]}"}),
    }  # fmt: skip
