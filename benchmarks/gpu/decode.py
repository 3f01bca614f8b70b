"""A decoding step at any position: one CUDA graph for all contexts with constant states, a bucket each with softmax.

The product's own path is timed (`yeoul.infer.cuda_graph`), the choice of the likeliest token included, without looking
at it. Memories are filled, not read: a short text is read for real, the keys and values of softmax attention behind it
are noise, positions are set. Beside it stand

- `eager`: PyTorch's step, call by call;
- `transformers graph`: its Llama of the same shape with a static cache, recorded as a CUDA graph here;
- `transformers compiled`: the same under torch.compile with mode "reduce-overhead", as its documentation advises.

Bytes of a step are those of the weights that it reads, of the keys and values so far, and of states read and written.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.setting import Setting, spread
from torch import Tensor, nn

from yeoul.adapt.linearize import Conversion
from yeoul.infer.cuda_graph import GraphDecoder
from yeoul.infer.static_step import parts
from yeoul.model.cache import Cache, KVCache
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.parameters import fp32_parameters
from yeoul.units import size

CONTEXTS = (2048, 8192, 32_768, 131_072)
BATCHES = (1, 8, 64)
STEPS, TURNS = 16, 12
"""Steps of a turn and turns; positions grow by so many within one measurement."""


def kinds(config: ModelConfig) -> dict[str, ModelConfig]:
    """A softmax model and what it may be converted to, in the order of their importance."""
    fourier = FeatureMapConfig(name="fourier", separate=True)
    delta = dict(attention="dijiang", feature_map=fourier, state_update="delta", short_conv=4, exact=(0,))
    plain = dict(attention="dijiang", feature_map=FeatureMapConfig(), exact=(0,))
    conversions: dict[str, dict[str, Any]] = {"hybrid": {}, "dijiang": plain, "delta": delta}
    return {"softmax": config} | {name: Conversion(**given).apply(config) for name, given in conversions.items()}


def build(bench: Setting, config: ModelConfig) -> Decoder:
    """A model with initial weights, made on the device in the types that a folder of it would have there."""
    model = skeleton(config)
    kept = fp32_parameters(model)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if name not in kept:
                own = nn.Parameter(parameter.detach().to(bench.dtype), requires_grad=parameter.requires_grad)
                setattr(module, name.rpartition(".")[2], own)
    model.to_empty(device=bench.device)
    torch.manual_seed(0)
    for module in reversed(list(model.modules())):  # the model itself comes last
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model.eval()


def run(bench: Setting, book: Report) -> None:
    """Batch 1 of both sizes first, then larger batches, then the neighbours."""
    contexts, batches = ((64, 128), (1, 2)) if bench.tiny else (CONTEXTS, BATCHES)
    names = ("160m",) if bench.tiny else ("160m", "1b")
    shapes = {name: bench.shape(name, max_position_embeddings=max(contexts)) for name in names}
    for batch in batches[:2]:
        for name, shape in shapes.items():
            for kind, config in kinds(shape).items():
                ours(bench, book, "decode", name, kind, config, (batch,), contexts)
    for name, shape in shapes.items():
        neighbours(bench, book, name, shape, batches[:1], contexts, compiled=False)
    eager(bench, book, "160m", shapes["160m"], contexts[:1])
    neighbours(bench, book, "160m", shapes["160m"], batches[:1], contexts[:1], compiled=True)
    for name, shape in shapes.items():
        for kind, config in kinds(shape).items():
            ours(bench, book, "decode", name, kind, config, batches[2:], contexts)
    neighbours(bench, book, "160m", shapes["160m"], batches[1:], contexts, compiled=False)
    for name, shape in shapes.items():
        neighbours(bench, book, name, shape, batches[:2], contexts[1:3], compiled=True)
    finish(book, "decode")


def finish(book: Report, stage: str) -> None:
    """The stage's table."""
    book.finish(
        stage,
        {
            "model": "model", "method": "by", "kind": "attention", "batch": "batch", "context": "context",
            "seconds": "a step", "tokens_per_second": "tokens/s", "gbytes": "GB/s", "share_of_copy": "of copy",
            "graph": "graph", "cache_bytes": "cache bytes",
        },
    )  # fmt: skip


