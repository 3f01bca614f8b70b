"""`yeoul tokenizer compare`: several tokenizers over one text."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.foreign_text import say
from yeoul.lines import folded, tell
from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig


@dataclass(frozen=True)
class CompareConfig:
    """Compare tokenizers over a text: tokens per syllable and word, bits per byte, share of bytes, cost, speed.

    A small model is trained with each, on the same bytes of text in the same order, and scored on text that is held
    out. Run the same command again to continue where it stopped; further tokenizers add to what is there.
    """

    tokenizers: tuple[Place, ...]
    """Folders or files of tokenizers, folders of models or runs, or ids on the hub."""
    _: KW_ONLY
    data: Place = "builtin"
    """Text: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas."""
    out: Path = Path("runs/tokenizers")
    """Folder for tokenizers.json, the report and what is known so far."""
    settings: Annotated[CompareTokenizersConfig, Parameter(name="*")] = field(default_factory=CompareTokenizersConfig)
    """How much text, and which small model."""
    overwrite: bool = False
    """Discard the comparison in --out and start over."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """Device of the small model: auto, cpu, cuda or cuda:N."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run_compare(config: CompareConfig) -> int:
    """Compare or go on; exit code 0, or 130 and 143 when stopped by a signal."""
    from yeoul.recipes.compare_tokenizers.run import compare_tokenizers
    from yeoul.train.interrupt import Interrupted

    try:
        result = compare_tokenizers(
            config.tokenizers, config.data, config.settings, out=config.out, overwrite=config.overwrite,
            device=config.device, say=None if config.json else tell,
        )  # fmt: skip
    except (Interrupted, KeyboardInterrupt) as stop:
        tell("\nStopped; what is known is kept. To continue, run the same command again (without --overwrite).")
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    if config.json:
        say(json.dumps(result.as_dict(), ensure_ascii=False, indent=2))
        return 0
    say(f"{result.table()}\n\n{folded(result.why.en)}\n")
    tell(f"The report: {config.out / 'report.html'} (or {config.out / 'report.md'})")
    return 0
