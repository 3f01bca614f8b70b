"""Byte-order marks, and what ends a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yeoul.plain_text import MARKS, decode_marked, split_lines, without_mark

MARK = {encoding: mark for mark, encoding in MARKS}
TEXTS = st.text().map(lambda text: text.removeprefix("\ufeff")).filter(lambda text: not text.startswith("\0"))


@pytest.mark.parametrize("encoding", MARK)
@given(text=TEXTS)
def test_the_mark_says_the_encoding_and_is_dropped(encoding: str, text: str) -> None:
    data = MARK[encoding] + text.encode(encoding)
    assert decode_marked(data) == text
    assert without_mark(data) == text.encode()


def test_what_has_no_mark_is_left_alone() -> None:
    assert decode_marked("가나".encode("cp949"), "cp949") == "가나"
    assert without_mark(b"\x80\n") == b"\x80\n"
    assert without_mark(b"\xff\xfea") == b"\xff\xfea"  # marked as UTF-16, but half a character


@given(
    lines=st.lists(
        st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])).filter(lambda s: s[-1:] != "\r")
    )
)
def test_only_a_line_feed_ends_a_line(lines: list[str]) -> None:
    for end in ("\n", "\r\n"):
        assert split_lines("".join(line + end for line in lines)) == lines
    if lines and lines[-1]:
        assert split_lines("\n".join(lines)) == lines


def test_marks_of_other_kinds_stand_inside_lines() -> None:
    inside = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\x1dh\x1ei\rj"
    assert split_lines(f"{inside}\r\n{inside}\n\n") == [inside, inside, ""]
