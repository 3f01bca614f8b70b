"""The task classify: texts and their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.errors import UserError
from yeoul.recipes.finetune.data import check_share, show_loss_mask
from yeoul.recipes.finetune.task import Outcome, TaskSetup, Validate
from yeoul.recipes.finetune.texts import TextTask, WholeTextOptions, save_tokenizer
from yeoul.units import count

if TYPE_CHECKING:
    import torch

    from yeoul.data.labelled import LabelledText, Table
    from yeoul.evaluate.classification import ClassificationScores
    from yeoul.infer.texts import TextClassifier
    from yeoul.model.decoder import Decoder
    from yeoul.model.heads import ClassificationHead, Pooling
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loss import Objective

HEAD_STEP = 0.2
"""By how much one step of the head may change a text's logits: AdamW moves each weight by about the learning rate, so
with the rate r they change by r times the sum of the pooled state's absolute values. Those sums differ more than a
hundredfold between models (wide ones, Gemma's large states), and a rate that suits one throws another about."""
MEASURED = 32
"""Texts of which that sum is the mean."""
FEW_LABELS = 10
"""So many labels are never too many for the texts."""
SHOWN_LABELS = 12


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Of --task classify."""

    label_column: str | None = None
    """Column with the label; when not given, it is looked up by its usual names."""
    label_smoothing: float = 0.0
    """Label smoothing: share of each target that is spread over all classes."""
    head_dropout: float = 0.0
    """Dropout before the classification head."""
    lm_weight: float = 0.0
    """Keep learning the texts themselves: the next-token loss is added with this weight."""

    def __post_init__(self) -> None:
        check_share(self.label_smoothing, "--label-smoothing")
        check_share(self.head_dropout, "--head-dropout")
        if not 0 <= self.lm_weight < float("inf"):
            raise UserError(f"--lm-weight is {self.lm_weight}, but must be at least 0")


class ClassifyTask(TextTask):
    """Texts and labels; `extra` is the classification head."""

    name, verb = "classify", "classify"
    extra: ClassificationHead

    def __init__(self, setup: TaskSetup, texts: WholeTextOptions, options: ClassifyOptions) -> None:
        super().__init__(setup, texts)
        self.options = options
        self.loss = "cross-entropy" if options.lm_weight else "hidden"  # next tokens are learned too, or not

    def check_data(self) -> None:
        """Texts to train and to validate on, and their labels."""
        from yeoul.data.labelled import label_names

        table = self._read(self.data)
        self.texts = self._split(table)
        self.skipped, self.complaint = table.skipped, next(iter(table.complaints), "")
        self.labels = label_names(text.label for text in self.texts[0])
        self._check_labels(*self.texts)

    def prepare(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Makes targets of the labels, and the head."""
        import numpy as np

        from yeoul.model.heads import ClassificationHead

        train, val = self.texts
        del self.texts  # from here on tokens
        numbers = {name: number for number, name in enumerate(self.labels)}
        self.targets, self.val_targets = (
            np.array([numbers[text.label] for text in texts], dtype=np.int64) for texts in (train, val)
        )
        self.counts = Counter(text.label for text in train)
        self.first = train[0]
        self.set_items(model, tokenizer, [(text.text,) for text in train], [(text.text,) for text in val])
        pooling: Pooling = self.whole_texts.pooling or "last"
        self.extra = ClassificationHead(model.config.hidden_size, self.labels, pooling, self.options.head_dropout).to(
            model.device
        )
        self._measure()
        self.scored: tuple[dict[str, float], ClassificationScores] | None = None

    def _measure(self) -> None:
        """How large the pooled states are, for the head's beginning and its rate; what guessing costs."""
        import numpy as np
        import torch

        from yeoul.model.heads import TextVectors
        from yeoul.train.texts import pooled_items

        chosen = np.linspace(0, len(self.items) - 1, min(MEASURED, len(self.items)), dtype=int)
        vectors = TextVectors(self.extra.pooling)
        states = pooled_items(
            self.model, vectors, [self.items[n] for n in chosen], batch_size=8, dtype=self.compute_dtype()
        )
        self.state_sum = float(states.abs().sum(-1).mean())
        with torch.no_grad():  # logits begin near 0, however large the states are
            self.extra.score.weight.div_(max(1.0, float(states.square().mean().sqrt())))
        if self.val:
            assert self.targets is not None and self.val_targets is not None
            shares = np.bincount(self.targets, minlength=len(self.labels)) / len(self.targets)
            self.guess = float(-np.log(shares[self.val_targets]).mean())

    def extra_rate(self, rate: float) -> float | None:
        """Peak learning rate of the head, where none is given and the model's is this."""
        steady = float(f"{HEAD_STEP / max(self.state_sum, 1e-9):.2g}")
        return steady if self.adapter is not None else min(rate, steady)

    def _read(self, spec: str) -> Table[LabelledText]:
        from yeoul.data.labelled import read_labelled

        how = self.examples
        return read_labelled(
            spec, text_column=how.text_column, label_column=self.options.label_column,
            on_bad_record=how.on_bad_record, reading=how.reading,
        )  # fmt: skip

    def _split(self, table: Table[LabelledText]) -> tuple[list[LabelledText], list[LabelledText]]:
        """Texts to train on and to validate on; a label does not go to validation alone."""
        if self.examples.val_data is not None:
            return table.records, self._read(self.examples.val_data).records
        if not self.examples.val_fraction:
            return table.records, []
        train, val = self.examples.held_out(table.records, lambda text: text.text)
        known = {text.label for text in train}
        return train + [t for t in val if t.label not in known], [t for t in val if t.label in known]

    def _check_labels(self, train: Sequence[LabelledText], val: Sequence[LabelledText]) -> None:
        where, number = self.data, len(self.labels)
        if number < 2:
            raise UserError(f'all texts have the label "{self.labels[0]}"', where, "give texts of two labels or more")
        if number > max(FEW_LABELS, len(train) // 2):
            what = f"{number:,} different labels for {count(len(train), 'text')} do not look like classes"
            raise UserError(what, where, "name the column with the label (--label-column)")
        known = set(self.labels)
        for text in val:
            if text.label not in known:
                raise UserError(f'no text to train on has the label "{text.label}"', text.where)

    @property
    def unread(self) -> int | None:
        """The token for padding, which the classifier's folder names."""
        return self.pad_id

    def introduce(self) -> list[str]:
        """Sizes, classes, and the first example."""
        shown = [f"{name} {self.counts[name]:,}" for name in self.labels[:SHOWN_LABELS]]
        if len(self.labels) > SHOWN_LABELS:
            shown.append(f"{len(self.labels) - SHOWN_LABELS} more")
        lines = self.data_lines(count(len(self.items), "text"), self.skipped, self.complaint)
        lines.append(f"Classes: {', '.join(shown)}; from the {self._states()}.")
        ids = list(self.items[0][0])
        learned = bool(self.options.lm_weight)
        return [*lines, f"{show_loss_mask(self.tokenizer, ids, [learned] * len(ids))} → {self.first.label}"]

    def _states(self) -> str:
        return "last token's state" if self.extra.pooling == "last" else "mean of all tokens' states"

    def objective(self) -> Objective:
        """Cross-entropy of the classes."""
        from yeoul.train.texts import classification_objective

        how = self.options
        return classification_objective(self.extra, label_smoothing=how.label_smoothing, lm_weight=how.lm_weight)

    def validate(self) -> Validate | None:
        """Loss, accuracy and macro F1 of the texts that were held out."""
        from yeoul.evaluate.classification import score_classifier

        targets = self.val_targets
        if not self.val or targets is None:
            return None
        dtype = self.compute_dtype()

        def validate() -> dict[str, float]:
            loss, scores = score_classifier(
                self.model, self.extra, self.val, targets, batch_size=self.training.rows, dtype=dtype
            )
            values = {"loss": loss, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1}
            self.scored = values, scores
            return values

        return validate

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Classifier and tokenizer."""
        from yeoul.model.classifier_folder import save_classifier
        from yeoul.model.heads import SequenceClassifier
        from yeoul.recipes.saving import merged_model

        save_classifier(SequenceClassifier(merged_model(self.model, dtype), self.extra), folder, pad_id=self.pad_id)
        save_tokenizer(self.tokenizer, folder, self.pad_id)

    def save_beside(self, folder: Path) -> None:
        """Head and tokenizer."""
        from yeoul.model.classifier_folder import save_head

        save_head(self.extra, folder)
        save_tokenizer(self.tokenizer, folder, self.pad_id)

    def classifier(self) -> TextClassifier:
        """Model and head."""
        from yeoul.infer.texts import TextClassifier
        from yeoul.model.heads import SequenceClassifier

        return TextClassifier(SequenceClassifier(self.model, self.extra).eval(), self.tokenizer)

    def outcome(self, before: dict[str, float], after: dict[str, float]) -> Outcome:
        """Scores of the validation."""
        if not after or (validate := self.validate()) is None:
            return Outcome()
        if self.scored is None or self.scored[0] != after:  # the run was finished before
            validate()
        assert self.scored is not None
        scores = self.scored[1]
        line = (
            f"Validation on {count(len(self.val), 'text')}: accuracy {scores.accuracy:.4f}, "
            f"macro F1 {scores.macro_f1:.4f}.\n{scores.table()}\n"
        )
        return Outcome(lines=(line,), scores=scores)
