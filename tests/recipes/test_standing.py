"""`yeoul info` of a run: how far it is, and a command that goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yeoul import cli
from yeoul.files import only_run
from yeoul.recipes.standing import find_run
from yeoul.train import loop

GIVEN: dict[str, Callable[[Path], list[object]]] = {
    "pretrain": lambda home: [
        "builtin:40KB", "--tokenizer", home / "tokenizer", "--preset", "1m", "--hidden-size", 32, "--layers", 1,
        "--heads", 2, "--kv-heads", 1, "--context", 16, "--batch-size", 2, "--tokens", 192, "--val-fraction", 0,
    ],
    "finetune": lambda home: [
        home / "softmax", "--data", home / "dialogs.jsonl", "--epochs", 2, "--val-fraction", 0, "--method", "lora",
    ],
    "linearize": lambda home: [
        home / "softmax", "--data", "builtin:40KB", "--tokens", 192, "--context", 16, "--batch-size", 1, "--contexts",
        16, "--compare-tokens", 0, "--val-tokens", 32, "--patience", 0,
    ],
}  # fmt: skip


def _info(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert cli.main(["info", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert cli.main(["info", str(out)]) == 0
    return report, capsys.readouterr().out


@pytest.mark.parametrize("verb", GIVEN)
def test_a_stopped_run_is_shown_and_goes_on(home, tmp_path, monkeypatch, capsys, verb):
    out = tmp_path / "the run"
    argv = [verb, *GIVEN[verb](home), "--out", out, "--device", "cpu", "--dtype", "float32", "--save-every", 2]
    step, steps = loop._Run._one_step, 0

    def stops_in_step_4(self):
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_one_step", stops_in_step_4)
        assert cli.main(list(map(str, argv))) == 130
    report, text = _info(out, capsys)
    run = report["run"]
    assert (run["verb"], run["state"]) == (verb, "stopped") and 0 < run["step"] < run["steps"]
    assert f"stopped{', distil' * (verb == 'linearize')}: saved at step {run['step']} of {run['steps']}" in text
    assert run["checkpoint"] in text and run["command"] in text
    assert ("adapter" in text) == (verb == "finetune") and "parameters" in text  # of the checkpoint
    assert cli.main(shlex.split(run["command"])[1:]) == 0
    report, text = _info(out, capsys)
    assert report["run"]["state"] == "finished" and "resume" not in text and f"{verb}, finished" in text


def test_what_has_nothing_yet_and_what_is_running(home, tmp_path, monkeypatch, capsys):
    argv = ["pretrain", *GIVEN["pretrain"](home), "--out", tmp_path, "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_one_step", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(list(map(str, argv)))
    report, text = _info(tmp_path, capsys)
    assert report["run"]["checkpoint"] is None and "stopped; nothing is saved yet" in text and "resume" in text
    with only_run(tmp_path):
        assert find_run(tmp_path).state == "running"
    assert find_run(tmp_path).state == "stopped" and find_run(home / "softmax") is None


def test_a_demo(tmp_path):
    (tmp_path / "demo.json").write_text('{"settings": {"minutes": 5, "seed": 1}, "finished": false}')
    run = find_run(tmp_path)
    assert run.state == "stopped" and run.command == f"yeoul demo --out {tmp_path} --minutes=5 --seed=1"
    (tmp_path / "demo.json").write_text("{")
    assert find_run(tmp_path).command == f"yeoul demo --out {tmp_path}"
