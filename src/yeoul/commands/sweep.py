"""`yeoul sweep`: what temperature, top-k, top-p and min-p do to a model's texts."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.lines import folded, tell
from yeoul.recipes.sweep.config import SweepConfig


@dataclass(frozen=True)
class Config:
    """Measure settings of sampling: how likely and faithful the text is, against how varied.

    Every setting of a grid continues the same prompts with the same seeds. A page shows the trade-off with its
    efficient edge and recommends one setting. Run the same command again to continue where it stopped; a larger grid
    adds to what is there.
    """

    model: Place
    """Model: a Hugging Face folder, a GGUF file, a run's folder, or an id on the hub."""
    _: KW_ONLY
    prompts: Path | None = None
    """UTF-8 file with one prompt a line, and the answer after a tab where the prompt tells one; or .jsonl with objects
    of "prompt" and "answer". Without it, eight built-in prompts in Korean and English."""
    judge: Place | None = None
    """A second model that says how likely the texts are; its perplexity then stands for accuracy."""
    out: Path = Path("runs/sweep")
    """Folder for sweep.json, the report and what is measured so far."""
    settings: Annotated[SweepConfig, Parameter(name="*")] = field(default_factory=SweepConfig)
    """Which settings are tried, and on how much text."""
    overwrite: bool = False
    """Discard the sweep in --out and start over."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Measure or go on; exit code 0, or 130 and 143 when stopped by a signal."""
    from yeoul.recipes.sweep.run import sweep
    from yeoul.train.interrupt import Interrupted

    try:
        result = sweep(
            config.model, config.prompts, config.settings, judge=config.judge, out=config.out,
            overwrite=config.overwrite, device=config.device, say=None if config.json else tell,
        )  # fmt: skip
    except (Interrupted, KeyboardInterrupt) as stop:
        tell("\nStopped; what is measured is kept. To continue, run the same command again (without --overwrite).")
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    if config.json:
        print(json.dumps(result.as_dict(), ensure_ascii=False, indent=2))
        return 0
    print(f"{result.table()}\n\n{folded(result.why.en)}\n")
    tell(f"The report: {config.out / 'report.html'} (or {config.out / 'report.md'})")
    return 0
