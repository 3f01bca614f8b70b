"""Korean to English with examples in the prompt, before and after learning from pairs, softmax and linearized.

    python benchmarks/translation.py gemma-3-270m --pairs parallel --linear runs/linear/model \
        --out docs/benchmarks/translation.json

MODEL is a base model; PAIRS has jhe-dev.{ko,en}, of which the first are examples and all are learned from, and
jhe-eval.{ko,en}, whose first `--limit` are translated. Three comparisons, each one run of `yeoul translate`: four
examples against none; a LoRA adapter trained on the pairs, asked without examples, against the model with four; and,
with `--linear`, the converted model against the original with so many examples (`--many`) that they reach beyond its
window. What is in the folder already is not done again. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def yeoul(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "yeoul", *arguments], check=True)


def compared(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs a comparison, or goes on with it; its scores."""
    yeoul("translate", *arguments, "--out", str(folder))
    found = json.loads((folder / "translate.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("systems", "scores", "verdict", "seconds")} | {
        "sentences": len(found["sentences"])
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--linear", type=Path, default=None)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--few", type=int, default=24, help="sentences of the comparison with many examples")
    parser.add_argument("--many", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/translation"))
    parser.add_argument("--only", nargs="+", default=["examples", "tuned", "linear"])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = lambda part: ["--source", f"{options.pairs}/{part}.ko", "--target", f"{options.pairs}/{part}.en"]  # noqa: E731
    shown = ["--examples-source", f"{options.pairs}/jhe-dev.ko", "--examples-target", f"{options.pairs}/jhe-dev.en"]
    common = [*lines("jhe-eval"), *shown, "--max-tokens", "48"]
    found: dict[str, Any] = {}
    if "examples" in options.only:
        found["examples"] = compared(
            options.folder / "examples", options.model, *common, "--limit", str(options.limit)
        )  # fmt: skip
    if "tuned" in options.only:
        dialogs, tuned = options.folder / "pairs.jsonl", options.folder / "tuned"
        yeoul("translate", options.model, *lines("jhe-dev"), "--dialogs", str(dialogs))
        yeoul("finetune", options.model, "--data", str(dialogs), "--method", "lora", "--epochs", str(options.epochs),
              "--out", str(tuned), "--no-report")  # fmt: skip
        found["tuned"] = compared(
            options.folder / "before-after", str(tuned), "--against", options.model, "--chat", "--no-chat-b", "--shots",
            "0", "--shots-b", "4", *common, "--limit", str(options.limit),
        )  # fmt: skip
    if "linear" in options.only and options.linear is not None:
        found["linear"] = compared(
            options.folder / "linear", str(options.linear), "--against", options.model, *common,
            "--shots", str(options.many), "--limit", str(options.few), "--batch-size", "4",
        )  # fmt: skip
    print(f"\n{'':12}{'system':28}{'chrF':>8}{'95 %':>16}{'p':>8}{'BLEU':>8}{'p':>8}")
    for name, row in found.items():
        for system, scores in zip(row["systems"], row["scores"], strict=True):
            chrf, bleu = scores["chrF2"], scores["BLEU"]
            p = ["" if score["p_value"] is None else f"{score['p_value']:.3f}" for score in (chrf, bleu)]
            between = f"{chrf['low']:.1f} to {chrf['high']:.1f}"
            print(f"{name:12}{system:28}{chrf['score']:>8.1f}{between:>16}{p[0]:>8}{bleu['score']:>8.1f}{p[1]:>8}")
    if options.out is not None:
        record = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine(), "comparisons": found}
        options.out.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
