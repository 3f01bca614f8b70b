"""Tokens per second and cache bytes of decoding at long positions, without reading a text of that length.

A model reads a short text for real. The keys and values that its softmax layers keep of it are then repeated up to the
position in question; memories of a constant size are left as they are. A step's time and the size of a cache depend on
how much is remembered, not on what, so that a position of 131,072 costs seconds and not the hour that softmax attention
would take to get there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yeoul import runtime
from yeoul.evaluate.speed import Runner, decode_in_turns, decoded, lengthened
from yeoul.model.cache import Cache, KVCache
from yeoul.units import duration, size

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder

POSITIONS = (512, 2048, 8192, 32_768, 131_072)
READ = 256
"""Tokens that are read for real at least; more where a window is wider, so that it is full."""
CHUNK = 1024
"""Tokens that are read at once."""
SHARE_OF_MEMORY = 0.5
"""Share of the free memory that a cache may take: a step copies parts of it."""


@dataclass(frozen=True, kw_only=True)
class DecodeRecord:
    """One model at one position.

    Attributes:
        model: its name.
        position: tokens in its cache.
        tokens_per_second: median over the turns; `low` and `high` are the quartiles.
        cache_bytes: what the cache holds at that position, of one sequence.
    """

    model: str
    position: int
    tokens_per_second: float
    low: float
    high: float
    cache_bytes: int


@dataclass(frozen=True, kw_only=True)
class NotMeasured:
    """A model that was left out at a position, and why."""

    model: str
    position: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class DecodeSpeeds:
    """What `decode_speeds` found out, by position, then in the order of the models.

    Attributes:
        steps, turns: decoding steps of a turn, and turns of each model at each position.
        threads: of one operation on the CPU.
    """

    records: tuple[DecodeRecord, ...]
    left_out: tuple[NotMeasured, ...]
    steps: int
    turns: int
    threads: int

    def at(self, model: str, position: int) -> DecodeRecord | None:
        """What was measured of a model at a position."""
        return next((r for r in self.records if (r.model, r.position) == (model, position)), None)


def decode_speeds(
    models: Mapping[str, Decoder],
    positions: Sequence[int] = POSITIONS,
    *,
    steps: int = 4,
    turns: int = 3,
    budget_seconds: float = 60.0,
    memory: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> DecodeSpeeds:
    """Measures models in turns at one position after another, from the shortest.

    Positions beyond a model's own length measure its speed only, as `yeoul bench` does. Weights are used in the type
    that they have.

    Args:
        models: name -> `Decoder`, each on its device.
        positions: tokens in the caches.
        steps: decoding steps of one turn.
        turns: turns of each model at each position, after one that is not measured.
        budget_seconds: a model is left out at a position where, by its last one, all would take longer. The shortest
            position is always measured.
        memory: bytes that may be taken; None asks the machine.
        seed: of the tokens that are read.
        progress: is told what is being measured.
    """
    begin, spent, records, left_out = time.perf_counter(), dict[str, tuple[int, float, bool]](), [], []
    modes = {name: model.training for name, model in models.items()}
    try:
        for model in models.values():
            model.eval()
        for position in sorted(set(positions)):
            if progress is not None:
                progress(f"decoding at {position:,}")
            runners: list[Runner] = []
            took: dict[str, float] = {}
            left = budget_seconds - (time.perf_counter() - begin)
            for name, model in models.items():
                expected = _expected(spent.get(name), position)
                if spent and expected > left:
                    rest = f"{duration(left)} of {duration(budget_seconds)} is left"
                    reason = f"it would take about {duration(expected)}, and {rest}"
                    left_out.append(NotMeasured(model=name, position=position, reason=reason))
                    continue
                left -= expected
                start = time.perf_counter()
                runner = Runner(name=name, model=lengthened(model, position + decoded(steps, turns)), batch_size=1)
                problem = fill(runner, position, decoded(steps, turns), memory, seed)
                took[name] = time.perf_counter() - start
                if problem:
                    left_out.append(NotMeasured(model=name, position=position, reason=problem))
                else:
                    runners.append(runner)
            with torch.inference_mode():
                decode_in_turns(runners, steps, turns)
            for runner in runners:
                low, median, high = runner.tokens_per_second()
                records.append(DecodeRecord(
                    model=runner.name, position=position, tokens_per_second=median, low=low, high=high,
                    cache_bytes=runner.cache_bytes,
                ))  # fmt: skip
                seconds = took[runner.name] + sum(runner.decodes) * steps * (turns + 1) / turns
                spent[runner.name] = position, seconds, "softmax" in runner.model.config.attention
            runners.clear()
    finally:
        for name, model in models.items():
            model.train(modes[name])
    return DecodeSpeeds(
        records=tuple(records), left_out=tuple(left_out), steps=steps, turns=turns, threads=torch.get_num_threads()
    )


def _expected(last: tuple[int, float, bool] | None, position: int) -> float:
    """Seconds that a model takes at a position, by what it took at a shorter one: its cache may grow or not."""
    if last is None:
        return 0.0
    shorter, seconds, grows = last
    return seconds * (position / shorter if grows else 1.0)


@torch.inference_mode()
def fill(runner: Runner, position: int, room: int, memory: int | None = None, seed: int = 0) -> str | None:
    """Fills the runner's cache up to a position, with room for more; what stands in the way, if anything does.

    Args:
        runner: of one row.
        position: tokens in the cache.
        room: tokens that follow.
        memory: bytes that may be taken; None asks the machine.
        seed: of the tokens that are read.
    """
    model, config = runner.model, runner.model.config
    windows = [config.sliding_window or config.window if kind == "sliding" else config.window
               for kind in config.attention if kind in ("sliding", "hybrid")]  # fmt: skip
    read = min(position, max([READ, *(window + config.sinks + 1 for window in windows)]))
    ids = torch.randint(config.vocab_size, (1, read), generator=torch.Generator().manual_seed(seed))
    ids = ids.to(model.device)
    cache = model.new_cache(1)
    for start in range(0, read, CHUNK):
        logits = model(ids[:, start : start + CHUNK], cache=cache, logits_to_keep=1)
    growing = [layer for layer in cache.layers if isinstance(layer, KVCache)]
    needed = sum(layer.nbytes() for layer in growing) * (position + room) // read
    free = _free(model.device) if memory is None else memory
    if needed > SHARE_OF_MEMORY * free:
        return f"its cache would take {size(needed)}, and {size(free)} of memory is free"
    for layer in growing:
        _repeat(layer, position, room)
    _advance(cache, position)
    runner.cache, runner.token, runner.cache_bytes = cache, logits[:, -1:].argmax(-1), cache.nbytes()
    return None


def _repeat(layer: KVCache, position: int, room: int) -> None:
    """Keys and values again and again up to a position, and room behind it, so that no step has to make some."""
    assert layer.k is not None and layer.v is not None
    layer.k, layer.v = (_repeated(x[:, :, : layer.length], position, room) for x in (layer.k, layer.v))
    layer.length = position


def _repeated(x: Tensor, position: int, room: int) -> Tensor:
    longer = x.new_zeros(*x.shape[:2], position + room, x.shape[3])
    for start in range(0, position, x.shape[2]):
        count = min(x.shape[2], position - start)
        longer[:, :, start : start + count] = x[:, :, :count]
    return longer


def _advance(cache: Cache, position: int) -> None:
    cache.length = position
    cache.next_position = cache.next_position.new_full(cache.next_position.shape, position)


def _free(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else runtime.memory_available()
