"""Prompts of a sweep: its own, and those from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.data.reading import DEFAULT, Reading
from yeoul.errors import UserError
from yeoul.infer.prompts import read_prompts
from yeoul.safe_json import parse

if TYPE_CHECKING:
    from yeoul.evaluate.sampling import Prompt

    Prompts = str | Path | Sequence[str | tuple[str, str] | Prompt]
    """A file, or texts, some with the answer that they tell: (text, answer)."""

BUILT_IN = (
    ("옛날 옛적에 깊은 산속에", ""),
    ("비가 그친 오후, 아이들은 놀이터에서", ""),
    ("오늘 아침에는 일찍 일어나서", ""),
    ("김치찌개를 맛있게 끓이려면", ""),
    (
        "민수는 우산을 샀습니다. 지영이는 모자를 샀습니다. 비가 오자 두 사람은 함께 집으로 걸어갔습니다.\n"
        "질문: 지영이가 산 것은 무엇인가요?\n답:",
        "모자",
    ),
    (
        "하준이의 강아지 이름은 구름이에요. 다은이의 고양이 이름은 보리예요. 저녁이 되자 가로등이 켜졌어요.\n"
        "질문: 하준이의 강아지 이름은 무엇인가요?\n답:",
        "구름",
    ),
    ("Once upon a time, in a small village by the river,", ""),
    (
        "Anna has a cat called Pepper. Ben has a dog called Milo. They meet in the park every Sunday.\n"
        "Question: What is the name of Ben's dog?\nAnswer:",
        "Milo",
    ),
)
"""(text, what it tells and asks for), Korean and English."""


def prompts_of(given: Prompts | None, reading: Reading = DEFAULT) -> list[Prompt]:
    """The prompts of a sweep.

    Args:
        given: a file: one prompt a line, with the answer after a tab where it tells one; .jsonl has objects with
            "prompt" and "answer". Or texts. None for the built-in ones.

    Raises:
        UserError: a file that cannot be read, a line that is no such object, no prompt.
    """
    from yeoul.evaluate.sampling import Prompt

    if given is None:
        given = BUILT_IN
    if isinstance(given, str | Path):
        file = Path(given).expanduser()
        lines = read_prompts(file, reading)
        read = _record if file.suffix == ".jsonl" else _line
        found = [read(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]
    else:
        found = [own if isinstance(own, Prompt) else _prompt(own) for own in given]
    if not found:
        raise UserError("there is no prompt", "--prompts", "give at least one")
    return found


def _prompt(given: str | tuple[str, str]) -> Prompt:
    from yeoul.evaluate.sampling import Prompt

    return Prompt(text=given) if isinstance(given, str) else Prompt(text=given[0], answer=given[1])


def _line(line: str, where: str) -> Prompt:
    text, _, answer = line.partition("\t")
    if not text.strip():
        raise UserError("the line has an answer, but no prompt", where)
    return _prompt((text, answer.strip()))


def _record(line: str, where: str) -> Prompt:
    try:
        value = parse(line)
    except ValueError as error:
        raise UserError(f"the line cannot be read as JSON: {error}", where) from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str) or not value["prompt"].strip():
        raise UserError('the line is no object with a text "prompt"', where)
    answer = value.get("answer") or ""
    if not isinstance(answer, str):
        raise UserError('the "answer" is no text', where)
    return _prompt((value["prompt"], answer))
