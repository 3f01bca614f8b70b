"""Attention sinks against their definition: softmax over the first s tokens and the last w, whatever else a layer does.

tests/model/test_agreement.py holds the kinds with sinks to the equality of whole, cached, padded and packed texts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import make, rms_ratio
from yeoul.errors import UserError
from yeoul.model.attention import AttentionContext, ProjectedAttention, SlidingAttention, SoftmaxAttention
from yeoul.model.cache import Cache, HybridCache, LayerCache, WindowCache
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import MOST_SINKS, FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.state_updates.additive import DiJiangAttention
from yeoul.model.state_updates.delta import GatedDeltaAttention

LIMIT = 1e-5
WIDTH, HEADS, GROUPS, SIZE = 32, 4, 2, 8
LAYERS = ("sliding", "hybrid", "hybrid-decay", "delta")
GATES = ("write_strength", "log_decay")


def layer_of(kind: str, window: int, sinks: int, softcap: float | None = None) -> ProjectedAttention:
    torch.manual_seed(5)
    shape: dict[str, Any] = dict(hidden_size=WIDTH, num_heads=HEADS, num_kv_heads=GROUPS, softcap=softcap)
    if kind == "sliding":
        return SlidingAttention(window=window, sinks=sinks, **shape)
    if kind == "delta":
        layer = GatedDeltaAttention(window=window, sinks=sinks, **shape)
        with torch.no_grad():
            layer.read_mass.normal_()
            layer.read_direction.normal_()
        return layer
    decay = "learned" if kind == "hybrid-decay" else "none"
    return DiJiangAttention(
        window=window, sinks=sinks, feature_map=FeatureMapConfig(kernel="exp", decay=decay), **shape
    )


def inputs(layer: ProjectedAttention, rows: int, length: int) -> list[Tensor]:
    """Queries, keys and values, and of the delta rule the two gates."""
    x = torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(6)) * 2
    q, k, v = layer.project(x, AttentionContext())
    gates = layer.gates(x, AttentionContext(), k, v)
    return [q, k, v, *(gates[name] for name in GATES if name in gates)]


def attend(layer: ProjectedAttention, given: list[Tensor], cache: LayerCache | None = None, **context: Any) -> Tensor:
    q, k, v, *gates = given
    return layer.attend(q, k, v, dict(zip(GATES, gates, strict=False)), AttentionContext(**context), cache)


def definition(layer: ProjectedAttention, q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
    """One text, (1, H, T, D): softmax over sinks and window; what is older than both by the linear part."""
    assert isinstance(layer, SlidingAttention | LinearAttention)
    w, s, T = layer.window, layer.sinks, q.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(2, 1), v.double().repeat_interleave(2, 1)
    query, key = torch.arange(T)[:, None], torch.arange(T)[None]
    softmax = (key <= query) & ((key < s) | (query - key < w))
    scores = q @ k.transpose(-1, -2) / math.sqrt(SIZE)
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    if isinstance(layer, SlidingAttention):
        return torch.softmax(scores.masked_fill(~softmax, -torch.inf), -1) @ v
    logs_q = layer.feature_map(q)
    logs_k = layer.feature_map(k[:, ::2]).repeat_interleave(2, 1)
    if isinstance(layer, GatedDeltaAttention):
        beta, decay = (gate.double().repeat_interleave(2, 1) for gate in gates)
        values = torch.nn.functional.pad(v, (0, 1), value=1.0)  # the read's own measure
        window = scores.masked_fill(~softmax, -torch.inf).exp() @ values
        a, b = (torch.nn.functional.normalize(x.exp(), dim=-1) for x in (logs_q, logs_k))
        state, read = torch.zeros(1, HEADS, b.shape[3], SIZE + 1, dtype=q.dtype), []
        for t in range(T):
            if (j := t - w) >= s:  # token j is no sink, and leaves the window at query t
                state = state * decay[:, :, j].exp()[..., None, None]
                known = torch.einsum("bhmd,bhm->bhd", state, b[:, :, j])
                change = beta[:, :, j, None] * (values[:, :, j] - known)
                state = state + b[:, :, j, :, None] * change[:, :, None]
            read.append(torch.einsum("bhmd,bhm->bhd", state, a[:, :, t]))
        mass = (q @ layer.read_direction.double()[..., None] + layer.read_mass.double()[:, None, None]).exp()
        reads = torch.stack(read, 2)
        joined = window + mass * reads * (reads[..., -1:] > 0)
        return joined[..., :-1] / joined[..., -1:]
    linear = logs_q.exp() @ logs_k.exp().transpose(-1, -2)
    if layer.log_decay is not None:
        age = (query - key - w).clamp_min(0)  # queries since the key has left the window
        linear = linear * torch.exp(layer.log_decay.double().repeat_interleave(2)[:, None, None] * age)
    weights = torch.where(softmax, scores.exp(), linear) * (key <= query)
    return weights / weights.sum(-1, keepdim=True) @ v


@pytest.mark.parametrize("sinks", [1, 3, 7])
@pytest.mark.parametrize("kind", LAYERS)
def test_layer_equals_its_definition(kind: str, sinks: int) -> None:
    for window, length in ((1, 9), (4, 23), (5, 8), (6, 6), (16, 40)):
        for softcap in (None, 1.5):
            layer = layer_of(kind, window, sinks, softcap)
            given = inputs(layer, 1, length)
            assert rms_ratio(attend(layer, given), definition(layer, *given)) < LIMIT


@pytest.mark.parametrize("sinks", [2, 5])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_packed_text_has_its_own_sinks(kind: str, sinks: int) -> None:
    """Texts shorter than the sinks, than the window, longer than both; two rows with other bounds."""
    lengths = [[3, 11, 1, 20, 2], [17, 4, 4, 9]]
    layer = layer_of(kind, 4, sinks)
    given = inputs(layer, 2, 40)
    seq_ids = torch.full((2, 40), -1)
    for row, parts in enumerate(lengths):
        seq_ids[row, : sum(parts)] = torch.arange(len(parts)).repeat_interleave(torch.tensor(parts))
    out = attend(layer, given, seq_ids=seq_ids)
    assert out.isfinite().all()
    for row, parts in enumerate(lengths):
        start = 0
        for length in parts:
            part = slice(row, row + 1), slice(None), slice(start, start + length)
            assert rms_ratio(out[part], definition(layer, *(x[part] for x in given))) < LIMIT
            start += length


@pytest.mark.parametrize("sinks", [2, 5])
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_padded_rows_have_their_own_sinks_whole_and_in_pieces(kind: str, sinks: int) -> None:
    gaps, length = (0, 3, 9), 26
    layer = layer_of(kind, 4, sinks)
    given = inputs(layer, 3, length)
    mask = torch.arange(length)[None] >= torch.tensor(gaps)[:, None]
    outputs = [attend(layer, given, mask=mask)]
    for cuts in ([10, 11, 12, 13], [11, 18], [13, *range(14, 26)]):
        cache, pieces = layer.new_cache(), []
        for start, end in zip([0, *cuts], [*cuts, length], strict=True):
            part = slice(None), slice(None), slice(start, end)
            here = None if bool(mask[:, start:end].all()) else mask[:, start:end]
            pieces.append(attend(layer, [x[part] for x in given], cache, mask=here))
        outputs.append(torch.cat(pieces, 2))
    for row, gap in enumerate(gaps):
        part = slice(row, row + 1), slice(None), slice(gap, length)
        wanted = definition(layer, *(x[part] for x in given))
        for out in outputs:
            assert rms_ratio(out[part], wanted) < LIMIT


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_the_definition(kind: str, packed: bool) -> None:
    layer = layer_of(kind, 4, 3)
    bounds = [0, 14, 16, 25] if packed else [0, 25]
    seq_ids = torch.repeat_interleave(torch.arange(3), torch.tensor([14, 2, 9]))[None] if packed else None
    gradients = []
    for defined in (False, True):
        leaves = [x.detach().requires_grad_() for x in inputs(layer, 1, 25)]
        if defined:
            parts = [[x[:, :, a:b] for x in leaves] for a, b in zip(bounds, bounds[1:], strict=False)]
            out = torch.cat([definition(layer, *part) for part in parts], 2)
        else:
            out = attend(layer, leaves, seq_ids=seq_ids)
        out.square().sum().backward()
        gradients.append([x.grad for x in leaves])
    for ours, wanted in zip(*gradients, strict=True):
        assert ours is not None and wanted is not None and rms_ratio(ours, wanted) < 1e-4


def window_of(cache: Cache) -> WindowCache:
    layer = cache.layers[0]
    window = layer.window if isinstance(layer, HybridCache) else layer
    assert isinstance(window, WindowCache)
    return window


@pytest.mark.parametrize("kind", ["sliding-sinks", "hybrid-sinks", "delta-hybrid-sinks"])
@torch.no_grad()
def test_a_step_reads_sinks_and_ring_as_they_lie(kind: str) -> None:
    """Once the sinks are there, a token is written into its slot and the slots are read in place, s + w of them."""
    model = make(kind)
    w, s = model.config.window, model.config.sinks
    cache = model.new_cache(2)
    model(torch.randint(0, 90, (2, 30)), cache=cache)
    size, window = cache.nbytes(), window_of(cache)
    assert window.k is not None
    place = window.k.data_ptr()
    for _ in range(2 * w):
        model(torch.randint(0, 90, (2, 1)), cache=cache)
    keys, _, valid = window.columns()
    assert keys.data_ptr() == window.k.data_ptr() == place
    assert keys.shape[2] == s + w and valid is None and cache.nbytes() == size


@pytest.mark.parametrize("kind", ["sliding-sinks", "hybrid-sinks", "delta-hybrid-sinks"])
@torch.no_grad()
def test_rows_are_reordered_with_the_sinks_they_have_so_far(kind: str) -> None:
    model, ids = make(kind), torch.randint(0, 90, (3, 20), generator=torch.Generator().manual_seed(4))
    mask = torch.ones(3, 20)
    mask[1, :5] = 0
    whole = model(ids, mask)
    cache = model.new_cache(3)
    model(ids[:, :7], mask[:, :7], cache=cache)  # the second row has two tokens
    rows = [2, 1, 1]
    cache.reorder(torch.tensor(rows))
    rest = torch.cat([model(ids[rows, i : i + 1], cache=cache) for i in range(7, 20)], 1)
    assert rms_ratio(rest, whole[rows, 7:]) < LIMIT


def test_what_fits_into_window_and_sinks_is_the_softmax_layer() -> None:
    softmax = SoftmaxAttention(hidden_size=WIDTH, num_heads=HEADS, num_kv_heads=GROUPS)
    x = torch.randn(2, 13, WIDTH)
    sharing = DiJiangAttention(WIDTH, HEADS, GROUPS, window=8, sinks=5)
    sharing.load_state_dict(softmax.state_dict(), strict=False)
    sliding = SlidingAttention(window=8, sinks=5, hidden_size=WIDTH, num_heads=HEADS, num_kv_heads=GROUPS)
    sliding.load_state_dict(softmax.state_dict())
    for layer in (sharing, sliding):
        assert rms_ratio(layer(x), softmax(x)) < LIMIT
        assert rms_ratio(layer(torch.cat((x, x), 1)), softmax(torch.cat((x, x), 1))) > 1e-3
    with pytest.raises(ValueError, match="sinks"):
        DiJiangAttention(WIDTH, HEADS, sinks=2)


def test_configuration() -> None:
    small: dict[str, Any] = dict(vocab_size=9, hidden_size=32, num_layers=1, num_heads=2)
    config = ModelConfig(**small, sinks=4)
    assert config.to_dict()["sinks"] == 4 and ModelConfig.from_dict(config.to_dict()) == config
    values = ModelConfig(**small).to_dict()
    del values["sinks"]  # as folders say it that were saved before there were sinks
    assert ModelConfig.from_dict(values).sinks == 0
    for wrong in (-1, 1.0, True, "4", None, MOST_SINKS + 1):
        with pytest.raises(UserError, match="sinks"):
            ModelConfig(**small, sinks=wrong)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_published_family_is_not_written_where_it_has_no_sinks(tmp_path: Path) -> None:
    """Mistral's config.json says a sliding window, and would be read without the sinks."""
    settings: dict[str, Any] = dict(
        vocab_size=90, hidden_size=32, num_layers=2, num_heads=4, attention=("sliding",), window=5,
        initializer_range=0.15, family="mistral",
    )  # fmt: skip
    ids = torch.randint(0, 90, (1, 24))
    for sinks, family in ((0, "mistral"), (3, "yeoul")):
        model = Decoder(ModelConfig(**settings, sinks=sinks)).eval()
        save_model(model, tmp_path / family)
        assert json.loads((tmp_path / family / "config.json").read_text())["model_type"] == family
        again = load_model(tmp_path / family)
        assert again.config.sinks == sinks and torch.equal(again(ids), model(ids))
