"""Token shards: what is written is read, reused, and refused when damaged."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from yeoul.data import shards
from yeoul.data.shards import TokenShards, build_shards
from yeoul.errors import UserError

TEXTS = [f"문서 {number} " + "가" * (number % 7) for number in range(3000)]


def encode_batch(texts: list[str]) -> list[list[int]]:
    return [[ord(char) % 500 for char in text] for text in texts]


def build(folder, texts=TEXTS, **options):
    options = {"eos_id": 500, "vocab_size": 501, "fingerprint": "f", **options}
    return build_shards(iter(texts), encode_batch, folder=folder, **options)


def test_documents_come_back(tmp_path):
    train, val = build(tmp_path / "data")
    assert val is None and train.num_documents == len(TEXTS) and train.tokens.dtype == np.uint16
    assert train.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert train.num_tokens == sum(len(text) + 1 for text in TEXTS) == len(train.tokens)
    for index in (0, 17, 2999):
        assert train.document(index).tolist() == [*encode_batch([TEXTS[index]])[0], 500]
    with pytest.raises(IndexError):
        train.document(3000)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_large_vocabularies_take_four_bytes(tmp_path):
    train, _ = build(tmp_path / "data", vocab_size=70_000, eos_id=69_999)
    assert train.tokens.dtype == np.uint32 and train.document(0)[-1] == 69_999
    with pytest.raises(ValueError, match="outside"):
        build(tmp_path / "other", vocab_size=100, eos_id=99)
    assert not (tmp_path / "other").exists() and len(list(tmp_path.iterdir())) == 1


def test_validation_split_is_by_document_and_repeatable(tmp_path):
    train, val = build(tmp_path / "a", val_fraction=0.1)
    assert train.num_documents + val.num_documents == len(TEXTS) and 200 < val.num_documents < 400
    again, val_again = build(tmp_path / "b", val_fraction=0.1)
    assert np.array_equal(val.tokens, val_again.tokens) and np.array_equal(train.tokens, again.tokens)
    _, other = build(tmp_path / "c", val_fraction=0.1, seed=1)
    assert not np.array_equal(val.offsets, other.offsets)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_few_documents_are_divided_fairly(tmp_path, count, fraction):
    train, val = build(tmp_path / "data", TEXTS[:count], val_fraction=fraction)
    kept = [train, val] if val else [train]
    assert (val is None) == (count == 1)
    assert all(part.num_documents for part in kept) and sum(part.num_documents for part in kept) == count


def test_matching_shards_are_reused_and_others_replaced(tmp_path):
    folder = tmp_path / "data"
    build(folder, source_key="k", val_fraction=0.1)

    def untouchable():
        raise AssertionError("the documents were read")
        yield

    train, val = build(folder, untouchable(), source_key="k", val_fraction=0.1)
    assert train.num_documents + val.num_documents == len(TEXTS)
    for change in ({"fingerprint": "g"}, {"source_key": "l"}, {"val_fraction": 0.2}, {"source_key": None}):
        train, _ = build(folder, TEXTS[:50], **{"source_key": "k", "val_fraction": 0.1, **change})
        assert train.num_documents <= 50
        build(folder, source_key="k", val_fraction=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failed_build_leaves_the_old_shards(tmp_path):
    folder = tmp_path / "data"
    build(folder)

    def broken():
        yield "하나"
        raise UserError("the text is not UTF-8")

    with pytest.raises(UserError):
        build(folder, broken())
    assert TokenShards.open(folder / "train").num_documents == len(TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_foreign_folders_are_not_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        build(tmp_path / "data")
    assert (tmp_path / "data" / "thesis.txt").exists()


def test_empty_corpora_and_wrong_shares(tmp_path):
    with pytest.raises(UserError, match="no text"):
        build(tmp_path / "data", [])
    with pytest.raises(UserError, match="share"):
        build(tmp_path / "data", val_fraction=1.5)
    assert not list(tmp_path.iterdir())


def test_damage_is_named(tmp_path):
    with pytest.raises(UserError, match="not a folder of tokens"):
        TokenShards.open(tmp_path)
    folder = tmp_path / "data" / "train"

    def damaged(name: str, change) -> str:
        build(tmp_path / "data", source_key="k")
        path = folder / name
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(UserError) as caught:
            TokenShards.open(folder)
        return str(caught.value)

    assert "tokens.bin" in damaged("tokens.bin", lambda data: data[:-3])
    assert "damaged" in damaged("offsets.npy", lambda data: data[:40])
    assert "damaged" in damaged("offsets.npy", lambda data: b"")
    assert "meta.json" in damaged("meta.json", lambda data: data[:30])
    assert "meta.json" in damaged("meta.json", lambda data: b"[]")
    assert "format 9" in damaged("meta.json", lambda data: json.dumps({**json.loads(data), "version": 9}).encode())
    train, _ = build(tmp_path / "data", source_key="k")  # what is damaged is not reused but made again
    assert train.num_documents == len(TEXTS)


def test_progress_is_told(tmp_path):
    seen = []
    build(tmp_path / "data", val_fraction=0.1, progress=lambda *figures: seen.append(figures))
    assert [documents for documents, _, _ in seen] == [1000, 2000, 3000, 3000]
    assert seen[-1][1:] == (sum(len(text) + 1 for text in TEXTS), sum(len(text.encode()) for text in TEXTS))


def test_long_documents_are_encoded_a_few_at_a_time(tmp_path, monkeypatch):
    """What is encoded together is bounded by its size: 1,000 documents of 100,000 characters would take gigabytes."""
    monkeypatch.setattr(shards, "_CHARACTERS", 1000)
    seen = []

    def encode(texts):
        seen.append([len(text) for text in texts])
        return [[1] * len(text) for text in texts]

    documents = ["a" * length for length in (600, 300, 200, 1500, 10, 10, 980, 1, *[1] * 2000)]
    train, _ = build_shards(iter(documents), encode, 0, 5, "f", tmp_path / "data")
    assert seen[:4] == [[600, 300], [200], [1500], [10, 10, 980]]
    assert all(sum(lengths) <= 1000 or len(lengths) == 1 for lengths in seen)
    assert [len(train.document(i)) for i in range(8)] == [601, 301, 201, 1501, 11, 11, 981, 2]
    assert train.num_documents == len(documents)


def test_a_thread_encodes_and_the_order_stays(tmp_path):
    """While the next documents are read; at most two batches are in flight."""
    read, encoded, threads = [], [], set()

    def documents():
        for number in range(40):
            read.append(number)
            yield f"{number} " * 10
            assert len(read) - len(encoded) <= 4 * 3, "documents pile up"

    def encode(texts):
        threads.add(threading.current_thread().name)
        time.sleep(0.002 * (len(encoded) % 3))
        encoded.extend(texts)
        return [[int(text.split()[0])] for text in texts]

    train, _ = build_shards(documents(), encode, 99, 100, "f", tmp_path / "data", batch_documents=4)
    assert train.tokens.tolist() == [id for number in range(40) for id in (number, 99)]
    assert len(threads) == 1 and threading.current_thread().name not in threads


@pytest.mark.parametrize("place", ["documents", "encode"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("damaged")])
def test_what_goes_wrong_ends_the_thread_and_leaves_nothing(tmp_path, place, error):
    def documents():
        yield from ["a", "b", "c"]
        if place == "documents":
            raise error

    def encode(texts):
        if place == "encode" and "b" in texts:
            raise error
        return [[1] for _ in texts]

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        build_shards(documents(), encode, 0, 5, "f", tmp_path / "data", batch_documents=1)
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_documents_of_many_megabytes_are_encoded_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_CHARACTERS", 1000)
    texts = ["a" * 700, "b" * 5000, "", "c" * 1001]
    seen = []

    def in_parts(text):
        seen.append(text)
        return ([ord(char) % 500 for char in text[at : at + 300]] for at in range(0, len(text), 300))

    parts, _ = build(tmp_path / "parts", texts, encode_in_parts=in_parts)
    whole, _ = build(tmp_path / "whole", texts)
    assert parts.tokens.tolist() == whole.tokens.tolist() and seen == [texts[1], texts[3]]
    with pytest.raises(ValueError, match="outside"):
        build(tmp_path / "other", texts, encode_in_parts=lambda text: [[1], [501]])


MEMORY = """
import sys
from pathlib import Path
from yeoul.recipes.token_data import token_shards
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

folder = Path(sys.argv[1])
lines = [f"미나는 {n}번째 시장에서 {n * 7919 % 1000}원짜리 사과를 {n % 17}개 샀다." for n in range(3000)]
tokenizer = train_tokenizer(lines, TokenizerConfig(vocab_size=600), folder / "tokenizer")
text = " ".join(lines)
with (folder / "text.txt").open("w") as file:
    for _ in range(int(sys.argv[2])):
        file.write(text + sys.argv[3])
train, _ = token_shards(str(folder / "text.txt"), folder / "data", tokenizer)
status = Path("/proc/self/status").read_text()  # ru_maxrss begins at what the process that starts this one had
peak = int(status.partition("VmHWM:")[2].split()[0])
print(peak / 1024, train.num_bytes / 1e6, train.num_documents)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", [" ", "\\n"])
def test_memory_is_bounded_whatever_the_text_looks_like(tmp_path, end):
    """20 MB in one line, and in one block without blank lines."""
    code = MEMORY.replace("sys.argv[3]", f'"{end}"')
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), "100"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, megabytes, documents = map(float, done.stdout.split())
    assert megabytes > 18 and documents >= 10
    assert peak < 600
