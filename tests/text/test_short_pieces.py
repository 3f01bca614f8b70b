"""Tokenizers that cut texts into short pieces: everything that opens their files does the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from text.published import SHAPES
from text.samples import small_corpus
from text.test_published import TEXTS
from yeoul.errors import UserError
from yeoul.text.short_pieces import characters
from yeoul.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

LONGER = [*TEXTS, *small_corpus()[:40], "  미나는  시장에서 3시에\n\n걸었다. def f(x):"]


def check(before: Tokenizer, folder: Path, longest: int) -> Tokenizer:
    """Saves a tokenizer with short pieces: the ids of transformers, short ones only, and the same texts."""
    ours = before.with_short_pieces(longest)
    ours.save(folder)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    ids = [ours.encode(text) for text in LONGER]
    assert ids == [theirs.encode(text, add_special_tokens=False) for text in LONGER]
    assert ids == Tokenizer.load(folder).encode_batch(LONGER)
    used = {i for row in ids for i in row}
    added = set(theirs.added_tokens_decoder)
    assert max(characters(ours.token_bytes(i)) for i in used - added) == longest
    assert sum(map(len, ids)) > sum(map(len, before.encode_batch(LONGER)))
    for text, row in zip(LONGER, ids, strict=True):
        assert ours.decode(row) == before.decode(before.encode(text))
    assert [ours.piece(i) for i in range(ours.vocab_size)] == [before.piece(i) for i in range(before.vocab_size)]
    assert ours.special_tokens == before.special_tokens and ours.fingerprint != before.fingerprint
    return ours


@pytest.mark.parametrize("longest", [1, 2])
def test_our_own_kinds(longest: int, any_folder: Path, tmp_path: Path) -> None:
    ours = check(Tokenizer.load(any_folder), tmp_path, longest)
    assert not (tmp_path / "tokenizer.model").exists()  # it would say otherwise
    if longest == 1:
        assert ours.pieces("미나는 시장에서") == list("미나는▁시장에서")


@pytest.mark.parametrize("shape", ["gpt2", "gpt2-pair", "kogpt2", "llama-legacy", "llama3", "gemma"])
def test_published_shapes(shape: str, tmp_path: Path) -> None:
    SHAPES[shape](tmp_path / "before")
    before = Tokenizer.load(tmp_path / "before")
    for longest in (1, 2):
        check(before, tmp_path / str(longest), longest)


def test_whole_words_of_the_vocabulary_are_not_taken(trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    files = {name: (trained["bpe", "nfc"] / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    spec = json.loads(files["tokenizer.json"])
    spec["model"]["ignore_merges"] = True
    before = Tokenizer(files | {"tokenizer.json": json.dumps(spec).encode()}, tmp_path)
    word = next(piece for i in range(before.vocab_size) if len(piece := before.piece(i)) == 3 and piece.isalpha())
    assert before.pieces(word) == [word]
    check(before, tmp_path, 2)
    assert max(map(len, Tokenizer.load(tmp_path).pieces(word))) <= 2


def test_a_unigram_model_alone(trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """sentencepiece leaves unused pieces out, and cuts as the tokenizer.json of the same pieces."""
    folder = trained["unigram", "nfc"]
    alone = Tokenizer({"tokenizer.model": (folder / "tokenizer.model").read_bytes()}, folder).with_short_pieces(2)
    alone.save(tmp_path)
    assert (tmp_path / "tokenizer.model").is_file()
    beside = Tokenizer.load(folder).with_short_pieces(2)
    texts = small_corpus()[:60]
    assert Tokenizer.load(tmp_path).encode_batch(texts) == beside.encode_batch(texts)


def test_what_cannot_be_narrowed_is_said(trained: dict[tuple[str, str], Path]) -> None:
    folder = trained["bpe", "nfc"]
    with pytest.raises(UserError, match=r"BPE without a tokenizer\.json .*--piece-length"):
        Tokenizer({"tokenizer.model": (folder / "tokenizer.model").read_bytes()}, folder).with_short_pieces(1)
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1, "ab": 2}}  # fmt: skip
    spec = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
            "model": model}  # fmt: skip
    with pytest.raises(UserError, match="of the kind WordPiece"):
        Tokenizer({"tokenizer.json": json.dumps(spec).encode()}, folder).with_short_pieces(1)


@pytest.mark.parametrize(
    ("text", "count"),
    [(b"", 0), (b"a", 1), ("가".encode(), 1), (" 가나".encode(), 3), (b"\x80", 1), (b"\xb0\x80", 1), (b" \xea\xb0", 2),
     ("가".encode()[1:] + b"\xeb", 2), ("🙂".encode(), 1)],
)  # fmt: skip
def test_characters_of_bytes(text: bytes, count: int) -> None:
    assert characters(text) == count
