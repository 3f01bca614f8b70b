"""Tokenizer files under which no piece of a text is longer than so many characters; the ids stay what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from yeoul.errors import UserError
from yeoul.safe_json import parse_object
from yeoul.text.files import PAIR
from yeoul.text.hf_export import UNREACHABLE
from yeoul.text.sentencepiece_model import ModelType, PieceType, read_model, with_unused


def short_pieces(files: Mapping[str, bytes], table: Sequence[bytes], longest: int) -> dict[str, bytes]:
    """The files of a tokenizer that uses only its short pieces.

    BPE loses the merges that make longer ones. Unigram scores them so low that any way around them is better; in a
    `tokenizer.model` they are unused as well, which is sentencepiece's own way of narrowing a vocabulary. Where there
    is a `tokenizer.json`, files that would say otherwise are left out.

    Args:
        files: contents by name.
        table: for each id the UTF-8 bytes of text that it stands for.
        longest: characters of a piece, at least 1; a space counts as one. A piece of bytes counts the characters of
            which it has a part.

    Raises:
        UserError: a tokenizer that cannot be narrowed so.
    """
    files = dict(files)
    too_long = {i for i, text in enumerate(table) if characters(text) > longest}
    if "tokenizer.json" in files:
        spec = parse_object(files["tokenizer.json"])
        _shorten(spec["model"], too_long)
        files["tokenizer.json"] = json.dumps(spec, ensure_ascii=False).encode()
        for name in ("tokenizer.model", *PAIR):
            files.pop(name, None)
    elif "tokenizer.model" in files:
        files["tokenizer.model"] = _shorter_model(files["tokenizer.model"], too_long)
    else:
        ids = parse_object(files[PAIR[0]])
        lines = files[PAIR[1]].decode("utf-8").split("\n")
        kept = [line for line in lines if not _makes(line.rstrip("\r").split(" "), ids, too_long)]
        files[PAIR[1]] = "\n".join(kept).encode()
    return files


def characters(text: bytes) -> int:
    """Characters of which UTF-8 bytes have at least a part."""
    begun = sum((byte & 0xC0) != 0x80 for byte in text)
    return begun + (text[:1] != b"" and (text[0] & 0xC0) == 0x80)


def _shorten(model: dict[str, Any], too_long: set[int]) -> None:
    """Changes the `model` of a `tokenizer.json`."""
    kind = model.get("type")
    if kind == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = ((merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"])
        model["merges"] = [merge for merge, pair in pairs if not _makes(pair, model["vocab"], too_long, prefix)]
        if model.get("ignore_merges"):
            model["ignore_merges"] = False  # whole words of the vocabulary would come without any merge
    elif kind == "Unigram":
        model["vocab"] = [
            [piece, min(score, UNREACHABLE) if i in too_long else score]
            for i, (piece, score) in enumerate(model["vocab"])
        ]
    else:
        raise _unsuitable(f"a tokenizer of the kind {kind}")


def _makes(pair: Sequence[str], ids: Mapping[str, int], too_long: set[int], prefix: str = "") -> bool:
    """Whether a merge makes a piece that is too long."""
    return len(pair) == 2 and ids.get(pair[0] + pair[1].removeprefix(prefix)) in too_long


def _shorter_model(data: bytes, too_long: set[int]) -> bytes:
    model = read_model(data)
    if model.type != ModelType.UNIGRAM:
        # Libraries that turn such a file into merges pass over what it says of unused pieces.
        raise _unsuitable("a tokenizer.model of BPE without a tokenizer.json beside it")
    hidden = {i for i, piece in enumerate(model.pieces) if piece.type == PieceType.NORMAL} & too_long
    return with_unused(data, hidden, UNREACHABLE)


def _unsuitable(what: str) -> UserError:
    return UserError(f"{what} cannot do without its long pieces", "--piece-length", "leave it out")
