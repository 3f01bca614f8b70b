"""Folders in the shapes of published families: the ids, texts and conversations of transformers."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from text.published import CHATS, SHAPES
from text.samples import render_text
from yeoul.text.chat import render_chat
from yeoul.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "", " ", "  ", "\n", "\t", "\0", "a", " a", "a ", "  a   b\t\n\n c ", "미나는 시장에서 3시에 걸었다.",
    " 미나는  시장에서",
    "ㅋㅋㅋㅋㅋㅋ ㅠㅠ", unicodedata.normalize("NFD", "한국어 학교 Ấn Độ"), "각\u11a8\u1100",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈🇰🇷☺️", "漢字 ひらがな",
    "def f(x):\n    return x + 1\n", "\r\n\r\n a\r", "\x01\x1f\x7f\u200b\ufeff본문\u00a0\u3000", "12345 1,000.5%",
    "<s></s><pad><unk><|endoftext|><|im_start|>user\n<|im_end|>[INST] [/INST]<bos><start_of_turn><|begin_of_text|>",
    "<tool_call>{}</tool_call> 사용자표 <thought>", "<0x41><0x0A>", "▁a▁▁b", "I'm you'LL don't", "x" * 200, "     " * 9,
    "[|user|][BOS]", "\n\n\n", "ﬁ ① Ａ",
]  # fmt: skip
MESSAGES: list[dict[str, str]] = [
    {"role": "user", "content": "안녕?  여울은 🙂\n뭐야"},
    {"role": "assistant", "content": "시장에서 웃었다.\n\n- 하나\n- 둘"},
    {"role": "user", "content": " hello  world "},
]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokenizer, Any]:
    """A shape's name, our tokenizer and that of transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    SHAPES[request.param](folder)
    return request.param, Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_ids(pair: tuple[str, Tokenizer, Any]) -> None:
    _, ours, theirs = pair
    theirs = type(theirs).from_pretrained(theirs.name_or_path, split_special_tokens=True)
    expected = [theirs.encode(text, add_special_tokens=False) for text in TEXTS]
    assert [ours.encode(text) for text in TEXTS] == expected
    assert ours.encode_batch(TEXTS) == expected
    special = set(ours.special_tokens.values()) - {ours.unk_id}
    assert not special & {i for ids in expected for i in ids}


def test_begin_and_end(pair: tuple[str, Tokenizer, Any]) -> None:
    _, ours, theirs = pair
    text = "미나는 시장에서"
    assert ours.encode(text, bos=ours.add_bos) == theirs(text)["input_ids"]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


def test_decoding(pair: tuple[str, Tokenizer, Any]) -> None:
    _, ours, theirs = pair
    for text in TEXTS:
        for ids in (ours.encode(text), theirs(text)["input_ids"]):
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert ours.decode(ids, skip_special=skip) == expected
                stream = ours.stream(skip_special=skip)
                assert "".join([*map(stream.push, ids), stream.flush()]) == expected


def test_special_tokens(pair: tuple[str, Tokenizer, Any]) -> None:
    _, ours, theirs = pair
    theirs_special = {t.content: i for i, t in theirs.added_tokens_decoder.items() if t.special}
    assert theirs_special.items() <= dict(ours.special_tokens).items()
    for i in range(len(theirs)):
        assert ours.piece(i) == (theirs.convert_ids_to_tokens(i) or "")


@pytest.mark.parametrize("shape", CHATS)
def test_conversations(shape: str, tmp_path: Path) -> None:
    SHAPES[shape](tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages in (MESSAGES, MESSAGES[:1]):
        for prompt in (False, True):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert render_text(ours, messages, add_generation_prompt=prompt) == text
            ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"]
            assert render_chat(ours, messages, add_generation_prompt=prompt)[0] == ids
