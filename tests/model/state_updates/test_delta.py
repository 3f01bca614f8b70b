"""The delta-rule layer against its definition, its beginning, its folder, and conversion to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import yeoul
from models import VOCAB, bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import Alignment, convert, train_everything, train_only_maps
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.evaluate.ablations import parts
from yeoul.model.attention import AttentionContext
from yeoul.model.cache import HybridCache
from yeoul.model.checkpoint import save_model
from yeoul.model.config import FeatureMapConfig
from yeoul.model.decoder import skeleton
from yeoul.model.state_updates.delta import GatedDeltaAttention
from yeoul.recipes.linearize.config import ConversionOptions
from yeoul.train.distill import alignment_objective

OWN = (
    "beta_proj.weight",
    "beta_proj.bias",
    "decay_proj.weight",
    "decay_proj.bias",
    "decay_log",
    "read_mass",
    "read_direction",
)


MAPS = {
    "exp": FeatureMapConfig(kernel="exp"),
    "softmax": FeatureMapConfig(),
    "fourier": FeatureMapConfig(name="fourier", separate=True),
}


def layer_of(window: int, kernel: str = "softmax") -> GatedDeltaAttention:
    layer = GatedDeltaAttention(32, 4, 2, window=window, feature_map=MAPS[kernel])
    with torch.no_grad():
        for parameter in (layer.beta_proj.weight, layer.decay_proj.weight, layer.decay_proj.bias):
            parameter.normal_(std=0.5)
        layer.read_mass.normal_()
        layer.read_direction.normal_()
        for name, parameter in layer.feature_map.named_parameters():
            if name.endswith(("phases", "directions")):  # so that queries and keys differ where they have own maps
                parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def batch(rows: int = 2, length: int = 30) -> Batch:
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(3))
    return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])


@pytest.mark.parametrize("kernel", MAPS)
@pytest.mark.parametrize("window", [0, 4])
@torch.no_grad()
def test_layer_equals_its_definition(kernel: str, window: int) -> None:
    """S <- a (I - b k k^T) S + b k v^T over the tokens that have left the window, which softmax covers."""
    layer, x = layer_of(window, kernel), 2 * torch.randn(1, 19, 32)
    q, k, v = (y.double() for y in layer.project(x, AttentionContext()))
    strength = torch.sigmoid(x @ layer.beta_proj.weight.T + layer.beta_proj.bias)[0].double()
    rate = -layer.decay_log.exp() * torch.nn.functional.softplus(x @ layer.decay_proj.weight.T + layer.decay_proj.bias)
    gate = rate[0].double().exp()
    if kernel == "fourier":
        queries, keys = layer.feature_map.unit(q)[0], layer.feature_map.unit_of_keys(k)[0]
        torch.testing.assert_close(keys.norm(dim=-1), torch.ones(2, 19).double())
    else:
        unit = lambda logs: logs.exp() / logs.exp().norm(dim=-1, keepdim=True)  # noqa: E731
        queries, keys = unit(layer.feature_map(q))[0], unit(layer.feature_map(k))[0]
    out = torch.zeros(4, 19, 8).double()
    for head in range(4):
        g = head // 2
        s = torch.zeros(keys.shape[-1], 9).double()
        for t in range(19):
            j = t - window
            if j >= 0:
                key, b, value = keys[g, j], strength[j, g], torch.cat((v[0, g, j], torch.ones(1).double()))
                s = gate[j, g] * (s - b * key[:, None] * (key @ s)[None]) + b * key[:, None] * value[None]
            read, found = (s.T @ queries[head, t]).split((8, 1))
            mass = layer.read_mass[head] + layer.read_direction[head].double() @ q[0, head, t]
            hit = torch.exp(mass)
            if not window:
                read = read / (torch.exp(-3 * torch.tanh(mass / 3)) + found.clamp_min(0))
            else:
                first = max(0, j + 1)
                weights = torch.exp(k[0, g, first : t + 1] @ q[0, head, t] / 8**0.5)
                above = weights @ v[0, g, first : t + 1] + (hit * read if found > 0 else 0)
                read = above / (weights.sum() + hit * found.clamp_min(0))
            out[head, t] = read.squeeze()
    wanted = layer.o_proj(out.float().transpose(0, 1).reshape(1, 19, 32))
    assert rms_ratio(layer(x), wanted) < 1e-5


@torch.no_grad()
def test_it_begins_by_remembering_everything_and_writing_gently() -> None:
    layer = GatedDeltaAttention(32, 4, 2, window=4)
    x = torch.randn(1, 9, 32)
    gates = layer.gates(x, AttentionContext(), *layer.project(x, AttentionContext())[1:])
    torch.testing.assert_close(gates["write_strength"], torch.full((1, 2, 9), 0.3))
    half_lives = torch.tensor([8192.0, 131072.0])[None, :, None].expand(1, 2, 9)
    torch.testing.assert_close(-torch.log(torch.tensor(2.0)) / gates["log_decay"], half_lives, rtol=1e-3, atol=0)
    assert torch.equal(layer.read_mass, torch.full((4,), 2.0)) and not layer.read_direction.any()


@torch.no_grad()
def test_products_of_fourier_features_are_a_bell_of_the_distance() -> None:
    """exp(-t^2 |x - y|^2 / 2) of vectors as they enter, within the error of 4,096 random frequencies."""
    layer = GatedDeltaAttention(8, 1, feature_map=FeatureMapConfig(name="fourier", features=8192))
    x = torch.randn(1, 1, 50, 8)
    given = layer.feature_map.unit(x)[0, 0] @ layer.feature_map.unit_of_keys(x)[0, 0].T
    distance = torch.cdist(x[0, 0], x[0, 0]).square()
    assert (given - torch.exp(-(1.5**2) * distance / 8 / 2)).abs().max() < 0.05


def test_fourier_features_need_the_delta_rule() -> None:
    with pytest.raises(UserError, match="only the delta rule"):
        make("softmax").config.with_(attention=("hybrid",) * 2, feature_map=FeatureMapConfig(name="fourier"))


def test_every_part_of_the_layer_learns() -> None:
    layer = GatedDeltaAttention(32, 4, 2, window=4)
    layer(torch.randn(2, 20, 32)).square().sum().backward()
    for name in (*OWN, "feature_map.frequencies", "feature_map.log_weights", "feature_map.directions"):
        grad = layer.get_parameter(name).grad
        assert grad is not None and grad.isfinite().all() and grad.abs().sum() > 0, name


@pytest.mark.parametrize("kernel", MAPS)
def test_large_inputs_neither_overflow_nor_vanish(kernel: str) -> None:
    for scale in (1e-3, 1.0, 30.0, 1e3):
        layer = layer_of(3, kernel)
        x = (torch.randn(1, 40, 32) * scale).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_counting_a_model_takes_no_memory() -> None:
    assert all(p.is_meta for p in skeleton(make("delta-hybrid").config).parameters())


@torch.no_grad()
def test_state_has_the_size_of_features_and_values_only() -> None:
    model = make("delta-hybrid")
    cache, ids = model.new_cache(1), batch(1, 30).input_ids
    model(ids, cache=cache)
    layer = cache.layers[0]
    assert isinstance(layer, HybridCache) and layer.linear.z is None and layer.linear.s is not None
    assert layer.linear.s.shape == (1, 2, 32, 17) and layer.linear.s.dtype == torch.float32
    size = cache.nbytes()
    for i in range(5):
        model(ids[:, i : i + 1], cache=cache)
    assert cache.nbytes() == size


@pytest.mark.parametrize("kind", ["delta", "delta-hybrid"])
@torch.no_grad()
def test_folder_keeps_the_model_and_its_decay_in_fp32(kind: str, tmp_path: Path) -> None:
    model, ids = make(kind), batch().input_ids
    save_model(model, tmp_path)
    again, _ = yeoul.load(tmp_path)
    assert again.config == model.config and again.config.state_update == "delta"
    assert torch.equal(again(ids), model(ids))
    half, _ = yeoul.load(tmp_path, dtype="bfloat16")
    attention = half.layers[0].self_attn
    assert isinstance(attention, GatedDeltaAttention)
    assert attention.decay_log.dtype == torch.float32 and attention.beta_proj.weight.dtype == torch.bfloat16
    cache = half.new_cache(2)
    steps = torch.cat([half(ids[:, i : i + 1], cache=cache) for i in range(ids.shape[1])], dim=1)
    assert rms_ratio(steps, half(ids)) < 0.05


@pytest.mark.parametrize("attention", ["dijiang", "hybrid"])
def test_alignment_trains_features_and_gates(attention: str) -> None:
    teacher, data = make("softmax"), batch(4, 48)
    student = convert(teacher, bare_conversion(attention=attention, window=4, state_update="delta"))
    assert student.config.state_update == "delta"
    train_only_maps(student)
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    endings = (*(f".self_attn.{part}" for part in OWN), "frequencies", "log_weights", "directions")
    assert trained == {name for name, _ in student.named_parameters() if name.endswith(endings)}
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    objective, losses = alignment_objective(Alignment(teacher)), []
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        loss = objective(student, data)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        losses.append(loss.total.item() / loss.count)
    assert losses[-1] < 0.95 * losses[0]
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name]) != (name in trained), name
    train_everything(student)
    frozen = {name.split(".")[-1] for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {"log_mass"}  # a factor of all features, which their length of 1 cancels


@torch.no_grad()
def test_alignment_error_is_the_layers_own_on_the_teachers_inputs() -> None:
    teacher, data = make("softmax"), batch()
    student = convert(teacher, bare_conversion(window=4, state_update="delta"))
    seen: list[tuple[tuple[Tensor, ...], Tensor]] = []
    hooks = [
        block.self_attn.register_forward_hook(lambda module, args, out: seen.append((args, out)))
        for block in teacher.layers
    ]
    teacher(data.input_ids)
    for hook in hooks:
        hook.remove()
    errors = Alignment(teacher)(student, data)
    for layer, (args, out) in enumerate(seen):
        gap = student.layers[layer].self_attn(*args) - out
        wanted = gap.square().sum(-1) / out.square().mean((0, 1)).sum()
        torch.testing.assert_close(errors[layer], wanted, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_parts_removed_are_what_they_say() -> None:
    teacher, ids = make("softmax"), batch().input_ids
    student = convert(teacher, bare_conversion(window=5, state_update="delta"))
    whole = student(ids)
    with parts(student, linear=False):  # the same seed gives the same weights, and a window of 5
        assert rms_ratio(student(ids), make("sliding")(ids)) < 1e-5
        cache = student.new_cache(2)
        steps = torch.cat([student(ids[:, i : i + 1], cache=cache) for i in range(ids.shape[1])], dim=1)
        assert rms_ratio(steps, student(ids)) < 1e-5
    assert rms_ratio(student(ids), whole) == 0
    with parts(student, linear=False, window=False):
        assert torch.equal(student.layers[0].self_attn(torch.randn(1, 9, 64)), torch.zeros(1, 9, 64))


def test_the_commands_flag_reaches_the_model() -> None:
    made = lambda **flags: ConversionOptions(**flags).conversion(make("softmax").config)  # noqa: E731
    assert made(state_update="delta").apply(make("softmax").config).state_update == "delta"
    assert (made().state_update, made().feature_map.name) == ("additive", "codebook")
    assert made(state_update="delta").feature_map.name == made(map="fourier").feature_map.name == "fourier"
    assert made(map="fourier").state_update == "delta"
    alone = made(attention="dijiang")
    assert (alone.state_update, alone.feature_map.name, alone.short_conv) == ("delta", "fourier", 4)
    for other in (dict(map="dijiang"), dict(decay="learned"), dict(kernel="exp")):
        assert made(**other).state_update == "additive"


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="causal"):
        GatedDeltaAttention(32, 4, causal=False)
    with pytest.raises(UserError, match="decay"):
        make("delta").config.with_(feature_map=FeatureMapConfig(decay="learned"))
    with pytest.raises(UserError, match="state_update"):
        make("delta").config.with_(state_update="delat")
