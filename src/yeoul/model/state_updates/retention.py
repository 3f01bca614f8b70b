"""The additive state with RetNet's decay, fixed for each head."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor

from yeoul.model.state_updates.additive import DiJiangAttention
from yeoul.model.state_updates.registry import STATE_UPDATES


@STATE_UPDATES.register
class RetentionAttention(DiJiangAttention):
    """Linear attention whose state keeps gamma_g = 1 - 2^(-5-g) of itself a position, g = 0 ... G-1 (Sun and others
    2023, "Retentive Network", arXiv 2307.08621, section 2.2).

    RetNet itself has signed features without a denominator, of which a softmax window could share nothing; here the
    features are those of the feature map, and their sum is the denominator. It has no parameters of its own.
    """

    takes_decay: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.causal:
            raise ValueError("retention has a direction: it needs causal=True")

    @property
    def log_decay(self) -> Tensor:
        """log(gamma) of each key-value head, (G,) fp32."""
        return _log_gammas(self.num_kv_heads, self.q_proj.weight.device)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here serves training too
def _log_gammas(groups: int, device: torch.device) -> Tensor:
    heads = torch.arange(groups, dtype=torch.float64)
    return torch.log1p(-torch.exp2(-5 - heads)).float().to(device)
