"""Every feature map against its formula, and in every place where attention uses it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import VOCAB, bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import Alignment, convert, train_only_maps
from yeoul.commands import linearize
from yeoul.config import load_config, parse_flags, save_config
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.attention import AttentionContext, SoftmaxAttention
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.feature_maps.base import FeatureMap, make_feature_map
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.state_updates.additive import DiJiangAttention
from yeoul.recipes.linearize.run import learns_alone

D, G = 8, 3
POSITIVE = [
    name for name in FEATURE_MAPS.names if name not in ("fourier", "cosformer", "codebook")
]  # which have their own tests
SETTINGS: dict[str, dict[str, Any]] = {name: dict(name=name) for name in POSITIVE} | {
    "dijiang-exp": dict(kernel="exp"),
    "dijiang-orthogonal": dict(directions="orthogonal", kernel="exp", learn=("weights",)),
    "performer-random": dict(name="performer", directions="random"),
    "performer-pairs": dict(name="performer", pairs=True),
    "pff-random": dict(name="pff", sequence="random"),
}
"""Every name with its defaults, and what else they can be."""


def made(settings: dict[str, Any], heads: int = G, head_dim: int = D) -> FeatureMap:
    """A map whose weights are not all alike, as training leaves them."""
    feature_map = make_feature_map(head_dim, heads, FeatureMapConfig(**settings))
    generator = torch.Generator().manual_seed(5)
    for name in ("log_weights", "log_mass"):
        parameter = getattr(feature_map, name, None)
        if parameter is not None:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return feature_map


def dct_entry(row: int, column: int) -> float:
    """Orthonormal DCT-II, from its definition."""
    return math.sqrt((1 if row == 0 else 2) / D) * math.cos(math.pi * row * (2 * column + 1) / (2 * D))


DCT = torch.tensor([[dct_entry(i, j) for j in range(D)] for i in range(D)], dtype=torch.float64)


def by_formula(feature_map: FeatureMap, x: Tensor, head: int) -> Tensor:
    """phi(x) of one vector (D,) fp64, as the papers write it."""
    name, config = feature_map.config.name, feature_map.config
    part = {key: value[head].double() for key, value in feature_map.named_parameters()}
    if name == "elu":
        return (torch.nn.functional.elu(x) + 1) * part["log_mass"].exp()
    if name == "hedgehog":
        w = part["directions"].T
        return torch.softmax(torch.cat((w @ x, -w @ x)), 0) * part["log_mass"].exp()
    weights = part["log_weights"].exp()
    if name == "dijiang-code":
        return torch.softmax((x @ (DCT @ torch.diag(part["frequencies"]))) + weights.log(), 0) * part["log_mass"].exp()
    x = x / D**0.25
    t = part["frequencies"]
    if config.directions == "dct" and "directions" not in config.learn:
        projected = torch.diag(t) @ DCT @ x
    else:
        projected = torch.stack([t[i] * (part["directions"][:, i] @ x) for i in range(len(t))])
    if name in ("dcf", "wdcf"):
        return weights * torch.exp(projected)
    if config.pairs:
        projected = torch.cat((projected, -projected))
    if config.kernel == "softmax":
        unnormalised = weights * torch.exp(projected)
        return unnormalised / unnormalised.sum() * part["log_mass"].exp()
    return weights * torch.exp(projected - x @ x / 2)


@pytest.mark.parametrize("kind", SETTINGS)
def test_features_equal_the_formula(kind: str) -> None:
    feature_map = made(SETTINGS[kind])
    x = 1.5 * torch.randn(2, 2 * G, 4, D, dtype=torch.float64)  # two query heads for each key-value head
    features = feature_map(x).exp()
    assert features.dtype == torch.float64 and features.shape == (2, 2 * G, 4, feature_map.features)
    for b, h, t in ((0, 0, 0), (1, 1, 3), (0, 2, 1), (1, 5, 2)):
        torch.testing.assert_close(
            features[b, h, t], by_formula(feature_map, x[b, h, t], h // 2), rtol=1e-6, atol=1e-12
        )
    assert feature_map(x.bfloat16()).dtype == torch.float32


def test_dcf_starts_with_equal_weights_and_dct_rows() -> None:
    feature_map = make_feature_map(D, G, FeatureMapConfig(name="dcf"))
    x = torch.randn(D, dtype=torch.float64)
    expected = torch.exp(feature_map.frequencies[1].double() * (DCT @ x) / D**0.25) / math.sqrt(D)
    torch.testing.assert_close(feature_map.grouped(x.expand(1, G, 1, D))[0, 1, 0].exp(), expected, rtol=1e-6, atol=0)
    assert not any(parameter.requires_grad for parameter in feature_map.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        dict(name="performer"),
        dict(name="performer", directions="random"),
        dict(name="performer", pairs=True),
        dict(name="pff"),
        dict(name="wpff", sequence="stratified"),
        dict(kernel="exp", directions="orthogonal"),
        dict(kernel="exp", directions="random", sequence="stratified"),
    ],
    ids=str,
)
def test_estimates_of_the_softmax_kernel_have_no_bias(settings: dict[str, Any]) -> None:
    """The mean over 150 heads, each with its own draw, is exp(q.k / sqrt(D)) within four standard errors."""
    heads = 150
    generator = torch.Generator().manual_seed(3)
    q, k = (0.9 * torch.randn(D, dtype=torch.float64, generator=generator) for _ in range(2))
    feature_map = make_feature_map(D, heads, FeatureMapConfig(features=128, **settings))
    a, b = (feature_map.grouped(x.expand(1, heads, 1, D)) for x in (q, k))
    estimates = (a + b).exp().sum(-1).flatten().detach()
    exact = math.exp(float(q @ k) / math.sqrt(D))
    error = estimates.std().item() / math.sqrt(heads)
    assert abs(estimates.mean().item() - exact) < 4 * error
    assert error < 0.03 * exact


def test_performers_directions_are_orthogonal_in_blocks_and_pffs_are_not() -> None:
    for settings, block, expected in (
        (dict(name="performer", features=2 * D), D, True), (dict(name="pff", features=2 * D), D, False),
    ):  # fmt: skip
        directions = make_feature_map(D, 1, FeatureMapConfig(**settings)).directions[0]
        for start in (0, block):
            part = directions[:, start : start + block].double()
            gram = part.T @ part
            torch.testing.assert_close(gram.diagonal(), torch.ones(block, dtype=torch.float64), rtol=0, atol=1e-6)
            assert torch.allclose(gram, torch.eye(block, dtype=torch.float64), atol=1e-6) == expected
        assert (directions[:, 0] - directions[:, block]).norm() > 0.1


@pytest.mark.parametrize("name", POSITIVE)
def test_heads_and_seeds_draw_apart_and_the_same_seed_alike(name: str) -> None:
    def parameters(seed: int) -> dict[str, Tensor]:
        return dict(make_feature_map(D, 2, FeatureMapConfig(name=name, seed=seed)).named_parameters())

    one, again, other = parameters(0), parameters(0), parameters(1)
    assert all(torch.equal(one[key], again[key]) for key in one)
    if "frequencies" in one:
        assert not torch.equal(one["frequencies"][0], one["frequencies"][1])
        assert not torch.equal(one["frequencies"], other["frequencies"])


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("kind", SETTINGS)
@torch.no_grad()
def test_token_by_token_equals_the_whole_and_the_definition(kind: str, window: int) -> None:
    softmax = SoftmaxAttention(hidden_size=32, num_heads=4, num_kv_heads=2)
    layer = DiJiangAttention(32, 4, 2, window=window, feature_map=FeatureMapConfig(**SETTINGS[kind]))
    layer.load_state_dict(softmax.state_dict(), strict=False)
    x = 2 * torch.randn(1, 15, 32)
    whole, cache = layer(x), layer.new_cache()
    steps = [layer(x[:, :6], None, cache), *(layer(x[:, t : t + 1], None, cache) for t in range(6, 15))]
    assert rms_ratio(torch.cat(steps, 1), whole) < 1e-5
    q, k, v = layer.project(x, AttentionContext())
    logs = [layer.feature_map(y).double() for y in (q, k)]
    k, v, keys = (y.repeat_interleave(2, 1) for y in (k, v, logs[1]))
    weights = (logs[0].exp() @ keys.exp().transpose(-1, -2)).tril()
    if window:
        assert rms_ratio(layer(x[:, :window]), softmax(x[:, :window])) < 1e-5
        distance = torch.arange(15)[:, None] - torch.arange(15)[None]
        exact = torch.exp((q @ k.transpose(-1, -2)).double() / math.sqrt(8))
        weights = torch.where((distance < window) & (distance >= 0), exact, weights)
    wanted = (weights / weights.sum(-1, keepdim=True)) @ v.double()
    assert rms_ratio(whole, layer.o_proj(wanted.float().transpose(1, 2).flatten(2))) < 1e-5


@pytest.mark.parametrize("name", POSITIVE)
def test_a_model_converts_aligns_and_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    teacher = make("softmax")
    student = convert(teacher, bare_conversion(window=4, feature_map=FeatureMapConfig(name=name)))
    train_only_maps(student)
    learned = {n.rsplit(".", 1)[1] for n, p in student.named_parameters() if p.requires_grad}
    parts = {"weights": "log_weights", "frequencies": "frequencies", "directions": "directions"}
    scale = set() if student.config.feature_map.kernel == "exp" else {"log_mass"}
    assert learned == {parts[part] for part in student.config.feature_map.learn} | scale
    ids = torch.randint(0, VOCAB, (2, 24))
    if learned:
        Alignment(teacher)(student, Batch(input_ids=ids, labels=ids)).mean().backward()
        for parameter in student.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
    save_model(student, tmp_path)
    back = load_model(tmp_path)
    assert back.config == student.config and back.config.feature_map.name == name
    for (key, one), (_, other) in zip(student.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(one, other), key
    with torch.no_grad():
        assert torch.equal(back(ids), student(ids))


def test_folders_from_before_the_names_load_as_they_did(tmp_path: Path) -> None:
    model = make("hybrid-bounded")
    save_model(model, tmp_path)
    own = [key.split("feature_map.")[1] for key in model.state_dict() if "layers.0" in key and "feature_map" in key]
    assert own == ["frequencies", "log_weights", "directions", "log_mass"]
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("name", "directions"):
        del config["feature_map"][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    back = load_model(tmp_path)
    assert back.config.feature_map == FeatureMapConfig(kernel="softmax")
    ids = torch.randint(0, VOCAB, (1, 12))
    with torch.no_grad():
        assert torch.equal(back(ids), model(ids))


@pytest.mark.parametrize("name", ["performer", "pff", "wpff", "dcf", "wdcf", "dijiang-code", "dijiang", "hedgehog"])
@pytest.mark.parametrize("features", [D // 2, D, 2 * D])
def test_fewer_and_more_features_than_the_head_size(name: str, features: int) -> None:
    layer = DiJiangAttention(32, 4, feature_map=FeatureMapConfig(name=name, features=features))
    assert layer.feature_map(torch.randn(1, 4, 5, D)).shape == (1, 4, 5, features)
    assert layer(torch.randn(1, 5, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="performr"), "performer"),
        (dict(name="performer", kernel="softmax"), "kernel .*'softmax'.*'performer'"),
        (dict(name="pff", radii="normal"), "radii .*'normal'.*'pff'"),
        (dict(name="pff", learn=("weights",)), "learn .*'weights'.*'pff'"),
        (dict(name="hedgehog", pairs=False), "pairs .*False.*'hedgehog'"),
        (dict(name="elu", sequence="sobol"), "sequence .*'sobol'.*'elu'"),
        (dict(name="dcf", directions="random"), "directions .*'random'.*'dcf'"),
        (dict(name="dijiang", directions="identity"), "directions .*'identity'.*'dijiang'"),
        (dict(radii="khi"), "chi"),
    ],
    ids=str,
)
def test_combinations_that_do_not_exist_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FeatureMapConfig(**settings)


@pytest.mark.parametrize(("name", "features"), [("elu", 2 * D), ("hedgehog", 4 * D)])
def test_numbers_of_features_that_a_map_cannot_have(name: str, features: int) -> None:
    with pytest.raises(UserError, match=f"{name}.*{features}"):
        make_feature_map(D, G, FeatureMapConfig(name=name, features=features))


TEACHER = make("softmax").config


def test_the_flag_and_its_file(tmp_path: Path) -> None:
    config = parse_flags(linearize.Config, ["runs/ko", "--map", "hedgehog"], program="yeoul linearize")
    assert config is not None
    assert config.settings.conversion.conversion(TEACHER).feature_map == FeatureMapConfig(name="hedgehog")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(linearize.Config, tmp_path / "config.yaml") == config
    plain = parse_flags(linearize.Config, ["runs/ko"], program="yeoul linearize")
    assert plain is not None
    assert plain.settings.conversion.conversion(TEACHER).feature_map == FeatureMapConfig(name="codebook")
    alone = parse_flags(linearize.Config, ["runs/ko", "--attention", "dijiang"], program="yeoul linearize")
    assert alone is not None
    assert alone.settings.conversion.conversion(TEACHER).feature_map == FeatureMapConfig(name="fourier", separate=True)
    wrong = parse_flags(linearize.Config, ["m", "--map", "performer", "--kernel", "softmax"], program="yeoul linearize")
    with pytest.raises(UserError, match="performer"):
        wrong.settings.conversion.conversion(TEACHER)


def test_nothing_to_align_is_known_before_training() -> None:
    for name, attention, expected in (
        ("pff", "hybrid", False), ("dcf", "dijiang", False), ("elu", "hybrid", True), ("elu", "dijiang", False),
        ("wpff", "dijiang", True), ("dijiang", "hybrid", True),
    ):  # fmt: skip
        config = ModelConfig(
            vocab_size=9, hidden_size=16, num_layers=1, num_heads=2, attention=(attention,),
            feature_map=FeatureMapConfig(name=name),
        )  # fmt: skip
        assert learns_alone(Decoder(config)) == expected, (name, attention)
