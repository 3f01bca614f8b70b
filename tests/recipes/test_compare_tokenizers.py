"""`yeoul.compare_tokenizers`: the same bytes for all, bits over bytes of text, stopped and gone on with, its page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from report.reading import NAMES, foreign, seen
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.model.decoder import Decoder
from yeoul.recipes.compare_tokenizers import run as module
from yeoul.recipes.compare_tokenizers import small_model
from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig
from yeoul.recipes.compare_tokenizers.old_hangul import JAMO, VERSES, tokens_per_old_jamo
from yeoul.recipes.compare_tokenizers.report import comparison_report
from yeoul.recipes.compare_tokenizers.result import TokenizerScore
from yeoul.recipes.compare_tokenizers.run import compare_tokenizers, short_names
from yeoul.recipes.compare_tokenizers.serving import serving_cost
from yeoul.recipes.compare_tokenizers.small_model import lost_bytes, train_small_model
from yeoul.recipes.compare_tokenizers.texts import read_corpus, segments
from yeoul.recipes.options import silent
from yeoul.report import plots
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer
from yeoul.train.interrupt import Interrupted

LINES = [
    f"{who}는 {where}에서 {n}번 {what}. 값싼 커피와 café." for n in range(6)
    for who in ("미나", "준호", "서연") for where in ("시장", "강가", "도서관") for what in ("걸었다", "웃었다")
]  # fmt: skip
LINES[0] += " 龘"
LINES[9] += " 뷁"  # which is held out
SMALL = CompareTokenizersConfig(train_bytes=3000, val_bytes=600, segment_bytes=128, preset="tiny", serve="1m")
KINDS: dict[str, dict[str, Any]] = {
    "bpe": dict(vocab_size=350, character_coverage=0.99),
    "chars": dict(model_type="char", vocab_size=300, byte_fallback=False, character_coverage=0.98),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for name, settings in KINDS.items():
        train_tokenizer(LINES, TokenizerConfig(normalization="identity", **settings), root / name)
    return {name: root / name for name in KINDS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "lines.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset that trains in no time, and measures of speed that take none."""
    from yeoul.model.config import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", dict(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32))
    monkeypatch.setattr("yeoul.text.tokenizer_speed.LEAST_SECONDS", 0.0)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)  # drawing is tested once


def plain(scores: tuple[TokenizerScore, ...]) -> list[dict[str, Any]]:
    """What was found, without the time that it took."""
    values = [score.as_dict() for score in scores]
    for own in values:
        del own["speed"]
        own["model"] = {k: v for k, v in own["model"].items() if k not in ("seconds", "read_rate")}
    return values


def test_segments_are_the_text_in_parts() -> None:
    documents = ["가나다 라마바사", "아" * 100, "The quick brown fox jumps", "끝"]
    parts = segments(documents, 32)
    assert "".join(parts) == "\n".join(documents) + "\n" and all(0 < len(part.encode()) <= 32 for part in parts)
    assert parts[0].endswith("\n")  # behind a line break where one is near
    assert segments([], 32) == []
    assert segments(["ab"], 32) == ["ab\n"]


def test_the_corpus_is_divided(data: Path) -> None:
    corpus = read_corpus(str(data), SMALL)
    assert not set(corpus.train) & set(corpus.held_out) and corpus.held_out[0] == LINES[9]
    for texts, size in ((corpus.train, 3000), (corpus.held_out, 600)):
        assert size - 200 < sum(len(text.encode()) + 1 for text in texts) <= size + 4  # at least one character
    other = replace(SMALL, val_data=str(data))
    assert read_corpus(str(data), other).held_out[0] == read_corpus(str(data), other).train[0] == LINES[0]


