"""`yeoul translate`: sentences by two systems side by side."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.lines import folded, tell
from yeoul.recipes.translate.config import TranslateConfig


@dataclass(frozen=True)
class Config:
    """Translate sentences by examples in the prompt, and compare two systems: chrF, BLEU, and whether it is chance.

    Without --against the model is compared with itself without examples. Run the same command again to continue where
    it stopped.
    """

    model: Place
    """Model: a folder, a run, an id on the hub, or the address of an OpenAI-compatible endpoint
    (http://localhost:8000/v1#MODEL; its key in OPENAI_API_KEY)."""
    _: KW_ONLY
    against: Place | None = None
    """The second system, likewise."""
    source: Path | None = None
    """UTF-8 file with one sentence a line."""
    target: Path | None = None
    """Their translations, line by line; without it there are no scores."""
    data: Place | None = None
    """Instead of both: a table (.csv, .tsv, .jsonl, .parquet) with sentences and translations."""
    columns: tuple[str, ...] | None = None
    """Its two columns: sentence, translation."""
    examples_source: Path | None = None
    """Sentences of the examples, one a line; by default the first pairs are examples, and not translated."""
    examples_target: Path | None = None
    """Their translations."""
    dialogs: Path | None = None
    """Translate nothing: write the pairs into this file, as conversations to fine-tune on."""
    out: Path = Path("runs/translate")
    """Folder for translate.json, the report and what is translated so far."""
    settings: Annotated[TranslateConfig, Parameter(name="*")] = field(default_factory=TranslateConfig)
    """How the systems are asked and scored."""
    overwrite: bool = False
    """Discard what is in --out and start over."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        if (self.source is None) == (self.data is None):
            raise UserError("the sentences are missing", "--source", "give --source and --target, or --data")
        if self.data is not None and self.target is not None:
            raise UserError("both --target and --data are given", fix="leave one of them out")
        if (self.examples_source is None) != (self.examples_target is None):
            raise UserError("examples need both languages", "--examples-source, --examples-target")


def run(config: Config) -> int:
    """Translate or go on; exit code 0, or 130 and 143 when stopped by a signal."""
    from yeoul.recipes.translate.pairs import aligned, from_table, write_dialogs
    from yeoul.recipes.translate.run import translate
    from yeoul.train.interrupt import Interrupted

    if config.source is not None:
        pairs = aligned(config.source, config.target)
    else:
        pairs = from_table(str(config.data), config.columns)
    settings, examples = config.settings, None
    if config.dialogs is not None:
        languages = settings.source_language, settings.target_language
        write_dialogs(pairs[: settings.limit], config.dialogs, languages)
        tell(f"{len(pairs[: settings.limit]):,} conversations: {config.dialogs}")
        return 0
    if config.examples_source is not None:
        examples = aligned(config.examples_source, config.examples_target)
    flags = ("source", "target", "data", "columns", "examples_source", "examples_target")
    try:
        result = translate(
            config.model, pairs, settings, against=config.against, examples=examples,
            given={name: getattr(config, name) for name in flags}, out=config.out,
            overwrite=config.overwrite, device=config.device, say=None if config.json else tell,
        )  # fmt: skip
    except (Interrupted, KeyboardInterrupt) as stop:
        tell("\nStopped; what is translated is kept. To continue, run the same command again (without --overwrite).")
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    if config.json:
        print(json.dumps(result.as_dict(), ensure_ascii=False, indent=2))
        return 0
    if result.scores:
        say(f"{result.table()}\n\n{folded(result.verdict.en)}\n")
    tell(f"The report: {config.out / 'report.html'} (or {config.out / 'report.md'})")
    return 0
