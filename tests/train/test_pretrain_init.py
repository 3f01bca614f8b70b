"""`yeoul pretrain --init`: a model goes on learning from plain text."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from folders import write_small_folder
from train.toy import untimed
from yeoul.adapt.lora.api import add_lora, save_adapter
from yeoul.adapt.lora.config import LoraConfig
from yeoul.commands.pretrain import Config, run
from yeoul.data.loader import PackedLoader
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, save_model
from yeoul.recipes.pretrain.config import PretrainConfig
from yeoul.text.tokenizer import Tokenizer
from yeoul.train.log import MetricsLog

TEXTS = [f"강 {number}번을 따라 걷는 아이가 노래한다." for number in range(300)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in bfloat16 with its tokenizer, and text."""
    folder = write_small_folder(tmp_path / "base", TEXTS, attention=("hybrid", "softmax"))
    save_model(load_model(folder).to(torch.bfloat16), folder)
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    return folder


def _config(model: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "tokens": 12 * 4 * 16, "batch_size": 4, "context": 16, "lr": 3e-3, "dtype": "float32", "log_every": 1,
        "eval_every": 6, "save_every": 3,
    }  # fmt: skip
    own = {"out": model.parent / "run", "device": "cpu"}
    own |= {name: changes.pop(name) for name in ("out", "resume", "overwrite") if name in changes}
    values |= {"init": str(model), "val_fraction": 0.1} | changes.pop("train", {}) | changes
    return Config(str(model.parent / "text.txt"), settings=PretrainConfig.of(**values), **own)


def test_a_model_goes_on_with_its_tokenizer_and_its_type(model, capsys):
    config = _config(model)
    assert run(config) == 0
    said = capsys.readouterr().out
    assert (
        "lower learning rate than 0.003" in said and "Validation before training: loss" in said and str(model) in said
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (model, config.out / "model"))
    assert before.keys() == after.keys()
    assert all(t.dtype == torch.bfloat16 for name, t in after.items() if "feature_map" not in name)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert Tokenizer.load(config.out / "model").fingerprint == Tokenizer.load(model).fingerprint
    shapes = [replace(load_model(folder).config, family=None) for folder in (model, config.out / "model")]
    assert shapes[0] == shapes[1]
    lines = MetricsLog(config.out / "metrics.jsonl").read()
    val = [line["loss"] for line in lines if line["kind"] == "val"]
    assert val[-1] < lines[0]["loss"] and "made the model worse" not in said
    assert run(config) == 0  # the same command again


def test_stopped_and_started_again_equals_undisturbed(model, monkeypatch):
    assert run(_config(model, out=model.parent / "whole")) == 0
    draw, drawn = PackedLoader.next_batch, 0

    def draw_and_signal(self):
        nonlocal drawn
        drawn += 1
        if drawn == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self)

    with monkeypatch.context() as patch:
        patch.setattr(PackedLoader, "next_batch", draw_and_signal)
        assert run(_config(model)) == 130
    assert run(_config(model)) == 0
    first, second = (untimed(MetricsLog(model.parent / name / "metrics.jsonl").read()) for name in ("whole", "run"))
    assert first == second
    a, b = (load_file(model.parent / name / "model" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    save_model(_doubled(model), model)
    with pytest.raises(UserError, match="different contents: init"):
        run(_config(model))


def _doubled(folder: Path) -> Any:
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def test_a_run_that_makes_it_worse_keeps_the_model(model, capsys):
    run(_config(model, out=model.parent / "good", train={"tokens": 60 * 4 * 16}))
    good = model.parent / "good" / "model"
    assert run(_config(model, init=str(good), train={"lr": 0.5})) == 0
    assert "Training made the model worse" in capsys.readouterr().out
    a, b = (load_file(folder / "model.safetensors") for folder in (good, model.parent / "run" / "model"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("changes", "says"), [
    ({"layers": 2}, "--layers"), ({"tokenizer": Path("x")}, "--tokenizer"), ({"vocab_size": 500}, "--vocab-size"),
    ({"preset": "1m"}, "--preset"), ({"train": {"context": 65}}, "longer than the model's 64 positions"),
    ({"init": "runs/nowhere"}, "runs/nowhere"),
])  # fmt: skip
def test_what_the_model_decides_is_refused_by_name(model, changes, says):
    with pytest.raises(UserError, match=says):
        run(_config(model, **changes))
    assert not (model.parent / "run").exists()


def test_adapters_and_models_in_the_way_are_refused(model):
    with pytest.raises(UserError, match="the model of --init is inside this folder"):
        run(_config(model, out=model.parent / "base"))
    loaded = load_model(model)
    add_lora(loaded, LoraConfig(r=2))
    save_adapter(loaded, model.parent / "adapter")
    with pytest.raises(UserError, match="this is an adapter"):
        run(_config(model, init=str(model.parent / "adapter")))
