"""Characters, jamo and byte-level BPE: the same ids as the libraries of others, and every text comes back."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from text.samples import small_corpus, without_json
from yeoul.errors import UserError
from yeoul.text.byte_level_training import drawn
from yeoul.text.chat import CHAT_TOKENS
from yeoul.text.inspection import corpus_fit
from yeoul.text.streaming import composed, composed_bytes
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.tokenizer_speed import tokenizer_speed
from yeoul.text.training import JAMO, TokenizerConfig, train_tokenizer

CHAR = dict(model_type="char", vocab_size=2000)
JAMO_CHARS = dict(model_type="char", vocab_size=2000, normalization="nfd", old_hangul=True)
JAMO_BPE = dict(model_type="bpe", vocab_size=900, normalization="nfd", old_hangul=True)
JAMO_UNIGRAM = dict(model_type="unigram", vocab_size=520, normalization="nfd")
BYTES = dict(model_type="byte-level", vocab_size=600)
ALL = {"char": CHAR, "jamo": JAMO_CHARS, "jamo-bpe": JAMO_BPE, "jamo-unigram": JAMO_UNIGRAM, "byte-level": BYTES}
OLD = "ᄇᆞᆯᄀᆞᆫ ᄃᆞ래 ᄉᆡᄇᆞᆯ"
TEXTS = [
    "", " ", "미나는 강가에서 3시에 걸었다.", "  두  칸\n\n줄\t", "café Ångström ñ", "값싼 뷁 龘 😀👩\u200d👧", OLD,
    "<s>|<|end|>", "12345", unicodedata.normalize("NFD", "값싼 커피를 café"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    for name, settings in ALL.items():
        train_tokenizer(small_corpus(), TokenizerConfig(**settings), root / name)  # type: ignore[arg-type]
    return {name: root / name for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_every_text_comes_back_whole_and_streamed(name: str, folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders[name])
    assert tokenizer.composes == (ALL[name].get("normalization") == "nfd")
    for text in [*TEXTS, *small_corpus()[::40]]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("name", [name for name in ALL if name != "byte-level"])
def test_the_ids_are_those_of_sentencepiece(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(folders[name] / "tokenizer.model"))
    ours, model = Tokenizer.load(folders[name]), without_json(folders[name], tmp_path / "model")
    assert model.composes == ours.composes
    for text in [*TEXTS, *small_corpus()[::15]]:
        assert ours.encode(text) == theirs.encode(text) == model.encode(text), text
        assert model.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_byte_level_ids_are_those_of_tokenizers_and_transformers(folders: dict[str, Path]) -> None:
    from tokenizers import Tokenizer as Theirs
    from transformers import AutoTokenizer

    folder = folders["byte-level"]
    ours, theirs = Tokenizer.load(folder), Theirs.from_file(str(folder / "tokenizer.json"))
    fast = AutoTokenizer.from_pretrained(folder)
    assert ours.kind == "byte-level BPE" and ours.vocab_size == 600 and not (folder / "tokenizer.model").exists()
    assert (ours.pad_id, ours.unk_id, ours.bos_id, ours.eos_id) == (0, 1, 2, 3)
    assert [ours.token_id(token) for token in CHAT_TOKENS] == [4, 5, 6, 7]
    for text in TEXTS:
        if "<" not in text:  # they read special tokens out of a text
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text) == fast(text, add_special_tokens=False)["input_ids"]
            assert fast.decode(ours.encode(text)) == unicodedata.normalize("NFC", text)


def test_byte_level_merges_are_those_of_the_library() -> None:
    """Trained independently with its own class for it, GPT-2's way of cutting apart."""
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, pre_tokenizers, trainers

    from yeoul.text.byte_level_training import train_byte_level

    lines = [line for text in small_corpus() for line in text.split("\n")]
    found = train_byte_level(
        lines, vocab_size=400, special=(), symbols=(), normalization="identity", split_digits=False, most_lines=9999
    )
    ours, theirs = Theirs.from_str(found), Theirs(models.BPE())
    theirs.pre_tokenizer = ours.pre_tokenizer
    theirs.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    ))  # fmt: skip
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("name", ["char", "byte-level"])
def test_same_text_same_bytes(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    train_tokenizer(small_corpus(), TokenizerConfig(**ALL[name]), tmp_path / "again")  # type: ignore[arg-type]
    for file in folders[name].iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_character_is_a_token(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["char"])
    assert tokenizer.kind == "char" and tokenizer.vocab_size < 2000  # the text has fewer
    text = "미나는 강가에서 걸었다."
    assert [piece.replace("▁", " ") for piece in tokenizer.pieces(text)] == list(text)
    few = train_and_load(folders["char"].parent / "few", model_type="char", vocab_size=300)
    assert few.vocab_size == 300 and few.decode(few.encode(text)) == text


def test_a_jamo_is_a_token(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["jamo"])
    assert tokenizer.pieces("값싼") == list(unicodedata.normalize("NFD", "값싼"))
    fit = corpus_fit(tokenizer, ["값싼 커피", "뷁"])
    assert fit.tokens_per_syllable == (6 + 4 + 3) / 5 and fit.syllables == 5  # 값 3, 싼 3, 커 2, 피 2, 뷁 3
    assert fit.tokens_per_word == fit.tokens / 3 and fit.unknown_tokens == 0


def test_bytes_of_jamo_are_those_of_the_composed_text(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["jamo-bpe"])
    lengths = tokenizer.byte_lengths()
    for text in ("미나는 강가에서 걸었다.", "값싼 뷁", "The fox"):
        assert sum(lengths[token] for token in tokenizer.encode(text)) == len(text.encode())
    assert composed_bytes(unicodedata.normalize("NFD", "é값").encode()) == len("é값".encode())
    assert composed_bytes(b"\xea\xb0") == 2  # a part of a character
    assert composed("값") == "값"


def test_old_hangul_costs_one_token_a_jamo(folders: dict[str, Path], tmp_path: Path) -> None:
    runs = "".join(c for c in OLD if c in JAMO)
    assert len(runs) == len([c for c in unicodedata.normalize("NFC", OLD) if c in JAMO]) and len(JAMO) == 357
    char = Tokenizer.load(folders["char"])
    assert len(char.encode(runs)) == 3 * len(runs)
    with_old = train_and_load(tmp_path, **(CHAR | dict(old_hangul=True)))
    assert len(with_old.encode(runs)) == len(runs) and with_old.decode(with_old.encode(runs)) == runs
    assert len(Tokenizer.load(folders["jamo"]).encode(runs)) == len(runs)
    assert all(with_old.token_id(jamo) is not None for jamo in JAMO)


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    for settings, flag in (
        (dict(byte_fallback=False), "--no-byte-fallback"), (dict(old_hangul=True), "--old-hangul"),
        (dict(add_dummy_prefix=True), "--add-dummy-prefix"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=flag):
            TokenizerConfig(model_type="byte-level", **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is not in NFD"):
        TokenizerConfig(normalization="nfd", user_symbols=("[인물]",))
    with pytest.raises(UserError, match="use bpe, unigram, char or byte-level"):
        TokenizerConfig(model_type="word")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"use at most \d+"):
        train_and_load(tmp_path / "a", corpus=["안녕 하세요"], model_type="byte-level", vocab_size=900)
    with pytest.raises(UserError, match="no text"):
        train_and_load(tmp_path / "b", corpus=["\n", " "], model_type="byte-level", vocab_size=900)
    assert list(tmp_path.iterdir()) == []


def test_user_symbols_and_digits_of_byte_level(tmp_path: Path) -> None:
    tokenizer = train_and_load(tmp_path, user_symbols=("[인물]",), split_digits=True, **BYTES)
    assert tokenizer.token_id("[인물]") == 8 and dict(tokenizer.added_tokens) == {"[인물]": 8}
    ids = tokenizer.encode("a[인물]b</s>")
    assert ids.count(8) == 1 and 3 not in ids and tokenizer.decode(ids) == "a[인물]b</s>"
    assert all(len(piece.strip("Ġ")) <= 1 for piece in tokenizer.pieces("1234 5678"))


def test_lines_are_drawn_evenly() -> None:
    assert drawn(map(str, range(5)), 9) == list("01234")
    some = [int(line) for line in drawn(map(str, range(20_000)), 1000)]
    assert len(set(some)) == 1000 and 9_000 < sum(some) / 1000 < 11_000
    assert drawn(map(str, range(20_000)), 1000) == list(map(str, some))


def test_single_files(folders: dict[str, Path], tmp_path: Path) -> None:
    """NAME.json and NAME.model, alone; a tokenizer.json with what stands beside it."""
    whole = Tokenizer.load(folders["char"])
    for name in ("tokenizer.json", "tokenizer.model"):
        alone = tmp_path / f"mine{Path(name).suffix}"
        alone.write_bytes((folders["char"] / name).read_bytes())
        assert Tokenizer.load(alone).encode(TEXTS[5]) == whole.encode(TEXTS[5])
        assert Tokenizer.load(alone).chat_template is None
    assert Tokenizer.load(folders["char"] / "tokenizer.json").fingerprint == whole.fingerprint
    assert Tokenizer.load(folders["char"] / "tokenizer.json").chat_template == whole.chat_template
    (tmp_path / "empty.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.json"):
        Tokenizer.load(tmp_path / "empty.json")


def test_speed_counts_bytes(folders: dict[str, Path]) -> None:
    texts = ["미나는 강가에서 걸었다."] * 20
    speed = tokenizer_speed(Tokenizer.load(folders["char"]), texts, seconds=0.01)
    assert 0.01 < speed.encode < 10_000 and 0.01 < speed.decode < 10_000


def train_and_load(folder: Path, *, corpus: list[str] | None = None, **settings: object) -> Tokenizer:
    return train_tokenizer(corpus or small_corpus(), TokenizerConfig(**settings), folder)  # type: ignore[arg-type]
