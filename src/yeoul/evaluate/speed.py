"""How fast models read and write at growing contexts, and what they remember, measured in turns.

Every figure comes from the real work: the cache is filled by prefilling `context` random tokens through the
model (in chunks, the same for every model), and each decoded token is a whole forward step, vocabulary
included. Speeds do not depend on what the weights or tokens say. Models take turns within one run, so that
another job on the machine hits all of them alike; the median is given with its quartiles.
"""

from __future__ import annotations

import copy
import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yeoul.errors import UserError
from yeoul.infer.next_token import NextToken
from yeoul.units import size

if TYPE_CHECKING:
    from yeoul.model.cache import Cache
    from yeoul.model.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class SpeedRecord:
    """One model at one context.

    Attributes:
        model: its name in the comparison.
        context: tokens in the cache when decoding starts.
        prefill_tokens_per_second: median over the prefills.
        decode_tokens_per_second: median over the turns; `decode_low` and `decode_high` are the quartiles.
        cache_bytes: what the cache holds after the prefill, all rows of the batch.
        peak_bytes: how far memory rose above what was in use before the prefill, at its highest (resident set
            on the CPU, allocations on a GPU); None where the system cannot tell.
        turns, steps: how many turns were measured, and decoding steps in each.
    """

    model: str
    context: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    decode_low: float
    decode_high: float
    cache_bytes: int
    peak_bytes: int | None
    turns: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(kw_only=True)
class Runner:
    """One model under measurement at one context.

    Attributes:
        name, model, batch_size: what is measured.
        native: whether tokens may be decoded by the native library or a CUDA graph (`yeoul.infer.next_token`), as they
            are in use.
        cache: filled by `prefill`, or by the caller; `decode` appends to it.
        token: (B, 1) int64, what `decode` begins with.
        prefills, decodes: seconds of each prefill, and of a token in each turn.
        peaks: bytes by which memory rose in each prefill, where the system can tell.
        cache_bytes: what the cache held after the prefill.
    """

    name: str
    model: Decoder
    batch_size: int
    native: bool = True
    cache: Cache | None = None
    token: Tensor | None = None
    prefills: list[float] = field(default_factory=list)
    decodes: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        self._next = NextToken(self.model, native=self.native)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prefill(self, ids: Tensor, chunk: int) -> None:
        """Fill a fresh cache with `ids` (B, T)."""
        self.cache = None
        ids = ids.to(self.device)
        base = _reset_peak(self.device)
        _synchronize(self.device)
        start = time.perf_counter()
        self.cache = self.model.new_cache(self.batch_size)
        for first in range(0, ids.shape[1], chunk):
            logits = self.model(ids[:, first : first + chunk], cache=self.cache, logits_to_keep=1)
        _synchronize(self.device)
        self.prefills.append(time.perf_counter() - start)
        self.token = logits[:, -1:].argmax(-1)
        self.cache_bytes = self.cache.nbytes()
        if base is not None:
            self.peaks.append(max(0, _peak(self.device) - base))

    def decode(self, steps: int) -> float:
        """Seconds a token takes, mean over `steps` greedy steps after one that is not measured.

        That one brings the weights back into the processor's caches, which the other models' turns have
        filled.
        """
        start = 0.0
        for step in range(steps + 1):
            if step == 1:
                _synchronize(self.device)
                start = time.perf_counter()
            assert self.token is not None and self.cache is not None  # the prefill has left them
            self.token = self._next(self.token[:, 0], self.cache).argmax(-1, keepdim=True)
        _synchronize(self.device)
        return (time.perf_counter() - start) / steps

    def tokens_per_second(self) -> tuple[float, float, float]:
        """Of decoding: lower quartile, median and upper quartile over the turns."""
        speeds = [self.batch_size / seconds for seconds in self.decodes]
        low, _, high = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
        return low, statistics.median(speeds), high

    def record(self, context: int, steps: int) -> SpeedRecord:
        """What was measured, as plain values."""
        low, median, high = self.tokens_per_second()
        return SpeedRecord(
            model=self.name,
            context=context,
            prefill_tokens_per_second=self.batch_size * context / statistics.median(self.prefills),
            decode_tokens_per_second=median,
            decode_low=low,
            decode_high=high,
            cache_bytes=self.cache_bytes,
            peak_bytes=max(self.peaks) if self.peaks else None,
            turns=len(self.decodes),
            steps=steps,
        )


