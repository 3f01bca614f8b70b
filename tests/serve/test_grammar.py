"""Answers that are held to a form."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
pytest.importorskip("llguidance", reason="the package llguidance is not installed")

from yeoul.serve.errors import ApiError  # noqa: E402
from yeoul.serve.grammar import grammar_of  # noqa: E402
from yeoul.serve.schema import ResponseFormat  # noqa: E402
from yeoul.text.tokenizer import Tokenizer  # noqa: E402

SCHEMA = {
    "type": "object",
    "properties": {"이름": {"enum": ["여울", "한강"]}, "나이": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["이름", "나이"],
    "additionalProperties": False,
}


def written(form: dict[str, object], tokenizer: Tokenizer, seed: int) -> str:
    """A text of random tokens among those that may follow."""
    grammar = grammar_of(ResponseFormat.model_validate(form), tokenizer, tokenizer.stop_ids)
    assert grammar is not None
    matcher, dice, ids = grammar.matcher(), random.Random(seed), []
    for _ in range(400):
        allowed = np.flatnonzero(matcher.mask())
        assert len(allowed), "nothing may follow"
        token = int(dice.choice(allowed))
        if token in tokenizer.stop_ids:
            return tokenizer.decode(ids)
        matcher.accept(token)
        ids.append(token)
        if matcher.is_done():
            return tokenizer.decode(ids)
    raise AssertionError("the text did not end")


@pytest.mark.parametrize("seed", range(8))
def test_any_tokens_that_are_allowed_make_json_by_the_schema(folders, seed):
    tokenizer = Tokenizer.load(folders["linear"])
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    value = json.loads(written(form, tokenizer, seed))
    assert set(value) == {"이름", "나이"} and value["이름"] in ("여울", "한강") and 0 <= value["나이"] <= 99


def test_a_regular_expression_and_a_grammar(folders):
    tokenizer = Tokenizer.load(folders["linear"])
    assert written({"type": "regex", "pattern": "(네|아니요)[.!]"}, tokenizer, 0) in (
        "네.",
        "네!",
        "아니요.",
        "아니요!",
    )
    assert written({"type": "grammar", "grammar": 'start: "하나" | "둘"'}, tokenizer, 1) in ("하나", "둘")


def test_two_answers_do_not_share_their_place(folders):
    tokenizer = Tokenizer.load(folders["linear"])
    form = ResponseFormat(type="regex", pattern="ab")
    grammar = grammar_of(form, tokenizer, tokenizer.stop_ids)
    first, second = grammar.matcher(), grammar.matcher()
    before = second.mask().copy()
    first.accept(int(np.flatnonzero(first.mask())[0]))
    assert (second.mask() == before).all()


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://example.org/schema"}}},
        {"type": "regex", "pattern": "("},
        {"type": "regex"},
        {"type": "grammar", "grammar": "start: missing"},
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(folders, form):
    tokenizer = Tokenizer.load(folders["linear"])
    with pytest.raises(ApiError) as error:
        grammar_of(ResponseFormat.model_validate(form), tokenizer, tokenizer.stop_ids)
    assert error.value.status == 400


def test_text_needs_no_grammar(folders):
    assert grammar_of(None, Tokenizer.load(folders["linear"]), ()) is None
    assert grammar_of(ResponseFormat(type="text"), Tokenizer.load(folders["linear"]), ()) is None
