"""Likeness of sentences: vectors of models, before and after they learned from scored pairs, against TF-IDF.

    python benchmarks/sentence_similarity.py runs/reviews --train korsts-train.tsv --dev korsts-dev.tsv

The tables have columns sentence1, sentence2 and score. Each MODEL is trained with `yeoul finetune --task embed` under
--runs (a run that is there goes on). Printed is Spearman's correlation of cosines and scores on --dev, for models and
for TF-IDF vectors of the training sentences' words and characters; the best of these is what is compared with. Prints a
table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from yeoul import cli, load_embedder, runtime
from yeoul.data.labelled import TextPair, read_pairs
from yeoul.evaluate.similarity import cosines, spearman

VECTORIZERS: dict[str, dict[str, Any]] = {
    "words": dict(token_pattern=r"\S+"),
    "words (1, 2)": dict(token_pattern=r"\S+", ngram_range=(1, 2)),
    "characters": dict(analyzer="char"),
    "characters (1, 2)": dict(analyzer="char", ngram_range=(1, 2)),
    "characters (1, 3)": dict(analyzer="char", ngram_range=(1, 3)),
    "characters in words (1, 2)": dict(analyzer="char_wb", ngram_range=(1, 2)),
    "characters in words (1, 3)": dict(analyzer="char_wb", ngram_range=(1, 3)),
    "characters in words (2, 4)": dict(analyzer="char_wb", ngram_range=(2, 4)),
}
FINETUNE = "--epochs 8 --batch-size 64 --lr 3e-4 --eval-every 100 --save-every 0"


def scores_of(pairs: list[TextPair]) -> np.ndarray:
    """(N,) what people said."""
    return np.array([pair.score for pair in pairs], dtype=np.float64)


def baselines(train: list[TextPair], dev: list[TextPair]) -> list[dict[str, Any]]:
    """TF-IDF in all its settings."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = []
    for name, settings in VECTORIZERS.items():
        vectorizer = TfidfVectorizer(sublinear_tf=True, **settings).fit([text for p in train for text in p.texts])
        first, second = (vectorizer.transform([pair.texts[way] for pair in dev]) for way in (0, 1))
        alike = np.asarray(first.multiply(second).sum(1)).ravel()
        rows.append({"model": f"TF-IDF, {name}", "after": spearman(alike, scores_of(dev))})
    return rows


def of_model(folder: Path | str, dev: list[TextPair]) -> float:
    """Spearman of a model's vectors, as its folder says that they are made."""
    embedder = load_embedder(folder, dtype="float32")
    first, second = (embedder.embed([pair.texts[way] for pair in dev], batch_size=64).numpy() for way in (0, 1))
    return spearman(cosines(first, second), scores_of(dev))


def finetuned(model: str, dev: list[TextPair], arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains a model and measures it before and after."""
    out = arguments.runs / Path(model).resolve().name
    command = ["finetune", model, "--task", "embed", "--data", arguments.train, "--out", str(out)]
    command += arguments.finetune.split()
    before = of_model(model, dev)
    if code := cli.main(command):
        sys.exit(code)
    report = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    return {
        "model": model, "command": " ".join(command), "before": before, "after": of_model(out, dev),
        "parameters": report["parameters"], "tokens": report["tokens"], "seconds": report["seconds"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders of models")
    parser.add_argument("--train", required=True, help="table with sentence1, sentence2 and score")
    parser.add_argument("--dev", required=True, help="the same, for the measurement")
    parser.add_argument("--finetune", default=FINETUNE, help=f"flags of yeoul finetune (default: {FINETUNE})")
    parser.add_argument("--runs", type=Path, default=Path("runs/similarity"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    runtime.set_threads()
    train, dev = (read_pairs(path).records for path in (arguments.train, arguments.dev))
    rows = baselines(train, dev)
    best = max(rows, key=lambda row: row["after"])
    rows += [finetuned(model, dev, arguments) for model in arguments.models]
    print(
        f"\n{runtime.cpu_name()}; {len(train):,} pairs to learn from, {len(dev):,} to measure. Spearman; best TF-IDF: *"
    )
    print(f"{'model':<48} {'before':>7} {'after':>7} {'seconds':>8} {'ahead':>7}")
    for row in rows:
        before = f"{row['before']:.4f}" if "before" in row else ""
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        name = f"{row['model']}{' *' if row is best else ''}"
        print(f"{name:<48} {before:>7} {row['after']:>7.4f} {seconds:>8} {row['after'] - best['after']:>+7.4f}")
    if arguments.out:
        facts = {"machine": runtime.machine(), "command": " ".join(["python", *sys.argv]), "pairs": len(train),
                 "dev_pairs": len(dev), "rows": rows, "baseline": best["model"]}  # fmt: skip
        arguments.out.write_text(json.dumps(facts, indent=1, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
