"""Whole texts through a model: to the probabilities of classes, or to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from yeoul.data.text_batches import TextBatch, text_batches
from yeoul.errors import UserError
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.heads import SequenceClassifier, TextVectors
from yeoul.text.tokenizer import Tokenizer

BATCH_SIZE = 32


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
    """(numbers of the texts, results) for batches of like length, long ones first; results on the CPU, fp32."""
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
    if context is not None and config.bounded_context is not None and context > config.bounded_context:
        what = f"the context of {context:,} is longer than the model's {config.bounded_context:,} positions"
        raise UserError(what, "--context", "shorten it")
    return context or config.max_position_embeddings


@dataclass(frozen=True)
class Prediction:
    """The most probable class of a text, and the probabilities of all by name."""

    label: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return self.probabilities[self.label]


@dataclass
class TextClassifier:
    """A classifier with its tokenizer; `labels` are its classes in the order of the logits."""

    model: SequenceClassifier
    tokenizer: Tokenizer

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return self.model.labels

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
        self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE, context: int | None = None
    ) -> list[Prediction]:
        """The classes of texts; arguments as `logits`."""
        probabilities = self.logits(texts, batch_size=batch_size, context=context).softmax(-1)
        found = []
        for row in probabilities.tolist():
            named = dict(zip(self.labels, row, strict=True))
            found.append(Prediction(max(named, key=lambda name: named[name]), named))
        return found


@dataclass
class TextEmbedder:
    """A model whose pooled states stand for texts.

    Attributes:
        vectors: which states, how they are pooled, and what that goes through; on the model's device.
        normalize: vectors have length 1, so that their products are cosines.
    """

    model: Decoder
    tokenizer: Tokenizer
    vectors: TextVectors = field(default_factory=TextVectors)
    normalize: bool = True

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.vectors.width(self.model.config.hidden_size)

    def embed(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE, context: int | None = None) -> Tensor:
        """(len(texts), `width`) fp32; arguments as `TextClassifier.logits`."""
        rows, _ = encode_texts(self.tokenizer, texts, _longest(self.model.config, context))
        return _gathered(in_batches(self._vectors, rows, batch_size, self.model.device), len(rows), self.width)

    def _vectors(self, batch: TextBatch) -> Tensor:
        vectors = self.vectors(self.vectors.pooled(self.model, batch.input_ids, batch.mask))
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
