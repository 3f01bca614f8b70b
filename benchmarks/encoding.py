"""Text to ids: Yeoul, the sentencepiece library with the same model, and the library tokenizers, in turns.

    yeoul tokenizer train reviews.txt --vocab-size 8000 --out runs/bpe
    yeoul tokenizer train reviews.txt --vocab-size 8000 --model-type unigram --out runs/unigram
    python benchmarks/encoding.py runs/bpe runs/unigram --data other-reviews.txt --json docs/benchmarks/encoding.json

Every line of the data is a text; blocks are lines joined up to 100,000 characters, as documents without blank lines
are read. Megabytes of UTF-8 in a second of processor time, medians of the rounds; a ratio is the median of the ratios
of rounds, each of which measures one after the other. The ids are compared first: they are equal or there are no
figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

Work = Callable[[], Any]
BLOCK = 100_000


def blocks(lines: list[str]) -> list[str]:
    found, size = [[]], 0
    for line in lines:
        if size > BLOCK:
            found.append([])
            size = 0
        found[-1].append(line)
        size += len(line)
    return ["\n".join(part) for part in found]


def seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(size: int, works: dict[str, Work], rounds: int) -> dict[str, Any]:
    """Speeds, and ours over each of the others."""
    taken = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    speed = {name: round(size / statistics.median(times) / 1e6, 2) for name, times in taken.items()}
    ratios = {}
    for name, times in taken.items():
        if name != "yeoul":
            each = sorted(other / ours for ours, other in zip(taken["yeoul"], times, strict=True))
            quartiles = statistics.quantiles(each, n=4)
            ratios[name] = [round(value, 2) for value in (statistics.median(each), quartiles[0], quartiles[2])]
    return {"megabytes_per_second": speed, "yeoul_over": ratios}


def compare(folder: Path, lines: list[str], rounds: int) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as Theirs

    from yeoul.text.tokenizer import Tokenizer

    ours = Tokenizer.load(folder)
    ours.expect(10**9)
    library = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    theirs = Theirs.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    results = {}
    for name, texts in (("texts", lines), ("blocks", blocks(lines))):
        size = sum(len(text.encode()) for text in texts)
        expected = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
        if [ours.encode(text) for text in texts] != expected or ours.encode_batch(texts) != expected:
            raise SystemExit(f"{folder}: the ids differ")
        one = {
            "yeoul": lambda texts=texts: [ours.encode(text) for text in texts],
            "sentencepiece": lambda texts=texts: [library.encode(text) for text in texts],
            "tokenizers": lambda texts=texts: [theirs.encode(text, add_special_tokens=False).ids for text in texts],
        }
        batch = {
            "yeoul": lambda texts=texts: ours.encode_batch(texts),
            "sentencepiece": lambda texts=texts: library.encode(texts),
            "tokenizers": lambda texts=texts: [
                e.ids for e in theirs.encode_batch_fast(texts, add_special_tokens=False)
            ],
        }
        results[f"{name}, one by one"] = measured(size, one, rounds)
        results[f"{name}, a batch"] = measured(size, batch, rounds)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="+", type=Path, help="folders with tokenizer.json and tokenizer.model")
    parser.add_argument("--data", type=Path, required=True, help="a text file")
    parser.add_argument("--lines", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from yeoul.runtime import cpu_name, usable_cpus

    with arguments.data.open(encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in islice(file, arguments.lines)]
    report: dict[str, Any] = {
        "cpu": cpu_name(), "cores": usable_cpus(), "bytes": sum(len(line.encode()) for line in lines),
        "rounds": arguments.rounds, "tokenizers": {},
    }  # fmt: skip
    for folder in arguments.tokenizers:
        report["tokenizers"][folder.name] = results = compare(folder, lines, arguments.rounds)
        for name, found in results.items():
            print(f"{folder.name}, {name}: {found['megabytes_per_second']} MB/s, Yeoul over {found['yeoul_over']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
