"""Decoding with weights of 8 and 4 bits against bfloat16, the same model otherwise, in turns.

    python benchmarks/low_bit_decode.py --out docs/benchmarks/low-bit-decode.json

Random weights of a Llama's shape, embeddings and head quantized too (8 bits, and 6 beside layers of 4): speed does not
depend on what they say. Every turn is a few whole decoding steps, vocabulary included, of each model, so that whatever
else the machine does hits all of them alike; the ratio is taken turn by turn, and its median and quartiles are given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from yeoul import runtime
from yeoul.evaluate import speed
from yeoul.model.config import PRESETS, ModelConfig, preset
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.quantization import Quantization, Scheme
from yeoul.model.quantized import QuantizedEmbedding, quantized_modules
from yeoul.model.quantized_folder import prepare

TABLE = "re:.*embed_tokens$"
SCHEMES = {
    "8 bits": (Scheme(bits=8, group_size=0, targets=("Linear", TABLE)),),
    "4 bits": (
        Scheme(bits=6, group_size=0, targets=(TABLE, "lm_head")),
        Scheme(bits=4, group_size=64, targets=("Linear",)),
    ),
}


def random_model(config: ModelConfig, name: str) -> Decoder:
    """A model in bfloat16, or with the low-bit weights of a name of `SCHEMES`, made without a detour through fp32."""
    model = skeleton(config)
    if name in SCHEMES:
        with torch.device("meta"):
            prepare(model, Quantization(schemes=SCHEMES[name]))
    model.to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
        for _, module in quantized_modules(model):
            packed = module.weight_packed
            if packed.dtype == torch.int8:
                packed.random_(-127, 128)
            else:
                packed.random_(-(2**31), 2**31)
            module.weight_scale.fill_(0.02 / (73 if packed.dtype == torch.int8 else 4.6))
            if isinstance(module, QuantizedEmbedding):
                module.dtype = torch.bfloat16
    return model.eval().requires_grad_(False)


def weight_bytes(model: Decoder) -> int:
    """What a folder of the model holds, in bytes."""
    low = sum(m.in_features * m.out_features * m.bits // 8 + m.weight_scale.nbytes for _, m in quantized_modules(model))
    return low + sum(parameter.nbytes for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="1b", choices=sorted(PRESETS), help="shape of the model")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--context", type=int, default=128, help="tokens in the cache")
    parser.add_argument("--turns", type=int, default=11, help="turns of each model")
    parser.add_argument("--steps", type=int, default=8, help="decoding steps of a turn")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    threads = runtime.set_threads(arguments.threads)
    torch.manual_seed(0)
    config = preset(arguments.preset, vocab_size=arguments.vocab_size)
    models = {name: random_model(config, name) for name in ("bfloat16", *SCHEMES)}
    print(f"{runtime.cpu_name()}, {threads} thread(s), torch {torch.__version__}, batch 1, "
          f"{models['bfloat16'].num_parameters():,} parameters", flush=True)  # fmt: skip
    seconds = measure(models, arguments.context, arguments.steps, arguments.turns)
    records = [record(name, models, seconds) for name in models]
    print(f"\n{'':<10}{'weights':>12}{'ms a token':>12}{'tokens/s (quartiles)':>26}{'x bfloat16 (quartiles)':>28}")
    for r in records:
        low, middle, high = r["tokens_per_second"]
        less, ratio, more = r["ratio"]
        print(f"{r['model']:<10}{speed.format_bytes(r['bytes']):>12}{1000 / middle:>12.1f}"
              f"{f'{middle:.2f} ({low:.2f}-{high:.2f})':>26}{f'{ratio:.2f} ({less:.2f}-{more:.2f})':>28}")  # fmt: skip
    if arguments.out is not None:
        values = {
            "command": " ".join(["python", *sys.argv]), "machine": runtime.machine(), "threads": threads,
            "preset": arguments.preset, "vocab_size": arguments.vocab_size, "context": arguments.context,
            "parameters": models["bfloat16"].num_parameters(), "turns": arguments.turns, "steps": arguments.steps,
            "records": records,
        }  # fmt: skip
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def measure(models: dict[str, Decoder], context: int, steps: int, turns: int) -> dict[str, list[float]]:
    """Seconds a token of each model takes, turn by turn; what a model does first in a turn is not measured."""
    ids = torch.randint(0, next(iter(models.values())).config.vocab_size, (1, context))
    caches, tokens = {}, {}
    for name, model in models.items():
        print(f"reading {context} tokens, {name}", file=sys.stderr, flush=True)
        caches[name] = model.new_cache(1)
        tokens[name] = model(ids, cache=caches[name], logits_to_keep=1)[:, -1:].argmax(-1)

    def decode(name: str, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            tokens[name] = models[name](tokens[name], cache=caches[name], logits_to_keep=1)[:, -1:].argmax(-1)
        return (time.perf_counter() - start) / count

    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(turns + 1):
        for name in list(models)[:: 1 if turn % 2 == 0 else -1]:
            decode(name, 1)  # brings the weights back that the others have driven out
            taken = decode(name, steps)
            if turn:
                seconds[name].append(taken)
    return seconds


def record(name: str, models: dict[str, Decoder], seconds: dict[str, list[float]]) -> dict[str, object]:
    """Quartiles of one model's speed, and of its ratio to bfloat16 in the same turn."""
    ratios = [base / own for base, own in zip(seconds["bfloat16"], seconds[name], strict=True)]
    return {
        "model": name,
        "bytes": weight_bytes(models[name]),
        "tokens_per_second": quartiles([1 / value for value in seconds[name]]),
        "ratio": quartiles(ratios),
        "seconds": seconds[name],
    }


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


if __name__ == "__main__":
    main()
