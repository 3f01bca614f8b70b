"""The feature map against its mathematics, the layer against its definition, and the pitfalls of the notes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models import make, rms_ratio
from yeoul.model.attention import AttentionContext, SoftmaxAttention
from yeoul.model.cache import StateCache
from yeoul.model.config import FeatureMapConfig
from yeoul.model.feature_maps.frequencies import FrequencyFeatureMap, chi_quantile, dct_matrix, quasi_random
from yeoul.model.state_updates import additive
from yeoul.model.state_updates.additive import DiJiangAttention


def test_dct_is_the_orthonormal_dct_ii() -> None:
    scipy_fft = pytest.importorskip("scipy.fft")
    for size in (1, 2, 7, 64):
        matrix = dct_matrix(size)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-5, rtol=0)
        expected = torch.from_numpy(scipy_fft.dct(torch.eye(size).numpy(), axis=0, norm="ortho")).float()
        torch.testing.assert_close(matrix, expected, atol=1e-5, rtol=0)


def test_chi_quantile_is_that_of_a_gaussian_vectors_norm() -> None:
    stats = pytest.importorskip("scipy.stats")
    u = torch.linspace(0.001, 0.999, 37, dtype=torch.float64)
    for degrees in (1, 16, 64, 128):
        expected = torch.from_numpy(stats.chi.ppf(u.numpy(), degrees))
        torch.testing.assert_close(chi_quantile(u, degrees), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sequence", ["sobol", "stratified"])
def test_low_discrepancy_points_cover_the_interval_more_evenly_than_random_ones(sequence: str) -> None:
    def discrepancy(name: str) -> float:
        gaps = []
        for stream in range(20):
            points = quasi_random(64, FeatureMapConfig(sequence=name), stream).sort().values
            gaps.append(float((points - (torch.arange(64) + 0.5) / 64).abs().max()))
        return sum(gaps) / len(gaps)

    assert discrepancy(sequence) < 0.5 * discrepancy("random")
    once, again = (quasi_random(8, FeatureMapConfig(sequence=sequence), 3) for _ in range(2))
    assert torch.equal(once, again)


def test_features_estimate_the_softmax_kernel_without_bias() -> None:
    """Mean over many maps of phi(q).phi(k) is exp(q.k / sqrt(D)): what chi radii and -|x|^2/2 are for.

    Directions are rows of one rotation of the DCT each time: fixed rows alone are unbiased only for random inputs.
    """
    D, tries = 16, 600
    generator = torch.Generator().manual_seed(0)
    q, k = (0.8 * torch.randn(1, 1, 1, D, generator=generator) for _ in range(2))
    exact = math.exp(float((q * k).sum()) / math.sqrt(D))
    estimates = []
    for seed in range(tries):
        turn = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
        feature_map = FrequencyFeatureMap(D, 1, FeatureMapConfig(kernel="exp", seed=seed, learn=()))
        a, b = feature_map(q @ turn), feature_map(k @ turn)
        estimates.append(float((a + b).exp().sum()))
    spread = torch.tensor(estimates).std().item() / math.sqrt(tries)
    assert abs(sum(estimates) / tries - exact) < 4 * spread
    assert spread < 0.1 * exact


@pytest.mark.parametrize("kernel", ["exp", "softmax"])
@pytest.mark.parametrize("window", [0, 4])
def test_layer_equals_its_definition(kernel: str, window: int) -> None:
    """Weights exp(q.k / sqrt(D)) inside the window, phi(q).phi(k) before it, one normalisation."""
    layer = DiJiangAttention(32, 4, 2, window=window, feature_map=FeatureMapConfig(kernel=kernel))
    x = torch.randn(1, 19, 32) * 2
    q, k, v = layer.project(x, AttentionContext())
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    logs_q, logs_k = layer.feature_map(q), layer.feature_map(k.view(1, 2, 2, 19, 8)[:, :, 0])
    logs_k = logs_k.repeat_interleave(2, 1)
    weights = (logs_q.double().exp() @ logs_k.double().exp().transpose(-1, -2)).tril()
    distance = torch.arange(19)[:, None] - torch.arange(19)[None]
    if window:
        exact = torch.exp((q @ k.transpose(-1, -2)).double() / math.sqrt(8))
        weights = torch.where((distance < window) & (distance >= 0), exact, weights)
    wanted = (weights / weights.sum(-1, keepdim=True)) @ v.double()
    wanted = layer.o_proj(wanted.float().transpose(1, 2).reshape(1, 19, 32))
    assert rms_ratio(layer(x), wanted) < 1e-5


def test_pitfall_3_large_keys_and_queries_neither_overflow_nor_vanish() -> None:
    """A query's shift cancels exactly; a key's log-features are bounded; a common factor of all keys cancels."""
    for scale in (1e-3, 1.0, 30.0, 1e3):
        layer = DiJiangAttention(32, 4, window=0, feature_map=FeatureMapConfig(kernel="exp"))
        x = (torch.randn(1, 40, 32) * scale).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_pitfall_6_window_and_state_share_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a constant to all of a query's scores, in both parts, changes nothing: the mix does not depend on it."""
    layer = DiJiangAttention(32, 4, window=4)
    q, k, v = (torch.randn(1, 4, 20, 8) for _ in range(3))
    wanted = layer.attend(q, k, v, {}, AttentionContext(), None)
    original = additive._shifted
    monkeypatch.setattr(additive, "_shifted", lambda logs: (original(logs)[0] / 8, original(logs)[1] + math.log(8)))
    torch.testing.assert_close(layer.attend(q, k, v, {}, AttentionContext(), None), wanted, atol=1e-5, rtol=1e-4)


