"""KL in chunks against the plain formula, and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import VOCAB, bare_conversion, make
from yeoul.adapt.linearize import convert
from yeoul.data.batch import Batch
from yeoul.model.decoder import skeleton
from yeoul.recipes.linearize.stages import begin_stage, set_trainable
from yeoul.train.distill import distillation_objective, linear_kl, shared_blocks


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


@pytest.mark.parametrize("trained", ["maps", "attention", "all"])
def test_blocks_that_are_the_teachers_run_once(trained: str) -> None:
    """The loss and its gradients are those of two separate models; and the shared blocks are not run again."""
    teacher = make("softmax").requires_grad_(False)
    conversion = bare_conversion(window=4, keep_softmax=(0,))
    sharing, apart = convert(teacher, conversion, share=True), convert(teacher, conversion)
    ids = torch.randint(0, VOCAB, (2, 25), generator=torch.Generator().manual_seed(0))
    batch = Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])
    begin_stage(sharing, teacher, trained)
    set_trainable(apart, trained)
    wanted = 0 if trained == "all" else 1
    assert shared_blocks(sharing, teacher) == wanted
    assert shared_blocks(apart, teacher) == 0
    runs = []
    sharing.layers[0].register_forward_hook(lambda *_: runs.append("student"))
    objective = distillation_objective(teacher)
    losses = [objective(student, batch) for student in (sharing, apart)]
    assert len(runs) == (not wanted)
    for loss in losses:
        loss.total.backward()
    assert float(losses[0].total.detach()) == pytest.approx(float(losses[1].total.detach()), rel=1e-6)
    for (name, one), other in zip(sharing.named_parameters(), apart.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_blocks_with_other_sinks_are_not_the_teachers() -> None:
    teacher = make("sliding").requires_grad_(False)
    assert teacher.config.attention[0] == "sliding"
    student = skeleton(teacher.config)
    student.load_state_dict(teacher.state_dict(), assign=True)
    student.requires_grad_(False)
    assert shared_blocks(student, teacher) == 2
    student.layers[1].self_attn.sinks += 3  # type: ignore[operator]
    assert shared_blocks(student, teacher) == 1
