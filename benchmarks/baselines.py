"""The family tree on one text: n-grams, a convolution, RNNs, softmax attention, and the same linearized.

    python benchmarks/baselines.py runs/baselines --reviews reviews --out docs/benchmarks/baselines.json

Reviews joined by film: `--tokens` of train.tsv.xz to train on, the first `--scored` of test.tsv.xz to score. All neural
models have the same vocabulary, width, number of parameters (within 5 %), context, batches, tokens and schedule; each
gets the learning rates of `--rates`, and the run with the lowest held-out loss counts. The n-gram
model counts exactly the tokens that the others are trained on, and is scored on the same rows: what stands before a row
it does not see either. "dijiang" is the softmax model, linearized with a sixteenth as many further tokens. Everything
runs as the command line does, so that peak memory is that of the process. What is in the folder already is not trained
again.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemma import measured

import yeoul
from yeoul import units
from yeoul.data.batch import IGNORE
from yeoul.data.loader import PackedLoader, evaluation_batches
from yeoul.data.shards import TokenShards
from yeoul.evaluate import perplexity
from yeoul.evaluate.ngram import NGram

CONTEXT, BATCH = 256, 4
SIZES = {
    "10m": {name: ["--preset", preset] for name, preset in
            (("softmax", "10m"), ("lstm", "lstm-10m"), ("gru", "gru-10m"), ("cnn", "cnn-10m"))},
    "1m": {name: ["--preset", preset, "--hidden-size", "128", "--layers", str(layers)] for name, preset, layers in
           (("softmax", "1m", 3), ("lstm", "lstm-10m", 5), ("gru", "gru-10m", 7), ("cnn", "cnn-10m", 5))},
}  # fmt: skip
"""Shapes of about the same number of parameters."""
NEAR, FAR = (16, 63), (128, 255)
"""Positions whose losses say what a longer past is worth."""


def text(options: argparse.Namespace, part: str, flag: str) -> list[str]:
    return [flag, str(options.reviews / f"{part}.tsv.xz")] if flag else [str(options.reviews / f"{part}.tsv.xz")]


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "yeoul", name, *arguments]


def run(folder: Path, words: list[str]) -> dict[str, Any]:
    """Runs a command that leaves a folder, unless it has; what it took."""
    record = folder.with_suffix(".json")
    if not record.is_file():
        found = measured(words, folder.with_suffix(".log"))
        if found["exit_code"]:
            raise SystemExit(folder.with_suffix(".log").read_text()[-2000:])
        record.write_text(json.dumps(found))
    return json.loads(record.read_text())


def train(options: argparse.Namespace) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folder and costs of the best run of each neural model."""
    runs, reading = options.folder, ["--text-column", "document", "--join-by", "movie_id"]
    tokenizer = runs / "tokenizer"
    run(tokenizer, command(
        "tokenizer", "train", *text(options, "train", ""), *reading, "--vocab-size", str(options.vocabulary),
        "--max-sentences", "100_000", "--out", str(tokenizer),
    ))  # fmt: skip
    shape = ["--context", str(CONTEXT), "--batch-size", str(BATCH), "--tokens", str(options.tokens)]
    held_out = ["--val-data", str(options.reviews / "test.tsv.xz"), "--val-tokens", "20_000", "--no-report"]
    best: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name, sizes in SIZES[options.size].items():
        tried = []
        for rate in options.rates:
            folder = runs / f"{name}-{rate}"
            costs = run(folder, command(
                "pretrain", *text(options, "train", ""), *reading, *shape, *held_out, *sizes, "--lr", rate,
                "--tokenizer", str(tokenizer), "--eval-every", "0", "--out", str(folder),
            ))  # fmt: skip
            tried.append((validation_loss(folder), folder, costs | {"rate": rate}))
            print(f"{name} at {rate}: {tried[-1][0]:.4f}", flush=True)
        best[name] = min(tried)[1:]
    linear = runs / "dijiang"
    costs = run(linear, command(
        "linearize", str(best["softmax"][0]), *text(options, "train", "--data"), *reading, *shape[:4], *held_out,
        "--tokens", str(options.tokens // 16), "--compare-tokens", "0", "--out", str(linear),
    ))  # fmt: skip
    best["dijiang"] = linear, costs
    return best


def validation_loss(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return min(line["loss"] for line in map(json.loads, lines) if line["kind"] == "val")


def speed_of_training(folder: Path) -> float:
    """Tokens a second, the median of what was logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    return float(np.median(rates))


class Scored:
    """Losses on the rows that all models are scored on."""

    def __init__(self, folder: Path, tokens: int, lengths: list[int]) -> None:
        shards = TokenShards.open(folder / "val_data" / "train")
        make = evaluation_batches(shards, batch_size=4, context=CONTEXT, max_tokens=tokens)
        self.batches, self.lengths = list(make), torch.tensor(lengths)

    def row(self, losses: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
        """What is told of losses (N,)."""
        between = lambda span: float(losses[(positions >= span[0]) & (positions <= span[1])].mean())  # noqa: E731
        near, far, num_bytes = between(NEAR), between(FAR), int(self.lengths[labels].sum())
        return {
            "loss": float(losses.mean()), "bits_per_byte": float(losses.sum()) / math.log(2) / num_bytes,
            "near": near, "far": far, "gain": near - far, "tokens": len(labels),
        }  # fmt: skip

    @torch.inference_mode()
    def of_model(self, model: yeoul.Decoder) -> dict[str, Any]:
        parts = [perplexity.token_losses(model.eval(), batch) for batch in self.batches]
        return self.row(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def of_ngrams(self, model: NGram) -> dict[str, Any]:
        losses, labels, positions = [], [], []
        for batch in self.batches:
            for ids, own in zip(batch.input_ids, batch.labels, strict=True):
                real = own != IGNORE
                row = torch.cat((ids[:1], own[real])).numpy()
                losses.append(torch.from_numpy(model.losses(row)[1:]))
                labels.append(own[real])
                positions.append(torch.arange(len(row) - 1))
        return self.row(torch.cat(losses), torch.cat(labels), torch.cat(positions))


def tokens_seen(folder: Path, tokens: int) -> np.ndarray:
    """What a model has been trained on, row by row."""
    loader = PackedLoader(TokenShards.open(folder / "data" / "train"), batch_size=BATCH, context=CONTEXT, seed=0)
    rows = []
    for _ in range(-(-tokens // (BATCH * CONTEXT))):
        batch = loader.next_batch()
        rows.append(torch.cat((batch.input_ids, batch.labels[:, -1:]), 1).flatten())
    return torch.cat(rows).numpy()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), default="10m")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=800_000)
    parser.add_argument("--scored", type=int, default=60_000)
    parser.add_argument("--rates", nargs="+", default=["2e-3"])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    best = train(options)
    seen = tokens_seen(best["softmax"][0], options.tokens)
    tokenizer = yeoul.Tokenizer.load(options.folder / "tokenizer")
    scored = Scored(best["softmax"][0], options.scored, tokenizer.byte_lengths())
    rows: dict[str, dict[str, Any]] = {}
    for order in (3, 5):
        counted = NGram.fit(seen, tokenizer.vocab_size, order)
        rows[f"{order}-grams"] = scored.of_ngrams(counted) | {"parameters": counted.size, "cache": 8 * (order - 1)}
        rows[f"{order}-grams"] |= {"peak_bytes": counted.nbytes}
    models = {name: yeoul.load(folder)[0] for name, (folder, _) in best.items()}
    speeds = yeoul.bench(models, yeoul.BenchConfig(contexts=(CONTEXT,), threads=torch.get_num_threads()))
    for name, model in models.items():
        folder, costs = best[name]
        (record,) = (record for record in speeds.records if record.model == name)
        rows[name] = scored.of_model(model) | {
            "parameters": model.num_parameters(), "cache": record.cache_bytes, "rate": costs.get("rate"),
            "peak_bytes": costs["peak_bytes"], "cpu_seconds": costs["cpu_seconds"],
            "training": None if name == "dijiang" else speed_of_training(folder),
            "decoding": record.decode_tokens_per_second, "quartiles": [record.decode_low, record.decode_high],
        }  # fmt: skip
    record = {
        "torch": torch.__version__, "cpu": platform.processor() or platform.machine(), "tokens": options.tokens,
        "threads": torch.get_num_threads(), "rates": options.rates, "rows": rows,
    }  # fmt: skip
    print(f"{'':10}{'params':>12}{'bits/byte':>11}{'near':>8}{'far':>8}{'gain':>8}{'train/s':>9}{'decode/s':>10}"
          f"{'cache':>11}{'peak':>11}")  # fmt: skip
    for name, row in rows.items():
        rates = "".join(f"{row[key]:>{wide},.0f}" if row.get(key) else " " * wide
                        for key, wide in (("training", 9), ("decoding", 10)))  # fmt: skip
        losses = "".join(f"{row[key]:>8.3f}" for key in ("near", "far", "gain"))
        sizes = "".join(f"{units.size(row[key]):>11}" for key in ("cache", "peak_bytes"))
        print(f"{name:10}{row['parameters']:>12,}{row['bits_per_byte']:>11.4f}{losses}{rates}{sizes}")
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
