"""Text with origins is the same text, and no character changes its origin."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.text.tracked import METHODS, MIXED, Mark, TooMuch, Tracked, budget, joined, percent, runs_of, tracked

A, B = Mark(0), Mark(1)
TEXT = st.text("ab \n가İß", max_size=12)
SHORT = st.text("ab \n", max_size=2)
COUNT = st.integers(-1, 3)


def two(first: str, second: str) -> Tracked:
    """Small letters of one message and of another."""
    made = joined((Tracked.all_from(first, A), Tracked.all_from(second, B)))
    return tracked(made)


def marks(text: str) -> list[Mark]:
    found = [mark for length, mark in runs_of(text) for _ in range(length)]
    assert len(found) == len(text)
    return found


CALLS: dict[str, list[Any]] = {
    "strip": [st.one_of(st.none(), SHORT)], "lstrip": [st.one_of(st.none(), SHORT)],
    "rstrip": [st.one_of(st.none(), SHORT)], "split": [st.one_of(st.none(), st.sampled_from(["a", " ", "ab"])), COUNT],
    "rsplit": [st.one_of(st.none(), st.sampled_from(["a", " ", "ab"])), COUNT], "splitlines": [st.booleans()],
    "partition": [st.sampled_from(["a", " ", "ab"])], "rpartition": [st.sampled_from(["a", " ", "ab"])],
    "replace": [SHORT, SHORT, COUNT], "removeprefix": [SHORT], "removesuffix": [SHORT], "lower": [], "upper": [],
    "casefold": [], "capitalize": [], "title": [], "swapcase": [], "center": [st.integers(-1, 20)],
    "ljust": [st.integers(-1, 20), st.just("a")], "rjust": [st.integers(-1, 20), st.just("a")],
    "zfill": [st.integers(-1, 20)], "rfind": [SHORT], "find": [SHORT], "count": [SHORT],
    "join": [st.lists(SHORT, max_size=3)],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=40)
@given(data=st.data(), first=TEXT, second=TEXT)
def test_methods_are_those_of_str(name: str, data: st.DataObject, first: str, second: str) -> None:
    text, arguments = two(first, second), [data.draw(argument) for argument in CALLS[name]]
    expected = getattr(first + second, name)(*arguments)
    made = getattr(text, name)(*arguments)
    assert made == expected and type(made) in (type(expected), Tracked)
    for part in [made] if isinstance(made, str) else made if isinstance(made, list | tuple) else []:
        assert not set(marks(part)) - {A, B, Mark(), Mark(MIXED)}


def test_every_method_that_gives_text_is_there() -> None:
    plain = {name for name in METHODS if not name.startswith("is")}
    plain -= {"count", "endswith", "startswith", "find", "index", "format", "format_map"}
    assert plain <= {*vars(Tracked)}


@given(
    first=TEXT, second=TEXT, start=st.integers(-15, 15), stop=st.integers(-15, 15), step=st.sampled_from([-2, -1, 1, 3])
)
def test_slices(first: str, second: str, start: int, stop: int, step: int) -> None:
    text, where = two(first, second), slice(start, stop, step)
    assert text[where] == (first + second)[where] and marks(text[where]) == marks(text)[where]
    assert list(text) == list(first + second) and [marks(char)[0] for char in text] == marks(text)


def test_pieces_keep_what_they_were() -> None:
    text = two("ab", "ba")
    assert [marks(part) for part in text.split("bb")] == [[A], [B]]
    assert marks(text.replace("a", "xyz")) == [Mark()] * 3 + [A, B] + [Mark()] * 3
    assert marks(Tracked.all_from("q", B).join(["x", text])) == [Mark(), B, A, A, B, B]
    assert marks(text.center(6)) == [Mark(), A, A, B, B, Mark()]
    assert marks(percent("<%s|%5s>", (text[:2], text[2:]))) == [Mark(), A, A, Mark(), *[B] * 5, Mark()]
    assert marks(two("ß", "a").upper()) == [Mark(MIXED)] * 3  # nobody knows which is whose
    assert marks("<" + text[1:] + ">") == [Mark(), A, B, B, Mark()]


@given(TEXT, TEXT, st.sampled_from(["%s", "%r|%s", "%%%s", "%(k)s", "%5.1s", "%d%%"]))
def test_percent_is_that_of_str(first: str, second: str, form: str) -> None:
    text = two(first, second)
    values: Any = {"k": text} if "(k)" in form else 3 if "d" in form else (text,) * form.replace("%%", "").count("%")
    assert percent(form, values) == form % values


def test_the_budget_ends() -> None:
    with budget(100, 60), pytest.raises(TooMuch):
        Tracked.all_from("x", A) * 10**15
    with budget(100, 60), pytest.raises(TooMuch):
        Tracked.all_from("x" * 100, A).replace("x", "y" * 1000)
    for form in ("%1000000000d", "%.1000000000f", "%*d"):
        with pytest.raises(TooMuch):
            percent(form, (10**9, 1))
    with budget(1e9, -1), pytest.raises(TooMuch):
        tracked("a").lower()
