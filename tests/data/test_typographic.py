"""JSON with the quotation marks of word processors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yeoul.data.conversations import read_conversations
from yeoul.data.documents import read_documents
from yeoul.data.typographic import parse_any_marks, straightened
from yeoul.errors import UserError
from yeoul.safe_json import JSONError

COURSE = """{
\u00a0 “dialogs”: [
    {
      “id”: 1,
      “conversation”: [
        { “speaker”: “user”, “utterance”: “오늘 날씨 어때?” },
        { “speaker”: “system”, “utterance”: “"맑음"이에요, 그렇죠?” }
      ]
    }
  ]
}
"""
"""As a course prints it."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{“a”: “b”}", {"a": "b"}),
        ("{“a”: “그는 “네”, 라고 했다”, “b”: [“x”, 3, “y”]}", {"a": "그는 “네”, 라고 했다", "b": ["x", 3, "y"]}),
        ("[“하나”, “둘”, null, “셋”]", ["하나", "둘", None, "셋"]),
        (r"{“a”: “줄\n 끝 \“ ”}".replace("\\“", '\\"'), {"a": '줄\n 끝 " '}),
        ("{„a“: „b“}", {"a": "b"}),
        ("{ “a” : “” , “b” : {} }", {"a": "", "b": {}}),
    ],
)
def test_marks_become_straight(text: str, value: object) -> None:
    assert parse_any_marks(text) == value


def test_what_is_json_stays_what_it_is() -> None:
    value = {"a": '“b”, "c": “d”', "e“": ["„f“", "}"], "g": "＂"}
    text = json.dumps(value, ensure_ascii=False)
    assert parse_any_marks(text) == value and json.loads(straightened(text)) == value


def test_the_dialogs_of_a_course_open(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(COURSE, encoding="utf-8")
    line = " ".join(COURSE.split()).removeprefix("{ “dialogs”: [ ").removesuffix(" ] }")
    (tmp_path / "talk.jsonl").write_text(f"{line}\n", encoding="utf-8")
    for name in ("talk.json", "talk.jsonl"):
        (record,) = read_conversations(tmp_path / name)
        said = [message["content"] for message in record.messages]  # type: ignore[union-attr]
        assert said == ["오늘 날씨 어때?", '"맑음"이에요, 그렇죠?']
        assert list(read_documents([tmp_path / name])) == ['가: 오늘 날씨 어때?\n나: "맑음"이에요, 그렇죠?']


def test_what_is_damaged_besides_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(COURSE.replace("“id”: 1,", "“id”: 1"), encoding="utf-8")
    with pytest.raises(UserError, match=r"typographic \(“ ”\), and JSON has straight ones"):
        list(read_conversations(tmp_path / "talk.json"))
    with pytest.raises(JSONError, match="^((?!typographic).)*$"):
        parse_any_marks('{"a": "“b”"')
