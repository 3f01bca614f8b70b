"""Whole texts through a model: to the probabilities of classes, or to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from yeoul.data.text_batches import TextBatch, text_batches
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.heads import Meaning, SequenceClassifier, TextVectors
from yeoul.model.vector_settings import Reading
from yeoul.text.tokenizer import Tokenizer

BATCH_SIZE = 32
THRESHOLD = 0.5
"""Probability from which on a label holds, where labels do not exclude one another."""


def padding_id(tokenizer: Tokenizer, config: ModelConfig) -> int:
    """A token for padding: the tokenizer's own, else one with which no text ends.

    Which one it is changes nothing here, where masks tell padding apart. transformers' classifiers look for the last
    token that is not this one.
    """
    known = (tokenizer.pad_id, config.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id, 0)
    return next(token for token in known if token is not None and 0 <= token < config.vocab_size)


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int, *, unread: int | None = None
) -> tuple[list[list[int]], int]:
    """Tokens of texts with what stands around the model's texts, and how many texts were cut.

    A text without tokens becomes one end token, so that it has a result, too.

    Args:
        longest: tokens that are kept of a text, from its beginning; what stands around it is not cut.
        unread: of a classifier, the token for padding. transformers' classifiers look at the last token that is not
            this one, so that a text does not end with it here either.
    """
    framing = tokenizer.framing
    while framing.end and framing.end[-1] == unread:
        framing = replace(framing, end=framing.end[:-1])
    nothing = [tokenizer.eos_id if tokenizer.eos_id is not None else 0]
    plain, room = tokenizer.encode_batch(texts), framing.room(longest)
    return [framing.whole(ids, longest) or nothing for ids in plain], sum(len(ids) > room for ids in plain)


def in_batches(
    apply: Callable[[TextBatch], Tensor], rows: Sequence[Sequence[int]], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers of the texts, results) for batches of similar length, long ones first; results on the CPU, fp32."""
    for chosen, batch in text_batches([(row,) for row in rows], None, batch_size=batch_size, pad_id=0):
        with torch.inference_mode():
            yield torch.from_numpy(chosen), apply(batch.to(device)).float().cpu()


def _gathered(batches: Iterator[tuple[Tensor, Tensor]], count: int, width: int) -> Tensor:
    """Results (count, width) in the order of the texts."""
    result = torch.zeros(count, width)
    for chosen, values in batches:
        result[chosen] = values
    return result


