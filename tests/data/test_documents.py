"""Readers: every format, every compression, every error a user can cause."""

import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from yeoul.data.documents import LONGEST_BLOCK, LONGEST_LINE, check_documents, read_documents
from yeoul.data.sources import source_key
from yeoul.errors import UserError

PACK = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
DIALOGS = {
    "dialogs": [
        {
            "id": "1",
            "conversation": [{"speaker": "user", "utterance": "안녕?"}, {"speaker": "system", "utterance": "응!"}],
        },
        {"id": "2", "conversation": [{"speaker": "민준", "utterance": "여울이야."}]},
    ]
}
ROWS = [("b", "둘째\t"), ("a", '따옴표 "하나"'), ("b", "넷째")]


def parquet_bytes(columns: dict) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def documents(spec, **options) -> list[str]:
    return list(read_documents(spec, **options))


def error(spec, **options) -> str:
    with pytest.raises(UserError) as caught:
        documents(spec, **options)
    return str(caught.value)


CONTENT = {
    ".txt": "\ufeff하나\n둘\n\n \n셋\r\n\r\n넷".encode(),
    ".jsonl": '{"id": 1, "text": "하나\\n둘"}\n\n"셋"\n{"text": null}\n{"text": "넷"}'.encode(),
    ".json": json.dumps([{"text": "하나\n둘"}, "셋", {"text": "넷"}]).encode(),
    ".csv": '\ufeffid,text\n1,"하나\n둘"\n2,셋\n3,\n4,넷\n'.encode(),
    ".tsv": "text\tid\n하나\\n둘\t1\n셋\t2\n넷\t3".encode(),
    ".parquet": parquet_bytes({"id": [1, 2, 3, 4], "text": ["하나\n둘", "셋", None, "넷"]}),
}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", CONTENT)
def test_every_format_in_every_compression(tmp_path, kind, packed):
    path = write(tmp_path / f"자료{kind}{packed}", PACK[packed](CONTENT[kind]))
    first = "하나\\n둘" if kind == ".tsv" else "하나\n둘"
    assert documents(path) == [first, "셋", "넷"]
    assert documents(str(path)) == [first, "셋", "넷"]


def test_several_zstandard_frames_and_members(tmp_path):
    halves = [text.encode() for text in ("하나\n\n", "둘\n")]
    for suffix in (".gz", ".xz", ".zst"):
        path = write(tmp_path / f"two.txt{suffix}", b"".join(PACK[suffix](half) for half in halves))
        assert documents(path) == ["하나", "둘"]


def test_dialogs_become_lines(tmp_path):
    whole = write(tmp_path / "dialogs.json", json.dumps(DIALOGS))
    lines = write(tmp_path / "dialogs.jsonl", "\n".join(json.dumps(dialog) for dialog in DIALOGS["dialogs"]))
    for path in (whole, lines):
        assert documents(path) == ["가: 안녕?\n나: 응!", "민준: 여울이야."]


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_rows_join_by_a_column_consecutive_or_not(tmp_path, kind):
    if kind == ".csv":
        quoted = [(key, text.replace('"', '""')) for key, text in ROWS]
        data = "movie_id,document\n" + "".join(f'{key},"{text}"\n' for key, text in quoted)
    elif kind == ".jsonl":
        data = "\n".join(json.dumps({"movie_id": key, "document": text}) for key, text in ROWS)
    else:
        data = parquet_bytes({"movie_id": [key for key, _ in ROWS], "document": [text for _, text in ROWS]})
    path = write(tmp_path / f"reviews{kind}", data)
    assert documents(path, join_by="movie_id") == ["둘째\t\n넷째", '따옴표 "하나"']


def test_tsv_is_never_quoted(tmp_path):
    path = write(tmp_path / "a.tsv", 'id\tdocument\n1\t"열린 따옴표\n2\t닫힌" 따옴표\n')
    assert documents(path) == ['"열린 따옴표', '닫힌" 따옴표']


