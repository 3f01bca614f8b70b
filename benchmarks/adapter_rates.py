"""Learning rates of adapters: `yeoul finetune` on few examples at each of several rates, and what each comes to.

    python benchmarks/adapter_rates.py MODEL --reviews train.tsv valid.tsv --pairs train.tsv dev.tsv --dialogs qa.csv

Each MODEL learns each task whose data is given: reviews with a rating as two classes (1 to 4 against 9 and 10, as many
of each), pairs of sentences with scores, and answers preferred to those of other questions. Of all data a part is
drawn, the same each time; what is held out is drawn of the second file. Printed is the validation loss before the
training, of the kept state and at the end, and what these are worth (accuracy, Spearman); the same is written as JSON.
A run that is there already is only read.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yeoul import cli, runtime
from yeoul.data.labelled import read_labelled, read_pairs

LONGEST = 140
"""Characters of a review."""
WORTH = {"classify": "accuracy", "embed": "spearman", "dpo": "accuracy"}
STATES = {"before": "before", "kept": "after", "end": "last"}
"""Of a run, and what finetune.json calls them."""
DEFAULT = "default"


def drawn(records: list[Any], count: int, seed: int = 0) -> list[Any]:
    """So many of them, always the same, in an order of their own."""
    order = np.random.default_rng(seed).permutation(len(records))[:count]
    return [records[number] for number in order]


def reviews(path: str, count: int) -> list[dict[str, Any]]:
    """As many negative as positive ones."""
    records = read_labelled(path, text_column="document", label_column="rating", on_bad_record="skip").records
    short = [record for record in records if len(record.text) <= LONGEST]
    sides = {
        "negative": [record.text for record in short if int(record.label) <= 4],
        "positive": [record.text for record in short if int(record.label) >= 9],
    }
    return drawn(
        [{"text": text, "label": name} for name, texts in sides.items() for text in drawn(texts, count // 2)], count
    )


def pairs(path: str, count: int) -> list[dict[str, Any]]:
    """Sentences and how alike they are."""
    records = read_pairs(path, on_bad_record="skip").records
    return [{"sentence1": p.first, "sentence2": p.second, "score": p.score} for p in drawn(records, count)]


def preferences(path: str, count: int, skip: int) -> list[dict[str, Any]]:
    """Questions with their answers, preferred to the next record's; `skip` records are passed over."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [(row["Q"], row["A"]) for row in csv.DictReader(file)]
    some = drawn(rows, skip + count + 1)[skip:]
    return [{"prompt": q, "chosen": a, "rejected": b} for (q, a), (_, b) in itertools.pairwise(some) if a != b]


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """As .jsonl; left alone where it is the same."""
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return path


def tables(arguments: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Training and validation data of each task."""
    folder, count, held_out = arguments.runs / "tables", arguments.examples, arguments.held_out
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    if arguments.reviews:
        found["classify"] = reviews(arguments.reviews[0], count), reviews(arguments.reviews[1], held_out)
    if arguments.pairs:
        found["embed"] = pairs(arguments.pairs[0], count), pairs(arguments.pairs[1], held_out)
    if arguments.dialogs:
        found["dpo"] = preferences(arguments.dialogs, held_out, 0), preferences(arguments.dialogs, count, held_out + 1)
        found["dpo"] = found["dpo"][::-1]
    return {
        task: (write(folder / f"{task}-{count}.jsonl", one), write(folder / f"{task}-held-out-{held_out}.jsonl", other))
        for task, (one, other) in found.items()
    }


def measured(model: str, task: str, data: tuple[Path, Path], flags: list[str], runs: Path) -> dict[str, Any]:
    """One run."""
    name = "_".join([Path(model).resolve().name, data[0].stem, *flags]).replace("--", "").replace("/", "-")
    out = runs / name.replace(" ", "_")
    command = ["finetune", model, "--task", task, "--data", str(data[0]), "--val-data", str(data[1]), "--out", str(out)]
    command += [*flags, "--save-every", "0", "--keep-last", "1"]
    if not (out / "finetune.json").is_file() and (code := cli.main(command)):
        sys.exit(code)
    report = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    worth = WORTH[task]
    return {
        "model": model, "task": task, "examples": sum(1 for _ in data[0].open()), "flags": " ".join(flags),
        "steps": report["steps"], "kept_step": report["kept"], "seconds": report["seconds"],
        **{f"loss_{key}": report[name]["loss"] for key, name in STATES.items()},
        **{f"worth_{key}": report[name][worth] for key, name in STATES.items()},
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"\n{runtime.cpu_name()}. Validation loss, and accuracy or Spearman: before -> kept (at the end)")
    for row in rows:
        loss, worth = ([row[f"{what}_{state}"] for state in STATES] for what in ("loss", "worth"))
        print(
            f"{Path(row['model']).resolve().name[:12]:<12} {row['task']:<9} {row['examples']:>6,} {row['flags']:<40} "
            f"step {row['kept_step']} of {row['steps']}: {loss[0]:.4f} -> {loss[1]:.4f} ({loss[2]:.4f}), "
            f"{worth[0]:.3f} -> {worth[1]:.3f} ({worth[2]:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--reviews", nargs=2, metavar="TABLE", help="to train on, and to hold out")
    parser.add_argument("--pairs", nargs=2, metavar="TABLE", help="to train on, and to hold out")
    parser.add_argument("--dialogs", metavar="TABLE", help="columns Q and A")
    parser.add_argument(
        "--lr", nargs="+", default=[DEFAULT, "1e-4", "3e-4", "1e-3", "3e-3"], help="peak learning rates"
    )
    parser.add_argument("--head-lr", nargs="+", default=[DEFAULT], help="those of the head, with reviews")
    parser.add_argument("--rank", nargs="+", default=[DEFAULT], help="ranks, with twice as much alpha")
    parser.add_argument("--examples", type=int, default=400, help="examples to learn from")
    parser.add_argument("--held-out", type=int, default=200, help="examples of the validation")
    parser.add_argument("--finetune", default="--method lora", help="further flags of yeoul finetune")
    parser.add_argument("--runs", type=Path, default=Path("runs/adapter-rates"))
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/adapter-rates.json"))
    arguments = parser.parse_args()
    runtime.set_threads()
    rows = []
    for task, data in tables(arguments).items():
        heads = arguments.head_lr if task == "classify" else [DEFAULT]
        for model, rank, head, lr in itertools.product(arguments.models, arguments.rank, heads, arguments.lr):
            flags = arguments.finetune.split()
            flags += [] if rank == DEFAULT else ["--rank", rank, "--alpha", f"{2 * int(rank)}"]
            flags += [] if head == DEFAULT else ["--head-lr", head]
            flags += [] if lr == DEFAULT else ["--lr", lr]
            rows.append(measured(model, task, data, flags, arguments.runs))
            show(rows[-1:])
    show(rows)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"cpu": runtime.cpu_name(), "rows": rows}
    arguments.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