def compare(
    models: Mapping[str, Decoder],
    contexts: Sequence[int],
    *,
    steps: int = 8,
    turns: int = 7,
    prefills: int = 1,
    batch_size: int = 1,
    chunk: int = 1024,
    seed: int = 0,
    budget_seconds: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[SpeedRecord]:
    """Measure several models in turns; records come context by context, models in the given order.

    Args:
        models: name -> `Decoder`, each on its device and in its type, as in use: under autocast the native library
            would not decode. Their contexts must reach `context + decoded(steps, turns)`.
        contexts: tokens in the cache, each at least 1; measured from short to long.
        steps: decoding steps of one turn.
        turns: turns of each model at each context.
        prefills: how often the prefill is repeated, in turns too.
        chunk: tokens given to the model at once in the prefill.
        budget_seconds: stop before a context that would, by the growth so far, end later than this.
        progress: is told what is being measured.

    Raises:
        UserError: no model, or a context that a model cannot reach.
    """
    contexts = sorted(set(contexts))
    _check(models, contexts, steps, turns)
    begin, last = time.perf_counter(), 0.0
    records: list[SpeedRecord] = []
    modes = {name: model.training for name, model in models.items()}
    try:
        for model in models.values():
            model.eval()
        for index, context in enumerate(contexts):
            if budget_seconds is not None and index:
                growth = (context / contexts[index - 1]) ** 2  # the most that softmax attention takes
                if time.perf_counter() - begin + last * growth > budget_seconds:
                    break
            if progress is not None:
                progress(f"{context:,} tokens: {', '.join(models)}")
            start = time.perf_counter()
            runners = [Runner(name=n, model=m, batch_size=batch_size) for n, m in models.items()]
            _measure(runners, context, steps, turns, prefills, chunk, seed)
            records += [runner.record(context, steps) for runner in runners]
            last = time.perf_counter() - start
    finally:
        for name, model in models.items():
            model.train(modes[name])
    return records


def _check(models: Mapping[str, Decoder], contexts: Sequence[int], steps: int, turns: int) -> None:
    if not models or not contexts:
        raise UserError("there is nothing to compare", fix="give at least one model and one context")
    if contexts[0] < 1 or steps < 1 or turns < 1:
        raise UserError("contexts, steps and turns must be at least 1")
    needed = contexts[-1] + decoded(steps, turns)
    for name, model in models.items():
        reach = model.config.bounded_context
        if reach is not None and reach < needed:
            raise UserError(
                f"model {name} has {reach:,} positions, but "
                f"{contexts[-1]:,} tokens and the decoding steps need {needed:,}",
                fix="choose shorter contexts",
            )


def decoded(steps: int, turns: int) -> int:
    """Tokens that `compare` decodes with each model at each context, those not measured included."""
    return (turns + 1) * (steps + 1)


def _measure(
    runners: list[Runner],
    context: int,
    steps: int,
    turns: int,
    prefills: int,
    chunk: int,
    seed: int,
) -> None:
    """Fill the runners' lists, turn by turn; the order of the models flips from turn to turn."""
    generator = torch.Generator().manual_seed(seed)
    vocab = min(runner.model.config.vocab_size for runner in runners)
    ids = torch.randint(0, vocab, (runners[0].batch_size, context), generator=generator)
    with torch.inference_mode():
        for runner in runners:  # first calls allocate, compile and choose kernels: not measured
            runner.prefill(ids[:, : min(context, chunk)], chunk)
            runner.decode(2)
            runner.prefills.clear()
            runner.peaks.clear()
        for turn in range(prefills):
            for runner in runners[:: 1 if turn % 2 == 0 else -1]:
                runner.prefill(ids, chunk)
        decode_in_turns(runners, steps, turns)


def decode_in_turns(runners: Sequence[Runner], steps: int, turns: int) -> None:
    """Fill `Runner.decodes` after a turn that is not measured; the order of the models flips from turn to turn."""
    for runner in runners:
        runner.decode(steps)
    for turn in range(turns):
        for runner in runners[:: 1 if turn % 2 == 0 else -1]:
            runner.decodes.append(runner.decode(steps))


def lengthened(model: Decoder, positions: int) -> Decoder:
    """The same model with room for at least `positions` positions; weights are shared, not copied.

    Only for measuring speed: what it says beyond the length that it was trained on means nothing. A learned table of
    positions is replaced by a random one of the right length.
    """
    config = model.config
    if config.bounded_context is None or config.bounded_context >= positions:
        return model
    longer = copy.copy(model)
    longer.config = config.with_(max_position_embeddings=positions)
    if config.positions == "learned":
        longer._modules = dict(model._modules)
        longer.model = copy.copy(model.model)
        longer.model._modules = dict(model.model._modules)
        table = model.model.embed_positions.weight
        longer.model.embed_positions = torch.nn.Embedding(
            positions, table.shape[1], device=table.device, dtype=table.dtype
        )
    return longer


def table(records: Sequence[SpeedRecord], reference: str | None = None) -> str:
    """The records as plain text; with a reference model, ratios against it at the same context."""
    base = {r.context: r for r in records if r.model == reference}
    width = max([5, *(len(r.model) for r in records)])
    head = f"{'model':<{width}}  {'context':>8}  {'prefill tokens/s':>16}  "
    head += f"{'decode tokens/s (quartiles)':>27}  {'cache':>10}"
    lines = [head + (f"  {'speed':>7}  {'cache':>8}" if base else "")]
    for r in records:
        spread = f"{r.decode_tokens_per_second:,.1f} ({r.decode_low:,.1f}-{r.decode_high:,.1f})"
        line = f"{r.model:<{width}}  {r.context:>8,}  {r.prefill_tokens_per_second:>16,.0f}  {spread:>27}"
        line += f"  {size(r.cache_bytes):>10}"
        other = base.get(r.context)
        if base and other is not None:
            speed = r.decode_tokens_per_second / other.decode_tokens_per_second
            line += f"  {speed:>6.2f}x  {'1/' + format(other.cache_bytes / max(r.cache_bytes, 1), '.1f'):>8}"
        lines.append(line)
    return "\n".join(lines)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> int | None:
    """Forget the highest memory use so far; returns bytes in use now, or None where that cannot be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        # What was freed but kept for later would hide growth.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the current use
        return _status_bytes("VmRSS")
    except (OSError, AttributeError, TypeError):  # not Linux with glibc
        return None


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in /proc/self/status")
