"""Published folders against transformers, and the authors' DiJiang against what their code gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from folders import assert_headers_say_enough
from models import KINDS, bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import Alignment, convert
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_config, load_model, load_weights, save_model
from yeoul.model.config import PRESETS, ModelConfig, preset
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.families import relevant

IDS = torch.randint(0, 99, (2, 40), generator=torch.Generator().manual_seed(0))
SMALL = dict(
    vocab_size=99, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=128, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
GPT2 = dict(
    vocab_size=99, n_embd=64, n_layer=3, n_head=4, n_positions=128, initializer_range=0.2, bos_token_id=1,
    eos_token_id=2, pad_token_id=0,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32)
LONG = dict(
    rope_type="longrope", rope_theta=1e4, original_max_position_embeddings=32,
    short_factor=[1.0 + i / 8 for i in range(8)], long_factor=[2.0 + i for i in range(8)],
)  # fmt: skip
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "llama-biased": ("Llama", dict(attention_bias=True, mlp_bias=True, head_dim=24, tie_word_embeddings=False)),
    "llama-linear": ("Llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.5))),
    "llama-dynamic": (
        "Llama", dict(max_position_embeddings=16, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=3.0))
    ),
    "llama-3": ("Llama", dict(rope_parameters=LLAMA3, eos_token_id=[2, 5, 7])),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN)),
    "llama-yarn-deepseek": (
        "Llama", dict(rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.2, beta_fast=16.0, truncate=False))
    ),
    "llama-long": ("Llama", dict(rope_parameters=LONG)),
    "mistral": ("Mistral", dict(num_key_value_heads=2, sliding_window=7)),
    "mistral-full": ("Mistral", dict(num_key_value_heads=1, sliding_window=None, head_dim=32)),
    "qwen2": ("Qwen2", dict(num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen2-sliding": (
        "Qwen2", dict(num_key_value_heads=2, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "qwen3": ("Qwen3", dict(num_key_value_heads=2, head_dim=32, tie_word_embeddings=True)),
    "qwen3-yarn": ("Qwen3", dict(num_key_value_heads=1, head_dim=16, attention_bias=True, rope_parameters=YARN)),
    "gemma": ("Gemma", dict(num_key_value_heads=1, head_dim=24)),
    "gemma-2": (
        "Gemma2",
        dict(num_key_value_heads=2, head_dim=24, sliding_window=6, query_pre_attn_scalar=20,
             attn_logit_softcapping=3.0, final_logit_softcapping=5.0),
    ),
    "gemma-2-uncapped": (
        "Gemma2",
        dict(num_key_value_heads=2, head_dim=16, sliding_window=5, attn_logit_softcapping=None,
             final_logit_softcapping=None, attention_bias=True),
    ),
    "gemma-3": (
        "Gemma3Text",
        dict(num_key_value_heads=2, head_dim=24, sliding_window=6, query_pre_attn_scalar=24,
             layer_types=["sliding_attention", "full_attention", "sliding_attention"],
             rope_parameters=dict(sliding_attention=dict(rope_type="default", rope_theta=1e4),
                                  full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0))),
    ),
    "exaone-4": (
        "Exaone4",
        dict(num_key_value_heads=2, sliding_window=6,
             layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ),
    "exaone-4-full": (
        "Exaone4", dict(num_key_value_heads=2, sliding_window=None, layer_types=["full_attention"] * 3,
                        rope_parameters=LLAMA3, tie_word_embeddings=True)
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2-odd": ("GPT2", GPT2 | dict(n_inner=72, activation_function="gelu", tie_word_embeddings=False,
                                     scale_attn_weights=False)),
    "neox": ("GPTNeoX", dict(use_parallel_residual=True)),
    "neox-serial": ("GPTNeoX", dict(use_parallel_residual=False, hidden_act="gelu_new", tie_word_embeddings=True)),
    "neox-stretched": (
        "GPTNeoX", dict(attention_bias=False, rope_parameters=dict(
            rope_type="linear", rope_theta=5e3, factor=2.0, partial_rotary_factor=0.5))
    ),
}  # fmt: skip
HEADS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def published(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A small random model of a family, in the folder and as transformers has it."""
    transformers = pytest.importorskip("transformers")
    family, options = PUBLISHED[name]
    torch.manual_seed(2)
    config = getattr(transformers, f"{family}Config")(**(options if family == "GPT2" else SMALL | options))
    config._attn_implementation = "eager"
    model = getattr(transformers, HEADS.get(family, f"{family}ForCausalLM"))(config).eval()
    with torch.no_grad():  # what starts as zeros or ones must count
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = published(name, tmp_path), load_model(tmp_path)
    assert_headers_say_enough(tmp_path)
    assert rms_ratio(ours(IDS), theirs(IDS).logits) < 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_greedy_text_equals_that_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = published(name, tmp_path), load_model(tmp_path)
    # With longrope transformers' Llama turns old keys by the short factors and new ones by the long ones once a text is
    # longer than the original length; here a text is turned one way (tests/model/test_rope.py).
    new = LONG["original_max_position_embeddings"] - 20 if name == "llama-long" else 64
    wanted = theirs.generate(
        IDS[:, :20], attention_mask=torch.ones(2, 20), max_new_tokens=new, min_new_tokens=new, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[:, 20:]  # fmt: skip
    cache, step, given = ours.new_cache(2), IDS[:, :20], []
    for _ in range(new):
        step = ours(step, cache=cache, logits_to_keep=1)[:, -1].argmax(-1, keepdim=True)
        given.append(step)
    assert torch.equal(torch.cat(given, 1), wanted)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_that_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = published(name, tmp_path, torch.bfloat16)
    exact, ours = load_model(tmp_path, dtype=torch.float32), load_model(tmp_path)
    assert ours.output_weight.dtype == torch.bfloat16
    wanted = exact(IDS)
    assert rms_ratio(ours(IDS), wanted) < 1.15 * rms_ratio(theirs(IDS).logits, wanted)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_what_is_saved_opens_in_transformers_unchanged(name: str, tmp_path: Path) -> None:
    theirs = published(name, tmp_path / "in")
    model = load_model(tmp_path / "in")
    save_model(model, tmp_path / "out", shard_bytes=50_000)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    kinds = [json.loads((tmp_path / part / "config.json").read_text())["model_type"] for part in ("in", "out")]
    assert kinds[0] == kinds[1]
    again, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(IDS).logits, theirs(IDS).logits)
    once_more = load_model(tmp_path / "out")
    assert once_more.config == model.config and once_more.config.family == model.config.family
    for key, tensor in model.state_dict().items():
        assert torch.equal(once_more.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not n.startswith("mistral") or n == "mistral-full"])
