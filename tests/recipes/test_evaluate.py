"""`yeoul evaluate` and `yeoul bench` on a tiny model."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

import yeoul
from models import bare_conversion
from yeoul.cli import main
from yeoul.commands import bench, evaluate
from yeoul.errors import UserError
from yeoul.evaluate.recall import RecallScore
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.bench import BenchConfig, short_names
from yeoul.recipes.bench import bench as measured
from yeoul.recipes.evaluate import EvaluateConfig, compare
from yeoul.recipes.evaluate import evaluate as evaluated
from yeoul.recipes.evaluation_report import evaluation_report
from yeoul.recipes.saving import save_folder
from yeoul.recipes.token_data import token_shards
from yeoul.report.markdown import render_markdown

TEXT = "강가에 작은 마을이 있었다. 아이들은 물가에서 놀았다.\n" * 60


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run as `yeoul pretrain` leaves it: model/ with a tokenizer, data/val."""
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    out = tmp_path_factory.mktemp("run")
    (out / "text.txt").write_text("\n\n".join(f"{n}. {TEXT}" for n in range(8)), encoding="utf-8")
    train_tokenizer([TEXT], TokenizerConfig(vocab_size=300), out / "tokenizer")
    from yeoul.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(out / "tokenizer")
    shape = dict(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=128)
    model = Decoder(ModelConfig(vocab_size=tokenizer.vocab_size, **shape))
    (out / "model").mkdir()
    save_folder(model, tokenizer, out / "model")
    token_shards(str(out / "text.txt"), out / "data", tokenizer, val_fraction=0.5)
    return out


def test_evaluate_scores_the_text_put_aside(run_folder, capsys):
    assert (
        evaluate.run(
            evaluate.Config(str(run_folder), json=True, settings=EvaluateConfig(by_position=True, max_tokens=400))
        )
        == 0
    )
    values = json.loads(capsys.readouterr().out)
    assert values["tokens"] == 400 and values["context"] == 128
    assert values["bits_per_byte"] == pytest.approx(values["loss"] * 400 / 0.6931472 / values["bytes"], rel=1e-5)
    assert sum(b["tokens"] for b in values["by_position"]) == 400


def test_mistakes_in_korean_are_counted(run_folder, capsys):
    """Of what the model writes and of the text, whose Korean is right; a random model breaks characters."""
    settings = EvaluateConfig(korean=3, new_tokens=24, max_tokens=4_000)
    assert evaluate.run(evaluate.Config(str(run_folder), settings=settings)) == 0
    said = capsys.readouterr().out
    assert "Korean, by rule" in said and "wrong particles" in said
    found = evaluated(run_folder, config=settings)
    assert found.korean["text"].wrong_particles == 0 < found.korean["text"].particles
    assert found.korean["text"].words > 0 and found.as_dict()["korean"]["text"]["particle_rate"] == 0
    assert evaluated(run_folder, config=EvaluateConfig(max_tokens=100)).korean == {}
    with pytest.raises(UserError, match="--korean"):
        EvaluateConfig(korean=-1)


def test_evaluate_prints_words(run_folder, capsys):
    config = evaluate.Config(
        str(run_folder), data=str(run_folder / "text.txt"), settings=EvaluateConfig(max_tokens=100, context=32)
    )
    assert evaluate.run(config) == 0
    assert "bits per byte" in capsys.readouterr().out


def test_evaluate_names_what_is_wrong(run_folder):
    with pytest.raises(UserError, match="longer than the model's 128 positions"):
        evaluate.run(evaluate.Config(str(run_folder), settings=EvaluateConfig(context=129)))
    with pytest.raises(UserError, match="no text to score"):
        evaluate.run(evaluate.Config(str(run_folder / "model")))
    with pytest.raises(UserError, match="--batch-size"):
        EvaluateConfig(batch_size=0)


