"""`yeoul inspect` and `yeoul.inspect_attention`: from a folder and a text to values and a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import yeoul
from models import rms_ratio
from yeoul import cli
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes import inspect_attention as recipe
from yeoul.recipes.inspect_attention import InspectConfig, inspect_attention
from yeoul.recipes.saving import save_folder
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

TEXT = "강가에 작은 마을이 있었다. 뷁! 아이들은 물가에서 놀았다."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A softmax model, a hybrid one, and one with another tokenizer."""
    out = tmp_path_factory.mktemp("models")
    shape = dict(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, max_position_embeddings=64)
    for name, size, extra in (
        ("softmax", 300, {}),
        ("hybrid", 300, dict(attention=("softmax", "hybrid"), window=5, sinks=1, exact=(0, 3))),
        ("other", 310, {}),
    ):
        words = TEXT.replace("뷁", "")  # which is left to bytes
        tokenizer = train_tokenizer([words * 60], TokenizerConfig(vocab_size=size), out / f"{name}-tokenizer")
        torch.manual_seed(0)
        save_folder(Decoder(ModelConfig(vocab_size=size, **shape, **extra)), tokenizer, out / name)  # type: ignore[arg-type]
    return out


def test_values_come_back_and_nothing_is_printed(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = inspect_attention(home / "hybrid", TEXT, InspectConfig(head="1.3"), against=home / "softmax", device="cpu")
    assert capfd.readouterr() == ("", "")
    tokenizer = Tokenizer.load(home / "hybrid")
    assert list(result.ids) == tokenizer.framing.prompt(tokenizer.encode(TEXT)) and result.note is None
    assert "뷁 (2/3)" in map(str, result.tokens)
    length = len(result.ids)
    assert [model.name for model in result.models] == ["hybrid", "softmax"]
    assert [layer.kind for layer in result.models[0].layers] == ["softmax", "hybrid"]
    assert result.models[0].layers[1].weights.shape == (4, length, length)
    assert set(result.models[0].statistics[1][0].shares) == {"window", "sinks", "exact", "state"}
    assert result.steps is not None and result.steps.q.shape == (length, 4)
    values = json.loads(json.dumps(result.as_dict()))
    assert values["models"][1]["layers"][0]["heads"][3]["total"] == pytest.approx(1, abs=1e-4)
    assert result.command.startswith("yeoul inspect ") and "--head 1.3" in result.command


@pytest.mark.parametrize("name", ["softmax", "hybrid"])
def test_weights_in_eight_bits(name: str, home: Path, tmp_path: Path) -> None:
    """Quantized models compute in bfloat16, and are looked at so: the weights are those of the whole model nearly."""
    model = load_model(home / name)
    quantize_model(model, QuantizationConfig.rounded(bits=8))
    save_folder(model, Tokenizer.load(home / name), tmp_path)
    found = inspect_attention(tmp_path, TEXT, InspectConfig(head="1.3"), against=home / name, device="cpu")
    for quantized, whole in zip(*(model.layers for model in found.models), strict=True):
        torch.testing.assert_close(quantized.weights, whole.weights, rtol=0.1, atol=0.02)
    assert found.steps is not None
    assert rms_ratio(found.steps.output, found.steps.weights @ found.steps.v) < 1e-5


def test_a_gguf_file(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
    file = tmp_path / "model.gguf"
    yeoul.export(home / "softmax", file, yeoul.ExportConfig(dtype="f32"))
    found = inspect_attention(file, TEXT, against=home / "softmax", device="cpu")
    assert [model.name for model in found.models] == ["model", "softmax"]
    for ours, whole in zip(*(model.layers for model in found.models), strict=True):
        torch.testing.assert_close(ours.weights, whole.weights, rtol=1e-4, atol=1e-6)


def test_models_from_memory(home: Path) -> None:
    loaded = yeoul.load(home / "softmax", device="cpu")
    result = yeoul.inspect_attention(loaded, TEXT, against=loaded)
    assert [model.name for model in result.models] == ["model (1)", "model (2)"] and result.command == ""
    assert torch.equal(result.models[0].layers[1].weights, result.models[1].layers[1].weights)
    assert '"overlap": 1.0' in result.html()


def test_the_teacher_of_a_run(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(home / "hybrid")
    (run / "linearize.json").write_text("{}", encoding="utf-8")
    (run / "config.yaml").write_text(f"model: {home / 'softmax'}\n", encoding="utf-8")
    result = inspect_attention(run, TEXT, against="teacher", device="cpu")
    assert [model.name for model in result.models] == ["run", "softmax"] and f"--against {home}" in result.command
    with pytest.raises(UserError, match="its teacher is not known"):
        inspect_attention(home / "softmax", TEXT, against="teacher", device="cpu")


def test_foreign_words_on_the_page(home: Path, tmp_path: Path) -> None:
    """Half a surrogate pair, markup, and what turns the direction of a line around."""
    found = inspect_attention(home / "softmax", "강\udcff가 </script><b>\u202e\n", device="cpu")
    page = found.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "\u202e" not in page and "<b>" not in page
    assert inspect_attention(home / "softmax", "가", device="cpu").html(), "one token has nothing to look back at"


def test_long_texts_are_cut_and_it_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = inspect_attention(home / "softmax", TEXT * 20, InspectConfig(max_tokens=10), device="cpu")
    assert (
        len(long.ids) == 10 and long.note is not None and "first 10 " in long.note.en and "--max-tokens" in long.note.ko
    )
    assert long.text_tokens > 64 and "first 10 " in long.html()
    assert len(TEXT) * 20 < recipe.LONGEST_SHOWN and long.command
    assert not inspect_attention(home / "softmax", TEXT * 40, InspectConfig(max_tokens=10), device="cpu").command
    bounded = inspect_attention(home / "softmax", TEXT * 20, device="cpu")
    assert len(bounded.ids) == 64 and bounded.note is not None and "positions" in bounded.note.en
    monkeypatch.setattr(recipe, "MOST_WEIGHTS", 8 * 20 * 20 // 2)
    small = inspect_attention(home / "softmax", TEXT * 20, device="cpu")
    assert len(small.ids) == 20 and small.note is not None and "size of the page" in small.note.en
    fewer = inspect_attention(home / "softmax", TEXT * 20, InspectConfig(layers="1"), device="cpu")
    assert len(fewer.ids) == 28 and [layer.layer for layer in fewer.models[0].layers] == [1]


def test_the_command_writes_a_page(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    arguments = ["inspect", str(home / "hybrid"), "--text", TEXT, "--against", str(home / "softmax"), "--head", "1.0"]
    assert cli.main([*arguments, "--out", str(page), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "hybrid" in out and "state" in out and str(page) in err
    assert "뷁" in page.read_text(encoding="utf-8")
    assert cli.main([*arguments, "--out", str(page), "--device", "cpu", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--head", "3"], "LAYER.HEAD"),
        (["--head", "2.0"], "2 layers with 4 heads"),
        (["--head", "1.4"], "2 layers with 4 heads"),
        (["--layers", "0,7"], "layer 7 is not there"),
        (["--layers", "first"], "neither all nor numbers"),
        (["--max-tokens", "0"], "at least 1"),
        (["--text", ""], "the text is empty"),
        (["--against", "other"], "different tokenizers"),
        (["--out", "."], "a folder, not a file"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    flags: list[str], words: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    text = [] if "--text" in flags else ["--text", TEXT]
    assert cli.main(["inspect", "softmax", *text, *flags, "--device", "cpu"]) == 2
    assert words in " ".join(capsys.readouterr().err.split()) and not (home / "attention.html").exists()


def test_settings_name_themselves() -> None:
    assert InspectConfig.of(layers="0, 2", head="3.1").numbers() == {0, 2}
    with pytest.raises(UserError, match="--head"):
        InspectConfig.of(head="a.b")
