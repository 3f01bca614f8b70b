"""tokenizer.json, tokenizer.model and transformers give the ids of the sentencepiece library."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text.samples import KINDS, reviews, without_json
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

ODD = [
    "", " ", "  ", "\n", "\t", "\0", " a", "a ", "  a   b\t\n\n c ", "▁a▁▁b", "\u2585", "\ufeff본문", "漢字漢字 漢",
    "<s></s><pad><unk> <|user|><|end|> <0x41><0x0A>",
    "👩‍👩‍👧‍👦🏳️‍🌈🇰🇷☺️", "ㅋ" * 37, "아ㅋㅋㅋㅎㅎㅋㅋ", "ㅠㅜ" * 9 + "ㅠ",
    "\r\n", "\u00a0\u3000\u200b", "각".encode().decode(), unicodedata.normalize("NFD", "한국어 Ấn Độ ἄνθρωπος が"),
]  # fmt: skip
ALPHABET = "가나다미나는시장에서 \n\t<>s/|0123xab▁ㅋㅠ🙂\u0301\u1112\u1161\u11ab"


@cache
def library(folder: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def library_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = library(folder).encode(texts)
    return ids


def test_odd_texts(any_folder: Path, tmp_path: Path) -> None:
    expected = library_ids(any_folder, ODD)
    for tokenizer in (Tokenizer.load(any_folder), without_json(any_folder, tmp_path)):
        assert tokenizer.encode_batch(ODD) == expected
        assert [tokenizer.encode(text) for text in ODD] == expected


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from(ALPHABET), max_size=40))
def test_random_texts(any_folder: Path, any_tokenizer: Tokenizer, text: str) -> None:
    # Marks in any order are beyond a table of rules, see yeoul.text.nfc.
    text = unicodedata.normalize("NFD", text)
    assert any_tokenizer.encode(text) == library_ids(any_folder, [text])[0]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_decoding_gives_the_text_back(any_folder: Path, any_tokenizer: Tokenizer, text: str) -> None:
    expected = unicodedata.normalize("NFC", text) if any_folder.name.endswith("nfc") else text
    ids = any_tokenizer.encode(text)
    assert any_tokenizer.decode(ids) == expected.replace("▁", " ")
    if "▁" not in text:
        assert sum(any_tokenizer.byte_lengths()[i] for i in ids) == len(expected.encode())


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[str]]:
    """Tokenizers of real reviews, and every kind of real text."""
    lines = reviews(shared, 20_000)
    folders = {}
    for model_type, normalization in KINDS:
        # Unigram training takes seconds more, and normalization does not change it.
        size, count = (4000, 8000) if model_type == "bpe" else (2500, 1500)
        folder = tmp_path_factory.mktemp("real") / f"{model_type}-{normalization}"
        config = TokenizerConfig(vocab_size=size, model_type=model_type, normalization=normalization)  # type: ignore[arg-type]
        train_tokenizer(lines[:count], config, folder)
        folders[folder.name] = folder
    data = shared / "data"
    others = [*data.glob("dialogs/*.csv"), *data.glob("parallel/*"), data / "text" / "botchan-en.txt"]
    for path in others:
        lines += path.read_text(encoding="utf-8").split("\n")
    lines += ["\n".join(lines[i : i + 300]) for i in range(0, 6000, 300)]
    return folders, lines


def test_real_text(real: tuple[dict[str, Path], list[str]]) -> None:
    folders, lines = real
    everything = lines
    for name, folder in folders.items():
        # Without NFC there is less that can differ, and this machine may be busy.
        lines = everything if name.endswith("nfc") else everything[::3]
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode_batch(lines)
        assert ids == library_ids(folder, lines), name
        composed = [unicodedata.normalize("NFC", line) for line in lines] if name.endswith("nfc") else lines
        assert [tokenizer.decode(i) for i in ids] == [line.replace("▁", " ") for line in composed], name


def test_the_model_alone_composes_real_text(real: tuple[dict[str, Path], list[str]]) -> None:
    folders, lines = real
    decomposed = [unicodedata.normalize("NFD", line) for line in lines[:5000]]
    composed = [unicodedata.normalize("NFC", line) for line in lines[:5000]]
    assert library_ids(folders["bpe-nfc"], decomposed) == library_ids(folders["bpe-nfc"], composed)


def test_transformers(any_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(any_folder)
    ours = Tokenizer.load(any_folder)
    special = ("<s>", "</s>", "<pad>", "<unk>", "<|")
    for text in ODD:
        if any(token in text for token in special):
            continue  # transformers reads special tokens in any text
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 2, 3)
    assert len(theirs) == ours.vocab_size
