"""How texts of a model begin and end: the one place that decides it, for whatever is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Framing:
    """The tokens around the texts that a model was trained on.

    Attributes:
        begin: stand before every text: before a prompt, before each row of training text and each chunk of a text that
            is scored, and before each document in them. Models whose texts begin so attend to this token everywhere
            (it is their attention sink); without it their predictions are poor.
        end: stand behind a text that is read whole, for its vector or its class, where the tokenizer says so (as that
            of Qwen3-Embedding does, whose vectors are this token's states).
        separator: ends a document of training text, where the next may follow; None where the tokenizer has no such
            token.
    """

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    separator: int | None = None

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """A text that goes on."""
        return [*self.begin, *ids]

    def document(self, ids: Sequence[int]) -> list[int]:
        """A text to learn, end and all."""
        return [*self.begin, *ids, *(() if self.separator is None else (self.separator,))]

    def whole(self, ids: Sequence[int], longest: int | None = None) -> list[int]:
        """A text that is read whole, as transformers' tokenizers give it.

        Args:
            ids: of the plain text.
            longest: tokens of the result; the text is cut for it, and not what stands around it.
        """
        if longest is not None:
            ids = ids[: self.room(longest)]
        return [*self.begin, *ids, *self.end][:longest]

    def room(self, longest: int) -> int:
        """Tokens of plain text in a whole text of at most `longest`."""
        return max(0, longest - len(self.begin) - len(self.end))


def frame(
    said: tuple[tuple[int, ...], tuple[int, ...]] | None,
    *,
    bos_id: int | None,
    eos_id: int | None,
    add_bos: bool,
    add_eos: bool,
) -> Framing:
    """The framing of a tokenizer.

    Args:
        said: what the post-processor of `tokenizer.json` puts before and behind a text; None where there is none that
            says anything about that.
        bos_id, eos_id: of the tokenizer.
        add_bos, add_eos: whether these stand around a text, where `said` is None.
    """
    if said is None:
        said = (
            (bos_id,) if add_bos and bos_id is not None else (),
            (eos_id,) if add_eos and eos_id is not None else (),
        )
    begin, end = said
    return Framing(begin=begin, end=end, separator=end[-1] if end else eos_id)
