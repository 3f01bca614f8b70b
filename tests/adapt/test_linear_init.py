"""The start in closed form: its algebra is exact, and a calibrated student begins closer to its teacher."""

from __future__ import annotations

import pytest
import torch

from models import VOCAB, bare_conversion
from yeoul.adapt.linear_init import _balance, _covariance, calibrate, head_statistics  # the formulas by themselves
from yeoul.adapt.linearize import Alignment, convert
from yeoul.data.batch import Batch
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.feature_maps.base import SeparateFeatureMaps
from yeoul.model.feature_maps.frequencies import FrequencyFeatureMap
from yeoul.model.state_updates.additive import DiJiangAttention

SEPARATE = FeatureMapConfig(separate=True, mass="learned", features=64)


def teacher() -> Decoder:
    """Queries and keys with means of their own and unlike covariances, as trained heads have."""
    torch.manual_seed(2)
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, attention_bias=True,
        initializer_range=0.15, max_position_embeddings=256,
    )  # fmt: skip
    model = Decoder(config).eval().requires_grad_(False)
    for block in model.layers:
        torch.nn.init.normal_(block.self_attn.q_proj.bias)
        torch.nn.init.normal_(block.self_attn.k_proj.bias)
        block.self_attn.k_proj.weight *= torch.linspace(0.3, 3, 32).repeat_interleave(1)[:, None]
    return model


def batches(count: int = 2, length: int = 96) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, VOCAB, (4, length + 1), generator=generator) for _ in range(count)]
    return [Batch(input_ids=ids[:, :-1], labels=ids[:, 1:]) for ids in rows]


def test_the_balance_gives_both_sides_one_covariance() -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 500, 8, dtype=torch.float64) @ torch.randn(2, 8, 8, dtype=torch.float64)
    k = torch.randn(2, 500, 8, dtype=torch.float64) @ torch.randn(2, 8, 8, dtype=torch.float64)
    of_q, of_k = _covariance(q), _covariance(k)
    turn = _balance(of_q, of_k)
    back = torch.linalg.inv(turn)
    assert torch.allclose(turn, turn.transpose(1, 2))
    assert torch.allclose(turn @ of_q @ turn, back @ of_k @ back, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_with_very_many_features_the_calibrated_kernel_is_the_softmax_kernel() -> None:
    """temper 1 and no normalisation left: exp(q.k) up to a constant and the error of 2,048 random features."""
    torch.manual_seed(4)
    D, N = 4, 100
    centre_q, centre_k = torch.randn(1, D), torch.randn(1, D)
    q = (torch.randn(1, 1, N, D) * 0.5 + centre_q) * torch.tensor([1.5, 1, 0.5, 0.2])
    k = (torch.randn(1, 1, N, D) * 0.5 + centre_k) * torch.tensor([0.2, 1, 1, 1.5])
    config = FeatureMapConfig(separate=True, mass="learned", features=2048, directions="random", sequence="random")
    layer = DiJiangAttention(D, 1, feature_map=config)
    from yeoul.adapt.linear_init import _separate  # the formulas by themselves

    maps = layer.feature_map
    assert isinstance(maps, SeparateFeatureMaps)
    _separate(maps, q[0].double(), k[0].double())
    for one in (maps.query_map, maps.key_map):
        assert isinstance(one, FrequencyFeatureMap)
        one.temper.fill_(0.0)
    # what is left to estimate, exp((q - a).(k - b)) exp(-|.|^2/2) exp(-|.|^2/2), is a Gaussian kernel of x = T (q - a)
    scores = q[0, 0] @ k[0, 0].T * layer.scale
    given = (maps(q)[0, 0, :, None] + maps.of_keys(k)[0, 0, None]).logsumexp(-1)
    plain = DiJiangAttention(D, 1, feature_map=FeatureMapConfig(features=2048, directions="random", sequence="random"))
    uncalibrated = (plain.feature_map(q)[0, 0, :, None] + plain.feature_map(k)[0, 0, None]).logsumexp(-1)

    def spread(gap: torch.Tensor) -> float:
        return float((gap - gap.mean(1, keepdim=True)).std())  # what a query's own constant cannot mend

    assert spread(given - scores) < 0.5 * spread(uncalibrated - scores)


@pytest.mark.parametrize("attention", ["hybrid", "dijiang"])
def test_a_calibrated_student_begins_closer_to_its_teacher(attention: str) -> None:
    model = teacher()
    plain, calibrated = (convert(model, bare_conversion(attention=attention, window=8, sinks=2, feature_map=SEPARATE))
                         for _ in range(2))  # fmt: skip
    calibrate(model, calibrated, batches())
    held_out = batches(3)[2]
    before, after = (float(Alignment(model)(student, held_out).detach().mean()) for student in (plain, calibrated))
    assert after < 0.95 * before  # measured: 0.65 beside a window, 0.93 alone


@torch.no_grad()
def test_the_far_positions_weigh_on_average_what_softmax_gives_them() -> None:
    model = teacher()
    student = convert(model, bare_conversion(window=8, sinks=2, feature_map=SEPARATE))
    data = batches()
    calibrate(model, student, data)
    inputs = model.embed(data[0].input_ids, None)
    layer, old = student.layers[0].self_attn, model.layers[0].self_attn
    assert isinstance(layer, DiJiangAttention)
    layout = model.attention_context(data[0].input_ids)
    q, k, _ = old.project(model.layers[0].attention_input(inputs), layout)
    T = q.shape[2]
    place = torch.arange(T)
    far = (place[:, None] - place >= 8) & (place >= 2)
    scores = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * layer.scale).masked_fill(~far, -torch.inf)
    maps = layer.feature_map
    linear = (maps(q).exp() @ maps.of_keys(k).repeat_interleave(2, 1).exp().transpose(-1, -2)) * far
    gap = (scores.logsumexp(-1) - linear.sum(-1).log())[:, :, 11:].mean((0, 2)).view(2, 2).mean(1)
    assert gap.abs().max() < 1e-3


@torch.no_grad()
def test_statistics_and_decay_of_a_head_that_looks_a_known_distance_back() -> None:
    """Scores that fall by log 2 a position give weights 1/2, 1/4, ...: mean distance 1, largest weight 1/2."""
    T = 64
    q = torch.ones(1, 1, T, 1)
    k = torch.arange(T, dtype=torch.float32).view(1, 1, T, 1) * torch.log(torch.tensor(2.0))
    found = head_statistics(q[:, :, -8:].repeat(1, 1, 8, 1), k, 1.0, window=2)
    assert found.sharpness.item() == pytest.approx(0.5, abs=0.02)
    assert found.distance.item() == pytest.approx(1.0, abs=0.1)
    assert found.far_share.item() == pytest.approx(0.25, abs=0.02)
    model = teacher()
    student = convert(model, bare_conversion(attention="dijiang", feature_map=FeatureMapConfig(decay="learned")))
    found_layers = calibrate(model, student, batches())
    for block, heads in zip(student.layers, found_layers, strict=True):
        layer = block.self_attn
        assert isinstance(layer, DiJiangAttention) and layer.log_decay is not None
        ratio = layer.log_decay.exp()
        assert torch.allclose(ratio / (1 - ratio), heads.distance.view(2, 2).mean(1), rtol=1e-3)


def test_calibration_leaves_the_teachers_weights_alone() -> None:
    model = teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = convert(model, bare_conversion(feature_map=SEPARATE), share=True)
    calibrate(model, student, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
