"""Small files that stand for gigabytes: each is read in little memory, or refused in one sentence."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from yeoul.data.conversations import read_conversations
from yeoul.data.documents import read_documents
from yeoul.data.reading import Reading
from yeoul.errors import UserError

MIB = 2**20
WHOLE = 160 * MIB
ALLOWED = 144 * MIB
ALLOWED_ARROW = 320 * MIB
"""Of memory, without pyarrow's pools and with them; the bound of a record is 8 MiB here."""
PROGRAM = """
import resource, sys
import pyarrow.parquet, zstandard
from yeoul.data.reading import Reading
from yeoul.data.documents import read_documents
from yeoul.errors import UserError
used = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmData"))) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]),) * 2)
try:
    print(sum(len(text) for text in read_documents(sys.argv[1], reading=Reading(record_mib=8))))
except UserError as error:
    print(error)
"""


def read(path: Path) -> str:
    """What reading the documents of a file says: how long they are together, or the error."""
    command = [sys.executable, "-c", PROGRAM, str(path), str(ALLOWED_ARROW if path.suffix == ".parquet" else ALLOWED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def gz(pieces: Iterator[bytes], path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.writelines(pieces)


def xz(pieces: Iterator[bytes], path: Path) -> None:
    with lzma.open(path, "wb", preset=0) as file:
        file.writelines(pieces)


def zst(pieces: Iterator[bytes], path: Path) -> None:
    with path.open("wb") as file, zstandard.ZstdCompressor(write_checksum=True).stream_writer(file) as packed:
        for piece in pieces:
            packed.write(piece)


PACKERS = {".gz": gz, ".xz": xz, ".zst": zst}


KINDS = [(".txt", ".gz"), (".txt", ".xz"), *((kind, ".zst") for kind in (".txt", ".jsonl", ".csv", ".tsv", ".json"))]


@pytest.mark.parametrize(("kind", "packed"), KINDS)
def test_one_line_without_end(tmp_path: Path, kind: str, packed: str) -> None:
    path = tmp_path / f"bomb{kind}{packed}"
    begin = {".jsonl": b'{"text": "', ".json": b'["', ".csv": b"text\n", ".tsv": b"text\n"}.get(kind, b"")
    PACKERS[packed](iter([begin, *[b"a" * MIB] * (WHOLE // MIB)]), path)
    assert path.stat().st_size < 4 * MIB
    what = "is larger than 64.0 MiB" if kind == ".json" else "the line is larger than 8.0 MiB"
    assert what in (said := read(path)) and "bomb" in said and "--record-mib" in said


def test_rows_of_csv_that_never_end(tmp_path: Path) -> None:
    gz(iter([b'text\n"', *[b"line\n" * (MIB // 5)] * 40]), tmp_path / "a.csv.gz")
    assert "a.csv.gz:2" in (said := read(tmp_path / "a.csv.gz")) and "quotation mark" in said


@pytest.mark.parametrize(("kind", "value"), [(".jsonl", b"[],"), (".json", b"{},"), (".jsonl", b"0,")])
def test_json_of_many_values(tmp_path: Path, kind: str, value: bytes) -> None:
    (tmp_path / f"a{kind}").write_bytes(b"[" + value * (7 * MIB // 3 * (8 if kind == ".json" else 1)) + b"0]\n")
    assert "holds more than" in read(tmp_path / f"a{kind}")


def parquet(path: Path, texts: pa.Array, **options: object) -> Path:
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", **options)
    assert path.stat().st_size < MIB
    return path


def test_parquet_of_one_long_text_many_times(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 150, pa.int32()), ["a" * 4_000_000])
    assert read(parquet(tmp_path / "a.parquet", texts)) == str(150 * 4_000_000)
    path = parquet(tmp_path / "b.parquet", pa.array(["a" * 9 * MIB]))
    assert "the row is larger than 8.0 MiB" in (said := read(path)) and "b.parquet, row 1" in said


def test_parquet_of_texts_that_begin_alike(tmp_path: Path) -> None:
    texts = pa.array(["a" * 2_000_000] * 200)
    path = parquet(tmp_path / "a.parquet", texts, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    assert read(path) == str(200 * 2_000_000)


def test_parquet_that_says_what_it_becomes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array(["a" * 100 * MIB]), use_dictionary=False)
    assert "the file has" in (said := read(path)) and "100.0 MiB" in said and "--record-mib" in said


def test_parquet_of_endless_lists(tmp_path: Path) -> None:
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000_000, pa.int32()), ["a"])
    path = parquet(tmp_path / "a.parquet", pa.ListArray.from_arrays(pa.array([0, 3_000_000], pa.int32()), many))
    assert "the row is larger than 8.0 MiB" in read(path)


def test_an_encoding_that_begins_late(tmp_path: Path) -> None:
    texts = [f"{number % 7}" * 3 for number in range(3000)]
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path, options in ((first, {}), (second, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"})):
        pq.write_table(pa.table({"text": texts}), path, row_group_size=1100, **options)
    assert list(read_documents(tmp_path)) == texts * 2


def test_the_bound_is_that_of_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record = json.dumps({"prompt": "a" * (MIB - 40), "completion": "b"}).encode()
    assert MIB - 20 < len(record) <= MIB
    path.write_bytes(record + b"\n" + record.replace(b'"b"', b'"' + b"b" * 60 + b'"') + b"\n" + record)
    assert len(list(read_conversations(path, reading=Reading(record_mib=2)))) == 3
    records = read_conversations(path, reading=Reading(record_mib=1), on_bad_record="skip")
    assert len(list(records)) == 2 and records.skipped == 1
    assert "the line is larger than 1.0 MiB" in records.complaints[0] and "a.jsonl:2" in records.complaints[0]


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "twice", "padded", "garbage", "flipped"])
def test_archives_in_pieces(tmp_path: Path, packed: str, damage: str) -> None:
    text = "".join(f"글 {number}\n\n" for number in range(40_000))
    path = tmp_path / f"a.txt{packed}"
    PACKERS[packed](iter([text.encode()]), path)
    data = path.read_bytes()
    change: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[:-20],
        "twice": lambda: data + data,
        "padded": lambda: data + bytes(8) * (packed != ".zst"),
        "garbage": lambda: data + b"garbage!",
        "flipped": lambda: data[:500] + bytes([data[500] ^ 255]) + data[501:],
    }
    path.write_bytes(change[damage]())
    if damage in ("twice", "padded"):
        assert len(list(read_documents(path))) == 40_000 * (1 + (damage == "twice"))
    else:
        with pytest.raises(UserError, match=r"damaged.*a\.txt"):
            list(read_documents(path))


def test_an_archive_that_asks_for_much_memory(tmp_path: Path) -> None:
    data = lzma.compress(b"text\n")
    header = bytearray(data[12 : 12 + (data[12] + 1) * 4])  # of the block: ..., filter 0x21, 1, its dictionary; CRC32
    header[header.index(b"\x21\x01") + 2] = 36  # 2**30 bytes
    header[-4:] = zlib.crc32(bytes(header[:-4])).to_bytes(4, "little")
    (tmp_path / "a.txt.xz").write_bytes(data[:12] + header + data[12 + len(header) :])
    with pytest.raises(UserError, match=r"Memory usage limit exceeded.*a\.txt\.xz"):
        list(read_documents(tmp_path / "a.txt.xz"))
