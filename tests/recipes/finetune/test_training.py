"""What a fine-tuning is trained with where nothing is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands.finetuning import PAIRS, QUICK
from yeoul import cli
from yeoul.recipes.finetune.training import FinetuneTraining
from yeoul.train.runstate import Checkpoints


@pytest.mark.parametrize(
    ("task", "method", "width", "rate"),
    [
        ("chat", "full", 1024, 0.1 / 1024), ("classify", "full", 64, 3e-4), ("chat", "lora", 1024, 1 / 1024),
        ("chat", "qlora", 64, 2e-3), ("classify", "lora", 640, 0.3 / 640), ("embed", "qlora", 4096, 0.3 / 4096),
        ("embed", "lora", 64, 2e-3),
    ],
)  # fmt: skip
def test_rates_by_task_method_and_width(task: str, method: str, width: int, rate: float) -> None:
    assert FinetuneTraining().settings(task, method, width, 32, 9).lr == pytest.approx(rate)
    assert FinetuneTraining(lr=0.5).settings(task, method, width, 32, 9).lr == 0.5


@pytest.mark.parametrize(
    ("flags", "epoch_batches", "every"),
    [
        (dict(epochs=3), 25, 25), (dict(epochs=3), 1000, 200), (dict(epochs=100), 4, 20), (dict(epochs=1), 30, 30),
        (dict(epochs=3, eval_every=10), 25, 10), (dict(epochs=3, eval_every=0), 25, 0),
        (dict(epochs=3, accumulate=5), 25, 5), (dict(epochs=0.1), 25, 25),
    ],
)  # fmt: skip
def test_it_is_validated_each_epoch_and_seldom_enough(flags: dict[str, float], epoch_batches: int, every: int) -> None:
    settings = FinetuneTraining(**flags).settings("chat", "lora", 64, 32, epoch_batches)  # type: ignore[arg-type]
    assert settings.eval_every == every


def test_the_head_learns_by_the_size_of_the_states(home: Path, tmp_path: Path) -> None:
    """Where these are a hundred times as large it learns a hundred times as slowly, and begins as near 0."""
    from safetensors.torch import load_file, save_file

    large = tmp_path / "large"
    large.mkdir()
    for file in (home / "softmax").iterdir():
        (large / file.name).write_bytes(file.read_bytes())
    tensors = load_file(large / "model.safetensors")
    tensors["model.norm.weight"] *= 100
    save_file(tensors, large / "model.safetensors", {"format": "pt"})
    table = tmp_path / "t.jsonl"
    table.write_text(
        "".join(json.dumps({"text": f"{q} {n}", "label": a}) + "\n" for n in range(8) for q, a in PAIRS[:2])
    )
    rates, weights, losses = [], [], []
    for number, model in enumerate((home / "softmax", large)):
        out = tmp_path / f"run{number}"
        flags = [(flag, word) for flag, word in zip(QUICK[::2], QUICK[1::2], strict=True) if flag != "--lr"]
        quick = [word for pair in flags for word in pair]
        quick += ["--task", "classify", "--method", "lora", "--data", str(table), "--val-fraction", "0.3"]
        assert cli.main(["finetune", str(model), "--out", str(out), *quick]) == 0
        state = Checkpoints(out / "checkpoints", 1).load_newest(print)
        assert state is not None
        rates.append(state.values["identity"]["extra_rate"])
        weights.append(float(state.weights["extra.score.weight"].norm()))
        losses.append(json.loads((out / "finetune.json").read_text()))
    assert rates[0] == pytest.approx(100 * rates[1], rel=0.05) and weights[0] == pytest.approx(
        100 * weights[1], rel=0.5
    )
    assert losses[1]["before"]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=0.1)
    assert losses[1]["after"]["loss"] == pytest.approx(losses[0]["after"]["loss"], abs=0.1)
