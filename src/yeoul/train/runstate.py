"""Checkpoints of a run: written beside, fsynced, renamed; read back bit by bit; never pickled.

Layout of one checkpoint, `checkpoints/step-00000100/`:

    model/                     what the `save_model` callback writes: a Hugging Face folder
    state/weights.safetensors  the trained parameters, exactly as they were (model/ may hold another dtype)
    state/optimizer.safetensors  tensors named "parameter|key"
    state/rng.safetensors      random states of torch on the CPU and on each CUDA device
    state/trainer.json         the rest, and the sizes of the files above
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from yeoul.errors import UserError
from yeoul.files import (
    UNFINISHED,
    delete,
    disk_errors,
    only_run,
    put_in_place,
    remove,
    scratch_folder,
    sync_tree,
    write_json,
)
from yeoul.safe_json import read_object

FORMAT = 1
LARGEST_STATE = 2**28
"""Bytes of a checkpoint's trainer.json."""
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_DAMAGED = "damaged-"
_UNREADABLE = (UserError, AttributeError, LookupError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
"""What is raised for values that are not as they were written."""


class DamagedCheckpoint(Exception):
    """A checkpoint cannot be read; the text names the file and what is wrong with it."""


@dataclass(kw_only=True)
class RunState:
    """Everything a run needs to continue as if it had never stopped.

    Attributes:
        values: plain JSON values: step, tokens, seconds, best, config, identity, loader, log sums, optimizer
            layout.
        weights: trained parameters by name.
        optimizer: optimizer tensors by "parameter|key".
        rng: random states, from `random_state()`.
        plain_rng: random states of Python and NumPy, as JSON values.
    """

    values: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    plain_rng: dict[str, Any]


class Checkpoints:
    """The checkpoints folder of one run.

    Args:
        folder: `OUT/checkpoints`, made when the first checkpoint is written.
        keep_last: newest checkpoints that pruning leaves.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that stand here, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_STEP_FOLDER.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def clean(self) -> None:
        """Remove what killed writers left; who calls it holds the run's lock."""
        if self.folder.is_dir():
            for entry in self.folder.glob(f"{UNFINISHED}*"):
                delete(entry)

    def save(self, state: RunState, save_model: Callable[[Path], None]) -> Path:
        """Write a checkpoint and point `latest.json` at it; it is whole or it is not there.

        Raises:
            UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        step, earlier = state.values["step"], self.steps()
        final = self.path(step)
        kept = f"the checkpoint of step {earlier[-1]} is untouched" if earlier else ""
        with disk_errors(final, kept), scratch_folder(final) as new:
            (new / "state").mkdir()
            save_model(new / "model")
            _write_state(state, new / "state")
            sync_tree(new)
            put_in_place(new, final)
            write_json(self.folder / "latest.json", {"step": step, "folder": final.name})
        return final

    def rehearse(self, save_model: Callable[[Path], None]) -> None:
        """Write the model once and throw it away, so that what cannot be saved is known before anything is trained.

        Raises:
            UserError: the disk is full or cannot be written; and whatever `save_model` raises.
        """
        with disk_errors(self.folder), scratch_folder(self.path(0)) as new:
            save_model(new / "model")

    def load_newest(
        self, report: Callable[[str], None], check: Callable[[RunState], None] = lambda state: None
    ) -> RunState | None:
        """The newest whole checkpoint, or None when there is none at all.

        A damaged one is reported in a sentence and set aside under another name, and the one before it is
        taken.

        Args:
            report: shows the sentence.
            check: raises DamagedCheckpoint for a state that its run cannot go on with.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        problem = ""
        for step in reversed(self.steps()):
            try:
                state = _read_state(self.path(step) / "state")
                check(state)
            except DamagedCheckpoint as error:
                problem = str(error)
                report(f"Checkpoint of step {step} is damaged ({problem}); trying the one before it.")
                self._set_aside(self.path(step))
                continue
            write_json(self.folder / "latest.json", {"step": step, "folder": self.path(step).name})
            return state
        if problem:
            raise UserError(
                f"no checkpoint can be resumed: {problem}",
                where=self.folder,
                fix="start again with --overwrite",
            )
        return None

    def mark_best(self, best: dict[str, Any] | None) -> None:
        """Point `best.json` at the best checkpoint, {"step", "loss"}; None removes the pointer."""
        pointer = self.folder / "best.json"
        if best is None:
            pointer.unlink(missing_ok=True)
        else:
            write_json(pointer, {**best, "folder": self.path(best["step"]).name})

    def prune(self, best_step: int | None) -> None:
        """Remove all but the newest `keep_last` and the best."""
        for step in self.steps()[: -self.keep_last]:
            if step != best_step:
                remove(self.path(step))

    def _set_aside(self, folder: Path) -> None:
        # Out of the way of pruning, which would count it among the newest.
        target = folder.with_name(_DAMAGED + folder.name)
        remove(target)
        folder.rename(target)


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random states: torch's as tensors, Python's and NumPy's as JSON values."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    plain = {
        "python": [version, list(numbers), gauss_next],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
    }
    return tensors, plain


