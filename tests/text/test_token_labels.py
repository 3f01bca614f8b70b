"""Tokens as a person reads them: byte tokens under the syllable that they are part of, in every kind of vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from text.published import SHAPES
from yeoul.text.token_labels import LONGEST, TokenLabel, token_labels
from yeoul.text.tokenizer import Tokenizer


def labels(tokenizer: Tokenizer, text: str) -> list[TokenLabel]:
    return token_labels(tokenizer, tokenizer.encode(text))


def test_byte_tokens_are_shown_as_their_syllable(tokenizer: Tokenizer) -> None:
    found = labels(tokenizer, "미나는 뷁")
    assert [(label.text, label.piece) for label in found[-3:]] == [("뷁", "1/3"), ("뷁", "2/3"), ("뷁", "3/3")]
    assert not any(label.piece or label.special for label in found[:-3])
    assert "".join(label.text for label in found[:-3]).replace("␣", " ").strip() == "미나는"
    assert str(found[-1]) == "뷁 (3/3)"


def test_two_syllables_of_bytes_stay_apart(tokenizer: Tokenizer) -> None:
    found = labels(tokenizer, "뷁쀍")
    assert [str(label) for label in found[-6:]] == [f"{c} ({i}/3)" for c in "뷁쀍" for i in (1, 2, 3)]


def test_bytes_of_no_character_are_shown_as_bytes(tokenizer: Tokenizer) -> None:
    byte = {tokenizer.token_bytes(i): i for i in tokenizer.byte_ids}
    ids = [byte[b"\xeb"], *tokenizer.encode("나"), byte[b"\xeb"], byte[b"\xb7"]]
    found = token_labels(tokenizer, ids)
    assert found[0].text == "<0xEB>" and found[0].piece == ""
    assert [label.text for label in found[-2:]] == ["<0xEB>", "<0xB7>"]
    assert len(found) == len(ids)


def test_special_tokens_and_what_would_not_be_seen(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id is not None
    (special,) = token_labels(tokenizer, [tokenizer.bos_id])
    assert special.special and special.text == tokenizer.piece(tokenizer.bos_id)
    shown = "".join(label.text for label in labels(tokenizer, "a\tb\nc \u202e"))
    assert "⇥" in shown and "⏎" in shown and "␣" in shown and "\\u202e" in shown


@pytest.mark.parametrize("name", SHAPES)
def test_every_label_is_of_the_text(name: str, tmp_path: Path) -> None:
    """What whole tokens show is the text, and the pieces of a character count up to their number."""
    SHAPES[name](tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    text = "옛날 뷁 a 🐯 처용가 ㅎㆍ"
    found = labels(tokenizer, text)
    assert len(found) == len(tokenizer.encode(text)) and all(0 < len(label.text) <= LONGEST for label in found)
    whole = "".join(label.text for label in found if label.piece.split("/")[0] in ("", "1"))
    known = tokenizer.decode(tokenizer.encode(text))  # a vocabulary without bytes loses what it does not know
    assert all(character in whole for character in known if not character.isspace())
    assert not any("\ufffd" in label.text for label in found)
