"""`yeoul report`: a page about one run, or one that compares several."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from yeoul.config import Place
from yeoul.lines import tell


@dataclass(frozen=True)
class Config:
    """Write report.html, report.md and report.ko.md about a run, or about several side by side.

    Loss curves, scores before and after, settings, machine, and the command that does it again; of several runs the
    settings that differ. Trainings write theirs at their end; `yeoul runs` lists what there is.
    """

    runs: tuple[Place, ...]
    """Folders of runs."""
    _: KW_ONLY
    out: Path | None = None
    """Folder for the files; by default that of the run, and for several `report`."""


def run(config: Config) -> int:
    """Write the page, and say where it is."""
    from yeoul.recipes.run_report import report_runs

    report_runs(config.runs, config.out, say=tell)
    return 0
