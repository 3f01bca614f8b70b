"""Where a tensor lies in a file, and what its bytes are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Encoding(NamedTuple):
    """How the bytes of a GGUF file become the numbers of a tensor (`gguf_weights.decode`).

    Attributes:
        kind: ggml's name of the type, such as "Q4_K".
        shift: is added to every number: -1 for the norms of Gemma.
        heads: of a projection whose rows lie so that neighbouring dimensions are rotated together; 0 where they do not.
    """

    kind: str
    shift: float = 0.0
    heads: int = 0


class Stored(NamedTuple):
    """One tensor of a file: where its bytes lie and what they are.

    Attributes:
        shape: rows first.
        dtype_name: of its numbers, without "torch."; of an encoded one that which it is brought to where no other is
            asked for.
        start, nbytes: in the file.
        encoding: None where the bytes are the numbers.
    """

    file: Path
    shape: tuple[int, ...]
    dtype_name: str
    start: int
    nbytes: int
    encoding: Encoding | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype
