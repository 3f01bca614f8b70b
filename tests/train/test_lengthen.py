"""A finished run is lengthened: it goes on from its last checkpoint, with a schedule of its own for what is added."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.toy import ToyLoader, toy_config, toy_model, untimed
from yeoul.errors import UserError
from yeoul.train.interrupt import Interrupted
from yeoul.train.log import MetricsLog
from yeoul.train.loop import TrainResult, train
from yeoul.train.loss import language_model_objective
from yeoul.train.optim import learning_rate
from yeoul.train.progress import standing

TOKENS = 24  # of a step


def _train(folder: Path, steps: int, stop_at: int | None = None, **changes) -> TrainResult:
    model = toy_model()
    config = toy_config(**({"tokens": steps * TOKENS, "save_every": 3, "log_every": 1} | changes))
    loader = ToyLoader(config.batch_size, config.context)
    draw = loader.next_batch

    def next_batch():
        if loader.drawn == (stop_at or -1) * config.batch_size:
            raise Interrupted(2)
        return draw()

    loader.next_batch = next_batch
    return train(model, loader, language_model_objective, config, folder, save_model=model.save)


def _lines(folder: Path) -> list[dict]:
    return untimed(MetricsLog(folder / "metrics.jsonl").read())


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "schedule": "wsd"}])
def test_lengthened_and_killed_equals_lengthened(tmp_path, changes, capsys):
    for name in "ab":
        _train(tmp_path / name, 10, **changes)
    assert standing(tmp_path / "a").finished
    result = _train(tmp_path / "a", 25, **changes)
    assert result.step == 25 and result.resumed_from == 10
    assert "lengthened from step 10 to 25: the learning rate rises" in capsys.readouterr().err
    with pytest.raises(Interrupted):
        _train(tmp_path / "b", 25, stop_at=17, **changes)
    stands = standing(tmp_path / "b")
    assert (stands.step, stands.steps, stands.finished, stands.budget) == (15, 25, False, 25 * TOKENS)
    with pytest.raises(UserError, match=r"tokens \(600 before, 720 now\)"):
        _train(tmp_path / "b", 30, **changes)
    assert _train(tmp_path / "b", 25, **changes).step == 25
    assert _lines(tmp_path / "a") == _lines(tmp_path / "b")
    a, b = (load_file(tmp_path / n / "checkpoints/step-00000025/state/weights.safetensors") for n in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert _train(tmp_path / "b", 30, **changes).step == 30  # and once more


def test_a_constant_rate_makes_one_long_run(tmp_path):
    settings = {"schedule": "constant", "warmup": 0.0}
    _train(tmp_path / "a", 20, **settings)
    _train(tmp_path / "b", 12, **settings)
    _train(tmp_path / "b", 20, **settings)
    assert _lines(tmp_path / "a") == _lines(tmp_path / "b")


def test_a_run_that_ended_early_is_lengthened(tmp_path):
    ended = _train(tmp_path, 40, lr=1e-9, patience=3)
    assert ended.step < 40
    assert _train(tmp_path, 41, lr=1e-9, patience=3).step > ended.step


def test_tokens_of_the_same_steps_change_nothing(tmp_path):
    _train(tmp_path, 10)
    assert _train(tmp_path, 10, tokens=10 * TOKENS, patience=0).resumed_from == 10
    _train(tmp_path / "x", 10, tokens=10 * TOKENS - 3)
    assert _train(tmp_path / "x", 10).resumed_from == 10
    with pytest.raises(UserError, match="different settings: tokens"):
        _train(tmp_path, 9)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_the_rate_of_what_is_added(schedule):
    config = toy_config(tokens=150 * TOKENS, schedule=schedule, warmup=0.1, lr=1.0, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 50) for step in range(50, 150)]
    if schedule == "constant":
        assert rates == [1.0] * 100
        return
    assert 0.1 < rates[0] < rates[1] < rates[9] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert all(one >= other for one, other in zip(rates[9:], rates[10:], strict=False))
