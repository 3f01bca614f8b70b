"""What modules say of their parameters: which stay fp32, and which a conversion adds."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import KINDS, VOCAB, bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import convert, learned_parameters
from yeoul.model.attention import AttentionContext
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import FeatureMapConfig
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.parameters import added_parameters, fp32_parameters

EXPONENTS = r"\.feature_map\.|\.exact_score\.|\.(decay_logit|decay_log|read_mass|read_direction)$|_proj\.bias$"
"""Names of what stands in exponents; biases of projections count only where the projection is a gate."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_exponents_stays_fp32(kind: str) -> None:
    model = make(kind)
    gates = {f"{name}.bias" for name, module in model.named_modules() if type(module).__name__ == "Gate"}
    wanted = {
        name for name, _ in model.named_parameters()
        if re.search(EXPONENTS, name) and (not name.endswith(".bias") or name in gates)
    }  # fmt: skip
    assert fp32_parameters(model) == wanted
    assert bool(wanted) == any(isinstance(block.self_attn, LinearAttention) for block in model.layers)


@pytest.mark.parametrize("state_update", ["additive", "delta"])
def test_a_conversion_adds_what_the_teacher_lacks(state_update: str) -> None:
    teacher = make("softmax")
    student = convert(teacher, bare_conversion(window=4, state_update=state_update, short_conv=3))
    names = set(student.state_dict())
    assert added_parameters(student) == names - set(teacher.state_dict())
    assert added_parameters(teacher) == frozenset()
    frozen = names - learned_parameters(student)
    assert all(name.endswith("log_mass") for name in frozen) and bool(frozen) == (state_update == "delta")


@torch.no_grad()
def test_gates_are_not_rounded_in_a_model_of_bf16(tmp_path) -> None:
    """A half-life of 100,000 positions is a log-decay of which bf16 would know two digits, and its bias one."""
    model = make("fourier-hybrid")
    for block in model.layers:
        block.self_attn.decay_proj.bias.fill_(-11.83)  # type: ignore[union-attr]
        block.self_attn.decay_proj.weight.zero_()  # type: ignore[union-attr]
    save_model(model, tmp_path)
    half = load_model(tmp_path, dtype=torch.bfloat16)
    x, context = torch.randn(2, 9, 64), AttentionContext()
    _, *pair = model.layers[0].self_attn.project(x, context)
    wanted = model.layers[0].self_attn.gates(x, context, *pair)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model.layers[0].self_attn.gates(x, context, *pair)
    found = half.layers[0].self_attn.gates(x.bfloat16(), context, *pair)
    for name in ("log_decay", "write_strength"):
        assert found[name].dtype == under_autocast[name].dtype == torch.float32
        torch.testing.assert_close(under_autocast[name], wanted[name])
    torch.testing.assert_close(found["log_decay"], wanted["log_decay"])
    assert rms_ratio(found["write_strength"], wanted["write_strength"]) < 0.01
    cache = half.new_cache(2)
    half(torch.zeros(2, 9, dtype=torch.int64), cache=cache)
    ring = cache.layers[0].window.gates  # type: ignore[attr-defined]
    assert {gate.dtype for gate in ring.values()} == {torch.float32} and set(ring) == set(found)
    before = cache.nbytes()
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.nbytes() * 2 == before * 3 and ring["log_decay"].shape == (2, 2, 5)


def test_options_and_maps_of_a_teacher_are_the_same_after_a_copy() -> None:
    config = FeatureMapConfig(name="fourier", separate=True)
    assert FeatureMapConfig(**config.to_dict()) == config and hash(config) == hash(FeatureMapConfig(**config.to_dict()))


@torch.no_grad()
def test_a_folder_of_an_earlier_version_lacks_what_changes_nothing_at_zero(tmp_path) -> None:
    model = make("exact-codebook")
    for block in model.layers:
        block.self_attn.exact_score.recency.zero_()  # type: ignore[union-attr]
    save_model(model, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    added = {name for name in weights if name.endswith("exact_score.recency")}
    assert len(added) == len(model.layers)
    save_file({name: tensor for name, tensor in weights.items() if name not in added}, path, {"format": "pt"})
    ids = torch.randint(0, VOCAB, (2, 40))
    assert torch.equal(load_model(tmp_path)(ids), model(ids))
