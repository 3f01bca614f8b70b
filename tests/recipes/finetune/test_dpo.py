"""`yeoul finetune --task dpo`: better answers are learned, by every method and kind of model; resumed; refused."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import yeoul
from folders import write_small_folder
from yeoul.adapt.lora.api import LoraConfig, add_lora, lora_layers
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.recipes.finetune.config import FinetuneConfig
from yeoul.recipes.finetune.dpo import DpoTask

WORDS = "강 산 바다 하늘 나무 여름 겨울 친구 음악 시장".split()
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {}, "dijiang": dict(attention=("dijiang",)), "hybrid": dict(attention=("hybrid", "softmax")),
}  # fmt: skip
QUICK = {
    "--task": "dpo", "--device": "cpu", "--dtype": "float32", "--eval-every": "0", "--epochs": "3", "--batch-size": "8",
    "--val-fraction": "0.25", "--log-every": "1",
}  # fmt: skip


def preferences(count: int, seed: int) -> list[dict[str, Any]]:
    """A polite answer is better than a curt one; as texts and as messages."""
    draw = random.Random(seed)
    records = []
    for number in range(count):
        first, second = draw.sample(WORDS, 2)
        asked, better, worse = f"{first}? {number}", f"{second} 좋아요", f"{second} 싫다"
        if number % 2:
            records.append({"prompt": asked, "chosen": better, "rejected": worse})
        else:
            question = {"role": "user", "content": asked}
            answers = [[question, {"role": "assistant", "content": text}] for text in (better, worse)]
            records.append({"chosen": answers[0], "rejected": answers[1]})
    return records


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models and preferences."""
    home = tmp_path_factory.mktemp("home")
    texts = [
        f"{first} {second} 좋아요 싫다 {n}" for n, (first, second) in enumerate(zip(WORDS, WORDS[::-1], strict=True))
    ]
    for name, changes in KINDS.items():
        write_small_folder(home / name, texts * 3, **changes)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in preferences(64, 1))
    (home / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return home


def finetune(home: Path, model: str, out: Path, *flags: str) -> int:
    given = QUICK | dict(zip(flags[::2], flags[1::2], strict=True))
    arguments = [word for pair in given.items() for word in pair]
    return main(["finetune", str(home / model), "--data", str(home / "pairs.jsonl"), "--out", str(out), *arguments])


@pytest.mark.parametrize(
    ("model", "method"), [("softmax", "full"), ("dijiang", "full"), ("hybrid", "lora"), ("softmax", "qlora")]
)
def test_the_better_answer_is_learned(
    model: str, method: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = "3e-3" if method == "full" else "2e-2"
    flags = ["--group-size", "32", "--bits", "8"] if method == "qlora" else []
    assert finetune(home, model, tmp_path / "run", "--method", method, "--lr", rate, *flags) == 0
    said, report = capsys.readouterr().out, json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert report["before"] == {"loss": pytest.approx(math.log(2), abs=1e-6), "accuracy": 0, "margin": 0}
    assert report["after"]["accuracy"] > 0.9 and report["after"]["loss"] < 0.6 and report["after"]["margin"] > 0.1
    assert "48 pairs, 16 with other prompts" in said and "Reference: 64 pairs" in said
    assert "  better: [<|user|>│" in said and "좋아요" in said and "  worse:  [<|user|>│" in said
    tuned, tokenizer = yeoul.load(tmp_path / "run", device="cpu")
    assert tokenizer is not None and tokenizer.chat_template is not None
    assert bool(lora_layers(tuned)) == (method != "full")
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in last if line["kind"] == "train"]
    assert trained[0]["loss"] == pytest.approx(math.log(2), abs=1e-3) and trained[0]["margin"] == pytest.approx(
        0, abs=1e-3
    )
    assert trained[-1]["accuracy"] > 0.9
    assert trained[-1]["chosen_reward"] - trained[-1]["rejected_reward"] == pytest.approx(trained[-1]["margin"])


def test_lora_and_full_have_the_same_reference(home: Path) -> None:
    found = []
    for method in ("full", "lora"):
        config = FinetuneConfig.of(task="dpo", method=method, batch_size=8, dtype="float32")
        task = config.make_task(str(home / "pairs.jsonl"))
        assert isinstance(task, DpoTask)
        model, tokenizer = yeoul.load(home / "hybrid", device="cpu")
        assert tokenizer is not None
        task.check_data()
        task.prepare(model, tokenizer)
        if method == "lora":
            add_lora(model, LoraConfig(r=4))
        found.append(task.loader().reference)
        with torch.no_grad():  # what it trains begins elsewhere, so the reference was not taken from it
            for parameter in model.parameters():
                parameter.add_(0.1 if parameter.requires_grad or method == "full" else 0.0)
        assert all(layer.active == "default" for layer in lora_layers(model).values())
        assert task.loader().reference is found[-1]
        assert np.abs(task._log_probs(task.train) - found[-1]).max() > 0.1
    assert found[0] is not None and np.array_equal(found[0], found[1])


def test_an_adapter_learns_preferences_further(home: Path, tmp_path: Path) -> None:
    """Its reference is the model with the adapter as it came."""
    first = ["--method", "lora", "--lr", "2e-2"]
    assert finetune(home, "hybrid", tmp_path / "first", *first) == 0
    command = QUICK | {"--method": "lora", "--lr": "1e-3", "--epochs": "1", "--out": str(tmp_path / "second")}
    words = [word for pair in command.items() for word in pair]
    assert main(["finetune", str(tmp_path / "first"), "--data", str(home / "pairs.jsonl"), *words]) == 0
    report = json.loads((tmp_path / "second" / "finetune.json").read_text())
    assert report["before"] == {"loss": pytest.approx(math.log(2), abs=1e-6), "accuracy": 0, "margin": 0}
    tensors = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("first", "second")]
    assert tensors[0].keys() == tensors[1].keys()
    assert any(not torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_goes_on_where_it_stopped(method: str, home: Path, tmp_path: Path) -> None:
    flags = ["--method", method, "--lr", "3e-3", "--save-every", "6", "--keep-last", "9", "--epochs", "2"]
    flags += ["--dropout", "0.1"] if method == "lora" else []
    assert finetune(home, "softmax", tmp_path / "run", *flags) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    result = {"full": "model/model.safetensors", "lora": "adapter/adapter_model.safetensors"}[method]
    steps = sorted(tmp_path.glob("again/checkpoints/step-*"))
    assert len(steps) == 2
    shutil.rmtree(steps[1])
    shutil.rmtree((tmp_path / "again" / result).parent)
    (tmp_path / "again" / "checkpoints" / "best.json").unlink(missing_ok=True)
    assert finetune(home, "softmax", tmp_path / "again", *flags) == 0
    first, second = (load_file(tmp_path / run / result) for run in ("run", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    reports = [json.loads((tmp_path / run / "finetune.json").read_text()) for run in ("run", "again")]
    assert reports[0]["after"] == reports[1]["after"] and reports[0]["loss"] == reports[1]["loss"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--beta", "0"), "must be above 0; give a number such as 0.1"),
        (("--preference-noise", "0.5"), "not a share from 0 to below 0.5"),
        (("--text-column", "text"), "preferences have no text column"),
        (("--train-on", "all"), "--task dpo does not use this flag"),
        (("--task", "chat", "--beta", "0.2"), "add --task dpo"),
        (("--context", "3"), "none of the 48 pairs has two different answers within 3 tokens"),
        (("--context", "4000"), "longer than the model's 64 positions"),
    ],
)
def test_one_clear_sentence(
    flags: tuple[str, ...], words: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "softmax"
    if "4000" in flags:
        model = "learned"
        texts = (home / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        write_small_folder(home / model, texts, positions="learned", norm="layernorm")
    assert finetune(home, model, tmp_path / "run", *flags) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_tokens_are_not_taught() -> None:
    with pytest.raises(UserError, match="--task dpo cannot train embeddings of tokens"):
        FinetuneConfig.of(task="dpo", method="lora", train_tokens=True).make_task("pairs.jsonl")


def test_bad_records_stop_or_are_counted(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (home / "pairs.jsonl").read_text(encoding="utf-8")
    bad = '{"prompt": "강", "chosen": "네", "rejected": "네"}\n{"prompt": "강", "chosen": "네"}\n'
    (tmp_path / "pairs.jsonl").write_text(bad + good, encoding="utf-8")
    shutil.copytree(home / "softmax", tmp_path / "softmax")
    assert finetune(tmp_path, "softmax", tmp_path / "run") == 2
    assert '"chosen" and "rejected" are the same' in (err := capsys.readouterr().err) and "pairs.jsonl:1" in err
    assert finetune(tmp_path, "softmax", tmp_path / "run", "--on-bad-record", "skip", "--epochs", "0.1") == 0
    assert "Left out: 2 unusable records. The first:" in capsys.readouterr().out
