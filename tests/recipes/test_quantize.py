"""Quantizing as a function: values come back, nothing is printed, the folder is optional, defaults are one object."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import yeoul
from folders import write_small_folder
from yeoul.adapt.quantize import quantize_model
from yeoul.adapt.quantize_config import QuantizationConfig
from yeoul.commands import quantize as command
from yeoul.config import parse_flags
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import quantized_modules
from yeoul.recipes.quantize.config import QuantizeConfig
from yeoul.recipes.quantize.run import quantize
from yeoul.text.tokenizer import Tokenizer

SHORT = QuantizeConfig.of(bits=4, group_size=32, calibration_tokens=64, eval_tokens=128, speed=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["강물은 천천히 흐른다. 여울은 빠르게 흐른다.", "오늘은 비가 온다. 내일은 맑다."] * 20
    return write_small_folder(tmp_path_factory.mktemp("models") / "small", texts, vocab_size=310)


def test_a_model_comes_back_and_nothing_is_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = quantize(folder, SHORT, device="cpu")
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []
    assert result.folder is None and result.scored and result.after["bytes"] < result.before["bytes"]
    assert "tokens_per_second" not in result.after and result.after["perplexity"] > 1
    assert {layer.bits for _, layer in quantized_modules(result.model)} == {4, 6}, "embeddings and head too"
    assert result.tokenizer is not None
    assert yeoul.generate(result.model, result.tokenizer, "강물은", max_tokens=2, temperature=0) is not None


def test_the_folder_that_is_given_holds_it(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = quantize(folder, SHORT, out=tmp_path / "low", device="cpu", say=said.append)
    assert result.folder == tmp_path / "low" and (tmp_path / "low" / "quantize.json").is_file()
    assert any(line.startswith("Memory") for line in said)
    with pytest.raises(UserError, match="exists already"):
        quantize(folder, SHORT, out=tmp_path / "low")
    with pytest.raises(UserError, match="the model itself"):
        quantize(folder, SHORT, out=folder.parent, overwrite=True)


def test_the_defaults_are_those_of_the_command() -> None:
    parsed = parse_flags(command.Config, ["model"], program="yeoul quantize")
    assert (
        parsed is not None and parsed.settings == QuantizeConfig() and parsed.settings.weights == QuantizationConfig()
    )
    assert QuantizationConfig() == QuantizationConfig(bits=8, method="gptq", embeddings=True, head=True)
    assert QuantizationConfig.rounded() == QuantizationConfig(method="rtn", embeddings=False, head=False)


def test_a_method_that_needs_text_says_so(folder: Path) -> None:
    model, _ = yeoul.load(folder, device="cpu")
    with pytest.raises(UserError, match="gptq needs text"):
        quantize_model(model, QuantizationConfig())
    assert next(quantized_modules(model), None) is None


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_a_model_of_bf16_is_computed_in_what_the_machine_multiplies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: torch.dtype
) -> None:
    """Products of bfloat16 are many times slower than those of float32 where the processor has none."""
    save_model(load_model(folder).to(torch.bfloat16), tmp_path / "half")
    Tokenizer.load(folder).save(tmp_path / "half")
    seen, hidden = set(), Decoder.embed
    monkeypatch.setattr("yeoul.runtime.has_native_bf16", lambda device: products == torch.bfloat16)

    def watched(self: Decoder, *values: object) -> torch.Tensor:
        seen.add(self.model.embed_tokens.weight.dtype if hasattr(self.model.embed_tokens, "weight") else None)
        return hidden(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "embed", watched)
    quantize(tmp_path / "half", SHORT, device="cpu")
    assert seen - {None} == {products}
