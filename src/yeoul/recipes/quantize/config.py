"""Settings of `yeoul.quantize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from yeoul.adapt.quantize_config import QuantizationConfig
from yeoul.config import Place, Settings
from yeoul.data.reading import Reading
from yeoul.errors import UserError


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(Settings):
    """How a model is quantized, with which text, and what is measured of it.

    `QuantizeConfig.of(bits=4, method="rtn")` takes settings by the names of the flags.
    """

    weights: Annotated[QuantizationConfig, Parameter(name="*")] = field(default_factory=QuantizationConfig)
    """How the weights are rounded."""
    data: Place | None = None
    """Calibration text: a file, a folder, a Hub dataset or "builtin"; when not given, the training text of MODEL's
    run, or else "builtin"."""
    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    calibration_tokens: int = 65_536
    """Number of calibration tokens."""
    eval_data: Place | None = None
    """Text to score before and after, given as --data is; when not given, what MODEL's run held out, or else what
    follows the calibration text."""
    eval_tokens: int = 32_768
    """Number of tokens to score; 0 for no scores."""
    speed: bool = True
    """Compare the decoding speed of both."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the unquantized parts, in which the model will compute; auto is bfloat16."""

    def __post_init__(self) -> None:
        if self.calibration_tokens < 1:
            raise UserError(f"--calibration-tokens is {self.calibration_tokens}, but must be at least 1")
        if self.eval_tokens < 0:
            raise UserError(f"--eval-tokens is {self.eval_tokens}, but must be at least 0")
