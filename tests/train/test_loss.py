import pytest
import torch
import torch.nn.functional as F

from train.toy import ToyLoader, toy_model
from yeoul.train.loss import language_model_objective, linear_cross_entropy


def _inputs(n: int = 37, v: int = 29, d: int = 8, dtype: torch.dtype = torch.float32, ignore: bool = True):
    hidden = torch.randn(n, d, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, d, dtype=dtype, requires_grad=True)
    labels = torch.randint(v, (n,))
    if ignore:
        labels[::5] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
@pytest.mark.parametrize("ignore", [True, False])
def test_equals_the_plain_form(chunk, ignore):
    hidden, weight, labels = _inputs(ignore=ignore)
    total, count = linear_cross_entropy(hidden, weight, labels, chunk=chunk)
    assert count == int((labels != -100).sum())
    (total / count).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    plain = F.cross_entropy(hidden @ weight.T, labels)
    plain.backward()
    torch.testing.assert_close(total / count, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-5, atol=1e-6)
    assert ours[0][labels == -100].abs().sum() == 0


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck_in_double(softcap):
    hidden, weight, labels = _inputs(6, 5, 4, torch.float64)
    loss = lambda h, w: linear_cross_entropy(h, w, labels, chunk=2, softcap=softcap)[0] * 0.3  # noqa: E731
    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_capped_logits_give_the_plain_loss():
    hidden, weight, labels = _inputs()
    total, _ = linear_cross_entropy(hidden, weight, labels, chunk=7, softcap=2.0)
    plain = F.cross_entropy(2 * torch.tanh(hidden @ weight.T / 2), labels, reduction="sum")
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=1e-5)


def test_frozen_parts_get_no_gradient_and_cost_none():
    hidden, weight, labels = _inputs()
    linear_cross_entropy(hidden, weight.detach(), labels)[0].backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        total, _ = linear_cross_entropy(hidden, weight, labels)
    assert not total.requires_grad


def test_no_valid_token_is_zero_with_zero_gradient():
    hidden, weight, labels = _inputs()
    total, count = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    total.backward()
    assert count == 0 and total == 0 and hidden.grad.abs().sum() == 0 and weight.grad.abs().sum() == 0


def test_huge_logits_stay_finite():
    hidden, weight, labels = _inputs(ignore=False)
    total, _ = linear_cross_entropy(hidden * 1e4, weight, labels)
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(hidden.grad).all()


def test_autocast_computes_in_bfloat16_and_sums_in_float32():
    hidden, weight, labels = _inputs(ignore=False)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = linear_cross_entropy(hidden, weight, labels)
    total.backward()
    assert total.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    plain = F.cross_entropy(hidden.detach() @ weight.detach().T, labels, reduction="sum")
    torch.testing.assert_close(total.detach(), plain, rtol=2e-2, atol=0)


def test_memory_never_holds_all_logits():
    n, v, d = 4096, 500, 4
    hidden, weight, labels = _inputs(n, v, d)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        linear_cross_entropy(hidden, weight, labels, chunk=64)[0].backward()
    assert largest <= max(64 * v, n * d)


def test_objective_of_a_model_counts_valid_labels():
    model, batch = toy_model().eval(), ToyLoader(4, 6).next_batch()
    loss = language_model_objective(model, batch)
    logits = model.hidden(batch.input_ids) @ model.output_weight.T
    assert loss.count == int((batch.labels != -100).sum())
    plain = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, plain)
