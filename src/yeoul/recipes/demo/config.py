"""Settings of `yeoul.demo`."""

from __future__ import annotations

from dataclasses import dataclass

from yeoul.config import Settings
from yeoul.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """Settings of `yeoul.demo`."""

    minutes: float = 5.0
    """Minutes for everything; more time gives better models."""
    seed: int = 0
    """Seed of weights, data order and samples."""

    def __post_init__(self) -> None:
        if not 0.2 <= self.minutes <= 24 * 60:
            raise UserError(f"--minutes is {self.minutes:g}, but must be from 0.2 to 1440")
