"""`yeoul doctor` and `yeoul info`: what they say, and that it is true."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from yeoul import cli
from yeoul.commands.doctor import describe
from yeoul.model.checkpoint import save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes import doctor
from yeoul.recipes.caches import cache_bytes
from yeoul.recipes.info.sizes import count_parameters, skeleton_shapes

KINDS = ("softmax", "sliding", "dijiang", "hybrid")


def small(*attention: str, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = dict(
        vocab_size=50,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        window=8,
        max_position_embeddings=64,
    )
    return ModelConfig(attention=attention, **(values | changes))


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--no-measure"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["torch"] == torch.__version__
    assert report["use"]["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert report["cpu"]["usable_cores"] >= 1 and report["memory"]["available"] > 0
    assert set(report["extras"]) == {"viz", "data", "train", "hf", "gguf", "eval", "serve"}
    assert "gflops" not in report


def test_doctor_text_measures_quickly(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    rates = doctor._rates(torch.device("cpu"))
    assert time.perf_counter() - start < 10  # less than 2 s on a quiet machine
    assert rates["float32"] > 0.5 and rates["bfloat16"] > 0
    assert cli.main(["doctor", "--no-measure"]) == 0
    text = capsys.readouterr().out
    for word in ("Python", "torch", "CPU", "memory", "disk", "GPU", "driver", "will use", "[viz]"):
        assert word in text


def test_doctor_advises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"gguf": (("no_such_module",), "GGUF files")})
    monkeypatch.setattr(doctor, "_driver_version", lambda: "550.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.runtime, "memory_available", lambda: 2**30)
    report = doctor.examine(measure=False)
    advice = " ".join(report["advice"])
    assert "CUDA build of torch" in advice and "3 GiB" in advice
    assert "pip install 'yeoul[gguf]'" in advice and "no_such_module" in advice
    assert "Only Only" not in advice
    assert "does not use it" in report["use"]["why"]
    assert "missing no_such_module (GGUF files)" in describe(report)


def test_install_hint() -> None:
    assert "yeoul[viz]" in doctor.install_hint("matplotlib.pyplot")
    assert "install Yeoul again" in doctor.install_hint("rich")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_those_of_the_model(kind: str, dtype: torch.dtype) -> None:
    config = small(kind)
    fixed, growing = cache_bytes(config, dtype.itemsize)
    model = Decoder(config).to(dtype).eval()
    cache = model.new_cache(1)
    with torch.inference_mode():
        model(torch.zeros(1, 20, dtype=torch.int64), cache=cache)
    assert cache.nbytes() == fixed + 20 * growing
    assert (growing == 0) == (kind != "softmax")
    if kind == "softmax":
        assert (fixed, growing) == (0, 2 * 2 * 2 * 8 * dtype.itemsize)  # layers, K and V, KV heads, head size


def test_parameters_by_part() -> None:
    for config in (
        small("softmax", tie_embeddings=False),
        small("dijiang"),
        small("hybrid", norm="layernorm"),
    ):
        counts = count_parameters(skeleton_shapes(config))
        assert sum(counts.values()) == Decoder(config).num_parameters()
        assert counts["embeddings"] == 50 * 32
        assert ("output" in counts) == (not config.tie_embeddings)
        assert ("feature maps" in counts) == (config.attention[0] != "softmax")
        assert "other" not in counts


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Decoder(small("hybrid", "softmax"))
    save_model(model, tmp_path / "model")
    for place in (tmp_path, tmp_path / "model"):  # a run, or the model itself
        assert cli.main(["info", str(place), "--json", "--context", "100"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["parameters"]["total"] == model.num_parameters()
        sizes = report["memory"]["float32"]
        assert sizes["weights"] == 4 * model.num_parameters()
        assert sizes["cache_at_context"] == sizes["cache_fixed"] + 100 * sizes["cache_per_token"]
        assert report["tokenizer"] is None and report["context"] == 100
    assert cli.main(["info", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{model.num_parameters():,}" in text and "none in this folder" in text
    assert "1 x hybrid, 1 x softmax" in text and "window 8" in text and "at 64 tokens" in text


def test_info_of_a_damaged_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Decoder(small("softmax")), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert cli.main(["info", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert "model.safetensors" in text and text.count("\n") == 1
