"""Labelled texts, pairs and plain texts from tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yeoul.data.labelled import label_names, read_labelled, read_pairs, read_texts
from yeoul.errors import UserError

ROWS = [("재미있다", "긍정"), ('그는 "별로"라고 했다', "부정"), ("보통, 그냥", "보통")]


def write(folder: Path, name: str, rows: list[tuple[str, str]] = ROWS) -> Path:
    """The rows in the format that the name says."""
    path = folder / name
    records = [{"id": number, "document": text, "label": label} for number, (text, label) in enumerate(rows)]
    if name.endswith(".tsv"):
        path.write_text("id\tdocument\tlabel\n" + "".join(f"{i}\t{t}\t{n}\n" for i, (t, n) in enumerate(rows)), "utf-8")
    elif name.endswith(".csv"):
        quoted = [(text.replace('"', '""'), label) for text, label in rows]
        lines = [f'{i},"{t}",{n}\n' for i, (t, n) in enumerate(quoted)]
        path.write_text("id,document,label\n" + "".join(lines), "utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    elif name.endswith(".json"):
        path.write_text(json.dumps(records), "utf-8")
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_every_format_gives_the_same_texts_and_labels(name: str, tmp_path: Path) -> None:
    table = read_labelled(write(tmp_path, name))
    assert [(record.text, record.label) for record in table.records] == ROWS
    assert str(tmp_path / name) in table.records[0].where and table.skipped == 0


def test_labels_are_words_or_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    values = [1, "1", 1.0, True, False, " 둘 "]
    path.write_text("".join(json.dumps({"text": "글", "label": value}) + "\n" for value in values))
    assert [record.label for record in read_labelled(path).records] == ["1", "1", "1", "true", "false", "둘"]
    for value in (1.5, None, "", ["a"], {"a": 1}):
        path.write_text(json.dumps({"text": "글", "label": value}))
        with pytest.raises(UserError, match=r'label in "label"'):
            read_labelled(path)


def test_label_names_are_in_order() -> None:
    assert label_names(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert label_names(["b", "10", "a"]) == ["10", "a", "b"]
    assert label_names(["--5", "1"]) == ["--5", "1"]
    assert label_names(["9" * 5000, "1"]) == ["1", "9" * 5000]


@pytest.mark.parametrize(
    ("header", "flags", "complaint"),
    [
        ("id\tdocument\trating", {}, "no column looks like the label; there are: id, doc"),
        ("id\tbefund\tlabel", {}, "no column looks like the text"),
        (
            "id\tdocument\tlabel",
            {"label_column": "stars"},
            'there is no column "stars"; there are: id, doc',
        ),
        ("id\tdocument\tlabel", {"text_column": "body"}, 'there is no column "body"'),
    ],
)
def test_a_missing_column_is_named(header: str, flags: dict[str, str], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(f"{header}\n1\t글\t2\n")
    for how in ("error", "skip"):  # a table without the column has no record that could be skipped
        with pytest.raises(UserError, match=complaint):
            read_labelled(path, on_bad_record=how, **flags)  # type: ignore[arg-type]
    given = dict(text_column="document", label_column="rating")
    path.write_text("id\tdocument\trating\n1\t글\t2\n")
    assert read_labelled(path, **given).records[0].label == "2"


def test_bad_records_are_named_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n글\t1\n \t1\n글\n글\t\n끝\t2\n")
    with pytest.raises(UserError, match=r"a\.tsv:3.*--on-bad-record skip"):
        read_labelled(path)
    table = read_labelled(path, on_bad_record="skip")
    assert [record.text for record in table.records] == ["글", "끝"]
    assert table.skipped == 3 and [f"a.tsv:{n}" in c for n, c in zip((3, 4, 5), table.complaints, strict=True)] == [
        True, True, True,
    ]  # fmt: skip
    path.write_text("text\tlabel\n\t1\n")
    with pytest.raises(UserError, match=r"the only record cannot be used .*a\.tsv:2"):
        read_labelled(path, on_bad_record="skip")


def test_plain_text_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("글\n")
    with pytest.raises(UserError, match="plain text has neither labels nor pairs"):
        read_labelled(tmp_path / "a.txt")


def test_pairs_with_scores_and_negatives(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("genre\tscore\tsentence1\tsentence2\nx\t5.000\t비가 온다\t비가 내린다\nx\t0\t하나\t둘\n")
    pairs = read_pairs(path).records
    assert [(p.texts, p.score) for p in pairs] == [(("비가 온다", "비가 내린다"), 5.0), (("하나", "둘"), 0.0)]
    path.write_text("anchor\tpositive\tnegative\n가\t나\t다\n")
    assert read_pairs(path).records[0].texts == ("가", "나", "다")
    path.write_text("왼쪽\t오른쪽\t점수\n가\t나\t0.5\n")
    named = read_pairs(path, pair_columns=("왼쪽", "오른쪽"), score_column="점수").records[0]
    assert (named.texts, named.score) == (("가", "나"), 0.5)
    with pytest.raises(UserError, match="--pair-columns"):
        read_pairs(path)
    path.write_text("text1\ttext2\tscore\n가\t나\tnan\n")
    with pytest.raises(UserError, match=r"must be a number, not 'nan' \(.*a\.tsv:2"):
        read_pairs(path)
    lines = [{"query": "가", "positive": "나"}, {"query": "가", "positive": "나", "score": 1}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"has no score, but .*b\.jsonl:2.* has"):
        read_pairs(tmp_path / "b.jsonl")


def test_texts_keep_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("하나\n\n셋\n")
    assert read_texts(tmp_path / "a.txt") == ["하나", "", "셋"]
    (tmp_path / "b.jsonl").write_text('{"text": "하나"}\n"둘"\n{"text": null}\n{"text": " "}\n')
    assert read_texts(tmp_path / "b.jsonl") == ["하나", "둘", "", ""]
    (tmp_path / "c.csv").write_text("n,review\n1,좋다\n2,\n")
    assert read_texts(tmp_path / "c.csv") == ["좋다", ""]
    (tmp_path / "d.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no text"):
        read_texts(tmp_path / "d.txt")
