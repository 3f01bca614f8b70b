"""Gradients that are written out: exact where the decay is strong, refused where they are differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ops.definition import difference
from yeoul.ops import blocks
from yeoul.ops.decay import decay_gradient
from yeoul.ops.delta_rule import delta_rule
from yeoul.ops.fourier import fourier_features
from yeoul.ops.linear_attention import linear_attention
from yeoul.ops.window import sliding_attention

B, H, G, T, M, D = 2, 4, 2, 70, 8, 6


def features(*shape: int, delta: bool) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1) if delta else torch.rand(*shape)


def given(delta: bool) -> dict[str, Tensor]:
    return {
        "q": features(B, H, T, M, delta=delta),
        "k": features(B, G, T, M, delta=delta),
        "v": torch.randn(B, G, T, D),
        "beta": torch.rand(B, G, T),
        "log_decay": -torch.rand(B, G, T),
        "d_out": torch.randn(B, H, T, D),
    }


def rates(x: dict[str, Tensor], delta: bool, dtype: torch.dtype, **options: Any) -> Tensor:
    """The gradient of the log-decay."""
    x = {name: value.to(dtype) for name, value in x.items()}
    log_decay = x["log_decay"].requires_grad_()
    out = run(delta, x["q"], x["k"], x["v"], x["beta"], log_decay, **options)
    return torch.autograd.grad((out * x["d_out"]).sum(), log_decay)[0]


def run(delta: bool, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, **options: Any) -> Tensor:
    if delta:
        return delta_rule(q, k, v, beta, log_decay, **options)
    return linear_attention(q, k, v, log_decay, **({"normalize": False} | options))


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("strength", [-1.0, -11.0, -14.0, -30.0])
@pytest.mark.parametrize("where", ["everywhere", "here and there"])
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_the_gradient_of_a_strong_decay(
    delta: bool, strength: float, where: str, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, against float64: also at single positions, where all others keep nearly everything."""
    monkeypatch.setattr(blocks, "NUMBERS_ON_CPU", 4 * B * G * chunk_size * 60)
    x = given(delta)
    strong = torch.ones(B, G, T, dtype=torch.bool) if where == "everywhere" else torch.rand(B, G, T) < 0.1
    x["log_decay"] = torch.where(strong, strength, -0.01 * torch.rand(B, G, T))
    expected = rates(x, delta, torch.float64, mode="recurrent")
    found = rates(x, delta, torch.float32, mode="chunked", chunk_size=chunk_size)
    assert difference(found[strong], expected[strong]) <= 1e-5
    assert difference(found[~strong], expected[~strong]) <= 1e-5 or bool(strong.all())


def test_decay_gradient_is_the_sum_of_what_decay_weighs() -> None:
    c = 5
    pairs, read, write, kept = (torch.randn(3, *shape, dtype=torch.float64) for shape in ((c, c), (c,), (c,), ()))
    expected = torch.zeros(3, c, dtype=torch.float64)
    for t in range(c):
        for i in range(t, c):
            expected[:, t] += read[:, i] + sum((pairs[:, i, j] for j in range(t)), torch.zeros(3).double())
        expected[:, t] += write[:, :t].sum(1) + kept
    assert torch.allclose(decay_gradient(pairs, read, write, kept), expected)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_are_refused_where_they_would_be_wrong(delta: bool, power: int) -> None:
    """A loss that is linear in the output as well: its gradient has no graph, so that nothing else would notice."""
    x = {name: value.double() for name, value in given(delta).items()}
    leaves = [x[name].requires_grad_() for name in ("q", "k", "v", "beta", "log_decay")]

    def second(mode: str) -> tuple[Tensor, ...]:
        loss = (run(delta, *leaves, mode=mode) * x["d_out"]).pow(power).sum()
        first = torch.autograd.grad(loss, leaves[:3], create_graph=True)
        return torch.autograd.grad(sum(y.pow(2).sum() for y in first), leaves[:3])

    for ours, reference in zip(second("recurrent"), second("quadratic"), strict=True):
        assert difference(ours, reference) <= 1e-9
    with pytest.raises(RuntimeError, match='no second-order gradients.*mode="recurrent"'):
        second("chunked")


def test_second_derivatives_of_fourier_features() -> None:
    angles = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fourier_features, (angles, weights))
    assert torch.autograd.gradgradcheck(fourier_features, (angles, weights))


MIXERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{
        f"linear {mode} {'causal' if causal else 'bidirectional'}": (
            lambda q, k, v, mode=mode, causal=causal: linear_attention(q, k, v, mode=mode, causal=causal)
        )
        for mode in ("chunked", "recurrent", "quadratic")
        for causal in (True, False)
    },
    **{
        f"delta {mode}": (lambda q, k, v, mode=mode: delta_rule(q, k, v, v[..., 0].sigmoid(), mode=mode))
        for mode in ("chunked", "recurrent", "quadratic")
    },
    "window": lambda q, k, v: sliding_attention(q, torch.nn.functional.pad(k, (0, 0, 4, 0)),
                                                torch.nn.functional.pad(v, (0, 0, 4, 0)), 4, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("sequences", [False, True])
def test_an_empty_batch(name: str, sequences: bool) -> None:
    """No row at all: an empty result, and gradients of the shape of the inputs."""
    q = torch.rand(0, H, 10, M, requires_grad=True)
    k, v = torch.rand(0, G, 10, M, requires_grad=True), torch.rand(0, G, 10, M, requires_grad=True)
    out = MIXERS[name](q, k, v)
    assert out.shape == (0, H, 10, M)
    out.sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))
    if sequences and name.startswith("linear"):
        mode, causal = name.split()[1], name.endswith("causal")
        ids = torch.zeros(0, 10, dtype=torch.int64)
        assert linear_attention(q, k, v, mode=mode, causal=causal, seq_ids=ids, mask=ids >= 0).shape == out.shape
