"""Classifiers that transformers wrote: what their logits mean is followed, as its pipeline does, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from folders import write_small_folder
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.infer.screen import Screen
from yeoul.model.classifier_folder import load_sequence_classifier, save_classifier
from yeoul.model.heads import ClassificationHead, SequenceClassifier
from yeoul.recipes.classify import load_classifier

TEXTS = ["강가를 걸어요", "산에 가요", "밥"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with its tokenizer."""
    return write_small_folder(tmp_path_factory.mktemp("base"), TEXTS * 3, vocab_size=280)


def make(base: Path, folder: Path, labels: int, **config: Any) -> Path:
    """A classifier with so many labels, and with these values in config.json; None removes one."""
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(labels)
    tensors = {name: t for name, t in load_file(folder / "model.safetensors").items() if name != "lm_head.weight"}
    save_file(tensors | {"score.weight": torch.randn(labels, 32)}, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    names = {str(n): f"가{n}" for n in range(labels)}
    values |= {"architectures": ["LlamaForSequenceClassification"], "id2label": names, **config}
    values["label2id"] = {name: int(number) for number, name in names.items()}
    (folder / "config.json").write_text(json.dumps({key: v for key, v in values.items() if v is not None}))
    return folder


def run(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[str]:
    capsys.readouterr()
    texts = [word for text in TEXTS for word in ("--text", text)]
    assert main(["classify", str(folder), *texts, "--device", "cpu", "--dtype", "float32", *flags]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("labels", "problem", "key"),
    [
        (3, None, "probabilities"), (3, "single_label_classification", "probabilities"),
        (3, "multi_label_classification", "probabilities"), (1, None, "probabilities"), (2, None, "probabilities"),
        (1, "multi_label_classification", "probabilities"), (1, "regression", "values"), (3, "regression", "values"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_transformers(
    labels: int, problem: str | None, key: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make(base, tmp_path / "m", labels, problem_type=problem)
    theirs = transformers.pipeline("text-classification", str(folder), device="cpu", top_k=None, dtype=torch.float32)
    lines = [json.loads(line) for line in run(folder, capsys, "--json")]
    for text, line in zip(TEXTS, lines, strict=True):
        wanted = {found["label"]: found["score"] for found in theirs([text])[0]}
        assert line["text"] == text and line[key] == pytest.approx(wanted, abs=2e-5)
    assert ("labels" in lines[0]) == (labels == 1 and problem != "regression" or "multi" in (problem or ""))


def test_several_labels_or_none(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(base, tmp_path / "m", 3, problem_type="multi_label_classification")
    found = [json.loads(line)["probabilities"] for line in run(folder, capsys, "--json")]
    for threshold in (0.02, 0.5, 0.98):
        flags = [] if threshold == 0.5 else ["--threshold", str(threshold)]
        for line, named in zip(run(folder, capsys, *flags), found, strict=True):
            holds = [name for name in sorted(named, key=lambda name: -named[name]) if named[name] >= threshold]
            label, number, _ = line.split("\t")
            assert label == (", ".join(holds) or "-") and float(number) == pytest.approx(max(named.values()), abs=1e-4)
    table = tmp_path / "t.tsv"
    table.write_text("text\tlabel\n강\t가0\n산\t가1\n")
    assert main(["classify", str(folder), str(table), "--scores", "--device", "cpu"]) == 2
    assert "gives several labels" in capsys.readouterr().err
    with pytest.raises(UserError, match="do not exclude one another"):
        Screen(load_classifier(folder, device="cpu"), "가0")


def test_values_are_printed_as_they_are(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(base, tmp_path / "m", 2, problem_type="regression")
    values = [json.loads(line)["values"] for line in run(folder, capsys, "--json")]
    for line, named in zip(run(folder, capsys), values, strict=True):
        label, number, _ = line.split("\t")
        assert label == "가0, 가1" and [float(n) for n in number.split(", ")] == pytest.approx(
            [*named.values()], abs=1e-4
        )
    assert main(["classify", str(folder), "--text", "강", "--threshold", "0.3", "--device", "cpu"]) == 2
    assert "has no labels that could hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"problem_type": "ranking"}, "problem_type 'ranking' is not known"),
        ({"problem_type": "single_label_classification", "id2label": {"0": "하나"}, "labels": 1}, "one label alone"),
        ({"num_labels": 5}, "num_labels of config.json is 5"),
        ({"id2label": {"0": "하나", "1": "하나", "2": "둘"}}, "two classes"),
        ({"id2label": {"1": "하나", "2": "둘", "3": "셋"}}, "does not name the 3 classes"),
        ({"architectures": ["LlamaForTokenClassification"]}, "does not classify whole texts"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "made for pairs of texts"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    config: dict[str, Any], complaint: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        load_classifier(make(base, tmp_path / "m", **{"labels": 3, **config}), device="cpu")


def test_labels_have_the_order_of_their_numbers(base: Path, tmp_path: Path) -> None:
    folder = make(base, tmp_path / "m", 3, id2label={"2": "둘", "0": "영", "1": "하나"}, num_labels=3)
    assert load_classifier(folder, device="cpu").labels == ["영", "하나", "둘"]
    folder = make(base, tmp_path / "none", 3, id2label=None, num_labels=3)
    assert load_classifier(folder, device="cpu").labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize("meaning", ["one", "several", "values"])
def test_the_meaning_is_saved(meaning: Any, base: Path, tmp_path: Path) -> None:
    model = load_sequence_classifier(make(base, tmp_path / "m", 2))
    save_classifier(SequenceClassifier(model.decoder, ClassificationHead(32, ["a", "b"]), meaning), tmp_path / "again")
    assert load_sequence_classifier(tmp_path / "again").meaning == meaning
