"""cosFormer's features against all pairs, and in every place where attention uses positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import VOCAB, rms_ratio
from yeoul.errors import UserError
from yeoul.model.attention import AttentionContext
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.feature_maps.base import make_feature_map
from yeoul.model.feature_maps.cosformer import LEAST
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.state_updates.registry import STATE_UPDATES

LENGTH = 40


def config(separate: bool = False) -> FeatureMapConfig:
    return FeatureMapConfig(name="cosformer", separate=separate, options={"length": LENGTH})


def weights(layer: LinearAttention, q: Tensor, k: Tensor) -> Tensor:
    """(B, H, T, T): relu(q).relu(k) cos(pi d / 2L), and softmax's weights in the window; keys after the query are 0."""
    (_, H, T, D), G = q.shape, k.shape[1]
    k = k.repeat_interleave(H // G, 1)
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    rectified = q.clamp_min(LEAST) @ k.clamp_min(LEAST).transpose(-1, -2)
    far = rectified * torch.cos(math.pi * distance / (2 * LENGTH)) * 2 * math.pi / D
    near = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(D))
    return torch.where(distance < layer.window, near, far) * (distance >= 0)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("window", [0, 5])
@torch.no_grad()
def test_the_layer_equals_all_pairs(window: int, separate: bool) -> None:
    torch.manual_seed(0)
    layer = STATE_UPDATES["additive"](32, 4, 2, window=window, feature_map=config(separate))
    x = 2 * torch.randn(2, 33, 32)
    q, k, v = (y.double() for y in layer.project(x, AttentionContext()))
    shares = weights(layer, q, k)
    wanted = shares @ v.repeat_interleave(2, 1) / shares.sum(-1, keepdim=True)
    gates = layer.gates(x, AttentionContext(), *layer.project(x, AttentionContext())[1:])
    assert rms_ratio(layer.attend(q, k, v, gates), wanted) < 1e-5
    assert rms_ratio(layer(x), layer.output(wanted.float())) < 1e-4


@pytest.mark.parametrize("state_update", STATE_UPDATES.names)
@pytest.mark.parametrize("attention", ["dijiang", "hybrid"])
@torch.no_grad()
def test_positions_are_those_of_the_text_however_it_is_computed(attention: str, state_update: str) -> None:
    """Token by token, left-padded and packed as each text alone."""
    torch.manual_seed(1)
    model = Decoder(ModelConfig(
        vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, window=5, sinks=2,
        attention=(attention,), state_update=state_update, feature_map=config(), initializer_range=0.15,
    )).eval()  # fmt: skip
    ids = torch.randint(0, VOCAB, (2, 24))
    whole, cache = model(ids), model.new_cache(2)
    steps = [model(ids[:, :11], cache=cache), *(model(ids[:, t : t + 1], cache=cache) for t in range(11, 24))]
    assert rms_ratio(torch.cat(steps, 1), whole) < 1e-4
    mask = torch.arange(24)[None] >= torch.tensor([[0], [9]])
    padded = torch.cat((ids[1:, 15:], ids[1:, :15]), 1)
    both, cache = torch.cat((ids[:1], padded)), model.new_cache(2)
    found = [
        model(both[:, :15], mask[:, :15], cache=cache),
        *(model(both[:, t : t + 1], cache=cache) for t in range(15, 24)),
    ]
    assert rms_ratio(torch.cat(found, 1)[1, 9:], whole[1, :15]) < 1e-4
    seq_ids = (torch.arange(24) >= 13).long()[None]
    positions = torch.cat((torch.arange(13), torch.arange(11)))[None]
    packed = model(ids[:1], positions=positions, seq_ids=seq_ids)
    assert rms_ratio(packed[:, 13:], model(ids[:1, 13:])) < 1e-4


def test_positions_beyond_the_length_count_as_its_end() -> None:
    made = make_feature_map(8, 2, config())
    x, far = torch.randn(1, 2, 1, 8), torch.tensor([[10**6]])
    torch.testing.assert_close(made.of_keys(x, far), made.of_keys(x, torch.tensor([[LENGTH]])))


def test_its_settings_are_kept_and_checked() -> None:
    model = ModelConfig(vocab_size=9, hidden_size=16, num_layers=1, num_heads=2, feature_map=config())
    assert model.to_dict()["feature_map"]["options"] == {"length": LENGTH}
    assert ModelConfig.from_dict(model.to_dict()) == model
    assert "options" not in ModelConfig.from_dict(model.to_dict() | {"feature_map": {}}).to_dict()["feature_map"]
    with pytest.raises(UserError, match=r"no option 'width'.*length|length"):
        FeatureMapConfig(name="cosformer", options={"width": 3})
    with pytest.raises(UserError, match="positive"):
        FeatureMapConfig(name="cosformer", options={"length": 0})
    with pytest.raises(UserError, match="cosformer.*17"):
        make_feature_map(8, 2, FeatureMapConfig(name="cosformer", features=17))
