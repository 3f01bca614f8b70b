"""`yeoul demo`: from text to a linear-time language model and a report, in minutes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.lines import tell
from yeoul.recipes.demo.config import DemoConfig


@dataclass(frozen=True)
class Config:
    """Make a small Korean language model, turn it into linear time, and report what that cost and gained.

    Text, tokenizer, pretraining, DiJiang conversion, scores, speeds, samples and a report with plots; needs neither
    a network nor data. The machine's speed is measured first, so that training fits the given time. Run the same
    command again to continue where it stopped.
    """

    _: KW_ONLY
    out: Path = Path("runs/demo")
    """Folder of the demo, for the report, the models and their runs."""
    settings: Annotated[DemoConfig, Parameter(name="*")] = field(default_factory=DemoConfig)
    """How long it takes."""
    overwrite: bool = False
    """Discard the demo in --out and start over."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Run or continue the demo; exit code 0, or 130 and 143 when stopped by a signal."""
    from yeoul.recipes.demo.run import demo, demo_command
    from yeoul.train.interrupt import Interrupted

    command = demo_command(config.settings, config.out)
    try:
        result = demo(config.settings, out=config.out, overwrite=config.overwrite, say=tell)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"\nStopped; nothing that was finished is lost. To continue: {command}")
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    if result.was_finished:
        print(f"The demo in {config.out} is finished; its report is {result.report}.")
        print(f"To start over: {command} --overwrite")
        return 0
    print(f"\nDone in {result.time}. The report: {result.report} (or {result.report.with_suffix('.md')})")
    print(f"The models: {result.pretrained} (softmax) and {result.linear} (DiJiang).\n\nWhat to try next:")
    for line, what in result.next_steps:
        print(f"  {line}\n      {what.en}")
    return 0
