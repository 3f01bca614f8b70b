"""Text from the engine: whole characters, stop strings, results; with a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.errors import UserError
from yeoul.infer.engine import Session, TextStream, generate, run, stream
from yeoul.infer.sample import SamplingParams
from yeoul.infer.stopping import StopMatcher

EOS = 257
TEXT = "여울은 흐른다 🌊끝."
GREEDY = dict(temperature=0, max_tokens=100)


Says = Callable[..., Any]


def test_pieces_are_whole_characters_and_add_up(says: Says, byte_tokenizer: Any) -> None:
    pieces = list(stream(says(TEXT), byte_tokenizer, "x", **GREEDY))
    assert "".join(pieces) == TEXT == generate(says(TEXT), byte_tokenizer, "x", **GREEDY)
    assert len(pieces) == len(TEXT) and all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("흐른",), "여울은 "), (("른다",), "여울은 흐"), (("없음",), TEXT), (("🌊",), "여울은 흐른다 "),
        (("다 🌊", "은"), "여울"), (("여",), ""), (("끝.!", "끝.."), TEXT), ((".",), TEXT[:-1]),
    ],
)  # fmt: skip
def test_stop_strings_never_show(says: Says, byte_tokenizer: Any, stops: tuple[str, ...], expected: str) -> None:
    assert generate(says(TEXT), byte_tokenizer, "x", stop=stops, **GREEDY) == expected
    shown = ""
    for piece in stream(says(TEXT), byte_tokenizer, "x", stop=stops, **GREEDY):
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected


def test_the_model_stops_working_at_a_stop_string(says: Says, byte_tokenizer: Any) -> None:
    model = says("abcdefgh")
    list(stream(model, byte_tokenizer, "x", stop="cd", **GREEDY))
    assert len(model.calls) == 4


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_matcher_is_a_search_however_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    matcher, shown, rest = StopMatcher(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += matcher.push(rest[:size])
        rest = rest[size:]
    shown += matcher.flush()
    assert matcher.stopped == bool(ends) and shown == matcher.text
    if ends:  # which of two overlapping stop strings ends the text depends on which is complete first
        assert shown in {text[:end] for end in ends}
    else:
        assert shown == text


def test_results_of_a_batch_in_order(says: Says, byte_tokenizer: Any) -> None:
    model, params = (
        says("하나", "둘!", "c stop d"),
        SamplingParams(stop=("stop",), temperature=0, max_tokens=8),
    )
    results = run(model, byte_tokenizer, ["aa", "bb", "cc"], params)
    assert [r.text for r in results] == ["하나", "둘!", "c "]
    assert [r.finish_reason for r in results] == ["eos", "eos", "stop"]
    assert [r.prompt_tokens for r in results] == [2, 2, 2]
    assert results[0].ids == list("하나".encode()) and results[0].seconds >= results[0].prefill_seconds > 0


def test_a_continuation_keeps_its_first_space(says: Says, byte_tokenizer: Any) -> None:
    assert generate(says(" 흐른다"), byte_tokenizer, "여울은", **GREEDY) == " 흐른다"
    assert "".join(stream(says(" 흐른다"), byte_tokenizer, "여울은", **GREEDY)) == " 흐른다"


def test_an_answer_behind_a_special_token_is_a_text_of_its_own(says: Says, byte_tokenizer: Any) -> None:
    assert "".join(stream(says(" 네"), byte_tokenizer, [*b"ask", 256], **GREEDY)) == "네"
    assert generate(says(" 네"), byte_tokenizer, "", **GREEDY) == "네"


def test_an_answer_cut_within_a_character_shows_no_half(says: Says, byte_tokenizer: Any) -> None:
    (result,) = run(says("가나"), byte_tokenizer, ["x"], SamplingParams(temperature=0, max_tokens=4))
    assert result.finish_reason == "length" and result.text == "가"


def test_prompts_of_very_different_length_are_batched_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from yeoul.infer import engine

    monkeypatch.setattr(engine, "PREFILL_CHUNK", 8)
    assert list(engine._groups([1, 30, 2, 29, 9, 3], 2)) == [[1, 3], [4, 5], [2, 0]]
    assert list(engine._groups([1, 30, 2, 29, 9, 3], 9)) == [[1, 3], [4, 5, 2], [0]]


def test_equal_prompts_are_read_once(says: Says, byte_tokenizer: Any) -> None:
    model = says("abc", "abc", "abc")
    run(model, byte_tokenizer, ["same"] * 3, SamplingParams(temperature=0, max_tokens=2))
    assert model.calls[0] == (1, 4)


def test_an_empty_prompt_begins_a_text(says: Says, byte_tokenizer: Any) -> None:
    model = says("abc")
    assert generate(model, byte_tokenizer, "", **GREEDY) == "abc"
    assert model.calls[0] == (1, 1)


def test_no_tokenizer(says: Says, byte_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        generate(says("a"), None, "x")


def test_bad_settings_name_the_flag(says: Says, byte_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="--top-p"):
        generate(says("a"), byte_tokenizer, "x", top_p=2)


def answer(session: Session, ids: list[int]) -> TextStream:
    pieces = session.stream(ids, SamplingParams(temperature=0, max_tokens=20))
    list(pieces)
    return pieces


def test_a_session_reads_only_what_is_new(says: Says, byte_tokenizer: Any) -> None:
    model = says("abc")
    session = Session(model, byte_tokenizer)
    first = list(b"question one")
    answer(session, first)
    assert session.reused == 0
    model.calls.clear()
    answer(session, [*first, *b"abc", EOS, *b"next"])
    assert session.reused == len(first) + 3 and model.calls[0] == (1, 5)
    model.calls.clear()
    answer(session, list(b"something else"))
    assert session.reused == 0 and model.calls[0] == (1, 14)


def test_a_conversation_that_outgrows_its_rotation_is_read_once_more(
    tiny: Callable[..., Any], byte_tokenizer: Any
) -> None:
    factors = dict(short_factor=[1.0] * 4, long_factor=[2.0, 4.0, 6.0, 8.0])
    scaling = dict(rope_type="longrope", original_max_position_embeddings=70, **factors)
    session = Session(tiny(vocab_size=259, rope_scaling=scaling), byte_tokenizer)
    short = [97, *b"question"]
    first = answer(session, short).result
    assert first is not None and len(first.ids) == 20
    longer = [*short, *first.ids, *b"and another one"]
    again = answer(session, longer)
    assert session.reused > len(short), "still turned the same way"
    whole = [*longer, *again.result.ids, *b"beyond the first length"]  # type: ignore[union-attr]
    last = answer(session, whole)
    assert len(longer) + 19 <= 70 < len(whole) and session.reused == 0
    assert (
        last.result is not None and last.result.ids == answer(Session(session.model, byte_tokenizer), whole).result.ids
    )  # type: ignore[union-attr]


def test_a_cancelled_answer_keeps_its_cache_and_an_abandoned_one_does_not(says: Says, byte_tokenizer: Any) -> None:
    session = Session(says("abcdefgh"), byte_tokenizer)
    pieces = session.stream([1], SamplingParams(temperature=0))
    assert next(pieces) + next(pieces) == "ab"
    pieces.cancel()
    assert list(pieces) == [] and pieces.result is not None and pieces.result.finish_reason == "cancelled"
    assert pieces.result.text == "ab"
    answer(session, [1, *b"ab", 2])
    assert session.reused == 2  # the last token drawn was not read yet
    next(session.stream([1, *b"ab", 2, 3], SamplingParams(temperature=0)))
    answer(session, [1, *b"ab", 2, 3, *b"a", 4])
    assert session.reused == 0
