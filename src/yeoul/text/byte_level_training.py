"""Training of byte-level BPE by the library tokenizers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

from yeoul.errors import UserError
from yeoul.text.byte_level import byte_level_alphabet
from yeoul.text.gguf_pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer_of

WORDS, SINGLE_DIGITS = "smaug-bpe", "qwen2"
"""How text is cut into words, by llama.cpp's names: Llama 3's pattern, and Qwen 2's, where each digit stands alone."""
SEED = 0
"""Of the lines that are drawn from a text that has too many."""


def train_byte_level(
    lines: Iterable[str],
    *,
    vocab_size: int,
    special: tuple[str, ...],
    symbols: tuple[str, ...],
    normalization: str,
    split_digits: bool,
    most_lines: int,
) -> str:
    """The text of a `tokenizer.json`: byte-level BPE as in GPT-2, Llama 3 and Qwen.

    Ids: special tokens, user symbols, the 256 bytes, then merges by frequency.

    Args:
        lines: of the text, read once.
        vocab_size: ids in all.
        special: special tokens.
        symbols: strings that are always one token.
        normalization: "nfc", "nfd" or "identity".
        split_digits: every digit stands alone; otherwise up to three together.
        most_lines: more than these are sampled.

    Raises:
        UserError: no text, or too little for such a vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    chosen = drawn(lines, most_lines)
    if not any(not line.isspace() for line in chosen):
        raise UserError("there is no text to train a tokenizer on", "--data", "give some text")
    backend = Tokenizer(models.BPE())
    if normalization != "identity":
        backend.normalizer = normalizers.NFC() if normalization == "nfc" else normalizers.NFD()
    backend.pre_tokenizer = pre_tokenizer_of(_pattern(SINGLE_DIGITS if split_digits else WORDS))
    backend.decoder = decoders.ByteLevel()
    own: Any = [AddedToken(text, special=True, normalized=False) for text in (*special, *symbols)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=own, initial_alphabet=sorted(byte_level_alphabet()), show_progress=False
    )
    backend.train_from_iterator(chosen, trainer)
    found = backend.get_vocab_size()
    if found < vocab_size:
        what = f"the vocabulary of {vocab_size:,} is larger than this text allows"
        raise UserError(what, "--vocab-size", f"use at most {found}, or give more text")
    spec = json.loads(backend.to_str())
    for token in spec["added_tokens"]:
        token["special"] = token["content"] in special
    return json.dumps(spec, ensure_ascii=False, indent=2) + "\n"


def drawn(lines: Iterable[str], most: int) -> list[str]:
    """At most so many lines, each as likely as any other (reservoir sampling), the same every time."""
    kept: list[str] = []
    draw = random.Random(SEED)
    for number, line in enumerate(lines):
        if number < most:
            kept.append(line)
        elif (place := draw.randrange(number + 1)) < most:
            kept[place] = line
    return kept


def _pattern(name: str) -> str:
    return next(how for own, _, how in PRE_TOKENIZERS if own == name)
