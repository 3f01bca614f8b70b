"""Log-probabilities of tokens in the two forms that OpenAI's endpoints give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from yeoul.infer.requests import TokenLogprob
from yeoul.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""What stands for minus infinity, which JSON does not know."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as a text: special tokens by their name, parts of a character by their bytes."""
    data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    if not data:
        return tokenizer.piece(token) if token < tokenizer.vocab_size else ""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(value: float) -> float:
    """A number that JSON knows."""
    return value if math.isfinite(value) else LOWEST


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Of chat completions: each token with its bytes and its alternatives."""

    def one(token: int, value: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
        return {"token": token_text(tokenizer, token), "logprob": finite(value), "bytes": list(data)}

    return {
        "content": [
            {**one(token.id, token.logprob), "top_logprobs": [one(*other) for other in token.top]} for token in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenLogprob | None], ids: Sequence[int], alternatives: int, offset: int = 0
) -> dict[str, Any]:
    """Of completions, as parallel lists.

    Args:
        tokens: None for the first token of a prompt, which nothing stands before.
        ids: of the same tokens.
        alternatives: how many are told; none is `null` instead of a mapping.
        offset: characters before the first token.
    """
    texts, offsets = [token_text(tokenizer, token) for token in ids], list[int]()
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops: list[dict[str, float] | None] = []
    for token in tokens:
        if token is None or not alternatives:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for other, value in token.top:  # two tokens may read alike; the likelier one stays
            top.setdefault(token_text(tokenizer, other), finite(value))
        tops.append(top)
    values = [None if token is None else finite(token.logprob) for token in tokens]
    return {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
