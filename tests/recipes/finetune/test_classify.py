"""`yeoul finetune --task classify` and `yeoul classify`: learned, saved, opened elsewhere, used."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from folders import write_small_folder
from yeoul.cli import main
from yeoul.data.labelled import read_labelled
from yeoul.recipes.classify import load_classifier

FILLER = "영화 배우 음악 장면 이야기 시간 사람 하루 여름 바다 그리고 정말 아주 조금 다시".split()
KEYS = {"긍정": ("최고다", "재미있다", "좋다"), "부정": ("최악이다", "지루하다", "나쁘다")}
COMMON = "--device cpu --dtype float32 --eval-every 0".split()
RUN = "--epochs 4 --val-fraction 0.2 --save-every 20 --keep-last 9 --word-dropout 0.1 --lm-weight 0.1 --lr 3e-3".split()


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts whose label hangs on one word among others, with a few words behind it."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        label = draw.choice(list(KEYS))
        words = draw.choices(FILLER, k=draw.randint(1, 7))
        words.insert(draw.randint(0, len(words)), draw.choice(KEYS[label]))
        found.append((" ".join(words), label))
    return found


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("document\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A softmax model, a hybrid one, and tables."""
    home = tmp_path_factory.mktemp("home")
    texts = [text for text, _ in sentences(200, 1)]
    write_small_folder(home / "softmax", texts)
    write_small_folder(home / "hybrid", texts, attention=("hybrid",))
    write_table(home / "train.tsv", sentences(320, 2))
    write_table(home / "test.tsv", sentences(60, 3))
    return home


def finetune(home: Path, model: str, out: str, *flags: str) -> int:
    return main(["finetune", str(home / model), "--task", "classify", "--data", str(home / "train.tsv"),
                 "--out", str(home / out), *COMMON, *flags])  # fmt: skip


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    """A run of the softmax model."""
    assert finetune(home, "softmax", "run", *RUN) == 0
    return home / "run"


