"""Training: determinism, options, and one sentence for what cannot be trained."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from text.samples import small_corpus
from yeoul.errors import UserError
from yeoul.text.chat import CHAT_TOKENS
from yeoul.text.nfc import nfc_rules
from yeoul.text.sentencepiece_model import PieceType, read_model, rewrite_model
from yeoul.text.tokenizer import Tokenizer

# how long sentences are cut cannot be seen from outside
from yeoul.text.training import SENTENCE_BYTES, TokenizerConfig, _parts, train_tokenizer


def train(texts: object, folder: Path, **settings: object) -> Tokenizer:
    return train_tokenizer(texts, TokenizerConfig(**{"vocab_size": 400, **settings}), folder)  # type: ignore[arg-type]


def test_special_tokens_have_fixed_ids(any_folder: Path) -> None:
    tokenizer = Tokenizer.load(any_folder)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert [tokenizer.token_id(token) for token in CHAT_TOKENS] == [4, 5, 6, 7]
    assert tokenizer.piece(8) == "<0x00>"
    assert tokenizer.vocab_size == 560
    assert tokenizer.stop_ids == (3, 7)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_same_text_same_bytes(model_type: str, tmp_path: Path) -> None:
    for name in "ab":
        train(small_corpus(), tmp_path / name, model_type=model_type, max_sentences=150)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_texts_are_streamed_and_long_ones_are_used(tmp_path: Path) -> None:
    document = " ".join(small_corpus()) * 3  # one line, far above sentencepiece's limit
    tokenizer = train(iter([document]), tmp_path, vocab_size=500)
    assert "도서관" in "".join(tokenizer.piece(i) for i in range(500))
    assert len(tokenizer.encode(document[:500])) < 250


def test_long_lines_are_cut_at_spaces() -> None:
    line = "가나다라마 " * 2000 + "바" * 5000
    parts = list(_parts(line))
    assert "".join(parts) == line
    assert all(0 < len(part.encode()) <= SENTENCE_BYTES for part in parts)
    assert all(part.startswith(" ") for part in parts[1:10])


def test_user_symbols_are_atomic_and_special_tokens_are_not_read_from_text(tmp_path: Path) -> None:
    for model_type in ("bpe", "unigram"):
        tokenizer = train(
            small_corpus(), tmp_path, vocab_size=420, model_type=model_type, user_symbols=("[인물]", "\n\n")
        )
        assert [tokenizer.token_id(text) for text in ("[인물]", "\n\n")] == [8, 9]
        ids = tokenizer.encode("a[인물]b\n\n</s><|end|>")
        assert ids.count(8) == 1 and ids.count(9) == 1
        assert not set(ids) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == "a[인물]b\n\n</s><|end|>"
        assert tokenizer.byte_lengths()[8] == len("[인물]".encode())


def test_split_digits(tmp_path: Path) -> None:
    tokenizer = train(["1234 5678 1234"] * 50 + small_corpus(), tmp_path, split_digits=True)
    assert all(len(piece.strip("▁")) <= 1 for piece in tokenizer.pieces("1234"))


def test_dummy_prefix(tmp_path: Path) -> None:
    tokenizer = train(small_corpus(), tmp_path, add_dummy_prefix=True)
    assert tokenizer.pieces("미나")[0].startswith("▁")
    for text in ("미나는", " 미나는", "", "  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, tokenizer.encode(text)), stream.flush()]) == text


def test_without_bytes_unknown_characters_are_lost(tmp_path: Path) -> None:
    tokenizer = train(small_corpus(), tmp_path, byte_fallback=False, vocab_size=300)
    assert tokenizer.encode("漢字") == [tokenizer.unk_id]
    assert tokenizer.byte_ids == frozenset()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_vocabulary_larger_than_the_text_allows(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use at most (\d+)") as error:
        train(["안녕 하세요"] * 9, tmp_path / "new", vocab_size=9000, model_type=model_type)
    largest = int(str(error.value).split("use at most ")[1].split(",")[0])
    assert not (tmp_path / "new").exists()
    assert train(["안녕 하세요"] * 9, tmp_path, vocab_size=largest, model_type=model_type).vocab_size == largest


def test_vocabulary_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too small for the characters .* more than \d+"):
        train(small_corpus(), tmp_path, vocab_size=280)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"], ["  "]])
def test_no_text(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        train(texts, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_errors_while_reading_come_through(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "안녕하세요"
        raise UserError("the text is not UTF-8", "corpus.txt, line 2")

    with pytest.raises(UserError, match="line 2"):
        train(broken(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"model_type": "word"}, "--model-type"),
        ({"normalization": "nfkc"}, "--normalization"),
        ({"character_coverage": 0.5}, "--character-coverage"),
        ({"vocab_size": 100}, "--vocab-size"),
        ({"user_symbols": ("a b",)}, "--user-symbols"),
        ({"user_symbols": ("<s>",)}, "--user-symbols"),
        ({"user_symbols": ("x", "x")}, "--user-symbols"),
        ({"max_sentences": 5}, "--max-sentences"),
    ],
)
def test_bad_settings_name_their_flag(settings: dict[str, object], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        TokenizerConfig(**settings)  # type: ignore[arg-type]


def test_what_another_tokenizer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("old")
    (tmp_path / "config.json").write_text("{}")
    tokenizer = train(small_corpus(), tmp_path)
    assert tokenizer.chat_template != "old"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}


def test_model_names_no_path_of_this_machine(folder: Path) -> None:
    assert b"nfc.tsv" not in (folder / "tokenizer.model").read_bytes()
    assert b"/" not in json.dumps(json.loads((folder / "tokenizer_config.json").read_text())["bos_token"]).encode()


def test_rewriting_keeps_everything_else(folder: Path) -> None:
    data = (folder / "tokenizer.model").read_bytes()
    assert rewrite_model(data, lambda piece: piece.score) == data
    model = read_model(data)
    assert model.pieces[2].type == PieceType.CONTROL and model.byte_fallback and not model.add_dummy_prefix


def test_nfc_rules_compose_every_character() -> None:
    import sys

    rules = nfc_rules()
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000:
            continue
        nfd = unicodedata.normalize("NFD", chr(code))
        nfc = unicodedata.normalize("NFC", nfd)
        if nfd != nfc:
            assert rules[nfd] == nfc, hex(code)
    assert all(unicodedata.normalize("NFC", source) == target for source, target in rules.items())
