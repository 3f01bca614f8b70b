"""Questions with a long shared prompt and several answers, with a snapshot behind the prompt against without.

    python benchmarks/multiple_choice.py --out docs/benchmarks/multiple-choice.json

For each kind of attention a model with random weights of the same shape; both ways are timed in turns, after one of
each that does not count. Seconds are those of the processor, so that other programs beside do not count. The
log-likelihoods are compared, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from yeoul import runtime
from yeoul.evaluate.continuations import score_continuations
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.machine import machine_facts

KINDS: dict[str, dict[str, Any]] = {
    "softmax": dict(attention=("softmax",)),
    "linear": dict(attention=("dijiang",)),
    "hybrid, window 64": dict(attention=("hybrid",), window=64),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompt", type=int, default=2000, help="tokens of the shared prompt")
    options.add_argument("--choices", type=int, default=4)
    options.add_argument("--answer", type=int, default=8, help="tokens of an answer")
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--vocabulary", type=int, default=8000)
    options.add_argument("--pairs", type=int, default=5, help="measurements of each way")
    options.add_argument("--note", default="", help="what else the machine did meanwhile")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    threads = runtime.set_threads()
    torch.manual_seed(0)
    prompt = torch.randint(given.vocabulary, (given.prompt,)).tolist()
    answers = torch.randint(given.vocabulary, (given.choices, given.answer)).tolist()
    pairs = [(prompt, answer) for answer in answers]
    rows = []
    print(f"{'attention':<20}{'without':>10}{'with':>10}{'ratio':>8}{'range':>16}{'difference':>14}")
    for name, kind in KINDS.items():
        config = ModelConfig(
            vocab_size=given.vocabulary, hidden_size=given.hidden, num_heads=given.hidden // 64,
            num_layers=given.layers, max_position_embeddings=given.prompt + given.answer, **kind,
        )  # fmt: skip
        model = Decoder(config).eval()
        seconds: dict[bool, list[float]] = {False: [], True: []}
        found: dict[bool, list[float]] = {}
        for number in range(given.pairs + 1):
            for share in (False, True):
                start = time.process_time()
                scores = score_continuations(model, pairs, batch_size=given.choices, share=share)
                if number:
                    seconds[share].append(time.process_time() - start)
                found[share] = [score.logprob for score in scores]
        ratios = [slow / fast for slow, fast in zip(seconds[False], seconds[True], strict=True)]
        without, with_ = (statistics.median(seconds[share]) for share in (False, True))
        apart = max(abs(a - b) for a, b in zip(found[False], found[True], strict=True))
        row = {
            "attention": name, "seconds_without": without, "seconds_with": with_, "ratio": statistics.median(ratios),
            "lowest": min(ratios), "highest": max(ratios), "largest_difference": apart,
        }  # fmt: skip
        rows.append(row)
        spread = f"{row['lowest']:.2f}-{row['highest']:.2f}"
        print(f"{name:<20}{without:>9.2f}s{with_:>9.2f}s{row['ratio']:>7.2f}x{spread:>16}{apart:>14.1e}", flush=True)
    if given.out is not None:
        shape = {key: value for key, value in vars(given).items() if key not in ("out", "note")}
        result = {
            "machine": dict(machine_facts()),
            "threads": threads,
            "note": given.note,
            "shape": shape,
            "rows": rows,
        }
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