def scores(model: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert main(["classify", str(model), str(table), "--scores", "--json", "--device", "cpu"]) == 0
    values: dict[str, float] = json.loads(capsys.readouterr().out)
    return values


def test_labels_are_learned_and_reported(home: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = json.loads((trained / "classification.json").read_text())
    report = json.loads((trained / "finetune.json").read_text())
    assert held_out["accuracy"] > 0.9 and held_out["accuracy"] == report["after"]["accuracy"]
    assert held_out["texts"] == sum(map(sum, held_out["confusion"])) and held_out["labels"] == ["긍정", "부정"]
    assert scores(trained, home / "test.tsv", capsys)["accuracy"] > 0.9
    assert main(["classify", str(trained), str(home / "test.tsv"), "--scores", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("60 texts: accuracy ") and "truth / predicted" in shown


def test_transformers_opens_the_folder_with_the_same_logits(home: Path, trained: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = [record.text for record in read_labelled(home / "test.tsv").records]
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained / "model").eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        theirs = model(**batch).logits
    ours = load_classifier(trained, device="cpu").logits(texts)
    assert (ours - theirs).abs().max() < 1e-5
    assert model.config.id2label == {0: "긍정", 1: "부정"} and model.config.pad_token_id == tokenizer.pad_token_id


def test_it_goes_on_where_it_stopped(home: Path, trained: Path) -> None:
    again = home / "again"
    shutil.copytree(trained, again)
    steps = sorted(again.glob("checkpoints/step-*"))
    assert len(steps) >= 3
    for folder in steps[1:]:
        shutil.rmtree(folder)
    shutil.rmtree(again / "model")
    (again / "checkpoints" / "best.json").unlink(missing_ok=True)
    assert finetune(home, "softmax", "again", *RUN) == 0
    first, second = (load_file(run / "model" / "model.safetensors") for run in (trained, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_linear_models_mean_pooling_and_adapters(method: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--pooling", "mean", "--epochs", "8", "--val-data", str(home / "test.tsv"), "--head-dropout", "0.1"]
    flags += ["--method", method, "--lr", "5e-3" if method == "full" else "1e-2"]
    assert finetune(home, "hybrid", method, *flags) == 0
    shown = capsys.readouterr().out
    report = json.loads((home / method / "finetune.json").read_text())
    assert report["after"]["accuracy"] > 0.9 and "mean of all tokens' states" in shown
    assert scores(home / method, home / "test.tsv", capsys)["accuracy"] == report["after"]["accuracy"]
    classifier = load_classifier(home / method, device="cpu")
    texts = ["정말 최고다", "", "아주 지루하다 하루", " "]
    one_by_one = torch.cat([classifier.logits([text], batch_size=1) for text in texts])
    assert torch.allclose(classifier.logits(texts), one_by_one, atol=1e-5)


def test_texts_from_everywhere(
    home: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["정말 최고다", "아주 지루하다 하루"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts)))
    capsys.readouterr()
    sources = (["--text", texts[0], "--text", texts[1]], [str(tmp_path / "texts.txt")], [])
    printed = []
    for source in sources:
        assert main(["classify", str(trained), *source, "--json", "--device", "cpu"]) == 0
        printed.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert printed[0] == printed[1] == printed[2]
    assert [(line["text"], line["label"]) for line in printed[0]] == [(texts[0], "긍정"), (texts[1], "부정")]
    for line in printed[0]:
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert line["probability"] == max(line["probabilities"].values())
    out = tmp_path / "out.tsv"
    assert main(["classify", str(trained), "--text", texts[1], "--out", str(out), "--device", "cpu"]) == 0
    label, probability, text = out.read_text().rstrip("\n").split("\t")
    assert (label, text) == ("부정", texts[1]) and float(probability) > 0.5
    formula = f"=1+1 {texts[1]}"
    for name, cell in (("out.tsv", f"'{formula}"), ("out.txt", formula)):  # a spreadsheet would compute it
        assert (
            main(["classify", str(trained), "--text", formula, "--out", str(tmp_path / name), "--device", "cpu"]) == 0
        )
        assert (tmp_path / name).read_text().rstrip("\n").split("\t")[2] == cell


@pytest.mark.parametrize(
    ("rows", "flags", "complaint"),
    [
        ([("글", "하나"), ("말", "하나")], [], 'all texts have the label "하나"'),
        ([(f"글 {n}", f"이름{n}") for n in range(30)], [], "do not look like classes"),
        ([("글", "하나"), ("말", "둘"), ("", "둘")], [], "bad.tsv:4"),
        ([("글", "하나"), ("말", "둘")], ["--label-column", "stars"], 'there is no column "stars"'),
        ([("글", "하나"), ("말", "둘")], ["--context", "999"], "longer than the model's 64 positions"),
        ([("글", "하나"), ("말", "둘")], ["--val-data", "VAL"], 'no text to train on has the label "긍정"'),
        ([("글", "하나"), ("말", "둘")], ["--word-dropout", "1"], "--word-dropout"),
    ],
)
def test_what_cannot_be_learned_is_said(
    rows: list[tuple[str, str]], flags: list[str], complaint: str, home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = write_table(tmp_path / "bad.tsv", rows)
    flags = [str(home / "test.tsv") if flag == "VAL" else flag for flag in flags]
    out = tmp_path / "out"
    code = main(["finetune", str(home / "softmax"), "--task", "classify", "--data", str(data), "--out", str(out),
                 "--device", "cpu", *flags])  # fmt: skip
    assert code == 2 and complaint in capsys.readouterr().err and not out.exists()


def test_a_rare_label_stays_in_training(home: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "few.tsv", [*sentences(20, 4), ("하나뿐", "드문")])
    out = tmp_path / "out"
    assert main(["finetune", str(home / "softmax"), "--task", "classify", "--data", str(data), "--out", str(out),
                 "--val-fraction", "0.9", "--epochs", "1", *COMMON]) == 0  # fmt: skip
    assert json.loads((out / "classification.json").read_text())["labels"] == ["긍정", "드문", "부정"]


def test_other_folders_are_no_classifiers(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(home / "softmax"), "--text", "글"]) == 2
    assert "no classification head" in capsys.readouterr().err
    assert main(["classify", str(home / "softmax"), "a.txt", "--text", "글"]) == 2
    assert main(["classify", str(home / "softmax"), "--scores"]) == 2
