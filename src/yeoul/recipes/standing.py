"""State of a run: how far it is, and the command that resumes it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.units import count, duration

if TYPE_CHECKING:
    from yeoul.train.progress import Standing

MARKS = {"finetune": "method", "linearize": "align_share", "pretrain": "preset"}
"""A key of config.yaml that only this verb has."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, as `yeoul info` tells of it.

    Attributes:
        verb: the command that made it.
        state: "finished", "running" (a process is at work there) or "stopped".
        part: the stage or step that it is in, of verbs that have several; else "".
        step, steps, tokens, budget, seconds: done and to be done, of the part; 0 where nothing is saved yet.
        checkpoint: the newest one, or None.
        command: resumes the run; does nothing to a finished one.
    """

    verb: str
    state: str
    part: str
    step: int
    steps: int
    tokens: int
    budget: int
    seconds: float
    checkpoint: Path | None
    command: str


def find_run(folder: Path) -> Run | None:
    """The run in a folder, or None where there is none; reads no tensors."""
    if (folder / "demo.json").is_file():
        return _demo(folder)
    settings = _settings(folder)
    verb = next((verb for verb, key in MARKS.items() if key in settings), None)
    if verb is None:
        return None
    stages = _stages(folder) if verb == "linearize" else [("", folder)]
    part, stands = _newest(stages)
    left = {"pretrain": "model/config.json", "linearize": "linearize.json"}.get(verb, "finetune.json")
    done = (folder / left).is_file() and all(found is not None and found.finished for found in _standings(stages))
    words = ["yeoul", verb, "--config", str(folder / "config.yaml"), "--out", str(folder)]
    return _run(verb, folder, part, stands, done, words)


def _run(verb: str, folder: Path, part: str, stands: Standing | None, done: bool, words: list[str]) -> Run:
    from yeoul.files import is_running

    numbers: dict[str, Any] = dict.fromkeys(("step", "steps", "tokens", "budget", "seconds"), 0)
    if stands is not None:
        numbers = {name: getattr(stands, name) for name in numbers}
    state = "running" if is_running(folder) else "finished" if done else "stopped"
    checkpoint = None if stands is None else stands.checkpoint
    return Run(verb=verb, state=state, part=part, checkpoint=checkpoint, command=shlex.join(words), **numbers)


def _demo(folder: Path) -> Run:
    from yeoul.safe_json import read_object

    state: dict[str, Any] = {}
    try:
        state = read_object(folder / "demo.json")
        settings = {name: state["settings"][name] for name in ("minutes", "seed")}
    except (UserError, KeyError, TypeError):
        settings = {}
    words = ["yeoul", "demo", "--out", str(folder), *(f"--{name}={value}" for name, value in settings.items())]
    places = [("pretrain", folder / "pretrain"), *((name, path) for name, path in _stages(folder / "linear"))]
    part, stands = _newest(places)
    return _run("demo", folder, part, stands, state.get("finished") is True, words)


def _settings(folder: Path) -> dict[str, Any]:
    from yeoul.config import read_yaml

    try:
        return read_yaml(folder / "config.yaml")
    except UserError:
        return {}


def _stages(folder: Path) -> list[tuple[str, Path]]:
    """Stages of a conversion that have begun, by name."""
    found = sorted(path for path in (folder / "stages").glob("[0-9]*-*") if path.is_dir())
    return [(path.name.partition("-")[2], path) for path in found]


def _standings(places: list[tuple[str, Path]]) -> list[Standing | None]:
    from yeoul.train.progress import standing

    return [standing(folder) for _, folder in places]


def _newest(places: list[tuple[str, Path]]) -> tuple[str, Standing | None]:
    """The last part that has a checkpoint."""
    found = [(name, stands) for (name, _), stands in zip(places, _standings(places), strict=True) if stands is not None]
    return found[-1] if found else (places[0][0] if places else "", None)


def run_rows(run: Run) -> list[tuple[str, str]]:
    """The run as rows of the table of `yeoul info`."""
    part = f", {run.part}" if run.part else ""
    if run.checkpoint is None:
        rows = [("run", f"{run.verb}, {run.state}{'' if run.state == 'finished' else '; nothing is saved yet'}")]
    elif run.state == "finished":
        rows = [("run", f"{run.verb}, finished{part}: {_of(run.step, run.tokens, run.seconds)}")]
    else:
        share = run.step / max(1, run.steps)
        text = f"{run.verb}, {run.state}{part}: saved at step {run.step:,} of {run.steps:,} ({share:.0%})"
        rows = [
            ("run", f"{text}, {run.tokens:,} of {count(run.budget, 'token')}, {duration(run.seconds)}"),
            ("", f"in {run.checkpoint}"),
        ]
    return rows if run.state != "stopped" else [*rows, ("resume", run.command)]


def _of(steps: int, tokens: int, seconds: float) -> str:
    return f"{count(steps, 'step')}, {count(tokens, 'token')}, {duration(seconds)}"
