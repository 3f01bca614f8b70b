"""Words that are one token each, for any tokenizer: what synthetic tests of memory are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from yeoul.data.batch import Batch
from yeoul.errors import UserError

if TYPE_CHECKING:
    from yeoul.text.tokenizer import Tokenizer

ANCHORS = ("가", "a", "1", ".")
"""Texts before a word. Those that the tokenizer gives back unchanged are used."""
TEXT_TOKENS = 200_000
"""Tokens of held-out text that are enough to take fillers and prompts from."""


def whole_words(tokenizer: Tokenizer) -> list[int]:
    """Ids of pieces that are a blank and a word of at least two letters, and stay one piece in any text.

    A piece counts when its text becomes this one id again behind every anchor, at the beginning of a line, and twice
    in a row; so a sequence of such ids is what the tokenizer makes of their text.
    """
    prefixes = _prefixes(tokenizer)
    if not prefixes:
        return []
    special = set(tokenizer.special_tokens.values())
    ids, _, start = prefixes[0]
    texts: dict[int, str] = {}
    for token in range(tokenizer.vocab_size):
        if token in special or len(tokenizer.token_bytes(token)) < 3:
            continue
        text = tokenizer.decode([*ids, token])[len(start) :]
        if text[:1] == " " and len(text) >= 3 and text[1:].isalpha():
            texts[token] = text
    for before, _, text in prefixes:
        for times in (1, 2):
            if not texts:
                return []
            encoded = tokenizer.encode_batch([text + word * times for word in texts.values()])
            whole = [token for token, own in zip(texts, encoded, strict=True) if own == before + [token] * times]
            texts = {token: texts[token] for token in whole}
    return list(texts)


def _prefixes(tokenizer: Tokenizer) -> list[tuple[list[int], list[int], str]]:
    """(ids, ids of the anchor alone, text) of texts that may stand before a word, plain ones first."""
    plain, lines = [], []
    for anchor in ANCHORS:
        ids = tokenizer.encode(anchor)
        if not ids or tokenizer.unk_id in ids or tokenizer.decode(ids) != anchor:
            continue
        plain.append((ids, ids, anchor))
        line = tokenizer.encode(anchor + "\n")
        if tokenizer.decode(line) == anchor + "\n":
            lines.append((line, ids, anchor + "\n"))
    return plain + lines


def line_break(tokenizer: Tokenizer) -> list[int]:
    """Ids of a line break within a text; [] where the tokenizer knows none (it may turn it into a blank)."""
    for ids, anchor, text in _prefixes(tokenizer):
        if text.endswith("\n") and ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
    return []


def text_ids(tokenizer: Tokenizer, batches: Iterable[Batch], limit: int) -> list[int]:
    """The first `limit` tokens of held-out text, in a row; padding and special tokens are left out.

    Raises:
        UserError: there is none.
    """
    special = set(tokenizer.special_tokens.values())
    found: list[int] = []
    for batch in batches:
        ids = batch.input_ids if batch.seq_ids is None else batch.input_ids[batch.seq_ids >= 0]
        found += [token for token in ids.flatten().tolist() if token not in special]
        if len(found) >= limit:
            break
    if not found:
        raise UserError("there is no text to draw from")
    return found[:limit]
