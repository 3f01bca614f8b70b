"""Runs that are made to fit into memory, refused, or only described."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands.finetuning import finetune, quickly
from train.toy import untimed
from yeoul import cli
from yeoul.recipes import fitting
from yeoul.train.config import TrainConfig
from yeoul.train.log import MetricsLog
from yeoul.train.memory import Choice, Need

PRETRAIN = (
    "pretrain builtin:60KB --preset 1m --hidden-size 32 --layers 2 --heads 2 --vocab-size 1000 --context 32 "
    "--tokens 2048 --batch-size 8 --dtype float32 --device cpu --eval-every 0 --save-every 2 --log-every 1"
).split()
LINEARIZE = (
    "--data builtin:100KB --tokens 4000 --batch-size 8 --context 32 --val-tokens 300 --compare-tokens 0 --contexts 32 "
    "--dtype float32 --device cpu"
).split()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says how much memory there is, nothing of which the program takes."""

    def set_free(free: int) -> None:
        place = lambda device, weights, before: fitting.Place(device=device, program=0, free=free)  # noqa: E731
        monkeypatch.setattr(fitting, "place_of", place)

    return set_free


def chosen(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / fitting.RECORD).read_text()))


def trained(out: Path) -> list[dict[str, Any]]:
    return [line for line in untimed(MetricsLog(out / "metrics.jsonl").read()) if line["kind"] == "train"]


