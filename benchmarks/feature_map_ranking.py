"""The feature maps ranked: one teacher, one text, one budget, one recipe; the map is all that differs.

    python benchmarks/feature_map_ranking.py TEACHER --data text.jsonl --val-data held-out.jsonl --tokens 195000 \
        --run runs/ranking --out docs/benchmarks/feature-map-ranking.json

Each map is converted by `yeoul linearize` twice, with a softmax window (--windows 64) and as linear attention alone
(0), into RUN/MAP-WINDOW; what is finished there is not done again, and what was stopped goes on. Maps have as many
features as --features says, where they can ("elu" has as many as a head has channels). A map of which alignment can
learn nothing gives its share of the budget to the distillation. The ranking is by loss on --val-data; perplexities
are quoted over the teacher's. What stands behind `--` is handed to every `yeoul linearize` as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from yeoul import runtime

ADDITIVE = ("dijiang", "performer", "pff", "wpff", "dcf", "wdcf", "dijiang-code", "hedgehog", "elu")
MAPS: dict[str, tuple[str, ...]] = {
    **{name: ("--map", name, "--state-update", "additive") for name in ADDITIVE},
    "delta-dijiang": ("--map", "dijiang", "--state-update", "delta"),
    "delta-fourier": ("--map", "fourier", "--state-update", "delta"),
}
"""Flags of each entry: the sums of the paper's ablation, then the delta rule with two maps."""
OWN_FEATURES = ("elu",)
"""Maps that have as many features as they have, whatever is asked."""
NOTHING_TO_LEARN = "has no trained parameters"
"""What `yeoul linearize` says where alignment would train nothing."""


def command(options: argparse.Namespace, name: str, window: int, out: Path) -> list[str]:
    """The conversion of one entry."""
    attention = ["--attention", "hybrid", "--window", str(window)] if window else ["--attention", "dijiang"]
    features = [] if name in OWN_FEATURES else ["--features", str(options.features)]
    return [
        sys.executable, "-m", "yeoul", "linearize", options.teacher, "--data", options.data,
        "--val-data", options.val_data, "--tokens", str(options.tokens), "--batch-size", str(options.batch_size),
        "--seed", str(options.seed), "--patience", "0", "--compare-tokens", str(options.compare_tokens),
        "--contexts", "512", *attention, *MAPS[name], *features, *options.more, "--out", str(out),
    ]  # fmt: skip


def identity(arguments: list[str]) -> list[str]:
    """What must be the same for a finished conversion to count: all but the interpreter and the folder."""
    return arguments[3:-2]


def convert(options: argparse.Namespace, name: str, window: int) -> dict[str, Any]:
    """The record of one entry, from its folder where it is finished there."""
    out = options.run / f"{name}-{window}"
    out.mkdir(parents=True, exist_ok=True)
    arguments = command(options, name, window, out)
    done = out / "ranking.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        if found["identity"] == identity(arguments):
            return found
        arguments.append("--overwrite")
    log = out / "log.txt"
    code, more = call(arguments, log), []
    if code == 2 and NOTHING_TO_LEARN in log.read_text(encoding="utf-8"):
        more = ["--align-share", "0"]
        code = call([*without(arguments, "--align-share"), *more], log)
    if code < 0 or code in (130, 143):
        raise SystemExit(f"stopped at {name}, window {window}; the same command again goes on")
    record: dict[str, Any] = {"map": name, "window": window, "identity": identity(command(options, name, window, out))}
    record |= {"more": more, "exit_code": code}
    if code:
        return record | {"error": log.read_text(encoding="utf-8").strip().split("\n")[-1]}
    record |= summary(json.loads((out / "linearize.json").read_text(encoding="utf-8")))
    done.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return record


def without(arguments: list[str], flag: str) -> list[str]:
    """The arguments without a flag and its value: no flag may be given twice."""
    if flag not in arguments:
        return arguments
    at = arguments.index(flag)
    return arguments[:at] + arguments[at + 2 :]


def call(arguments: list[str], log: Path) -> int:
    """Runs a command with all that it says in a file."""
    with log.open("w", encoding="utf-8") as file:
        return subprocess.run(arguments, stdout=file, stderr=subprocess.STDOUT).returncode


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What the ranking needs of a `linearize.json`."""
    teacher, converted = result["scores"]["teacher"], result["scores"]["converted"]
    values = {
        "teacher_loss": teacher["loss"], "loss": converted["loss"], "bits_per_byte": converted["bits_per_byte"],
        "perplexity_ratio": math.exp(converted["loss"] - teacher["loss"]),
        "tokens": result["tokens"], "seconds": sum(stage["seconds"] for stage in result["stages"].values()),
        "stages": {name: [stage["before"], stage["after"]] for name, stage in result["stages"].items()},
    }  # fmt: skip
    comparison = result["comparison"] or {}
    rows = {row["name"]: row for row in (comparison.get("long_context") or {}).get("rows", [])}
    if "converted" in rows:
        values["retained"] = rows["converted"]["retained"]
    if "converted" in comparison.get("mqar", {}):
        values["recall"] = comparison["mqar"]["converted"].get("of_teacher_beyond_window")
    return values


def table(records: list[dict[str, Any]]) -> str:
    """The ranking of each window as text, best first; what could not be converted, and why, stands last."""
    lines = []
    for window in sorted({r["window"] for r in records}, reverse=True):
        rows = [r for r in records if r["window"] == window]
        lines.append(f"\nwindow {window}" if window else "\nlinear attention alone")
        lines.append(f"{'map':<15} {'loss':>8} {'perplexity over the teacher':>28} {'retained':>8} {'minutes':>8}")
        for r in sorted((r for r in rows if "loss" in r), key=lambda r: r["loss"]):
            retained = (r.get("retained") or r.get("kept") or {}).get("value")
            share = "-" if retained is None else f"{retained:.3f}"
            ratio, minutes = r["perplexity_ratio"], r["seconds"] / 60
            lines.append(f"{r['map']:<15} {r['loss']:>8.4f} {ratio:>28.4f} {share:>8} {minutes:>8.1f}")
        lines += [f"{r['map']:<15} {r['error']}" for r in rows if "error" in r]
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; `more` is what stands behind `--`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="folder of the softmax model")
    parser.add_argument("--data", required=True, help="text to train on")
    parser.add_argument("--val-data", required=True, help="text to rank by")
    parser.add_argument("--run", type=Path, default=Path("runs/ranking"), help="folder of the conversions")
    parser.add_argument("--maps", nargs="+", choices=list(MAPS), default=list(MAPS))
    parser.add_argument("--windows", type=int, nargs="+", default=[64, 0], help="0: linear attention alone")
    parser.add_argument("--tokens", type=int, default=195_000, help="budget of each conversion")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument(
        "--compare-tokens",
        type=int,
        default=0,
        help="tokens on which the retained long-context gain is measured; 0: none",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON, written after each conversion")
    options = parser.parse_args(given[:cut])
    options.more = given[cut + 1 :]
    return options


def main() -> None:
    """See the module."""
    options = parse()
    records = []
    for window in options.windows:
        for name in options.maps:
            records.append(convert(options, name, window))
            record = records[-1]
            print(f"{name}, window {window}: {record.get('error') or format(record['loss'], '.4f')}", flush=True)
            if options.out is not None:
                facts = {
                    "command": " ".join(["python", *sys.argv]), "machine": runtime.machine(),
                    "tokens": options.tokens, "features": options.features, "records": records,
                }  # fmt: skip
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    main()
