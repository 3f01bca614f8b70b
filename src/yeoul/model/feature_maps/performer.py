"""Positive random features of Performer."""

from __future__ import annotations

from typing import ClassVar

from yeoul.model.feature_maps.base import Choices
from yeoul.model.feature_maps.frequencies import LEARNED, FrequencyFeatureMap
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class PerformerFeatureMap(FrequencyFeatureMap):
    """w = t c is Gaussian: chi radii and directions uniform on the sphere, both random (arXiv 2009.14794).

    The directions are orthogonal in blocks of D unless `directions` is "random". With `pairs` it is Performer's
    hyperbolic variant.
    """

    choices: ClassVar[Choices] = dict(
        directions=("orthogonal", "random"), radii=("chi",), sequence=("random",),
        pairs=(False, True), kernel=("exp",), learn=LEARNED,
    )  # fmt: skip
