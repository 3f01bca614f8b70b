"""Weights that layers imply: times the values they give what the layer gives; softmax's are transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import KINDS, VOCAB, make, rms_ratio
from yeoul.errors import UserError
from yeoul.evaluate.attention_weights import (
    EXACT,
    NONE,
    PARTS,
    SINKS,
    SOFTMAX,
    STATE,
    WINDOW,
    LayerWeights,
    head_steps,
    layer_weights,
    model_weights,
    overlap,
    shares_by_place,
    statistics,
)
from yeoul.model.checkpoint import save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.official import OfficialDiJiangAttention

LIMIT = 1e-5
ATTENTIVE = [kind for kind in KINDS if not {"lstm", "gru", "conv"} & set(KINDS[kind].get("attention", ()))]
TOKENS = 33


def ids(length: int = TOKENS) -> Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("length", [TOKENS, 4])
@pytest.mark.parametrize("kind", ATTENTIVE)
def test_the_weights_times_the_values_are_what_the_layer_gives(kind: str, length: int) -> None:
    """Every kind of attention, its grouped queries, sinks, exact pairs and windows; and short texts, all in window."""
    model = make(kind)
    walk = model.walk(ids(length)[None])
    for block in walk:
        x = block.attention_input(walk.hidden)
        weights, part = layer_weights(block.self_attn, x, walk.context)
        _, _, v = block.self_attn.project(x, walk.context)
        values = v[0].repeat_interleave(weights.shape[0] // v.shape[1], 0)  # (H, T, D)
        given = block.self_attn.output((weights @ values)[None])
        assert rms_ratio(given, block.self_attn(x, walk.context)) < LIMIT
        assert not weights.triu(1).any() and not part.triu(1).any()
        assert not weights[part == NONE].any()


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].get("short_conv")])
def test_taps_lead_back_to_the_values_before_the_convolution(kind: str) -> None:
    model = make(kind)
    walk = model.walk(ids()[None])
    layers, _ = model_weights(model, ids())
    for block, layer in zip(walk, layers, strict=True):
        attention = block.self_attn
        x = block.attention_input(walk.hidden)
        v = attention.v_proj(x)[0].unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)  # (G, T, D), unmixed
        values = v.repeat_interleave(attention.num_heads // attention.num_kv_heads, 0)
        taps = layer.value_taps
        assert taps is not None
        out = torch.zeros_like(values)
        for j in range(taps.shape[-1]):  # the coefficient of v_s is the sum over j of weight (t, s + j) times tap j
            out += (layer.weights[:, :, j:] @ values[:, : values.shape[1] - j]) * taps[:, None, :, j]
        assert rms_ratio(attention.output(out[None]), attention(x, walk.context)) < LIMIT


def test_softmax_weights_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    model = Decoder(config).eval()
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        expected = theirs(ids()[None], output_attentions=True).attentions
    layers, _ = model_weights(model, ids())
    assert len(layers) == len(expected) == 2
    for layer, reference in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.weights, reference[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_shares_of_the_parts_are_those_of_the_weights(kind: str) -> None:
    for layer in model_weights(make(kind), ids())[0]:
        allowed = {
            "softmax": {"softmax"}, "sliding": {"window", "sinks"}, "dijiang": {"state"},
            "hybrid": {"window", "sinks", "exact", "state"},
        }[layer.kind]  # fmt: skip
        for head in statistics(layer):
            assert set(head.shares) <= allowed
            assert sum(head.shares.values()) == pytest.approx(1, abs=1e-5)
            assert 0 <= head.distance <= TOKENS and 0 <= head.entropy <= 6 and 0 <= head.itself <= 1
            if layer.kind in ("softmax", "sliding"):
                assert head.total == pytest.approx(1, abs=1e-5) and head.negative == 0


@pytest.mark.parametrize("kind", ["exact", "exact-sinks", "exact-delta", "exact-codebook"])
def test_exact_pairs_are_as_many_as_there_is_room_for(kind: str) -> None:
    for layer in model_weights(make(kind), ids())[0]:
        last = layer.part[:, -1]
        assert ((last == EXACT).sum(-1) == layer.exact).all()
        assert ((last == WINDOW).sum(-1) == layer.window).all()
        assert ((last == SINKS).sum(-1) == layer.sinks).all()
        assert ((last == STATE).sum(-1) == TOKENS - layer.exact - layer.window - layer.sinks).all()


def test_the_delta_rule_has_negative_weights_and_additive_states_have_none() -> None:
    assert any((layer.weights < -1e-3).any() for layer in model_weights(make("fourier"), ids())[0])
    assert not any((layer.weights < 0).any() for layer in model_weights(make("hybrid-decay"), ids())[0])


def test_the_weights_of_the_delta_rule_follow_from_the_recurrence() -> None:
    """Token by token from the rule itself: S <- a S, S <- S + b k (v - S^T k)^T, read by q over its own measure."""
    layer = make("delta").layers[0].self_attn
    x = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(2))
    from yeoul.model.attention import AttentionContext

    q, k, v = layer.project(x, AttentionContext())
    gates = layer.gates(x, AttentionContext(), k, v)
    queries, keys = layer.feature_map.unit(q, None)[0], layer.feature_map.unit_of_keys(k, None)[0]
    weights, _ = layer_weights(layer, x)
    floor = torch.exp(-3 * torch.tanh(layer.read_log_scale(q)[0] / 3))  # (H, T, 1)
    for head in range(4):
        group = head // 2
        state = torch.zeros(keys.shape[-1], 13)  # 12 values and the measure
        for t in range(12):
            state = gates["log_decay"][0, group, t].exp() * state
            key, value = keys[group, t], torch.zeros(13).index_fill(0, torch.tensor([t, 12]), 1.0)
            state = state + gates["write_strength"][0, group, t] * torch.outer(key, value - key @ state)
            read = queries[head, t] @ state
            expected = read[:12] / (floor[head, t] + read[12].clamp_min(0))
            torch.testing.assert_close(weights[head, t], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_authors_layer() -> None:
    torch.manual_seed(0)
    layer = OfficialDiJiangAttention(length=64, hidden_size=32, num_heads=4)
    x = torch.randn(1, 20, 32)
    from yeoul.model.attention import AttentionContext

    q, k, v = layer.project(x, AttentionContext())
    weights, part = layer_weights(layer, x)
    assert rms_ratio((weights @ v[0])[None], layer.attend(q, k, v)) < LIMIT
    assert set(part.unique().tolist()) == {NONE, STATE}


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_steps_of_a_head_lead_to_its_output(kind: str) -> None:
    model = make(kind)
    walk = model.walk(ids()[None])
    for number, block in enumerate(walk):
        x, attention = block.attention_input(walk.hidden), block.self_attn
        q, k, v = attention.project(x, walk.context)
        output = attention.attend(q, k, v, attention.gates(x, walk.context, k, v), walk.context)
        steps = head_steps(attention, x, walk.context, layer=number, head=3)
        assert rms_ratio(steps.output, output[0, 3]) < LIMIT
        assert rms_ratio(steps.weights @ steps.v, output[0, 3]) < LIMIT
        before = steps.weights * steps.total[:, None]  # what is summed before it is divided
        soft = (steps.part > NONE) & (steps.part < STATE)
        if isinstance(attention, LinearAttention) and not soft.any():
            continue
        best = steps.scores.masked_fill(~soft, -torch.inf)
        expected = torch.exp(best - best.amax(-1, keepdim=True))
        counted = (before * soft).amax(-1) > 1e-6  # elsewhere the state outweighs softmax by far
        torch.testing.assert_close((before * soft)[counted], expected[counted], rtol=1e-3, atol=1e-5)
        if attention.__class__.__name__ == "SoftmaxAttention":
            torch.testing.assert_close(before.amax(-1), torch.ones(TOKENS), rtol=1e-4, atol=1e-5)


def _one(weights: list[list[float]], part: int) -> LayerWeights:
    values = torch.tensor([weights])
    return LayerWeights(
        layer=0, kind="softmax", state_update=None, weights=values,
        part=torch.full(values.shape, part, dtype=torch.uint8).tril(),
    )  # fmt: skip


def test_statistics_of_a_map_that_is_known() -> None:
    layer = _one([[1, 0, 0], [0.5, 0.5, 0], [0.25, -0.25, 0.5]], SOFTMAX)
    (head,) = statistics(layer)
    assert head.distance == pytest.approx((0.5 + (0.25 * 2 + 0.25)) / 2)
    assert head.entropy == pytest.approx((1 + 1.5) / 2)
    assert head.itself == pytest.approx(0.5) and head.first == pytest.approx((0.5 + 0.25) / 2)
    assert head.negative == pytest.approx(0.125) and head.total == pytest.approx((1 + 0.5) / 2)
    assert head.shares == pytest.approx({"softmax": 1.0})
    places = shares_by_place(layer.weights, window=1, sinks=1)
    assert places["sinks"] == pytest.approx([(0.5 + 0.25) / 2])
    assert places["window"] == pytest.approx([0.5]) and places["beyond"] == pytest.approx([0.125])
    assert overlap(layer.weights, layer.weights) == pytest.approx([1.0])
    other = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0.25, -0.25, 0.5]]])
    assert overlap(layer.weights, other) == pytest.approx([(0.5 + 1) / 2])
    assert PARTS[SOFTMAX] == "softmax"


def test_a_layer_without_attention_is_one_sentence() -> None:
    model = make("rnn-beside-softmax")
    assert [layer.layer for layer in model_weights(model, ids(), layers={1}, head=(1, 0))[0]] == [1]
    with pytest.raises(UserError, match="layer 0 has no attention that could be shown: it is of kind gru"):
        model_weights(model, ids())
