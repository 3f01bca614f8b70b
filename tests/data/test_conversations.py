"""Conversations, plain texts and preferences: every shape, every file format, every complaint."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from yeoul.data.conversations import Conversation, PlainText, Preference, read_conversations
from yeoul.errors import UserError

ASKED = [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네, 안녕하세요."}]
SYSTEM = {"role": "system", "content": "너는 여울이다."}
TURNS = [{"speaker": "user", "utterance": "안녕?"}, {"speaker": "system", "utterance": "네, 안녕하세요."}]
SHAPES = {
    "messages": {"messages": ASKED, "source": "손으로"},
    "sharegpt": {"conversations": [{"from": "human", "value": "안녕?"}, {"from": "gpt", "value": "네, 안녕하세요."}]},
    "dialog": {"id": 7, "conversation": TURNS},
    "dialogs": {"dialogs": [{"id": "1", "conversation": TURNS}]},
    "alpaca": {"instruction": "안녕?", "input": "", "output": "네, 안녕하세요."},
    "prompt": {"prompt": "안녕?", "completion": "네, 안녕하세요."},
    "prompt of messages": {"prompt": ASKED[:1], "completion": ASKED[1:]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "안녕?"}]}, ASKED[1]]},
    "empty system": {"messages": [{"role": "system", "content": ""}, *ASKED]},
}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def messages_of(spec, **options) -> list[list[dict[str, str]]]:
    return [list(record.messages) for record in read_conversations(spec, **options)]


def complaint(tmp_path: Path, record: object, **options) -> str:
    path = write(tmp_path / "bad.jsonl", record)
    with pytest.raises(UserError) as caught:
        list(read_conversations(path, **options))
    assert f"{path}:1" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_format(tmp_path, shape):
    record = SHAPES[shape]
    lines = write(tmp_path / "a.jsonl", record)
    (tmp_path / "b.json").write_text(json.dumps([record] if shape != "dialogs" else record), encoding="utf-8")
    packed = tmp_path / "c.jsonl.xz"
    packed.write_bytes(lzma.compress(lines.read_bytes()))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    assert messages_of(tmp_path) == [ASKED] * 4
    assert messages_of([packed, lines]) == [ASKED] * 2
    assert messages_of(f"{packed},{lines}") == [ASKED] * 2


def test_places(tmp_path):
    path = write(tmp_path / "a.jsonl", SHAPES["messages"], SHAPES["dialogs"])
    assert [record.where for record in read_conversations(path)] == [f"{path}:1", f"{path}:2, dialogs 1"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([SHAPES["prompt"]] * 2), encoding="utf-8")
    assert [record.where for record in read_conversations(path)] == [f"{path}, record 1", f"{path}, record 2"]
    path.write_text(json.dumps({"data": [SHAPES["prompt"]]}), encoding="utf-8")
    assert [record.where for record in read_conversations(path)] == [f"{path}, data 1"]


def test_what_shapes_have_beside(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"instruction": "옮겨 줘.", "input": "stream", "output": "여울", "system": "너는 여울이다."},
        {"instruction": "또?", "output": "네.", "history": [["안녕?", "네, 안녕하세요."]]},
        {"system": "다른 사람", "messages": [SYSTEM, *ASKED]},
    )
    first, second, third = messages_of(path)
    assert first == [
        SYSTEM,
        {"role": "user", "content": "옮겨 줘.\n\nstream"},
        {"role": "assistant", "content": "여울"},
    ]
    assert second[:2] == ASKED and second[2]["content"] == "또?"
    assert third == [SYSTEM, *ASKED]


def test_plain_text(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "여울이 흐른다."}, SHAPES["messages"])
    records = list(read_conversations(path))
    assert records == [PlainText("여울이 흐른다.", f"{path}:1"), Conversation(tuple(ASKED), f"{path}:2")]


@pytest.mark.parametrize(
    ("speakers", "roles"),
    [
        ("user system", "user assistant"),
        ("system user system", "assistant user assistant"),
        ("민준 서연", "user assistant"),
        ("서연 user", "assistant user"),
        ("user assistant", "user assistant"),
        ("bot 손님", "assistant user"),
        ("민준 민준 서연", "user assistant"),
    ],
)
def test_speakers_of_dialogs(tmp_path, speakers, roles):
    turns = [{"speaker": name, "utterance": f"{number}"} for number, name in enumerate(speakers.split())]
    (messages,) = messages_of(write(tmp_path / "a.jsonl", {"conversation": turns}))
    assert [message["role"] for message in messages] == roles.split()
    assert "\n".join(message["content"] for message in messages).split("\n") == [turn["utterance"] for turn in turns]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"conversation": [*TURNS, {"speaker": "민준", "utterance": "셋"}]}, "3 speakers"),
        ({"conversation": TURNS[:1]}, "no assistant turn"),
        ({"conversation": [{"speaker": "user", "utterance": " "}]}, '"utterance" of turn 1 is empty'),
        ({"conversation": [{"speaker": 3, "utterance": "셋"}]}, '"speaker" of turn 1 is not text but 3'),
        ({"messages": ASKED[:1]}, "no assistant turn"),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "안녕?"}, '"messages" is not a list'),
        ({"messages": ["안녕?"]}, 'entry 1 of "messages" is not an object'),
        ({"messages": [{"content": "안녕?"}]}, 'entry 1 of "messages" has no text under "role"'),
        ({"messages": [ASKED[0], {"role": "assistant"}]}, '"content" of entry 2 of "messages" is missing'),
        ({"messages": [ASKED[0], {"role": "tool", "content": "3"}]}, "the role 'tool'; only system, user and"),
        ({"messages": [ASKED[0], ASKED[1] | {"tool_calls": [{}]}]}, "entry 2 of \"messages\" calls a tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part that is not text"),
        ({"messages": [ASKED[0], {"role": "assistant", "content": "\ud800"}]}, "surrogate"),
        ({"conversations": [{"from": "human", "value": "a\0b"}]}, '"value" of entry 1 of "conversations" has a NUL'),
        ({"instruction": "안녕?", "output": None}, '"output" is missing'),
        ({"instruction": "안녕?", "output": "네", "input": 3}, '"input" is not text but 3'),
        ({"instruction": "안녕?", "output": "네", "history": [["가"]]}, 'entry 1 of "history"'),
        ({"prompt": "안녕?", "completion": ""}, '"completion" is empty'),
        ({"prompt": ASKED[:1], "completion": "네"}, '"prompt" is not text'),
        ({"text": 5}, '"text" is not text but 5'),
        ({"물음": "안녕?", "답": "네"}, "no known format: 물음, 답"),
        ({"messages": [ASKED[0], ASKED[1] | {"weight": 0.5}]}, '"weight" of entry 2 of "messages" is 0.5'),
        ({"messages": [ASKED[0], ASKED[1] | {"weight": 0}]}, "has weight 0, so there is nothing to learn"),
        ({"prompt": "안녕?", "chosen": "네", "rejected": "아니요"}, "a preference, not a conversation"),
        ({"dialogs": []}, 'the list "dialogs" is empty'),
        ({}, "no known format: none"),
        (["안녕?"], "not an object with keys"),
        (None, "not an object with keys"),
    ],
)  # fmt: skip
def test_bad_records(tmp_path, record, what):
    assert what in complaint(tmp_path, record)
    path = write(tmp_path / "mixed.jsonl", SHAPES["messages"], record, SHAPES["prompt"])
    records = read_conversations(path, on_bad_record="skip")
    assert [list(found.messages) for found in records] == [ASKED, ASKED]
    assert (records.read, records.skipped) == (2, 1) and f"{path}:2" in records.complaints[0]
    assert what in records.complaints[0]


def test_lines_that_are_no_records(tmp_path):
    good = json.dumps(SHAPES["messages"], ensure_ascii=False).encode()
    path = tmp_path / "a.jsonl"
    bad = {
        "JSON": good[:-2],
        "not UTF-8 at byte": good.replace("안녕".encode(), "안녕".encode("cp949")),
        "twice": b'{"text": "a", "text": "b"}',
        "'role' is there twice in \"messages\"": good.replace(b'"role": "user"', b'"role": "user", "role": "user"'),
        "too deep": b"[" * 100_000,
        "digits": b"1" * 5_000,
        "NUL": good.replace("안녕".encode(), b"\\u0000"),
        "control character": good.replace("안녕".encode(), b"\0"),
    }
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n" + b"\n".join([*bad.values(), good]))
    records = read_conversations(path, on_bad_record="skip")
    assert len(list(records)) == 2 == records.read and records.skipped == len(bad)
    assert len(records.complaints) == 5
    for number, (what, line) in enumerate(bad.items(), 3):
        path.write_bytes(good + b"\n\n" + line)
        with pytest.raises(UserError) as caught:
            list(read_conversations(path))
        assert what in str(caught.value) and f"{path}:3" in str(caught.value), number


def test_columns_of_tables(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text('물음,답,label\n"안녕?","네, 안녕하세요.",0\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text("label\t답\t물음\n0\t네, 안녕하세요.\t안녕?\n", encoding="utf-8")
    pq.write_table(pa.table({"물음": ["안녕?"], "답": ["네, 안녕하세요."]}), tmp_path / "c.parquet")
    write(tmp_path / "d.jsonl", {"물음": "안녕?", "답": "네, 안녕하세요."})
    assert messages_of(tmp_path, question_column="물음", answer_column="답") == [ASKED] * 4
    for name in ("a.csv", "b.tsv", "c.parquet"):
        for skip in ("error", "skip"):
            with pytest.raises(UserError, match="known format.*give the columns"):
                messages_of(tmp_path / name, on_bad_record=skip)
        with pytest.raises(UserError, match='no column "대답"; there are'):
            messages_of(tmp_path / name, question_column="물음", answer_column="대답")
    with pytest.raises(UserError, match="give both"):
        read_conversations(tmp_path, question_column="물음")


def test_usual_columns_of_question_and_answer(tmp_path):
    (tmp_path / "a.csv").write_text('Q,A,label\n"안녕?","네, 안녕하세요.",0\n', encoding="utf-8")
    write(tmp_path / "b.jsonl", {"question": "안녕?", "answer": "네, 안녕하세요.", "id": 3})
    assert messages_of(tmp_path) == [ASKED] * 2


def test_weights_of_messages(tmp_path):
    talk = [*ASKED, ASKED[0], ASKED[1] | {"weight": 0}]
    write(tmp_path / "a.jsonl", {"messages": [message | {"weight": 1} for message in ASKED]}, {"messages": talk})
    named = [{"from": m["role"], "value": m["content"], "weight": m.get("weight")} for m in talk]
    write(tmp_path / "b.jsonl", {"conversations": named})
    assert messages_of(tmp_path) == [ASKED, talk, talk]


def test_shapes_as_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cell = json.dumps(ASKED, ensure_ascii=False)
    quoted = cell.replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages\n"{quoted}"\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text(f"messages\n{cell}\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text('instruction,input,output\n안녕?,,"네, 안녕하세요."\n', encoding="utf-8")
    pq.write_table(pa.table({"messages": [ASKED]}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"prompt": ["안녕?"], "completion": ["네, 안녕하세요."]}), tmp_path / "e.parquet")
    assert messages_of(tmp_path) == [ASKED] * 5
    (tmp_path / "f.csv").write_text('messages\n"[{"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r'"messages" is not valid JSON \(.*f\.csv:2\)'):
        messages_of(tmp_path)


def test_broken_quotes_cost_only_their_own_row(tmp_path):
    rows = [
        "Q,A",
        "하나,답",
        '"둘,답',
        "셋,답",
        '"넷",답',
        '다"섯,답',
        '"여섯\n일곱",답',
        '"여덟"아홉,답',
        "열",
        "끝,답",
    ]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    records = read_conversations(path, question_column="Q", answer_column="A", on_bad_record="skip")
    questions = [record.messages[0]["content"] for record in records]
    assert questions == ["하나", "셋", "넷", '다"섯', "여섯\n일곱", "끝"]
    assert records.skipped == 3 and [f"{path}:{line}" in records.complaints[i] for i, line in enumerate((3, 9, 10))]
    path.write_text('Q,A\n하나,답\n"둘,답\n셋,답', encoding="utf-8")
    assert len(list(records)) == 2 and records.skipped == 1 and f"{path}:3" in records.complaints[0]


def test_files_that_cannot_be_read_at_all(tmp_path):
    good = json.dumps([SHAPES["messages"]] * 3, ensure_ascii=False, indent=1)
    damaged = {
        "cut.json": good[:-40].encode(),
        "plain.json": b"3",
        "cut.jsonl.xz": lzma.compress(good.encode())[:-20],
        "head.csv": b"Q,Q\n1,2\n",
        "cp949.csv": "질문,답\n가,나\n".encode("cp949"),
        "open.csv": b'"Q,A\n1,2\n',
    }
    for name, data in damaged.items():
        for skip in ("error", "skip"):
            path = tmp_path / name
            path.write_bytes(data)
            with pytest.raises(UserError, match=name):
                list(read_conversations(path, on_bad_record=skip))
    with pytest.raises(UserError, match=r"cut\.json:\d\d"):
        list(read_conversations(tmp_path / "cut.json", on_bad_record="skip"))


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(UserError, match="no record in the data"):
        list(read_conversations(write(tmp_path / "empty.jsonl")))
    with pytest.raises(UserError, match=r"none of the 2 records can be used.*known format"):
        list(read_conversations(write(tmp_path / "bad.jsonl", {"a": 1}, {"b": 2}), on_bad_record="skip"))
    (tmp_path / "a.txt").write_text("여울", encoding="utf-8")
    with pytest.raises(UserError, match="who speaks"):
        read_conversations(tmp_path / "a.txt")
    with pytest.raises(UserError, match="who speaks .builtin"):
        read_conversations("builtin")
    with pytest.raises(UserError, match="no such file"):
        read_conversations(tmp_path / "none.jsonl")


def test_reading_again_counts_again(tmp_path):
    records = read_conversations(write(tmp_path / "a.jsonl", SHAPES["messages"], {}), on_bad_record="skip")
    for _ in range(2):
        assert len(list(records)) == 1 and (records.read, records.skipped, len(records.complaints)) == (1, 1, 1)


YES, NO = [{"role": "assistant", "content": "네"}], [{"role": "assistant", "content": "아니요"}]
ASK = [ASKED[0]]


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "안녕?", "chosen": "네", "rejected": "아니요"}, ASK),
        ({"prompt": ASK, "chosen": YES, "rejected": NO}, ASK),
        ({"prompt": "안녕?", "chosen": YES, "rejected": NO, "system": SYSTEM["content"]}, [SYSTEM, *ASK]),
        ({"chosen": [SYSTEM, *ASK, *YES], "rejected": [SYSTEM, *ASK, *NO]}, [SYSTEM, *ASK]),
        ({"prompt": "안녕?", "chosen": [*ASK, *YES], "rejected": [*ASK, *NO]}, ASK),
        ({"prompt": ASK, "chosen": [YES[0], *ASK, *YES], "rejected": [YES[0], *ASK, *NO]}, [*ASK, *YES, *ASK]),
    ],
)
def test_preferences(tmp_path, record, prompt):
    path = write(tmp_path / "a.jsonl", record)
    (found,) = read_conversations(path, kind="preference")
    assert found == Preference(tuple(prompt), tuple(YES), tuple(NO), f"{path}:1")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"prompt": "안녕?", "chosen": "네"}, '"chosen" and "rejected"'),
        ({"messages": ASKED}, '"chosen" and "rejected"'),
        ({"prompt": "안녕?", "chosen": "네", "rejected": "네"}, "are the same"),
        ({"chosen": "네", "rejected": "아니요"}, '"prompt" is missing'),
        ({"prompt": "안녕?", "chosen": " ", "rejected": "아니요"}, '"chosen" is empty'),
        ({"prompt": "안녕?", "chosen": "네", "rejected": ["아니요"]}, 'entry 1 of "rejected" is not an object'),
        ({"chosen": [*ASK, *YES], "rejected": [*ASK]}, '"rejected" does not continue'),
        ({"prompt": "안녕?", "chosen": YES, "rejected": [SYSTEM]}, '"rejected" does not continue'),
    ],
)
def test_bad_preferences(tmp_path, record, what):
    assert what in complaint(tmp_path, record, kind="preference")


def test_preferences_in_tables(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n안녕?,네,아니요\n", encoding="utf-8")
    (found,) = read_conversations(tmp_path / "a.csv", kind="preference")
    assert (found.prompt, found.chosen, found.rejected) == (tuple(ASK), tuple(YES), tuple(NO))
    (tmp_path / "a.csv").write_text("prompt,completion\n안녕?,네\n", encoding="utf-8")
    with pytest.raises(UserError, match="columns"):
        list(read_conversations(tmp_path / "a.csv", kind="preference"))


def test_real_pairs_in_a_folder_with_a_licence(shared):
    folder = shared / "data" / "dialogs"
    records = read_conversations(folder, question_column="Q", answer_column="A")
    found = list(records)
    assert len(found) == records.read == 11_823 and records.skipped == 0
    assert found[0].messages[0] == {"role": "user", "content": "12시 땡!"}
