"""`yeoul classify`: the classes of texts, by a model of `yeoul finetune --task classify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading, text_of
from yeoul.errors import UserError
from yeoul.files import new_file, only_writer, write_text
from yeoul.foreign_text import say, spreadsheet_cell
from yeoul.plain_text import split_lines
from yeoul.units import count

if TYPE_CHECKING:
    import torch

    from yeoul.infer.texts import Prediction, TextClassifier
    from yeoul.model.heads import Meaning

TOGETHER = 4096
"""Texts that are sorted by length together; results appear after so many."""


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
    """Number type of the weights: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}, but must be at least 1")
        if self.context is not None and self.context < 1:
            raise UserError(f"--context is {self.context}, but must be at least 1")
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
        return _run(config)


def _run(config: Config) -> int:
    if config.scores:
        text = _scores(config)
        if config.out is None:
            say(text)
        else:
            write_text(config.out, text + "\n")
        return 0
    texts = _texts(config)
    classifier = load_classifier(config.model, device=config.device, dtype=config.dtype)
    if config.out is None:
        _write(config, classifier, texts, sys.stdout)
    else:
        with new_file(config.out) as beside, beside.open("w", encoding="utf-8") as file:
            _write(config, classifier, texts, file)
    return 0


def load_classifier(
    path: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
) -> TextClassifier:
    """A classifier with its tokenizer: `.classify(texts)` gives labels and probabilities.

    Args:
        path: a folder of `yeoul finetune --task classify` (the run's, its model's or its adapter's), one
            of transformers' sequence classification, or the id of one on the hub.
        device, dtype: as for `yeoul.load`.

    Raises:
        UserError: no classifier there, or a damaged one; no tokenizer.
    """
    import torch

    from yeoul import load, runtime
    from yeoul.hub import local_folder
    from yeoul.infer.texts import TextClassifier
    from yeoul.model.checkpoint import model_folder, stored_dtype
    from yeoul.model.classifier_folder import head_folder, load_head, load_sequence_classifier
    from yeoul.model.heads import SequenceClassifier
    from yeoul.text.tokenizer import Tokenizer

    folder = local_folder(path)
    beside = head_folder(folder)
    if beside is not None:
        decoder, tokenizer = load(beside, device=device, dtype=dtype)
        model = SequenceClassifier(decoder, load_head(beside, decoder)).eval()
    else:
        folder = model_folder(folder)
        target, wanted = runtime.resolve_device(device), runtime.requested_dtype(dtype)
        if wanted is None and not runtime.computes_natively(stored_dtype(folder), target):
            wanted = torch.float32
        model = load_sequence_classifier(folder, target, wanted)
        tokenizer = Tokenizer.load(folder) if Tokenizer.exists(folder) else None
    if tokenizer is None:
        raise UserError("the classifier's folder has no tokenizer", folder, "copy the tokenizer files into it")
    tokenizer.check_fits(model.decoder.config.vocab_size)
    return TextClassifier(model, tokenizer)


def _texts(config: Config) -> list[str]:
    from yeoul.data.labelled import read_texts

    if config.text:
        return list(config.text)
    if config.data not in (None, "-"):
        return read_texts(str(config.data), text_column=config.text_column, reading=config.reading)
    source = getattr(sys.stdin, "buffer", None)
    given = sys.stdin.read() if source is None else text_of(source.read(), "standard input", config.reading)
    texts = split_lines(given)
    if not texts:
        raise UserError("there is no text on standard input", fix="give DATA or --text")
    return texts


def _write(config: Config, classifier: TextClassifier, texts: Sequence[str], file: TextIO) -> None:
    meaning = classifier.model.meaning
    _check_threshold(config, classifier)
    for text, found in _predictions(config, classifier, texts):
        if config.json:
            say(json.dumps({"text": text, **_values(found, meaning)}, ensure_ascii=False), file=file)
            continue
        label = found.label if meaning == "one" else ", ".join(found.labels) or "-"
        number = f"{found.probability:.4f}"
        if meaning == "values":
            label, number = ", ".join(classifier.labels), ", ".join(f"{v:.4f}" for v in found.probabilities.values())
        cells = [label, number, " ".join(text.split())]
        if config.out is not None and config.out.suffix.lower() in (".tsv", ".csv"):
            cells = [spreadsheet_cell(cell) for cell in cells]
        say("\t".join(cells), file=file)


def _values(found: Prediction, meaning: Meaning) -> dict[str, Any]:
    """A prediction as JSON."""
    rounded = {name: round(value, 6) for name, value in found.probabilities.items()}
    if meaning == "values":
        return {"values": rounded}
    if meaning == "several":
        return {"labels": list(found.labels), "probabilities": rounded}
    return {"label": found.label, "probability": round(found.probability, 6), "probabilities": rounded}


def _check_threshold(config: Config, classifier: TextClassifier) -> None:
    if config.threshold is not None and classifier.model.meaning != "several":
        what = "the classifier's labels exclude one another: the most probable one holds"
        if classifier.model.meaning == "values":
            what = "the classifier gives values and has no labels that could hold"
        raise UserError(what, "--threshold", "leave it out")


def _predictions(config: Config, classifier: TextClassifier, texts: Sequence[str]) -> Iterator[tuple[str, Prediction]]:
    from yeoul.infer.texts import THRESHOLD

    for start in range(0, len(texts), TOGETHER):
        part = texts[start : start + TOGETHER]
        found = classifier.classify(
            part, batch_size=config.batch_size, context=config.context, threshold=config.threshold or THRESHOLD
        )
        yield from zip(part, found, strict=True)


def _scores(config: Config) -> str:
    from yeoul.data.labelled import read_labelled
    from yeoul.evaluate.classification import classification_scores

    records = read_labelled(
        str(config.data), text_column=config.text_column, label_column=config.label_column, reading=config.reading
    ).records
    classifier = load_classifier(config.model, device=config.device, dtype=config.dtype)
    if classifier.model.meaning != "one":
        what = "scores compare one label of each text, but this classifier gives several labels, or values"
        raise UserError(what, "--scores", "leave it out")
    numbers = {name: number for number, name in enumerate(classifier.labels)}
    for record in records:
        if record.label not in numbers:
            listed = ", ".join(classifier.labels[:20])
            raise UserError(f'the classifier has no label "{record.label}"', record.where, f"it has {listed}")
    found = [p.label for _, p in _predictions(config, classifier, [record.text for record in records])]
    scores = classification_scores(
        [numbers[record.label] for record in records], [numbers[label] for label in found], classifier.labels
    )
    if config.json:
        return json.dumps(scores.to_dict(), ensure_ascii=False)
    head = f"{count(len(records), 'text')}: accuracy {scores.accuracy:.4f}, macro F1 {scores.macro_f1:.4f}."
    return f"{head}\n{scores.table()}"
