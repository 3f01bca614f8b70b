"""`yeoul tokenizer train|inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from text.samples import small_corpus
from yeoul.cli import main
from yeoul.text.inspection import corpus_fit, pieces_of
from yeoul.text.tokenizer import Tokenizer


def test_train_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(small_corpus()), encoding="utf-8")
    out = str(tmp_path / "tok")
    command = ["tokenizer", "train", "--data", str(corpus), "--out", out, "--vocab-size", "450"]
    assert main([*command, "--user-symbols", "[인물]", "[장소]", "--character-coverage", "1.0"]) == 0
    assert "Tokens per Hangul syllable" in capsys.readouterr().out
    assert Tokenizer.load(out).piece(8) == "[인물]"
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err

    assert main(["tokenizer", "inspect", out, "--text", "미나는 🙂", "--data", str(corpus), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "".join(piece["text"] for piece in report["pieces"][:2]).startswith("미나")
    assert report["pieces"][-1]["bytes"] == "82"
    assert report["corpus"]["tokens"] > 0 and report["tokenizer"]["vocab_size"] == 450

    assert main(["tokenizer", "inspect", out]) == 0
    assert main(["tokenizer", "inspect", out, "--text", "[bold]미나"]) == 0
    assert "미나" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "{missing}"], "missing.txt"),
        (["train", "{corpus}", "--vocab-size", "90000"], "use at most"),
        (["inspect", "{missing}"], "there is no such"),
        (["inspect", "{folder}", "--max-documents", "0"], "--max-documents"),
    ],
)
def test_one_sentence_for_mistakes(
    arguments: list[str], complaint: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.txt").write_text("안녕하세요 반갑습니다", encoding="utf-8")
    places = {"missing": tmp_path / "missing.txt", "corpus": tmp_path / "corpus.txt", "folder": folder}
    arguments = [argument.format(**places) for argument in arguments]
    if arguments[0] == "train":
        arguments += ["--out", str(tmp_path / "out")]
    assert main(["tokenizer", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_figures_by_hand(tokenizer: Tokenizer) -> None:
    texts = ["뷁 a", "미나", "漢"]
    fit = corpus_fit(tokenizer, texts)
    ids = [i for text in texts for i in tokenizer.encode(text)]
    assert (fit.documents, fit.bytes, fit.characters, fit.syllables) == (3, 5 + 6 + 3, 6, 3)
    assert fit.tokens == len(ids)
    assert fit.byte_tokens == 6
    assert fit.syllable_tokens == 3 + len(tokenizer.encode("미나"))
    assert fit.unused == tokenizer.vocab_size - 8 - 256 - len({i for i in ids if i >= 264})


def test_empty_corpus_has_no_ratios(tokenizer: Tokenizer) -> None:
    fit = corpus_fit(tokenizer, [])
    assert fit.tokens_per_syllable is None and fit.bytes_per_token is None and fit.byte_share is None


def test_pieces_of_a_split_character(tokenizer: Tokenizer) -> None:
    pieces = pieces_of(tokenizer, "뷁")
    assert [piece.bytes for piece in pieces] == [b"\xeb", b"\xb7", b"\x81"]
    assert [piece.piece for piece in pieces] == ["<0xEB>", "<0xB7>", "<0x81>"]
