"""Beginnings of texts: found as by looking at all of them, and never more bytes than allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.infer.prefixes import Prefixes

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
ACTIONS = st.lists(st.tuples(st.sampled_from(("put", "minor", "find")), TEXTS), max_size=60)


def array(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.int64)


def shared(a: tuple[int, ...], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(ACTIONS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_longest_beginning_is_found(actions: list[tuple[str, list[int]]], cuts: bool) -> None:
    store: Prefixes[tuple[int, ...]] = Prefixes(10**9, cuts=cuts)
    known: set[tuple[int, ...]] = set()
    for action, ids in actions:
        if action != "find":
            store.put("a", array(ids), tuple(ids), 1, minor=action == "minor")
            known.add(tuple(ids))
        found = store.find("a", array(ids))
        if cuts:
            longest = max((shared(text, ids) for text in known), default=0)
            assert (found[0] if found else 0) == longest
            assert not found or shared(found[1], ids) == longest
        else:
            whole = [text for text in known if tuple(ids[: len(text)]) == text]
            assert (found[1] if found else ()) == max(whole, key=len, default=())
            assert not found or found[0] == len(found[1])
        assert store.bytes == len(store) and store.find("b", array(ids)) is None
    if not cuts:
        assert len(store) == len(known)


@given(ACTIONS, st.booleans(), st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_bytes_stay_below_the_bound(actions: list[tuple[str, list[int]]], cuts: bool, most: int) -> None:
    store: Prefixes[tuple[int, ...]] = Prefixes(most, cuts=cuts)
    for action, ids in actions:
        if action == "find":
            found = store.find("a", array(ids))
            assert not found or tuple(ids[: found[0]]) == found[1][: found[0]]
        else:
            kept = store.put("a", array(ids), tuple(ids), len(ids), minor=action == "minor")
            assert kept or len(ids) > most or cuts or action == "minor"
        assert store.bytes <= most


def test_what_was_used_longest_ago_goes_first_and_before_it_what_stands_on_the_way() -> None:
    store: Prefixes[str] = Prefixes(4, cuts=False)
    store.put(0, array([1]), "old", 1)
    store.put(0, array([2, 2]), "way", 1, minor=True)
    store.put(0, array([2, 2, 2]), "end", 1)
    store.put(0, array([3]), "new", 1)
    store.put(0, array([4]), "newest", 1)
    assert store.find(0, array([2, 2])) is None and store.find(0, array([1]))
    store.put(0, array([5]), "last", 1)
    assert store.find(0, array([2, 2, 2])) is None and store.find(0, array([1]))


def test_the_end_of_a_turn_gives_way_once_the_next_has_ended_but_not_where_texts_part() -> None:
    store: Prefixes[str] = Prefixes(3, cuts=False)
    store.put(0, array([1, 2]), "turn 1", 1)
    store.put(0, array([1, 2, 3]), "turn 2", 1)
    store.put(0, array([9]), "another", 1)
    store.put(0, array([8]), "a third", 1)
    assert store.find(0, array([1, 2, 3])) == (3, "turn 2") and store.find(0, array([1, 2, 5])) is None
    store.clear()
    store.put(0, array([1, 2]), "system", 1)
    store.put(0, array([1, 2, 3]), "one", 1)
    store.put(0, array([1, 2, 4]), "two", 1)
    assert len(store) == 3
    store.find(0, array([1, 2, 7]))  # of use
    store.put(0, array([6]), "other", 1)
    assert store.find(0, array([1, 2, 7])) == (2, "system")


def test_what_is_larger_than_all_is_not_kept() -> None:
    store: Prefixes[str] = Prefixes(3, cuts=True)
    assert not store.put(0, array([1]), "x", 4) and store.find(0, array([1])) is None
    assert store.put(0, array([1, 2, 3]), "y", 3) and not store.put(0, array([1, 2]), "z", 1)
    assert store.find(0, array([1, 2, 9])) == (2, "y")


@pytest.mark.parametrize("cuts", [True, False])
def test_forgetting_leaves_no_nodes(cuts: bool) -> None:
    store: Prefixes[int] = Prefixes(5, cuts=cuts)
    chance = np.random.default_rng(0)
    for number in range(2000):
        store.put(number % 3, chance.integers(0, 3, chance.integers(1, 30)), number, 1)

    def nodes(node: Any) -> int:
        return 1 + sum(map(nodes, node.children.values()))

    assert sum(map(nodes, store._roots.values())) <= 3 * len(store) + 3
