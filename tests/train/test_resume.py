"""Killed anywhere, resumed, and bitwise the same as never having stopped."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.toy import ToyLoader, toy_config, toy_model, untimed
from yeoul.errors import UserError
from yeoul.train import runstate
from yeoul.train.interrupt import Interrupted
from yeoul.train.log import MetricsLog
from yeoul.train.loop import TrainResult, train
from yeoul.train.loss import language_model_objective

STEPS = 160


def _train(folder: Path, **changes) -> TrainResult:
    changes = {"tokens": STEPS * 4 * 6, "accumulate": 2, "batch_size": 2, "save_every": 2, "eval_every": 16} | changes
    model = toy_model()

    def validate() -> dict[str, float]:
        torch.rand(3)  # draws, as a sampling validation would
        loss = language_model_objective(model, ToyLoader(8, 6).next_batch())
        return {"loss": float(loss.total) / loss.count}

    config = toy_config(**changes)
    loader = ToyLoader(config.batch_size, config.context)
    return train(model, loader, language_model_objective, config, folder, save_model=model.save, validate=validate)


def _in_child(action: Callable[[], object]) -> int:
    """Process id of a forked child that runs `action` and exits with 0."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        action()
        code = 0
    finally:
        os._exit(code)


def _exit_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at_disk_call(number: int) -> None:
    """From now on the process kills itself at its `number`-th call that makes something durable or visible."""
    calls = 0

    def deadly(original):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, deadly(getattr(os, name)))


def _state(folder: Path) -> dict[str, torch.Tensor]:
    state = folder / "checkpoints" / f"step-{STEPS:08d}" / "state"
    return {f"{file.name}/{key}": t for file in state.glob("*.safetensors") for key, t in load_file(file).items()}


