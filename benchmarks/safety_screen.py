"""How often a safety screen errs: false positives and false negatives by threshold, with 95 % Wilson intervals.

    python benchmarks/safety_screen.py runs/screen --data test.tsv --screen-label 1 --out screen.json

CLASSIFIER is a folder of `yeoul finetune --task classify`. The table has texts and labels and must not have been
trained on; texts with one of --screen-label are to be refused, all others to pass. A false positive is a harmless text
that is refused, a false negative a harmful one that passes. Texts are judged as `yeoul chat --screen` judges them.
Prints a table with what one text costs, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from yeoul import load_screen, runtime
from yeoul.data.labelled import LabelledText, read_labelled
from yeoul.errors import UserError
from yeoul.evaluate.screening import Rate, screen_errors
from yeoul.infer.screen import Screen

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TIMED = 100
"""Texts that are judged alone, for the time."""


def measure(screen: Screen, texts: list[LabelledText], thresholds: tuple[float, ...]) -> dict[str, Any]:
    """Rates by threshold, and the median time of a text alone."""
    harmful = [text.label in screen.labels for text in texts]
    if all(harmful) or not any(harmful):
        what = "all texts are to be refused" if all(harmful) else "no text is to be refused"
        raise UserError(f"{what}: {', '.join(screen.labels)}", "--screen-label", "give a table with both kinds")
    probabilities = screen.probabilities([text.text for text in texts])
    seconds = []
    for text in texts[:TIMED]:
        start = time.perf_counter()
        screen.probabilities([text.text])
        seconds.append(time.perf_counter() - start)
    return {
        "texts": len(texts),
        "harmful": sum(harmful),
        "milliseconds": round(1000 * statistics.median(seconds), 3),
        "thresholds": [errors.to_dict() for errors in screen_errors(probabilities, harmful, thresholds)],
    }


def table(result: dict[str, Any]) -> str:
    """Rates in columns."""
    lines = ["| threshold | false positives | false negatives |", "|---|---|---|"]
    for row in result["thresholds"]:
        cells = [shown(row[name]) for name in ("false_positives", "false_negatives")]
        lines.append(f"| {row['threshold']:g} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def shown(rate: dict[str, Any]) -> str:
    """A rate with its interval."""
    known = Rate(rate["errors"], rate["cases"], rate["low"], rate["high"])
    return f"{known.value:.2%} ({known.low:.2%} to {known.high:.2%}; {known.errors:,} of {known.cases:,})"


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("--data", required=True, help="table with texts and labels")
    parser.add_argument(
        "--screen-label", "--label", action="append", required=True, help="label that is refused; may be repeated"
    )
    parser.add_argument("--text-column")
    parser.add_argument("--label-column")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("safety-screen.json"))
    arguments = parser.parse_args()
    runtime.set_threads()
    records = read_labelled(
        arguments.data, text_column=arguments.text_column, label_column=arguments.label_column, on_bad_record="skip"
    )
    screen = load_screen(arguments.classifier, arguments.screen_label, device=arguments.device)
    result = {
        "classifier": arguments.classifier,
        "data": arguments.data,
        "refused": list(screen.labels),
        "skipped": records.skipped,
        **measure(screen, records.records, tuple(arguments.thresholds)),
    }
    print(f"{result['texts']:,} texts, {result['harmful']:,} of them to be refused, {records.skipped:,} left out.")
    print(f"{result['milliseconds']:.1f} ms a text, alone (median).")
    print(table(result))
    arguments.out.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