def ours(
    bench: Setting, book: Report, stage: str, name: str, kind: str, config: ModelConfig, batches: tuple[int, ...],
    contexts: tuple[int, ...],
) -> None:  # fmt: skip
    """Rows of one model; those with constant states replay the graph of the first context at all."""
    if time.monotonic() > bench.deadline:
        for batch in batches:
            book.measure(stage, _what(name, "graph", kind, batch, contexts), bench.deadline, dict)
        return
    made: list[Decoder] = []
    for batch in batches:
        decoder: list[GraphDecoder] = []
        for context in contexts:
            what = _what(name, "graph", kind, batch, context)
            book.measure(
                stage, what, bench.deadline,
                lambda batch=batch, context=context, decoder=decoder: _step(
                    bench, made, decoder, config, batch, context, contexts[-1]
                ),
            )  # fmt: skip
        decoder.clear()
    made.clear()
    gc.collect()


def _what(name: str, method: str, kind: str, batch: int, context: Any) -> Row:
    return {"model": name, "method": method, "kind": kind, "batch": batch, "context": context}


@torch.inference_mode()
def _step(
    bench: Setting, made: list[Decoder], decoders: list[GraphDecoder], config: ModelConfig, batch: int, context: int,
    longest: int,
) -> Row:  # fmt: skip
    if not made:
        made.append(build(bench, config))
    model = made[0]
    grows = "softmax" in config.attention
    needed = _kv_bytes(config, bench.dtype) * batch * context
    if grows:
        decoders.clear()
    if needed > 0.9 * bench.free():
        return {"skipped": f"keys and values of {size(needed)}, {size(bench.free())} are free"}
    begin = time.perf_counter()
    if not decoders:
        decoder = GraphDecoder(model)
        decoder.prepare(batch, context if grows else 0, longest)
        decoders.append(decoder)
    (decoder,) = decoders
    cache = _read(model, batch, context)
    tokens = torch.zeros(batch, dtype=torch.int64, device=bench.device)
    decoder.step(tokens, cache)
    steps, turns = (2, 3) if bench.tiny else (STEPS, TURNS)
    _go_to(cache, context - (turns + 1) * steps - 1)
    decoder.step(tokens, cache)
    ready = time.perf_counter() - begin
    graph = id(decoder._step)

    def step() -> None:
        tokens.copy_(decoder.step(tokens, cache).argmax(-1))

    times = _turns(bench, step, steps, turns)
    assert graph == id(decoder._step), "a second step was recorded within a measurement"
    row = times | {"tokens_per_second": batch / times["seconds"], "cache_bytes": cache.nbytes(), "ready_seconds": ready}
    row["graph"] = f"{decoder.columns:,} keys" if grows else "one for all"
    if not decoder.recorded:
        row["graph"] += ", not recorded"
    written = sum(part.nbytes() for part in parts(cache.layers) if not isinstance(part, KVCache))
    return row | bench.shares(times["seconds"], moved=_weight_bytes(model) + cache.nbytes() + written)


def _turns(bench: Setting, step: Callable[[], None], steps: int, turns: int) -> Row:
    """Seconds of a step over turns of some, the first of which does not count; the tail of a turn is waited for."""

    def turn() -> float:
        return bench.once(lambda: [step() for _ in range(steps)], None) / steps

    turn()
    return spread([turn() for _ in range(turns)]).row() | {"steps": steps}


