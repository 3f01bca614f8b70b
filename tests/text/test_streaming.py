"""Streaming shows the same text as decoding, and never a part of a character."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.text.streaming import StreamDecoder
from yeoul.text.tokenizer import Tokenizer

QUICK = settings(max_examples=200, deadline=None)
FAMILY = "👩‍👩‍👧‍👦"


def pushes(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*(stream.push(token) for token in ids), stream.flush()]


@QUICK
@given(text=st.text(max_size=60))
def test_any_text(any_tokenizer: Tokenizer, text: str) -> None:
    ids = any_tokenizer.encode(text)
    shown = pushes(any_tokenizer, ids)
    assert "".join(shown) == any_tokenizer.decode(ids)
    assert "".join(shown).count("\ufffd") == any_tokenizer.decode(ids).count("\ufffd")


@QUICK
@given(ids=st.lists(st.integers(0, 600), max_size=60), special=st.booleans())
def test_any_ids(any_tokenizer: Tokenizer, ids: list[int], special: bool) -> None:
    shown = pushes(any_tokenizer, ids, skip_special=special)
    assert "".join(shown) == any_tokenizer.decode(ids, skip_special=special)


@pytest.mark.parametrize("text", ["뷁", "🙂", "漢", FAMILY, "🇰🇷", "☺️", "👍🏽", "❤️‍🔥", "\u1112\u1161\u11ab"])
def test_shown_whole_or_not_at_all(text: str) -> None:
    table = [bytes([byte]) for byte in range(256)]
    stream = StreamDecoder(table)
    shown = [stream.push(byte) for byte in f"가{text}나".encode()]
    assert [piece for piece in [*shown, stream.flush()] if piece] == [
        "가",
        *([text, "나"] if text in shown else [text + "나"]),
    ]


def test_flags_are_shown_two_letters_at_a_time() -> None:
    stream = StreamDecoder([character.encode() for character in "🇰🇷🇯🇵a"])
    assert [stream.push(i) for i in range(5)] == ["", "🇰🇷", "", "🇯🇵", "a"]


def test_ordinary_text_is_shown_at_once(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("미나는 시장에서 웃었다. hello")
    assert all(pushes(tokenizer, ids)[:-1])


def test_incomplete_bytes_at_the_end_come_with_flush(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("뷁")[:2]
    assert pushes(tokenizer, half) == ["", "", "\ufffd"]
    assert tokenizer.decode(half) == "\ufffd"


def test_an_endless_emoji_is_let_go() -> None:
    stream = StreamDecoder(["🙂".encode(), "\u200d".encode()])
    shown = [stream.push(i % 2) for i in range(20_000)]
    assert len("".join(shown)) > 19_000


def test_cost_does_not_grow(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("미나는 뷁 시장에서 🙂 ") * 4000
    stream = tokenizer.stream()
    times = []
    for start in (0, len(ids) - 5000):
        begun = time.perf_counter()
        for token in ids[start : start + 5000]:
            stream.push(token)
        times.append(time.perf_counter() - begun)
    assert times[1] < 10 * times[0] + 0.1
