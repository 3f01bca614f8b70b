"""`yeoul embed` and `yeoul finetune --task embed`: vectors in order, nearest texts, and pairs that are learned."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from folders import write_small_folder
from yeoul.cli import main
from yeoul.data.labelled import read_pairs
from yeoul.evaluate.similarity import cosines, spearman
from yeoul.recipes.embed import load_embedder
from yeoul.text.tokenizer import Tokenizer

THEMES = ("바다 파도 배 섬", "시험 학교 책 연필", "빵 우유 사과 밥", "기차 버스 길 역")
COMMON = "--device cpu --dtype float32 --save-every 0 --eval-every 0 --epochs 3".split()


def sentence(draw: random.Random, theme: int) -> str:
    return " ".join(draw.choices(THEMES[theme].split(), k=3) + draw.choices("그리고 정말 아주 오늘".split(), k=2))


def pairs(count: int, seed: int) -> list[tuple[str, str, int]]:
    """Two texts each, and whether they are about the same."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        first = draw.randrange(4)
        second = first if draw.random() < 0.5 else draw.randrange(4)
        found.append((sentence(draw, first), sentence(draw, second), 5 * (first == second)))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    data = pairs(400, 1)
    write_small_folder(home / "softmax", [text for pair in data for text in pair[:2]])
    write_small_folder(home / "dijiang", [text for pair in data for text in pair[:2]], attention=("dijiang",))
    for name, rows in (("train.tsv", data), ("dev.tsv", pairs(100, 2))):
        lines = "".join(f"{a}\t{b}\t{score}\n" for a, b, score in rows)
        (home / name).write_text("sentence1\tsentence2\tscore\n" + lines, encoding="utf-8")
    alike = [{"anchor": a, "positive": b} for a, b, score in data if score]
    (home / "alike.jsonl").write_text("\n".join(json.dumps(pair) for pair in alike))
    return home


