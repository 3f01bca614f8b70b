"""`yeoul pretrain`: a language model from text."""

from __future__ import annotations

import shlex
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.lines import tell
from yeoul.recipes.pretrain.config import PretrainConfig

if TYPE_CHECKING:
    from yeoul.recipes.pretrain.run import PretrainResult


@dataclass(frozen=True)
class Config:
    """Pretrain a language model from text.

    Trains a tokenizer unless one is given, stores the text as tokens, trains the model and writes it to OUT/model
    as a Hugging Face folder. Run the same command again to continue where it stopped.
    """

    data: Place = "builtin"
    """Text: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas."""
    _: KW_ONLY
    out: Path = Path("runs/pretrain")
    """Folder of the run."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    resume: bool = True
    """Continue the run in --out, if there is one."""
    overwrite: bool = False
    """Discard the run in --out and start over."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    report: bool = True
    """Write report.html and report.md into --out at the end."""
    dry_run: bool = False
    """Print the model, the memory and the time training would take, and stop without reading or writing anything."""
    settings: Annotated[PretrainConfig, Parameter(name="*")] = field(default_factory=PretrainConfig)
    """What is made of the text."""


def run(config: Config) -> int:
    """Pretrain, and return the exit code: 0 done, 130 or 143 stopped by a signal with everything saved."""
    from yeoul.recipes.pretrain.run import plan_pretrain, pretrain
    from yeoul.recipes.run_report import leave_report
    from yeoul.train.interrupt import Interrupted

    place: dict[str, Any] = {
        "out": config.out,
        "resume": config.resume,
        "overwrite": config.overwrite,
        "device": config.device,
    }
    if config.dry_run:
        for line in plan_pretrain(config.data, config.settings, **place):
            tell(line)
        return 0
    try:
        result = pretrain(config.data, config.settings, **place, say=tell)
    except Interrupted as stop:
        return stop.exit_code
    _print(config, result)
    if config.report:
        leave_report(config.out, tell)
    return 0


def _print(config: Config, result: PretrainResult) -> None:
    """What the training came to, and what can be done with the model."""
    tell("\n".join(["", *result.notes, f"Training loss {result.loss:.4f} after {result.tokens:,} tokens."]))
    if result.validation:
        values = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in result.validation.items())
        tell(f"Validation: {values}.")
    print(f"The model is in {result.folder}. Next:")
    print(f'  yeoul generate {shlex.quote(str(config.out))} "옛날 옛적에"')
    if "softmax" not in result.model.config.attention:
        return
    text = config.settings.text
    words = ["yeoul", "linearize", str(config.out), "--data", config.data]
    words += ["--text-column", text.text_column] if text.text_column else []
    words += ["--join-by", text.join_by] if text.join_by else []
    words += ["--encoding", text.reading.encoding] if text.reading != Reading() else []
    print("  " + shlex.join([*words, "--out", f"{config.out}-dijiang"]), flush=True)
