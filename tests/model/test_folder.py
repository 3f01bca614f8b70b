"""What headers say of a model is what the model itself says; of every family see test_families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from folders import assert_headers_say_enough
from models import KINDS, make
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.model.checkpoint import save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.folder import describe
from yeoul.model.state_updates.registry import STATE_UPDATES


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, tmp_path: Path) -> None:
    save_model(make(kind), tmp_path)
    assert_headers_say_enough(tmp_path)


def small(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = dict(
        vocab_size=64, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, max_position_embeddings=32,
        attention=("hybrid", "dijiang"), window=4,
    )  # fmt: skip
    return ModelConfig(**(values | changes))


@pytest.mark.parametrize("update", STATE_UPDATES.names)
@pytest.mark.parametrize("name", FEATURE_MAPS.names)
def test_every_map_and_update(name: str, update: str, tmp_path: Path) -> None:
    if FEATURE_MAPS[name].signed and not STATE_UPDATES[update].takes_signed:
        pytest.skip("only the delta rule takes both signs")
    save_model(Decoder(small(feature_map={"name": name}, state_update=update)), tmp_path)
    assert_headers_say_enough(tmp_path)


def test_the_layer_of_the_authors(tmp_path: Path) -> None:
    config = small(
        attention="dijiang-official", num_kv_heads=4, norm="layernorm", mlp="gelu", attention_bias=True, mlp_bias=True
    )
    save_model(Decoder(config), tmp_path)
    assert_headers_say_enough(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 32), (4, 64), (4, 32)])
def test_few_bits(bits: int, group: int, tied: bool, tmp_path: Path) -> None:
    model = Decoder(small(attention=("softmax", "hybrid"), attention_bias=True, tie_embeddings=tied))
    parameters = model.num_parameters()
    quantize_model(model, QuantizationConfig.rounded(bits=bits, group_size=group, embeddings=True, head=True))
    save_model(model, tmp_path)
    assert_headers_say_enough(tmp_path)
    described = describe(tmp_path)
    assert described is not None and skeleton(described.config).num_parameters() == parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("change", ["none", "zero", "nan", "last", "rows", "type"])
def test_a_head_beside_tied_embeddings(change: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Tied if its numbers are those of the embeddings, else a head of its own."""
    save_model(Decoder(small()).to(dtype), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    table[3, 5] = 0.0
    head = table.clone()
    if change == "zero":
        head[3, 5] = -0.0
    elif change == "nan":
        head[3, 5] = table[3, 5] = float("nan")
    elif change == "last":
        head[-1, -1] += 1
    elif change == "rows":
        head = head[:-1].contiguous()
    elif change == "type":
        head = head.double()
    tensors["lm_head.weight"] = head
    save_file(tensors, tmp_path / "model.safetensors")
    described = describe(tmp_path)
    if change in ("rows", "type"):
        assert described is None  # which are left to the model
        return
    assert_headers_say_enough(tmp_path)
    assert described is not None and described.config.tie_embeddings == (change in ("none", "zero"))


@pytest.mark.parametrize("change", ["missing", "superfluous", "shape", "one layer", "no map", "integers"])
def test_what_does_not_agree_is_left_to_the_model(change: str, tmp_path: Path) -> None:
    save_model(Decoder(small()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    up, norm = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    maps = [name for name in tensors if "feature_map." in name]
    if change == "missing":
        del tensors[norm]
    elif change == "superfluous":
        tensors["model.layers.0.mlp.up_proj.bias"] = tensors[norm].clone()
    elif change == "shape":
        tensors[up] = tensors[up].T.contiguous()
    elif change == "one layer":
        del tensors[maps[0]]
    elif change == "no map":
        tensors = {name: tensor for name, tensor in tensors.items() if name not in maps}
    elif change == "integers":
        tensors[up] = tensors[up].int()
    save_file(tensors, tmp_path / "model.safetensors")
    assert describe(tmp_path) is None