def test_text_column_is_found_or_named(tmp_path):
    path = write(tmp_path / "a.csv", "번호,제목\n1,여울\n")
    assert documents(path) == ["여울"]
    assert documents(path, text_column="번호") == ["1"]
    path = write(tmp_path / "b.csv", "Q,A,label\n안녕?,응.,0\n")
    assert "Q, A, label" in error(path)
    assert documents(path, text_column="A") == ["응."]
    message = error(path, text_column="text")
    assert '"text"' in message and "Q, A, label" in message
    assert "to join by; there are: Q, A, label" in error(path, text_column="A", join_by="film")


def test_big_fields_and_long_blocks(tmp_path):
    long = "여울 " * 100_000
    assert documents(write(tmp_path / "a.csv", f'text\n"{long}"\n')) == [long]
    blocks = documents(write(tmp_path / "a.txt", "물이 흐른다.\n" * 30_000))
    assert len(blocks) == 3 and all(len(block) <= LONGEST_BLOCK + 40_000 for block in blocks)


def test_lines_that_are_too_long_are_cut_before_a_space(tmp_path):
    line = "여울 물이 흐른다. " * 250_000 + "끝"
    blocks = documents(write(tmp_path / "a.txt", f"처음\n{line}\n다음\n"))
    assert "".join(blocks[:-1]) == f"처음\n{line}" and blocks[-1] == "다음"
    assert len(blocks) == 4 and all(LONGEST_BLOCK < len(block) <= LONGEST_LINE + 3 for block in blocks[:-1])
    assert all(block.startswith(" ") for block in blocks[1:3])
    word = "가" * (2 * LONGEST_LINE + 5)
    assert [len(block) for block in documents(write(tmp_path / "b.txt", word))] == [LONGEST_LINE, LONGEST_LINE, 5]


def test_folders_lists_and_builtin(tmp_path):
    (tmp_path / "나").mkdir()
    (tmp_path / ".숨김").mkdir()
    write(tmp_path / "나" / "b.txt", "둘")
    write(tmp_path / "가.txt", "하나")
    write(tmp_path / "notes.pdf", b"\xff")
    write(tmp_path / ".숨김" / "c.txt", "넷")
    write(tmp_path / "z, 쉼표.txt", "셋")
    assert documents(tmp_path) == ["셋", "하나", "둘"]
    assert documents(tmp_path / "z, 쉼표.txt") == ["셋"]
    assert documents(str(tmp_path / "z, 쉼표.txt")) == ["셋"]
    assert documents(f"{tmp_path}/가.txt, {tmp_path}/나") == ["하나", "둘"]
    assert documents([tmp_path / "나", tmp_path / "가.txt"]) == ["둘", "하나"]
    size = sum(len(text.encode()) for text in read_documents("builtin:30KB"))
    assert 30_000 <= size < 35_000


def test_wrong_paths_are_refused_before_reading(tmp_path):
    for spec in (tmp_path / "none.txt", str(tmp_path / "none"), "corpora/none.txt", ""):
        with pytest.raises(UserError):
            read_documents(spec)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no file that can be read" in error(empty)
    assert ".parquet" in error(write(tmp_path / "a.pdf", b"%PDF"))
    assert "builtin:5MB" in error("builtin:many")
    assert "above zero" in error("builtin:0MB")


def test_nothing_to_read(tmp_path):
    for name in CONTENT:
        if name != ".parquet":
            path = write(tmp_path / f"empty{name}", b"")
            assert "no text" in error(path) and path.name in error(path)
    assert "no text" in error(write(tmp_path / "blank.txt", " \n\n\t\n"))
    assert "no text" in error(write(tmp_path / "header.csv", "id,text\n"))


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".tsv", ".json"])
@pytest.mark.parametrize("packed", ["", ".xz"])
def test_text_that_is_not_utf8(tmp_path, kind, packed):
    data = "text\n가나\n".encode() + b"abc" + "한글".encode("cp949") + b"\n"
    path = write(tmp_path / f"old{kind}{packed}", PACK[packed](data))
    if kind == ".jsonl":
        path = write(path, PACK[packed](b'"text"\n""\n' + data[12:]))
        assert f"{path}:3" in error(path)
    else:
        message = error(path)
        assert f"{path}:3" in message and "at byte 15" in message and "not UTF-8" in message