def test_pitfall_7_training_and_decoding_use_the_same_window() -> None:
    """A key is seen by softmax at distances 0 ... w-1 and by the state from w on, in both forms."""
    model = make("hybrid")
    ids = torch.randint(0, 90, (1, 12))
    with torch.no_grad():
        whole = model(ids)
        cache = model.new_cache(1)
        for i in range(12):
            step = model(ids[:, i : i + 1], cache=cache)
            assert rms_ratio(step[:, 0], whole[:, i]) < 1e-5
            state = cache.layers[0].linear.state  # type: ignore[attr-defined]
            assert (state is None) == (i < model.config.window)


def test_pitfall_8_denominator_in_place_of_a_norm() -> None:
    """Values of ones come out as ones: the weights sum to one, and no norm behind them is needed."""
    for window in (0, 4):
        layer = DiJiangAttention(32, 4, window=window, feature_map=FeatureMapConfig(decay="fixed"))
        q, k = torch.randn(2, 4, 30, 8), torch.randn(2, 4, 30, 8)
        out = layer.attend(q, k, torch.ones(2, 4, 30, 8))
        torch.testing.assert_close(out, torch.ones_like(out), atol=1e-5, rtol=0)


def test_not_causal_attends_to_everything_and_ignores_padding() -> None:
    layer = DiJiangAttention(32, 4, causal=False)
    x = torch.randn(1, 10, 32)
    turned = layer(x.flip(1)).flip(1)
    torch.testing.assert_close(layer(x), turned, atol=1e-5, rtol=1e-4)
    mask = torch.ones(1, 14)
    mask[:, 10:] = 0
    padded = layer(torch.cat((x, torch.randn(1, 4, 32)), 1), attention_mask=mask)[:, :10]
    torch.testing.assert_close(padded, layer(x), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="causal"):
        DiJiangAttention(32, 4, causal=False, window=4)


def test_takes_over_the_projections_of_a_softmax_layer() -> None:
    softmax = SoftmaxAttention(hidden_size=32, num_heads=4, num_kv_heads=2)
    layer = DiJiangAttention(32, 4, 2, window=8)
    assert all(name.startswith("feature_map.") for name in layer.added_parameters())
    found = layer.load_state_dict(softmax.state_dict(), strict=False)
    assert found.missing_keys == list(layer.added_parameters()) and not found.unexpected_keys
    x = torch.randn(2, 8, 32)  # within the window both are the same function
    torch.testing.assert_close(layer(x), softmax(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("learn", [(), ("weights",), ("frequencies",), ("weights", "frequencies", "directions")])
def test_what_is_learned_is_by_configuration(learn: tuple[str, ...]) -> None:
    layer = DiJiangAttention(32, 4, window=4, feature_map=FeatureMapConfig(learn=learn))
    layer(torch.randn(2, 20, 32)).square().sum().backward()
    names = {"weights": "log_weights", "frequencies": "frequencies", "directions": "directions"}
    for part, name in names.items():
        parameter = getattr(layer.feature_map, name, None)
        trained = parameter is not None and parameter.requires_grad
        assert trained == (part in learn)
        if trained:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("features", [4, 8, 16, 40])
@pytest.mark.parametrize("pairs", [True, False])
def test_number_of_features_is_free(features: int, pairs: bool) -> None:
    layer = DiJiangAttention(32, 4, feature_map=FeatureMapConfig(features=features, pairs=pairs))
    assert layer.feature_map(torch.randn(1, 4, 5, 8)).shape == (1, 4, 5, features)
    cache = layer.new_cache()
    assert isinstance(cache, StateCache)
    layer(torch.randn(1, 5, 32), None, cache)
    assert cache.nbytes() == 4 * 4 * features * (8 + 1)


def test_fits_into_any_model() -> None:
    model = nn.Sequential(nn.Linear(3, 32), DiJiangAttention(32, 4, causal=False), nn.Linear(32, 2))
    assert model(torch.randn(2, 9, 3)).shape == (2, 9, 2)


def test_what_a_stranger_gets_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="4 heads do not divide a width of 30"):
        DiJiangAttention(30, 4)
    with pytest.raises(ValueError, match="3 key-value heads do not divide 4"):
        DiJiangAttention(32, 4, 3)
    layer, x = DiJiangAttention(32, 4, causal=False), torch.randn(2, 9, 32)
    with pytest.raises(TypeError, match="attention_mask=mask"):
        layer(x, torch.ones(2, 9))
    with pytest.raises(ValueError, match="no cache"):
        layer(x, cache=layer.new_cache())


def test_a_layer_without_direction_has_grouped_queries_too() -> None:
    layer, x = DiJiangAttention(32, 4, 2, causal=False), torch.randn(1, 9, 32)
    assert rms_ratio(layer(x.flip(1)).flip(1), layer(x)) < 1e-5
