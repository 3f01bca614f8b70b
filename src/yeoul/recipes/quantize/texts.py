"""The text that a quantization calibrates with, and the text that it is scored on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.documents import read_documents
from yeoul.data.shards import TokenShards
from yeoul.data.windows import TextStream
from yeoul.errors import UserError
from yeoul.recipes.options import Say
from yeoul.recipes.quantize.config import QuantizeConfig
from yeoul.text.tokenizer import Tokenizer

ROWS = 8
"""Sequences at once."""


def calibration_and_scored(
    config: QuantizeConfig, tokenizer: Tokenizer | None, context: int, kept: Path, say: Say
) -> tuple[list[Tensor], list[Batch]]:
    """Rows of ids (B, T) to calibrate with, and batches (B, T) to score; all begin as the model's texts do.

    Args:
        config: which texts, and how many tokens of them.
        tokenizer: the model's; None has neither.
        context: T.
        kept: folder with the tokens that the model's run was trained on and held out, where there are any.
        say: is told how texts begin.

    Raises:
        UserError: no text is left to score.
    """
    T = context
    if tokenizer is None:
        return [], []
    wanted = 0 if config.weights.method == "rtn" else -(-config.calibration_tokens // T)
    counted = config.eval_tokens // T + 1 if config.eval_tokens else 0
    apart = config.eval_data is not None or (config.data is None and (kept / "val").is_dir())
    most = wanted * T + (0 if apart else counted * (T + 1))
    stream, place = _stream(config, tokenizer, config.data, kept / "train", most), 0
    rows, place = rows_of(stream, place, T, wanted)
    calibration = [ids for ids, _ in rows]
    if not counted:
        return calibration, []
    if apart:
        stream, place = _stream(config, tokenizer, config.eval_data, kept / "val", counted * (T + 1)), 0
    rows, _ = rows_of(stream, place, T + 1, counted)
    if not rows:
        raise UserError("there is no text left to score", fix="give --eval-data, or --eval-tokens 0")
    say(tokenizer.begins)
    return calibration, [batch_of(ids, given) for ids, given in rows]


def _stream(config: QuantizeConfig, tokenizer: Tokenizer, data: str | None, kept: Path, most: int) -> TextStream:
    """At least `most` tokens, where there are so many, of a text or of what a run has kept of its own.

    Of the built-in text where there is neither.
    """
    framing = tokenizer.framing
    if data is None and kept.is_dir():
        shards = TokenShards.open(kept, framing.begin)
        if shards.meta.fingerprint == tokenizer.fingerprint:
            return shards.stream
    end = [] if framing.separator is None else [framing.separator]
    tokens, ends = list[int](), [0]
    columns: dict[str, Any] = {"text_column": config.text_column, "reading": config.reading}
    for document in read_documents(data or "builtin", **columns) if most else ():
        tokens += [*tokenizer.encode(document), *end]
        if len(tokens) > ends[-1]:
            ends.append(len(tokens))
        if len(tokens) >= most:
            break
    return TextStream(np.array(tokens, dtype=np.int64), np.array(ends, dtype=np.int64), framing.begin)


def rows_of(stream: TextStream, place: int, length: int, count: int) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Up to `count` rows of a text from `place` on, and where they end.

    A remainder that fills no row is left out, unless there is no other.

    Returns:
        ids (B, length) int64 and which of them are begin tokens (B, length) bool, `ROWS` rows together.
    """
    found: list[tuple[Tensor, Tensor]] = []
    text = length - len(stream.begin)
    while len(found) < count and place < stream.size:
        place = stream.text_at(place)
        left = stream.size - place
        if left < text and (found or left < 2):
            break
        ids, given = stream.row(place, min(length, left + length - text))
        found.append((torch.from_numpy(ids), torch.from_numpy(given)))
        place += min(text, left)
    parts = [found[first : first + ROWS] for first in range(0, len(found), ROWS)]
    return [(torch.stack([ids for ids, _ in part]), torch.stack([given for _, given in part])) for part in parts], place


def batch_of(ids: Tensor, given: Tensor) -> Batch:
    """Rows as a batch whose begin tokens are not scored."""
    return Batch(input_ids=ids[:, :-1], labels=ids.masked_fill(given, IGNORE)[:, 1:], positions=None, seq_ids=None)