def test_malformed_records_name_file_and_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "하나"}\n{"text": \n')
    assert f"{path}:2" in error(path) and "JSON" in error(path)
    path = write(tmp_path / "a.json", '[{"text": "하나"},\n {"text" 1}]')
    assert f"{path}:2" in error(path)
    assert "neither a list nor an object" in error(write(tmp_path / "n.json", "3"))
    path = write(tmp_path / "b.jsonl", '{"text": "하나"}\n{"text": 5}\n')
    assert f"{path}:2" in error(path)
    path = write(tmp_path / "c.jsonl", '{"text": "하나"}\n[1]\n')
    assert f"{path}:2" in error(path)
    path = write(tmp_path / "s.jsonl", '{"text": "\\ud800"}\n')
    assert "surrogate" in error(path)
    path = write(tmp_path / "a.tsv", "id\ttext\n1\t하나\n2\n")
    assert f"{path}:3" in error(path)
    path = write(tmp_path / "a.csv", 'id,text\n1,하나\n2,"열린 채로\n3,셋\n')
    assert f"{path}:3" in error(path) and "CSV" in error(path)
    path = write(tmp_path / "d.json", json.dumps({"dialogs": [{"conversation": [{"speaker": "user"}]}]}))
    assert "utterance" in error(path) and "dialogs 1" in error(path)


def test_what_is_wrong_from_the_first_line_on_is_seen_by_a_look(tmp_path):
    empty, good = write(tmp_path / "a.txt", "\n\n"), write(tmp_path / "b.jsonl", '{"text": "하나", "k": 1}\nno JSON')
    check_documents([empty.parent, "builtin:1MB"])
    check_documents(good, join_by="k")
    assert "not JSON" in error(good)
    for wrong, options in [
        (empty, {}), (good, {"text_column": "글"}), (good, {"join_by": "l"}), (tmp_path / "none.txt", {}),
        (write(tmp_path / "c.txt", "가".encode("cp949")), {}), (write(tmp_path / "d.csv", "a,b\n가,나"), {}),
    ]:  # fmt: skip
        with pytest.raises(UserError) as caught:
            check_documents(wrong, **options)
        assert str(caught.value) == error(wrong, **options)


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_rows_are_as_wide_as_the_header(tmp_path, kind):
    between = "," if kind == ".csv" else "\t"

    def said(*rows: str) -> str:
        return error(write(tmp_path / f"a{kind}", "\n".join(rows).replace("|", between) + "\n"))

    for rows, place in ((["text", "서울| 부산"], 2), (["id|text", "1|하나", "2|둘", "", "3|셋|넷"], 5)):
        assert f"a{kind}:{place}" in said(*rows)
    assert "the row has 2 columns, the header 1" in said("text", "서울| 부산")
    assert ("in quotation marks" in said("text", "서울| 부산")) == (kind == ".csv")
    assert f"a{kind}:3" in said("text|id", "하나|1", "둘")  # its text is there, but who knows what else is not
    assert "the row has 1 column, the header 2" in said("text|id", "하나|1", "둘")
    assert f'two columns have the same name, "text" ({tmp_path}/a{kind}:1)' in said("text|text", "하나|둘")
    path = write(tmp_path / f"b{kind}", "text||\n하나||\n둘||\n".replace("|", between))
    assert documents(path) == ["하나", "둘"]  # as spreadsheets write empty columns


def test_quoted_cells_may_hold_anything(tmp_path):
    assert documents(write(tmp_path / "a.csv", 'text\n"서울, 부산"\n"그는 ""네"", 했다"\n')) == [
        "서울, 부산",
        '그는 "네", 했다',
    ]


TEXT_TYPES = {
    "string": pa.string(), "large": pa.large_string(), "view": pa.string_view(),
    "category": pa.dictionary(pa.int32(), pa.string()), "large category": pa.dictionary(pa.int8(), pa.large_string()),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_TYPES)
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"store_schema": False}, {"row_group_size": 2}])
def test_whatever_parquet_calls_text_is_text(tmp_path, name, options):
    texts = ["하나", None, "둘", "하나", "", "셋"]
    plain = pa.array(texts, TEXT_TYPES[name].value_type if "category" in name else TEXT_TYPES[name])
    column = plain.dictionary_encode() if "category" in name else plain
    pq.write_table(pa.table({"n": list(range(6)), "t": column, "key": column}), tmp_path / "a.parquet", **options)
    assert documents(tmp_path / "a.parquet", text_column="t") == ["하나", "둘", "하나", "셋"]
    assert documents(tmp_path / "a.parquet", text_column="t", join_by="key") == ["하나\n하나", "둘", "셋"]
    assert "it is not clear which column" in error(tmp_path / "a.parquet")
    assert "does not hold text" in error(tmp_path / "a.parquet", text_column="n")


