"""Requests that arrive at random: by the engine of the server, one after the other, and in static batches.

    python benchmarks/engine.py --preset 3m --out docs/benchmarks/engine.json

Prompts of 128 to 1,024 random ids, 64 new tokens each, greedy, untrained weights: what is measured is time. All ways
get the same requests at the same moments. "one by one" answers them in the order in which they come; "batches" takes
all that have come when it is free (`yeoul.infer.engine.run`); the engine lets them join and leave at any step. The ways
take turns; figures are medians of --repeats. `first` is the time from a request's arrival to its first token, `whole`
to its last (of batches the same, for nothing comes before a batch has ended). The last rows ask the same prompts again
with 16 ids more: what snapshots spare.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yeoul import runtime
from yeoul.infer.engine import run
from yeoul.infer.params import SamplingParams
from yeoul.infer.requests import Event, Request
from yeoul.infer.serving import Engine
from yeoul.model.config import preset
from yeoul.model.decoder import Decoder

KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "hybrid, delta": dict(
        attention="hybrid", window=64, sinks=4, state_update="delta", short_conv=4,
        feature_map=dict(name="fourier", features=64),
    ),
    "dijiang": dict(attention="dijiang"),
}  # fmt: skip
VOCABULARY = 4000


class Ids:
    """As much of a tokenizer as ids without text need."""

    vocab_size, bos_id, eos_id, pad_id, stop_ids = VOCABULARY, None, 1, 0, (1,)

    def token_bytes(self, token: int) -> bytes:
        return b"x"

    def stream(self) -> Ids:
        return self

    def push(self, token: int) -> str:
        return "x"

    def flush(self) -> str:
        return ""


Asked = list[tuple[float, tuple[int, ...]]]
"""When a request comes, in seconds, and its prompt."""
Times = dict[str, list[float]]


def asked(options: Any, seed: int) -> Asked:
    """Requests whose gaps are those of a Poisson process."""
    chance, now, found = random.Random(seed), 0.0, []
    for _ in range(options.requests):
        size = chance.randrange(options.shortest, options.longest + 1)
        found.append((now, tuple(chance.randrange(2, VOCABULARY) for _ in range(size))))
        now += chance.expovariate(options.rate)
    return found


def in_batches(model: Decoder, requests: Asked, params: SamplingParams, most: int) -> Times:
    """So many at a time, of those that have come when the last ones are done."""
    waiting, start, times = list(requests), time.perf_counter(), Times(first=[], whole=[])
    while waiting:
        now = time.perf_counter() - start
        here = [request for request in waiting if request[0] <= now][:most]
        if not here:
            time.sleep(max(0.0, waiting[0][0] - now))
            continue
        waiting = waiting[len(here) :]
        results = run(model, Ids(), [list(ids) for _, ids in here], params)  # type: ignore[arg-type]
        end = time.perf_counter() - start
        for (came, _), result in zip(here, results, strict=True):
            times["whole"].append(end - came)
            times["first"].append(end - came if most > 1 else now - came + result.prefill_seconds)
    times["total"] = [time.perf_counter() - start]
    return times


def by_engine(engine: Engine, requests: Asked, params: SamplingParams) -> Times:
    """Each is submitted when it comes."""
    waiting, start = list(requests), time.perf_counter()
    times, busy, cached = Times(first=[], whole=[], cached=[0.0]), False, []

    def told(came: float) -> Callable[[Event], None]:
        begun: list[float] = []

        def note(event: Event) -> None:
            now = time.perf_counter() - start - came
            if not begun:
                begun.append(now)
                times["first"].append(now)
            if event.finish_reason is not None:
                assert event.usage is not None and event.finish_reason == "length", event
                times["whole"].append(now)
                cached.append(event.usage.cached_tokens / event.usage.prompt_tokens)

        return note

    while waiting or busy:
        now = time.perf_counter() - start
        while waiting and waiting[0][0] <= now:
            came, ids = waiting.pop(0)
            engine.submit(Request(ids=ids, params=params), told(came))
        busy = engine.step()
        if not busy and waiting:
            time.sleep(max(0.0, waiting[0][0] - (time.perf_counter() - start)))
    times["total"] = [time.perf_counter() - start]
    times["cached"] = [statistics.mean(cached)]
    return times


def measured(kind: str, options: Any) -> list[dict[str, Any]]:
    """All ways of one kind of model."""
    torch.manual_seed(0)
    settings = KINDS[kind]
    model = Decoder(preset(options.preset, vocab_size=VOCABULARY, max_position_embeddings=4096, **settings)).eval()
    params = SamplingParams(max_tokens=options.tokens, temperature=0, ignore_eos=True)
    found: dict[str, list[Times]] = {}
    for repeat in range(options.repeats):
        requests = asked(options, repeat)
        again = [(came, (*ids, *range(2, 18))) for came, ids in requests]
        engine = Engine(model, Ids(), max_rows=options.rows)  # type: ignore[arg-type]
        ways: dict[str, Callable[[], Times]] = {
            "one by one": lambda: in_batches(model, requests, params, 1),  # noqa: B023
            "batches": lambda: in_batches(model, requests, params, options.rows),  # noqa: B023
            "engine": lambda: by_engine(engine, requests, params),  # noqa: B023
            "engine, asked again": lambda: by_engine(engine, again, params),  # noqa: B023
        }
        for way, answer in ways.items():
            found.setdefault(way, []).append(answer())
    rows = []
    for way, times in found.items():
        middle = lambda name, of: statistics.median(of(time[name]) for time in times)  # noqa: B023, E731
        tail = lambda values: sorted(values)[int(0.95 * (len(values) - 1))]  # noqa: E731
        rows.append({
            "model": kind, "way": way, "seconds": middle("total", max),
            "tokens_per_second": options.requests * options.tokens / middle("total", max),
            "first": middle("first", statistics.median), "first_95": middle("first", tail),
            "whole": middle("whole", statistics.median), "whole_95": middle("whole", tail),
            "cached": statistics.median(time.get("cached", [0.0])[0] for time in times),
        })  # fmt: skip
        last = rows[-1]
        print(
            f"{kind:15}{way:21}{last['tokens_per_second']:>7.0f} tokens/s{last['seconds']:>7.1f} s   first "
            f"{last['first']:.2f} s ({last['first_95']:.2f})   whole {last['whole']:.2f} s ({last['whole_95']:.2f})"
            f"   {last['cached']:.0%} of the prompts known", flush=True,
        )  # fmt: skip
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="3m")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rate", type=float, default=32.0, help="requests a second")
    parser.add_argument("--shortest", type=int, default=128, help="prompt")
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    runtime.set_threads(options.threads)
    print(f"{runtime.cpu_name()}, {torch.get_num_threads()} threads, {options.preset}")
    rows = [row for kind in options.kinds for row in measured(kind, options)]
    if options.out is not None:
        record = {
            "torch": torch.__version__, "cpu": runtime.cpu_name(), "threads": torch.get_num_threads(),
            "settings": {name: value for name, value in vars(options).items() if name != "out"}, "rows": rows,
        }  # fmt: skip
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