def test_what_does_not_fit_is_computed_in_parts_and_goes_on_so(
    tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    memory(10**12)
    assert cli.main([*PRETRAIN, "--out", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Memory: peak of about [\d.]+ MiB, in training \(weights .*\); [\d.]+ GiB free\.", said)
    assert "To fit:" not in said
    whole = chosen(tmp_path / "whole")
    assert whole["micro_batch"] == 8 and not whole["gradient_checkpointing"]

    memory(int(0.9 * whole["bytes"]))
    assert cli.main([*PRETRAIN, "--out", str(tmp_path / "parts")]) == 0
    assert re.search(r"To fit: micro-batches of \d of 8 sequences \(--micro-batch\)", capsys.readouterr().out)
    parts = chosen(tmp_path / "parts")
    assert parts["micro_batch"] in (1, 2, 4) and parts["bytes"] < whole["bytes"]
    for one, other in zip(trained(tmp_path / "whole"), trained(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4) and one["tokens"] == other["tokens"]


def test_a_stopped_run_keeps_its_parts_wherever_it_goes_on(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from yeoul.train.loop import _Run

    memory(10**12)
    assert cli.main([*PRETRAIN, "--out", str(tmp_path / "measured")]) == 0
    little = int(0.9 * chosen(tmp_path / "measured")["bytes"])
    memory(little)
    assert cli.main([*PRETRAIN, "--out", str(tmp_path / "undisturbed")]) == 0
    step, out = _Run._one_step, tmp_path / "stopped"

    def stopping(run: Any) -> Any:
        if run.step == 3:
            raise KeyboardInterrupt
        return step(run)

    monkeypatch.setattr(_Run, "_one_step", stopping)
    assert cli.main([*PRETRAIN, "--out", str(out)]) == 130
    monkeypatch.setattr(_Run, "_one_step", step)
    before = chosen(out)
    memory(10**12)  # with more memory than before: whole batches would give other losses
    capsys.readouterr()
    assert cli.main([*PRETRAIN, "--out", str(out)]) == 0
    assert "As chosen when the run started" in capsys.readouterr().out
    assert chosen(out)["micro_batch"] == before["micro_batch"] < 8
    assert trained(out) == trained(tmp_path / "undisturbed")
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (out, tmp_path / "undisturbed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_nothing_that_was_asked_for_is_changed_and_nothing_fits(
    tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    memory(10**12)
    assert cli.main([*PRETRAIN, "--out", str(tmp_path / "measured")]) == 0
    memory(int(0.9 * chosen(tmp_path / "measured")["bytes"]))
    capsys.readouterr()
    asked = [*PRETRAIN, "--micro-batch", "8", "--no-gradient-checkpointing", "--out", str(tmp_path / "asked")]
    assert cli.main(asked) == 2
    said = capsys.readouterr().err
    assert re.search(r"this needs at least about [\d.]+ MiB of memory, most of it for \w+", said)
    assert "--preset" in said and "--micro-batch" in said and said.count("\n") == 1
    assert not (tmp_path / "asked").exists()
    memory(1000)
    assert cli.main([*PRETRAIN, "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_recomputing_comes_after_splitting() -> None:
    def needs(choice: Choice) -> list[Need]:
        rows = choice.micro_batch * (1 if choice.checkpointing else 10)
        return [Need(phase="small", parts={"x": 1}), Need(phase="large", parts={"activations": 10 * rows})]

    def fit(free: int, **changes: Any) -> fitting.Fitted:
        settings = TrainConfig(batch_size=4, **changes)
        place = fitting.Place(device=torch.device("cpu"), program=100, free=free)
        return fitting.fit(
            needs, fitting.asked_of(settings), place, batch=4, settings=settings, out=Path("nowhere"), goes_on=False,
            flags="less",
        )  # fmt: skip

    assert fit(1000).choice.micro_batch == 4
    assert fit(1000).peak.parts == {fitting.PROGRAM: 100, "activations": 400}
    assert fit(350).choice.micro_batch == 1 and not fit(350).choice.checkpointing
    assert fit(220).choice.checkpointing and "--gradient-checkpointing" in fit(220).lines()[1]
    with pytest.raises(fitting.UserError, match="give less"):
        fit(220, gradient_checkpointing=False)
    with pytest.raises(fitting.UserError, match="most of it for program and text"):
        fit(100)


@pytest.mark.parametrize("task", ["chat", "classify"])
def test_fine_tuning_fits_too(home: Path, tmp_path: Path, memory: Any, task: str) -> None:
    data = "dialogs.jsonl"
    if task == "classify":
        data = "labels.jsonl"
        texts = [{"text": f"강물 {n} 흐른다", "label": "ab"[n % 2]} for n in range(40)]
        (home / data).write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts))
    flags = ["--task", task, "--method", "lora", "--epochs", "1"]
    memory(10**12)
    assert finetune(home, tmp_path / "whole", *flags, data=data) == 0
    whole = chosen(tmp_path / "whole")
    memory(int(whole["bytes"]))
    assert finetune(home, tmp_path / "parts", *flags, data=data) == 0
    parts = chosen(tmp_path / "parts")
    assert parts["micro_batch"] < whole["micro_batch"] == 8
    for one, other in zip(trained(tmp_path / "whole"), trained(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_pairs_that_are_compared_within_their_batch_stay_together(home: Path, tmp_path: Path, memory: Any) -> None:
    pairs = [{"text1": f"강물 {n} " * 9, "text2": f"여울 {n} " * 9, "score": n % 5} for n in range(40)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))
    memory(10**12)
    flags = ["--task", "embed", "--method", "lora", "--epochs", "1"]
    assert finetune(home, tmp_path / "whole", *flags, data="pairs.jsonl") == 0
    memory(int(chosen(tmp_path / "whole")["bytes"]))
    assert finetune(home, tmp_path / "less", *flags, data="pairs.jsonl") == 0
    less = chosen(tmp_path / "less")
    assert less["micro_batch"] == 8 and less["gradient_checkpointing"]


def test_linearize_takes_smaller_parts_and_then_a_shorter_context(
    home: Path, tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from yeoul.recipes.linearize import memory as needs

    command = ["linearize", str(home / "softmax"), *LINEARIZE, "--dry-run", "--out", str(tmp_path / "run")]
    memory(10**12)
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    (amount, unit, phase) = re.search(r"peak of about ([\d.]+) (MiB), in (\w+)", said).groups()  # type: ignore[union-attr]
    assert unit == "MiB" and phase in ("align", "distil", "calibration", "the", "validation")
    monkeypatch.setattr(needs, "SHORTEST", 8)
    open_context = [word for word in command if word not in ("--context", "32")]
    for free in [int(float(amount) * 2**20 * share) for share in (1.0, 0.8, 0.6, 0.4, 0.3, 0.2)]:
        memory(free)
        if cli.main(open_context) == 2:
            said = capsys.readouterr().err
            assert "--train-distil maps or low-rank" in said
            break
        said = capsys.readouterr().out
        assert "To fit:" in said
    else:
        pytest.fail("something fitted into a fifth of it")


@pytest.mark.parametrize("verb", ["pretrain", "linearize", "finetune"])
def test_a_dry_run_says_memory_and_time_and_writes_nothing(
    verb: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    model = str(home / "softmax")
    command = {
        "pretrain": PRETRAIN,
        "linearize": ["linearize", model, *LINEARIZE],
        "finetune": ["finetune", model, *quickly(["--data", str(home / "dialogs.jsonl")])],
    }[verb]
    assert cli.main([*command, "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Memory: peak of about" in said and "Time: about" in said and "nothing was trained or written" in said
    assert re.search(r"\d tokens at [\d.,]+ tokens/s, measured on \d+\)", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the limit")
def test_a_limit_of_the_address_space_counts() -> None:
    code = (
        "import resource; from yeoul import runtime; limit = 6 * 2**30\n"
        "before = runtime.memory_available()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "after = runtime.memory_available()\n"
        "assert after < limit and after == min(before, after), (before, after)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit // 4, limit))\n"
        "assert runtime.memory_available() <= limit // 4\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quantizing_says_what_it_takes_or_refuses(
    home: Path, tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", "builtin:40KB", "--calibration-tokens", "500", "--eval-tokens", "0", "--no-speed"]
    command = ["quantize", str(home / "softmax"), *flags]
    memory(10**12)
    assert cli.main([*command, "--out", str(tmp_path / "whole")]) == 0
    (amount,) = re.findall(r"Memory: peak of about ([\d.]+) MiB", capsys.readouterr().err)
    memory(int(float(amount) * 2**20))
    assert cli.main([*command, "--out", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "--calibration-tokens or --method rtn" in said and not (tmp_path / "none").exists()
