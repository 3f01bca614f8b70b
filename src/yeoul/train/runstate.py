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
from collections.abc import Callable
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
from yeoul.train.progress import UNREADABLE, check_values, read_trainer, require, saved_steps, step_folder

FORMAT = 1
_DAMAGED = "damaged-"


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
        return step_folder(self.folder, step)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that stand here, ascending."""
        return saved_steps(self.folder)

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
        values = read_trainer(path)
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
        check_values(values)
        return RunState(values=values, plain_rng=values["rng"], **tensors)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is missing") from None
    except (*UNREADABLE, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error


def _check_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Raises one of many errors where `restore_random_state` would, or a generator would read beyond its state."""
    for name, state in tensors.items():
        if name == "cpu" or torch.cuda.is_available():
            torch.Generator(name.partition(":")[0]).set_state(state)
    version, numbers, gauss_next = plain["python"]
    random.Random().setstate((version, tuple(numbers), gauss_next))
    kind, keys, position, has_gauss, gauss = plain["numpy"]
    np.random.RandomState().set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    require("cpu" in tensors and 0 <= position <= len(keys) == 624, "the random state")