def test_bench_measures_and_writes_json(run_folder, tmp_path, capsys):
    settings = BenchConfig(contexts=(16, 200), steps=1, turns=2)
    config = bench.Config(
        (str(run_folder), str(run_folder / "model")), settings=settings, out=tmp_path / "new" / "b.json"
    )
    assert bench.run(config) == 0
    assert "200" in capsys.readouterr().out
    values = json.loads((tmp_path / "new" / "b.json").read_text(encoding="utf-8"))
    assert len(values["records"]) == 4 and len(values["parameters"]) == 2


def test_bench_takes_models_that_are_loaded(run_folder):
    result = measured({"one": Decoder(ModelConfig(vocab_size=9, hidden_size=16, num_layers=1, num_heads=2))},
                      BenchConfig(contexts=(16,), steps=1, turns=1))  # fmt: skip
    assert result.parameters.keys() == {"one"} and result.records[0].context == 16 and "one" in result.table()


def test_bench_names_models_by_what_differs():
    assert short_names(("runs/a", "runs/b/")) == ["a", "b"]
    assert short_names(("x/a", "y/a")) == ["x/a", "y/a"]
    assert short_names(("a", "a")) == ["a (1)", "a (2)"]


def test_bench_names_what_is_wrong():
    with pytest.raises(UserError, match="--turns"):
        BenchConfig(turns=0)
    with pytest.raises(UserError, match="no model"):
        bench.Config(())


@pytest.fixture(scope="module")
def word_folder(tmp_path_factory) -> Path:
    """A model whose tokenizer has whole words, and the same linearized in OUT/linear."""
    from yeoul.adapt.linearize import convert
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    words = "강가 마을 아이 물가 하늘 구름 바람 나무 사과 노래 시장 학교 친구 겨울 여름 가을 아침 저녁 바다".split()
    lines = [" ".join(words[(i * j) % 19] for j in range(1, 10)) + ".\n" for i in range(1, 300)]
    out = tmp_path_factory.mktemp("words")
    train_tokenizer(lines, TokenizerConfig(vocab_size=340), out / "tokenizer")
    tokenizer = Tokenizer.load(out / "tokenizer")
    shape = dict(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=128)
    model = Decoder(ModelConfig(vocab_size=tokenizer.vocab_size, **shape))
    for name, saved in (("softmax", model), ("linear", convert(model, bare_conversion(window=16)))):
        (out / name).mkdir()
        save_folder(saved, tokenizer, out / name)
    (out / "text.txt").write_text("".join(lines[:60]), encoding="utf-8")
    return out


