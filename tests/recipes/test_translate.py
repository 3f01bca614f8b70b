"""`yeoul.translate`: how systems are asked, sacrebleu's own scores, an endpoint, going on, and what is no pair."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from report.reading import NAMES, foreign, seen
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.evaluate.translation import compare_translations, sentence_scores
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.saving import save_folder
from yeoul.recipes.translate import systems as module
from yeoul.recipes.translate.config import TranslateConfig
from yeoul.recipes.translate.pairs import aligned, from_table, write_dialogs
from yeoul.recipes.translate.prompts import pattern, turns
from yeoul.recipes.translate.run import translate
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer
from yeoul.train.interrupt import Interrupted

sacrebleu = pytest.importorskip("sacrebleu")
PAIRS = [("강가에 마을이 있다.", "There is a village by the river."), ("아이가 논다.", "A child plays."),
         ("비가 온다.", "It rains."), ("나무가 크다.", "The tree is tall."), ("밤이다.", "It is night.")]  # fmt: skip
LANGUAGES = ("Korean", "English")
OURS = {*NAMES, "chrF", "BLEU", "sacrebleu", "gram", "n", "shot", "Korean", "English"}
SMALL = TranslateConfig(shots=2, max_tokens=5, batch_size=2, resamples=50)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([" ".join(pair) + "\n" for pair in PAIRS] * 40, TokenizerConfig(vocab_size=330), folder)
    tokenizer = Tokenizer.load(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=512)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.2, **shape)
    return Decoder(config).eval(), tokenizer


class _Server(BaseHTTPRequestHandler):
    """Answers with the last question's first word in capitals, and keeps what it was asked."""

    asked: list[dict[str, Any]] = []
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        word = body["messages"][-1]["content"].split("\n")[1].split()[0]
        answer = {"choices": [{"message": {"role": "assistant", "content": f"\n{word.upper()}!\nmore"}}]}
        data = json.dumps(answer if self.status == 200 else {"error": "no such model"}).encode()
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Server, "asked", [])
    server = HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_scores_are_sacrebleus() -> None:
    references = [target for _, target in PAIRS]
    systems = [["There is a town by the river.", "A boy plays.", "Rain.", "The tree is tall.", "It is night."],
               ["A village.", "A child is playing.", "It rains.", "tree", "night"]]  # fmt: skip
    found = compare_translations(systems, references, resamples=50)
    for own, texts in zip(found, systems, strict=True):
        assert own["chrF2"].score == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
        assert own["BLEU"].score == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
        assert own["chrF2"].low <= own["chrF2"].score <= own["chrF2"].high
    assert found[0]["chrF2"].p_value is None and 0 < (found[1]["chrF2"].p_value or 0) <= 1
    assert found[0]["BLEU"].signature.startswith("nrefs:1|bs:50|seed:12345|case:mixed")
    expected = [
        sacrebleu.sentence_chrf(own, [wanted]).score for own, wanted in zip(systems[0], references, strict=True)
    ]
    assert sentence_scores(systems[0], references) == pytest.approx(expected)
    with pytest.raises(UserError, match="cannot split words by 'nothing': it is not one of its names"):
        compare_translations(systems, references, tokenize="nothing")


def test_prompts() -> None:
    assert (
        pattern(PAIRS[1:2], "밤이다.", LANGUAGES)
        == "Korean: 아이가 논다.\nEnglish: A child plays.\n\nKorean: 밤이다.\nEnglish:"
    )
    assert turns([PAIRS[1], ("밤이다.", "")], LANGUAGES) == [
        {"role": "user", "content": "Translate from Korean to English:\n아이가 논다."},
        {"role": "assistant", "content": "A child plays."},
        {"role": "user", "content": "Translate from Korean to English:\n밤이다."},
    ]  # fmt: skip


