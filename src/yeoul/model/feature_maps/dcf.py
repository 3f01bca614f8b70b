"""The DCT features of the DiJiang paper."""

from __future__ import annotations

from typing import ClassVar

from yeoul.model.feature_maps.base import Choices
from yeoul.model.feature_maps.frequencies import SEQUENCES, FrequencyFeatureMap
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class DCFFeatureMap(FrequencyFeatureMap):
    """Rows of the DCT, chi radii from a low-discrepancy sequence, and no term in |x|^2 (arXiv 2403.19928, section 3.3).

    So the kernel is exp(q.k) exp(|q|^2 / 2) exp(|k|^2 / 2) up to its error, and long keys weigh more.
    """

    choices: ClassVar[Choices] = dict(
        directions=("dct",), radii=("chi",), sequence=SEQUENCES, pairs=(False,), kernel=("exp",), learn=(),
    )  # fmt: skip
    has_norm_term: ClassVar[bool] = False
