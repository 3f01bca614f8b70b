"""Ids by the sentencepiece library are those of tokenizers, and where that is not certain it is not asked."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text.samples import reviews, small_corpus
from yeoul.text.hf_export import bpe_merges
from yeoul.text.sentencepiece_ids import PART, changing
from yeoul.text.sentencepiece_model import ModelType, read_model, rewrite_model
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

MUCH = 10**9
"""Characters that make the comparison worth its time."""
VARIANTS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "bpe-nfd-spelled": {"model_type": "bpe", "normalization": "nfd"},
    "bpe-unknown": {"model_type": "bpe", "byte_fallback": False, "normalization": "identity"},
    "bpe-symbols": {"model_type": "bpe", "user_symbols": ("<회사>", "ㅋㅋ", "<|end", "미나")},
    "bpe-prefix": {"model_type": "bpe", "add_dummy_prefix": True},
    "unigram": {"model_type": "unigram"},
    "unigram-nfd": {"model_type": "unigram", "normalization": "nfd"},
    "unigram-unknown": {"model_type": "unigram", "byte_fallback": False},
    "unigram-symbols": {"model_type": "unigram", "normalization": "identity", "user_symbols": ("<회사>", "시장에")},
    "unigram-prefix": {"model_type": "unigram", "add_dummy_prefix": True},
    "char-nfd": {"model_type": "char", "normalization": "nfd"},
    "old-hangul": {"model_type": "bpe", "old_hangul": True},
}
LLAMA = ("bpe-llama", "bpe-metaspace")
"""As the files of Llama 2 are, in the older and the newer form of transformers."""


def llama(folder: Path, source: Path, scheme: str | None) -> None:
    """The BPE with a space before texts, under the `tokenizer.json` of transformers' conversion."""
    model = read_model((source / "tokenizer.model").read_bytes())
    spec = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    spec["pre_tokenizer"] = None
    if scheme is not None:
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    # The pairs of one piece stand in another order there.
    pairs = sorted(bpe_merges(model.pieces), key=lambda pair: spec["model"]["vocab"][pair[0]])
    scores = {piece.text: piece.score for piece in model.pieces}
    spec["model"]["merges"] = sorted(map(list, pairs), key=lambda pair: -scores[pair[0] + pair[1]])
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("agreement")
    found = {name: root / name for name in VARIANTS}
    for name, options in VARIANTS.items():
        size = 1000 if name == "old-hangul" else 560
        train_tokenizer(small_corpus(), TokenizerConfig(vocab_size=size, **options), found[name])
    for name, scheme in zip(LLAMA, (None, "first"), strict=True):
        found[name] = root / name
        llama(found[name], found["bpe-prefix"], scheme)
    return found


