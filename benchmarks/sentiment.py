"""Reviews as sentiment: fine-tuned models against TF-IDF with logistic regression, on the same texts.

    python benchmarks/sentiment.py runs/reviews runs/reviews-dijiang --train train.tsv --valid valid.tsv --test test.tsv

The tables have a rating of 1 to 10 and a text: ratings of 1 to 4 are negative, 9 and 10 positive, the others and texts
of more than 140 characters are left out. Each MODEL is fine-tuned with `yeoul finetune --task classify` under --runs (a
run that is there goes on). The baseline is scikit-learn's, over words, characters or both, with several strengths of
regularisation; what is best on the validation texts is reported. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yeoul import cli, load_classifier, runtime
from yeoul.data.labelled import read_labelled
from yeoul.evaluate.classification import ClassificationScores, classification_scores

LABELS = ("negative", "positive")
LONGEST = 140
WORDS = dict(analyzer="word", token_pattern=r"\S+", ngram_range=(1, 2), min_df=2)
CHARACTERS = dict(analyzer="char", ngram_range=(1, 4), min_df=3)
VECTORIZERS: dict[str, tuple[dict[str, Any], ...]] = {
    "words (1, 2)": (WORDS,),
    "characters (1, 4)": (CHARACTERS,),
    "words and characters": (WORDS, CHARACTERS),
}
STRENGTHS = (1.0, 3.0, 10.0)
"""Of logistic regression, scikit-learn's C."""

FINETUNE = "--epochs 2 --batch-size 64 --lr 5e-4 --weight-decay 0.1 --lm-weight 0.1 --eval-every 1000 --save-every 1000"

Texts = tuple[list[str], np.ndarray]
"""Texts, and their classes (N,) int64."""


def read(path: str, most: int | None) -> Texts:
    """Texts with a clear rating; of more than `most` a random share, the same for the same file."""
    records = read_labelled(path, text_column="document", label_column="rating", on_bad_record="skip").records
    kept = [
        (r.text, int(int(r.label) >= 9)) for r in records if len(r.text) <= LONGEST and int(r.label) not in range(5, 9)
    ]
    if most is not None and most < len(kept):
        kept = [kept[i] for i in np.sort(np.random.default_rng(0).permutation(len(kept))[:most])]
    return [text for text, _ in kept], np.array([label for _, label in kept])


