"""`yeoul finetune`: a model taught by conversations, text, labels, pairs or preferences."""

from __future__ import annotations

import shlex
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.lines import tell
from yeoul.recipes.finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from yeoul.recipes.finetune.run import FinetuneResult

NEXT = {"classify": ' --text "..."', "embed": " --data texts.txt --out vectors.npy"}
"""What stands behind the result in the next command, by its verb."""


@dataclass(frozen=True)
class Config:
    """Train a model further: on conversations, text, labels or preferences.

    Reads conversations in the common formats and plain text, and trains the whole model (full), a low-rank adapter
    on its frozen weights (lora), or an adapter on quantized weights (qlora). Writes OUT/model or OUT/adapter. Run the
    same command again to continue where it stopped.
    """

    model: Place
    """Model: a Hugging Face folder, a GGUF file, a run's folder, or an id on the hub; softmax or linearized. With
    --method lora also an adapter, to be trained further."""
    _: KW_ONLY
    data: Place = ""
    """Conversations, instructions or text: a file, a folder or a Hub dataset "org/name"; several with commas."""
    out: Path = Path("runs/finetune")
    """Folder of the run."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    resume: bool = True
    """Continue the run in --out, if there is one."""
    overwrite: bool = False
    """Discard the run in --out and start over."""
    report: bool = True
    """Write report.html and report.md into --out at the end."""
    dry_run: bool = False
    """Print the data, the memory and the time training would take, and stop without writing anything."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    settings: Annotated[FinetuneConfig, Parameter(name="*")] = field(default_factory=FinetuneConfig)
    """What is learned, and how."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("no data was given", "--data", "give a file or a folder, such as --data dialogs.jsonl")


def run(config: Config) -> int:
    """Fine-tune, and return the exit code: 0 done, 130 or 143 stopped by a signal with everything saved."""
    from yeoul.recipes.finetune.run import finetune, plan_finetune
    from yeoul.recipes.run_report import leave_report
    from yeoul.train.interrupt import Interrupted

    place: dict[str, Any] = {
        "out": config.out,
        "resume": config.resume,
        "overwrite": config.overwrite,
        "device": config.device,
    }
    if config.dry_run:
        for line in plan_finetune(config.model, config.data, config.settings, **place):
            tell(line)
        return 0
    try:
        result = finetune(config.model, config.data, config.settings, **place, say=tell)
    except Interrupted as stop:
        return stop.exit_code
    tell("\n".join(["", *result.notes, f"Training loss {result.loss:.4f} after {result.tokens:,} tokens."]))
    print("\n".join([*result.outcome, *_next(config, result)]), flush=True)
    if config.report:
        leave_report(config.out, tell)
    return 0


def _next(config: Config, result: FinetuneResult) -> list[str]:
    """How the result is used, where it is, and how an adapter is merged."""
    out = shlex.quote(str(config.out))
    used = out
    if result.verb in ("chat", "generate") and config.settings.method != "full" and not result.continued:
        used = f"{shlex.quote(config.model)} --adapter {shlex.quote(str(config.out / 'adapter'))}"
    lines = [f"Next: yeoul {result.verb} {used}{NEXT.get(result.verb, '')}"]
    if config.settings.method == "full":
        return [*lines, f"The model is in {result.folder}."]
    merge = f" To merge it: yeoul export {out} --format hf --out {shlex.quote(f'{config.out}-merged')}"
    return [*lines, f"The adapter is in {result.folder}.{merge if result.mergeable else ''}"]