@pytest.fixture(scope="module")
def texts(home: Path) -> Path:
    """Texts of very different lengths, one of them empty."""
    draw = random.Random(7)
    lines = [" ".join(sentence(draw, n % 4) for _ in range(1 + n % 5)) for n in range(37)]
    lines[5] = ""
    (home / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return home / "texts.txt"


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_keep_the_order_whatever_the_batches(pooling: str, home: Path, texts: Path, tmp_path: Path) -> None:
    saved = {}
    for size in (1, 4, 64):
        out = tmp_path / f"{size}.npy"
        assert main(["embed", str(home / "dijiang"), "--data", str(texts), "--out", str(out), "--pooling", pooling,
                     "--batch-size", str(size), "--device", "cpu"]) == 0  # fmt: skip
        saved[size] = np.load(out)
    assert saved[1].shape == (37, 32) and saved[1].dtype == np.float32
    assert np.abs(saved[1] - saved[4]).max() < 1e-5 and np.abs(saved[1] - saved[64]).max() < 1e-5
    assert np.allclose(np.linalg.norm(saved[1], axis=1), 1, atol=1e-5)
    embedder = load_embedder(home / "dijiang", pooling=pooling, device="cpu", normalize=False)  # type: ignore[arg-type]
    line = texts.read_text().splitlines()[9]
    ids = torch.tensor([embedder.tokenizer.encode(line)])
    with torch.no_grad():
        hidden = embedder.model.hidden(ids)[0]
    wanted = hidden[-1] if pooling == "last" else hidden.mean(0)
    assert torch.allclose(embedder.embed([line])[0], wanted, atol=1e-5)
    assert cosines(saved[1][9:10], wanted[None].numpy())[0] == pytest.approx(1, abs=1e-6)


def test_parquet_holds_texts_and_vectors(
    home: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    model, out = str(home / "softmax"), tmp_path / "v.parquet"
    assert main(["embed", model, "--data", str(texts), "--out", str(out), "--device", "cpu"]) == 0
    table = parquet.read_table(out)
    lines = texts.read_text().splitlines()
    assert table.column("text").to_pylist() == lines
    vectors = np.array(table.column("vector").to_pylist(), dtype=np.float32)
    assert np.allclose(vectors, load_embedder(model, device="cpu").embed(lines).numpy(), atol=1e-6)

    assert main(["embed", model, "--data", str(texts), "--out", str(tmp_path / "v.npy"), "--device", "cpu"]) == 0
    capsys.readouterr()
    found = []
    for source in (["--data", str(out)], ["--data", str(texts)],
                   ["--data", str(texts), "--vectors", str(tmp_path / "v.npy")]):  # fmt: skip
        assert main(["embed", model, *source, "--query", lines[12], "--top", "3", "--device", "cpu"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] == found[2] and len(found[0].splitlines()) == 3
    assert found[0].splitlines()[0] == f"1.0000\t13\t{lines[12]}"


def finetune(home: Path, out: str, *flags: str) -> dict[str, dict[str, float]]:
    model = "dijiang" if "linear" in out else "softmax"
    flags = ("--lr", "1e-2" if "lora" in out else "3e-3", *COMMON, *flags)
    code = main(["finetune", str(home / model), "--task", "embed", "--out", str(home / out), *flags])
    assert code == 0
    report: dict[str, dict[str, float]] = json.loads((home / out / "finetune.json").read_text())
    return report


def dev_spearman(model: Path, home: Path) -> float:
    records = read_pairs(home / "dev.tsv").records
    embedder = load_embedder(model, device="cpu")
    first, second = (embedder.embed([pair.texts[way] for pair in records]).numpy() for way in (0, 1))
    return spearman(cosines(first, second), np.array([pair.score for pair in records]))


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("cosent", []),
        ("cosine", ["--pair-loss", "cosine", "--pooling", "last"]),
        ("linear-lora", ["--method", "lora"]),
    ],
)
def test_scored_pairs_are_learned(out: str, flags: list[str], home: Path) -> None:
    data = ["--data", str(home / "train.tsv"), "--val-data", str(home / "dev.tsv")]
    report = finetune(home, out, *data, *flags)
    assert report["after"]["spearman"] > max(0.7, report["before"]["spearman"])
    assert dev_spearman(home / out, home) == pytest.approx(report["after"]["spearman"], abs=1e-6)


def test_pairs_find_each_other(home: Path) -> None:
    report = finetune(home, "infonce", "--data", str(home / "alike.jsonl"), "--val-fraction", "0.1")
    assert report["after"]["loss"] < report["before"]["loss"]
    assert dev_spearman(home / "infonce", home) > 0.7
    assert dev_spearman(home / "softmax", home) < 0.7


def test_sentence_transformers_knows_the_folder(home: Path) -> None:
    """The files that it reads, and what they say: it is no dependency of ours."""
    folder = home / "cosent" / "model"
    if not folder.is_dir():
        test_scored_pairs_are_learned("cosent", [], home)
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    described = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert described["pooling_mode_mean_tokens"] and described["word_embedding_dimension"] == 32


SHORT = ["--piece-length", "1", "--whiten", "--batch-size", "32"]


@pytest.mark.parametrize(
    ("out", "flags", "width"),
    [
        ("white", ["--freeze-model"], 32),
        ("white-embeddings", ["--freeze-model", "--states", "embeddings", "--pair-loss", "cosent"], 32),
        ("white-embeddings-too", ["--states", "embeddings"], 32),
        ("white-both", ["--freeze-model", "--states", "both", "--word-dropout", "0.2"], 64),
        ("white-lora", ["--method", "lora"], 32),
    ],
)
def test_whitened_vectors_are_learned(out: str, flags: list[str], width: int, home: Path) -> None:
    data = ["--data", str(home / "train.tsv"), "--val-data", str(home / "dev.tsv")]
    report = finetune(home, out, *data, *SHORT, *flags)
    assert report["after"]["spearman"] > max(0.45, report["before"]["spearman"] + 0.2)
    assert dev_spearman(home / out, home) == pytest.approx(report["after"]["spearman"], abs=1e-4)
    embedder = load_embedder(home / out, device="cpu")
    assert embedder.embed(["바다 파도", ""]).shape == (2, width) and embedder.width == width
    assert embedder.tokenizer.pieces("바다 파도") == list("바다▁파도")
    weights = {name: (p - q).abs().max() > 0 for (name, p), (_, q) in zip(
        embedder.model.named_parameters(), load_embedder(home / "softmax", device="cpu").model.named_parameters(),
        strict=True)} if "lora" not in out else {}  # fmt: skip
    moved = {name for name, changed in weights.items() if changed}
    if "--freeze-model" in flags:
        assert not moved
    elif out == "white-embeddings-too":
        assert moved == {"model.embed_tokens.weight"}


def test_the_folder_says_all_that_makes_the_vectors(home: Path) -> None:
    """transformers' model and tokenizer, and by hand the mean, the layer and the length."""
    transformers = pytest.importorskip("transformers")
    folder = home / "white" / "model"
    if not folder.is_dir():
        test_whitened_vectors_are_learned("white", ["--freeze-model"], 32, home)
    modules = json.loads((folder / "modules.json").read_text())
    assert [(m["type"], m["path"]) for m in modules] == [
        ("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling"),
        ("sentence_transformers.models.Dense", "2_Dense"), ("sentence_transformers.models.Normalize", "3_Normalize"),
    ]  # fmt: skip
    assert json.loads((folder / "2_Dense" / "config.json").read_text()) == {
        "in_features": 32, "out_features": 32, "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }  # fmt: skip
    layer = load_file(folder / "2_Dense" / "model.safetensors")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["바다 파도 섬", "그리고 정말 우유", "새 낱말"]
    vectors = load_embedder(folder, device="cpu", dtype="float32").embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        by_hand = layer["linear.weight"] @ states.mean(0) + layer["linear.bias"]
        assert torch.allclose(vector, by_hand / by_hand.norm(), atol=1e-4)
    for other in ("white-embeddings", "white-both"):
        assert not (home / other / "model" / "modules.json").exists()


@pytest.mark.parametrize("flags", [["--freeze-model", "--states", "embeddings"], ["--method", "lora"]])
def test_stopped_and_resumed_is_bitwise_the_same(flags: list[str], home: Path, tmp_path: Path) -> None:
    data = ["--data", str(home / "train.tsv"), "--val-data", str(home / "dev.tsv"), "--keep-last", "99"]
    command = ["finetune", str(home / "softmax"), "--task", "embed", *data, *SHORT, *flags]
    command += "--device cpu --dtype float32 --save-every 4 --eval-every 0 --epochs 1".split()
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*command, "--out", str(whole)]) == 0
    shutil.copytree(whole, stopped)
    steps = sorted((stopped / "checkpoints").glob("step-*"))
    assert len(steps) > 2
    for left in (*steps[1:], stopped / "model", stopped / "adapter"):
        shutil.rmtree(left, ignore_errors=True)
    (stopped / "finetune.json").unlink()
    assert main([*command, "--out", str(stopped)]) == 0
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert any(path.parts[-2] == "2_Dense" for path in files)
    for path in files:
        one, other = load_file(whole / path), load_file(stopped / path)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), path


