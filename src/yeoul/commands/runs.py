"""`yeoul runs`: the runs in a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.foreign_text import say
from yeoul.units import duration, short

if TYPE_CHECKING:
    from yeoul.recipes.runs import RunSummary


@dataclass(frozen=True)
class Config:
    """List the runs in a folder and beneath it, the newest first: how far each is, and what came of it.

    `yeoul report RUN` makes a page of one, or compares several.
    """

    folder: Path = Path("runs")
    """Folder to look in."""
    _: KW_ONLY
    json: bool = False
    """Print JSON instead of a table."""


def run(config: Config) -> int:
    """Print the list."""
    from yeoul.recipes.runs import list_runs

    found = list_runs(config.folder)
    if config.json:
        say(json.dumps([asdict(one) for one in found], ensure_ascii=False, indent=2, default=str))
        return 0
    if not found:
        say(f"There are no runs in {config.folder}.")
        return 0
    head = ("run", "made by", "state", "tokens", "time", "held-out text", "changed")
    for line in aligned([head, *(_row(one, config.folder.expanduser()) for one in found)]):
        say(line)
    return 0


def _row(run: RunSummary, top: Path) -> tuple[str, ...]:
    name = "." if run.folder == top else str(run.folder.relative_to(top))
    state = run.state if run.state == "finished" else f"{run.state}, {run.share:.0%}"
    result = ""
    if run.score is not None and run.value is not None:
        was = "" if run.before is None else f"{run.before:.4g} → "
        result = f"{run.score.replace('_', ' ')} {was}{run.value:.4g}"
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
    made = f"{run.verb}, {run.task}" if run.task else run.verb
    tokens, seconds = short(run.tokens) if run.tokens else "", duration(run.seconds) if run.seconds else ""
    return name, made, state, tokens, seconds, result, changed


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns stand below one another; Hangul is two columns wide."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    pad = lambda cell, width: cell + " " * (width - cell_len(cell))  # noqa: E731
    return ["  ".join(map(pad, row, widths)).rstrip() for row in rows]
