"""Texts and tokenizers that the tests of this room share."""

from __future__ import annotations

import lzma
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from yeoul.text.chat import Message, Talk
from yeoul.text.tokenizer import Tokenizer

KINDS = [("bpe", "nfc"), ("bpe", "identity"), ("unigram", "nfc"), ("unigram", "identity")]
NAMES = ["미나", "준호", "서연", "도윤", "하은", "지우"]
PLACES = ["시장", "바다", "학교", "도서관", "숲", "강가", "역"]
ACTIONS = ["걸었다", "웃었다", "노래했다", "기다렸다", "책을 읽었다", "밥을 먹었다", "돌아왔다"]


def small_corpus() -> list[str]:
    """A few hundred lines that need no data from outside."""
    lines = [
        f"{name}는 {place}에서 {number}시에 {action}. 그리고 {number * 7 % 13}번 더 {action}!"
        for name in NAMES
        for place in PLACES
        for number, action in enumerate(ACTIONS, 1)
    ]
    english = [
        "The quick brown fox jumps over the lazy dog.",
        "a  b   c\td",
        "def f(x):\n    return x + 1\n",
        "ㅋㅋㅋㅋ ㅠㅠ",
    ]
    # Unigram training needs many different words before it can fill a vocabulary.
    dice = random.Random(0)
    syllables = "가나다라마바사아자하고노도로모보소오조호기니디리미비시이지히"
    words = ["".join(dice.choices(syllables, k=dice.randint(2, 4))) for _ in range(300)]
    return lines + english * 20 + [" ".join(dice.choices(words, k=8)) for _ in range(400)]


def without_json(folder: Path, target: Path) -> Tokenizer:
    """The tokenizer of `folder` as sentencepiece runs it."""
    target.mkdir(exist_ok=True)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return Tokenizer.load(target)


def reviews(shared: Path, count: int, part: str = "valid") -> list[str]:
    path = shared / "data" / "reviews" / f"{part}.tsv.xz"
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n").split("\t", 4)[4] for line in islice(file, 1, count + 1)]


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """What the template writes for a conversation, as `apply_chat_template(..., tokenize=False)` gives it."""
    return Talk(tokenizer, messages).render(add_generation_prompt).plain()
