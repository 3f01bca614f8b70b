"""Kinds of tokenizers for Korean, in two sizes, over one text: how long, how well a model learns, at what cost.

    python benchmarks/tokenizer_kinds.py train.tsv.xz --val valid.tsv.xz --published gemma-3=FOLDER --json values.json

The first documents of the text become a file of --bytes, from which every tokenizer is trained; the small model of each
reads --train-bytes of it once. Everything is counted and scored on --val-bytes of the other file. Run again, it goes on
where it stopped. Prints a table, and writes JSON, the report and its plot into --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yeoul
from yeoul.data.documents import read_documents

SMALL, LARGE = 4000, 16000
KINDS: dict[str, dict[str, Any]] = {
    "unigram": dict(model_type="unigram"),
    "bpe": dict(model_type="bpe", byte_fallback=False),
    "bpe-bytes": dict(model_type="bpe"),
    "byte-level": dict(model_type="byte-level"),
    "jamo-bpe": dict(model_type="bpe", normalization="nfd", old_hangul=True),
}
OTHERS: dict[str, dict[str, Any]] = {
    "characters-1500": dict(model_type="char", vocab_size=1500, character_coverage=1.0),
    "characters-all": dict(model_type="char", vocab_size=8000, character_coverage=1.0, old_hangul=True),
    "jamo": dict(model_type="char", normalization="nfd", vocab_size=8000, old_hangul=True),
}
"""Kinds whose size the text decides."""


def wanted() -> dict[str, dict[str, Any]]:
    """Settings of every tokenizer by name."""
    sized = {
        f"{name}-{size // 1000}k": settings | dict(vocab_size=size)
        for size in (SMALL, LARGE)
        for name, settings in KINDS.items()
    }
    return sized | OTHERS


def put(documents: Iterable[str], size: int, file: Path) -> None:
    """The first documents, as many as have so many bytes together, one a line of JSON."""
    lines, total = [], 0
    for document in documents:
        total += len(document.encode())
        if total > size:
            break
        lines.append(json.dumps({"text": document}, ensure_ascii=False))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Train what is missing, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--val", required=True, help="held-out text")
    parser.add_argument("--text-column", default="document")
    parser.add_argument("--published", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--bytes", type=int, default=3_000_000, help="text that tokenizers are trained on")
    parser.add_argument(
        "--train-bytes", type=int, default=300_000, help="text that each small model reads; 0: no model"
    )
    parser.add_argument("--val-bytes", type=int, default=50_000)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer-study"))
    parser.add_argument("--json", type=Path, help="also write the values there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, val = args.out / "train.jsonl", args.out / "val.jsonl"
    if not train.exists():
        put(read_documents(args.data, text_column=args.text_column), args.bytes, train)
        put(read_documents(args.val, text_column=args.text_column), args.val_bytes, val)
    folders = []
    for name, settings in wanted().items():
        folder = args.out / "tokenizers" / name
        if not folder.exists():
            yeoul.train_tokenizer(str(train), folder, yeoul.TrainTokenizerConfig.of(**settings))
            print(f"trained {name}", flush=True)
        folders.append(folder)
    for pair in args.published:
        name, _, place = pair.partition("=")
        folder = args.out / "tokenizers" / name
        if not folder.exists():
            yeoul.Tokenizer.load(place).save(folder)
        folders.append(folder)
    config = yeoul.CompareTokenizersConfig.of(
        val_data=str(val), val_bytes=args.val_bytes, train_bytes=args.train_bytes, segment_bytes=256, batch_size=8,
        hidden_size=args.hidden_size, layers=args.layers, lr=4e-3, dtype="float32",
    )  # fmt: skip
    result = yeoul.compare_tokenizers(
        folders, str(train), config, out=args.out / ("comparison" if args.train_bytes else "counts"), device="cpu",
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    print(result.table())
    if args.json:
        values = result.as_dict()
        del values["data"], values["settings"]["val_data"]
        for score in values["scores"]:
            del score["place"]
        args.json.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
