"""The features of the DiJiang authors' code."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from yeoul.model.feature_maps.base import Choices
from yeoul.model.feature_maps.frequencies import LEARNED, FrequencyFeatureMap, dct_columns
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class DiJiangCodeFeatureMap(FrequencyFeatureMap):
    """The columns of the DCT matrix (x @ C, where the paper has C x), signed normal radii, x not scaled."""

    choices: ClassVar[Choices] = dict(
        directions=("dct",), radii=("normal",), sequence=("random",),
        pairs=(False,), kernel=("softmax",), learn=LEARNED,
    )  # fmt: skip

    def make_parameters(self) -> None:
        """See `FeatureMap.make_parameters`."""
        super().make_parameters()
        self.shrink = 1.0

    def dct(self, device: torch.device) -> Tensor:
        """(D, F): the columns of the DCT matrix."""
        return dct_columns(self.head_dim, self.count, device, rows=False)
