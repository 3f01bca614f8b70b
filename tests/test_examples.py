"""The examples run with the smallest settings, and write the figures that they print."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
VISION = [
    "--digits",
    "64",
    "--epochs",
    "1",
    "--more-epochs",
    "1",
    "--seeds",
    "1",
    "--tokens",
    "64",
    "128",
    "--turns",
    "2",
]
AUDIO = ["--epochs", "1", "--seeds", "1", "--frames", "128", "--tokens", "64", "128", "--turns", "2"]


@pytest.fixture(autouse=True)
def as_a_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs find what lies beside them, and set the number of threads for themselves."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(ROOT / "examples")
    yield
    torch.set_num_threads(threads)


def run(program: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """The JSON that a program writes."""
    out = folder / "new" / f"{program}.json"
    importlib.import_module(program).main([*arguments, "--json", str(out)])
    return json.loads(out.read_text(encoding="utf-8"))


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def check(printed: str, found: dict[str, Any], models: set[str]) -> None:
    assert {row["model"] for row in found["summary"]} == models
    assert all(model in printed for model in models)
    assert all(math.isfinite(number) for number in numbers(found))
    assert all(0 < row["accuracy"] <= 1 for row in found["results"])
    assert [row["tokens"] for row in found["speed_ms"]] == [64, 128]
    assert all(row["softmax"] > 0 and row["dijiang"] > 0 and row["ratio"] > 0 for row in found["speed_ms"])


def test_vision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install 'yeoul[examples]'")
    found = run("vision", VISION, tmp_path)
    ways = {"converted, as it is", "converted, aligned", "converted, aligned, finetuned", "softmax, finetuned as long"}
    check(capsys.readouterr().out, found, {"none", "softmax", "dijiang", *ways})
    scores = {row["model"]: row for row in found["results"]}
    assert scores["converted, aligned"]["seconds"] > 0


def test_audio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("audio", AUDIO, tmp_path)
    check(capsys.readouterr().out, found, {"none", "softmax", "dijiang"})
