"""Reading prompts, and answering many at once, by Yeoul and by llama.cpp with the same shape and bits, in turns.

    python benchmarks/prompts_llama_cpp.py --python OTHER/bin/python --out docs/benchmarks/prompts.json

`--python` is an interpreter with xllamacpp, which brings llama.cpp, outside of Yeoul's environment; without it only
ours are measured. Random weights and tokens: speed does not depend on what they say. "read": one prompt of so many
tokens, in chunks as `generate` reads it, up to the logits of its last token; llama.cpp's is its own figure for the same
number of tokens. "answer": prompts of different lengths with so many new tokens each, greedy, all at once, from the
first prompt token to the last new one. Medians (quartiles) of turns, and ratios of the medians. Prints tables and
writes JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from decode_llama_cpp import GGUF, KINDS, REST, TYPES, model_of, words
from llama_cpp_process import LlamaCpp

from yeoul import runtime
from yeoul.infer.engine import generate_ids
from yeoul.infer.generation import PREFILL_CHUNK
from yeoul.infer.params import SamplingParams
from yeoul.model.config import PRESETS
from yeoul.model.decoder import Decoder
from yeoul.model.gguf_file import write_gguf

LLAMA = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import xllamacpp
path, threads, rows, length = sys.argv[1], *map(int, sys.argv[2:5])
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.warmup, p.verbosity = path, rows, rows * length, False, -1
p.kv_unified = False
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(p)
print("ready", flush=True)
for line in sys.stdin:
    prompts, new = json.loads(line)
    ask = lambda prompt: server.handle_completions(
        dict(prompt=prompt, n_predict=new, temperature=0, ignore_eos=True, cache_prompt=False)
    )
    start = time.perf_counter()
    with ThreadPoolExecutor(rows) as pool:
        found = [answer["timings"] for answer in pool.map(ask, prompts)]
    print(json.dumps([time.perf_counter() - start, found]), flush=True)
"""


class Answering(LlamaCpp):
    """llama.cpp with room for so many prompts of so many tokens."""

    def __init__(self, python: Path, model: Path, threads: int, rows: int, length: int) -> None:
        super().__init__(python, LLAMA, model, threads, rows, length)

    def read(self, prompt: list[int]) -> float:
        """Seconds to read one prompt, by its own account."""
        _, (timings,) = self.ask([[prompt], 1])
        return float(timings["prompt_ms"]) / 1000

    def answer(self, prompts: list[list[int]], new: int) -> float:
        """Seconds to answer all prompts together."""
        seconds, _ = self.ask([prompts, new])
        return float(seconds)


@torch.inference_mode()
def read(model: Decoder, prompt: list[int]) -> float:
    """Seconds to read one prompt."""
    ids, cache = torch.tensor([prompt]), model.new_cache(1)
    start = time.perf_counter()
    for first in range(0, len(prompt), PREFILL_CHUNK):
        model(ids[:, first : first + PREFILL_CHUNK], cache=cache, logits_to_keep=1)
    return time.perf_counter() - start


def answer(model: Decoder, prompts: list[list[int]], new: int) -> float:
    """Seconds to answer all prompts together."""
    start = time.perf_counter()
    found = generate_ids(model, prompts, SamplingParams(max_tokens=new, temperature=0))
    assert all(len(ids) == new for ids in found)
    return time.perf_counter() - start


def in_turns(runs: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of each in turns, the first of which is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            time.sleep(REST)
            seconds = runs[name]()
            if turn:
                times[name].append(seconds)
    return times


def report(times: dict[str, list[float]], tokens: int, what: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of one comparison, printed."""
    base = statistics.median(times["llama.cpp"]) if "llama.cpp" in times else None
    records = []
    for name, seconds in times.items():
        low, median, high = statistics.quantiles([tokens / s for s in seconds], n=4, method="inclusive")
        ratio = None if base is None else base / statistics.median(seconds)
        records.append(what | dict(name=name, tokens_per_second=median, low=low, high=high, ratio_to_llama_cpp=ratio))
        label = "  ".join(str(value) for value in what.values())
        beside = "" if ratio is None else f"  {ratio:6.2f} x llama.cpp"
        print(f"{label:<28} {name:<16} {median:>10,.0f} ({low:,.0f}-{high:,.0f}){beside}", flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["10m"], choices=sorted(PRESETS))
    parser.add_argument("--bits", nargs="+", default=["f32", "bf16"], choices=sorted(TYPES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--read", type=int, nargs="*", default=[512, 4096, 16384], help="tokens of one prompt")
    parser.add_argument("--answer", type=int, nargs="*", default=[8, 32], help="prompts at once")
    parser.add_argument("--lengths", type=int, nargs=2, default=[32, 512], help="shortest and longest of these")
    parser.add_argument("--new", type=int, default=64, help="new tokens of each")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds that one reading may take")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--python", type=Path, default=None, help="interpreter with xllamacpp")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    a = parser.parse_args()
    threads = runtime.set_threads(a.threads)
    print(f"{runtime.cpu_name()}, {threads} thread(s), torch {torch.__version__}; tokens per second", flush=True)
    records: list[dict[str, Any]] = []
    for shape in a.shapes:
        for bits in a.bits:
            for record in measured(a, shape, bits, threads):
                records.append(record)
                if a.out is not None:
                    values = {
                        "command": " ".join(["python", *sys.argv]), "cpu": runtime.cpu_name(), "threads": threads,
                        "torch": torch.__version__, "records": records,
                    }  # fmt: skip
                    a.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def measured(a: argparse.Namespace, shape: str, bits: str, threads: int) -> Iterator[dict[str, Any]]:
    """One shape and type, record by record."""
    length = max([*a.read, a.lengths[1] + a.new]) + 64
    models = {kind: model_of(shape, kind, bits, a.vocab_size, length) for kind in a.kinds}
    chance = random.Random(0)
    draw = lambda count: [chance.randrange(300, a.vocab_size) for _ in range(count)]  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        if a.python is not None and bits in GGUF:
            dense = model_of(shape, "softmax", "f32", a.vocab_size, length)
            write_gguf(dense, file, dtype=GGUF[bits], name=shape, vocabulary=words(a.vocab_size))
            del dense
        slow: set[str] = set()
        llama = Answering(a.python, file, threads, 1, length) if file.exists() and a.read else None
        for tokens in a.read:
            prompt = draw(tokens)
            runs: dict[str, Callable[[], float]] = {k: partial(read, m, prompt) for k, m in models.items()}
            if llama is not None:
                runs["llama.cpp"] = partial(llama.read, prompt)
            times = in_turns({name: run for name, run in runs.items() if name not in slow}, a.turns)
            yield from report(times, tokens, dict(shape=shape, bits=bits, what="read", tokens=tokens))
            slow |= {name for name, seconds in times.items() if 8 * statistics.median(seconds) > a.patience}
        if llama is not None:
            llama.close()
        for rows in a.answer:
            prompts = [draw(chance.randint(*a.lengths)) for _ in range(rows)]
            runs = {k: partial(answer, m, prompts, a.new) for k, m in models.items()}
            llama = Answering(a.python, file, threads, rows, a.lengths[1] + a.new + 8) if file.exists() else None
            if llama is not None:
                runs["llama.cpp"] = partial(llama.answer, prompts, a.new)
            times = in_turns(runs, a.turns)
            yield from report(times, rows * a.new, dict(shape=shape, bits=bits, what="answer", prompts=rows))
            if llama is not None:
                llama.close()


if __name__ == "__main__":
    main()
