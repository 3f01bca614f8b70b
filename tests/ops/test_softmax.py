"""The masked step against torch's attention."""

from __future__ import annotations

import pytest
import torch

from yeoul.ops.softmax import SPLIT, masked_step, softmax_attention


@pytest.mark.parametrize("keys", [7, SPLIT, 4 * SPLIT])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_masked_step_is_softmax_attention(keys: int, groups: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    q, k = 3 * torch.randn(3, 6, 1, 16), torch.randn(3, groups, keys, 16)
    v, allowed = torch.randn(3, groups, keys, 8), torch.rand(3, 1, 1, keys) < 0.5
    allowed[0, ..., keys // 4 :] = False  # whole pieces of which nothing is seen
    allowed[..., 0] = True
    found = masked_step(q, k, v, allowed, scale=0.25, softcap=softcap)
    wanted = softmax_attention(q, k, v, allowed, scale=0.25, softcap=softcap)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    half = masked_step(*(x.bfloat16() for x in (q, k, v)), allowed, scale=0.25, softcap=softcap)
    assert half.dtype == torch.bfloat16 and (half - wanted).norm() < 0.02 * wanted.norm()
