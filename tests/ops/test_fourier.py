"""Weighted cosines and sines against their formula."""

from __future__ import annotations

import torch

from yeoul.ops.fourier import fourier_features


def test_is_the_formula_and_so_is_its_gradient() -> None:
    angles, weights = 3 * torch.randn(2, 3, 5, 4), torch.rand(3, 1, 4) + 0.1
    expected = torch.cat((angles.cos() * weights, angles.sin() * weights), dim=-1)
    torch.testing.assert_close(fourier_features(angles, weights), expected, rtol=1e-6, atol=1e-6)
    given = [x.double().requires_grad_() for x in (angles, weights)]
    assert torch.autograd.gradcheck(fourier_features, given)


def test_a_weight_of_zero_has_a_finite_gradient() -> None:
    angles, weights = torch.randn(5, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    fourier_features(angles, weights).sum().backward()
    assert angles.grad is not None and weights.grad is not None
    assert torch.equal(angles.grad, torch.zeros(5, 4)) and torch.equal(weights.grad, torch.zeros(4))
