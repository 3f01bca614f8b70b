"""A published model through every verb: peak memory and time of each as a process of its own.

    python benchmarks/gemma.py gemma-3-270m --reviews reviews --dialogs chatbot-ko.csv --out docs/benchmarks/gemma.json

MODEL is a Hugging Face folder. --reviews holds train.tsv.xz and test.tsv.xz, film reviews with the columns movie_id,
rating and document; --dialogs is a table of questions and answers, Q and A. From the reviews 200 clear negative and 200
clear positive texts are taken to learn from and as many to be held out (ratings 1 to 4; 9 and 10; at most 140
characters), and the first 200 pairs of the dialogs. Every verb runs with its defaults but for what is named in the
table, with the commands that are printed. The peak is the largest resident set of the process, mapped files included.
Results go under --runs; one that is there is made anew. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import lzma
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from yeoul import units

LONGEST = 140


def labelled(path: Path, each: int) -> list[tuple[str, str]]:
    """The first so many clear negative and clear positive reviews, in turns."""
    found: dict[str, list[str]] = {"negative": [], "positive": []}
    for row in csv.DictReader(io.StringIO(lzma.open(path, "rt", encoding="utf-8").read()), delimiter="\t", quoting=3):
        rating, text = int(row["rating"]), row["document"]
        if len(text) <= LONGEST and rating not in range(5, 9):
            texts = found["positive" if rating >= 9 else "negative"]
            if len(texts) < each:
                texts.append(text)
    pairs = [[(text, label) for text in texts] for label, texts in found.items()]
    return [pair for both in zip(*pairs, strict=True) for pair in both]


def write_table(path: Path, rows: list[tuple[str, str]], header: tuple[str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def high_water(pid: int) -> int:
    """The kernel's mark of a process's largest resident set, in bytes; 0 where it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return max((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), default=0)


def measured(command: list[str], log: Path) -> dict[str, Any]:
    """Seconds, CPU seconds, peak bytes and exit code of a command; what it prints goes to a file."""
    print(f"$ {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        peak, pid = 0, 0
        while not pid:  # `yeoul linearize` sets the kernel's mark back, so that it has to be read meanwhile
            peak = max(peak, high_water(process.pid))
            time.sleep(0.1)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    return {
        "command": shlex.join(["yeoul", *command[3:]]),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": max(peak, usage.ru_maxrss * 1024),
        "exit_code": os.waitstatus_to_exitcode(status),
    }


def commands(options: argparse.Namespace, tables: Path) -> dict[str, list[str]]:
    """What is run, by name."""
    model, runs = options.model, options.runs
    quantize = [
        *text(options, "train"), "--eval-data", str(options.reviews / "test.tsv.xz"), "--eval-tokens", "20_000",
        "--calibration-tokens", "16_384",
    ]  # fmt: skip
    tuned = ["--method", "lora", "--overwrite"]
    return {
        "linearize, 20,000 tokens": [
            "linearize", model, *text(options, "train"), "--join-by", "movie_id", "--tokens", "20_000",
            "--out", f"{runs}/linear", "--overwrite",
        ],
        "chat, LoRA, 200 pairs": [
            "finetune", model, "--data", str(tables / "dialogs.csv"), *tuned, "--out", f"{runs}/chat",
        ],
        "classify, LoRA, 200 + 200 texts": [
            "finetune", model, "--task", "classify", "--data", str(tables / "train.csv"),
            "--val-data", str(tables / "held-out.csv"), *tuned, "--out", f"{runs}/sentiment",
        ],
        "quantize, 8 bits, 16,384 tokens": [
            "quantize", model, "--bits", "8", *quantize, "--out", f"{runs}/8-bit", "--overwrite",
        ],
        "quantize, 4 bits, 16,384 tokens": [
            "quantize", model, "--bits", "4", *quantize, "--out", f"{runs}/4-bit", "--overwrite",
        ],
        "export, GGUF": ["export", model, "--format", "gguf", "--out", f"{runs}/model.gguf", "--overwrite"],
        "embed, 400 texts": ["embed", model, "--data", str(tables / "train.csv"), "--out", f"{runs}/vectors.npy"],
    }  # fmt: skip


def text(options: argparse.Namespace, part: str) -> list[str]:
    return ["--data", str(options.reviews / f"{part}.tsv.xz"), "--text-column", "document"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--dialogs", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/gemma"))
    parser.add_argument("--only", nargs="+", default=[], help="names that begin so")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON; names that are in it stay")
    options = parser.parse_args(arguments)
    tables = options.runs / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", "train"), ("held-out", "test")):
        write_table(tables / f"{name}.csv", labelled(options.reviews / f"{part}.tsv.xz", 200), ("text", "label"))
    with options.dialogs.open(encoding="utf-8", newline="") as file:
        pairs = [(row["Q"], row["A"]) for row, _ in zip(csv.DictReader(file), range(200), strict=False)]
    write_table(tables / "dialogs.csv", pairs, ("Q", "A"))
    found: dict[str, Any] = {}
    if options.out is not None and options.out.is_file():
        found = json.loads(options.out.read_text(encoding="utf-8"))["verbs"]
    for name, command in commands(options, tables).items():
        if options.only and not any(name.startswith(begin) for begin in options.only):
            continue
        log = options.runs / f"{name.replace(', ', '-').replace(' ', '-')}.log"
        found[name] = measured([sys.executable, "-m", "yeoul", *command], log)
        print(log.read_text(encoding="utf-8")[-600:], flush=True)
    record = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine(), "verbs": found}
    if options.out is not None:
        options.out.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"\n{'':34}{'peak':>10}{'time':>14}{'CPU':>14}")
    for name, row in found.items():
        times = f"{units.duration(row['seconds']):>14}{units.duration(row['cpu_seconds']):>14}"
        failed = "" if row["exit_code"] == 0 else f"  exit code {row['exit_code']}"
        print(f"{name:34}{units.size(row['peak_bytes']):>10}{times}{failed}")
    return int(any(row["exit_code"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
