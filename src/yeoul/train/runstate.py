"""Checkpoints of a run: written beside, fsynced, renamed; read back bit by bit; never pickled.

Layout of one checkpoint, `checkpoints/step-00000100/`:

    model/                     what the `save_model` callback writes: a Hugging Face folder
    state/weights.safetensors  the trained parameters, exactly as they were (model/ may hold another dtype)
    state/optimizer.safetensors  tensors named "parameter|key"
    state/rng.safetensors      random states of torch on the CPU and on each CUDA device
    state/trainer.json         the rest, and the sizes of the files above
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from yeoul.errors import UserError
from yeoul.safe_json import read_object

FORMAT = 1
LARGEST_STATE = 2**28
"""Bytes of a checkpoint's trainer.json."""
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
UNFINISHED = ".tmp-"
_DAMAGED = "damaged-"


class DamagedCheckpoint(Exception):
    """A checkpoint cannot be read; the text names the file and what is wrong with it."""


@dataclass(kw_only=True)
class RunState:
    """Everything a run needs to go on as if it had never stopped.

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
        """Remove what killed writers left."""
        if self.folder.is_dir():
            for entry in self.folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def save(self, state: RunState, save_model: Callable[[Path], None]) -> Path:
        """Write a checkpoint and point `latest.json` at it; it is whole or it is not there.

        Raises:
            UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        step = state.values["step"]
        final = self.path(step)
        temporary = self.folder / f"{UNFINISHED}{final.name}-{os.getpid()}"
        with disk_errors(final, temporary, self.steps()):
            (temporary / "state").mkdir(parents=True)
            save_model(temporary / "model")
            _write_state(state, temporary / "state")
            sync_tree(temporary)
            if final.exists():
                self._remove(final)
            os.rename(temporary, final)
            _sync(self.folder)
            write_json(self.folder / "latest.json", {"step": step, "folder": final.name})
        return final

    def load_newest(self, report: Callable[[str], None]) -> RunState | None:
        """The newest whole checkpoint, or None when there is none at all.

        A damaged one is reported in a sentence and set aside under another name, and the one before it is
        taken.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        problem = ""
        for step in reversed(self.steps()):
            try:
                state = _read_state(self.path(step) / "state")
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
                self._remove(self.path(step))

    def _remove(self, folder: Path) -> None:
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a good
        # name.
        doomed = folder.with_name(f"{UNFINISHED}removed-{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)

    def _set_aside(self, folder: Path) -> None:
        # Out of the way of pruning, which would count it among the newest.
        target = folder.with_name(_DAMAGED + folder.name)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder, target)


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


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside `path`, fsync it, and rename it into place."""
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder beside `folder`, then put it in its place.

    Raises:
        UserError: the disk is full or cannot be written; the old folder stays.
    """
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    old = folder.with_name(f"{UNFINISHED}old-{folder.name}")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with disk_errors(folder, temporary, []):
        temporary.mkdir(parents=True)
        write(temporary)
        sync_tree(temporary)
        if folder.exists():
            os.rename(folder, old)
        os.rename(temporary, folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(target: Path, temporary: Path, earlier: list[int]) -> Iterator[None]:
    """Whatever stops a write, remove `temporary`; a failing disk becomes a UserError of one sentence."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = f", and the checkpoint of step {earlier[-1]} is untouched" if earlier else ""
        if disk_full(error):
            fix = f"free some space and run the same command again{kept}"
            raise UserError("the disk is full", where=target, fix=fix) from error
        if isinstance(error, OSError):
            what = f"cannot write: {error.strerror or error}"
            raise UserError(what, where=target, fix=f"mend that and run the same command again{kept}") from error
        raise


def disk_full(error: BaseException) -> bool:
    """Whether an exception, of Python or of safetensors' Rust side, says that no space is left."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in codes
    text = str(error) if isinstance(error, SafetensorError) else ""
    return any(f"os error {code}" in text or f"code: {code}," in text for code in codes)


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock, which the system lets go of when the process ends, however it ends.

    Raises:
        UserError: another process trains in this folder.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait for it, or choose another --out"
            raise UserError("another process is training in this folder", where=run_dir, fix=fix) from None
        yield


def forget_run(run_dir: Path) -> None:
    """Remove what training left in a folder: checkpoints, metrics, events."""
    with only_writer(run_dir):
        for name in ("checkpoints", "tensorboard"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below and including `folder`, and give files the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            # safetensors makes its files private, whatever the user's umask says.
            os.chmod(Path(parent) / name, 0o666 & ~mask)
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        return RunState(values=values, plain_rng=values["rng"], **tensors)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is missing") from None
    except (UserError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error
