"""Published folders against transformers, and the authors' DiJiang against what their code gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import KINDS, make, rms_ratio
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_config, load_model, load_weights, save_model
from yeoul.model.config import PRESETS, ModelConfig, preset
from yeoul.model.decoder import Decoder

IDS = torch.randint(0, 99, (2, 40), generator=torch.Generator().manual_seed(0))
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "llama-biased": ("Llama", dict(attention_bias=True, mlp_bias=True, head_dim=24, tie_word_embeddings=False)),
    "mistral": ("Mistral", dict(num_key_value_heads=2, sliding_window=7)),
    "neox": ("GPTNeoX", dict(use_parallel_residual=True)),
    "neox-serial": ("GPTNeoX", dict(use_parallel_residual=False, hidden_act="gelu_new", tie_word_embeddings=True)),
}


def published(name: str, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    family, options = PUBLISHED[name]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=99, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.2, **options,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = published(name, tmp_path), load_model(tmp_path)
    assert rms_ratio(ours(IDS), theirs(IDS).logits) < 1e-5


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "neox" not in name])
@torch.no_grad()
def test_what_is_saved_opens_in_transformers_unchanged(name: str, tmp_path: Path) -> None:
    theirs = published(name, tmp_path / "in")
    save_model(load_model(tmp_path / "in"), tmp_path / "out")
    again, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(IDS).logits, theirs(IDS).logits)


def test_config_json_of_the_older_generation_reads_alike(tmp_path: Path) -> None:
    published("neox", tmp_path)
    new = load_config(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_config(tmp_path) == new


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_survives_its_folder(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config or again.config.to_dict() | {"feature_map": None, "window": 0} == (
        model.config.to_dict() | {"feature_map": None, "window": 0}
    )  # a published family's config.json has no room for settings that its layers do not use
    assert torch.equal(again(IDS), model(IDS))
    other = Decoder(model.config)
    load_weights(other, tmp_path)
    assert torch.equal(other.eval()(IDS), model(IDS))


def test_a_linearized_folder_cannot_be_taken_for_a_softmax_model(tmp_path: Path) -> None:
    save_model(make("hybrid"), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "yeoul" and values["attention"] == ["hybrid", "hybrid"]


def official_folder(shared: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    source = shared / "vectors" / "dijiang-official"
    shutil.copy(source / "config.json", tmp_path / "config.json")
    shutil.copy(source / "weights.safetensors", tmp_path / "model.safetensors")
    return tmp_path, load_file(source / "activations.safetensors")


@torch.no_grad()
def test_official_dijiang_gives_the_stored_logits_in_linear_time(shared: Path, tmp_path: Path) -> None:
    folder, stored = official_folder(shared, tmp_path)
    model, ids = load_model(folder), stored["input_ids"]
    assert set(model.config.attention) == {"dijiang-official"}
    assert rms_ratio(model(ids), stored["logits"]) < 1e-4
    for i, block in enumerate(model.layers):
        layout = model.layout(ids, None, None, None, None)
        given = block.self_attn(stored[f"layer{i}.attention.in"], layout)
        assert rms_ratio(given, stored[f"layer{i}.attention.out"]) < 1e-4
    cache = model.new_cache(2)
    steps = [model(ids[:, :33], cache=cache)] + [model(ids[:, i : i + 1], cache=cache) for i in range(33, 80)]
    assert rms_ratio(torch.cat(steps, 1), stored["logits"]) < 1e-4
    save_model(model, tmp_path / "ours")
    assert torch.equal(load_model(tmp_path / "ours")(ids), model(ids))


@pytest.mark.parametrize(("heads", "hidden"), [(4, 64), (3, 48), (2, 24), (6, 36)])
@torch.no_grad()
def test_official_layer_equals_its_quadratic_definition(heads: int, hidden: int) -> None:
    """Tables that have drifted from reciprocal, with signs, and group norms that straddle heads."""
    config = ModelConfig(
        vocab_size=50, hidden_size=hidden, num_layers=1, num_heads=heads, attention=("dijiang-official",),
        max_position_embeddings=64, norm="layernorm", rotary_dim=2 * (hidden // heads // 4), attention_bias=True,
    )  # fmt: skip
    layer = Decoder(config).layers[0].self_attn
    layer.D1 *= 1 + 0.1 * torch.randn_like(layer.D1)  # type: ignore[operator]
    layer.D2 *= 1 + 0.1 * torch.randn_like(layer.D2)  # type: ignore[operator]
    layer.D1[0, 0, 20] *= -1  # type: ignore[index]
    x = torch.randn(2, 50, hidden)
    layout = Decoder(config).layout(torch.zeros(2, 50, dtype=torch.long), None, None, None, None)
    q, k, v = layer.project(x, layout)
    a = torch.softmax(q @ layer.proj_matrix, -1) * layer.D1[:, :, :50]  # type: ignore[operator,index]
    b = torch.softmax(k @ layer.proj_matrix, -1) * layer.D2[:, :, :50]  # type: ignore[operator,index]
    scores = (a @ b.transpose(-1, -2)).tril()
    y = layer.group_norm((scores @ v).transpose(1, 2).reshape(100, hidden)).view(2, 50, hidden)  # type: ignore[operator]
    wanted = layer.o_proj(torch.nn.functional.silu(x @ layer.W_G) * y)  # type: ignore[operator]
    assert rms_ratio(layer(x, layout), wanted) < 1e-4


def damaged(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    values, tensors = json.loads(config.read_text()), load_file(weights)
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "huge header":
        weights.write_bytes((2**31).to_bytes(8, "little") + weights.read_bytes()[8:])
    elif how == "missing":
        save_file({k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k}, weights)
    elif how == "extra":
        save_file(tensors | {"surprise": torch.zeros(1)}, weights)
    elif how == "shape":
        save_file(tensors | {"model.norm.weight": torch.zeros(7)}, weights)
    elif how == "integers":
        save_file(tensors | {"model.norm.weight": torch.zeros(64, dtype=torch.int64)}, weights)
    elif how == "heads":
        config.write_text(json.dumps(values | {"num_attention_heads": 3, "head_dim": None}))
    elif how == "family":
        config.write_text(json.dumps(values | {"model_type": "mamba"}))
    elif how == "rope":
        config.write_text(json.dumps(values | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}))
    elif how == "json":
        config.write_text("{")
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "escaping index":
        index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
        weights.rename(folder.parent / "elsewhere.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "model.safetensors"), ("empty", "model.safetensors"), ("huge header", "model.safetensors"),
        ("missing", "layers.1.mlp.up"), ("extra", "surprise"), ("shape", "model.norm.weight"),
        ("integers", "model.norm.weight"), ("heads", "3"), ("family", "mamba"), ("rope", "yarn"),
        ("json", "config.json"), ("pickle", "pytorch_model.bin"), ("escaping index", "elsewhere"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_named_in_one_sentence(how: str, said: str, tmp_path: Path) -> None:
    save_model(make("softmax"), tmp_path / "model")
    damaged(tmp_path / "model", how)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "model")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_presets_have_about_the_size_of_their_name() -> None:
    for name in PRESETS:
        with torch.device("meta"):
            count = Decoder(preset(name, vocab_size=32000 if name in ("125m", "350m", "1b") else 8000)).num_parameters()
        if name == "gpt-classic":
            assert 10e6 < count < 20e6
            continue
        named = float(name[:-1]) * (1e9 if name.endswith("b") else 1e6)
        assert 0.6 * named < count < 1.7 * named, (name, count)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(num_heads=5), "divisible"), (dict(num_kv_heads=3), "multiple"), (dict(attention=("softmx",)), "softmax"),
        (dict(norm="rms"), "rmsnorm"), (dict(num_layers=0), "num_layers"), (dict(feature_map=dict(radii="khi")), "chi"),
        (dict(attention=("softmax",) * 3), "layers"), (dict(windw=3), "window"), (dict(rotary_dim=5), "rotary_dim"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(settings: dict[str, Any], said: str) -> None:
    base = dict(vocab_size=10, hidden_size=64, num_layers=2, num_heads=4)
    with pytest.raises(UserError, match=said):
        ModelConfig.from_dict(base | settings)
