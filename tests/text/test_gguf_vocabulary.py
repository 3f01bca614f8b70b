"""The tokenizer of a GGUF file: types and scores, llama.cpp's names for ways of cutting, and the ids that come out."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from text.samples import small_corpus, without_json
from yeoul.errors import UserError
from yeoul.text.gguf_vocabulary import PRE_TOKENIZERS, PROBES, Vocabulary, gguf_vocabulary, merge_scores
from yeoul.text.sentencepiece_model import PieceType
from yeoul.text.tokenizer import Tokenizer as Ours
from yeoul.text.training import TokenizerConfig, train_tokenizer

TEXTS = (
    *PROBES, "미나는 시장에서 3시에 걸었다. 그리고 8번 더 걸었다!", "  두 칸  그리고\n줄\n\n바꿈 ", "x", "",
    "🙂 뷁쀍 </s> <s> <|user|> <0x41> 표", "[MASK]한국어<표>",
)  # fmt: skip
LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's pattern in other words than those of the table."""


def byte_level(cut: Any, folder: Path, *, ignore_merges: bool = False, normalizer: Any = None) -> Path:
    """A byte-level BPE folder that cuts text as `cut` says."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([*small_corpus(), *PROBES], trainer)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    values = {"eos_token": "<|endoftext|>", "bos_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def split(pattern: str) -> Any:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), bytes_only])


def known(name: str) -> tuple[Any, bool]:
    """The pre-tokenizer that llama.cpp has under a name, and whether whole words are taken without merging."""
    whole_words, how = next((words, how) for other, words, how in PRE_TOKENIZERS if other == name)
    if how not in ("bytes", "digits"):
        return split(how), whole_words
    first = [pre_tokenizers.Digits(individual_digits=True)] if how == "digits" else []
    return pre_tokenizers.Sequence([*first, pre_tokenizers.ByteLevel(add_prefix_space=False)]), whole_words


def size_of(folder: Path) -> int:
    return Ours.load(folder).vocab_size


def variant(kind: str, trained: dict[tuple[str, str], Path], root: Path) -> Path:
    """Folders of every kind that is exported."""
    folder = root / kind
    if kind == "bpe":
        return trained["bpe", "identity"]
    if kind in ("prefix", "model alone", "metaspace"):
        config = TokenizerConfig(vocab_size=560, normalization="identity", add_dummy_prefix=True)
        train_tokenizer(small_corpus(), config, folder)
        if kind == "model alone":
            without_json(folder, root / "alone")
            return root / "alone"
        if kind == "metaspace":  # as transformers writes Llama 2's
            spec = json.loads((folder / "tokenizer.json").read_text())
            spec["normalizer"] = None
            spec["pre_tokenizer"] = dict(type="Metaspace", replacement="▁", prepend_scheme="first", split=False)
            (folder / "tokenizer.json").write_text(json.dumps(spec))
    elif kind == "symbols":
        train_tokenizer(small_corpus(), TokenizerConfig(vocab_size=560, user_symbols=("[MASK]", "<표>")), folder)
    elif kind == "unigram":
        train_tokenizer(
            small_corpus(), TokenizerConfig(vocab_size=400, model_type="unigram", byte_fallback=False), folder
        )
    else:
        cut, whole_words = known(kind)
        byte_level(cut, folder, ignore_merges=whole_words)
    return folder


@pytest.mark.parametrize(
    "kind", ["bpe", "prefix", "model alone", "metaspace", "symbols", "unigram", *(row[0] for row in PRE_TOKENIZERS)]
)
def test_llama_cpp_gives_the_same_ids(kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.model.gguf_file import write_gguf

    folder = variant(kind, trained, tmp_path)
    size = size_of(folder)
    model = Decoder(ModelConfig(vocab_size=size, hidden_size=32, num_layers=1, num_heads=1))
    file = tmp_path / "x.gguf"
    write_gguf(model, file, dtype="f16", name="tiny", vocabulary=gguf_vocabulary(folder, size).metadata)
    theirs, ours = llama_cpp.Llama(str(file), vocab_only=True, verbose=False), Ours.load(folder)
    for text in TEXTS:
        # What the notes of the export say that llama.cpp does otherwise: it composes nothing, and Metaspace puts no
        # space before one.
        if (kind == "symbols" and unicodedata.normalize("NFC", text) != text) or (
            kind == "metaspace" and text[:1] == " "
        ):
            continue
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ours.encode(text), text


@pytest.mark.parametrize("kind", ["bpe", "gpt-2", "llama-bpe", "qwen2"])
def test_transformers_reads_the_same_tokenizer(kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """Pieces, ids, types and merges of the file, by a reader nobody here wrote."""
    pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
    utils = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.model.gguf_file import write_gguf

    folder = variant(kind, trained, tmp_path)
    size = size_of(folder)
    model = Decoder(ModelConfig(vocab_size=size, hidden_size=32, num_layers=1, num_heads=1))
    vocabulary = gguf_vocabulary(folder, size).metadata
    write_gguf(model, tmp_path / "x.gguf", dtype="f16", name="tiny", vocabulary=vocabulary)
    read = utils.load_gguf_checkpoint(str(tmp_path / "x.gguf"))["tokenizer"]
    ours = Ours.load(folder)
    assert read["tokens"] == [ours.piece(i) for i in range(size)]
    assert read["token_type"] == vocabulary["tokenizer.ggml.token_type"]
    assert read["eos_token_id"] == ours.eos_id
    if kind != "bpe":
        spec = json.loads((folder / "tokenizer.json").read_text())
        assert read["merges"] == [" ".join(pair) for pair in spec["model"]["merges"]]


def test_types_scores_and_roles(folder: Path) -> None:
    ours = Ours.load(folder)
    vocabulary = gguf_vocabulary(folder, ours.vocab_size + 3)
    metadata = {key.removeprefix("tokenizer.ggml."): value for key, value in vocabulary.metadata.items()}
    types = [PieceType(t) for t in metadata["token_type"]]
    assert types[ours.token_id("<s>")] == types[ours.token_id("<|user|>")] == PieceType.CONTROL  # type: ignore[index]
    assert types[ours.unk_id or 0] == PieceType.UNKNOWN
    assert types.count(PieceType.BYTE) == 256 and types.count(PieceType.UNUSED) == 3
    assert metadata["model"] == "llama" and metadata["add_space_prefix"] is False and metadata["add_bos_token"] is False
    assert (metadata["bos_token_id"], metadata["eos_token_id"]) == (ours.bos_id, ours.eos_id)
    assert metadata["padding_token_id"] == ours.pad_id and metadata["unknown_token_id"] == ours.unk_id
    assert metadata["eot_token_id"] == ours.token_id("<|end|>")
    assert metadata["tokenizer.chat_template"] == ours.chat_template
    assert len(set(metadata["tokens"])) == len(metadata["tokens"]) == ours.vocab_size + 3
    assert "compose" in vocabulary.notes[0]


def test_scores_from_merges_keep_the_order_of_the_sentencepiece_model(folder: Path, tmp_path: Path) -> None:
    def learned(found: Vocabulary) -> list[str]:
        metadata = found.metadata
        rows = zip(
            metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"], strict=True,
        )  # fmt: skip
        pieces = [(score, text) for text, score, kind in rows if kind == PieceType.NORMAL and len(text) > 1]
        return [text for _, text in sorted(pieces, reverse=True)]

    without_json(folder, tmp_path / "alone")
    size = size_of(folder)
    assert learned(gguf_vocabulary(folder, size)) == learned(gguf_vocabulary(tmp_path / "alone", size))


@pytest.mark.parametrize(("name", "whole_words"), [row[:2] for row in PRE_TOKENIZERS])
def test_known_ways_of_cutting_are_told_apart(name: str, whole_words: bool, tmp_path: Path) -> None:
    cut, _ = known(name)
    folder = byte_level(cut, tmp_path / "x", ignore_merges=whole_words)
    assert gguf_vocabulary(folder, 500).metadata["tokenizer.ggml.pre"] == name


def test_a_way_of_cutting_is_known_by_what_it_does(tmp_path: Path) -> None:
    folder = byte_level(split(LLAMA3), tmp_path / "x", ignore_merges=True)
    assert gguf_vocabulary(folder, 500).metadata["tokenizer.ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(
    ("cut", "normalizer", "said"),
    [
        (split(r"\p{N}{1,2}|\p{L}+"), None, "cuts text"),
        (split(LLAMA3.replace("1,3", "1,4")), None, "cuts text"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None, "cuts text"),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase(), "Lowercase"),
    ],
)
def test_what_llama_cpp_would_cut_otherwise_is_refused(cut: Any, normalizer: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        gguf_vocabulary(byte_level(cut, tmp_path / "x", normalizer=normalizer), 500)


def test_tokenizers_that_llama_cpp_lacks_are_refused(trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="byte fallback"):
        gguf_vocabulary(trained["unigram", "nfc"], 560)
    config = TokenizerConfig(vocab_size=400, byte_fallback=False)
    train_tokenizer(small_corpus(), config, tmp_path / "no bytes")
    with pytest.raises(UserError, match="byte fallback"):
        gguf_vocabulary(tmp_path / "no bytes", 400)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    (tmp_path / "words").mkdir()
    words.save(str(tmp_path / "words" / "tokenizer.json"))
    with pytest.raises(UserError, match="WordLevel"):
        gguf_vocabulary(tmp_path / "words", 2)


def test_merges_that_scores_cannot_say_are_refused() -> None:
    vocabulary = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    whole = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    assert merge_scores(vocabulary, whole, set(), Path("x")) == {"ab": -1.0, "bc": -2.0, "abc": -3.0}
    for merges in (whole[:3], [whole[0], whole[2], whole[1], whole[3]]):
        with pytest.raises(UserError, match="merges"):
            merge_scores(vocabulary, merges, set(), Path("x"))


def test_a_tokenizer_without_an_end_token_is_refused_unless_the_model_has_one(tmp_path: Path) -> None:
    folder = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), tmp_path / "x")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"][0]["content"] = "<|other|>"
    spec["model"]["vocab"] = {
        ("<|other|>" if k == "<|endoftext|>" else k): v for k, v in spec["model"]["vocab"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="end token"):
        gguf_vocabulary(folder, 500)
    assert gguf_vocabulary(folder, 500, eos_id=0).metadata["tokenizer.ggml.eos_token_id"] == 0


def test_added_tokens_beyond_the_model_are_left_out_with_a_note(folder: Path, tmp_path: Path) -> None:
    Ours.load(folder).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    size = size_of(folder)
    config["added_tokens_decoder"] = {str(size + i): {"content": f"<late-{i}>", "special": True} for i in range(2)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = gguf_vocabulary(tmp_path, size)
    assert len(vocabulary.metadata["tokenizer.ggml.tokens"]) == size
    assert any("2 ids beyond" in note and "left out" in note for note in vocabulary.notes)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "gpt-2", "llama-bpe"])
def test_ordinary_pieces_beyond_the_model_are_refused(
    kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """Without them llama.cpp would cut a text otherwise, or not at all."""
    folder = variant(kind, trained, tmp_path)
    size = Ours.load(folder).text_size
    gguf_vocabulary(folder, size)
    with pytest.raises(UserError, match=f"up to {size - 1:,} of text, but the model knows only {size - 1:,}"):
        gguf_vocabulary(folder, size - 1)


def test_every_end_token_of_the_model_that_there_is_room_for_is_named(folder: Path) -> None:
    ours = Ours.load(folder)
    turn, other = ours.token_id("<|end|>"), ours.token_id("<|user|>")
    assert turn is not None and other is not None
    size = size_of(folder)
    plain = gguf_vocabulary(folder, size)
    assert plain.metadata["tokenizer.ggml.eot_token_id"] == turn
    more = gguf_vocabulary(folder, size, eos_id=ours.eos_id, end_ids=[ours.eos_id or 0, turn, other])
    assert more.metadata["tokenizer.ggml.eot_token_id"] == turn
    assert any("<|user|>" in note for note in more.notes) and not any("<|user|>" in note for note in plain.notes)


def test_vocabulary_in_two_files(tmp_path: Path) -> None:
    """vocab.json and merges.txt, as GPT-2 was published."""
    folder = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), tmp_path / "x")
    spec = json.loads((folder / "tokenizer.json").read_text())
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    (pair / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in spec["model"]["merges"]))
    shutil.copy(folder / "tokenizer_config.json", pair)
    one, two = gguf_vocabulary(folder, 500).metadata, gguf_vocabulary(pair, 500).metadata
    for key in ("pre", "merges", "tokens", "eos_token_id"):
        assert one[f"tokenizer.ggml.{key}"] == two[f"tokenizer.ggml.{key}"]
