import pytest
import torch
from torch import nn

from train.toy import toy_config, toy_model
from yeoul.errors import UserError
from yeoul.train.config import TrainConfig
from yeoul.train.optim import Optimizer, learning_rate


def _rates(**changes) -> list[float]:
    config = toy_config(**({"tokens": 100 * 24, "lr": 1.0, "warmup": 0.1, "min_lr_ratio": 0.1} | changes))
    return [learning_rate(config, step) for step in range(config.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warmup_rises_to_the_peak_and_never_starts_at_zero(schedule):
    rates = _rates(schedule=schedule)
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(rates) == pytest.approx(1.0) and min(rates) >= 0.1 - 1e-9


def test_ends_of_the_schedules():
    cosine, wsd, constant = (_rates(schedule=name) for name in ("cosine", "wsd", "constant"))
    assert cosine[-1] == pytest.approx(0.1) and all(a >= b for a, b in zip(cosine[10:], cosine[11:], strict=False))
    assert wsd[79] == 1.0 and wsd[80] < 1.0 and wsd[-1] == pytest.approx(0.1)
    assert set(constant[10:]) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_shortest_runs_have_sane_rates(schedule, warmup, steps):
    assert all(0 < rate <= 1 for rate in _rates(schedule=schedule, warmup=warmup, tokens=24 * steps))


def test_matrices_decay_and_the_rest_does_not():
    settings = {
        name: group["settings"]["weight_decay"]
        for group in Optimizer(toy_model(), toy_config(weight_decay=0.5)).layout()
        for name in group["parameters"]
    }
    assert {name for name, decay in settings.items() if decay == 0.5} == {"mix.weight", "head.weight"}
    assert {name for name, decay in settings.items() if decay == 0.0} == {
        "embed.weight", "mix.bias", "norm.weight", "norm.bias"
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parameters_may_learn_faster_than_others(optimizer):
    rates = {"mix.weight": 3.0, "mix.bias": 0.5}
    moved = []
    for own in (None, lambda name: rates.get(name, 1.0)):
        torch.manual_seed(0)
        model = toy_model()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trained = Optimizer(model, toy_config(optimizer=optimizer, weight_decay=0.0), own)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        trained.step(0.01)
        moved.append({name: (p.detach() - before[name]).norm() for name, p in model.named_parameters()})
    for name, distance in moved[0].items():
        torch.testing.assert_close(moved[1][name], distance * rates.get(name, 1.0), rtol=1e-4, atol=0)


def test_muon_takes_hidden_matrices_only_and_steps():
    model = toy_model()
    optimizer = Optimizer(model, toy_config(optimizer="muon", weight_decay=0.0))
    muon = [name for group in optimizer.layout() if group["optimizer"] == "Muon" for name in group["parameters"]]
    assert muon == ["mix.weight"]
    before = model.mix.weight.detach().clone()
    model.mix.weight.grad = torch.randn_like(before)
    optimizer.step(0.01)
    update = (before - model.mix.weight.detach()) / 0.01
    # Orthogonalised and scaled to AdamW's RMS of about 0.2: singular values are near one another.
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 3 and 0.1 < update.square().mean().sqrt() < 0.3


def test_tied_parameter_is_one_parameter_and_an_embedding():
    model = toy_model()
    model.head.weight = model.embed.weight
    optimizer = Optimizer(model, toy_config(optimizer="muon"))
    assert [name for group in optimizer.layout() for name in group["parameters"]].count("embed.weight") == 1


def test_gradients_are_divided_once_and_clipped():
    model = toy_model()
    optimizer = Optimizer(model, toy_config())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 6.0)
    count = sum(p.numel() for p in model.parameters())
    expected = 2.0 * count**0.5
    assert float(optimizer.finish_gradients(3, 0.0)) == pytest.approx(expected, rel=1e-5)
    assert float(model.mix.weight.grad[0, 0]) == pytest.approx(2.0)
    assert float(optimizer.finish_gradients(1, 1.0)) == pytest.approx(expected, rel=1e-5)
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert float(norm) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("lr", float("nan")), ("tokens", 0), ("warmup", 2.0), ("schedule", "cosin"), ("betas", (0.9, 1.0)),
     ("batch_size", 0), ("eval_every", -1), ("grad_clip", -1.0), ("optimizer", "sgd")],
)  # fmt: skip
def test_values_out_of_range_name_the_flag(field, value):
    with pytest.raises(UserError, match="--" + field.replace("_", "-")):
        TrainConfig(**{field: value})


def test_budget_becomes_steps():
    config = TrainConfig(tokens=1001, batch_size=2, context=50, accumulate=2)
    assert config.tokens_per_step == 200 and config.steps == 6
