"""Decoding and cache at long context: DiJiang against our own softmax attention, the same model otherwise, in
turns.

    python benchmarks/decode.py --context 16384 --out docs/benchmarks/decode.json

Random weights: speed does not depend on what they say. The cache is filled by a real prefill of `--context`
random tokens; then the models take turns of a few decoding steps each. Prints a table with ratios against
softmax (median, quartiles) and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from yeoul import runtime
from yeoul.evaluate import speed
from yeoul.model.config import PRESETS, preset
from yeoul.model.decoder import Decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="10m", choices=sorted(PRESETS), help="shape of the model")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--context", type=int, nargs="+", default=[16384], help="tokens in the cache")
    parser.add_argument("--attention", nargs="+", default=["dijiang", "hybrid"], help="compared with softmax")
    parser.add_argument("--window", type=int, default=64, help="softmax window of hybrid attention")
    parser.add_argument("--turns", type=int, default=15, help="turns of each model")
    parser.add_argument("--steps", type=int, default=16, help="decoding steps of a turn")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    threads = runtime.set_threads(arguments.threads)
    torch.manual_seed(0)
    longest = max(arguments.context) + speed.decoded(arguments.steps, arguments.turns)
    models = {
        kind: Decoder(
            preset(
                arguments.preset, vocab_size=arguments.vocab_size, attention=(kind,), window=arguments.window,
                max_position_embeddings=longest,
            )
        ).eval()
        for kind in ("softmax", *arguments.attention)
    }  # fmt: skip
    parameters = {name: model.num_parameters() for name, model in models.items()}
    print(f"{runtime.cpu_name()}, {threads} thread(s), torch {torch.__version__}, fp32, batch 1")
    print(", ".join(f"{name} {count:,} parameters" for name, count in parameters.items()), flush=True)
    start = time.perf_counter()
    records = speed.compare(
        models,
        arguments.context,
        steps=arguments.steps,
        turns=arguments.turns,
        progress=lambda what: print(what, file=sys.stderr, flush=True),
    )
    print(speed.table(records, "softmax"))
    if arguments.out is not None:
        values = {
            "command": " ".join(["python", *sys.argv]),
            "cpu": runtime.cpu_name(),
            "threads": threads,
            "torch": torch.__version__,
            "preset": arguments.preset,
            "parameters": parameters,
            "seconds": time.perf_counter() - start,
            "records": [record.as_dict() for record in records],
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