def _read(model: Decoder, batch: int, context: int) -> Cache:
    """A cache that has read a short text, longer than any window."""
    config = model.config
    window = max(config.window, config.sliding_window or 0) + config.sinks + max(config.exact)
    length = min(context // 2, window + 32)
    cache = model.new_cache(batch)
    ids = torch.randint(config.vocab_size, (batch, length), device=model.device)
    model.hidden(ids, cache=cache)
    return cache


def _go_to(cache: Cache, position: int) -> None:
    """Sets a cache to a position; what was not read between is noise in the room for keys that there is."""
    for part in parts(cache.layers):
        if isinstance(part, KVCache):
            assert part.k is not None and part.v is not None
            for x in (part.k, part.v):
                x[:, :, part.length :].normal_()
            part.length = position
    cache.length = position
    cache.next_position = torch.full_like(cache.next_position, position)


def _kv_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Of a token, in the layers whose caches grow."""
    _, G, D = config.heads
    return config.attention.count("softmax") * 2 * G * D * dtype.itemsize


def _weight_bytes(model: Decoder) -> int:
    """Of the weights that a step reads: an embedding of its own is looked up by row."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    table = model.model.embed_tokens.weight
    return total if model.config.tie_embeddings else total - table.numel() * table.element_size()


def eager(bench: Setting, book: Report, name: str, shape: ModelConfig, contexts: tuple[int, ...]) -> None:
    """PyTorch's step of each kind, at batch 1."""

    @torch.inference_mode()
    def measured(config: ModelConfig, context: int) -> Row:
        model = build(bench, config)
        cache = _read(model, 1, context)
        tokens = torch.zeros(1, 1, dtype=torch.int64, device=bench.device)

        def step() -> None:
            tokens.copy_(model(tokens, cache=cache, logits_to_keep=1)[:, -1].argmax(-1, keepdim=True))

        times = _turns(bench, step, *((2, 3) if bench.tiny else (4, 6)))
        return times | {"tokens_per_second": 1 / times["seconds"], "cache_bytes": cache.nbytes()}

    for kind, config in kinds(shape).items():
        for context in contexts:
            what = _what(name, "eager", kind, 1, context)
            book.measure("decode", what, bench.deadline, lambda c=config, n=context: measured(c, n))


def neighbours(
    bench: Setting, book: Report, name: str, shape: ModelConfig, batches: tuple[int, ...], contexts: tuple[int, ...],
    *, compiled: bool,
) -> None:  # fmt: skip
    """transformers' Llama of the same shape, with a static cache."""
    method = "transformers compiled" if compiled else "transformers graph"
    made: list[Any] = []
    for batch in batches:
        for context in contexts:
            book.measure(
                "decode", _what(name, method, "softmax", batch, context), bench.deadline,
                lambda batch=batch, context=context: _llama_step(bench, made, shape, batch, context, compiled),
            )  # fmt: skip
    made.clear()
    gc.collect()


def llama(bench: Setting, shape: ModelConfig) -> Any:
    """transformers' Llama of a shape, with random weights.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    H, G, D = shape.heads
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers, num_attention_heads=H, num_key_value_heads=G, head_dim=D,
        max_position_embeddings=shape.max_position_embeddings, tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(bench.device):
        return LlamaForCausalLM(config).to(bench.dtype).eval()


@torch.no_grad()
def _llama_step(bench: Setting, made: list[Any], shape: ModelConfig, batch: int, context: int, compiled: bool) -> Row:
    from transformers import StaticCache

    if not made:
        made.append(llama(bench, shape))
    model = made[0]
    needed = _kv_bytes(shape, bench.dtype) * batch * context
    if needed > 0.9 * bench.free():
        return {"skipped": f"keys and values of {size(needed)}, {size(bench.free())} are free"}
    begin = time.perf_counter()
    steps, turns = (2, 3) if bench.tiny else (STEPS, TURNS)
    cache = StaticCache(config=model.config, max_cache_len=context)
    short = torch.randint(shape.vocab_size, (batch, 16), device=bench.device)
    places = torch.arange(16, device=bench.device)[None].expand(batch, -1)
    model(input_ids=short, position_ids=places, past_key_values=cache, use_cache=True)
    position = context - (turns + 6) * steps - 1
    for layer in cache.layers:
        layer.keys[:, :, 16:].normal_()
        layer.values[:, :, 16:].normal_()
        layer.cumulative_length.fill_(position)
    tokens = torch.zeros(batch, 1, dtype=torch.int64, device=bench.device)
    positions = torch.full((batch, 1), position, dtype=torch.int64, device=bench.device)

    def forward(ids: Tensor, at: Tensor) -> Tensor:
        logits = model(input_ids=ids, position_ids=at, past_key_values=cache, use_cache=True).logits
        chosen: Tensor = logits[:, -1].argmax(-1, keepdim=True)
        return chosen

    if compiled:
        fast = torch.compile(forward, mode="reduce-overhead" if bench.on_gpu else "default", fullgraph=True)

        def step() -> None:
            tokens.copy_(fast(tokens, positions))
            positions.add_(1)

    else:

        def whole() -> None:
            tokens.copy_(forward(tokens, positions))
            positions.add_(1)

        step = _recorded(whole) if bench.on_gpu else whole
    step()
    if compiled:
        for _ in range(4):  # compiles, records
            step()
    ready = time.perf_counter() - begin
    times = _turns(bench, step, steps, turns)
    moved = sum(p.numel() * p.element_size() for p in model.parameters()) + needed
    row = times | {"tokens_per_second": batch / times["seconds"], "cache_bytes": needed, "ready_seconds": ready}
    return row | {"graph": f"{context:,} keys"} | bench.shares(times["seconds"], moved=moved)


def _recorded(call: Callable[[], None]) -> Callable[[], None]:
    """A call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], None] = graph.replay
    return replay
