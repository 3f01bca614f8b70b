"""PyTorch's fused attention and what is built on it, against the definition in float64 and against all scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from yeoul.ops import fused, window
from yeoul.ops.exact_pairs import Kept
from yeoul.ops.fused import causal_after, fused_attention, fuses
from yeoul.ops.window import Terms, sinks_of, sliding_attention, window_terms

B, H, G, D = 2, 6, 2, 16
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(T: int, S: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(B, n, size, D).to(dtype) for n, size in ((H, T), (G, S), (G, S)))  # type: ignore[return-value]


def defined(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of its sums in float64, 0 where nothing is seen."""
    k, v = (x.double().repeat_interleave(H // G, 1) for x in (k, v))
    scores = (q.double() @ k.transpose(-1, -2) * D**-0.5).masked_fill(~allowed, -torch.inf)
    blind = ~allowed.any(-1, keepdim=True).expand(*scores.shape[:3], 1)
    out = scores.masked_fill(blind, 0).softmax(-1) @ v
    return out.masked_fill(blind, 0), scores.logsumexp(-1, keepdim=True).masked_fill(blind, 0)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("shape", [(1, 1, 30, 50), (B, 1, 30, 50), (B, H, 30, 50), (1, 1, 1, 50), (B, 1, 30, 1)])
def test_with_a_mask(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of every shape that broadcasts, and with queries that see nothing."""
    q, k, v = inputs(30, 50, dtype)
    allowed = torch.rand(shape) > 0.4
    allowed[:, :, 0] = False
    found, wanted = fused_attention(q, k, v, allowed, scale=D**-0.5), defined(q, k, v, allowed)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=LIMIT[dtype], atol=LIMIT[dtype])


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(("past", "T"), [(1, 2), (7, 40), (700, 33), (64, 128)])
def test_causal_after_what_came_before(dtype: torch.dtype, past: int, T: int) -> None:
    q, k, v = inputs(T, past + T, dtype)
    q[0] *= 6  # some see one of the parts only
    allowed = torch.arange(past + T) <= torch.arange(past, past + T)[:, None]
    wanted, _ = defined(q, k, v, allowed)
    torch.testing.assert_close(
        causal_after(q, k, v, past, D**-0.5).double(), wanted, rtol=LIMIT[dtype], atol=LIMIT[dtype]
    )


def test_what_it_does_not_take() -> None:
    q, k, v = inputs(3, 5)
    assert fuses(q, k, v) and not fuses(q.double(), k.double(), v.double()) and not fuses(q, k, v[..., :8])
    assert (
        not fuses(q, k, v.bfloat16())
        and not fuses(q[:0], k[:0], v[:0])
        and not fuses(*(x.to("meta") for x in (q, k, v)))
    )
    q.requires_grad_()
    assert not fuses(q, k, v) and fuses(q, k, v, gradient=True)
    with torch.no_grad():
        assert fuses(q, k, v)
        for wrong in ((q, k[:1], v[:1]), (q, k, v[:, :, 1:]), (q[:, :5], k, v)):
            with pytest.raises(ValueError, match="belong together"):
                fused_attention(*wrong, scale=1.0)
        with pytest.raises(ValueError, match="belong together"):
            fused_attention(q, k, v, scale=1.0, causal=True)
        with pytest.raises(RuntimeError):
            fused_attention(q, k, v, torch.ones(1, 1, 3, 4, dtype=torch.bool), scale=1.0)


WINDOW = 8


def columns(T: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What `window_terms` may be given beside queries, keys and values."""

    def packed() -> dict[str, Any]:
        ids = torch.tensor([0] * 5 + [1] * (T - 9) + [2] * 4).expand(B, -1)
        keys = torch.nn.functional.pad(ids, (WINDOW, 0), value=-1)
        return dict(seq_ids=ids, key_seq_ids=keys, valid=keys >= 0)

    def padded() -> dict[str, Any]:
        return dict(valid=torch.arange(WINDOW + T) >= WINDOW + torch.tensor([[0], [4]]))

    def sinks() -> dict[str, Any]:
        _, k, v = inputs(T, T)
        return dict(sinks=sinks_of(k, v, WINDOW, 3), **begun())

    def kept() -> dict[str, Any]:
        n, room = -(-T // WINDOW), 5
        seen = torch.rand(B, G, n, WINDOW, room + WINDOW) > 0.5
        return dict(kept=Kept(*(torch.randn(B, G, n, room, D) for _ in range(2)), seen), **begun())

    def begun() -> dict[str, Any]:
        return dict(valid=(torch.arange(WINDOW + T) >= WINDOW)[None])

    return dict(nothing=dict, begun=begun, padded=padded, packed=packed, sinks=sinks, kept=kept)


def whole(terms: Terms) -> Tensor:
    """What joins with others: numerator and denominator by one scale."""
    return torch.cat((terms.numerator, terms.denominator), -1) * terms.log_scale.exp()


@pytest.mark.parametrize("T", [3, 8, 37])
@pytest.mark.parametrize("name", columns(0))
def test_windows_are_the_same_fused(T: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "packed" and T < 12:
        pytest.skip("no room for three sequences")
    q, k, v = inputs(T, WINDOW + T)
    beside = columns(T)[name]()
    calls = []
    monkeypatch.setattr(window, "fused_attention", lambda *a, **o: calls.append(1) or fused.fused_attention(*a, **o))
    found = whole(window_terms(q, k, v, WINDOW, D**-0.5, **beside))
    assert calls
    monkeypatch.setattr(window, "fuses", lambda *_, **__: False)
    wanted = whole(window_terms(q, k, v, WINDOW, D**-0.5, **beside))
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_the_gradient_of_a_wide_window(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through PyTorch's kernel as through all scores, at the padding exactly 0."""
    w, T = window.LEAST_FUSED, 300
    q, k, v = torch.randn(2, 3, T, D), *torch.randn(2, 2, kv_heads, w + T, D)
    valid = torch.arange(w + T) >= w + torch.tensor([[0], [9]])
    along = torch.randn_like(q)
    found = []
    for fused_too in (True, False):
        if not fused_too:
            monkeypatch.setattr(window, "fuses", lambda *_, **__: False)
        own = [x.clone().requires_grad_() for x in (q, k, v)]
        out = sliding_attention(*own, w, D**-0.5, valid=valid)
        (out * along).sum().backward()
        found.append([out.detach(), *(x.grad for x in own)])
        assert not out[1, :, :9].any() and not found[-1][1][1, :, :9].any()
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
