"""`yeoul demo` and what it is made of: the plan of the time, command lines, the state in its folder."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from report.reading import foreign, seen
from yeoul.commands import demo as command
from yeoul.commands import linearize, pretrain
from yeoul.config import parse_flags
from yeoul.errors import UserError
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.command_line import command_line
from yeoul.recipes.demo import budget as plan
from yeoul.recipes.demo import run as demo
from yeoul.recipes.demo.config import DemoConfig
from yeoul.recipes.demo.report import collect, linear_results
from yeoul.report import plots
from yeoul.train.config import TrainConfig
from yeoul.train.loss import language_model_objective

PLAN = {**demo.TEXT, "val_tokens": 5000, "contexts": [512, 2048], "preset": "5m", "linear_tokens": 99_000}


def test_clock_counts_down(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(plan.time, "monotonic", lambda: now[0])
    clock = plan.Clock(300.0, spent={"text": 20.0}, estimates={})
    assert clock.left() == "4 min 40 s"
    clock.estimates = {"pretrain": 100.0, "report": 10.0}
    now[0] += 30
    assert clock.left() == "1 min 20 s" and clock.elapsed() == 50.0
    assert clock.remaining() == pytest.approx(300 * plan.MARGIN - 50)
    clock.finish("pretrain", 95.0)
    assert clock.left() == "10 s" and clock.total() == "1 min 55 s"
    now[0] += 60
    assert clock.left() == "0 s"


def test_contexts_grow_as_far_as_time_allows():
    slow, cost = plan.speed_contexts(1 / 500, 30.0)
    fast, _ = plan.speed_contexts(1 / 50_000, 30.0)
    assert max(fast) == 16384 and max(slow) < 16384
    assert all(contexts == sorted(set(contexts)) and len(contexts) >= 2 for contexts in (slow, fast))
    assert cost > 0


def test_measuring_leaves_the_weights_alone():
    model = Decoder(ModelConfig(vocab_size=32, hidden_size=16, num_layers=1, num_heads=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seconds = plan.seconds_per_token(model, language_model_objective, TrainConfig(batch_size=2, context=8))
    assert 0 < seconds < 10
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_command_lines_give_the_same_configuration(tmp_path):
    config, out = DemoConfig(seed=3), tmp_path / "a b"
    settings, linear = demo.pretrain_config(config, out, PLAN), demo.linearize_config(config, PLAN)
    for verb, module, words, made in (
        ("pretrain", pretrain, command_line("pretrain", "a b.txt", settings=settings, out="runs/x y"),
         pretrain.Config("a b.txt", out=Path("runs/x y"), settings=settings)),
        ("linearize", linearize, command_line("linearize", "m", settings=linear),
         linearize.Config("m", settings=linear)),
        ("demo", command, demo.demo_command(config, out), command.Config(out=out, settings=config)),
    ):  # fmt: skip
        assert shlex.split(words)[:2] == ["yeoul", verb]
        assert parse_flags(module.Config, shlex.split(words)[2:], program=f"yeoul {verb}") == made


def test_refuses_what_is_not_a_demo(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not a demo folder"):
            demo.demo(out=tmp_path, overwrite=overwrite)
    with pytest.raises(UserError, match="not a folder"):
        demo.demo(out=tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="--minutes"):
        DemoConfig(minutes=0)


def test_an_unfinished_demo_goes_on_only_with_its_settings(tmp_path):
    out = tmp_path / "x"
    assert demo.begin(DemoConfig(seed=1), out)["settings"] == {"minutes": 5.0, "seed": 1}
    with pytest.raises(UserError, match="--minutes 5.0 --seed 1"):
        demo.begin(DemoConfig(seed=2), out)
    (out / "demo.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        demo.begin(DemoConfig(seed=1), out)
    assert demo.begin(DemoConfig(seed=2), out, overwrite=True)["settings"]["seed"] == 2


def test_an_unfinished_linearize_run_is_named(tmp_path):
    with pytest.raises(UserError, match="not finished"):
        linear_results(tmp_path)
    (tmp_path / "linearize.json").write_text("[")
    with pytest.raises(UserError, match=r"is not JSON.*linearize\.json.*linearize. again"):
        linear_results(tmp_path)


def raising(error):
    def work(*_):
        raise error

    return work


def test_a_small_demo_from_beginning_to_end(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    monkeypatch.setattr(demo, "TEXT", {**demo.TEXT, "data": "builtin:150KB", "batch_size": 2, "context": 64})
    monkeypatch.setattr(demo, "TOKENIZER_TEXT", "builtin:150KB")
    monkeypatch.setattr(demo, "VOCAB", 1300)
    monkeypatch.setattr(demo, "QUESTIONS", 2)
    monkeypatch.setattr(demo, "SAMPLING", {**demo.SAMPLING, "max_tokens": 4})
    monkeypatch.setattr(plan, "SHAPES", (("1m", 2, 2e-3),))
    monkeypatch.setattr(plan, "speed_contexts", lambda forward, limit: ([16, 64], 1.0))
    whole = plan.plan_pretraining
    few = {"val_tokens": 400, "pretrain_tokens": 128 * 6, "eval_every": 3, "log_every": 1}
    monkeypatch.setattr(plan, "plan_pretraining", lambda *a: {**whole(*a), **few})
    linear = plan.plan_linearizing
    monkeypatch.setattr(plan, "plan_linearizing", lambda *a: {**linear(*a), "linear_tokens": 128 * 24})
    config = command.Config(out=out, settings=DemoConfig(minutes=0.2))

    monkeypatch.setattr(demo._Demo, "write", raising(KeyboardInterrupt))  # Ctrl-C
    assert command.run(config) == 130
    assert "To continue: yeoul demo" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(demo, "QUESTIONS", 2)
    monkeypatch.setattr(demo, "SAMPLING", {**demo.SAMPLING, "max_tokens": 4})
    monkeypatch.setattr(plots, "available", lambda: False)  # drawing is tested elsewhere
    assert command.run(config) == 0
    said = capsys.readouterr().out
    assert "[3/5]" in said and "already done" in said and "What to try next" in said
    state = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert state["finished"] and set(state["seconds"]) == set(demo.STEPS)
    found = collect(out / "pretrain", out / "linear")
    assert [row.role for row in found["models"]][:2] == ["teacher", "converted"]
    assert [stage.name for stage in found["stages"]] == ["pretrain", "align", "distil"]
    assert {curve.stage for curve in found["curves"]} == {"pretrain", "align", "distil"}
    assert "without the linear part" in (out / "report.md").read_text(encoding="utf-8")
    page = (out / "report.html").read_text(encoding="utf-8")
    for language in ("en", "ko"):
        assert len(seen(page, language)) > 100 and foreign(page, language) == []
    assert (out / "linear" / "model" / "tokenizer.json").is_file()
    assert command.run(config) == 0
    assert "--overwrite" in capsys.readouterr().out
