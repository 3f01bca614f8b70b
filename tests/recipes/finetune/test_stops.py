"""`yeoul finetune` stopped anywhere and resumed, begun anew, and refused in one sentence."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands.finetuning import finetune, low_bit_folder, quickly, report
from yeoul import cli
from yeoul.adapt.lora.api import LoraConfig, add_lora, save_adapter
from yeoul.data.examples import ExampleLoader
from yeoul.model.checkpoint import load_model, save_model
from yeoul.recipes.model_folder import ModelFolder
from yeoul.train.log import MetricsLog
from yeoul.train.runstate import Checkpoints

LORA = ["--method", "lora", "--dropout", "0.1", "--packing", "--context", "48", "--save-every", "1", "--epochs", "8"]


def in_child(action: Callable[[], object]) -> int:
    """Process id of a forked child that runs `action`."""
    child = os.fork()
    if child:
        return child
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        action()
    finally:
        os._exit(0)


def results(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint and of the result."""
    files = sorted((out / "checkpoints").glob("step-*"))[-1].glob("state/*.safetensors")
    files = [*files, *out.glob("adapter/*.safetensors"), *out.glob("model/*.safetensors")]
    return {f"{file.name}/{key}": tensor for file in files for key, tensor in load_file(file).items()}


def lines(out: Path) -> list[dict[str, Any]]:
    untimed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in untimed} for line in MetricsLog(out / "metrics.jsonl").read()]


def assert_same(one: Path, other: Path) -> None:
    first, second = results(one), results(other)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert lines(one) == lines(other)
    a, b = ({k: v for k, v in report(out).items() if k != "seconds"} for out in (one, other))
    assert a == b


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_lora_killed_and_resumed_is_bitwise_the_same(home: Path, tmp_path: Path) -> None:
    undisturbed, killed, chance = tmp_path / "undisturbed", tmp_path / "killed", random.Random(3)
    assert finetune(home, undisturbed, *LORA) == 0
    checkpoints, steps = Checkpoints(killed / "checkpoints", 1), []
    for _ in range(5):
        goal = max(checkpoints.steps(), default=0) + chance.choice((1, 2, 3))
        child = in_child(lambda: finetune(home, killed, *LORA))
        while max(checkpoints.steps(), default=0) < goal and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        steps.append(max(checkpoints.steps()))
    assert len(set(steps)) == 5 and not (killed / "adapter").exists(), steps
    assert finetune(home, killed, *LORA) == 0
    assert_same(undisturbed, killed)


def test_sigterm_saves_and_the_same_command_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(home, tmp_path / "undisturbed", "--accumulate", "2") == 0
    draw, drawn = ExampleLoader.next_batch, 0

    def draw_and_signal(self: ExampleLoader) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self)

    with monkeypatch.context() as patch:
        patch.setattr(ExampleLoader, "next_batch", draw_and_signal)
        assert finetune(home, tmp_path / "stopped", "--accumulate", "2") == 143
    assert "Run the same command again to go on" in capsys.readouterr().err
    assert finetune(home, tmp_path / "stopped", "--accumulate", "2") == 0
    assert_same(tmp_path / "undisturbed", tmp_path / "stopped")


