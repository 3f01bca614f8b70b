"""How far a run is, by the checkpoints in its folder; reads no tensors, and needs no torch."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yeoul.errors import UserError
from yeoul.safe_json import read_object

LARGEST_STATE = 2**28
"""Bytes of a checkpoint's trainer.json."""
UNREADABLE = (UserError, AttributeError, LookupError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
"""What is raised for values that are not as they were written."""
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return checkpoints / f"step-{step:08d}"


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that stand in a folder, ascending."""
    if not checkpoints.is_dir():
        return []
    found = (_STEP_FOLDER.fullmatch(entry.name) for entry in checkpoints.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in found if match)


def read_trainer(path: Path) -> dict[str, Any]:
    """The values of a trainer.json; `check_values` says whether they are right."""
    return read_object(path, largest=LARGEST_STATE, most_values=None, finite=False)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a run has come by its newest checkpoint that can be read.

    Attributes:
        step, steps: done, and of the whole run as far as is known.
        tokens, budget: done, and of the whole run.
        seconds: time spent in steps.
        checkpoint: its folder.
        finished: whether nothing is left to do.
        settings: what the loop was told.
    """

    step: int
    steps: int
    tokens: int
    budget: int
    seconds: float
    checkpoint: Path
    finished: bool
    settings: dict[str, Any]


def standing(run_dir: Path) -> Standing | None:
    """The progress of the run in a folder, or None where there is no checkpoint of one; reads no tensors."""
    for step in reversed(saved_steps(run_dir / "checkpoints")):
        folder = step_folder(run_dir / "checkpoints", step)
        with suppress(*UNREADABLE):
            values = read_trainer(folder / "state" / "trainer.json")
            check_values(values)
            return Standing(
                step=values["step"], steps=_end(values), tokens=values["tokens"], budget=values["config"]["tokens"],
                seconds=values["seconds"], checkpoint=folder, finished=is_finished(values), settings=values["config"],
            )  # fmt: skip
    return None


def is_finished(values: dict[str, Any]) -> bool:
    """Whether a checkpoint is the last one of its run, by the values of its trainer.json."""
    return bool(values["step"] >= _end(values))


def _end(values: dict[str, Any]) -> int:
    """Steps of the run that a checkpoint belongs to."""
    if "plateau" in values:
        return int(values["plateau"]["end"])
    config = values["config"]
    return -(-int(config["tokens"]) // (config["batch_size"] * config["context"] * config["accumulate"]))


def check_values(values: dict[str, Any]) -> None:
    """ValueError where a value of trainer.json is not what `yeoul.train.loop` wrote there."""
    for name in ("step", "tokens", "seconds"):
        require(_is_number(values[name]) and values[name] >= 0, name)
    require(isinstance(values["step"], int) and isinstance(values["tokens"], int), "step")
    for name in ("config", "identity", "loader", "pending"):
        require(isinstance(values[name], dict), name)
    require(
        all(map(_is_number, values["pending"].values())) and {"count", "loss"} <= values["pending"].keys(), "pending"
    )
    for name in values["loader"].keys() & {"epoch", "index", "seed"}:
        require(isinstance(values["loader"][name], int) and values["loader"][name] >= 0, f"loader {name}")
    best = values["best"]
    require(best is None or (isinstance(best["step"], int) and _is_number(best["loss"])), "best")
    if (plateau := values.get("plateau")) is not None:
        before = plateau["before"]
        require(before is None or (len(before) == 2 and all(map(_is_number, before))), "plateau before")
        require(isinstance(plateau["now"], list) and all(map(_is_number, plateau["now"])), "plateau now")
        for name in ("end", "found_at"):
            require(isinstance(plateau[name], int) and plateau[name] >= 0, f"plateau {name}")
        require(_is_number(plateau["rate"]) and plateau["end"] >= values["step"], "plateau rate")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def require(ok: bool, name: str) -> None:
    """ValueError where a value of trainer.json is not right."""
    if not ok:
        raise ValueError(f"the value of {name} is damaged")
