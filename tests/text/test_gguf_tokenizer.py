"""Tokenizers of GGUF files: exported by Yeoul and read back, read by transformers, and put together by hand."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from text.samples import small_corpus
from text.test_gguf_vocabulary import TEXTS, size_of, variant
from yeoul.errors import UserError
from yeoul.gguf_header import read_header
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.gguf_file import write_gguf
from yeoul.text.gguf_pre_tokenizers import ALIKE, PRE_TOKENIZERS, WHOLE
from yeoul.text.gguf_vocabulary import gguf_vocabulary
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

KINDS = ["bpe", "prefix", "model alone", "symbols", "unigram", *(row[0] for row in PRE_TOKENIZERS)]


def exported(folder: Path, file: Path, *, more: int = 0, **changes: Any) -> Path:
    """A file with a small model and the tokenizer of a folder; `changes` of `tokenizer.ggml`, None takes one out."""
    size = size_of(folder) + more
    values = gguf_vocabulary(folder, size).metadata | {f"tokenizer.ggml.{key}": v for key, v in changes.items()}
    values = {key: value for key, value in values.items() if value is not None}
    model = Decoder(ModelConfig(vocab_size=size, hidden_size=32, num_layers=1, num_heads=1))
    write_gguf(model, file, dtype="f16", name="tiny", vocabulary=values)
    return file


def lists_alone(file: Path) -> Path:
    """The same file as llama.cpp's own converter writes it, without a `tokenizer.json`."""
    data = file.read_bytes()
    file.write_bytes(data.replace(WHOLE.encode(), WHOLE.replace("json", "none").encode()))
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_lists_alone_give_the_same_ids(kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folder = variant(kind, trained, tmp_path)
    ours, back = Tokenizer.load(folder), Tokenizer.load(lists_alone(exported(folder, tmp_path / "x.gguf", more=3)))
    assert pieces_of(back) == pieces_of(ours) and back.framing == ours.framing
    for text in (*TEXTS, *small_corpus()):
        text = unicodedata.normalize("NFC", text)  # what the export notes: llama.cpp composes nothing
        assert back.encode(text) == ours.encode(text), text
        assert back.decode(back.encode(text)) == ours.decode(ours.encode(text))


def test_a_whole_tokenizer_goes_before_the_lists_where_it_is_theirs(folder: Path, tmp_path: Path) -> None:
    """NFC is in no list: decomposed Hangul has the ids of the composed one only where the file has tokenizer.json."""
    ours = Tokenizer.load(folder)
    text = unicodedata.normalize("NFD", "토끼가 노래했다")
    back = Tokenizer.load(exported(folder, tmp_path / "x.gguf"))
    assert back.encode(text) == ours.encode(text) and back.fingerprint == ours.fingerprint
    assert Tokenizer.load(lists_alone(tmp_path / "x.gguf")).encode(text) != ours.encode(text)
    spec = json.loads((folder / "tokenizer.json").read_text())
    first, second = list(spec["model"]["vocab"])[-2:]
    spec["model"]["vocab"] |= {first: spec["model"]["vocab"][second], second: spec["model"]["vocab"][first]}
    for other in (json.dumps(spec), "{"):
        values = gguf_vocabulary(folder, size_of(folder)).metadata | {WHOLE: other}
        model = Decoder(ModelConfig(vocab_size=size_of(folder), hidden_size=32, num_layers=1, num_heads=1))
        write_gguf(model, tmp_path / "y.gguf", dtype="f16", name="tiny", vocabulary=values)
        assert pieces_of(Tokenizer.load(tmp_path / "y.gguf")) == pieces_of(ours)


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_tokenizer_comes_back(kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folder = variant(kind, trained, tmp_path)
    ours = Tokenizer.load(folder)
    back = Tokenizer.load(exported(folder, tmp_path / "x.gguf", more=7))  # rows that stand for no token
    assert pieces_of(back) == pieces_of(ours)
    assert dict(back.special_tokens) == dict(ours.special_tokens) and dict(back.added_tokens) == dict(ours.added_tokens)
    assert (back.bos_id, back.eos_id, back.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert back.framing == ours.framing and set(back.stop_ids) == set(ours.stop_ids)
    assert back.chat_template == ours.chat_template
    for text in (*TEXTS, *small_corpus()):
        text = unicodedata.normalize("NFC", text) if kind == "model alone" else text
        assert back.encode(text) == ours.encode(text), text
        assert back.decode(back.encode(text)) == ours.decode(ours.encode(text))


@pytest.mark.parametrize("kind", ["prefix", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_the_same_ids(kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = variant(kind, trained, tmp_path)
    file = exported(folder, tmp_path / "x.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    ours = Tokenizer.load(file)
    for text in (*TEXTS, *small_corpus()[:50]):
        if "<" in text or (kind == "prefix" and text[:1] == " "):
            continue  # of text, theirs makes special tokens; and puts no second space before a text
        text = unicodedata.normalize("NFC", text) if kind == "qwen2" else text  # as Qwen's own tokenizer, not theirs
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert theirs.bos_token_id == ours.bos_id and theirs.eos_token_id == ours.eos_id


@pytest.mark.parametrize("kind", ["bpe", "unigram", "qwen2"])
@pytest.mark.filterwarnings("ignore")
def test_the_written_folder_is_one_of_transformers(
    kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """What is saved of a GGUF file opens as any folder, begin token and all."""
    transformers = pytest.importorskip("transformers")
    folder = variant(kind, trained, tmp_path)
    begin = {"add_bos_token": True, "bos_token_id": Tokenizer.load(folder).eos_id}
    ours = Tokenizer.load(exported(folder, tmp_path / "x.gguf", **begin))
    ours.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert ours.add_bos and again.framing == ours.framing and again.fingerprint == ours.fingerprint
    for text in ("미나는 시장에 갔다.", "a 한국어 1234"):
        assert theirs.encode(text) == ours.framing.whole(ours.encode(text)) == again.framing.whole(again.encode(text))


def vocabulary(file: Path, **values: Any) -> Path:
    """A file with a vocabulary alone."""
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in values.items():
        key = key.replace("__", ".") if "__" in key else f"tokenizer.ggml.{key}"
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def sentencepiece_like(pieces: Iterable[tuple[str, float, int]]) -> dict[str, Any]:
    known = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    known += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    texts, scores, types = zip(*known, *pieces, strict=False)
    return dict(model="llama", tokens=list(texts), scores=list(scores), token_type=list(types))


def test_scores_decide_as_in_the_sentencepiece_library(tmp_path: Path) -> None:
    """The same vocabulary as a sentencepiece model, whose library is the judge; `add_space_prefix` on and off."""
    for prefix in (False, True):
        config = TokenizerConfig(vocab_size=700, normalization="identity", add_dummy_prefix=prefix)
        train_tokenizer(small_corpus(), config, tmp_path / str(prefix))
        judge = SentencePieceProcessor(model_file=str(tmp_path / str(prefix) / "tokenizer.model"))
        pieces = [(judge.id_to_piece(i), judge.get_score(i), _kind(judge, i)) for i in range(len(judge))]
        texts, scores, types = map(list, zip(*pieces, strict=True))
        ids = {f"{role}_token_id": getattr(judge, f"{role}_id")() for role in ("bos", "eos")}
        file = vocabulary(
            tmp_path / f"{prefix}.gguf", model="llama", tokens=texts, scores=scores, token_type=types,
            unknown_token_id=judge.unk_id(), add_space_prefix=prefix, **ids,
        )  # fmt: skip
        ours = Tokenizer.load(file)
        for text in (*TEXTS, *small_corpus()):
            assert ours.encode(text) == judge.encode(text), text


def _kind(judge: Any, i: int) -> int:
    return 2 if judge.is_unknown(i) else 3 if judge.is_control(i) else 6 if judge.is_byte(i) else 1


def test_defaults_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """Without ids and flags: begin 1, end 2, unknown 0, a begin token and a space before a text."""
    file = vocabulary(tmp_path / "x.gguf", **sentencepiece_like([("▁", -1.0, 1), ("a", -2.0, 1), ("▁a", -0.5, 1)]))
    found = Tokenizer.load(file)
    assert (found.bos_id, found.eos_id, found.unk_id, found.pad_id) == (1, 2, 0, None)
    assert found.add_bos and found.framing.end == ()
    assert found.pieces("aa") == ["▁a", "a"]
    quiet = vocabulary(
        tmp_path / "y.gguf", add_bos_token=False, add_space_prefix=False, eot_token_id=260,
        **sentencepiece_like([("▁", -1.0, 1), ("<end>", 0.0, 1), ("a", -2.0, 1)]),
    )  # fmt: skip
    found = Tokenizer.load(quiet)
    assert not found.add_bos and found.pieces("aa") == ["a", "a"]
    assert found.stop_ids == (2, 260) and "<end>" in found.special_tokens


def test_user_defined_tokens_are_found_in_any_text(tmp_path: Path) -> None:
    """As Gemma has them: runs of spaces, which newer converters write as they are and older ones as sentencepiece."""
    for run in ("  ", "▁▁"):
        pieces = [("▁", -1.0, 1), ("a", -2.0, 1), (run, 0.0, 4), ("<b>", 0.0, 4), ("▁a", -0.5, 1), ("a▁b", -0.1, 1)]
        file = vocabulary(tmp_path / "x.gguf", add_space_prefix=False, **sentencepiece_like(pieces))
        found = Tokenizer.load(file)
        assert found.encode("a  a<b> a") == [260, 261, 260, 262, 263]
        assert found.decode(found.encode("a  a<b> a")) == "a  a<b> a"


def test_pieces_across_words_are_kept_together(tmp_path: Path) -> None:
    pieces = [("▁", -9.0, 1), ("a", -9.0, 1), ("b", -9.0, 1), ("▁b", -1.0, 1), ("a▁b", -0.1, 1)]
    file = vocabulary(tmp_path / "x.gguf", add_space_prefix=False, **sentencepiece_like(pieces))
    assert Tokenizer.load(file).pieces("a b") == ["a▁b"]


@pytest.mark.parametrize("name", [name for names in ALIKE.values() for name in names])
def test_names_of_one_way_of_cutting_cut_alike(name: str, tmp_path: Path) -> None:
    letters = [chr(code) for code in (*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
    way = next(way for way, names in ALIKE.items() if name in names)
    found = []
    for number, pre in enumerate((name, way)):
        file = vocabulary(
            tmp_path / f"{number}.gguf", model="gpt2", pre=pre, tokens=[*letters, "<|end|>", "ab"], merges=["a b"],
            token_type=[1] * len(letters) + [3, 1], eos_token_id=len(letters),
        )  # fmt: skip
        found.append(json.loads(Tokenizer.load(file)._files["tokenizer.json"]))
    assert found[0]["pre_tokenizer"] == found[1]["pre_tokenizer"]
    assert found[0]["model"]["ignore_merges"] == found[1]["model"]["ignore_merges"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(model="bert"), "of a kind that is not read: 'bert'.*known are llama, gpt2 and t5"),
        (dict(model="gpt2", merges=["a b"]), "does not say how text is cut.*newer llama.cpp"),
        (dict(model="gpt2", pre="superbpe", merges=["a b"]), "cuts text as 'superbpe', which is not known here"),
        (dict(model="gpt2", pre="qwen2"), "no tokenizer.ggml.merges"),
        (dict(model="gpt2", pre="qwen2", merges=["ab"]), "the merge 'ab' of the GGUF file is no pair"),
        (dict(model="gpt2", pre="qwen2", merges=["x y"]), "tokenizer of the GGUF file cannot be used"),
        (dict(model="llama"), "0 of the 256 bytes"),
        (dict(model="llama", token_type=[1, 1]), "token_type of the metadata has 2 values for 3 tokens"),
        (dict(model="llama", tokens=["a", "b", "a"]), "'a' twice"),
        (dict(model="t5", remove_extra_whitespaces=True), "drops repeated spaces"),
    ],
)
def test_what_is_not_known_is_refused_by_name(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = vocabulary(tmp_path / "x.gguf", **dict(tokens=["a", "b", "c"], unknown_token_id=0) | values)
    with pytest.raises(UserError, match=said) as raised:
        Tokenizer.load(file)
    assert str(file) in str(raised.value)


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    model = Decoder(ModelConfig(vocab_size=32, hidden_size=32, num_layers=1, num_heads=1))
    write_gguf(model, tmp_path / "x.gguf", dtype="f16", name="tiny")
    assert not Tokenizer.exists(tmp_path / "x.gguf") and not Tokenizer.exists(tmp_path)
    with pytest.raises(UserError, match="there is no tokenizer"):
        Tokenizer.load(tmp_path / "x.gguf")


def test_rules_of_normalization_are_kept(trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """Those of NFKC as they are, with the library of sentencepiece as the judge; Yeoul's own as NFC."""
    from sentencepiece import SentencePieceTrainer

    from yeoul.text.nfc import is_nfc
    from yeoul.text.sentencepiece_model import read_model

    own = read_model((trained["unigram", "nfc"] / "tokenizer.model").read_bytes()).charsmap
    SentencePieceTrainer.train(
        sentence_iterator=iter(small_corpus()), model_prefix=str(tmp_path / "m"), vocab_size=300, model_type="unigram",
        normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=False, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    judge = SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    rules = read_model((tmp_path / "m.model").read_bytes()).charsmap
    assert is_nfc(own) and not is_nfc(b"") and not is_nfc(own[:100]) and not is_nfc(rules)
    pieces = [(judge.id_to_piece(i), judge.get_score(i), _kind(judge, i)) for i in range(len(judge))]
    texts, scores, types = map(list, zip(*pieces, strict=True))
    file = vocabulary(
        tmp_path / "x.gguf", model="t5", tokens=texts, scores=scores, token_type=types, unknown_token_id=0,
        add_space_prefix=True, remove_extra_whitespaces=False, add_eos_token=True, eos_token_id=judge.eos_id(),
        precompiled_charsmap=rules,
    )  # fmt: skip
    ours = Tokenizer.load(file)
    assert ours.framing.end == (judge.eos_id(),)
    for text in ("미나는 시장에 갔다.", "ＡＢ １２ ㈜ ﬁ", "① 토끼가 숲에서 노래했다", "a  b"):
        assert ours.encode(text) == judge.encode(text), text


@pytest.mark.parametrize("kind", ["bpe", "unigram", "qwen2"])
def test_changed_bytes_are_a_sentence_or_a_tokenizer(
    kind: str, trained: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    data = exported(variant(kind, trained, tmp_path), tmp_path / "x.gguf").read_bytes()
    end, random = min(tensor.start for tensor in read_header(tmp_path / "x.gguf").tensors.values()), Random(0)
    said = set()
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(random.randint(1, 3)):
            changed[random.randrange(end)] = random.choice((0, 1, 255, random.randrange(256)))
        (tmp_path / "y.gguf").write_bytes(changed)
        try:
            if Tokenizer.exists(tmp_path / "y.gguf"):
                Tokenizer.load(tmp_path / "y.gguf").encode(TEXTS[1])
        except UserError as error:
            said.add(error.what)
            assert error.where is not None and "y.gguf" in error.where
    assert len(said) > 5
