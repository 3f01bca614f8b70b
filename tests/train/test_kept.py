"""Which state of a run is kept, and that saving is tried before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train.toy import ToyLoader, ToyModel, toy_config, toy_model
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.train.criterion import BY_LOSS, Criterion
from yeoul.train.kept import Kept, keep_best
from yeoul.train.log import MetricsLog
from yeoul.train.loop import TrainResult, train
from yeoul.train.loss import Loss, language_model_objective

BY_ORDER = Criterion(key="spearman", name="Spearman", higher=True)


def trained(
    out: Path, losses: list[float], keep_last: int = 1, spearmans: list[float] | None = None
) -> tuple[ToyModel, TrainResult, dict[str, Tensor]]:
    """A run whose validations give these losses, its model, and the model's weights before it."""
    model, values, orders = toy_model(), iter(losses), iter(spearmans or [])
    criterion, more = (BY_LOSS, ()) if spearmans is None else (BY_ORDER, ("spearman",))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = toy_config(tokens=10 * len(losses) * 24, eval_every=10, save_every=0, keep_last=keep_last)
    result = train(
        model, ToyLoader(4, 6), language_model_objective, config, out, save_model=model.save,
        criterion=criterion,
        validate=lambda: {"loss": (loss := next(values)), "accuracy": 10 - loss} | dict.fromkeys(more, next(orders, 0)),
    )  # fmt: skip
    return model, result, start


def test_the_best_is_what_the_criterion_says(tmp_path: Path) -> None:
    """The loss of vectors falls, too, while they become alike."""
    model, result, start = trained(tmp_path, [3.0, 2.0, 1.0], spearmans=[0.5, 0.7, 0.1])
    assert result.best == {"step": 20, "loss": 2.0, "spearman": 0.7}
    before = {"loss": 9.0, "spearman": 0.9}
    assert keep_best(model, result, before, lambda: start, BY_ORDER) == Kept(step=0, validation=before)
    kept = keep_best(model, result, before | {"spearman": 0.6}, lambda: start, BY_ORDER)
    assert kept.step == 20 and kept.validation["spearman"] == 0.7 and same(model, weights(tmp_path, 20))
    assert BY_ORDER.rank({"loss": 2.0, "spearman": 0.5}) < BY_ORDER.rank({"loss": 3.0, "spearman": 0.5})
    assert BY_ORDER.rank({"loss": 2.0, "spearman": math.nan}) == BY_ORDER.rank({}) == (math.inf, math.inf)


def weights(out: Path, step: int) -> dict[str, Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / "state" / "weights.safetensors")


def same(model: nn.Module, wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, wanted[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(("losses", "step"), [([2.0, 1.0, 3.0, 4.0], 20), ([3.0, 2.0, 2.0], 20), ([3.0, 2.0, 1.0], 30)])
def test_the_best_state_is_kept(losses: list[float], step: int, tmp_path: Path) -> None:
    model, result, start = trained(tmp_path, losses)
    kept = keep_best(model, result, {"loss": 9.0}, lambda: start)
    best = min(losses)
    assert kept == Kept(step=step, validation={"loss": best, "accuracy": 10 - best})
    assert same(model, weights(tmp_path, step)) and not same(model, start)


@pytest.mark.parametrize("losses", [[2.0, 3.0], [math.nan, math.nan]])
def test_the_state_before_counts_where_it_is_of_use(losses: list[float], tmp_path: Path) -> None:
    model, result, start = trained(tmp_path, losses)
    last = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert keep_best(model, result).step == (10 if losses[0] == 2 else 20)  # of no use
    kept = keep_best(model, result, {"loss": 1.5, "accuracy": 8.5}, lambda: start)
    assert kept == Kept(step=0, validation={"loss": 1.5, "accuracy": 8.5}) and same(model, start)
    assert not same(model, last)


def test_without_validation_or_the_best_checkpoint_it_is_the_last(tmp_path: Path) -> None:
    model = toy_model()
    result = train(model, ToyLoader(4, 6), language_model_objective, toy_config(tokens=24), tmp_path / "none",
                   save_model=model.save)  # fmt: skip
    assert keep_best(model, result, {}, dict) == Kept(step=1, validation={})
    model, result, _ = trained(tmp_path / "lost", [1.0, 2.0])
    (tmp_path / "lost/checkpoints/step-00000010/state/weights.safetensors").unlink()
    last = weights(tmp_path / "lost", 20)
    assert keep_best(model, result) == Kept(step=20, validation={"loss": 2.0, "accuracy": 8.0}, lost=True)
    assert same(model, last)


def _refuses(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    raise UserError("the tokenizer cannot be saved", folder)


def _is_broken(folder: Path) -> None:
    raise KeyError("a bug")


@pytest.mark.parametrize(("save", "error"), [(_refuses, UserError), (_is_broken, KeyError)])
def test_what_cannot_be_saved_is_said_before_training(
    save: Callable[[Path], None], error: type[Exception], tmp_path: Path
) -> None:
    steps = 0

    def objective(model: nn.Module, batch: Batch) -> Loss:
        nonlocal steps
        steps += 1
        return language_model_objective(model, batch)

    with pytest.raises(error):
        train(toy_model(), ToyLoader(4, 6), objective, toy_config(), tmp_path, save_model=save)
    assert not steps and not list((tmp_path / "checkpoints").iterdir())
    assert not MetricsLog(tmp_path / "metrics.jsonl").read()


def test_saving_first_changes_no_loss(tmp_path: Path) -> None:
    """Whatever saving draws from the random generators."""
    found = []
    for name, draws in (("plain", 0), ("draws", 5)):
        model = toy_model()
        train(model, ToyLoader(4, 6), language_model_objective, toy_config(), tmp_path / name,
              save_model=lambda folder, model=model, n=draws: (torch.rand(n), model.save(folder))[1])  # fmt: skip
        found.append([line["loss"] for line in MetricsLog(tmp_path / name / "metrics.jsonl").read()])
    assert found[0] == found[1]
