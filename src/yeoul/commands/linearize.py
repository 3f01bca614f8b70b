"""`yeoul linearize`: a softmax model in, the same model in linear time out."""

from __future__ import annotations

import shlex
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.lines import tell
from yeoul.recipes.linearize.config import LinearizeConfig

if TYPE_CHECKING:
    from yeoul.recipes.linearize.run import LinearizeResult


@dataclass(frozen=True)
class Config:
    """Turn the softmax attention of a trained model into DiJiang's linear attention.

    The stages share the token budget: the new attention learns to give what each softmax layer gives (align), the whole
    model learns the teacher's predictions (distil) and, if --finetune-share is above 0, the text (finetune). Run the
    same command again to continue where it stopped.
    """

    model: Place
    """Softmax model: a Hugging Face folder, a GGUF file, a finished run, or a hub id."""
    _: KW_ONLY
    data: Place = "builtin"
    """Text: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas."""
    out: Path = Path("runs/linearize")
    """Folder of the run; the model is written to OUT/model."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    overwrite: bool = False
    """Discard the run in --out and start over."""
    report: bool = True
    """Write report.html and report.md into --out at the end."""
    dry_run: bool = False
    """Print what would be converted, the memory and the time it would take, and stop without writing anything."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    settings: Annotated[LinearizeConfig, Parameter(name="*")] = field(default_factory=LinearizeConfig)
    """What is made of the model."""


def run(config: Config) -> int:
    """Linearize; the exit code is 0, or 130 or 143 where a signal stopped it with everything saved."""
    from yeoul.recipes.linearize.run import linearize, plan_linearize
    from yeoul.recipes.run_report import leave_report
    from yeoul.train.interrupt import Interrupted

    place: dict[str, Any] = {"out": config.out, "overwrite": config.overwrite, "device": config.device, "say": tell}
    if config.dry_run:
        for line in plan_linearize(config.model, config.data, config.settings, **place):
            tell(line)
        return 0
    try:
        result = linearize(config.model, config.data, config.settings, **place)
    except Interrupted as stop:
        return stop.exit_code
    _print(config.out, result)
    if config.report:
        leave_report(config.out, tell)
    return 0


def _print(out: Path, result: LinearizeResult) -> None:
    """What it cost and gained, and what can be done with the model."""
    from yeoul.evaluate import speed
    from yeoul.evaluate.compare_table import comparison_table
    from yeoul.recipes.linearize.run import RECORD
    from yeoul.recipes.linearize.tables import cost_table, score_table

    print("\n" + cost_table({name: stage.as_dict() for name, stage in result.stages.items()}))
    print("\n" + score_table({name: score.as_dict() for name, score in result.scores.items()}))
    if result.comparison is not None:
        print("\n" + comparison_table(result.comparison))
    print("\n" + speed.table(result.speeds, "teacher"))
    print(f"\nThe model is in {result.folder}, these figures in {out / RECORD}. Next:")
    run = shlex.quote(str(out))
    print(f'  yeoul generate {run} "옛날 옛적에"\n  yeoul chat {run}', flush=True)
