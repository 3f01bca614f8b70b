"""`yeoul chat --screen` with a classifier that was trained for it, and the benchmark of its errors."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import ModuleType

import pytest

from folders import write_small_folder
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.recipes.chat import Chat
from yeoul.recipes.screen import ScreenOptions

ROOT = Path(__file__).resolve().parents[2]
WORDS = "강 산 바다 하늘 나무 여름 겨울 친구 음악 시장 이야기 하루".split()


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts with "독약" among the words, label 1, and without."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 5))
        if number % 2:
            words.insert(draw.randint(0, len(words)), "독약")
        found.append((" ".join(words), str(number % 2)))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a classifier of poison, and texts that it has not seen."""
    home = tmp_path_factory.mktemp("home")
    write_small_folder(home / "model", [text for text, _ in rows(150, 1)], vocab_size=310, max_position_embeddings=256)
    for name, count, seed in (("train", 240, 2), ("test", 60, 3)):
        lines = "".join(f"{text}\t{label}\n" for text, label in rows(count, seed))
        (home / f"{name}.tsv").write_text(f"text\tlabel\n{lines}", encoding="utf-8")
    flags = "--epochs 3 --batch-size 16 --lr 5e-3 --val-fraction 0 --eval-every 0 --device cpu --dtype float32".split()
    arguments = ["--task", "classify", "--data", str(home / "train.tsv"), "--out", str(home / "screen"), *flags]
    assert main(["finetune", str(home / "model"), *arguments]) == 0
    return home


def test_chat_refuses_what_the_classifier_finds(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Chat, "_fitting_prompt", lambda chat, messages: asked.append(messages[-1]["content"]) or [1])
    monkeypatch.setattr(
        sys, "stdin", TextIOWrapper(BytesIO("강과 산 친구\n독약 바다 하루\n".encode()), encoding="utf-8")
    )
    flags = ["--screen", str(home / "screen"), "--screen-label", "1", "--screen-threshold", "0.6"]
    capsys.readouterr()
    assert main(["chat", str(home / "model"), *flags, "--max-tokens", "3", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert asked == ["강과 산 친구"]  # what is refused is not even read
    assert 'The question is not answered: the screen classified it as "1" (probability' in shown.err

    screen = ScreenOptions(screen=str(home / "screen"), screen_label=("1",)).open("cpu")
    assert screen is not None and screen.threshold == 0.5
    assert screen([{"role": "user", "content": "하늘"}], "시장 독약 이야기") is not None
    assert screen([{"role": "user", "content": "하늘"}], "시장 이야기") is None
    assert ScreenOptions().open() is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--screen-label", "1"), "there is no classifier to screen with"),
        (("--screen-threshold", "0.5"), "name it: --screen FOLDER"),
        (("--screen", "screen"), "give one of the classifier's: 0, 1"),
        (("--screen", "screen", "--screen-label", "x"), 'the classifier has no label "x"'),
        (("--screen", "screen", "--screen-label", "1", "--screen-threshold", "2"), "must be above 0 and at most 1"),
        (("--screen", "model", "--screen-label", "1"), "no classifier"),
    ],
)
def test_one_clear_sentence(
    flags: tuple[str, ...], words: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(["chat", "model", "--device", "cpu", *flags]) == 2
    assert words in capsys.readouterr().err


def test_labels_that_do_not_exclude_one_another_are_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"problem_type": "multi_label_classification"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="do not exclude one another"):
        ScreenOptions(screen=str(tmp_path), screen_label=("1",)).open("cpu")


# -- the benchmark


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("safety_screen", ROOT / "benchmarks" / "safety_screen.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_counts_what_chat_would_refuse(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "screen.json"
    arguments = ["--data", str(home / "test.tsv"), "--screen-label", "1", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["safety_screen.py", str(home / "screen"), *arguments])
    _benchmark().main()
    result, said = json.loads(out.read_text(encoding="utf-8")), capsys.readouterr().out
    assert (result["texts"], result["harmful"], result["refused"]) == (60, 30, ["1"])
    assert "60 texts, 30 of them to be refused, 0 left out." in said and "| threshold |" in said
    at_half = next(row for row in result["thresholds"] if row["threshold"] == 0.5)
    screen = ScreenOptions(screen=str(home / "screen"), screen_label=("1",)).open("cpu")
    assert screen is not None
    wrong = {"0": 0, "1": 0}
    for text, label in rows(60, 3):
        wrong[label] += (screen([{"role": "user", "content": text}], None) is not None) != (label == "1")
    assert at_half["false_positives"]["errors"] == wrong["0"] and at_half["false_negatives"]["errors"] == wrong["1"]
    assert at_half["false_positives"]["cases"] == at_half["false_negatives"]["cases"] == 30
    assert sum(wrong.values()) < 6