def test_evaluate_compares_a_conversion_with_its_teacher(word_folder, capsys):
    settings = dict(teacher=str(word_folder / "softmax"), data=str(word_folder / "text.txt"))
    wanted = EvaluateConfig(prompts=2, new_tokens=4, max_tokens=400)
    config = evaluate.Config(str(word_folder / "linear"), json=True, settings=wanted, **settings)
    assert evaluate.run(config) == 0
    values = json.loads(capsys.readouterr().out)
    comparison = values["comparison"]
    assert values["teacher"] == settings["teacher"] and comparison["window"] == 16 and comparison["sinks"] == 4
    by_name = {row["name"]: row for row in comparison["long_context"]["rows"]}
    assert by_name["converted"]["loss"] == pytest.approx(values["loss"], rel=1e-4)
    assert comparison["agreement"]["prompts"] == 2 and "mqar" in comparison
    assert comparison["not_measured"].keys() == {"needle"}  # nothing of 512 tokens fits
    wanted = EvaluateConfig(prompts=0, window=8, max_tokens=400)
    config = evaluate.Config(str(word_folder / "linear"), settings=wanted, **settings)
    assert evaluate.run(config) == 0
    printed = capsys.readouterr().out
    assert "the last 8 and the first 4 positions" in printed and "window only" in printed


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_evaluation_leaves_a_page(word_folder, run_folder, tmp_path, capsys, monkeypatch):
    """Every figure of the table is on it, in both languages; a second one takes its place, other folders are left."""
    text, out = str(word_folder / "text.txt"), tmp_path / "scores"
    wanted = EvaluateConfig(prompts=2, new_tokens=4, max_tokens=400, by_position=True, korean=1)
    found = evaluated(str(word_folder / "linear"), text, wanted, teacher=str(word_folder / "softmax"), out=out)
    values = json.loads((out / "evaluate.json").read_text(encoding="utf-8"))
    assert values == json.loads(json.dumps(found.as_dict()))
    page, plain, korean = ((out / name).read_text(encoding="utf-8") for name in
                           ("report.html", "report.md", "report.ko.md"))  # fmt: skip
    assert found.comparison is not None and found.comparison.long_context is not None
    for row in found.comparison.long_context.rows:
        assert all(f"{row.ratio:.4f} ×" in said for said in (page, plain, korean))
    for heading in ("Scores", "By position", "Korean, by rule", "Recall of pairs", "Free generation"):
        assert heading in plain
    for heading in ("점수", "위치별", "쌍의 회상", "규칙으로 본 한국어", "자유 생성", "잘린 교사"):
        assert heading in korean
    recall = RecallScore(method="rank", accuracy=0.75, chance=0.25, questions=8, skipped=0, stderr=0.15)
    asked = render_markdown(evaluation_report(replace(found, recall=recall), ""), [], "", "en")
    assert "75.0% ± 15.0%" in asked and "yeoul evaluate" not in asked
    (command,) = (line for line in plain.splitlines() if line.strip().startswith("yeoul evaluate"))
    assert "--by-position" in command and "--teacher" in command and "--max-tokens 400" in command
    assert main(["evaluate", str(run_folder), "--max-tokens", "100", "--out", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().err
    assert json.loads((out / "evaluate.json").read_text(encoding="utf-8"))["tokens"] == 100
    assert main(["evaluate", "nowhere", "--out", str(tmp_path / "none")]) == 2 and not (tmp_path / "none").exists()
    capsys.readouterr()
    monkeypatch.setattr("yeoul.recipes.evaluation_report.write_json", full_disk)
    assert main(["evaluate", str(run_folder), "--max-tokens", "100", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "perplexity" in shown.out and "could not be written (" in shown.err and "No space left" in shown.err
    assert main(["evaluate", str(run_folder), "--out", str(run_folder)]) == 2
    assert "not that of an evaluation" in capsys.readouterr().err


def test_models_that_are_loaded_are_compared_in_silence(word_folder, capfd):
    teacher, linear = (yeoul.load(word_folder / name, device="cpu") for name in ("softmax", "linear"))
    data, config = str(word_folder / "text.txt"), EvaluateConfig(prompts=0, max_tokens=400)
    found = compare(teacher, linear, data, config)
    assert found.window == 16 and found.long_context is not None and found.agreement is None
    alone = evaluated(linear, data, config)
    assert alone.comparison is None and alone.score.tokens == 400 and alone.as_dict()["model"] == "model"
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UserError, match="no text to score"):
        evaluated(linear)


def test_evaluate_asks_a_single_model(word_folder, capsys):
    def config(**flags):
        wanted = EvaluateConfig(max_tokens=400, **flags)
        return dict(data=str(word_folder / "text.txt"), settings=wanted)

    softmax = str(word_folder / "softmax")
    assert evaluate.run(evaluate.Config(softmax, json=True, **config(mqar=True))) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["mqar"]["cells"] and "needle" not in values and "comparison" not in values
    assert evaluate.run(evaluate.Config(softmax, **config(mqar=True))) == 0
    assert "recall of pairs (MQAR)" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing fits: 512 tokens"):
        evaluate.run(evaluate.Config(softmax, **config(needle=True)))


def test_a_teacher_with_another_tokenizer_is_refused(word_folder, run_folder):
    text = str(word_folder / "text.txt")  # data is looked at before a model is loaded
    with pytest.raises(UserError, match="different tokenizers"):
        evaluate.run(evaluate.Config(str(word_folder / "linear"), teacher=str(run_folder / "model"), data=text))
    with pytest.raises(UserError, match="--sinks"):
        EvaluateConfig(sinks=-1)