def _longest(config: ModelConfig, context: int | None) -> int:
    """Tokens of a text that are read."""
    if context is not None:
        config.check_context(context)
    return context or config.max_position_embeddings


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about a text.

    Attributes:
        label: the most probable class; of a regression the label of the largest value.
        probabilities: of all classes, by name: they add up to 1, or each is its own where labels do not exclude one
            another. Of a regression the values.
        labels: those that hold, the most probable first: one, or any number where they do not exclude one another.
    """

    label: str
    probabilities: dict[str, float]
    labels: tuple[str, ...]

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return self.probabilities[self.label]

    def cells(self, meaning: Meaning = "one") -> tuple[str, str]:
        """Label and probability for a table: all that hold of several labels, all values of a regression."""
        if meaning == "values":
            return ", ".join(self.probabilities), ", ".join(f"{value:.4f}" for value in self.probabilities.values())
        label = self.label if meaning == "one" else ", ".join(self.labels) or "-"
        return label, f"{self.probability:.4f}"

    def to_dict(self, meaning: Meaning = "one") -> dict[str, Any]:
        """JSON values, rounded to six decimals.

        Args:
            meaning: of the classifier.
        """
        rounded = {name: round(value, 6) for name, value in self.probabilities.items()}
        if meaning == "values":
            return {"values": rounded}
        if meaning == "several":
            return {"labels": list(self.labels), "probabilities": rounded}
        return {"label": self.label, "probability": round(self.probability, 6), "probabilities": rounded}


@dataclass
class TextClassifier:
    """A classifier with its tokenizer; `labels` are its classes in the order of the logits."""

    model: SequenceClassifier
    tokenizer: Tokenizer

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return self.model.labels

    def __call__(self, texts: Sequence[str], **settings: Any) -> list[Prediction]:
        """`classify`."""
        return self.classify(texts, **settings)

    def logits(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE, context: int | None = None) -> Tensor:
        """(len(texts), labels) fp32.

        Args:
            texts: any; their order is kept.
            batch_size: texts at a time; changes only rounding.
            context: tokens that are read of a text, from its beginning; None: all that the model's length allows.
        """
        decoder = self.model.decoder
        longest = _longest(decoder.config, context)
        unread = decoder.config.pad_id
        if unread is None:
            unread = padding_id(self.tokenizer, decoder.config)
        rows, _ = encode_texts(self.tokenizer, texts, longest, unread=unread)
        batches = in_batches(lambda batch: self.model(batch.input_ids, batch.mask), rows, batch_size, decoder.device)
        return _gathered(batches, len(rows), len(self.labels))

    def classify(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
        context: int | None = None,
        threshold: float | None = None,
    ) -> list[Prediction]:
        """The classes of texts; arguments as `logits`, and:

        Args:
            threshold: where labels do not exclude one another, the probability from which on one holds; 0.5 where None.
        """
        threshold = THRESHOLD if threshold is None else threshold
        logits = self.logits(texts, batch_size=batch_size, context=context)
        meaning = self.model.meaning
        values = {"one": logits.softmax(-1), "several": logits.sigmoid(), "values": logits}[meaning]
        found = []
        for row in values.tolist():
            named = dict(zip(self.labels, row, strict=True))
            order = sorted(named, key=lambda name: -named[name])
            holds = [name for name in order if named[name] >= threshold] if meaning == "several" else order[:1]
            found.append(Prediction(order[0], named, tuple(holds)))
        return found


@dataclass
class TextEmbedder:
    """A model whose pooled states stand for texts.

    Attributes:
        vectors: which states, how they are pooled, and what that goes through; on the model's device.
        reading: how texts are read; whether vectors have length 1, so that their products are cosines.
        made_for_it: the model's folder says how its vectors are made; else it was trained for something else.
    """

    model: Decoder
    tokenizer: Tokenizer
    vectors: TextVectors = field(default_factory=TextVectors)
    reading: Reading = field(default_factory=Reading)
    made_for_it: bool = True

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.vectors.width(self.model.config.hidden_size)

    def __call__(self, texts: Sequence[str], **settings: Any) -> Tensor:
        """`embed`."""
        return self.embed(texts, **settings)

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
        context: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Tensor:
        """(len(texts), `width`) fp32; arguments as `TextClassifier.logits`, and:

        Args:
            prompt_name: of the prompt that stands before each text; None takes the folder's default one, "" none.
            prompt: the prompt itself, instead.

        Raises:
            UserError: there is no prompt of this name.
        """
        before = self.reading.prompt(prompt_name) if prompt is None else prompt
        longest = _longest(self.model.config, context)
        if context is None and self.reading.longest is not None:
            longest = min(self.reading.longest, self.model.config.bounded_context or self.reading.longest)
        rows, _ = encode_texts(self.tokenizer, [self._read(before + text) for text in texts], longest)
        skip = 0 if self.reading.counts or not before else self._prompt_tokens(before)

        def vectors(batch: TextBatch) -> Tensor:
            made = self.vectors(self.vectors.pooled(self.model, batch.input_ids, batch.mask, skip))
            return torch.nn.functional.normalize(made, dim=-1) if self.reading.normalize else made

        return _gathered(in_batches(vectors, rows, batch_size, self.model.device), len(rows), self.width)

    def _read(self, text: str) -> str:
        """A text as it is read: as sentence-transformers does it, without the white space around it."""
        text = text.strip()
        return text.lower() if self.reading.lower_case else text

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt alone, with a begin token and without an end token, as sentence-transformers counts."""
        rows, _ = encode_texts(self.tokenizer, [self._read(prompt)], self.model.config.max_position_embeddings)
        return len(rows[0]) - (rows[0][-1] in self.tokenizer.special_tokens.values())
