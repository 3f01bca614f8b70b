"""What training verbs say beforehand that they take, against the peak that the system measures: six shapes, four verbs.

    python benchmarks/memory_estimates.py --json docs/benchmarks/memory.json
    python benchmarks/memory_estimates.py --shapes deep vocabulary --verbs pretrain

Every run is a process of its own: `yeoul VERB` for two or three steps of a random model. The estimate is what the run
leaves in memory.json, the peak is the process's largest resident set (VmHWM of /proc/self/status; Linux alone).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHILD = """
import sys, threading, time
from yeoul.cli import main
peak = 0
def look():
    global peak
    status = open("/proc/self/status").read()
    peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")))
def watch():  # `yeoul linearize` sets the mark back, to measure what reading a long text takes
    while True:
        look()
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
code = main(sys.argv[1:])
look()
print("PEAK", peak)
sys.exit(code)
"""
SHAPES: dict[str, dict[str, Any]] = {
    "deep": dict(hidden=256, layers=12, heads=4, kv=2, inner=704, V=8192, B=4, T=512),
    "wide": dict(hidden=768, layers=3, heads=8, kv=8, inner=2048, V=8192, B=4, T=256),
    "vocabulary": dict(hidden=256, layers=3, heads=4, kv=2, inner=704, V=131_072, B=2, T=256),
    "long": dict(hidden=256, layers=4, heads=4, kv=1, inner=704, V=8192, B=2, T=2048),
    "sliding": dict(
        hidden=256, layers=6, heads=4, kv=2, inner=704, V=8192, B=2, T=1024,
        attention=("sliding", "sliding", "softmax"), window=256,
    ),
    "heavy": dict(hidden=1024, layers=6, heads=16, kv=4, inner=3072, V=8192, B=1, T=128),
}  # fmt: skip
"""Models with their vocabulary V, batch B and context T: what takes most is another thing in each."""
VERBS = ("pretrain", "linearize", "chat", "classify")
STEPS = 3


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of bytes with so many pieces, most of which no text has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    pieces = ["<unk>", "<s>", "</s>", *sorted(bytes_)]
    pieces += [f"piece{number}" for number in range(len(pieces), vocabulary)]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def make_model(folder: Path, tokenizer: Path, shape: dict[str, Any]) -> None:
    """A random model of a shape with its tokenizer."""
    import torch

    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.saving import save_folder
    from yeoul.text.tokenizer import Tokenizer

    torch.manual_seed(0)
    kinds = shape.get("attention", ("softmax",))
    config = ModelConfig(
        vocab_size=shape["V"], hidden_size=shape["hidden"], num_layers=shape["layers"], num_heads=shape["heads"],
        num_kv_heads=shape["kv"], intermediate_size=shape["inner"], max_position_embeddings=4096,
        attention=kinds * (shape["layers"] // len(kinds)), window=shape.get("window", 64), bos_id=1, eos_id=2,
    )  # fmt: skip
    save_folder(Decoder(config), Tokenizer.load(tokenizer), folder)


def write_data(home: Path, shape: dict[str, Any]) -> None:
    """Conversations and labelled texts that fill the context."""
    text = "강물은 흐르고 여울은 얕다. " * (shape["T"] // 20 + 1)
    count = shape["B"] * STEPS
    with (home / "chat.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number} {text}"}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    with (home / "texts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"text": f"{number} {text}", "label": "ab"[number % 2]}, ensure_ascii=False) + "\n")


def arguments_of(verb: str, shape: dict[str, Any], home: Path) -> list[str]:
    """The command line of a run of a few steps."""
    B, T = shape["B"], shape["T"]
    common = ["--out", home / verb, "--batch-size", B, "--context", T, "--dtype", "float32", "--device", "cpu"]
    tokens = STEPS * B * T
    if verb == "pretrain":
        kinds = shape.get("attention", ("softmax",))
        flags = [
            "--hidden-size", shape["hidden"], "--layers", shape["layers"], "--heads", shape["heads"], "--kv-heads",
            shape["kv"], "--intermediate-size", shape["inner"], "--tokenizer", home / "tokenizer", "--tokens", tokens,
            "--val-tokens", B * T, "--window", shape.get("window", 64), "--max-positions", 4096, "--attention",
            *kinds * (shape["layers"] // len(kinds)),
        ]  # fmt: skip
        return ["pretrain", "builtin:500KB", *map(str, [*common, *flags])]
    model = str(home / "model")
    if verb == "linearize":
        flags = [
            "--data", "builtin:500KB", "--tokens", tokens, "--stages", "distil", "--val-tokens", B * T,
            "--compare-tokens", 0, "--contexts", 128,
        ]  # fmt: skip
        return ["linearize", model, *map(str, [*common, *flags])]
    flags = ["--method", "lora", "--epochs", 1, "--eval-every", 0, "--save-every", 0, "--val-fraction", 0]
    if verb == "chat":
        return ["finetune", model, "--data", str(home / "chat.jsonl"), *map(str, [*common, *flags])]
    return [
        "finetune", model, "--data", str(home / "texts.jsonl"), "--task", "classify", *map(str, [*common, *flags])
    ]  # fmt: skip


def measured(verb: str, shape: dict[str, Any], home: Path) -> dict[str, Any]:
    """Estimate and peak of one run, in bytes."""
    arguments = arguments_of(verb, shape, home)
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"yeoul {' '.join(arguments)} failed:\n{done.stderr}")
    peak = 1024 * int(done.stdout.rsplit("PEAK", 1)[1].split()[0])
    said = json.loads((home / verb / "memory.json").read_text(encoding="utf-8"))
    return {
        "verb": verb, "estimate": said["bytes"], "peak": peak, "ratio": said["bytes"] / peak, "phase": said["phase"],
        "parts": said["parts"], "micro_batch": said["micro_batch"],
        "gradient_checkpointing": said["gradient_checkpointing"],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| shape | verb | estimate, MiB | peak, MiB | estimate / peak | of it before the model |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        program = row["parts"].get("program and text", 0)
        lines.append(
            f"| {row['shape']} | {row['verb']} | {row['estimate'] / 2**20:,.0f} | {row['peak'] / 2**20:,.0f} | "
            f"{row['ratio']:.2f} | {program / row['peak']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs all of them and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--verbs", nargs="+", default=list(VERBS), choices=list(VERBS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.shapes:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            make_tokenizer(home / "tokenizer", shape["V"])
            make_model(home / "model", home / "tokenizer", shape)
            write_data(home, shape)
            for verb in options.verbs:
                rows.append({"shape": name, **measured(verb, shape, home)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"\nFarthest off: {worst['shape']}, {worst['verb']}: {worst['ratio']:.2f}")
    if options.json:
        from yeoul import runtime

        values = {"machine": runtime.machine(), "shapes": SHAPES, "rows": rows, "command": " ".join(sys.argv)}
        options.json.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
