"""`yeoul export --format hf`: merged adapters, other types, pickles; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import make, rms_ratio
from yeoul import cli
from yeoul.adapt.lora.api import LoraConfig, add_lora, lora_layers, merge_and_unload, save_adapter
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, save_model, stored_dtype
from yeoul.recipes.export import ExportConfig
from yeoul.recipes.export import export as yeoul_export

IDS = torch.randint(0, 99, (1, 30), generator=torch.Generator().manual_seed(0))


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(make("softmax"), tmp_path / "base")
    return tmp_path / "base"


def export(*arguments: object) -> int:
    return cli.main(["export", *map(str, arguments), "--format", "hf"])


@torch.no_grad()
def test_an_adapter_is_merged(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    add_lora(model, LoraConfig(r=4, target_modules="all-linear"))
    for layer in lora_layers(model).values():
        for name, parameter in layer.named_parameters():
            if "adapters" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(model, tmp_path / "adapter")
    assert export(folder, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged") == 0
    assert rms_ratio(load_model(tmp_path / "merged")(IDS), model(IDS)) < 1e-5
    assert rms_ratio(load_model(folder)(IDS), model(IDS)) > 1e-2
    assert rms_ratio(merge_and_unload(model)(IDS), load_model(tmp_path / "merged")(IDS)) < 1e-6


def test_another_type_and_nothing_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half"
    assert export(folder, "--dtype", "bf16", "--out", out) == 0
    assert stored_dtype(out) == torch.bfloat16 and "llama, bfloat16" in capsys.readouterr().out
    assert export(folder, "--out", out) == 2 and "--overwrite" in capsys.readouterr().err
    assert export(folder, "--out", out, "--overwrite") == 0 and stored_dtype(out) == torch.float32
    assert export(folder, "--out", folder, "--overwrite") == 2 and "is in this folder" in capsys.readouterr().err
    assert export(folder, "--dtype", "q8_0", "--out", tmp_path / "x") == 2


def test_the_function_gives_what_was_written(folder: Path, tmp_path: Path) -> None:
    done = yeoul_export(folder, tmp_path / "half", ExportConfig(format="hf", dtype="bf16"))
    assert (done.path, done.architecture, done.dtype, done.notes) == (tmp_path / "half", "llama", "bfloat16", ())
    assert done.nbytes == (tmp_path / "half" / "model.safetensors").stat().st_size
    with pytest.raises(UserError, match="exists already"):
        yeoul_export(folder, tmp_path / "half", ExportConfig(format="hf"))


@pytest.mark.parametrize("parts", [1, 2])
@torch.no_grad()
def test_a_pickle_is_read_only_when_asked_for(
    folder: Path, parts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(folder)
    wanted = model(IDS)
    (folder / "model.safetensors").unlink()
    tensors = dict(model.state_dict())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # the same memory twice, as torch.save keeps it
    names = list(tensors)
    if parts == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        half = len(names) // 2
        where = {}
        for i, part in enumerate((names[:half], names[half:])):
            torch.save({name: tensors[name] for name in part}, folder / f"pytorch_model-{i}.bin")
            where |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
        import json

        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert export(folder, "--out", tmp_path / "safe") == 2
    assert "--unsafe-pickle" in capsys.readouterr().err
    assert export(folder, "--out", tmp_path / "safe", "--unsafe-pickle") == 0
    assert torch.equal(load_model(tmp_path / "safe")(IDS), wanted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "safe"]


def test_code_in_a_pickle_is_never_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harmful(tmp_path / "harm")}, folder / "pytorch_model.bin")
    assert export(folder, "--out", tmp_path / "safe", "--unsafe-pickle") == 2
    error = capsys.readouterr().err
    assert "pytorch_model.bin" in error and error.count("\n") == 1
    assert not (tmp_path / "harm").exists() and not (tmp_path / "safe").exists()
    shutil.copy(folder / "config.json", folder / "pytorch_model.bin")
    assert export(folder, "--out", tmp_path / "safe", "--unsafe-pickle") == 2


def test_a_model_with_adapters_is_not_saved_as_a_folder(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    add_lora(model, LoraConfig(r=2, target_modules=("q_proj",)))
    with pytest.raises(ValueError, match="merge_and_unload"):
        save_model(model, tmp_path / "out")


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_what_is_not_finite_is_named_and_nothing_is_written(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the model itself, and in an adapter that is merged into it."""
    if kind == "gguf":
        pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
    model = load_model(folder)
    add_lora(model, LoraConfig(r=4, target_modules="all-linear"))
    save_adapter(model, tmp_path / "adapter")
    spoil(tmp_path / "adapter" / "adapter_model.safetensors", "layers.1.mlp.up_proj.lora_B.weight")
    out, command = tmp_path / "out", ["export", str(folder), "--format", kind, "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--adapter", str(tmp_path / "adapter")]) == 2
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    spoil(folder / "model.safetensors", "layers.0.self_attn.k_proj.weight")
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "model.layers.0.self_attn.k_proj.weight" in error and "not finite" in error and error.count("\n") == 1
    assert not out.exists()
    with pytest.raises(UserError, match="not finite"):
        broken = load_model(folder)
        add_lora(broken, LoraConfig(r=4, target_modules="all-linear"))
        next(iter(lora_layers(broken).values())).adapters["default"].B.data.fill_(float("nan"))
        save_adapter(broken, tmp_path / "other")


def test_numbers_beyond_float16_are_refused_in_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder / "model.safetensors", "layers.0.self_attn.k_proj.weight", 1e5)
    assert export(folder, "--dtype", "f16", "--out", tmp_path / "half") == 2
    assert "f16 cannot hold" in capsys.readouterr().err and not (tmp_path / "half").exists()
    assert export(folder, "--dtype", "bf16", "--out", tmp_path / "half") == 0


def spoil(file: Path, ending: str, value: float = float("nan")) -> None:
    tensors = load_file(file)
    next(tensor for name, tensor in tensors.items() if name.endswith(ending))[0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
