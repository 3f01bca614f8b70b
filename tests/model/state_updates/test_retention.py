"""Retention against all pairs, and token by token."""

from __future__ import annotations

import math

import pytest
import torch

from models import VOCAB, bare_conversion, rms_ratio
from yeoul.adapt.linearize import convert, train_only_maps
from yeoul.errors import UserError
from yeoul.model.attention import AttentionContext
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.state_updates.retention import RetentionAttention


@pytest.mark.parametrize("window", [0, 4])
@torch.no_grad()
def test_the_layer_equals_all_pairs(window: int) -> None:
    """gamma^d phi(q).phi(k) at distance d; beside a window d counts from where the window ends."""
    torch.manual_seed(0)
    layer = RetentionAttention(32, 4, 2, window=window, feature_map=FeatureMapConfig(kernel="exp"))
    x = torch.randn(1, 27, 32)
    q, k, v = (y.double() for y in layer.project(x, AttentionContext()))
    logs_q, logs_k = layer.feature_map(q), layer.feature_map.of_keys(k)
    k, v, logs_k = (y.repeat_interleave(2, 1) for y in (k, v, logs_k))
    distance = torch.arange(27)[:, None] - torch.arange(27)[None]
    gamma = torch.tensor([1 - 2**-5, 1 - 2**-6]).double().repeat_interleave(2)[:, None, None]
    weights = (logs_q.exp() @ logs_k.exp().transpose(-1, -2)) * gamma ** (distance - window).clamp_min(0)
    near = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(8))
    weights = torch.where(distance < window, near, weights) * (distance >= 0)
    wanted = weights / weights.sum(-1, keepdim=True) @ v
    assert rms_ratio(layer(x), layer.output(wanted.float())) < 1e-5


@pytest.mark.parametrize("attention", ["dijiang", "hybrid"])
@torch.no_grad()
def test_a_converted_model_decodes_as_it_reads_and_comes_back_from_its_folder(attention, tmp_path) -> None:
    torch.manual_seed(1)
    teacher = Decoder(ModelConfig(
        vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, initializer_range=0.15
    )).eval()  # fmt: skip
    student = convert(teacher, bare_conversion(attention=attention, window=5, state_update="retention"))
    train_only_maps(student)
    assert all(".feature_map." in name for name, p in student.named_parameters() if p.requires_grad)
    ids = torch.randint(0, VOCAB, (2, 20))
    whole, cache = student(ids), student.new_cache(2)
    steps = [student(ids[:, t : t + 1], cache=cache) for t in range(20)]
    assert rms_ratio(torch.cat(steps, 1), whole) < 1e-5
    save_model(student, tmp_path)
    back = load_model(tmp_path)
    assert back.config.state_update == "retention" and torch.equal(back(ids), whole)


def test_it_has_no_other_decay_and_a_direction() -> None:
    with pytest.raises(UserError, match="retention.*own decay"):
        ModelConfig(
            vocab_size=9, hidden_size=16, num_layers=1, num_heads=2, state_update="retention",
            feature_map=FeatureMapConfig(decay="learned"),
        )  # fmt: skip
    with pytest.raises(ValueError, match="causal"):
        RetentionAttention(32, 4, causal=False)
