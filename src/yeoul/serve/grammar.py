"""Answers of a given form, by the library llguidance: JSON, a JSON schema, a grammar, a regular expression.

A grammar says before each token which ids may follow. It is made once for a request; each of the request's answers has
a matcher of its own, so nothing of one answer is left for the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yeoul.serve.errors import ApiError
from yeoul.serve.schema import ResponseFormat
from yeoul.text.tokenizer import Tokenizer

ANY_OBJECT = {"type": "object"}
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way of writing white space: a small model may otherwise write spaces for ever."""


class GuidedMatcher:
    """One answer's place in its grammar; see `yeoul.infer.requests.Matcher`."""

    def __init__(self, tokenizer: Any, grammar: str, vocab_size: int) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokenizer, grammar)
        self._words = np.zeros((1, (vocab_size + 31) // 32), dtype=np.int32)
        self._vocab_size = vocab_size

    def mask(self) -> NDArray[np.bool_]:
        """(V,): which ids may come next."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._words)
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].view(np.bool_)

    def accept(self, token: int) -> None:
        """Goes on behind a token."""
        self._matcher.consume_token(token)

    def is_done(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._matcher.is_stopped())


class GuidedGrammar:
    """A grammar that was found to be sound; see `yeoul.infer.requests.Grammar`."""

    def __init__(self, tokenizer: Any, grammar: str, vocab_size: int) -> None:
        self._tokenizer, self._grammar, self._vocab_size = tokenizer, grammar, vocab_size

    def matcher(self) -> GuidedMatcher:
        """A fresh one, for one answer."""
        return GuidedMatcher(self._tokenizer, self._grammar, self._vocab_size)


def grammar_of(form: ResponseFormat | None, tokenizer: Tokenizer, ends: Sequence[int]) -> GuidedGrammar | None:
    """The grammar that a request asks for; None where any text will do.

    Raises:
        ApiError: a damaged schema or grammar, or a library or tokenizer that cannot do it.
    """
    if form is None or form.type == "text":
        return None
    if form.type == "json_schema":
        schema = form.json_schema.schema_ if form.json_schema is not None else None
        if schema is None:
            raise ApiError(
                400, "response_format of the type json_schema needs json_schema.schema", param="response_format"
            )
        return schema_grammar(schema, tokenizer, ends)
    if form.type == "json_object":
        return schema_grammar(ANY_OBJECT, tokenizer, ends)
    field, text = ("grammar", form.grammar) if form.type == "grammar" else ("pattern", form.pattern)
    if text is None:
        raise ApiError(400, f"response_format of the type {form.type} needs {field}", param="response_format")
    from llguidance import LLMatcher

    make = LLMatcher.grammar_from_lark if form.type == "grammar" else LLMatcher.grammar_from_regex
    return _checked(make(text), tokenizer, ends)


def schema_grammar(schema: Mapping[str, Any], tokenizer: Tokenizer, ends: Sequence[int]) -> GuidedGrammar:
    """Texts that are JSON by a schema."""
    _library()
    from llguidance import LLMatcher

    text = json.dumps(schema)
    if len(text) > 200_000:
        raise ApiError(400, "the JSON schema is too large", param="response_format")
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, defaults=COMPACT)
    except ValueError as error:
        raise _refused(str(error)) from None
    return _checked(grammar, tokenizer, ends)


def lark_grammar(text: str, tokenizer: Tokenizer, ends: Sequence[int]) -> GuidedGrammar:
    """Texts of a grammar in Lark's syntax as llguidance reads it."""
    _library()
    from llguidance import LLMatcher

    return _checked(LLMatcher.grammar_from_lark(text), tokenizer, ends)


def _checked(grammar: str, tokenizer: Tokenizer, ends: Sequence[int]) -> GuidedGrammar:
    _library()
    from llguidance import LLMatcher

    known = _ids(tokenizer, tuple(ends))
    if error := LLMatcher.validate_grammar(grammar, known):
        raise _refused(error)
    return GuidedGrammar(known, grammar, tokenizer.vocab_size)


def _refused(reason: str) -> ApiError:
    first = " ".join(reason.split())
    return ApiError(400, f"the form of the answer cannot be followed: {first[:300]}", param="response_format")


def _library() -> None:
    try:
        import llguidance  # noqa: F401
    except ModuleNotFoundError:
        fix = "install it: pip install 'yeoul[serve]'"
        raise ApiError(501, f"response_format needs the package llguidance, which the server lacks; {fix}") from None


class _Pieces:
    """A tokenizer as llguidance asks about it: bytes of each token, and ids of a text."""

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos_id
        self.special_token_ids = sorted(set(tokenizer.special_tokens.values()) | {end})
        special = set(self.special_token_ids)
        self.tokens = [
            tokenizer.piece(token).encode() if token in special else tokenizer.token_bytes(token)
            for token in range(tokenizer.vocab_size)
        ]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


@lru_cache(maxsize=8)
def _ids(tokenizer: Tokenizer, ends: tuple[int, ...]) -> Any:
    """The library's own tables of a tokenizer."""
    from llguidance import LLTokenizer, TokenizerWrapper

    inside = sorted(token for token in ends if token < tokenizer.vocab_size)
    if not inside:
        raise ApiError(400, "the model has no token that ends a text, so its answers cannot have a form")
    return LLTokenizer(TokenizerWrapper(_Pieces(tokenizer, inside[0])), eos_token=inside)
