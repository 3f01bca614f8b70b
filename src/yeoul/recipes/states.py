"""What a model remembers of a text, from a file or into one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.errors import UserError
from yeoul.units import count, size

if TYPE_CHECKING:
    from yeoul.infer.state_file import KeptState
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.options import Say
    from yeoul.text.tokenizer import Tokenizer


def open_state(path: Path | None, model: Decoder, tokenizer: Tokenizer) -> KeptState | None:
    """The state in a file; None without one.

    Raises:
        UserError: no such file, a damaged one, or one of another model, adapter or tokenizer.
    """
    from yeoul.infer.state_file import load_state
    from yeoul.recipes.fingerprint import fingerprint

    return None if path is None else load_state(path, model, fingerprint(model, tokenizer))


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """A text that was read before, or that is to be kept."""

    state: Path | None = None
    """Go on behind the text whose state is in this file, instead of at the beginning of a text."""
    save_state: Path | None = None
    """Read the prompt, leave what the model remembers of it in this file, for --state here and in chat, and end."""

    def __post_init__(self) -> None:
        if self.state is not None and self.save_state is not None:
            raise UserError("both --state and --save-state are given", fix="leave one of them out")

    def check(self, *, alone: bool) -> None:
        """Raises UserError where either is given, but not one prompt alone that is shown."""
        for flag, path in (("--state", self.state), ("--save-state", self.save_state)):
            if path is not None and not alone:
                raise UserError("a state is for one prompt", flag, "leave --prompt-file, --num-samples and --json out")

    def open(self, model: Decoder, tokenizer: Tokenizer) -> KeptState | None:
        """The state of --state; None without it. Raises as `open_state`."""
        return open_state(self.state, model, tokenizer)

    def save(self, prompt: str, model: Decoder, tokenizer: Tokenizer, say: Say) -> bool:
        """Reads a prompt and leaves what the model remembers of it in the file of --save-state; False without it."""
        if self.save_state is None:
            return False
        from yeoul.infer.engine import prompt_ids
        from yeoul.infer.state_file import read_text, save_state
        from yeoul.recipes.fingerprint import fingerprint

        state = read_text(model, prompt_ids(tokenizer, prompt))
        written = save_state(self.save_state, state.cache, state.ids, fingerprint(model, tokenizer))
        say(f"The state behind {count(len(state.ids), 'token')} is in {self.save_state} ({size(written)}).")
        return True
