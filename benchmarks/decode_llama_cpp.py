"""Decoding by the native library, by PyTorch, and by llama.cpp with the same shape and bits, in turns.

    python benchmarks/decode_llama_cpp.py --python OTHER/bin/python --out docs/benchmarks/decoding-native.json

`--python` is an interpreter with xllamacpp, which brings llama.cpp, outside of Yeoul's environment; without
it only ours are measured. Random weights: speed does not depend on what they say. Our softmax model is written as GGUF
for llama.cpp (f32, bf16, or q8_0 where ours has 8 bits), whose own figure for a generated token is taken, the choice
of the likeliest included; ours is a whole step with the likeliest token. llama.cpp, ours by the library and ours by
PyTorch take turns of some steps at each context, after a short rest; medians (quartiles), and ratios of the medians.

Contexts are reached without reading them: caches are filled with what a short text has left, again and again; llama.cpp
reads its context, where that takes less than `--patience` seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from llama_cpp_process import LlamaCpp
from low_bit_decode import random_model

from yeoul import runtime
from yeoul.evaluate import decode_speed
from yeoul.evaluate.speed import Runner, decoded
from yeoul.infer.native.binding import instruction_sets, why_not
from yeoul.model.config import PRESETS, preset
from yeoul.model.decoder import Decoder
from yeoul.model.gguf_file import write_gguf

KINDS: dict[str, dict[str, Any]] = {
    "softmax": dict(attention=("softmax",)),
    "dijiang": dict(attention=("dijiang",)),
    "hybrid": dict(attention=("hybrid",), window=64),
    "hybrid, delta": dict(
        attention=("hybrid",), window=64, state_update="delta", feature_map=dict(name="fourier"), short_conv=4
    ),
}
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "8 bits": torch.bfloat16, "4 bits": torch.bfloat16}
REST = 0.02
"""Seconds before each turn: OpenMP's threads go on spinning for a while after PyTorch's turn, and take a core."""
GGUF = {"f32": "f32", "bf16": "bf16", "8 bits": "q8_0"}

LLAMA = """
import json, random, sys
import xllamacpp
path, threads, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.warmup, p.verbosity = path, 1, length, False, -1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(p)
print("ready", flush=True)
chance = random.Random(0)
prompt = []
for line in sys.stdin:
    context, steps, vocabulary = json.loads(line)
    prompt += [chance.randrange(10, vocabulary) for _ in range(context - len(prompt))]
    found = server.handle_completions(
        dict(prompt=prompt[:context], n_predict=steps + 1, temperature=0, ignore_eos=True, cache_prompt=True)
    )
    print(json.dumps(found["timings"]), flush=True)
"""


class Decoding(LlamaCpp):
    """llama.cpp behind contexts of random ids of a vocabulary."""

    def __init__(self, python: Path, model: Path, threads: int, length: int, vocabulary: int) -> None:
        super().__init__(python, LLAMA, model, threads, length)
        self.vocabulary = vocabulary

    def decode(self, context: int, steps: int) -> float:
        """Seconds of a token behind a context, which is read if it is new."""
        return float(self.ask([context, steps, self.vocabulary])["predicted_per_token_ms"]) / 1000


def model_of(shape: str, kind: str, bits: str, vocabulary: int, length: int) -> Decoder:
    """A model of random weights; with few bits its softmax form has the vocabulary's table in them, too."""
    config = preset(shape, vocab_size=vocabulary, max_position_embeddings=length, **KINDS[kind])
    if bits in ("8 bits", "4 bits"):
        return random_model(config, bits)
    torch.manual_seed(0)
    return Decoder(config).to(TYPES[bits]).eval().requires_grad_(False)


