"""The whole command on a text of a few kilobytes."""

import json
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.toy import untimed
from yeoul.cli import main
from yeoul.commands.pretrain import Config, run
from yeoul.config import load_config
from yeoul.data.loader import PackedLoader
from yeoul.errors import UserError
from yeoul.recipes.pretrain.config import PretrainConfig
from yeoul.train.log import MetricsLog


@pytest.fixture
def text(tmp_path: Path) -> Path:
    chance = random.Random(0)
    nouns, verbs = ["나무", "강", "새", "달", "아이", "바다", "별"], ["간다", "온다", "웃는다", "잔다", "노래한다"]
    lines = [f"{chance.choice(nouns)}와 {chance.choice(nouns)}가 {chance.choice(verbs)}." for _ in range(600)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


def _config(text: Path, out: Path, **changes) -> Config:
    own = {name: changes.pop(name) for name in ("resume", "overwrite") if name in changes}
    values = {
        "tokens": 24 * 4 * 16, "batch_size": 4, "context": 16, "lr": 3e-3, "dtype": "float32",
        "log_every": 1, "eval_every": 8, "save_every": 4, "preset": "1m", "hidden_size": 32, "layers": 2, "heads": 4,
        "kv_heads": 2, "vocab_size": 340, "val_fraction": 0.1,
    }  # fmt: skip
    settings = PretrainConfig.of(**(values | changes.pop("train", {}) | changes))
    return Config(str(text), out=out, device="cpu", settings=settings, **own)


def test_text_becomes_a_model_folder(text, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(_config(text, out)) == 0
    said = capsys.readouterr().out
    assert "First example" in said and "yeoul generate" in said and "yeoul linearize" in said
    assert {p.name for p in (out / "model").iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip
    from yeoul.model.checkpoint import load_model
    from yeoul.text.tokenizer import Tokenizer

    model, tokenizer = load_model(out), Tokenizer.load(out / "model")
    assert model.config.vocab_size == tokenizer.vocab_size and model.config.eos_id == tokenizer.eos_id
    assert model.config.max_position_embeddings == 16
    lines = MetricsLog(out / "metrics.jsonl").read()
    scores = [line for line in lines if line["kind"] == "val"]
    assert [line["step"] for line in scores] == [8, 16, 24] and scores[-1]["loss"] < scores[0]["loss"]
    assert {"perplexity", "bits_per_byte"} <= set(scores[0])
    assert load_config(Config, out / "config.yaml") == _config(text, out)
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(_config(text, out)) == 0  # the same command again
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_stopped_and_started_again_equals_undisturbed(text, tmp_path, monkeypatch):
    assert run(_config(text, tmp_path / "whole")) == 0
    draw, drawn = PackedLoader.next_batch, 0

    def draw_and_signal(self):
        nonlocal drawn
        drawn += 1
        if drawn == 12:  # the first one is shown as example
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self)

    monkeypatch.setattr(PackedLoader, "next_batch", draw_and_signal)
    assert run(_config(text, tmp_path / "stopped")) == 130
    assert not (tmp_path / "stopped" / "model").exists()
    assert run(_config(text, tmp_path / "stopped")) == 0
    first, second = (untimed(MetricsLog(tmp_path / n / "metrics.jsonl").read()) for n in ("whole", "stopped"))
    assert first == second
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_finished_run_is_lengthened_and_another_is_not(text, tmp_path, capsys):
    assert run(_config(text, tmp_path / "run")) == 0
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    longer = _config(text, tmp_path / "run", train={"tokens": 30 * 4 * 16})
    assert run(longer) == 0 and "lengthened from step 24 to 30" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() != before
    assert json.loads((tmp_path / "run" / "pretrain.json").read_text())["steps"] == 30
    assert run(_config(text, tmp_path / "stopped", train={"tokens": 12 * 4 * 16})) == 0
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000012")
    with pytest.raises(UserError, match=r"only a finished run can be extended .*--tokens 768"):
        run(_config(text, tmp_path / "stopped"))


def test_other_values_are_refused_before_anything_changes(text, tmp_path):
    out = tmp_path / "run"
    config = _config(text, out)
    run(config)
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    for changed, flag in (
        (_config(text, out, lr=1e-4), "--lr"),
        (_config(text, out, layers=1), "--layers"),
        (_config(text, out, vocab_size=335), "--vocab-size"),
        (replace(config, resume=False), "there is already a run"),
    ):
        with pytest.raises(UserError, match=flag):
            run(changed)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == files
    assert run(_config(text, out, layers=1, overwrite=True)) == 0
    assert json.loads((out / "model" / "config.json").read_text())["num_hidden_layers"] == 1
    assert load_config(Config, out / "config.yaml").overwrite is False


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--context", "64", "--max-positions", "32"], "longer than the model's 32 positions"),
        (["--heads", "3"], "not divisible"),
        (["--preset", "9m"], "9m"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--lr", "0"], "--lr"),
        (["--vocab-size", "100000"], "--vocab-size"),
        (["--context", "1000000", "--vocab-size", "340"], "context"),
        (["--tokenz", "5"], "--tokens"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(text, tmp_path, capsys, flags, says):
    out = tmp_path / "run"
    preset = [] if "--preset" in flags else ["--preset", "1m"]
    assert main(["pretrain", str(text), "--out", str(out), *preset, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.strip().splitlines()) == 1 and not out.exists()


def test_sizes_that_are_given_replace_the_presets(tmp_path):
    base = _config(tmp_path, tmp_path).settings.shape
    changed = replace(base, attention=("softmax", "dijiang"), window=8, tie_embeddings=False)
    shape = changed.model_config(16, vocab_size=99)
    assert (shape.hidden_size, shape.num_layers, shape.heads) == (32, 2, (4, 2, 8))
    assert shape.attention == ("softmax", "dijiang") and shape.window == 8 and not shape.tie_embeddings
    assert replace(base, max_positions=64).model_config(16, vocab_size=99).max_position_embeddings == 64


def test_validation_text_of_its_own(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("나무와 강이 노래한다.\n\n별과 달이 잔다.\n\n" * 5, encoding="utf-8")
    out = tmp_path / "run"
    config = _config(text, out, val_data=str(other), train={"tokens": 64, "eval_every": 0})
    assert run(config) == 0 and (out / "val_data" / "train" / "tokens.bin").exists()
    assert [line["kind"] for line in MetricsLog(out / "metrics.jsonl").read()] == ["train", "val"]