def _assert_same_run(one: Path, other: Path) -> None:
    first, second = (untimed(MetricsLog(folder / "metrics.jsonl").read()) for folder in (one, other))
    assert first == second
    a, b = _state(one), _state(other)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert (one / "checkpoints/best.json").read_text() == (other / "checkpoints/best.json").read_text()
    names = [sorted(p.name for p in (folder / "checkpoints").iterdir()) for folder in (one, other)]
    assert names[0] == names[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_twenty_moments_equals_undisturbed(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    _train(tmp_path / "warm", tokens=24)  # torch's lazy imports happen here and not in every child
    assert _exit_of(_in_child(lambda: _train(undisturbed))) == 0
    checkpoints = runstate.Checkpoints(killed / "checkpoints", 2)
    chance = random.Random(7)
    deaths, steps_at_death = 0, []
    for life in range(20):
        if life % 2:
            number = chance.randint(1, 60)
            child = _in_child(lambda number=number: (_die_at_disk_call(number), _train(killed)))
        else:
            child = _in_child(lambda: _train(killed))
            # By progress and not by the clock alone, so that a quick machine does not finish first.
            goal = max(checkpoints.steps(), default=0) + chance.choice((0, 2, 4, 6))
            while max(checkpoints.steps(), default=0) < goal:
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
        deaths += _exit_of(child) == -signal.SIGKILL
        steps_at_death.append(max(checkpoints.steps(), default=0))
    assert deaths == 20 and len(set(steps_at_death)) > 5, (deaths, steps_at_death)
    assert _exit_of(_in_child(lambda: _train(killed))) == 0
    _assert_same_run(undisturbed, killed)


@pytest.mark.parametrize("changes", [{"optimizer": "muon"}, {"log_every": 7, "save_every": 5}])
def test_stopped_by_sigterm_equals_undisturbed(tmp_path, changes, capsys):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    _train(undisturbed, **changes)
    draw, drawn = ToyLoader.next_batch, 0

    def draw_and_signal(self):
        nonlocal drawn
        drawn += 1
        if drawn == 37:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyLoader, "next_batch", draw_and_signal)
        with pytest.raises(Interrupted) as stop:
            _train(stopped, **changes)
    assert stop.value.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert "Run the same command again to go on" in capsys.readouterr().err
    _train(stopped, **changes)
    first, second = (untimed(MetricsLog(f / "metrics.jsonl").read()) for f in (undisturbed, stopped))
    assert first == second
    a, b = _state(undisturbed), _state(stopped)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_second_signal_stops_at_once(tmp_path, monkeypatch):
    def signal_twice(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal must have raised")

    monkeypatch.setattr(ToyLoader, "next_batch", signal_twice)
    with pytest.raises(Interrupted) as stop:
        _train(tmp_path)
    assert stop.value.exit_code == 130
    monkeypatch.undo()
    assert _train(tmp_path).step == STEPS


def test_finished_run_started_again_ends_with_its_result(tmp_path, capsys):
    first = _train(tmp_path, tokens=10 * 24)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = _train(tmp_path, tokens=10 * 24)
    assert "already finished" in capsys.readouterr().err
    assert (again.step, again.loss, again.validation, again.best) == (
        first.step, first.loss, first.validation, first.best
    )  # fmt: skip
    assert again.resumed_from == again.step and (tmp_path / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused_by_name_and_watching_may_change(tmp_path):
    _train(tmp_path, tokens=10 * 24)
    with pytest.raises(UserError, match=r"lr \(0\.01 before, 0\.02 now\)"):
        _train(tmp_path, tokens=10 * 24, lr=0.02)
    _train(tmp_path, tokens=10 * 24, log_every=3, eval_every=5, save_every=4, keep_last=1)
    with pytest.raises(UserError, match="there is already a run"):
        train(
            toy_model(), ToyLoader(4, 6), language_model_objective, toy_config(), tmp_path,
            save_model=lambda f: None, resume=False,
        )  # fmt: skip


@pytest.mark.parametrize("victim", ["trainer.json", "optimizer.safetensors", "weights.safetensors", "rng.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, victim, damage, capsys):
    _train(tmp_path, tokens=10 * 24)
    newest = tmp_path / "checkpoints" / "step-00000010"
    file = newest / "state" / victim
    if damage == "remove":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"\xff" * len(content))
    result = _train(tmp_path, tokens=10 * 24)
    said = capsys.readouterr().err
    assert result.resumed_from == 8 and victim in said and "damaged" in said
    assert newest.is_dir() and (tmp_path / "checkpoints" / "damaged-step-00000010").is_dir()


def _spoil(folder: Path, what: str) -> None:
    """Change one thing of a checkpoint's state so that it can still be read."""
    file = folder / "state" / "trainer.json"
    values = json.loads(file.read_text())
    numbers = values["rng"]["python"][1]
    changes = {
        "python": lambda: numbers.pop(), "python index": lambda: numbers.__setitem__(-1, 625),
        "numpy": lambda: values["rng"]["numpy"][1].append(1),
        "numpy position": lambda: values["rng"]["numpy"].__setitem__(2, 9999),
        "numpy none": lambda: values["rng"].update(numpy=None), "no rng": lambda: values.pop("rng"),
        "plateau": lambda: values["plateau"].update(now=None),
        "plateau pair": lambda: values["plateau"].update(before=[1]),
        "plateau end": lambda: values["plateau"].update(end="x"), "plateau kind": lambda: values.update(plateau=[1]),
        "step": lambda: values.update(step=None), "pending": lambda: values.update(pending={"loss": "x"}),
        "best": lambda: values.update(best={"step": 2}), "loader": lambda: values["loader"].update(index=-1),
        "identity": lambda: values.update(identity=None),
    }  # fmt: skip
    if what in changes:
        changes[what]()
        file.write_text(json.dumps(values))
        return
    name, _, change = what.partition(" ")
    path = folder / "state" / f"{name}.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if tensors[key].numel() > 1)
    tensors[key] = {"short": tensors[key][:-1], "float": tensors[key].double(), "zero": tensors[key] * 0}.get(change)
    if tensors[key] is None:
        del tensors[key]
    save_file(tensors, path)
    values["files"][path.name] = path.stat().st_size
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("what", [
    "python", "python index", "numpy", "numpy position", "numpy none", "no rng", "plateau", "plateau pair",
    "plateau end", "plateau kind", "step", "pending", "best", "loader", "identity", "rng short", "rng float",
    "rng zero", "rng none", "optimizer short", "optimizer none",
])  # fmt: skip
def test_state_that_cannot_be_gone_on_with_is_damaged_too(tmp_path, what, capsys):
    changes = {"tokens": 10 * 24, "patience": 2}
    _train(tmp_path, **changes)
    _spoil(tmp_path / "checkpoints" / "step-00000010", what)
    result = _train(tmp_path, **changes)
    assert result.resumed_from == 8 and "Checkpoint of step 10 is damaged" in capsys.readouterr().err
    for folder in tmp_path.glob("checkpoints/step-*"):
        _spoil(folder, what)
    with pytest.raises(UserError, match="no checkpoint can be resumed") as error:
        _train(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_all_checkpoints_damaged_is_one_sentence(tmp_path):
    _train(tmp_path, tokens=10 * 24)
    for file in tmp_path.glob("checkpoints/step-*/state/trainer.json"):
        file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match=r"no checkpoint can be resumed: .*trainer\.json"):
        _train(tmp_path, tokens=10 * 24)


def test_torn_last_line_of_metrics_is_dropped(tmp_path):
    _train(tmp_path / "a", tokens=10 * 24)
    _train(tmp_path / "b", tokens=10 * 24)
    path = tmp_path / "b" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "train", "st')
    _train(tmp_path / "b", tokens=10 * 24)
    a, b = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in "ab"
    )
    assert untimed(a) == untimed(b)
