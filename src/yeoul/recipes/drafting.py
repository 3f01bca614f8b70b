"""The flags of speculative decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from yeoul.config import Place
from yeoul.errors import UserError

if TYPE_CHECKING:
    from yeoul.infer.speculation import Speculation
    from yeoul.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class DraftOptions:
    """Whether tokens are guessed, and who guesses."""

    draft_tokens: int = 0
    """Guess up to this many tokens at a time, which the model then verifies together: the same text, sooner where
    guesses are right, as where a text repeats itself; one text at a time. 0 = off."""
    draft_model: Place | None = None
    """Smaller model with the same tokenizer that guesses; without it, the text itself is searched for what followed
    its last tokens before."""

    def __post_init__(self) -> None:
        if self.draft_tokens < 0:
            raise UserError(f"--draft-tokens is {self.draft_tokens}, but must be 0 (off) or more")
        if self.draft_model is not None and not self.draft_tokens:
            raise UserError(
                "a draft model guesses nothing without --draft-tokens", "--draft-model", "add it, such as 6"
            )

    def open(self, tokenizer: Tokenizer, *, device: str, dtype: str) -> Speculation | None:
        """What `yeoul.infer.engine` takes; None where nothing is guessed.

        Raises:
            UserError: no such model, or one with another tokenizer.
        """
        from yeoul.infer.speculation import Speculation
        from yeoul.recipes.loading import load

        if not self.draft_tokens:
            return None
        if self.draft_model is None:
            return Speculation(tokens=self.draft_tokens)
        model, own = load(self.draft_model, device=device, dtype=dtype)
        if own is not None and own.fingerprint != tokenizer.fingerprint:
            what = "the draft model has another tokenizer than the model"
            raise UserError(what, f"--draft-model {self.draft_model}", "give a smaller model of the same family")
        return Speculation(tokens=self.draft_tokens, model=model)