@pytest.mark.parametrize("chat", [False, True])
def test_a_model_is_asked_with_and_without_examples(model: tuple[Decoder, Tokenizer], chat: bool) -> None:
    config = TranslateConfig(shots=2, max_tokens=5, batch_size=2, resamples=50, chat=chat)
    result = translate(model, PAIRS, config)
    assert result.systems == ("model, 2-shot", "model, 0-shot")
    assert result.sources == tuple(source for source, _ in PAIRS[2:]) and result.examples == tuple(PAIRS[:2])
    for shots, own in ((2, result.translations[0]), (0, result.translations[1])):
        for source, text in zip(result.sources, own, strict=True):
            if chat:
                from yeoul.text.chat import render_ids

                ids = render_ids(model[1], turns([*PAIRS[:shots], (source, "")], LANGUAGES), add_generation_prompt=True)
                stops: tuple[str, ...] = ()
            else:
                from yeoul.infer.engine import prompt_ids

                ids, stops = prompt_ids(model[1], pattern(PAIRS[:shots], source, LANGUAGES)), ("\n",)
            from yeoul.infer.engine import run
            from yeoul.infer.params import SamplingParams

            (alone,) = run(*model, [ids], SamplingParams(temperature=0, max_tokens=5, stop=stops))
            assert text == module.first_line(alone.text)
    other = translate(model, PAIRS, TranslateConfig(shots=2, shots_b=2, max_tokens=5, chat=chat, chat_b=not chat))
    assert other.translations[0] == result.translations[0] and len(set(other.systems)) == 2
    assert "points of chrF" in result.verdict.en and result.table().count("\n") == 2