@pytest.mark.parametrize("out", ["white-lora", "white-embeddings"])
def test_export_keeps_how_vectors_are_made(out: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"white-lora": ["--method", "lora"], "white-embeddings": ["--freeze-model", "--states", "embeddings"]}[out]
    if not (home / out / "finetune.json").is_file():
        finetune(home, out, "--data", str(home / "train.tsv"), *SHORT, *flags)
    assert main(["export", str(home / out), "--format", "hf", "--out", str(home / f"{out}-alone")]) == 0
    texts = ["바다 파도 섬", "그리고 정말 우유"]
    one, other = (load_embedder(home / name, device="cpu").embed(texts) for name in (out, f"{out}-alone"))
    assert torch.allclose(one, other, atol=1e-4)
    assert (home / f"{out}-alone" / "modules.json").is_file() == (out == "white-lora")
    if out == "white-lora":
        return
    (home / out / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "median"}')
    assert main(["export", str(home / out), "--format", "hf", "--out", str(home / f"{out}-more")]) == 0
    assert "'median' is not supported" in capsys.readouterr().out


def test_the_layer_has_a_learning_rate_of_its_own(home: Path) -> None:
    finetune(home, "rates", "--data", str(home / "train.tsv"), *SHORT, "--states", "embeddings", "--head-lr", "3e-2")
    state = next((home / "rates" / "checkpoints").glob("step-*")) / "state" / "trainer.json"
    groups = json.loads(state.read_text())["optimizer"]
    rates = {name: group["settings"]["lr"] for group in groups for name in group["parameters"]}
    layer, table = rates.pop("extra.layers.0.linear.weight"), rates.pop("model.embed_tokens.weight")
    assert layer == pytest.approx(10 * table) and set(rates) == {"extra.layers.0.linear.bias"}


