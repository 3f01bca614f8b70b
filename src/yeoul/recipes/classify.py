"""Classifiers of texts: opened, used on any number of texts, and scored by labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from yeoul import runtime
from yeoul.data.labelled import LabelledText
from yeoul.errors import UserError
from yeoul.evaluate.classification import ClassificationScores, classification_scores
from yeoul.hub import local_folder
from yeoul.infer.texts import BATCH_SIZE, Prediction, TextClassifier
from yeoul.model.checkpoint import model_folder, stored_dtype
from yeoul.model.classifier_folder import head_folder, load_head, load_sequence_classifier
from yeoul.model.heads import SequenceClassifier
from yeoul.recipes.loading import load
from yeoul.text.tokenizer import Tokenizer

TOGETHER = 4096
"""Texts that are sorted by length together; results appear after so many."""


def load_classifier(
    path: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
) -> TextClassifier:
    """A classifier with its tokenizer: `classifier(texts)` gives labels and probabilities.

    Args:
        path: a folder of `yeoul finetune --task classify` (the run's, its model's or its adapter's), one
            of transformers' sequence classification, or the id of one on the hub.
        device, dtype: as for `yeoul.load`.

    Raises:
        UserError: no classifier there, or a damaged one; no tokenizer.
    """
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


def classify_texts(
    classifier: TextClassifier,
    texts: Sequence[str],
    batch_size: int = BATCH_SIZE,
    context: int | None = None,
    *,
    threshold: float | None = None,
) -> Iterator[tuple[str, Prediction]]:
    """Each text with what the classifier says of it, in their order, as they are computed.

    Args:
        batch_size, context: as `TextClassifier.logits`.
        threshold: probability from which on a label holds, where labels do not exclude one another; 0.5 where None.

    Raises:
        UserError: a threshold for labels that exclude one another, or for values.
    """
    if threshold is not None and classifier.model.meaning != "several":
        what = "the classifier's labels exclude one another: the most probable one holds"
        if classifier.model.meaning == "values":
            what = "the classifier gives values and has no labels that could hold"
        raise UserError(what, "--threshold", "leave it out")
    for start in range(0, len(texts), TOGETHER):
        part = texts[start : start + TOGETHER]
        found = classifier.classify(part, batch_size=batch_size, context=context, threshold=threshold)
        yield from zip(part, found, strict=True)


def score_labels(
    classifier: TextClassifier, records: Sequence[LabelledText], batch_size: int = BATCH_SIZE,
    context: int | None = None,
) -> ClassificationScores:  # fmt: skip
    """Accuracy, F1 and confusion matrix on texts with labels; arguments as `TextClassifier.logits`.

    Raises:
        UserError: a label that the classifier does not have; a classifier of several labels, or of values.
    """
    if classifier.model.meaning != "one":
        what = "scores compare one label of each text, but this classifier gives several labels, or values"
        raise UserError(what, "--scores", "leave it out")
    numbers = {name: number for number, name in enumerate(classifier.labels)}
    for record in records:
        if record.label not in numbers:
            listed = ", ".join(classifier.labels[:20])
            raise UserError(f'the classifier has no label "{record.label}"', record.where, f"it has {listed}")
    texts = [record.text for record in records]
    found = [p.label for _, p in classify_texts(classifier, texts, batch_size, context)]
    return classification_scores(
        [numbers[record.label] for record in records], [numbers[label] for label in found], classifier.labels
    )