def write(path: Path, texts: Texts) -> Path:
    """A table for `yeoul finetune`; left alone where it is the same, so that a run goes on."""
    lines = ["document\tlabel\n", *(f"{text}\t{LABELS[label]}\n" for text, label in zip(*texts, strict=True))]
    content = "".join(lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return path


def baselines(
    train: Texts, valid: Texts, test: Texts, names: list[str], strengths: list[float]
) -> Iterator[dict[str, Any]]:
    """TF-IDF and logistic regression in these settings."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_union

    for name in names:
        parts = VECTORIZERS[name]
        start = time.perf_counter()
        vectorizer = make_union(*(TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **part) for part in parts))
        features = vectorizer.fit_transform(train[0])
        held_out, tested = vectorizer.transform(valid[0]), vectorizer.transform(test[0])
        shared = time.perf_counter() - start
        for strength in strengths:
            start = time.perf_counter()
            model = LogisticRegression(C=strength, solver="liblinear", tol=1e-3).fit(features, train[1])
            predicted = model.predict(tested)
            yield {
                "model": f"TF-IDF, {name}, C {strength:g}",
                "valid": share_right(model.predict(held_out), valid),
                **summary(classification_scores(test[1], predicted, LABELS)),
                "features": features.shape[1],
                "seconds": shared + time.perf_counter() - start,
            }


def share_right(predicted: np.ndarray, texts: Texts) -> float:
    """Accuracy."""
    return float((predicted == texts[1]).mean())


def summary(scores: ClassificationScores) -> dict[str, Any]:
    """What is reported of the test."""
    return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "confusion": scores.confusion.tolist()}


def finetuned(model: str, tables: Path, valid: Texts, test: Texts, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tunes a model and tests it."""
    out = arguments.runs / Path(model).resolve().name
    command = [
        "finetune", model, "--task", "classify", "--data", str(tables / "train.tsv"),
        "--val-data", str(tables / "watched.tsv"), "--out", str(out), *arguments.finetune.split(),
    ]  # fmt: skip
    if code := cli.main(command):
        sys.exit(code)
    report = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    classifier = load_classifier(out, dtype="float32")
    numbers = [LABELS.index(label) for label in classifier.labels]
    start = time.perf_counter()
    found = [[numbers[i] for i in classifier.logits(part[0], batch_size=64).argmax(-1)] for part in (valid, test)]
    kinds = "/".join(dict.fromkeys(classifier.model.decoder.config.attention))
    return {
        "model": f"{model} ({kinds})",
        "command": " ".join(command),
        "valid": share_right(np.array(found[0]), valid),
        **summary(classification_scores(test[1], found[1], LABELS)),
        "parameters": report["parameters"],
        "tokens": report["tokens"],
        "seconds": report["seconds"],
        "texts_per_second": (len(valid[0]) + len(test[0])) / (time.perf_counter() - start),
    }


def show(rows: list[dict[str, Any]], best: dict[str, Any] | None, sizes: dict[str, int], positive: float) -> None:
    """The table."""
    print(f"\n{runtime.cpu_name()}; {', '.join(f'{name} {count:,}' for name, count in sizes.items())} texts,")
    print(f"{positive:.2%} of the test's are positive. *: the baseline that is best on the validation texts")
    print(f"{'model':<48} {'valid':>7} {'test':>7} {'macro F1':>8} {'seconds':>8} {'points ahead':>12}")
    for row in rows:
        ahead = "" if best is None else f"{100 * (row['accuracy'] - best['accuracy']):+.2f}"
        name = f"{row['model']}{' *' if row is best else ''}"
        scores = f"{row['valid']:>7.4f} {row['accuracy']:>7.4f} {row['macro_f1']:>8.4f}"
        print(f"{name:<48} {scores} {row['seconds']:>8.0f} {ahead:>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders of models")
    for part in ("train", "valid", "test"):
        parser.add_argument(f"--{part}", required=True, help="table with the columns rating and document")
    parser.add_argument("--texts", type=int, default=None, help="train on so many texts at most, the baseline too")
    parser.add_argument("--test-texts", type=int, default=None, help="validate and test on so many texts at most")
    parser.add_argument("--watched", type=int, default=2000, help="validation texts that are scored while training")
    parser.add_argument("--finetune", default=FINETUNE, help=f"flags of yeoul finetune (default: {FINETUNE})")
    parser.add_argument("--runs", type=Path, default=Path("runs/sentiment"), help="folder of the runs")
    parser.add_argument("--vectorizers", nargs="+", choices=list(VECTORIZERS), default=list(VECTORIZERS))
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS)
    parser.add_argument("--no-baseline", action="store_true", help="models alone")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    runtime.set_threads()
    train = read(arguments.train, arguments.texts)
    valid, test = (read(path, arguments.test_texts) for path in (arguments.valid, arguments.test))
    tables = arguments.runs / "tables"
    write(tables / "train.tsv", train)
    write(tables / "watched.tsv", (valid[0][: arguments.watched], valid[1][: arguments.watched]))
    sizes = {"train": len(train[0]), "valid": len(valid[0]), "test": len(test[0])}
    rows: list[dict[str, Any]] = []
    if not arguments.no_baseline:
        rows = list(baselines(train, valid, test, arguments.vectorizers, arguments.strengths))
    for model in arguments.models:
        rows.append(finetuned(model, tables, valid, test, arguments))
    for row in rows:
        row["seconds"] = round(row["seconds"], 1)
    baseline = [row for row in rows if row["model"].startswith("TF-IDF")]
    best = max(baseline, key=lambda row: row["valid"], default=None)
    show(rows, best, sizes, float(test[1].mean()))
    if arguments.out:
        facts = {"machine": runtime.machine(), "command": " ".join(["python", *sys.argv]), "texts": sizes, "rows": rows,
                 "baseline": best and best["model"]}  # fmt: skip
        arguments.out.write_text(json.dumps(facts, indent=1, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
