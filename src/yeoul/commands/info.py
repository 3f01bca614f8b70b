"""`yeoul info`: architecture, parameters, memory, tokenizer and card of a model, read without loading its weights."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.foreign_text import say


@dataclass(frozen=True)
class Config:
    """Show a model's architecture, parameters, memory, tokenizer and card, and what can be done with it.

    Of a run that was stopped it shows how far it is, its newest checkpoint, and the command that goes on.
    """

    model: Place
    """Model: a Hugging Face folder, a GGUF file, a run's folder, or an id on the hub, also as id@revision."""
    _: KW_ONLY
    context: int | None = None
    """Context length for which the cache is computed; the model's own when not given."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise UserError(f"--context is {self.context}, but must be at least 1")


def run(config: Config) -> int:
    """Print what is known about the model, and about the run that made it."""
    from yeoul.recipes.info.examine import info

    found = info(config.model, context=config.context)
    say(json.dumps(found.as_dict(), indent=2, ensure_ascii=False, default=str) if config.json else str(found))
    return 0
