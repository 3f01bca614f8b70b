"""A classifier that looks at questions before they are answered, and at answers before they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from yeoul.errors import UserError
from yeoul.infer.texts import BATCH_SIZE, TextClassifier

REMEMBERED = 1024
"""Texts whose probability is cached, so that a growing conversation costs one new text per turn."""
MARGIN = 8
"""Tokens left free in a piece of a long text, which may be cut into others than the whole text was."""


class Screen:
    """Refuses texts that a classifier takes for one of some labels.

    Called with the conversation up to a question, it checks each of its messages alone, whoever is said to have
    written them; called with an answer, that one alone. A text longer than the classifier reads is checked in pieces
    that overlap by half, and counts as its worst piece. Safe to call from several threads.

    Args:
        classifier: of `yeoul.load_classifier`, with one label for each text.
        labels: those that are refused; their probabilities are added.
        threshold: refused from this probability on, above 0 and at most 1.

    Raises:
        UserError: the classifier lacks a label, or has no other; the threshold is out of range.
    """

    def __init__(self, classifier: TextClassifier, labels: Sequence[str] | str, threshold: float = 0.5) -> None:
        self.classifier, self.threshold = classifier, threshold
        self.labels = (labels,) if isinstance(labels, str) else tuple(dict.fromkeys(labels))
        known = classifier.labels
        if classifier.model.meaning != "one":
            what = "the classifier's labels do not exclude one another, so that their probabilities cannot be added"
            raise UserError(what, "--screen", "give one whose problem_type is single_label_classification")
        listed = f"it has {', '.join(known)}"
        if not self.labels:
            raise UserError(
                "no label is refused", "--screen-label", f"give one of the classifier's: {', '.join(known)}"
            )
        for label in self.labels:
            if label not in known:
                raise UserError(f'the classifier has no label "{label}"', "--screen-label", listed)
        if len(self.labels) == len(known):
            raise UserError("all labels of the classifier would be refused", "--screen-label", listed)
        if not 0 < threshold <= 1:
            raise UserError(f"--screen-threshold is {threshold:g}, but must be above 0 and at most 1")
        self._known = lru_cache(REMEMBERED)(lambda text: self.probabilities([text])[0])

    def __call__(self, messages: Sequence[Mapping[str, str]], answer: str | None) -> str | None:
        """Why to refuse, as a clause; None where nothing is found.

        Args:
            messages: {"role", "content"} each, the question last.
            answer: what the model would say; None before it has said anything.
        """
        if answer is not None:
            return self._reason("it", answer)
        for number, message in enumerate(reversed(messages)):
            reason = self._reason("an earlier message" if number else "it", message["content"])
            if reason is not None:
                return reason
        return None

    def _reason(self, what: str, text: str) -> str | None:
        probability = self._known(text) if text.strip() else 0.0
        if probability < self.threshold:
            return None
        labels = " or ".join(f'"{label}"' for label in self.labels)
        return f"the screen classified {what} as {labels} (probability {probability:.2f})"

    def probabilities(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE) -> list[float]:
        """The probability of each text that it has one of the labels; of a long one, that of its worst piece."""
        pieces = [self._pieces(text) for text in texts]
        refused = [self.classifier.labels.index(label) for label in self.labels]
        logits = self.classifier.logits([piece for part in pieces for piece in part], batch_size=batch_size)
        found = iter(logits.softmax(-1)[:, refused].sum(-1).tolist())
        return [max(next(found) for _ in part) for part in pieces]

    def _pieces(self, text: str) -> list[str]:
        """The text, or parts of it that the classifier reads whole."""
        longest = self.classifier.model.decoder.config.max_position_embeddings
        size = max(2, longest - MARGIN)
        _, offsets = self.classifier.tokenizer.encode_with_offsets(text)
        if len(offsets) <= size:
            return [text]
        starts = range(0, len(offsets) - size + size // 2, size // 2)
        ends = [*offsets, len(text)]
        return [text[offsets[start] : ends[min(start + size, len(offsets))]] for start in starts]
