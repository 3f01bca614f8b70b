"""Texts for distillation some of which ask at their end for what their beginning said."""

from __future__ import annotations

import random
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.loader import PackedLoader
from yeoul.evaluate.associative import recall_rows
from yeoul.evaluate.words import whole_words
from yeoul.text.tokenizer import Tokenizer

KINDS = 2
"""Of texts that `recall_rows` makes in turns."""


class RecallLoader:
    """A loader's batches, in which a share of the rows gives way to recall texts, their middle taken from that row.

    Which rows and what they ask for is decided by what stands in them, so that a run that goes on needs no more than
    the loader's own place.

    Args:
        loader: of rows that are one sequence each.
        tokenizer: of the model; where it has no whole words, nothing is changed.
        share: of the rows.
    """

    def __init__(self, loader: PackedLoader, tokenizer: Tokenizer, share: float) -> None:
        self.loader, self.tokenizer, self.share = loader, tokenizer, share

    @cached_property
    def words(self) -> list[int]:
        """What is told and asked for."""
        return whole_words(self.tokenizer)

    def next_batch(self) -> Batch:
        """The next batch, (B, T) as the loader has them."""
        batch = self.loader.next_batch()
        rows = [self._row(*pair) for pair in zip(batch.input_ids, batch.labels, strict=True)]
        return Batch(input_ids=torch.stack([ids[:-1] for ids in rows]), labels=torch.stack([ids[1:] for ids in rows]))

    def _row(self, ids: Tensor, labels: Tensor) -> Tensor:
        """(T + 1,) of the row, or of a recall text."""
        text = labels[labels != IGNORE].tolist()
        dice = random.Random(str(text))
        if dice.random() < self.share:
            made = recall_rows(
                self.tokenizer, text, rows=KINDS, length=len(ids) + 1, seed=dice.randrange(2**31), words=self.words
            )
            if made:
                return torch.tensor(dice.choice(made))
        return torch.cat([ids, labels[-1:]])

    def state_dict(self) -> dict[str, Any]:
        """The loader's place."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.loader.load_state_dict(state)
