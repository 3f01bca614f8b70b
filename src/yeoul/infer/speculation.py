"""Speculative decoding: tokens that are guessed, and verified together in one pass through the model.

A guess costs the model one pass for several tokens, which takes little longer than for one where reading the weights is
what takes the time. What is drawn does not change: at every position a token is drawn from the model's own
distribution, and a guess is right where it is that token. For guesses that are certain (a point mass) that is
speculative sampling (Leviathan and others 2023), with the same numbers from the same generator as without guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from yeoul.errors import UserError
from yeoul.infer.next_token import NextToken

if TYPE_CHECKING:
    from yeoul.model.cache import Cache
    from yeoul.model.decoder import Decoder

LONGEST, SHORTEST = 4, 2
"""Tokens at the end of a text that `PromptLookup` looks for earlier in it."""
FIRST = 4
"""Tokens that are guessed at first; more where guesses are right, fewer where they are not."""


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """At most so many tokens behind a text, which is the one of the last call with more behind it; maybe none."""
        ...


class PromptLookup:
    """Guesses that a text goes on as it did where its last tokens stood before (Saxena 2023, prompt lookup decoding).

    Of several places the latest is taken, of several lengths (4, 3, 2 tokens) the longest.
    """

    def __init__(self) -> None:
        self._known = 0
        self._places: dict[tuple[int, ...], int] = {}

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """See `Drafter`."""
        for end in range(max(self._known, SHORTEST), len(text)):  # places behind which something stands
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._places[tuple(text[end - length : end])] = end
        self._known = max(self._known, len(text))
        for length in range(min(LONGEST, len(text)), SHORTEST - 1, -1):
            place = self._places.get(tuple(text[-length:]))
            if place is not None:
                return list(text[place : place + most])
        return []


class DraftModel:
    """Guesses what a smaller model finds likeliest.

    Args:
        model: with the vocabulary of the large one, on any device.

    Raises:
        UserError: of another vocabulary.
    """

    def __init__(self, model: Decoder, large: Decoder) -> None:
        sizes = model.config.vocab_size, large.config.vocab_size
        if sizes[0] != sizes[1]:
            what = f"the draft model has {sizes[0]:,} tokens in its vocabulary, the model {sizes[1]:,}"
            raise UserError(what, "--draft-model", "give a model of the same family")
        self.model, self._next = model.eval(), NextToken(model)
        self._cache: Cache | None = None
        self._read = 0  # tokens of the text that are in the cache

    @torch.inference_mode()
    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """See `Drafter`."""
        longest = self.model.config.bounded_context
        if longest is not None:
            most = min(most, longest - len(text))
        if most < 1:
            return []
        if self._cache is None:
            self._cache = self.model.new_cache(1)
        unread = torch.tensor(text[self._read :], device=self.model.device)
        logits = self._next.after_each(unread, self._cache, 1)
        self._read = len(text)
        beside, found = self._cache.snapshot(), [int(logits[-1].argmax())]
        while len(found) < most:
            last = torch.tensor(found[-1:], device=self.model.device)
            found.append(int(self._next(last, beside)[-1].argmax()))
        return found


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """How a text is guessed ahead.

    Attributes:
        tokens: guessed at a time, at most.
        model: guesses; None searches the text itself (`PromptLookup`).
    """

    tokens: int = 8
    model: Decoder | None = None

    def drafter(self, large: Decoder) -> Drafter:
        """A new one, for one text.

        Raises:
            UserError: the model has another vocabulary than the large one.
        """
        return PromptLookup() if self.model is None else DraftModel(self.model, large)


class Pace:
    """How many tokens to guess: two more after guesses that were all right, one fewer after others."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, min(FIRST, most)

    def told(self, guessed: int, right: int) -> None:
        """Takes note of how many of the guesses were right."""
        self.now = min(self.most, self.now + 2) if right == guessed else max(1, self.now - 1)
