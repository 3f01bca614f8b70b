"""How a model's weights are quantized: bits, groups, method, and which of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yeoul.errors import UserError

TABLE_BITS = 6
"""Of embeddings and head beside layers of 4 bits."""


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How the weights of a model are rounded.

    `rounded` is the form without text. A `group_size` of 0 is a scale for each output, which only 8 bits take.

    Raises:
        UserError: values that do not go together.
    """

    bits: Literal[8, 4] = 8
    """Bits per weight."""
    group_size: Literal[32, 64, 128] | None = None
    """Inputs that share a scale; when not given, all inputs of an output with 8 bits, and 64 with 4."""
    method: Literal["gptq", "awq", "rtn"] = "gptq"
    """gptq: each weight's error is compensated by the ones after it, using calibration text; awq: important channels
    are scaled up before rounding, using the same text; rtn: round to nearest, without text."""
    embeddings: bool = True
    """Quantize the embeddings too: one scale per row, and 6 bits where layers have 4. Tied embeddings are quantized if
    either flag is given."""
    head: bool = True
    """Quantize the output layer likewise."""

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise UserError(f"weights of {self.bits} bits are not supported", "--bits", "use 8 or 4")
        if self.group_size not in (None, 32, 64, 128, *((0,) if self.bits == 8 else ())):
            raise UserError(
                f"groups of {self.group_size} are not supported with {self.bits} bits", "--group-size",
                "use 32, 64 or 128",
            )  # fmt: skip

    @classmethod
    def rounded(
        cls, *, bits: int = 8, group_size: int | None = None, embeddings: bool = False, head: bool = False
    ) -> QuantizationConfig:
        """Linear layers rounded to the nearest, which needs no text: what adapters are trained on."""
        return cls(
            bits=bits, group_size=group_size, method="rtn", embeddings=embeddings, head=head,  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def group(self) -> int:
        """Inputs of a layer that share a scale; 0 means all of an output's."""
        return (0 if self.bits == 8 else 64) if self.group_size is None else self.group_size

    @property
    def table_scheme(self) -> tuple[int, int]:
        """Bits and group of the embeddings and the head."""
        return (TABLE_BITS, 0) if self.bits == 4 else (self.bits, self.group)
