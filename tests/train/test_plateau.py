"""A run ends early where its loss no longer falls, at the same step whether it was stopped or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from train.toy import ToyLoader, toy_config, toy_model, untimed
from yeoul.errors import UserError
from yeoul.train.interrupt import Interrupted
from yeoul.train.log import MetricsLog
from yeoul.train.loop import TrainResult, train
from yeoul.train.loss import language_model_objective
from yeoul.train.optim import learning_rate
from yeoul.train.plateau import Plateau


def noted(losses: list[float], patience: int = 10) -> tuple[int | None, Plateau]:
    """The step that shows the plateau, and the object."""
    plateau = Plateau(toy_config(patience=patience, tokens=4 * 6 * len(losses)))
    for step, loss in enumerate(losses, start=1):
        if plateau.note(step, loss, plateau.learning_rate(step - 1)):
            return step, plateau
    return None, plateau


def test_a_falling_loss_goes_on_and_a_flat_one_ends() -> None:
    assert noted([0.99**i for i in range(100)])[0] is None
    assert noted([1.0] * 100)[0] == 20
    assert noted([0.97**i for i in range(50)] + [0.97**50] * 50)[0] == 70
    assert noted([1.0] * 100, patience=0)[0] is None
    assert noted([1 + i / 100 for i in range(100)])[0] == 20  # a rising one too


def test_noise_that_hides_the_gain_speaks_for_going_on() -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0)).tolist()
    falling = [2 - 0.006 * i for i in range(100)]  # 3 % in a window of 10, as much as the noise of a step
    assert noted([value + 0.06 * z for value, z in zip(falling, noise, strict=True)])[0] is None
    assert noted([2 + 0.06 * z for z in noise])[0] is not None


def test_the_learning_rate_decays_to_its_last_value_by_the_end() -> None:
    step, plateau = noted([1.0] * 100)
    assert step == 20 and plateau.end == 25
    rates = [plateau.learning_rate(s) for s in range(19, 25)]
    assert rates[0] > learning_rate(plateau.config, 20)  # what it was in the step that showed it
    falls = [a - b for a, b in zip(rates, rates[1:], strict=False)]
    assert rates[-1] == pytest.approx(plateau.config.lr * plateau.config.min_lr_ratio)
    assert min(falls) > 0 and max(falls[1:]) == pytest.approx(min(falls[1:]))


def test_nothing_is_cut_short_where_the_schedule_ends_as_soon() -> None:
    assert noted([1.0] * 25)[0] is None and noted([1.0] * 26)[0] == 20


def _train(folder: Path, **changes: object) -> TrainResult:
    model = toy_model()
    settings = {"tokens": 120 * 4 * 6, "lr": 1e-6, "min_lr_ratio": 1.0, "patience": 20, "save_every": 12} | changes
    config = toy_config(**settings)
    return train(
        model, ToyLoader(4, 6), language_model_objective, config, folder,
        save_model=model.save, validate=lambda: {"loss": 1.0},
    )  # fmt: skip


def test_a_stopped_run_ends_at_the_same_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = _train(tmp_path / "whole")
    assert 40 < whole.step < 120 and whole.unspent == (120 - whole.step) * 24
    assert "stopped falling" in capsys.readouterr().err
    draw = ToyLoader.next_batch
    for stop_at in (15, 38, whole.step - 4):

        def stopping(self: ToyLoader, stop_at: int = stop_at) -> object:
            if self.drawn // 4 == stop_at:
                raise Interrupted(2)
            return draw(self)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(ToyLoader, "next_batch", stopping)
            _train(tmp_path / "stopped")
    again = _train(tmp_path / "stopped")
    assert (again.step, again.unspent) == (whole.step, whole.unspent)
    first, second = (untimed(MetricsLog(tmp_path / f / "metrics.jsonl").read()) for f in ("whole", "stopped"))
    assert first == second
    assert _train(tmp_path / "stopped").resumed_from == whole.step  # finished: nothing more is done
    with pytest.raises(UserError, match="patience"):
        _train(tmp_path / "stopped", patience=10)
