"""Positive fixed features of the DiJiang paper."""

from __future__ import annotations

from typing import ClassVar

from yeoul.model.feature_maps.base import Choices
from yeoul.model.feature_maps.frequencies import SEQUENCES, FrequencyFeatureMap
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class PFFFeatureMap(FrequencyFeatureMap):
    """Radii from a low-discrepancy sequence, independent directions on the sphere (arXiv 2403.19928, section 3.2).

    The paper prints exp(-|x|^2); what estimates exp(q.k) is exp(-|x|^2 / 2), which is used.
    """

    choices: ClassVar[Choices] = dict(
        directions=("random",), radii=("chi",), sequence=SEQUENCES, pairs=(False,), kernel=("exp",), learn=(),
    )  # fmt: skip
