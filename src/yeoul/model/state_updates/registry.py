"""The state updates by name: one file each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yeoul.model.registry import Registry

STATE_UPDATES: Registry[Any] = Registry("yeoul.model.state_updates", Path(__file__).parent, "state_update")
"""Subclasses of `yeoul.model.linear_attention.LinearAttention`."""

if TYPE_CHECKING:
    StateUpdateName = str
else:
    StateUpdateName = Literal[STATE_UPDATES.names]  # for flags: torch is not imported for it
