"""Byte-level BPE: GPT-2's letters for bytes, and the `tokenizer.json` of `vocab.json` with `merges.txt`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from yeoul.safe_json import parse_object
from yeoul.text.added_tokens import CLASSES, TokenizerClass


@cache
def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(rest)}


def byte_level_json(vocabulary: bytes, merges: bytes, habits: TokenizerClass | None, special: Iterable[str]) -> bytes:
    """The `tokenizer.json` of a byte-level BPE vocabulary.

    Args:
        vocabulary: `vocab.json`, piece to id.
        merges: `merges.txt`, a pair of pieces a line, the most frequent first.
        habits: how texts are cut; GPT-2's way when None.
        special: special tokens, those that the vocabulary has.

    Raises:
        ValueError: a damaged file.
    """
    habits = habits or CLASSES["GPT2Tokenizer"]
    ids = parse_object(vocabulary)
    if not all(type(i) is int for i in ids.values()):
        raise ValueError("vocab.json maps no pieces to ids")
    byte_level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    cut: dict[str, Any] = {**byte_level, "use_regex": True}
    if habits.byte_level is not None:
        split = {"type": "Split", "pattern": {"Regex": habits.byte_level}, "behavior": "Isolated", "invert": False}
        cut = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    known = [text for text in dict.fromkeys(special) if text in ids]
    spec = {
        "version": "1.0",
        "added_tokens": [{"id": ids[text], "content": text, **flags} for text in sorted(known, key=ids.__getitem__)],
        "normalizer": {"type": "NFC"} if habits.nfc else None,
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": _pairs(merges)},
    }
    return json.dumps(spec).encode()


def _pairs(merges: bytes) -> list[list[str]]:
    pairs = []
    for number, line in enumerate(merges.decode("utf-8").split("\n"), 1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(f"line {number} of merges.txt is not a pair of pieces")
        pairs.append(parts)
    return pairs