def test_every_tokenizer_reads_the_same_text_in_the_same_order(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, list[str]] = {}

    def spy(model: Any, batch: Any, real: Any = small_model.language_model_objective) -> Any:
        for row, ids in zip(batch.seq_ids, batch.input_ids, strict=True):
            read[name].append(tokenizer.decode((ids[row >= 0][1:] - 1).tolist()))
        return real(model, batch)

    monkeypatch.setattr(small_model, "language_model_objective", spy)
    texts, sizes = segments(LINES[10:], 128), set()
    for name, folder in folders.items():
        tokenizer, read[name] = Tokenizer.load(folder), []
        found = train_small_model(
            tokenizer, texts, texts[:2], SMALL, tmp_path / name, device="cpu", name=name, say=silent
        )  # fmt: skip
        sizes.add(found.inner)
        assert found.trained_bytes == sum(len(text.encode()) for text in texts)
        assert found.parameters == found.inner + 16 * (tokenizer.vocab_size + 1)
    # The last token of a sequence is a label only, so it is not among the inputs.
    steps = [
        [sorted(text[:9] for text in read[name][at : at + 4]) for at in range(0, len(texts), 4)] for name in folders
    ]
    assert steps[0] == steps[1] != sorted(steps[0]) and len(steps[0]) == -(-len(texts) // 4)
    assert len(sizes) == 1 and len(read["bpe"]) == len(texts) + 2


def test_bits_are_those_of_the_text_by_hand(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text by text, with torch's own cross-entropy, in float32 whatever the processor multiplies."""
    made: list[Decoder] = []
    monkeypatch.setattr(small_model, "Decoder", lambda config: (made.append(Decoder(config)), made[-1])[1])
    texts = segments(LINES, 128)
    for name, folder in folders.items():
        tokenizer = Tokenizer.load(folder)
        found = train_small_model(
            tokenizer, texts, texts[:5], replace(SMALL, dtype="float32"), tmp_path / name, device="cpu", name=name,
            say=silent,
        )  # fmt: skip
        nats = 0.0
        for text in texts[:5]:
            ids = torch.tensor([0, *(token + 1 for token in tokenizer.encode(text))])
            with torch.no_grad():
                logits = made[-1](ids[None, :-1]).float()[0]
            nats += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        size, lost = sum(len(text.encode()) for text in texts[:5]), found.lost_bytes
        assert found.bits_per_byte == pytest.approx((nats / math.log(2) + 8 * lost) / size, rel=1e-5)
        assert (lost > 0) == (name == "chars")


def test_lost_bytes(folders: dict[str, Path]) -> None:
    chars = Tokenizer.load(folders["chars"])
    assert lost_bytes(chars, "걸었다 龘") == 3 and lost_bytes(chars, "걸었다") == 0
    assert lost_bytes(chars, "龘龘 😀") == 10  # unknown characters side by side are one token
    assert lost_bytes(Tokenizer.load(folders["bpe"]), "龘") == 0


def test_a_large_vocabulary_gets_the_rows_of_its_text(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer, texts = Tokenizer.load(folders["bpe"]), segments(LINES, 128)
    config = replace(SMALL, most_rows=100)
    found = train_small_model(tokenizer, texts, texts[:2], config, tmp_path, device="cpu", name="a", say=silent)
    assert found.rows == 1 + len({token for text in texts for token in tokenizer.encode(text)}) < tokenizer.vocab_size


def test_a_comparison_in_memory(folders: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compare_tokenizers([*folders.values(), Tokenizer.load(folders["bpe"])], str(data), SMALL)
    bpe, chars, again = result.scores
    assert [score.name for score in result.scores] == ["bpe", "chars", "tokenizer 3"]
    assert plain((again,))[0]["model"] == plain((bpe,))[0]["model"], "the same tokenizer, the same score"
    assert bpe.same == 1 and chars.same < 1 and bpe.fit.byte_tokens > 0 and chars.fit.unknown_tokens > 0
    assert bpe.kind == "BPE" and chars.kind == "char" and result.shortest is bpe
    assert bpe.fit.bytes == sum(len(text.encode()) for text in read_corpus(str(data), SMALL).held_out)
    assert result.best is not None and result.best.name in result.why.en
    assert tokens_per_old_jamo(Tokenizer.load(folders["bpe"])) == bpe.old_jamo == 3.0  # three bytes
    assert chars.old_jamo is None  # they are lost
    assert "bits/B" in result.table() and result.table().count("\n") == 3
    untrained = compare_tokenizers([folders["bpe"]], str(data), replace(SMALL, train_bytes=0))
    assert untrained.scores[0].model is None and untrained.best is None and "bits/B" not in untrained.table()
    picture = comparison_report(untrained).sections[0].scatter
    assert picture is not None and [dot.y for dot in picture.dots] == [untrained.scores[0].serving.gigaflops]


def test_the_verses_are_of_old_hangul() -> None:
    assert all(JAMO.search(verse) for verse in VERSES[1:2] + VERSES[3:])


def test_cost_of_serving() -> None:
    """By the shapes of the model: 2 FLOPs a parameter and token, a key and a value of each layer."""
    model = Decoder(SMALL.served_shape(1000))
    cost = serving_cost(SMALL, 1000, 0.5)
    assert cost.parameters == model.num_parameters() and cost.embedding == 1000 * 128 and cost.tokens == 500
    assert cost.gigaflops == pytest.approx(2 * model.num_parameters() * 500 / 1e9)
    assert cost.cache_bytes == 500 * 2 * 3 * 128 * 2


def test_a_stopped_comparison_goes_on(
    folders: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    whole = compare_tokenizers(list(folders.values()), str(data), SMALL)
    trained, real = [], module.train_small_model

    def stopping(*args: Any, name: str, **more: Any) -> Any:
        trained.append(name)
        if len(trained) == 2:
            raise Interrupted(2)
        return real(*args, name=name, **more)

    monkeypatch.setattr(module, "train_small_model", stopping)
    out = tmp_path / "comparison"
    with pytest.raises(Interrupted):
        compare_tokenizers(list(folders.values()), str(data), SMALL, out=out)
    told: list[str] = []
    result = compare_tokenizers(list(folders.values()), str(data), SMALL, out=out, say=told.append)
    assert plain(result.scores) == [
        own | {"place": str(f)} for own, f in zip(plain(whole.scores), folders.values(), strict=True)
    ]  # noqa: E501
    assert trained == ["bpe", "chars", "chars"] and "bpe is already measured." in told
    again = compare_tokenizers(list(folders.values()), str(data), replace(SMALL, serve="3m"), out=out)
    assert len(trained) == 3 and again.scores[0].serving != result.scores[0].serving
    assert again.scores[0].speed == result.scores[0].speed, "nothing is measured twice"
    assert not list(out.glob("training-*")), "trainings are gone when their score is known"
    for other in (replace(SMALL, seed=1), replace(SMALL, train_bytes=2000), replace(SMALL, preset="1m")):
        with pytest.raises(UserError, match=r"comparison with another .*--overwrite"):
            compare_tokenizers([folders["bpe"]], str(data), other, out=out)


def test_a_training_goes_on_where_it_was_killed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, texts = Tokenizer.load(folders["bpe"]), segments(LINES, 128)
    monkeypatch.setattr(
        CompareTokenizersConfig, "training",
        lambda self, n, real=CompareTokenizersConfig.training: replace(real(self, n), save_every=3),
    )  # fmt: skip
    common: dict[str, Any] = dict(device="cpu", name="a", say=silent)
    whole = train_small_model(tokenizer, texts, texts[:5], SMALL, tmp_path / "whole", **common)
    calls, real = [], small_model.language_model_objective

    def killed(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(small_model, "language_model_objective", killed)
    with pytest.raises(KeyboardInterrupt):
        train_small_model(tokenizer, texts, texts[:5], SMALL, tmp_path / "run", **common)
    found = train_small_model(tokenizer, texts, texts[:5], SMALL, tmp_path / "run", **common)
    assert found.bits_per_byte == whole.bits_per_byte


def test_the_command_and_its_page(
    folders: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "comparison"
    line = ["tokenizer", "compare", str(folders["bpe"]), str(folders["chars"] / "tokenizer.json"), "--data", str(data)]
    rest = ["--train-bytes", "2000", "--val-bytes", "400", "--preset", "tiny", "--serve", "1m", "--out", str(out)]
    assert main([*line, *rest, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "bits/B" in said.out and "fewest bits" in said.out.replace("\n", " ") and "report.html" in said.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1, (out / "report.md").read_text(encoding="utf-8")
    assert "yeoul tokenizer compare" in page
    names = "bpe chars char preset tiny BPE GFLOP MB KB KiB MiB yeoul tokenizer compare bits byte json Hangul Unicode"
    examples = " ".join(score["example"] for score in json.loads((out / "tokenizers.json").read_text())["scores"])
    for language in ("en", "ko"):
        assert len(seen(page, language)) > 40
        for text in foreign(page, language):
            words = re.findall(r"[가-힣]+" if language == "en" else r"[A-Za-z]+", text)
            assert not [w for w in words if w not in NAMES and w not in names and w not in examples], text
    assert "![" in (out / "report.ko.md").read_text(encoding="utf-8")
    assert main([*line, *rest, "--device", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [score["name"] for score in values["scores"]] == ["bpe", "chars/tokenizer.json"]
    assert main(["tokenizer", "inspect", str(folders["bpe"] / "tokenizer.json"), "--text", "걸었다"]) == 0


def test_what_cannot_be_compared(folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")
    bpe = folders["bpe"]
    for tokenizers, text, config, what in (
        ([tmp_path / "nothing"], str(data), SMALL, "no such .*nothing"),
        ([empty], str(data), SMALL, r"empty\.txt"),
        ([tmp_path], str(data), SMALL, "no tokenizer"),
        ([], str(data), SMALL, "no tokenizer was given"),
        ([bpe], str(empty), SMALL, r"no text.*empty\.txt"),
        ([bpe], str(tmp_path / "missing.txt"), SMALL, r"missing\.txt"),
        ([bpe], str(data), replace(SMALL, preset="huge"), "huge"),
        ([bpe], str(data), replace(SMALL, serve="huge"), "huge"),
    ):
        with pytest.raises(UserError, match=what):
            compare_tokenizers(tokenizers, text, config)  # type: ignore[arg-type]
    one = tmp_path / "one.txt"
    one.write_text("한 줄", encoding="utf-8")
    with pytest.raises(UserError, match="too little text to hold some of it out"):
        compare_tokenizers([bpe], str(one), SMALL)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("precious", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not that of a comparison"):
            compare_tokenizers([bpe], str(data), SMALL, out=tmp_path / "thesis", overwrite=overwrite)
    for changes, flag in (({"val_bytes": 0}, "--val-bytes"), ({"segment_bytes": 3}, "--segment-bytes"),
                          ({"lr": 0.0}, "--lr"), ({"train_bytes": -1}, "--train-bytes")):  # fmt: skip
        with pytest.raises(UserError, match=flag):
            CompareTokenizersConfig(**changes)


def test_names_say_which_is_which() -> None:
    assert short_names(["runs/a/tokenizer", "runs/b/tokenizer", "c"]) == ["a/tokenizer", "b/tokenizer", "c"]
    assert short_names(["x/one/m", "y/one/m", "z/two"]) == ["x/one/m", "y/one/m", "two"]
    assert short_names(["bpe/tokenizer.json"]) == ["bpe/tokenizer.json"]


def test_the_public_face() -> None:
    assert yeoul.compare_tokenizers is compare_tokenizers and yeoul.CompareTokenizersConfig.of(text_column="a")
