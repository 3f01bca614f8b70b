"""The ranking of feature maps at toy sizes: what is finished is not done again, and what cannot be is said."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from pathlib import Path

import pytest

from yeoul.cli import main


def test_maps_are_ranked_and_finished_ones_passed(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "feature_map_ranking.py"
    spec = importlib.util.spec_from_file_location("benchmark_feature_map_ranking", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    calls: list[list[str]] = []

    def in_this_process(arguments: list[str], log: Path) -> int:
        calls.append(arguments)
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            return main(arguments[3:])

    monkeypatch.setattr(benchmark, "call", in_this_process)
    flags = f"--data builtin:50KB --val-data builtin:20KB --run {tmp_path} --windows 0 --maps elu hedgehog --tokens 300"
    flags += (
        f" --out {tmp_path}/out.json --features 4096 --batch-size 2 -- --context 16 --align-share 0.5 --short-conv 0"
    )
    argv = [str(tiny_folder), *flags.split(), "--val-tokens", "100", "--stages", "align", "distil"]
    monkeypatch.setattr("sys.argv", ["feature_map_ranking.py", *argv])
    benchmark.main()
    elu, hedgehog = json.loads((tmp_path / "out.json").read_text())["records"]
    # Alignment of "elu" has nothing to learn without a window: the second call distils alone.
    assert elu["more"] == ["--align-share", "0"] and len(calls) == 3 and list(elu["stages"]) == ["distil"]
    assert elu["perplexity_ratio"] == pytest.approx(math.exp(elu["loss"] - elu["teacher_loss"]))
    assert 0 < elu["tokens"] <= 300
    assert "at most" in hedgehog["error"] and "loss" not in hedgehog
    said = capsys.readouterr().out
    assert "linear attention alone" in said and "at most" in said.split("linear attention alone")[1]
    benchmark.main()
    assert len(calls) == 4  # only what had failed
