"""Features of DiJiang as this project has them: everything may be chosen."""

from __future__ import annotations

from typing import ClassVar

from yeoul.model.feature_maps.base import Choices
from yeoul.model.feature_maps.frequencies import LEARNED, SEQUENCES, FrequencyFeatureMap
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class DiJiangFeatureMap(FrequencyFeatureMap):
    """Rows of the DCT, chi radii from a Sobol sequence, pairs, kernel "softmax" (after arXiv 2403.19928, section 3)."""

    choices: ClassVar[Choices] = dict(
        directions=("dct", "orthogonal", "random"), radii=("chi", "normal"), sequence=SEQUENCES,
        pairs=(True, False), kernel=("softmax", "exp"), learn=LEARNED,
    )  # fmt: skip
    learned: ClassVar[tuple[str, ...]] = LEARNED
