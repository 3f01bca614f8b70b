"""`yeoul classify`: the classes of texts, by a model of `yeoul finetune --task classify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.commands.terminal import standard_input, write_lines
from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.files import only_writer
from yeoul.foreign_text import spreadsheet_cell
from yeoul.plain_text import split_lines
from yeoul.units import count


@dataclass(frozen=True)
class Config:
    """Assign each text to a class, with its probability.

    Prints label, probability and text, or one JSON object per line. With --scores the data has labels, and accuracy,
    F1 and the confusion matrix are printed.
    """

    model: Place
    """Classifier: a model folder, a run folder, an adapter with a classification head, or an id on the hub."""
    data: Place | None = None
    """Texts: .txt with one per line, or a table with a text column; standard input when not given, or with "-"."""
    _: KW_ONLY
    text: tuple[str, ...] = ()
    """Texts to classify, instead of DATA."""
    text_column: str | None = None
    """Column with the text; when not given, it is looked up by its usual names."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    scores: bool = False
    """Compare with the labels of DATA, a table."""
    label_column: str | None = None
    """Column with the label, for --scores; when not given, it is looked up by its usual names."""
    json: bool = False
    """Print one JSON object per line: text, label, probability, probabilities; with --scores one object."""
    out: Path | None = None
    """Write the result to this file instead of the screen."""
    threshold: float | None = None
    """Probability from which on a label holds, where a text may have several labels or none; 0.5 when not given."""
    batch_size: int = 32
    """Texts at a time."""
    context: int | None = None
    """Read at most this many tokens of each text; when not given, as many as the model allows."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Dtype of the weights: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        for flag, value in (("batch-size", self.batch_size), ("context", self.context)):
            if value is not None and value < 1:
                raise UserError(f"--{flag} is {value}, but must be at least 1")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UserError(f"{self.threshold:g} is no probability", "--threshold", "give one between 0 and 1")
        if self.text and self.data is not None:
            raise UserError("both DATA and --text are given", fix="leave one of them out")
        if self.scores and self.data in (None, "-"):
            raise UserError("--scores needs a table with labels", fix="give it as DATA")
        if self.label_column is not None and not self.scores:
            raise UserError("labels are only used for scores", "--label-column", "add --scores")


def run(config: Config) -> int:
    """Classify, and print."""
    from yeoul import runtime
    from yeoul.data.result_folders import refuse_inside

    runtime.set_threads()
    refuse_inside(config.out, config.data)
    with nullcontext() if config.out is None else only_writer(config.out):
        write_lines(_scores(config) if config.scores else _predictions(config), config.out)
    return 0


def _predictions(config: Config) -> Iterator[str]:
    """Of each text a JSON object, or label, probability and text."""
    from yeoul.recipes.classify import classify_texts, load_classifier

    texts = _texts(config)
    classifier = load_classifier(config.model, device=config.device, dtype=config.dtype)
    meaning, threshold = classifier.model.meaning, config.threshold
    is_table = config.out is not None and config.out.suffix.lower() in (".tsv", ".csv")
    for text, found in classify_texts(classifier, texts, config.batch_size, config.context, threshold=threshold):
        if config.json:
            yield json.dumps({"text": text, **found.to_dict(meaning)}, ensure_ascii=False)
            continue
        cells = [*found.cells(meaning), " ".join(text.split())]
        yield "\t".join(map(spreadsheet_cell, cells) if is_table else cells)


def _texts(config: Config) -> list[str]:
    from yeoul.data.labelled import read_texts

    if config.text:
        return list(config.text)
    if config.data not in (None, "-"):
        return read_texts(str(config.data), text_column=config.text_column, reading=config.reading)
    if texts := split_lines(standard_input(config.reading)):
        return texts
    raise UserError("there is no text on standard input", fix="give DATA or --text")


def _scores(config: Config) -> Iterator[str]:
    """How the classifier's labels agree with those of the data."""
    from yeoul.data.labelled import read_labelled
    from yeoul.recipes.classify import load_classifier, score_labels

    records = read_labelled(
        str(config.data), text_column=config.text_column, label_column=config.label_column, reading=config.reading
    ).records
    classifier = load_classifier(config.model, device=config.device, dtype=config.dtype)
    scores = score_labels(classifier, records, config.batch_size, config.context)
    head = f"{count(len(records), 'text')}: accuracy {scores.accuracy:.4f}, macro F1 {scores.macro_f1:.4f}."
    yield json.dumps(scores.to_dict(), ensure_ascii=False) if config.json else f"{head}\n{scores.table()}"