def test_a_list_of_texts_is_one_document(tmp_path):
    texts = [["하나", "둘"], [], None, ["셋"]]
    pq.write_table(pa.table({"text": pa.array(texts), "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    for path in (tmp_path / "a.parquet", write(tmp_path / "a.jsonl", lines)):
        assert documents(path) == ["하나\n둘", "셋"]
    write(tmp_path / "b.jsonl", json.dumps({"text": ["하나", 2]}))
    assert "does not hold text" in error(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "a", "n": ' + "9" * 6_000 + "}", "number of 6,000 digits"),
        ('{"text": "a", "text": "b"}', "the key 'text' is there twice"),
        ('{"text": "a"} {"text": "b"}', "is not JSON: Extra data"),
    ],
)
def test_json_that_is_made_to_fail(tmp_path, line, what):
    good = json.dumps({"text": "하나", "n": float("nan")})  # as Python writes a missing number
    path = write(tmp_path / "a.jsonl", f"{good}\n{line}\n")
    assert what in error(path) and "a.jsonl:2" in error(path)
    assert what in error(write(tmp_path / "b.json", line)) and "b.json" in error(tmp_path / "b.json")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_damaged_archives(tmp_path, suffix):
    whole = PACK[suffix]("여울이 흐른다.\n".encode() * 10_000)
    for name, data in (("cut", whole[: len(whole) // 2]), ("wrong", b"no archive at all")):
        message = error(write(tmp_path / f"{name}.txt{suffix}", data))
        assert "damaged" in message and name in message


def test_damaged_parquet(tmp_path):
    assert "Parquet" in error(write(tmp_path / "a.parquet", b"PAR1 nothing"))
    assert "Parquet" in error(write(tmp_path / "cut.parquet", CONTENT[".parquet"][:-20]))
    path = write(tmp_path / "n.parquet", parquet_bytes({"text": [1, 2]}))
    assert "does not hold text" in error(path)


def test_hub_data_set_comes_as_a_snapshot(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000.parquet", parquet_bytes({"text": ["하나"]}))
    write(tmp_path / "data" / "test-00000.parquet", parquet_bytes({"text": ["둘"]}))
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert documents("yeoul/small-world", revision="v1") == ["하나"]
    assert asked["repo_id"] == "yeoul/small-world" and asked["revision"] == "v1" and asked["repo_type"] == "dataset"
    assert documents("yeoul/small-world@v2") == ["하나"] and asked["revision"] == "v2"

    def offline(repo_id, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "no network" in error("yeoul/small-world")


def test_source_key_follows_the_files(tmp_path):
    path = write(tmp_path / "a.txt", "하나")
    key = source_key(path)
    assert key == source_key(str(path)) != source_key(path, join_by="id")
    write(path, "하나둘")
    assert source_key(path) != key
    assert source_key("builtin:1MB") == source_key("builtin:1000KB") != source_key("builtin:2MB")


def test_real_reviews_joined_by_film(shared):
    path = shared / "data" / "reviews" / "valid.tsv.xz"
    rows = [line.split("\t") for line in lzma.open(path, "rt", encoding="utf-8", newline="\n").read().split("\n")[1:]]
    rows = [row for row in rows if len(row) == 5]
    films = list(read_documents(path, join_by="movie_id"))
    assert len(films) == len({row[0] for row in rows})
    assert films[0].split("\n")[0] == rows[0][4]
    assert sum(film.count("\n") + 1 for film in films) == len(rows)
    assert len(list(read_documents(path))) == len(rows)


def test_real_pairs_and_novel(shared):
    pairs = shared / "data" / "dialogs" / "chatbot-ko.csv"
    assert len(list(read_documents(pairs, text_column="A"))) == 11_823
    novel = next(read_documents(shared / "data" / "text" / "botchan-en.txt"))
    assert not novel.startswith("\ufeff")
