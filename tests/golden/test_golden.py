"""Losses, weights and outputs of tiny commands are those that were recorded: a change of structure changes no bit.

Where a change of numbers is meant, or for another kind of machine, `python tests/golden/record.py` records them anew.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from golden.cases import CASES, VALUES, Home, kind_of_machine, leaves, one_thread

RELATIVE, ABSOLUTE = 2e-3, 1e-4
"""Between machines of different kinds. One step of a training changes a loss by ten times as much and more."""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    """Values by kind of machine."""
    recorded: dict[str, Any] = json.loads(VALUES.read_text(encoding="utf-8"))
    if kind_of_machine() not in recorded:
        warnings.warn(f"no golden values of {kind_of_machine()}: those of another are compared roughly", stacklevel=1)
    return recorded


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("case", CASES)
def test_nothing_has_changed(case: str, home: Home, recorded: dict[str, Any]) -> None:
    kind = kind_of_machine()
    exactly = kind in recorded
    of_kind = recorded[kind if exactly else max(recorded, key=lambda other: len(recorded[other]))]
    if case not in of_kind:
        pytest.skip(f"its numbers have changed since it was recorded on {kind}: record them anew")
    expected = of_kind[case]
    assert differences(home.values(case), expected, exactly=exactly) == []


def differences(values: Any, expected: Any, *, exactly: bool) -> list[str]:
    """Places at which values differ: in any bit, or else in numbers by more than the tolerance."""
    ours, theirs = leaves(values), leaves(expected)
    if not exactly:
        ours, theirs = ({place: v for place, v in all_.items() if isinstance(v, float)} for all_ in (ours, theirs))
    return [
        f"{place}: {ours.get(place)!r}, recorded {theirs.get(place)!r}"
        for place in ours | theirs
        if not (place in ours and place in theirs and same(ours[place], theirs[place], exactly))
    ]


def same(value: Any, expected: Any, exactly: bool) -> bool:
    if exactly or math.isnan(value):
        return repr(value) == repr(expected)
    return math.isclose(value, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def test_one_bit_is_a_difference_and_another_loss_is_one_anywhere() -> None:
    loss = {"loss": 4.8682, "steps": [1, 2]}
    for change in (math.nextafter(4.8682, 5), -4.8682, math.nan):
        assert differences(loss | {"loss": change}, loss, exactly=True)
    assert differences(loss | {"steps": [1, 3]}, loss, exactly=True)
    assert not differences(loss | {"loss": 4.8690}, loss, exactly=False)
    assert differences(loss | {"loss": 4.8882}, loss, exactly=False) and differences({}, loss, exactly=False)