@torch.no_grad()
def test_a_linearized_form_is_the_teacher_within_its_window_and_survives_its_folder(name: str, tmp_path: Path) -> None:
    published(name, tmp_path / "in")
    teacher = load_model(tmp_path / "in")
    exact = convert(teacher, bare_conversion(window=IDS.shape[1]))
    assert rms_ratio(exact(IDS), teacher(IDS)) < 1e-5
    student = convert(teacher, bare_conversion(window=8))
    wanted = student(IDS)
    assert rms_ratio(wanted[:, :8], teacher(IDS)[:, :8]) < 1e-5
    assert rms_ratio(wanted, teacher(IDS)) > 1e-3
    errors = Alignment(teacher)(student, Batch(input_ids=IDS, labels=IDS, positions=None, seq_ids=None))
    assert torch.isfinite(errors).all() and errors[:, :, :8].max() < 1e-8 < errors[:, :, 8:].mean()
    save_model(student, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert again.config == student.config and torch.equal(again(IDS), wanted)


OLDER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "llama-3": lambda rope: {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope},
    "llama-linear": lambda rope: {
        "rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": rope["rope_type"], "factor": rope["factor"]}
    },
    "neox": lambda rope: {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]},
    "qwen2": lambda rope: {"rope_theta": rope["rope_theta"], "rope_scaling": None},
    "gemma-3": lambda rope: {
        "rope_theta": rope["full_attention"].pop("rope_theta"), "rope_scaling": rope["full_attention"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_config_json_of_the_older_generation_reads_alike(name: str, tmp_path: Path) -> None:
    published(name, tmp_path)
    new = load_config(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= OLDER[name](values.pop("rope_parameters")) | {"torch_dtype": values.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_config(tmp_path) == new


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", {"rope_parameters": {"rope_type": "twisted", "rope_theta": 1e4}}, "twisted"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2, "slope": 3}}, "slope"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        ("llama", {"rope_parameters": {"rope_type": "default", "factor": 2}}, "factor"),
        ("llama", {"residual_multiplier": 0.22}, "residual_multiplier"),
        ("llama", {"hidden_act": "relu"}, "relu"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantized"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("gemma-3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma-3", {"attn_logit_softcapping": 1.0}, "attn_logit_softcapping"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("neox", {"model_type": "gptj"}, "gptj"),
    ],
)
def test_what_would_change_the_computation_is_named(
    name: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    published(name, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(UserError, match=said):
        load_config(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_survives_its_folder(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert relevant(again.config) == relevant(model.config)
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
        layout = model.attention_context(ids)
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
    layout = Decoder(config).attention_context(torch.zeros(2, 50, dtype=torch.long))
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
        config.write_text(json.dumps(values | {"rope_parameters": {"rope_type": "yarn"}}))
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
        ("integers", "model.norm.weight"), ("heads", "3"), ("family", "mamba"), ("rope", "factor"),
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
        count = skeleton(preset(name, vocab_size=32000 if name in ("125m", "350m", "1b") else 8000)).num_parameters()
        if name == "gpt-classic":
            assert 10e6 < count < 20e6
            continue
        if name.partition("-")[0] in ("lstm", "gru", "cnn"):
            assert abs(count / skeleton(preset("10m", vocab_size=8000)).num_parameters() - 1) < 0.01, (name, count)
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