def test_an_endpoint_is_asked_in_turns(
    endpoint: str, model: tuple[Decoder, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    result = translate(f"{endpoint}#small", [(s, "") for s, _ in PAIRS[2:]], SMALL, against=model, examples=PAIRS[:2])
    assert result.translations[0] == ("비가!", "나무가!", "밤이다.!") and result.scores == () and result.sentences == ()
    first = _Server.asked[0]
    assert (first["path"], first["key"], first["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
    assert first["messages"] == turns([*PAIRS[:2], (PAIRS[2][0], "")], LANGUAGES)
    assert (first["temperature"], first["max_tokens"]) == (0, 5)


def test_an_endpoint_that_fails_is_one_sentence(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, model: tuple[Decoder, Tokenizer]
) -> None:
    asking = module.Asking(examples=(), languages=LANGUAGES, chat=True, max_tokens=5)
    monkeypatch.setattr(_Server, "status", 404)
    with pytest.raises(UserError, match="the endpoint answers 404: .*no such model"):
        module.Endpoint(endpoint, asking, 5).translate(["밤이다."])
    with pytest.raises(UserError, match="the endpoint cannot be reached"):
        module.Endpoint("http://127.0.0.1:9/v1", asking, 5).translate(["밤이다."])
    monkeypatch.setattr(_Server, "status", 200)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: '{"messages": [{"content": "a\\nb"}]}')
    with pytest.raises(UserError, match="no chat completion"):
        module.Endpoint(endpoint, asking, 5).translate(["밤이다."])


def test_what_was_stopped_goes_on(
    model: tuple[Decoder, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = translate(model, PAIRS, SMALL), tmp_path / "out"
    own, calls = module.LocalSystem.translate, []

    def stopping(self: Any, sources: Any) -> list[str]:
        calls.append(list(sources))
        if len(calls) == 2:
            raise Interrupted(2)
        return own(self, sources)

    monkeypatch.setattr(module.LocalSystem, "translate", stopping)
    with pytest.raises(Interrupted):
        translate(model, PAIRS, SMALL, out=out)
    with (out / "results.jsonl").open("a") as file:
        file.write('{"system": 0, "sent')  # torn by a kill
    result = translate(model, PAIRS, SMALL, out=out)
    assert calls == [
        ["비가 온다.", "나무가 크다."],
        ["밤이다."],
        ["밤이다."],
        ["비가 온다.", "나무가 크다."],
        ["밤이다."],
    ]
    assert result.translations == whole.translations and result.scores == whole.scores
    assert json.loads((out / "translate.json").read_text())["sentences"][2]["source"] == "밤이다."
    with pytest.raises(UserError, match="another way of asking"):
        translate(model, PAIRS, TranslateConfig(shots=2, max_tokens=6), out=out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_text("")
    with pytest.raises(UserError, match="not that of a translation"):
        translate(model, PAIRS, SMALL, out=tmp_path / "other")


def test_what_is_no_pair_is_one_sentence(tmp_path: Path, model: tuple[Decoder, Tokenizer]) -> None:
    source, target, empty = tmp_path / "a.ko", tmp_path / "a.en", tmp_path / "empty"
    source.write_text("하나\n\n셋\n\n", encoding="utf-8-sig")
    target.write_text("one\ntwo\nthree\n", encoding="utf-8")
    empty.write_text("\n\n")
    assert aligned(source, target) == [("하나", "one"), ("셋", "three")]
    assert aligned(source, None) == [("하나", ""), ("셋", "")]
    target.write_text("one\n", encoding="utf-8")
    for file, other, said in (
        (source, target, "not aligned: 3 lines against 1"), (empty, None, "the file is empty"),
        (tmp_path / "none", None, "cannot be read: No such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            aligned(file, other)
    table = tmp_path / "t.tsv"
    table.write_text("ko\ten\n하나\tone\n", encoding="utf-8")
    assert from_table(str(table), ("ko", "en")) == [("하나", "one")]
    with pytest.raises(UserError, match="a pair has two"):
        from_table(str(table), ("ko",))
    with pytest.raises(UserError, match="2 examples asked for, but 1 there"):
        translate(model, PAIRS[:1], SMALL)
    with pytest.raises(UserError, match="no sentence to translate"):
        translate(model, PAIRS[:2], SMALL)
    with pytest.raises(UserError, match="some sentences have a reference"):
        translate(model, [*PAIRS, ("끝", "")], SMALL)
    with pytest.raises(UserError, match="both systems are the same model with 0 examples"):
        translate(model, PAIRS, TranslateConfig(shots=0))
    with pytest.raises(UserError, match="--shots is -1"):
        TranslateConfig(shots=-1)
    with pytest.raises(UserError, match="conversations need translations"):
        write_dialogs(aligned(source, None), tmp_path / "d.jsonl", LANGUAGES)


def test_the_command_leaves_a_page_and_dialogs_that_can_be_learned(
    model: tuple[Decoder, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = tmp_path / "model", tmp_path / "t.tsv"
    save_folder(*model, folder)
    table.write_text("ko\ten\n" + "".join(f"{a}\t{b}\n" for a, b in PAIRS), encoding="utf-8")
    data = ["--data", str(table), "--columns", "ko", "en"]
    command = ["translate", str(folder), *data, "--shots", "2", "--max-tokens", "5", "--resamples", "50"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert ", 2-shot" in printed.out and "report.html" in printed.out + printed.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Examples in the prompt" in [text for _, text in seen(page, "en")]
    assert "프롬프트에 든 예시" in [text for _, text in seen(page, "ko")]
    for text in foreign(page, "ko"):  # but names, and sacrebleu's signature
        words = set(re.findall("[A-Za-z]+", text.replace(tmp_path.name, "")))
        assert words <= OURS or text.startswith("sacrebleu") or text in dict(PAIRS).values(), text
    assert "나무가 크다." in page
    command_in_page = re.search(
        r"yeoul (translate [^\n<]*)", (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    )
    assert command_in_page and main(shlex.split(command_in_page[1])) == 0  # all is known: it finds the same folder
    assert "6 of 6 translations are there already" in "".join(capsys.readouterr())
    assert all((tmp_path / "out" / name).is_file() for name in ("report.md", "report.ko.md", "translate.json"))
    assert main([*command, "--dialogs", str(tmp_path / "d.jsonl")]) == 0
    tuned = yeoul.FinetuneConfig.of(epochs=1, batch_size=2, context=128, val_fraction=0.2, eval_every=0, save_every=0)
    result = yeoul.finetune(str(folder), str(tmp_path / "d.jsonl"), tuned, device="cpu")
    assert result.model is not None
    assert main(["translate", str(folder), "--target", str(table)]) == 2
    assert "give --source and --target, or --data" in capsys.readouterr().err
