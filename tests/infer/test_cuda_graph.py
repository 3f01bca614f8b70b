"""The static step, which a GPU replays as a graph, against PyTorch: every kind of layer, for more than its window."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from models import KINDS, VOCAB, make, rms_ratio
from yeoul.infer import next_token
from yeoul.infer.cuda_graph import GraphDecoder, Read, graph_decoder_of
from yeoul.infer.engine import generate_ids
from yeoul.infer.next_token import NextToken
from yeoul.infer.params import SamplingParams
from yeoul.infer.static_step import FEWEST_COLUMNS, StaticStep, Unsupported, parts, room
from yeoul.model.cache import Cache
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.feature_maps.frequencies import FrequencyFeatureMap
from yeoul.model.rotary import rotary_table
from yeoul.model.state_updates.additive import DiJiangAttention

RETENTION: dict[str, dict[str, Any]] = {
    "retention": dict(attention=("dijiang",), state_update="retention", feature_map=dict(kernel="exp")),
    "retention-hybrid": dict(attention=("hybrid",), state_update="retention", sinks=2, short_conv=3),
}
CASES = sorted({**KINDS, **RETENTION})
UNPADDED = ["softmax", "learned", "gemma-like-hybrid", "exact-delta", "convolution", "retention", "lstm", "mixed"]
LENGTH = 13  # of the prompts: more than the sinks of any kind, also where some of it is padding


@pytest.fixture(autouse=True)
def more_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "KINDS", {**KINDS, **RETENTION})


def prompts(rows: int, padded: bool) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(1)
    ids, mask = torch.randint(VOCAB, (rows, LENGTH)), None
    if padded:
        mask = torch.ones_like(ids)
        mask[0, :4] = mask[1, :1] = 0
    return ids, mask


def read(model: Decoder, ids: Tensor, mask: Tensor | None = None) -> Cache:
    cache = model.new_cache(len(ids))
    model(ids, mask, cache=cache)
    return cache


@pytest.mark.parametrize(("case", "padded"), [*((case, True) for case in CASES), *((case, False) for case in UNPADDED)])
@torch.inference_mode()
def test_it_computes_what_pytorch_does(case: str, padded: bool) -> None:
    """Over a ring of 5 or 7 many times and beyond the first 64 columns; a row ends, and PyTorch takes turns."""
    model = make(case)
    graph, (ids, mask), found = GraphDecoder(model), prompts(3, padded), []
    mine, theirs = read(model, ids, mask), read(model, ids, mask)
    tokens = ids[:, -1]
    for step in range(50):
        assert graph.takes(mine)
        logits = graph.step(tokens, mine)
        wanted = model(tokens[:, None], cache=theirs)[:, -1]
        found.append(rms_ratio(logits, wanted))
        tokens = wanted.argmax(-1)
        if step == 20:
            for cache in (mine, theirs):
                cache.reorder(torch.tensor([2, 0]))
            tokens = tokens[[2, 0]]
        if step in (25, 30):  # several tokens at once are PyTorch's, and one is now and then
            more = torch.randint(VOCAB, (2, 3 if step == 25 else 1))
            found.append(rms_ratio(model(more, cache=mine), model(more, cache=theirs)))
    more = torch.randint(VOCAB, (2, 3))
    found.append(rms_ratio(model(more, cache=mine), model(more, cache=theirs)))
    assert mine.length == theirs.length > FEWEST_COLUMNS and torch.equal(mine.next_position, theirs.next_position)
    assert mine.nbytes() == theirs.nbytes()
    assert max(found) < 2e-5
    assert graph.columns == (2 * FEWEST_COLUMNS if "softmax" in model.config.attention else 0)


class NothingFromTheHost(TorchDispatchMode):
    """Fails where an operation has a tensor of the CPU, other than a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, Tensor):
                assert x.device.type != "cpu" or x.dim() == 0, f"{func} has {tuple(x.shape)} on the CPU"
        return out


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_step_asks_nothing_of_the_device_and_brings_nothing_to_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be recorded as a graph. On the meta device a look at a number raises, and all work is of shapes."""
    model = make(case)
    step = StaticStep(model, rows=4, columns=64, end=128)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *a: False)  # of which meta knows nothing
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    model.to("meta")
    for holder in (step, *parts(step.layers)):
        for name, value in vars(holder).items():
            if isinstance(value, Tensor):
                setattr(holder, name, value.to("meta"))
            if name == "gates":
                holder.gates = {key: gate.to("meta") for key, gate in value.items()}  # type: ignore[union-attr]
    step._carried = [(part, name, getattr(part, name)) for part, name, _ in step._carried]
    step.run()  # tables that are kept are brought once
    with NothingFromTheHost():
        assert step.run().shape == (4, VOCAB)


@torch.inference_mode()
def test_what_a_graph_reads_is_kept() -> None:
    """Tables of positions and directions too, which are else only in caches that drop what is old."""
    model = make("wdcf-hybrid")
    step = StaticStep(model, rows=2, columns=0, end=128)
    step.run()
    with Read() as read:
        step.run()
    (rope,) = model.config.ropes
    table = rotary_table(rope, 128, model.device)[0]
    first = model.layers[0].self_attn
    assert isinstance(first, DiJiangAttention) and isinstance(first.feature_map, FrequencyFeatureMap)
    directions = first.feature_map.dct(model.device)
    kept = read.kept.keys()
    assert {table.untyped_storage().data_ptr(), directions.untyped_storage().data_ptr()} <= kept
    assert {p.untyped_storage().data_ptr() for p in model.parameters()} <= kept
    assert len(kept) < 4 * len(list(model.parameters()))


@pytest.mark.parametrize("case", ["softmax", "exact-sinks", "hybrid-convolution", "gru"])
@torch.inference_mode()
def test_caches_in_turns_each_keep_what_is_theirs(case: str) -> None:
    model = make(case)
    graph, (ids, _) = GraphDecoder(model), prompts(4, False)
    mine = [read(model, ids[:2]), read(model, ids[2:])]
    theirs = [read(model, ids[:2]), read(model, ids[2:])]
    back = [cache.snapshot() for cache in mine]
    for turn in range(12):
        which = turn // 2 % 2
        tokens = torch.full((2,), turn)
        found = graph.step(tokens, mine[which])
        assert rms_ratio(found, model(tokens[:, None], cache=theirs[which])[:, -1]) < 2e-5
    again = read(model, ids[:2])
    del mine
    for turn in range(8):  # what a cache was before it went on
        tokens = torch.full((2,), turn)
        assert rms_ratio(graph.step(tokens, back[0]), model(tokens[:, None], cache=again)[:, -1]) < 2e-5


@torch.inference_mode()
def test_a_step_is_made_once_and_again_for_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int, int]] = []
    real = StaticStep.__init__

    def noted(self: StaticStep, model: Decoder, *, rows: int, columns: int, end: int) -> None:
        made.append((rows, columns, end))
        real(self, model, rows=rows, columns=columns, end=end)

    monkeypatch.setattr(StaticStep, "__init__", noted)
    model = make("hybrid")
    graph, (ids, _) = GraphDecoder(model), prompts(5, False)
    cache = read(model, ids)
    for _ in range(120):  # beyond the model's 128 positions
        graph.step(torch.zeros(len(cache.next_position), dtype=torch.int64), cache)
    assert made == [(8, 0, 128), (8, 0, 256)]
    cache.reorder(torch.arange(3))
    graph.step(torch.zeros(3, dtype=torch.int64), cache)
    assert len(made) == 2
    cache.reorder(torch.arange(2))
    graph.step(torch.zeros(2, dtype=torch.int64), cache)
    assert made[2:] == [(2, 0, 256)]
    other = read(model, ids[:1])
    del cache
    gc.collect()
    graph.step(torch.zeros(1, dtype=torch.int64), other)
    assert len(made) == 3
    model.model.embed_tokens.weight = torch.nn.Parameter(model.model.embed_tokens.weight * 2)
    mine, theirs = read(model, ids[:1]), read(model, ids[:1])
    found = graph.step(torch.ones(1, dtype=torch.int64), mine)
    assert len(made) == 4, "weights lie elsewhere"
    assert rms_ratio(found, model(torch.ones(1, 1, dtype=torch.int64), cache=theirs)[:, -1]) < 2e-5


@pytest.mark.parametrize("case", ["exact-delta", "softmax", "fourier-hybrid", "conv"])
def test_generation_decodes_with_it_and_says_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(case)
    texts = [[5, 6, 7, 8, 9, 10, 11], [7, 8, 9, 10], [9, 10, 11, 12, 13]]
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=3)
    monkeypatch.setattr(next_token, "decoder_of", lambda *a: None)
    wanted = generate_ids(model, texts, params)
    steps = []
    real = GraphDecoder.step
    monkeypatch.setattr(GraphDecoder, "step", lambda *a: steps.append(1) or real(*a))  # type: ignore[func-returns-value]
    monkeypatch.setattr(next_token, "graph_decoder_of", GraphDecoder)
    assert generate_ids(model, texts, params) == wanted and len(steps) == 39


@torch.inference_mode()
def test_sinks_that_are_not_all_there_and_other_types_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "decoder_of", lambda *a: None)
    monkeypatch.setattr(next_token, "graph_decoder_of", GraphDecoder)
    model = make("hybrid-sinks")  # of 7 sinks
    mine, theirs, decode = model.new_cache(1), model.new_cache(1), NextToken(model)
    assert decode.graph is not None
    for step in range(20):
        token = torch.tensor([step])
        assert rms_ratio(decode(token, mine), model(token[None], cache=theirs)[:, -1]) < 2e-5
        assert decode.graph.takes(mine) == (step >= 6)
    model = make("softmax")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = read(model, prompts(1, False)[0])
    assert not GraphDecoder(model).takes(cache)


@torch.inference_mode()
def test_a_step_that_cannot_be_recorded_leaves_the_cache_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "decoder_of", lambda *a: None)
    monkeypatch.setattr(next_token, "graph_decoder_of", GraphDecoder)
    model, (ids, _) = make("hybrid"), prompts(1, False)
    decode, mine, theirs = NextToken(model), read(model, ids), read(model, ids)

    def full(self: StaticStep, probe: object) -> Tensor:
        raise torch.OutOfMemoryError("not even a little")

    monkeypatch.setattr(StaticStep, "_static", full)
    for _ in range(3):
        assert rms_ratio(decode(ids[0, :1], mine), model(ids[:, :1], cache=theirs)[:, -1]) < 2e-5
    assert decode.graph is None and decode.why_not is not None


def test_models_that_only_python_can_follow_are_refused() -> None:
    official = ModelConfig(
        vocab_size=VOCAB, hidden_size=64, num_layers=1, num_heads=4, attention=("dijiang-official",),
        max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(Unsupported, match="authors"):
        GraphDecoder(Decoder(official))
    by_length = official.with_(attention=("softmax",), rope_scaling=dict(rope_type="dynamic", factor=2.0))
    with pytest.raises(Unsupported, match="length of the text"):
        GraphDecoder(Decoder(by_length))
    model = make("softmax")
    handle = model.layers[0].register_forward_hook(lambda *a: None)
    with pytest.raises(Unsupported, match="hook"):
        GraphDecoder(model)
    handle.remove()
    assert graph_decoder_of(model) is None, "there is no GPU"


@torch.inference_mode()
def test_positions_beyond_a_table_are_an_error_and_not_a_fault_of_the_device() -> None:
    model = make("learned")
    graph, cache = GraphDecoder(model), read(model, torch.ones(1, 126, dtype=torch.int64))
    for _ in range(2):
        graph.step(torch.tensor([1]), cache)
    with pytest.raises(ValueError, match="129 positions, but the model has 128"):
        graph.step(torch.tensor([1]), cache)


@pytest.mark.parametrize(("needed", "found"), [(0, 0), (1, 64), (64, 64), (65, 128), (4096, 4096), (4097, 8192)])
def test_room_is_a_power_of_two(needed: int, found: int) -> None:
    assert room(needed) == found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_on_a_gpu_the_recorded_step_is_pytorchs(case: str) -> None:
    model = make(case).to("cuda")
    graph, (ids, mask), found = GraphDecoder(model), prompts(3, True), []
    assert mask is not None
    ids, mask = ids.cuda(), mask.cuda()
    mine, theirs = read(model, ids, mask), read(model, ids, mask)
    tokens = ids[:, -1]
    for _ in range(60):
        logits = graph.step(tokens, mine)
        wanted = model(tokens[:, None], cache=theirs)[:, -1]
        found.append(rms_ratio(logits, wanted))
        tokens = wanted.argmax(-1)
    assert graph.recorded and max(found) < 1e-3  # TensorFloat32 may be on