def test_a_finished_run_again_otherwise_and_anew(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(home, tmp_path / "run") == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "model").iterdir()}
    assert finetune(home, tmp_path / "run") == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "model").iterdir()} == before
    capsys.readouterr()
    for change, words in (
        (("--lr", "1e-3"), "different values of --lr"), (("--no-resume",), "there is already a run"),
        (("--method", "lora"), "different values of --method"), (("--train-on", "all"), "--train-on"),
    ):  # fmt: skip
        assert finetune(home, tmp_path / "run", *change) == 2
        assert words in capsys.readouterr().err
    assert finetune(home, tmp_path / "run", model="hybrid") == 2
    assert "cannot continue with different contents" in capsys.readouterr().err
    assert finetune(home, tmp_path / "run", "--overwrite", "--method", "lora") == 0
    assert not (tmp_path / "run" / "model").exists() and (tmp_path / "run" / "adapter").is_dir()


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--data", "dialogs.jsonl"], "no such model folder"),
        (["softmax"], "no data was given (--data)"),
        (["softmax", "--data", "nowhere.jsonl"], "no such file or folder (nowhere.jsonl)"),
        (["softmax", "--data", "dialogs.jsonl", "--bits", "4"], "--method full trains all weights and has no adapter"),
        (["softmax", "--data", "dialogs.jsonl", "--rank", "4"], "add --method lora"),
        (["softmax", "--data", "dialogs.jsonl", "--method", "lora", "--bits", "4"], "add --method qlora"),
        (["softmax", "--data", "dialogs.jsonl", "--method", "lora", "--rank", "0"], "(--rank)"),
        (["softmax", "--data", "dialogs.jsonl", "--method", "lora", "--target-modules", "query"], "no layer matches"),
        (["softmax", "--data", "dialogs.jsonl", "--method", "qlora", "--group-size", "48"], "(--group-size)"),
        (["softmax", "--data", "dialogs.jsonl", "--method", "qlora"], "groups of 64 do not divide the 32 inputs"),
        (["softmax", "--data", "dialogs.jsonl", "--context", "200"], "longer than the model's 96 positions"),
        (["softmax", "--data", "dialogs.jsonl", "--context", "2"], "has anything to learn within 2 tokens"),
        (["softmax", "--data", "dialogs.jsonl", "--epochs", "0"], "(--epochs)"),
        (["softmax", "--data", "dialogs.jsonl", "--question-column", "Q"], "(--answer-column)"),
        (["softmax", "--data", "d.csv", "--question-column", "Q", "--answer-column", "A", "--text-column", "T"],
         "plain text has no question"),
        (["softmax", "--data", "questions.jsonl"], "questions.jsonl:1"),
        (["softmax", "--data", "dialogs.jsonl", "--label-column", "Q"], "--task chat does not use this flag"),
        (["softmax", "--data", "dialogs.jsonl", "--out", "softmax"], "the model itself is in this folder"),
        (["softmax", "--data", "dialogs.jsonl", "--out", "hybrid"], "there is already a model in this folder"),
        (["mute", "--data", "dialogs.jsonl"], "the model's folder has no tokenizer"),
        (["adapter", "--data", "dialogs.jsonl"], "this is an adapter, not a model"),
        (["low-bit", "--data", "dialogs.jsonl"], "quantized weights cannot be trained (low-bit); add --method lora"),
        (["low-bit", "--data", "dialogs.jsonl", "--method", "qlora"], "quantized already (low-bit); add --method lora"),
    ],
)  # fmt: skip
def test_one_clear_sentence(
    arguments: list[str], words: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    if arguments[0] == "mute":
        save_model(load_model("softmax"), "mute")
    if arguments[0] == "low-bit":
        low_bit_folder(home)
    if arguments[0] == "adapter":
        model = load_model("softmax")
        add_lora(model, LoraConfig(base_model="softmax"))
        save_adapter(model, "adapter")
    if "questions.jsonl" in arguments:
        Path("questions.jsonl").write_text('{"messages": [{"role": "user", "content": "아무도 없나"}]}\n')
    assert cli.main(["finetune", *quickly(arguments)]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and said.count("\n") == 0, said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("task", "record", "words"),
    [
        ("chat", '{"messages": [{"role": "user", "content": "아무도 없나"}]}', "no assistant turn"),
        ("dpo", '{"prompt": "무엇", "chosen": "네", "rejected": "네"}', "are the same"),
        ("classify", '{"text": "하나", "label": "가"}', "cannot be divided"),
        ("embed", '{"text": "하나"}', "data.jsonl"),
    ],
)
def test_wrong_data_is_told_before_a_model_is_loaded(
    task: str, record: str, words: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text((record + "\n") * 3, encoding="utf-8")
    monkeypatch.setattr(ModelFolder, "load", lambda *_, **__: pytest.fail("the model is loaded"))
    argv = ["finetune", str(home / "softmax"), "--task", task, "--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--data", str(data)]) == 2
    assert words in capsys.readouterr().err
    if task == "chat":
        assert cli.main([*argv, "--data", str(home / "dialogs.jsonl"), "--val-data", str(data)]) == 2
        assert words in capsys.readouterr().err
