"""Five hundred damaged records, by a seeded mutator over all formats: each is named, and none is lost."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yeoul.data.conversations import read_conversations
from yeoul.errors import UserError

RECORDS = 9
"""Of a file; up to three of them are damaged."""


def turns(rng: random.Random) -> list[str]:
    words = ["여울", "물이 흐른다.", '그는 "네" 했다', "a, b; c", "줄\n바꿈", "🙂", "탭\t하나"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(2 * rng.randint(1, 3))]


def as_messages(texts: list[str], role: str, text: str, names: tuple[str, str]) -> list[dict[str, Any]]:
    return [{role: names[number % 2], text: content} for number, content in enumerate(texts)]


SHAPES: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "messages": lambda t: {"messages": as_messages(t, "role", "content", ("user", "assistant"))},
    "sharegpt": lambda t: {"id": "s", "conversations": as_messages(t, "from", "value", ("human", "gpt"))},
    "dialog": lambda t: {"id": 1, "conversation": as_messages(t, "speaker", "utterance", ("user", "system"))},
    "alpaca": lambda t: {"instruction": t[0], "input": "", "output": t[1]},
    "prompt": lambda t: {"prompt": t[0], "completion": t[1]},
    "text": lambda t: {"text": t[0]},
}
WRONG = [None, 3, "", "  ", [], {}, True, "a\0b", "\ud800", ["글"]]


def damage_value(record: dict[str, Any], rng: random.Random) -> Any:
    """The record with one thing wrong in its values."""
    record = json.loads(json.dumps(record))
    key = next(key for key in record if key not in ("id", "input"))
    value = record[key]
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice([None, 3, "글", [], ["글"], True, {}])
    if kind == 1:
        record[f"{key}_"] = record.pop(key)
    elif kind == 2 and isinstance(value, list):
        record[key] = [turn for number, turn in enumerate(value) if number % 2 == 0]  # nobody answers
    elif kind == 3 and isinstance(value, list):
        entry = rng.choice(value)
        del entry[rng.choice(list(entry))]
    elif kind == 4 and isinstance(value, list):
        entry = rng.choice(value)
        entry[rng.choice(list(entry))] = rng.choice(WRONG)
    elif isinstance(value, list):
        value[rng.randrange(len(value))] = rng.choice(WRONG)
    else:
        record[key] = rng.choice(WRONG)
    return record


def damage_line(line: bytes, rng: random.Random) -> bytes:
    """A line of JSON with one thing wrong in its bytes."""
    kind = rng.randrange(5)
    if kind == 0:
        return line[: rng.randrange(1, len(line))]
    if kind in (1, 2):
        place = rng.randrange(len(line) + 1)
        return line[:place] + rng.choice([b"\xff", b"\0", b"\xb0\xa1"]) + line[place:]
    if kind == 3:
        structure = [place for place, byte in enumerate(line) if byte in b"{}[]" or line[place : place + 2] == b'":']
        place = rng.choice(structure)
        return line[:place] + line[place + 1 :]
    return line + rng.choice([b",", b"}", line, b" x"])


def file_of(kind: str, rng: random.Random, path: Path) -> tuple[list[str], list[Any], list[str]]:
    """Writes a file; gives the names of its records, what they hold (None: damaged) and lines to show."""
    bad = set(rng.sample(range(RECORDS), rng.randint(1, 3)))
    shape = rng.choice(list(SHAPES)) if kind in ("jsonl", "json") else "prompt"
    records = [SHAPES[shape](turns(rng)) for _ in range(RECORDS)]
    kept = [None if number in bad else record for number, record in enumerate(records)]
    if kind == "jsonl":
        lines = [json.dumps(record, ensure_ascii=rng.random() < 0.5).encode() for record in records]
        for number in bad:
            changed = json.dumps(damage_value(records[number], rng)).encode()
            lines[number] = damage_line(lines[number], rng) if rng.random() < 0.6 else changed
        path.write_bytes(b"\n".join(lines) + rng.choice([b"\n", b""]))
        return [f"{path}:{number + 1}" for number in range(RECORDS)], kept, lines
    if kind == "json":
        values = [damage_value(record, rng) if number in bad else record for number, record in enumerate(records)]
        name = "dialogs" if shape == "dialog" and rng.random() < 0.7 else "record"
        path.write_text(json.dumps({name: values} if name == "dialogs" else values), encoding="utf-8")
        return [f"{path}, {name} {number + 1}" for number in range(RECORDS)], kept, []
    rows = [[record["prompt"], record["completion"]] for record in records]
    if kind == "parquet":
        return write_parquet(path, rows, bad, rng), kept, []
    return write_table(kind, path, rows, bad, rng, kept), kept, []


def write_parquet(path: Path, rows: list[list[Any]], bad: set[int], rng: random.Random) -> list[str]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [[text.encode() for text in row] for row in rows]
    for number in bad:
        rows[number][rng.randrange(2)] = rng.choice([None, b"", b" \n", b"a\0b", b"\xb0\xa1", b"\xff"])
    columns = [pa.array([row[c] for row in rows], pa.binary()).view(pa.string()) for c in range(2)]
    pq.write_table(pa.table(columns, names=["prompt", "completion"]), path)
    return [f"{path}, row {number + 1}" for number in range(RECORDS)]


def write_table(
    kind: str, path: Path, rows: list[list[str]], bad: set[int], rng: random.Random, kept: list[Any]
) -> list[str]:
    names, line, data = [], 2, [b"prompt,completion" if kind == "csv" else b"prompt\tcompletion"]
    for number, row in enumerate(rows):
        if kind == "tsv":
            row = [text.replace("\n", " ").replace("\t", " ") for text in row]
            kept[number] = kept[number] and {"prompt": row[0], "completion": row[1]}
            raw = "\t".join(row)
        else:
            written = io.StringIO()
            csv.writer(written, lineterminator="\n").writerow(row)
            raw = written.getvalue().removesuffix("\n")
        if number in bad:
            raw = "하나 둘"  # a row that is damaged has one line, so that the lines of the others are known
            raw = rng.choice(
                [raw, f"{raw}\t{raw}\t{raw}", f"\t{raw}", f"{raw}\t ", f"{raw}\ta\0b", f"{raw}\t\udcb0\udca1"]
                if kind == "tsv"
                else [raw, f"{raw},{raw},{raw}", f",{raw}", f'{raw},"', f'"{raw},a', f'"{raw}"b,a', f"{raw},\udcff"]
            )
        data.append(raw.encode("utf-8", "surrogateescape"))
        names.append(f"{path}:{line}")
        line += raw.count("\n") + 1
    path.write_bytes(b"\n".join(data) + b"\n")
    return names


def content(record: Any) -> Any:
    """What a good record says, whatever its shape."""
    if "text" in record:
        return [record["text"]]
    if "prompt" in record:
        return [record["prompt"], record["completion"]]
    if "instruction" in record:
        return [record["instruction"], record["output"]]
    (entries,) = (value for value in record.values() if isinstance(value, list))
    return [text for entry in entries for key, text in entry.items() if key in ("content", "value", "utterance")]


def test_five_hundred_damaged_records(tmp_path: Path) -> None:
    rng = random.Random(20)
    damaged, seen = 0, dict.fromkeys(("jsonl", "json", "csv", "tsv", "parquet"), 0)
    while damaged < 500 or min(seen.values()) < 50:
        kind = rng.choice(list(seen))
        path = tmp_path / f"{damaged}.{kind}"
        names, kept, lines = file_of(kind, rng, path)
        bad = [name for name, record in zip(names, kept, strict=True) if record is None]
        records = read_conversations(path, on_bad_record="skip")
        found = [[m["content"] for m in record.messages] if hasattr(record, "messages") else [record.text]
                 for record in records]  # fmt: skip
        assert found == [content(record) for record in kept if record is not None], (path, lines)
        assert (records.read, records.skipped) == (RECORDS - len(bad), len(bad))
        for name, complaint in zip(bad, records.complaints, strict=True):
            assert f"({name})" in complaint, (complaint, name)
        with pytest.raises(UserError) as caught:
            list(read_conversations(path))
        assert caught.value.where == bad[0]
        damaged, seen[kind] = damaged + len(bad), seen[kind] + len(bad)


def test_a_file_cut_anywhere_loses_no_record_silently(tmp_path: Path) -> None:
    rng = random.Random(5)
    records = [SHAPES["messages"](turns(rng)) for _ in range(4)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    whole = json.dumps(records, ensure_ascii=False, indent=1).encode()
    for _ in range(60):
        path, place = tmp_path / "cut.jsonl", rng.randrange(1, len(lines))
        path.write_bytes(lines[:place])
        begun = len(lines[:place].splitlines())
        reading = read_conversations(path, on_bad_record="skip")
        try:
            list(reading)
        except UserError as error:
            assert str(path) in str(error) and begun == 1
        assert reading.read + reading.skipped == begun
        path, place = tmp_path / "cut.json", rng.randrange(1, len(whole) - 1)
        path.write_bytes(whole[:place])
        with pytest.raises(UserError) as caught:
            list(read_conversations(path, on_bad_record="skip"))
        assert str(caught.value.where).startswith(f"{path}:")
