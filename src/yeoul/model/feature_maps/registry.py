"""The feature maps by name: one file each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yeoul.model.registry import Registry

FEATURE_MAPS: Registry[Any] = Registry(
    "yeoul.model.feature_maps", Path(__file__).parent, "the feature map", shared=("base", "config", "frequencies")
)
"""Subclasses of `yeoul.model.feature_maps.base.FeatureMap`."""

if TYPE_CHECKING:
    FeatureMapName = str
else:
    FeatureMapName = Literal[FEATURE_MAPS.names]  # for flags: torch is not imported for it
