"""KL in chunks against the plain formula, and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from yeoul.train.distill import linear_kl


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_torchs_kl_and_its_gradients(temperature: float) -> None:
    hidden, weight = torch.randn(300, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    goal, goal_weight = torch.randn(300, 12), torch.randn(50, 12)
    ours = linear_kl(hidden, weight, goal, goal_weight, temperature=temperature)
    student = (hidden @ weight.T / temperature).log_softmax(-1)
    teacher = (goal @ goal_weight.T / temperature).log_softmax(-1)
    plain = F.kl_div(student, teacher, log_target=True, reduction="sum") * temperature**2
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    for mine, wanted in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * plain, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("softcaps", [(None, None), (1.5, 3.0)])
def test_gradcheck_in_float64(softcaps: tuple[float | None, float | None]) -> None:
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    goal, goal_weight = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    loss = lambda h, w: linear_kl(h, w, goal, goal_weight, temperature=1.5, softcaps=softcaps)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (hidden, weight))
    if softcaps[0] and softcaps[1]:
        student = (softcaps[0] * torch.tanh(hidden @ weight.T / softcaps[0]) / 1.5).log_softmax(-1)
        teacher = (softcaps[1] * torch.tanh(goal @ goal_weight.T / softcaps[1]) / 1.5).log_softmax(-1)
        plain = F.kl_div(student, teacher, log_target=True, reduction="sum") * 1.5**2
        torch.testing.assert_close(loss(hidden, weight), plain)
