"""Files with any bytes changed: read, or refused in one sentence, by every reader and in every encoding."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from yeoul.data.conversations import read_conversations
from yeoul.data.documents import read_documents
from yeoul.data.labelled import read_labelled, read_texts
from yeoul.data.reading import Reading
from yeoul.errors import UserError

TURNS = [{"role": "user", "content": "물음"}, {"role": "assistant", "content": "답"}]
RECORDS = [{"text": "여울", "label": number % 2, "messages": TURNS} for number in range(20)]
PIECES = [
    b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"NaN", b"[", b'"', b"\xb0\xa1", b"\xed\xa0\x80", b"9" * 400, b"\r",
    b"\\ud800", b'{"a":1,"a":2}', "“".encode(),
]  # fmt: skip
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}  # fmt: skip
READERS: dict[str, Callable[[Path, Reading], Any]] = {
    "documents": lambda path, reading: list(read_documents(path, reading=reading)),
    "joined": lambda path, reading: list(read_documents(path, text_column="text", join_by="label", reading=reading)),
    "conversations": lambda path, reading: list(read_conversations(path, on_bad_record="skip", reading=reading)),
    "labelled": lambda path, reading: read_labelled(path, on_bad_record="skip", reading=reading).records,
    "texts": lambda path, reading: read_texts(path, reading=reading),
}


def whole(kind: str) -> bytes:
    if kind == ".parquet":
        sink = io.BytesIO()
        # Without lists: of some damages of their descriptions Arrow does not come back.
        flat = [{"text": "여울", "label": str(record["label"])} for record in RECORDS]
        pq.write_table(pa.Table.from_pylist(flat), sink, row_group_size=8)
        return sink.getvalue()
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
    return {
        ".jsonl": lines, ".json": json.dumps(RECORDS, ensure_ascii=False), ".tsv": "text\tlabel\n여울\t1\n물\t2\n",
        ".csv": 'text,label\n"여울, ""물""",1\n"두\n줄",2\n', ".txt": "하나\n\n둘\n", ".ko": "하나\n둘\n",
    }[kind].encode()  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            changed[place:] = b"" if rng.random() < 0.3 else changed[place:]
        elif kind == 1:
            changed[place:place] = rng.choice(PIECES)
        elif kind == 2:
            changed[place : place + rng.randint(1, 9)] = b""
        else:
            changed[place : place + 1] = bytes([rng.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".ko"])
def test_every_reader_ends_with_records_or_one_sentence(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    good, read = whole(kind), 0
    for number in range(150):
        packed = rng.choice(list(PACK))
        path = tmp_path / f"{number}{kind}{packed}"
        inside = rng.random() < 0.7
        path.write_bytes(PACK[packed](damaged(good, rng)) if inside else damaged(PACK[packed](good), rng))
        reading = Reading(encoding=rng.choice(["utf-8", "utf-8", "cp949", "utf-16"]))
        for reader in READERS.values():
            try:
                found = reader(path, reading)
            except UserError as error:
                assert "\n" not in str(error), path
            else:
                read += 1
                json.dumps([item if isinstance(item, str) else str(item) for item in found]).encode()
    assert read > 20
