"""Weighted positive fixed features of the DiJiang paper."""

from __future__ import annotations

from typing import ClassVar

from yeoul.model.feature_maps.base import Choices
from yeoul.model.feature_maps.frequencies import LEARNED, SEQUENCES, FrequencyFeatureMap
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class WPFFFeatureMap(FrequencyFeatureMap):
    """ "pff" with a learned weight of each feature in place of 1 / sqrt(M)."""

    choices: ClassVar[Choices] = dict(
        directions=("random",), radii=("chi",), sequence=SEQUENCES, pairs=(False,), kernel=("exp",), learn=LEARNED,
    )  # fmt: skip
    learned: ClassVar[tuple[str, ...]] = ("weights",)