def both(folder: Path, target: Path) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer by sentencepiece, and by tokenizers alone."""
    target.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name != "tokenizer.model":
            (target / path.name).write_bytes(path.read_bytes())
    fast, slow = Tokenizer.load(folder), Tokenizer.load(target)
    fast.expect(MUCH)
    slow.expect(MUCH)
    return fast, slow


def uses_sentencepiece(tokenizer: Tokenizer) -> bool:
    return tokenizer._backend._faster is not None  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=[*VARIANTS, *LLAMA])
def pair(
    request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer]:
    fast, slow = both(folders[request.param], tmp_path_factory.mktemp("alone"))
    assert uses_sentencepiece(fast) and not uses_sentencepiece(slow)
    return fast, slow


SYLLABLES = st.text(st.sampled_from("가나다라미는시장에서걸었다웃 ㅋㅎㅠ"), max_size=12)
CHARACTERS = st.one_of(
    st.text(max_size=12),
    st.text(st.sampled_from("\u1100\u1112\u1161\u119e\u11ab\u11a8\ua960\ud7b0\ud7cb가각"), max_size=8),
    st.text(st.sampled_from("e\u0301\u0323\u0308éÅ\u212b\u0344\u0f73が\u3099\u309a"), max_size=8),
    st.text(st.sampled_from(" ▁\u00a0\u3000\u200b\n\t\r\0\x01\x7f\x85\ufeff\u2585"), max_size=9),
    st.text(st.sampled_from("🙂👩👧\u200d\ufe0f🏳🌈🇰🇷☺\U0001f9d1\U0001f3fd"), max_size=6),
)
TYPED = st.sampled_from(
    [
        "<회사>",
        "<|end|>",
        "<|end",
        "<|user|>",
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<0x0A>",
        "미나",
        "시장에",
        "ㅋㅋ",
        "ㅋㅋㅋ",
        "한국어",
    ]
)
RUNS = st.tuples(st.sampled_from("ㅋㅠ a▁0\0가🙂\u11ab"), st.integers(1, 60)).map(lambda run: run[0] * run[1])
REAL = st.sampled_from([line for line in small_corpus() if len(line) > 3])
FORMS = st.sampled_from([None, "NFC", "NFD"])
TEXTS = st.builds(
    lambda parts, form: unicodedata.normalize(form, "".join(parts)) if form else "".join(parts),
    st.lists(st.one_of(SYLLABLES, CHARACTERS, TYPED, RUNS, REAL), max_size=10),
    FORMS,
)


@settings(max_examples=120, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_the_same_ids(pair: tuple[Tokenizer, Tokenizer], texts: list[str]) -> None:
    fast, slow = pair
    expected = [slow.encode(text) for text in texts]
    assert [fast.encode(text) for text in texts] == expected
    assert fast.encode_batch(texts) == slow.encode_batch(texts) == expected


@settings(max_examples=30, deadline=None)
@given(text=TEXTS, half=st.sampled_from("\ud800\udbff\udc00\udfff"), at=st.integers(0, 5))
def test_halves_of_surrogate_pairs(pair: tuple[Tokenizer, Tokenizer], text: str, half: str, at: int) -> None:
    fast, slow = pair
    text = text[:at] + half + text[at:]
    assert fast.encode(text) == slow.encode(text) == slow.encode(text.replace(half, "\ufffd"))
    assert fast.encode_batch(["가", text]) == slow.encode_batch(["가", text])


def long_texts() -> Iterator[str]:
    dice = random.Random(0)
    lines = small_corpus()
    yield " ".join(dice.choices(lines, k=600))
    yield "\n".join(dice.choices(lines, k=600))
    yield unicodedata.normalize("NFD", "  ".join(dice.choices(lines, k=400)))
    yield "".join(dice.choices("가나다시장에서미나는", k=9000))  # a word that is cut nowhere
    yield "ㅋ" * 7001 + " " + "ㅋㅋ" * 3000
    yield " " * 5000 + "가" + " " * 5001
    yield ("가" * (PART - 1) + " ") * 3 + "▁ 나" + " <회사>" * 1500
    yield "a " * 6000 + "𠀀" * 3000
    yield "".join(chr(dice.randrange(1, 0xD800)) for _ in range(9000))


def test_long_texts(pair: tuple[Tokenizer, Tokenizer]) -> None:
    fast, slow = pair
    texts = list(long_texts())
    expected = [slow.encode(text) for text in texts]
    assert [fast.encode(text) for text in texts] == expected
    assert fast.encode_batch(texts) == expected
    for text, ids in zip(texts, expected, strict=True):
        for tokenizer in (fast, slow):
            assert [token for part in tokenizer.encode_in_parts(text) for token in part] == ids


def test_some_ids_at_a_time(folders: dict[str, Path]) -> None:
    fast = Tokenizer.load(folders["bpe"])
    fast.expect(MUCH)
    text = " ".join(small_corpus()) * 100
    parts = list(fast.encode_in_parts(text))
    assert len(parts) > 1 and sum(parts, []) == fast.encode(text)


def test_long_words_of_unigram_are_left_to_tokenizers(folders: dict[str, Path]) -> None:
    """Where sums of scores are rounded in float32."""
    fast = Tokenizer.load(folders["unigram"])
    fast.expect(MUCH)
    ids = fast._backend._faster.encode  # type: ignore[attr-defined]
    assert ids("가" * 20_000) is None and ids("가 " * 20_000) is not None


def test_real_text(shared: Path, tmp_path: Path) -> None:
    lines = reviews(shared, 3000)
    for path in (
        *shared.glob("data/dialogs/*.csv"),
        *shared.glob("data/parallel/*"),
        shared / "data/text/botchan-en.txt",
    ):
        lines += path.read_text(encoding="utf-8").split("\n")[:1000]
    texts = [*lines, *("\n".join(lines[i : i + 300]) for i in range(0, len(lines), 300))]
    texts += [unicodedata.normalize("NFD", text) for text in texts[::7]]
    for model_type, size in (("bpe", 3000), ("unigram", 2500)):
        folder = tmp_path / model_type
        config = TokenizerConfig(vocab_size=size, model_type=model_type)  # type: ignore[arg-type]
        train_tokenizer(lines[:1500], config, folder)
        fast, slow = both(folder, tmp_path / f"{model_type}-alone")
        assert uses_sentencepiece(fast)
        assert fast.encode_batch(texts) == slow.encode_batch(texts)
        assert [fast.encode(text) for text in texts[::50]] == [slow.encode(text) for text in texts[::50]]


def test_only_after_enough_text(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["bpe"])
    before = tokenizer.encode("미나는 시장에서")
    assert not uses_sentencepiece(tokenizer)
    tokenizer.encode_batch(small_corpus() * 3)
    assert uses_sentencepiece(tokenizer) and tokenizer.encode("미나는 시장에서") == before


# -- doubt

Change = Callable[[dict[str, Any]], None]


def _swap(spec: dict[str, Any]) -> None:
    vocabulary = spec["model"]["vocab"]
    vocabulary["가"], vocabulary["나"] = vocabulary["나"], vocabulary["가"]


CHANGES: dict[str, Change] = {
    "another order of ids": _swap,
    "another order of merges": lambda spec: spec["model"]["merges"].reverse(),
    "a merge less": lambda spec: spec["model"]["merges"].pop(),
    "dropout": lambda spec: spec["model"].update(dropout=0.1),
    "whole words first": lambda spec: spec["model"].update(ignore_merges=True),
    "no bytes": lambda spec: spec["model"].update(byte_fallback=False),
    "unknown ones apart": lambda spec: spec["model"].update(fuse_unk=False),
    "lower case": lambda spec: spec["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"}),
    "NFKC": lambda spec: spec["normalizer"]["normalizers"][0].update(type="NFKC"),
    "punctuation apart": lambda spec: spec.update(pre_tokenizer={"type": "Punctuation", "behavior": "Isolated"}),
    "a space only before texts without added tokens": lambda spec: spec.update(
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    ),
    "an added token that takes spaces": lambda spec: spec["added_tokens"].append(
        {"id": len(spec["model"]["vocab"]), "content": "<회사>", "single_word": False, "lstrip": True, "rstrip": False,
         "normalized": False, "special": False}
    ),
    "an added token of the normalized text": lambda spec: spec["added_tokens"].append(
        {"id": len(spec["model"]["vocab"]), "content": "회사", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": True, "special": False}
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_in_doubt_by_tokenizers(change: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for name, data in ((path.name, path.read_bytes()) for path in folders["bpe"].iterdir()):
        (tmp_path / name).write_bytes(data)
    spec = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    CHANGES[change](spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.expect(MUCH)
    assert not uses_sentencepiece(tokenizer)
    assert tokenizer.encode_batch(["미나는 시장에서 <회사> 회사"])


def test_the_model_of_another_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    for beside in ("unigram", "bpe-symbols", "bpe-unknown"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((folders["bpe"] / name).read_bytes())
        (tmp_path / "tokenizer.model").write_bytes((folders[beside] / "tokenizer.model").read_bytes())
        tokenizer = Tokenizer.load(tmp_path)
        tokenizer.expect(MUCH)
        assert not uses_sentencepiece(tokenizer), beside


@pytest.mark.parametrize("data", [b"", b"no model", b"\x0a\xff\xff", bytes(100)])
def test_a_damaged_model_beside_it(data: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["bpe"] / name).read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.expect(MUCH)
    assert not uses_sentencepiece(tokenizer)
    assert tokenizer.encode("미나는") == Tokenizer.load(folders["bpe"]).encode("미나는")


def test_scores_that_float32_cannot_add(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["unigram"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = read_model((tmp_path / "tokenizer.model").read_bytes())
    assert model.type == ModelType.UNIGRAM
    data = rewrite_model((tmp_path / "tokenizer.model").read_bytes(), lambda piece: piece.score * 1.1)
    (tmp_path / "tokenizer.model").write_bytes(data)
    spec = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    scores = {piece.text: piece.score for piece in read_model(data).pieces}
    spec["model"]["vocab"] = [[text, scores[text] if old > -1e5 else old] for text, old in spec["model"]["vocab"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.expect(MUCH)
    assert not uses_sentencepiece(tokenizer)


def test_characters_that_stay_what_they_are() -> None:
    """Not only by this version of Unicode: whatever may change, alone or beside others, is found."""
    for form in ("NFC", "NFD"):
        finds = changing(form).search  # type: ignore[arg-type]
        plain = [c for c in map(chr, (*range(0xD800), *range(0xE000, 0x110000))) if finds(c) is None]
        assert len(plain) > 30_000 and {"a", "ㅋ", "漢", "🙂", " ", "\0"} <= set(plain)
        assert ("한" in plain) == (form == "NFC")
        for character in plain:
            assert unicodedata.normalize(form, character) == character
            assert unicodedata.combining(character) == 0
        seconds = set(plain)
        for code in range(0x110000):
            parts = unicodedata.decomposition(chr(code)).split()
            if len(parts) == 2 and not parts[0].startswith("<"):
                assert chr(int(parts[1], 16)) not in seconds, chr(code)
