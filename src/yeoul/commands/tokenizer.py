"""Train a tokenizer, inspect one, or compare several."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from yeoul.commands.tokenizer_compare import CompareConfig, run_compare
from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.recipes.tokenizer import DocumentOptions, TrainTokenizerConfig
from yeoul.recipes.tokenizer_tables import fit_table, pieces_table, rows_table
from yeoul.units import count

SAMPLE_DOCUMENTS = 2000
"""Documents of the training text that the summary after training is counted on."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a tokenizer on text and save it as a Hugging Face folder.

    Writes tokenizer.model (not of byte-level BPE), an equivalent tokenizer.json and tokenizer_config.json with a chat
    template.
    """

    data: Place = "builtin"
    """Text: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas."""
    _: KW_ONLY
    out: Path = Path("runs/tokenizer")
    """Folder for the tokenizer."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    overwrite: bool = False
    """Replace the tokenizer in --out, if there is one."""
    settings: Annotated[TrainTokenizerConfig, Parameter(name="*")] = field(default_factory=TrainTokenizerConfig)
    """What is trained."""


@dataclass(frozen=True)
class InspectConfig:
    """Show how a text is tokenized, or how well a tokenizer fits a corpus."""

    tokenizer: Place
    """Folder or file of the tokenizer, folder of a model or of a run, or an id on the hub."""
    _: KW_ONLY
    text: str | None = None
    """Text whose pieces are shown, with ids and bytes."""
    data: Place | None = None
    """Corpus to count over, given as in `yeoul tokenizer train`."""
    options: Annotated[DocumentOptions, Parameter(name="*")] = field(default_factory=DocumentOptions)
    """How it is read."""
    max_documents: int | None = None
    """Count over the first documents only."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"--max-documents is {self.max_documents}, but must be at least 1")


def run_train(config: TrainConfig) -> int:
    """Train, save and say how the tokenizer fits its text."""
    from yeoul.recipes.tokenizer import inspect_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(
        config.data, config.out, config.settings, overwrite=config.overwrite, say=lambda text: print(text, flush=True)
    )  # fmt: skip
    text = config.settings.text
    fit = inspect_tokenizer(tokenizer, data=config.data, options=text, max_documents=SAMPLE_DOCUMENTS).fit
    assert fit is not None
    _print(fit_table(fit, f"On the first {count(fit.documents, 'document')} of {config.data}"))
    print(f"Saved in {config.out}; try: yeoul tokenizer inspect {config.out} --text 안녕하세요")
    return 0


def run_inspect(config: InspectConfig) -> int:
    """Print the pieces of --text and the fit to --data, or without either the tokenizer's own figures."""
    from yeoul.recipes.tokenizer import inspect_tokenizer

    report = inspect_tokenizer(
        config.tokenizer, text=config.text, data=config.data, options=config.options,
        max_documents=config.max_documents,
    )  # fmt: skip
    if config.json:
        say(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
        return 0
    if report.pieces is None and report.fit is None:
        _print(rows_table("Tokenizer", [(key, str(value)) for key, value in report.figures().items()]))
    if report.pieces is not None:
        _print(pieces_table(report.pieces))
    if report.fit is not None:
        _print(fit_table(report.fit, f"{config.data}: {count(report.fit.documents, 'document')}"))
    return 0


def _print(table: Any) -> None:
    from rich.console import Console

    Console(highlight=False, emoji=False).print(table)


SUBCOMMANDS = {
    "train": (TrainConfig, run_train),
    "inspect": (InspectConfig, run_inspect),
    "compare": (CompareConfig, run_compare),
}
