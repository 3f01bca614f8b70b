"""Texts in other encodings: read when they are named, and said by name when they look like Korean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yeoul.data.conversations import read_conversations
from yeoul.data.documents import read_documents
from yeoul.data.labelled import read_labelled, read_texts
from yeoul.data.reading import Reading, looks_like_cp949
from yeoul.data.sources import source_key
from yeoul.data.streams import lines_of
from yeoul.errors import UserError

TEXTS = ["안녕하세요, 여울입니다.", "똠방각하와 펲시콜라", "plain"]  # the second is beyond EUC-KR
FILES = {
    ".txt": "\n\n".join(TEXTS),
    ".jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS),
    ".json": json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False),
    ".csv": "text\n" + "".join(f'"{text}"\n' for text in TEXTS),
    ".tsv": "text\tn\n" + "".join(f"{text}\t1\n" for text in TEXTS),
}
MARKED = ["utf-8-sig", "utf-16", "utf-32"]


def put(path: Path, text: str, encoding: str) -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("encoding", [*MARKED, "cp949", "utf-16-be", "johab"])
def test_every_format_in_every_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    path = put(tmp_path / f"a{kind}", FILES[kind], encoding)
    for reading in [
        Reading(encoding=encoding),
        *([Reading(), Reading(encoding="cp949")] if encoding in MARKED else []),
    ]:
        assert list(read_documents(path, reading=reading)) == TEXTS


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["cp949", "CP949", "euc-kr", "EUC_KR", "ks_c_5601-1987", "uhc"])
def test_korean_of_older_windows(tmp_path: Path, kind: str, name: str) -> None:
    path = put(tmp_path / f"a{kind}", FILES[kind], "cp949")
    assert list(read_documents(path, reading=Reading(encoding=name))) == TEXTS
    line = {".csv": 2, ".tsv": 2}.get(kind, 1)
    with pytest.raises(
        UserError, match=rf"not UTF-8 at byte \d+, but reads as Korean in CP949 \(.*a\{kind}:{line}\); add"
    ) as e:
        list(read_documents(path))
    assert "--encoding cp949" in str(e.value)


def test_other_readers_take_it_too(tmp_path: Path) -> None:
    old = Reading(encoding="cp949")
    table = put(tmp_path / "a.csv", 'prompt,completion,text,label\n"안녕, 너","네",글,좋음\n', "cp949")
    (record,) = read_conversations(table, reading=old)
    assert [m["content"] for m in record.messages] == ["안녕, 너", "네"]  # type: ignore[union-attr]
    assert read_labelled(table, reading=old).records[0].label == "좋음"
    assert read_texts(put(tmp_path / "b.txt", "하나\n\n둘\n", "cp949"), reading=old) == ["하나", "", "둘"]
    for read in (read_labelled, read_texts, lambda spec: list(read_conversations(spec))):
        with pytest.raises(UserError, match="--encoding cp949"):
            read(table)  # type: ignore[operator]


def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "물음", "completion": "답"}, ensure_ascii=False).encode("cp949")] * 3
    lines[1] = lines[1].replace("물음".encode("cp949"), b"\xff\xff")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    records = read_conversations(tmp_path, on_bad_record="skip", reading=Reading(encoding="cp949"))
    assert len(list(records)) == 2 and records.skipped == 1
    assert "the text is not CP949" in records.complaints[0] and "a.jsonl:2" in records.complaints[0]


@pytest.mark.parametrize(
    "text", ["日本語の文章です", "これは、ひらがなが多い文です", "中文句子在这里写着很多字", "déjà vu à Paris"]
)
def test_no_korean_is_seen_where_there_is_none(text: str) -> None:
    for encoding in ("euc_jp", "gb2312", "latin-1", "shift_jis"):
        try:
            data = text.encode(encoding)
        except UnicodeEncodeError:
            continue
        assert not looks_like_cp949(data), encoding


USUAL = [bytes([first, second]).decode("cp949") for first in range(0xB0, 0xC9) for second in range(0xA1, 0xFF)]


@given(st.text(st.sampled_from([*USUAL, *" .,a1"]), min_size=1))
def test_korean_is_seen(text: str) -> None:
    data = text.encode("cp949")
    assert looks_like_cp949(data) == any("가" <= char <= "힣" for char in text)
    looks_like_cp949(data[1:])  # perhaps within a character: no error


def test_korean_is_seen_from_within_a_character() -> None:
    assert looks_like_cp949("여울이 흐른다.".encode("cp949")[1:])


def test_wrong_names_of_encodings() -> None:
    for name in ("klingon", "", "rot13", "base64", "undefined\0", "punycode", "idna", "unicode_escape"):
        with pytest.raises(UserError, match="--encoding"):
            Reading(encoding=name)
    with pytest.raises(UserError, match="--record-mib is 0"):
        Reading(record_mib=0)


@pytest.mark.parametrize("name", ["utf-16", "utf-32", "utf-16-le"])
def test_a_missing_mark_is_none_of_the_errors(tmp_path: Path, name: str) -> None:
    little = {"utf-32": "utf-32-le"}.get(name, "utf-16-le")
    for path in (tmp_path / "a.txt", tmp_path / "a.ko"):
        assert list(read_documents(put(path, "글", little), reading=Reading(encoding=name))) == ["글"]
        path.write_bytes(b"\0\xd8\0")
        with pytest.raises(UserError):
            list(read_documents(path, reading=Reading(encoding=name)))


def test_the_key_of_the_source_follows_the_encoding(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "글", "cp949")
    assert source_key(path) == source_key(path, reading=Reading(encoding="utf8", record_mib=3))
    assert source_key(path) != source_key(path, reading=Reading(encoding="cp949"))
    assert source_key(path, reading=Reading(encoding="euc-kr")) == source_key(path, reading=Reading(encoding="cp949"))


LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1).map(
    lambda text: "x" + text.strip("\r") + "x"
)


@given(lines=st.lists(LINE), encoding=st.sampled_from(["utf-8", *MARKED]))
def test_only_a_line_feed_ends_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], encoding: str
) -> None:
    path = put(tmp_path_factory.mktemp("lines") / "a.txt", "\n".join(lines), encoding)
    assert [line.text for line in lines_of(path)] == lines
    assert all(line.error is None and line.number == n for n, line in enumerate(lines_of(path), 1))


def test_marks_inside_lines_of_every_reader(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x0cd\x0be\x1cf\x1dg\x1eh\u2029i"
    jsonl = json.dumps({"text": odd}, ensure_ascii=False).encode().replace(rb"\f", b"\x0c")
    assert list(read_documents(put(tmp_path / "a.txt", f"{odd}\n\n{odd}\n", "utf-8"))) == [odd, odd]
    (tmp_path / "a.jsonl").write_bytes(jsonl + b"\n" + jsonl + b"\n")
    assert list(read_documents(put(tmp_path / "a.tsv", f"text\n{odd}\n", "utf-8"))) == [odd]
    assert list(read_documents(put(tmp_path / "a.csv", f"text\n{odd}\n", "utf-8"))) == [odd]
    assert read_texts(tmp_path / "a.txt") == [odd, "", odd]
