"""Answers learned from question-answer pairs: all weights against an adapter, softmax against linear attention.

    python benchmarks/dialogs.py runs/reviews runs/reviews-linear --data chatbot.csv --out dialogs.json

Each MODEL is fine-tuned with `yeoul finetune` on 95 % of the pairs by each method, under --runs (a finished run is
taken as it is). The perplexity is that of the answers' tokens of the other 5 %, before and after. Prints a table and
writes JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from yeoul import cli, runtime

METHODS = ("full", "lora", "qlora")


def tuned(model: str, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run, and its record."""
    out = arguments.runs / f"{Path(model).resolve().name}-{method}"
    command = [
        "finetune", model, "--data", arguments.data, "--question-column", "Q", "--answer-column", "A",
        "--method", method, "--val-fraction", "0.05", "--out", str(out), *shlex.split(arguments.finetune),
    ]  # fmt: skip
    if method != "full":
        command += shlex.split(arguments.adapter)
    if not (out / "finetune.json").is_file() and (code := cli.main(command)):
        sys.exit(code)
    record = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    before, after = (math.exp(record[when]["loss"]) for when in ("before", "after"))
    return {
        "model": model, "method": method, "command": "yeoul " + shlex.join(command), "before": before, "after": after,
        "trained": record["trained"] / record["parameters"], "tokens": record["tokens"], "seconds": record["seconds"],
    }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of models")
    parser.add_argument("--data", required=True, help="table with the columns Q and A")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--finetune", default="--epochs 3", help="further flags of yeoul finetune")
    parser.add_argument("--adapter", default="--rank 6 --alpha 12", help="further flags of the adapters")
    parser.add_argument("--runs", type=Path, default=Path("runs/dialogs"))
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    runtime.set_threads()
    rows = [tuned(model, method, arguments) for model in arguments.models for method in arguments.methods]
    full = {row["model"]: row["after"] for row in rows if row["method"] == "full"}
    print(f"\n{runtime.cpu_name()}; perplexity of the answers' tokens, held-out pairs")
    print(f"{'model':<36} {'method':<6} {'trained':>8} {'before':>9} {'after':>8} {'over full':>9} {'seconds':>8}")
    for row in rows:
        row["over_full"] = row["after"] / full[row["model"]] if row["model"] in full else None
        ratio = "" if row["over_full"] is None else f"{row['over_full']:.3f}"
        figures = f"{row['trained']:>8.2%} {row['before']:>9.1f} {row['after']:>8.2f} {ratio:>9} {row['seconds']:>8.0f}"
        print(f"{row['model']:<36} {row['method']:<6} {figures}")
    if arguments.out:
        facts = {"machine": runtime.machine(), "command": " ".join(["python", *sys.argv]), "rows": rows}
        arguments.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
