"""`yeoul.list_runs`: the runs beneath a folder, how far each is, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yeoul.errors import UserError
from yeoul.recipes.quantize.record import RECORD as QUANTIZED
from yeoul.recipes.standing import find_run
from yeoul.safe_json import read_object

PARTS = frozenset({"checkpoints", "stages", "data", "model", "adapter", "tokenizer", "report"})
"""Folders within a run that hold no runs."""
DEEPEST = 4
"""Levels of folders that are looked through."""
RECORDS = {
    "pretrain": "pretrain.json", "linearize": "linearize.json", "finetune": "finetune.json", "quantize": QUANTIZED,
}  # fmt: skip
"""What each verb writes behind its result."""
SCORES = ("bits_per_byte", "accuracy", "spearman", "perplexity", "loss")
"""Values of a validation, the most telling first."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a few values.

    Attributes:
        folder: where it lies.
        verb: the command that made it.
        task: of `finetune`, the stage that a conversion is in, the bits of quantized weights; else "".
        state: "finished", "running" or "stopped".
        share: of its steps that are done.
        tokens, seconds: spent in training.
        score, value: the most telling value of its validation, and its name; None where there is none.
        before: the same before the run; None where it is not known.
        changed: when something was written there last, seconds since 1970.
    """

    folder: Path
    verb: str
    task: str
    state: str
    share: float
    tokens: int
    seconds: float
    score: str | None
    value: float | None
    before: float | None
    changed: float


def list_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """The runs in a folder and beneath it, the newest first; reads no tensors and needs no torch.

    Raises:
        UserError: there is no such folder.
    """
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise UserError("there is no such folder", top, "name the folder that your runs are in")
    return sorted(_found(top, DEEPEST), key=lambda run: -run.changed)


def _found(folder: Path, levels: int) -> Iterator[RunSummary]:
    summary = summarize(folder)
    if summary is not None:
        yield summary
    if levels and (summary is None or summary.verb != "demo"):
        with os.scandir(folder) as entries:
            inside = sorted(
                entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name not in PARTS
            )
        for name in inside:
            if not name.startswith("."):
                try:
                    yield from _found(folder / name, levels - 1)
                except PermissionError:
                    continue


def summarize(folder: Path) -> RunSummary | None:
    """The run in a folder, or None where there is none."""
    if (folder / QUANTIZED).is_file():
        return _quantized(folder)
    found = find_run(folder)
    if found is None:
        return None
    record = _record(folder, found.verb)
    before, after = validations(record)
    score = next((name for name in SCORES if name in after), None)
    finished = found.state == "finished"
    stages = record.get("stages")
    spent = {name: record.get(name, getattr(found, name)) for name in ("tokens", "seconds")}
    return RunSummary(
        folder=folder, verb=found.verb, task=str(record.get("task", found.part if not stages else "")),
        state=found.state, share=1.0 if finished else found.step / max(1, found.steps), tokens=int(spent["tokens"]),
        seconds=float(spent["seconds"]), score=score, value=None if score is None else after[score],
        before=None if score is None else before.get(score), changed=_changed(folder),
    )  # fmt: skip


def _quantized(folder: Path) -> RunSummary:
    record = _record(folder, "quantize")
    before, after = validations(record)
    score = next((name for name in SCORES if name in after), None)
    return RunSummary(
        folder=folder, verb="quantize", task=f"{record.get('bits')} bits", state="finished", share=1.0, tokens=0,
        seconds=0.0, score=score, value=None if score is None else after[score],
        before=None if score is None else before.get(score), changed=_changed(folder),
    )  # fmt: skip


def _record(folder: Path, verb: str) -> dict[str, Any]:
    try:
        return read_object(folder / RECORDS[verb], finite=False)
    except (UserError, KeyError):
        return {}


def validations(record: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """What a run's record says of held-out text before and after: numbers by name, none where it says nothing."""
    scores = record.get("scores")
    sides = (scores.get("teacher"), scores.get("converted")) if isinstance(scores, dict) else (
        record.get("before"), record.get("after"),
    )  # fmt: skip
    before, after = (
        {name: float(value) for name, value in side.items() if is_number(value)} if isinstance(side, dict) else {}
        for side in sides
    )
    return before, after


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _changed(folder: Path) -> float:
    """When one of the files of a run, or its newest checkpoint, was written last."""
    places = [folder, *folder.glob("*.json*"), folder / "model", folder / "adapter", folder / "checkpoints"]
    places += [*folder.glob("stages/*/checkpoints")]
    times = []
    for place in places:
        try:
            times.append(place.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)
