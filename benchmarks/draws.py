"""What drawing a token costs: ours, and transformers' processors with torch.multinomial, by vocabulary and settings.

    python benchmarks/draws.py --out docs/benchmarks/draws.json

One row of logits on one thread: "flat" ones are normal with a standard deviation of 3.75 (top-p 0.95 keeps thousands of
131,072 tokens), "peaked" ones have a few hundred likely tokens above a bed of noise, as a language model gives them.
Both are timed in turns; medians and quartiles of --repeats, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from transformers.generation import logits_process

from yeoul import runtime
from yeoul.infer.params import SamplingParams
from yeoul.infer.sample import row_generators, sample

SETTINGS = {
    "top-p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "top-k 50": SamplingParams(temperature=0.8, top_k=50, top_p=1.0),
    "top-k 50, top-p 0.95": SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
    "min-p 0.05": SamplingParams(temperature=0.8, top_p=1.0, min_p=0.05),
    "all": SamplingParams(temperature=0.8, top_p=1.0),
}


def logits_of(kind: str, vocabulary: int) -> torch.Tensor:
    """(1, V) fp32."""
    dice = torch.Generator().manual_seed(0)
    noise = torch.randn(1, vocabulary, generator=dice)
    if kind == "flat":
        return 3.75 * noise
    peaked = 1.5 * noise
    peaked[0, :300] += torch.linspace(14, 6, 300)
    return peaked[:, torch.randperm(vocabulary, generator=dice)]


def theirs(params: SamplingParams) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same by transformers."""
    steps = logits_process.LogitsProcessorList([logits_process.TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        steps.append(logits_process.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(logits_process.TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(logits_process.MinPLogitsWarper(params.min_p))
    ids: Any = torch.zeros(1, 1, dtype=torch.int64)
    return lambda logits: torch.multinomial(steps(ids, cast(Any, logits)).softmax(-1), 1)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=(8_000, 131_072, 262_144))
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generators, rows = row_generators(0, [0]), []
    print(f"{runtime.cpu_name()}, 1 thread; microseconds a token, median (quartiles)")
    for vocabulary in arguments.vocabularies:
        for kind in ("peaked", "flat"):
            logits = logits_of(kind, vocabulary)
            for name, params in SETTINGS.items():
                other = theirs(params)
                ways = {"ours": lambda params=params, logits=logits: sample(logits, params, generators),
                        "transformers": lambda other=other, logits=logits: other(logits)}  # fmt: skip
                times: dict[str, list[float]] = {way: [] for way in ways}
                for number in range(arguments.repeats + 5):
                    for way, draw in ways.items():
                        start = time.perf_counter()
                        draw()
                        if number >= 5:
                            times[way].append(1e6 * (time.perf_counter() - start))
                found = {way: statistics.quantiles(values, n=4) for way, values in times.items()}
                rows.append({"vocabulary": vocabulary, "logits": kind, "settings": name, **found})
                shown = "".join(f"{middle:>14,.0f} ({low:,.0f}–{high:,.0f})" for low, middle, high in found.values())
                print(f"{vocabulary:>8,} {kind:8}{name:22}{shown}", flush=True)
    if arguments.out is not None:
        record = {"torch": torch.__version__, "cpu": runtime.cpu_name(), "threads": 1, "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
