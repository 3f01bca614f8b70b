"""Control characters in a terminal, formulas in a spreadsheet."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from yeoul import cli
from yeoul.errors import UserError
from yeoul.foreign_text import for_stream, say, spreadsheet_cell, visible

ATTACK = "a\x1b[2J\x1b]0;x\x07b\x9b1m\r\x7f\u202ec"
SHOWN = "a\\x1b[2J\\x1b]0;x\\x07b\\x9b1m\\x0d\\x7f\\u202ec"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_commands() -> None:
    assert visible(ATTACK) == SHOWN
    assert visible("여울 🙂 👨‍👩‍👧\n\t- 하나") == "여울 🙂 👨‍👩‍👧\n\t- 하나"
    assert not any(re.match(r"[\x00-\x1f\x7f-\x9f]", visible(chr(code))) for code in range(256) if code not in (9, 10))


def test_a_pipe_gets_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    say(ATTACK, file=terminal)
    assert terminal.getvalue() == SHOWN + "\n" and for_stream(ATTACK, io.StringIO()) == ATTACK
    say(ATTACK, end="")
    assert capsys.readouterr().out == ATTACK


def test_complaints_are_harmless_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise UserError(f"the label {ATTACK} is not known", Path("x\x1b[31m"))

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main([]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\x9b" not in said and "\\x1b[2J" in said and said.count("\n") == 1


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "- 하나", "\t=1", "-cmd", "=", "+-1", "-1+1"]
OTHERS = ["-", "+", "", "-1", "+3.5", "-1,000", "-2e-3", "-5%", "하나 = 둘", "a@b", "'=1", " =1"]


@pytest.mark.parametrize("cell", FORMULAS)
def test_formulas_become_text(cell: str) -> None:
    assert spreadsheet_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", OTHERS)
def test_other_cells_stay(cell: str) -> None:
    assert spreadsheet_cell(cell) == cell


def test_streams_are_looked_up_when_something_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    say("\x1bc")
    assert terminal.getvalue() == "\\x1bc\n"
