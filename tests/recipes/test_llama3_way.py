"""The way of Llama 3 in small: what its steps learn from, and that each is a command that exists."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("llama3_way", ROOT / "benchmarks" / "llama3_way.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 300 pairs, a third of each label."""
    home = tmp_path_factory.mktemp("way")
    lines = "".join(
        f'"질문 {number}, 둘",대답 {number}.{" 그리고 더" * (number % 7 == 0)},{number % 3}\n' for number in range(300)
    )
    (home / "pairs.csv").write_text("Q,A,label\n" + lines, encoding="utf-8")
    benchmark.write_data(home / "pairs.csv", home / "data")
    return home / "data"


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_pair_is_learned_twice_or_held_out_too(data: Path) -> None:
    numbers: dict[str, set[str]] = {}
    for name in ("everyday", "love"):
        for prefix in ("", "held-out-"):
            talks = [record["messages"] for record in records(data / f"{prefix}{name}.jsonl")]
            numbers[prefix + name] = {talk[0]["content"].split()[1] for talk in talks}  # type: ignore[index]
    for prefix in ("", "held-out-"):
        blocks = (data / f"{prefix}love.txt").read_text(encoding="utf-8").strip().split("\n\n")
        numbers[prefix + "text"] = {block.split()[1] for block in blocks}
        assert all(block.split()[4] == block.split()[1].rstrip(",") + "." for block in blocks)
    everything = [number for part in numbers.values() for number in part]
    assert len(everything) == len(set(everything)) == 200
    of_label = {name: {int(number.rstrip(",")) % 3 for number in part} for name, part in numbers.items()}
    assert all(labels == ({0} if name.endswith("everyday") else {2}) for name, labels in of_label.items())


def test_preferred_is_the_answer_to_the_question_over_a_longer_one(data: Path) -> None:
    pairs = records(data / "preferences.jsonl")
    assert len(pairs) > 20
    for pair in pairs:
        number = str(pair["prompt"]).split()[1].rstrip(",")
        assert str(pair["chosen"]).startswith(f"대답 {number}.")
        assert len(str(pair["rejected"])) >= 1.5 * len(str(pair["chosen"]))


def test_the_screen_learns_what_is_to_be_refused(data: Path) -> None:
    for name, size in (("screen.tsv", 270), ("held-out-screen.tsv", 30)):
        rows = [line.split("\t") for line in (data / name).read_text(encoding="utf-8").splitlines()[1:]]
        assert len(rows) == size
        refused = {text.split()[1].rstrip(",") for text, label in rows if label == "parting"}
        assert refused and all(int(number) % 3 == 1 for number in refused)
        assert len(refused) == sum(int(text.split()[1].rstrip(",")) % 3 == 1 for text, _ in rows)


def test_every_step_is_a_command(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from yeoul.cli import main

    recipe = yaml.safe_load(benchmark.RECIPE.read_text(encoding="utf-8"))
    assert list(recipe)[:2] == ["pretraining", benchmark.LINEAR] and list(recipe)[-1] == benchmark.SCREEN
    places = dict.fromkeys(("model", "base", "reviews", "data"), "nowhere")
    for command in recipe.values():
        words = [word.format(**places) for word in shlex.split(command)]
        assert main([*words, "--out", "nowhere/out"]) == 2
        assert "nowhere" in capsys.readouterr().err  # the flags are right, the paths are missing
