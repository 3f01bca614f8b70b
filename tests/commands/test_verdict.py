"""A fine-tuning that made the model worse says so first and leaves the better weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import yeoul
from commands.finetuning import PAIRS, QUICK, report
from yeoul import cli
from yeoul.recipes.verdict import advice, verdict
from yeoul.train.criterion import Criterion
from yeoul.train.kept import Kept
from yeoul.train.log import MetricsLog
from yeoul.train.loop import TrainResult


@pytest.fixture(scope="module")
def tables(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data for every task."""
    folder = tmp_path_factory.mktemp("tables")
    questions = [(f"{question} {n}", answer) for n in range(8) for question, answer in PAIRS]

    def write(name: str, records: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    write("chat.jsonl", [{"prompt": q, "completion": a} for q, a in questions])
    write("classify.jsonl", [{"text": q, "label": a} for q, a in questions])
    for name, likes, (good, bad) in (("", 1, ("chosen", "rejected")), ("-against", -1, ("rejected", "chosen"))):
        scored = [(q, a, likes * (n % len(PAIRS))) for n, (q, a) in enumerate(questions)]
        write(f"embed{name}.jsonl", [{"sentence1": q, "sentence2": a, "score": score} for q, a, score in scored])
        write(f"dpo{name}.jsonl", [{"prompt": q, good: a, bad: "몰라요"} for q, a in questions])
    write("chat-against.jsonl", [{"prompt": q, "completion": a[::-1]} for q, a in questions])
    return folder


def finetune(home: Path, tables: Path, out: Path, task: str, *flags: str) -> int:
    settings = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | {"--val-fraction": "0.3"}
    settings |= dict(zip(flags[::2], flags[1::2], strict=True))
    return cli.main(["finetune", str(home / "softmax"), "--task", task, "--data", str(tables / f"{task}.jsonl"),
                     "--out", str(out), *(word for pair in settings.items() for word in pair)])  # fmt: skip


def summary(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines behind the empty one that divides the summary from what was printed on the way."""
    return capsys.readouterr().out.split("\n\n", 1)[1].splitlines()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("task", ["chat", "embed", "dpo"])
def test_worse_than_before_is_said_first_and_undone(
    task: str, method: str, home: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    against = str(tables / f"{task}-against.jsonl")  # what is learned makes this worse
    rate = {"chat": "8", "embed": "0.01", "dpo": "0.01"}[task]
    assert finetune(home, tables, tmp_path, task, "--method", method, "--val-data", against, "--lr", rate) == 0
    said, done = summary(capsys), report(tmp_path)
    name, key = ("Spearman of the validation", "spearman") if task == "embed" else ("validation loss", "loss")
    assert said[0].startswith(f"Training made the model worse: {name}") and "--lr " in said[1]
    assert ("the adapter changes nothing" if method == "lora" else "the model as it came") in said[0]
    assert done["kept"] == 0 and done["after"] == done["before"]
    assert (done["last"][key] > done["before"][key]) == (key == "loss")
    tuned, tokenizer = yeoul.load(tmp_path, device="cpu")
    assert tokenizer is not None
    came, _ = yeoul.load(home / "softmax", device="cpu")
    ids = torch.tensor([tokenizer.encode("밥 먹었어?")])
    assert torch.allclose(tuned(ids), came(ids), atol=1e-6)


def test_a_new_head_has_no_state_before_to_go_back_to(
    home: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(home, tables, tmp_path, "classify", "--method", "lora", "--lr", "8", "--head-lr", "8") == 0
    said, done = summary(capsys), report(tmp_path)
    assert said[0].startswith("Nothing useful was learned: validation loss") and "guessing" in said[0]
    assert "--lr 2 --head-lr 2; this run: 8 and 8" in said[1] and done["kept"] > 0


def test_the_best_epoch_is_the_result_however_often_the_run_was_stopped(
    home: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "lora", "--lr", "0.3", "--schedule", "constant", "--eval-every", "200", "--keep-last", "9"]
    assert finetune(home, tables, tmp_path / "whole", "classify", *flags, "--epochs", "6") == 0
    said, done = summary(capsys), report(tmp_path / "whole")
    lines = [line for line in MetricsLog(tmp_path / "whole" / "metrics.jsonl").read() if line["kind"] == "val"]
    losses = {line["step"]: line["loss"] for line in lines}
    assert len(losses) == 6  # each epoch
    best = min(losses, key=lambda step: losses[step])
    assert best < done["steps"] and done["kept"] == best and done["after"]["loss"] == losses[best]
    assert any(line.startswith(f"Kept: step {best} of {done['steps']}, where the validation loss was") for line in said)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "adapter")
    for step in sorted(losses)[sorted(losses).index(best) + 1 :]:
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{step:08d}")
    assert finetune(home, tables, tmp_path / "again", "classify", *flags, "--epochs", "6") == 0
    assert report(tmp_path / "again")["kept"] == best
    for file in (tmp_path / "whole" / "adapter").glob("*.safetensors"):
        one, other = load_file(file), load_file(tmp_path / "again" / "adapter" / file.name)
        assert all(torch.equal(one[name], other[name]) for name in one)
    scores = json.loads((tmp_path / "whole" / "classification.json").read_text())
    assert scores["accuracy"] == done["after"]["accuracy"]


def result_of(*losses: float) -> TrainResult:
    """Of a run that was validated at steps 10, 20 ..."""
    best = min(range(len(losses)), key=lambda n: losses[n]) if losses else None
    return TrainResult(
        step=10 * max(1, len(losses)), tokens=1, loss=1.0, validation={"loss": losses[-1]} if losses else {},
        best=None if best is None else {"step": 10 * (best + 1), "loss": losses[best]}, seconds=1,
        checkpoint=Path("step"), resumed_from=None,
    )  # fmt: skip


def test_what_is_said() -> None:
    def said(result: TrainResult, step: int, loss: float, before: float, guess: float | None = None) -> str:
        kept = Kept(step=step, validation={"loss": loss})
        return " ".join(verdict(result, kept, {"loss": before}, rate=1e-3, guess=guess))

    assert said(result_of(2.0, 1.0), 20, 1.0, 3.0) == ""
    assert said(result_of(2.0, 1.0), 20, 1.0, 0.5, guess=1.5) == ""  # what a new head came to by chance is no measure
    assert said(result_of(1.0, 2.0), 10, 1.0, 3.0).startswith("Kept: step 10 of 20")
    assert "--lr" not in said(result_of(1.0, 2.0), 10, 1.0, 3.0)
    worse = said(result_of(1.0, 5.0), 10, 1.0, 3.0)
    assert worse.startswith("Training ended worse than it began") and "Kept: step 10" in worse
    assert worse.endswith(advice(1e-3)) and "--lr 0.0002" in worse
    assert said(result_of(5.0), 0, 3.0, 3.0).startswith("Training made the model worse")
    assert said(result_of(0.8), 10, 0.8, 1.2, guess=0.69).startswith("Nothing useful was learned")
    assert verdict(result_of(), Kept(step=10, validation={}), {}, rate=1e-3) == []
    by_order = Criterion(key="spearman", name="Spearman", higher=True)
    kept = Kept(step=10, validation={"loss": 3.0, "spearman": 0.7})
    alike = replace(result_of(3.0, 2.0), validation={"loss": 2.0, "spearman": 0.1})
    lines = verdict(alike, kept, {"loss": 4.0, "spearman": 0.5}, rate=1e-3, criterion=by_order)
    assert "ended worse than it began: Spearman 0.1000, but 0.5000 before" in lines[0] and "0.7000" in lines[1]
    lost = Kept(step=20, validation={"loss": 2.0}, lost=True)
    assert "cannot be read" in verdict(result_of(1.0, 2.0), lost, {"loss": 3.0}, rate=1.0)[0]
