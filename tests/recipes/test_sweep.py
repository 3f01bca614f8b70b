"""`yeoul.sweep`: a grid measured, stopped, gone on with; never mixed with another's results; its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from report.reading import NAMES, foreign, seen
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.fingerprint import fingerprint
from yeoul.recipes.saving import save_folder
from yeoul.recipes.sweep import run as module
from yeoul.recipes.sweep.config import SweepConfig
from yeoul.recipes.sweep.prompts import BUILT_IN, prompts_of
from yeoul.recipes.sweep.run import sweep
from yeoul.report import plots
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer
from yeoul.train.interrupt import Interrupted

TEXT = "강가에 작은 마을이 있었다. 아이들은 물가에서 놀았다. 지영이는 모자를 샀다.\n" * 40
PROMPTS = ["강가에", ("지영이는 모자를 샀다. 답:", "모자")]
SMALL = SweepConfig(temperature=(0.5, 1.5), top_p=(0.5, 1.0), top_k=(0,), min_p=(0.0,), max_tokens=6, batch_size=4)


def build(kind: str, tokenizer: Tokenizer, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    shape: dict[str, Any] = dict(hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=96, window=4)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, attention=(kind,), initializer_range=0.2, **shape)
    return Decoder(config).eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer([TEXT], TokenizerConfig(vocab_size=320), folder)
    return Tokenizer.load(folder)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)  # drawing is tested once


def values(result: yeoul.SweepResult) -> dict[str, Any]:
    """What was found, without the time that it took."""
    return result.as_dict() | {"seconds": 0, "model": ""}


@pytest.mark.parametrize("kind", ["softmax", "hybrid"])
def test_a_sweep_in_memory(kind: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = build(kind, tokenizer)
    judge = build("softmax", tokenizer, seed=5), tokenizer
    result = sweep((model, tokenizer), PROMPTS, SMALL, judge=judge)
    assert [str(s.setting) for s in result.scores] == [
        "temperature 0.5, top-p 0.5", "temperature 0.5", "temperature 1.5, top-p 0.5", "temperature 1.5",
    ]  # fmt: skip
    assert all(s.perplexity and s.judge_perplexity and s.recall is not None for s in result.scores)
    assert result.best in result.edge and result.best is not None and str(result.best.setting) in result.why.en
    assert result.scores[0].kept < result.scores[1].kept, "a lower p keeps fewer tokens"
    assert result.greedy.greedy == 1 and len(result.texts) == 6 and len(result.texts[result.best.setting]) == 2
    assert list(tmp_path.iterdir()) == []
    assert result.table().count("\n") == 8 and "judge" in result.table()


def test_settings_do_not_depend_on_the_grid(tokenizer: Tokenizer) -> None:
    """A setting alone, and among others in one batch: the same texts and the same score."""
    model = build("hybrid", tokenizer), tokenizer
    many = sweep(model, PROMPTS, SMALL)
    one = sweep(model, PROMPTS, SweepConfig(temperature=(1.5,), top_p=(0.5,), top_k=(0,), min_p=(0.0,), max_tokens=6))
    assert one.scores[0] == many.scores[2] and one.texts[one.scores[0].setting] == many.texts[one.scores[0].setting]


def test_a_stopped_sweep_goes_on(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    model = build("softmax", tokenizer), tokenizer
    whole = sweep(model, PROMPTS, SMALL)
    calls, real = [], module.score_setting

    def stopping(setting: Any, *args: Any, **more: Any) -> Any:
        if len(calls) == 3:  # greedy, plain and a setting
            raise Interrupted(2)
        calls.append(setting)
        return real(setting, *args, **more)

    monkeypatch.setattr(module, "score_setting", stopping)
    out = tmp_path / "sweep"
    with pytest.raises(Interrupted):
        sweep(model, PROMPTS, SMALL, out=out)
    assert len((out / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"score": {"setting": {"temper')  # torn by a kill
    again: list[Any] = []
    monkeypatch.setattr(module, "score_setting", lambda s, *a, **m: (again.append(s), real(s, *a, **m))[1])
    told: list[str] = []
    result = sweep(model, PROMPTS, SMALL, out=out, say=told.append)
    assert values(result) == values(whole)
    assert len(again) == 3 and "1 of 4 settings are already measured." in told
    assert json.loads((out / "sweep.json").read_text(encoding="utf-8"))["why"]["en"] == result.why.en
    sweep(model, PROMPTS, SMALL, out=out)
    assert len(again) == 3, "nothing is measured twice"
    larger = SweepConfig.of(**{**vars(SMALL), "temperature": (0.5, 1.5, 2.0)})
    assert len(sweep(model, PROMPTS, larger, out=out).scores) == 6 and len(again) == 5


def test_results_of_another_sweep_are_not_mixed_in(tokenizer: Tokenizer, tmp_path: Path, no_plots: None) -> None:
    model, out = (build("softmax", tokenizer), tokenizer), tmp_path / "sweep"
    tiny = SweepConfig(temperature=(1.0,), top_p=(1.0,), top_k=(0,), min_p=(0.0,), max_tokens=3)
    sweep(model, PROMPTS, tiny, out=out)
    for other, prompts, config, judge, what in (
        (build("softmax", tokenizer, seed=1), PROMPTS, tiny, None, "model or dtype"),
        (model[0], ["아이들은"], tiny, None, "prompts"),
        (model[0], PROMPTS, SweepConfig.of(**{**vars(tiny), "max_tokens": 4}), None, "max-tokens"),
        (model[0], PROMPTS, SweepConfig.of(**{**vars(tiny), "seed": 4}), None, "seed"),
        (model[0], PROMPTS, tiny, model, "second model"),
    ):
        with pytest.raises(UserError, match=rf"another {what}.*--overwrite"):
            sweep((other, tokenizer), prompts, config, judge=judge, out=out)
    changed = build("softmax", tokenizer)
    with torch.no_grad():
        changed.output_weight[7, 3] += 0.01
    assert fingerprint(changed, tokenizer) != fingerprint(*model)
    assert len(sweep((changed, tokenizer), PROMPTS, tiny, out=out, overwrite=True).scores) == 1
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("precious", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not that of a sweep"):
            sweep(model, PROMPTS, tiny, out=tmp_path / "thesis", overwrite=overwrite)
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["a.txt"]


def test_the_command_and_its_page(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny").mkdir()
    save_folder(build("hybrid", tokenizer), tokenizer, tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("강가에\n지영이는 모자를 샀다. 답:\t모자\n", encoding="utf-8")
    out = tmp_path / "runs" / "sweep"
    line = ["sweep", str(tmp_path / "tiny"), "--prompts", str(tmp_path / "prompts.txt"), "--out", str(out)]
    grid = ["--temperature", "0.5", "1.5", "--top-p", "0.5", "1", "--top-k", "0", "--min-p", "0", "--max-tokens", "6"]
    assert main([*line, *grid, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "→" in said.out and "Use temperature" in said.out and "report.html" in said.out
    assert "4/4 (100 %)" in said.err
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1 and "What top-p does" in page and "yeoul sweep" in page
    shown = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["nucleus"]
    given = " ".join([candidate["text"] for candidate in shown["candidates"]] + [shown["prompt"]])
    names = "k BLEU self distinct gram min model samples judge sweep temperature greedy tiny " + given
    for language in ("en", "ko"):
        assert len(seen(page, language)) > 80
        for text in foreign(page, language):
            words = re.findall(r"[가-힣]+" if language == "en" else r"[A-Za-z]+", text)
            examples = text.startswith(("For example:", "예:"))
            assert examples or not [word for word in words if word not in NAMES and word not in names], text
    assert "![" in (out / "report.ko.md").read_text(encoding="utf-8")
    assert main([*line, *grid, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recommended"]["temperature"] in (0.5, 1.5)


def test_prompts_from_files(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a\\nb", "answer": "c"}\n\n{"prompt": "d"}\n', encoding="utf-8")
    assert [(p.text, p.answer) for p in prompts_of(file)] == [("a\nb", "c"), ("d", "")]
    assert len(prompts_of(None)) == len(BUILT_IN) == 8
    for content, what in (
        ('{"answer": "c"}', r'no object with a text "prompt".*p\.jsonl:1'),
        ("{", r"cannot be read as JSON.*p\.jsonl:1"),
        ('{"prompt": "a", "answer": 3}', r'"answer" is no text'),
        ("", "no prompt"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=what):
            prompts_of(file)
    (tmp_path / "p.txt").write_text("\tanswer\n", encoding="utf-8")
    with pytest.raises(UserError, match="an answer, but no prompt"):
        prompts_of(tmp_path / "p.txt")
    with pytest.raises(UserError, match="no prompt"):
        prompts_of([])


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"temperature": ()}, "--temperature"), ({"temperature": (0.0,)}, "--temperature"),
        ({"top_p": (1.2,)}, "--top-p"), ({"top_k": (-1,)}, "--top-k"), ({"min_p": (2.0,)}, "--min-p"),
        ({"max_tokens": 0}, "--max-tokens"), ({"samples": 0}, "--samples"), ({"batch_size": 0}, "--batch-size"),
    ],
)  # fmt: skip
def test_bad_values_name_the_flag(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        SweepConfig(**changes)


def test_the_default_grid_has_48_settings() -> None:
    assert len(list(SweepConfig().grid())) == 48
    assert len(list(SweepConfig(temperature=(1.0, 1.0)).grid())) == 12


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    save_folder(Decoder(ModelConfig(vocab_size=40, hidden_size=16, num_layers=1, num_heads=2)), None, tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        sweep(tmp_path, PROMPTS, SMALL)