def test_short_pieces_of_a_classifier(home: Path) -> None:
    rows = [{"text": sentence(random.Random(n), n % 4), "label": "빵" if n % 4 == 2 else "다른 것"} for n in range(40)]
    (home / "labelled.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    code = main(["finetune", str(home / "softmax"), "--task", "classify", "--data", str(home / "labelled.jsonl"),
                 "--piece-length", "1", "--out", str(home / "classifier"), "--lr", "3e-3", *COMMON])  # fmt: skip
    assert code == 0
    assert Tokenizer.load(home / "classifier").pieces("바다 파도") == list("바다▁파도")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--freeze-model"], "has nothing to train (--freeze-model); add --whiten"),
        (["--whiten", "--freeze-model", "--method", "lora"], "no adapter to train"),
        (["--states", "embeddings", "--method", "lora"], "which the embeddings do not use"),
        (["--pair-loss", "pearson", "--batch-size", "2"], "fewer than three pairs have no correlation"),
        (["--piece-length", "0"], "--piece-length"),
        (["--head-lr", "1e-3"], "add --whiten"),
        (["--head-lr", "1e-3", "--whiten", "--freeze-model"], "give its rate as --lr"),
        (["--method", "lora", "--train-tokens"], "--task embed cannot train embeddings of tokens"),
        (["--pair-loss", "infonce"], "the pairs have scores, which infonce cannot use"),
        (["--data", "ALIKE", "--pair-loss", "cosent"], "the pairs have no scores, which cosent cannot use"),
        (["--val-data", "ALIKE"], "only one of the training and validation data has scores"),
        (["--score-column", "likeness"], 'there is no column "likeness"'),
        (["--temperature", "0"], "--temperature"),
    ],
)
def test_what_cannot_be_learned_is_said(
    flags: list[str], complaint: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(home / "alike.jsonl") if flag == "ALIKE" else flag for flag in flags]
    data = [] if "--data" in flags else ["--data", str(home / "train.tsv")]
    code = main(["finetune", str(home / "softmax"), "--task", "embed", "--out", str(tmp_path / "out"), *data, *flags])
    assert code == 2 and complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "there is nothing to do"),
        (["--out", "a.txt"], "written as .npy or .parquet"),
        (["--query", "글", "--vectors", "a.parquet"], "--vectors must be a .npy file"),
        (["--query", "글", "--vectors", "few.npy"], "does not fit 37 texts"),
        (["--query", "글", "--vectors", "wide.npy"], "have 7 numbers, but this model's have 32"),
        (["--query", "글", "--vectors", "empty.npy"], "the .npy file is damaged"),
        (["--query", "글", "--vectors", "cut.npy"], "the .npy file is damaged"),
        (["--query", "글", "--vectors", "zip.npy"], "the .npy file is damaged"),
        (["--query", "글", "--vectors", "huge.npy"], "the .npy file is damaged"),
        (["--query", "글", "--vectors", "words.npy"], "the vectors are not numbers"),
        (["--query", "글", "--vectors", "nan.npy"], "numbers that are not finite"),
        (["--query", "글", "--vectors", "none.npy"], "no such file (none.npy)"),
    ],
)
def test_wrong_requests_are_refused(
    flags: list[str], complaint: str, home: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", np.ones((3, 32), dtype=np.float32))
    np.save("wide.npy", np.ones((37, 7), dtype=np.float32))
    np.save("words.npy", np.full((37, 32), "a"))
    np.save("nan.npy", np.full((37, 32), np.nan, dtype=np.float32))
    whole = Path("few.npy").read_bytes()
    Path("empty.npy").touch()
    Path("cut.npy").write_bytes(whole[:-5])
    Path("huge.npy").write_bytes(whole.replace(b"(3, 32), }          ", b"(3000000000, 32), } "))
    np.savez("zip.npz", np.ones(3))
    Path("zip.npz").rename("zip.npy")
    assert main(["embed", str(home / "softmax"), "--data", str(texts), "--device", "cpu", *flags]) == 2
    assert complaint in capsys.readouterr().err
