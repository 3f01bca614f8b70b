"""Files of weights: how many descriptors they take, what becomes of their pages, and of numbers at odd places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.tensor_files import read_tensors, stored_tensors, unreadable

SOURCE = Path(__file__).resolve().parents[2] / "src"
LIMITED = """
import resource, sys
import torch
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_config, load_model
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
held = [open("/dev/null") for _ in range(int(sys.argv[3]))]
try:
    load_config(sys.argv[1])
    model = load_model(sys.argv[1])
    print(len(model.state_dict()), float(model(torch.arange(5)[None]).double().sum()))
except UserError as error:
    print(error)
"""


def deep(layers: int = 40) -> Decoder:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(vocab_size=64, hidden_size=16, num_heads=2, intermediate_size=32)
    return Decoder(ModelConfig(num_layers=layers, initializer_range=0.1, **settings)).eval()


def limited(folder: Path, descriptors: int, held: int = 0) -> str:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(descriptors), str(held)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
@torch.no_grad()
def test_hundreds_of_tensors_open_with_few_descriptors(shard_bytes: int, tmp_path: Path) -> None:
    model = deep()
    save_model(model, tmp_path, shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 5) is (shard_bytes < 10**6)
    count, total = limited(tmp_path, 64).split()
    assert int(count) > 300
    assert float(total) == pytest.approx(float(model(torch.arange(5)[None]).double().sum()), abs=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="counts on /dev/null and on Linux's descriptors")
def test_too_many_open_files_are_not_called_damage(tmp_path: Path) -> None:
    save_model(deep(2), tmp_path)
    said = limited(tmp_path, 64, held=61)
    assert "too many open files" in said and "ulimit -n" in said
    assert "damaged" not in said and "download" not in said


def test_what_cannot_be_opened_is_told_by_its_reason(tmp_path: Path) -> None:
    assert "too many open files" in str(unreadable(Exception("Too many open files (os error 24)"), tmp_path))
    assert "Permission denied" in str(unreadable(PermissionError(13, "Permission denied"), tmp_path))


def test_tensors_are_views_of_their_own_memory_and_writing_changes_no_file(tmp_path: Path) -> None:
    values = {"a": torch.arange(3, dtype=torch.int8), "b": torch.randn(5000), "c": torch.randn(7, 3).bfloat16()}
    save_file(values, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    found = dict(read_tensors(stored_tensors(tmp_path)))
    for name, tensor in found.items():
        assert torch.equal(tensor, values[name]) and tensor.untyped_storage().nbytes() == tensor.nbytes
    found["a"].add_(1)
    found["c"].zero_()
    del found["b"]  # its pages go; the neighbours' stay as they are
    assert torch.equal(found["a"], values["a"] + 1) and not found["c"].any()
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_go_with_the_tensor(tmp_path: Path) -> None:
    def resident() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) * 1024

    megabytes = 24
    names = [f"t{i}" for i in range(4)]
    save_file({name: torch.randn(megabytes * 2**18) for name in names}, tmp_path / "model.safetensors")
    stored = stored_tensors(tmp_path)
    start, most, kept = resident(), 0, []
    for _, tensor in read_tensors(stored):
        kept.append(tensor.half())
        most = max(most, resident() - start)
    assert most < 1.7 * megabytes * 2**20, "one of them at a time"


def test_numbers_that_do_not_lie_as_their_type_wants_are_copied(tmp_path: Path) -> None:
    """Such a file is allowed: offsets follow one another whatever the types are."""
    import json

    parts = {"q": torch.arange(3, dtype=torch.int8), "w": torch.randn(4, 4)}
    header, data = {}, b""
    for name, tensor in parts.items():
        octets = tensor.numpy().tobytes()
        kind = {torch.int8: "I8", torch.float32: "F32"}[tensor.dtype]
        header[name] = {
            "dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(octets)]
        }  # fmt: skip
        data += octets
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = dict(read_tensors(stored_tensors(tmp_path)))
    assert torch.equal(found["w"], parts["w"]) and found["w"].data_ptr() % 4 == 0


def with_tensors(folder: Path, change: Any) -> Path:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("named,chosen", [("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, None)])
@torch.no_grad()
def test_weights_of_several_types_are_brought_to_one(named: str | None, chosen: Any, tmp_path: Path) -> None:
    import json

    import yeoul
    from yeoul.model.checkpoint import stored_dtype

    save_model(deep(2).bfloat16(), tmp_path)
    with_tensors(
        tmp_path, lambda t: t.update({name: t[name].float() for name in t if "norm" in name or "embed" in name})
    )
    described = json.loads((tmp_path / "config.json").read_text())
    described = {key: value for key, value in described.items() if key != "dtype"} | ({"dtype": named} if named else {})
    (tmp_path / "config.json").write_text(json.dumps(described))
    for model in (load_model(tmp_path), yeoul.load(tmp_path, device="cpu")[0]):
        assert len({p.dtype for p in model.parameters()}) == 1
        assert bool(model(torch.arange(5)[None]).isfinite().all())
    wanted = chosen or torch.bfloat16  # that of most bytes
    assert stored_dtype(tmp_path) == load_model(tmp_path).dtype == wanted
    assert {p.dtype for p in load_model(tmp_path, dtype=torch.float16).parameters()} == {torch.float16}
    save_model(load_model(tmp_path), tmp_path / "again")
    assert len({place.dtype for place in stored_tensors(tmp_path / "again").values()}) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_folder_is_written_of_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    model = deep(2)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(UserError, match=r"model.layers.1.mlp.down_proj.weight.* not finite"):
        save_model(model, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_every_writer_of_tensors_refuses_them(tmp_path: Path) -> None:
    from yeoul.model.classifier_folder import save_head
    from yeoul.model.finite import check_finite
    from yeoul.model.heads import ClassificationHead

    head = ClassificationHead(16, ["a", "b"], "last")
    head.score.weight.data[1, 3] = float("nan")
    with pytest.raises(UserError, match="score.weight.* not finite"):
        save_head(head, tmp_path / "head")
    fused = Decoder(ModelConfig(
        vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, norm="layernorm", positions="learned", mlp="gelu",
        attention_bias=True, mlp_bias=True, family="gpt2",
    ))  # fmt: skip
    fused.layers[0].self_attn.q_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match="transformer.h.0.attn.c_attn.weight.* merged"):
        check_finite(fused, tmp_path, "merged")
    with pytest.raises(UserError, match="transformer.h.0.attn.c_attn.weight.* not saved"):
        save_model(fused, tmp_path / "fused")