def restore_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Undo what happened to the random generators since `random_state()`."""
    torch.set_rng_state(tensors["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{i}"], i)
    version, numbers, gauss_next = plain["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    kind, keys, position, has_gauss, gauss = plain["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))


def forget_run(run_dir: Path) -> None:
    """Remove what training left in a folder: checkpoints, metrics, events."""
    with only_run(run_dir):
        for name in ("checkpoints", "tensorboard", "metrics.jsonl"):
            remove(run_dir / name)


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
    checkpoints = Checkpoints(run_dir / "checkpoints", 1)
    for step in reversed(checkpoints.steps()):
        folder = checkpoints.path(step)
        with suppress(*_UNREADABLE):
            path = folder / "state" / "trainer.json"
            values = read_object(path, largest=LARGEST_STATE, most_values=None, finite=False)
            _check_values(values)
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


def _write_state(state: RunState, folder: Path) -> None:
    sizes = {}
    for name in ("weights", "optimizer", "rng"):
        path = folder / f"{name}.safetensors"
        tensors: dict[str, Tensor] = getattr(state, name)
        save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, path)
        sizes[path.name] = path.stat().st_size
    document = {"format": FORMAT, **state.values, "rng": state.plain_rng, "files": sizes}
    (folder / "trainer.json").write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_state(folder: Path) -> RunState:
    """Read a checkpoint's state; raises DamagedCheckpoint."""
    path = folder / "trainer.json"
    if not path.exists():
        raise DamagedCheckpoint(f"{path} is missing")
    try:
        values = read_object(path, largest=LARGEST_STATE, most_values=None, finite=False)
        if values["format"] != FORMAT:
            raise DamagedCheckpoint(f"{path} has format {values['format']}, this version reads {FORMAT}")
        tensors = {}
        for name in ("weights", "optimizer", "rng"):
            path = folder / f"{name}.safetensors"
            if path.stat().st_size != values["files"][path.name]:
                raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes, not {values['files'][path.name]}")
            tensors[name] = load_file(path)
        path = folder / "rng.safetensors"
        _check_random_state(tensors["rng"], values["rng"])
        path = folder / "trainer.json"
        _check_values(values)
        return RunState(values=values, plain_rng=values["rng"], **tensors)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is missing") from None
    except (*_UNREADABLE, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error


def _check_values(values: dict[str, Any]) -> None:
    """ValueError where a value of trainer.json is not what `yeoul.train.loop` wrote there."""
    for name in ("step", "tokens", "seconds"):
        _require(_is_number(values[name]) and values[name] >= 0, name)
    _require(isinstance(values["step"], int) and isinstance(values["tokens"], int), "step")
    for name in ("config", "identity", "loader", "pending"):
        _require(isinstance(values[name], dict), name)
    _require(
        all(map(_is_number, values["pending"].values())) and {"count", "loss"} <= values["pending"].keys(), "pending"
    )
    for name in values["loader"].keys() & {"epoch", "index", "seed"}:
        _require(isinstance(values["loader"][name], int) and values["loader"][name] >= 0, f"loader {name}")
    best = values["best"]
    _require(best is None or (isinstance(best["step"], int) and _is_number(best["loss"])), "best")
    if (plateau := values.get("plateau")) is not None:
        before = plateau["before"]
        _require(before is None or (len(before) == 2 and all(map(_is_number, before))), "plateau before")
        _require(isinstance(plateau["now"], list) and all(map(_is_number, plateau["now"])), "plateau now")
        for name in ("end", "found_at"):
            _require(isinstance(plateau[name], int) and plateau[name] >= 0, f"plateau {name}")
        _require(_is_number(plateau["rate"]) and plateau["end"] >= values["step"], "plateau rate")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(ok: bool, name: str) -> None:
    if not ok:
        raise ValueError(f"the value of {name} is damaged")


def _check_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Raises one of many errors where `restore_random_state` would, or a generator would read beyond its state."""
    for name, state in tensors.items():
        if name == "cpu" or torch.cuda.is_available():
            torch.Generator(name.partition(":")[0]).set_state(state)
    version, numbers, gauss_next = plain["python"]
    random.Random().setstate((version, tuple(numbers), gauss_next))
    kind, keys, position, has_gauss, gauss = plain["numpy"]
    np.random.RandomState().set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    _require("cpu" in tensors and 0 <= position <= len(keys) == 624, "the random state")