def words(count: int) -> dict[str, Any]:
    """A vocabulary of made-up words, for llama.cpp's server takes no model without one."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = special + [f"\u2581w{i}" for i in range(count - len(special))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (count - len(special))
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [-float(i) for i in range(count)], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """Tokens per second: lower quartile, median, upper quartile."""
    speeds = [1 / s for s in seconds]
    low, _, high = statistics.quantiles(speeds, n=4, method="inclusive")
    return low, statistics.median(speeds), high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["3m", "10m", "125m"], choices=sorted(PRESETS))
    parser.add_argument("--bits", nargs="+", default=["f32", "bf16", "8 bits"], choices=sorted(TYPES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 4096, 16384])
    parser.add_argument("--pytorch", nargs="*", default=["softmax", "dijiang"], help="kinds that PyTorch decodes, too")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--python", type=Path, default=None, help="interpreter with xllamacpp")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for llama.cpp to read a context")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="tokens of a turn")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    a = parser.parse_args()
    threads = runtime.set_threads(a.threads)
    if (reason := why_not()) is not None:
        raise SystemExit(f"there is no native library: {reason}")
    isa = instruction_sets()[0]
    print(f"{runtime.cpu_name()}, {isa}, {threads} thread(s), torch {torch.__version__}, batch 1", flush=True)
    records: list[dict[str, Any]] = []
    length = max(a.contexts) + decoded(a.steps, a.turns) + 64
    for shape in a.shapes:
        for bits in a.bits:
            records += measured(a, shape, bits, threads, length)
            if a.out is not None:
                values = {
                    "command": " ".join(["python", *sys.argv]), "cpu": runtime.cpu_name(), "instruction_set": isa,
                    "threads": threads, "torch": torch.__version__, "records": records,
                }  # fmt: skip
                a.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def measured(a: argparse.Namespace, shape: str, bits: str, threads: int, length: int) -> list[dict[str, Any]]:
    """One shape and type at every context, as records; prints them."""
    models = {kind: model_of(shape, kind, bits, a.vocab_size, length) for kind in a.kinds}
    llama, found = None, []
    with tempfile.TemporaryDirectory() as folder:
        if a.python is not None and bits in GGUF and "softmax" in models:
            dense = model_of(shape, "softmax", "f32", a.vocab_size, length)
            write_gguf(dense, Path(folder) / "model.gguf", dtype=GGUF[bits], name=shape, vocabulary=words(a.vocab_size))
            llama = Decoding(a.python, Path(folder) / "model.gguf", threads, length, a.vocab_size)
        reading, last = 0.0, 0
        for context in a.contexts:
            runners = {}
            for kind, model in models.items():
                forms = {"native": True} | ({"PyTorch": False} if kind in a.pytorch else {})
                for form, native in forms.items():
                    runner = Runner(name=f"{kind}, {form}", model=model, batch_size=1, native=native)
                    problem = decode_speed.fill(runner, context, decoded(a.steps, a.turns))
                    if problem is None:
                        runners[runner.name] = runner
            times: dict[str, list[float]] = {name: [] for name in runners}
            theirs = llama
            if theirs is not None and last and 2 * reading * context / last > a.patience:
                theirs = None
            if theirs is not None:
                start = time.perf_counter()
                theirs.decode(context, 1)
                reading, last = time.perf_counter() - start, context
                times["llama.cpp"] = []
            for turn in range(a.turns + 1):
                for name in list(times)[:: 1 if turn % 2 else -1]:
                    time.sleep(REST)
                    seconds = theirs.decode(context, a.steps) if name == "llama.cpp" and theirs else 0.0
                    seconds = seconds or runners[name].decode(a.steps)
                    if turn:
                        times[name].append(seconds)
            base = statistics.median(times["llama.cpp"]) if "llama.cpp" in times else None
            for name, seconds in times.items():
                low, median, high = quartiles(seconds)
                ratio = None if base is None else base / statistics.median(seconds)
                found.append(dict(
                    shape=shape, bits=bits, context=context, name=name, tokens_per_second=median, low=low, high=high,
                    ratio_to_llama_cpp=ratio,
                ))  # fmt: skip
                beside = "" if ratio is None else f"  {ratio:6.2f} x llama.cpp"
                print(
                    f"{shape:>5} {bits:>6} {context:>7,}  {name:<22} {median:>9,.1f} ({low:,.1f}-{high:,.1f}){beside}",
                    flush=True,
                )
    if llama is not None:
        llama.close()
    return found


if __name__ == "__main__":
    main()
