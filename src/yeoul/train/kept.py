"""Which state of a run is kept: the one with the best validation, that before the training included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from yeoul.train.criterion import BY_LOSS, Criterion
from yeoul.train.log import MetricsLog
from yeoul.train.loop import TrainResult
from yeoul.train.optim import trainable_parameters


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The state that is the result of a run.

    Attributes:
        step: after which it was found; 0 is the state before the training.
        validation: its values, empty where nothing was validated.
        lost: whether the best state could not be read any more, so that the last one is kept.
    """

    step: int
    validation: dict[str, float]
    lost: bool = False


def keep_best(
    model: nn.Module,
    result: TrainResult,
    before: Mapping[str, float] | None = None,
    start: Callable[[], Mapping[str, Tensor]] | None = None,
    criterion: Criterion = BY_LOSS,
) -> Kept:
    """Puts the best of the validated states into the trained parameters of `model`, which holds the last one.

    Where nothing was validated, or no validation was finite, that is the last one; of equal ones the earlier one.

    Args:
        model: as `yeoul.train.loop.train` leaves it.
        result: of that training.
        before: validation of the model before it; None or empty where that state is of no use, such as an untrained
            head.
        start: gives the trained parameters as they were then, by name; needed with `before`.
        criterion: that of the training.
    """
    best, before = result.best, dict(before or {})
    first = criterion.rank(before)
    if start is not None and math.isfinite(first[0]) and (best is None or first < criterion.rank(best)):
        put_weights(model, start())
        return Kept(step=0, validation=before)
    if best is None or best["step"] == result.step:
        return Kept(step=result.step, validation=result.validation)
    folder = result.checkpoint.with_name(f"step-{best['step']:08d}")
    try:
        put_weights(model, load_file(folder / "state" / "weights.safetensors"))
    except (OSError, SafetensorError, KeyError):
        return Kept(step=result.step, validation=result.validation, lost=True)
    return Kept(step=best["step"], validation=_validation_at(result.checkpoint.parents[1], best))


def _validation_at(run_dir: Path, best: Mapping[str, float]) -> dict[str, float]:
    """All values of a validation, from the run's log."""
    for line in reversed(MetricsLog(run_dir / "metrics.jsonl").read()):
        if line["kind"] == "val" and line["step"] == best["step"]:
            return {key: value for key, value in line.items() if key not in ("kind", "step", "tokens")}
    return {key: value for key, value in best.items() if key != "step"}


@torch.no_grad()
def put_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Trained parameters by name; none is changed where one is missing.

    Raises:
        KeyError: a trained parameter is not among the tensors.
    """
    parameters = trainable_parameters(model)
    found = {name: tensors[name] for name in parameters}
    for name, parameter in parameters.items():
        parameter.copy_(found[name])
