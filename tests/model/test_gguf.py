"""GGUF files read back by the gguf package, by transformers, and by llama.cpp where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import make, rms_ratio
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.gguf_file import FILE_TYPES, write_gguf
from yeoul.model.gguf_plan import plan

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

IDS = torch.randint(0, 96, (1, 40), generator=torch.Generator().manual_seed(0))
BASE = dict(
    vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=128, initializer_range=0.2,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=1e4, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)
GEMMA3_ROPE = {
    "full_attention": dict(rope_type="linear", rope_theta=1e5, factor=2.0),
    "sliding_attention": dict(rope_type="default", rope_theta=1e4),
}
FULL = dict(sliding_window=None, layer_types=["full_attention"] * 2)
SMALL = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", dict(num_key_value_heads=2)),
    "llama-biased": ("llama", "Llama", dict(attention_bias=True, mlp_bias=True, head_dim=32, tie_word_embeddings=True)),
    "llama-llama3": ("llama", "Llama", dict(num_key_value_heads=2, rope_parameters=LLAMA3)),
    "llama-yarn": ("llama", "Llama", dict(rope_parameters=YARN)),
    "llama-linear": ("llama", "Llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0))),
    "mistral": ("llama", "Mistral", dict(num_key_value_heads=2, sliding_window=64)),
    "qwen2": ("qwen2", "Qwen2", dict(num_key_value_heads=2)),
    "qwen2-yarn": ("qwen2", "Qwen2", dict(num_key_value_heads=4, rope_parameters=YARN | {"attention_factor": 1.3})),
    "qwen3": ("qwen3", "Qwen3", dict(num_key_value_heads=2, head_dim=32)),
    "gemma": ("gemma", "Gemma", dict(num_key_value_heads=1, head_dim=32)),
    "gemma2": (
        "gemma2", "Gemma2", dict(num_key_value_heads=2, head_dim=16, sliding_window=8, query_pre_attn_scalar=24),
    ),
    "gemma3": (
        "gemma3", "Gemma3Text",
        dict(
            SMALL, num_hidden_layers=7, head_dim=16, sliding_window=8, query_pre_attn_scalar=24,
            rope_parameters=GEMMA3_ROPE,
        ),
    ),
    "exaone4": ("exaone4", "Exaone4", dict(FULL, num_key_value_heads=2, rope_parameters=LLAMA3)),
    "exaone4-sliding": ("exaone4", "Exaone4", dict(SMALL, num_hidden_layers=64, sliding_window=8)),
    "gpt2": ("gpt2", "GPT2", {}),
    "gpt_neox": ("gptneox", "GPTNeoX", dict(hidden_act="gelu_new")),
}  # fmt: skip
READ_BY_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": dict(head_dim=128),
    "gpt2": dict(intermediate_size=None, vocab_size=50257, max_position_embeddings=1024),
    "gemma2": dict(head_dim=256, query_pre_attn_scalar=256),
    "gemma3": dict(head_dim=256, query_pre_attn_scalar=256, rope_parameters=None),
}  # fmt: skip
"""What transformers reads; where its reader leaves a setting at its default, the model has that."""


def published(name: str, folder: Path, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    _, family, options = PUBLISHED[name]
    torch.manual_seed(0)
    settings = BASE | options | changes
    if family == "GPT2":
        settings["n_inner"] = settings.pop("intermediate_size")
    config = getattr(transformers, f"{family}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    return model


def written(folder: Path, file: Path, dtype: str) -> Decoder:
    model = load_model(folder, dtype=torch.float32)
    write_gguf(model, file, dtype=dtype, name="tiny")
    return model


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Metadata, tensors as fp32, and their types."""
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
        for t in reader.tensors
    }
    return fields, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


def expected(model: Decoder, layer: int) -> dict[str, Tensor]:
    """Tensors of one layer, written out from what llama.cpp computes with them."""
    config, block = model.config, model.layers[layer]
    H, G, D = config.heads
    one = 1.0 if config.norm_zero_centered else 0.0
    scale = 1.0 if config.attention_scale is None else config.attention_scale * D**0.5
    sides = ("weight", "bias")
    found: dict[str, Tensor] = {}
    for side in sides:
        q, k, v = (getattr(getattr(block.self_attn, f"{x}_proj"), side) for x in "qkv")
        if q is None:
            continue
        if config.family in ("llama", "mistral"):  # interleave the two halves of each head
            q, k = (torch.stack(x.view(n, 2, D // 2, -1).unbind(1), 2).reshape(x.shape) for x, n in ((q, H), (k, G)))
        if config.family in ("gpt2", "gpt_neox"):
            found[f"attn_qkv.{side}"] = torch.cat([q, k, v])
        else:
            q = q if config.qk_norm else q * scale
            found |= {f"attn_q.{side}": q, f"attn_k.{side}": k, f"attn_v.{side}": v}
    if config.qk_norm:
        found["attn_q_norm.weight"] = (block.self_attn.q_norm.weight + one) * scale
        found["attn_k_norm.weight"] = block.self_attn.k_norm.weight + one
    after = "ffn_norm" if config.norm_placement == "pre" else "post_attention_norm"
    modules = {
        "attn_output": block.self_attn.o_proj, "ffn_gate": getattr(block.mlp, "gate_proj", None),
        "ffn_up": block.mlp.up_proj, "ffn_down": block.mlp.down_proj,
        "attn_norm": getattr(block, "input_layernorm", None), after: block.post_attention_layernorm,
        "ffn_norm ": getattr(block, "pre_feedforward_layernorm", None),
        "post_ffw_norm": getattr(block, "post_feedforward_layernorm", None),
    }  # fmt: skip
    for name, module in modules.items():
        for side in sides:
            if module is not None and (value := getattr(module, side, None)) is not None:
                found[f"{name.strip()}.{side}"] = value + one if name.strip().endswith("norm") else value
    return {f"blk.{layer}.{name}": value.detach() for name, value in found.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_is_there_with_its_numbers(name: str, tmp_path: Path) -> None:
    published(name, tmp_path)
    model = written(tmp_path, tmp_path / "x.gguf", "f32")
    config = model.config
    fields, tensors, _ = read(tmp_path / "x.gguf")
    wanted = {"token_embd.weight": model.model.embed_tokens.weight}
    one = 1.0 if config.norm_zero_centered else 0.0
    wanted |= {f"output_norm.{side}": value + one for side, value in model.model.norm.named_parameters()}
    if not config.tie_embeddings:
        wanted["output.weight"] = model.lm_head.weight
    if config.positions == "learned":
        wanted["position_embd.weight"] = model.model.embed_positions.weight
    for layer in range(config.num_layers):
        wanted |= expected(model, layer)
    factors = tensors.pop("rope_freqs.weight", None)
    assert (factors is not None) == (config.rope_scaling is not None and config.rope_scaling.rope_type == "llama3")
    assert set(tensors) == set(wanted)
    for key, value in wanted.items():
        assert torch.allclose(tensors[key], value, rtol=1e-6, atol=1e-7), key
    architecture = PUBLISHED[name][0]
    assert fields["general.architecture"] == architecture
    assert fields[f"{architecture}.block_count"] == config.num_layers
    assert fields[f"{architecture}.attention.key_length"] == config.head_dim
    assert fields[f"{architecture}.vocab_size"] == 96
    if architecture.startswith("gemma") and config.sliding_window:
        pattern = [kind == "sliding" for kind in config.attention]
        assert fields[f"{architecture}.attention.sliding_window_pattern"] == pattern


@pytest.mark.parametrize("dtype", FILE_TYPES)
def test_types_round_as_they_should(dtype: str, tmp_path: Path) -> None:
    published("llama", tmp_path)
    model = written(tmp_path, tmp_path / "x.gguf", dtype)
    fields, tensors, types = read(tmp_path / "x.gguf")
    assert fields["general.file_type"] == {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}[dtype]
    for name, kind in types.items():
        assert kind == ("F32" if name.endswith("norm.weight") else dtype.upper()), name
    got, weight = tensors["blk.1.ffn_down.weight"], model.layers[1].mlp.down_proj.weight.detach()
    if dtype == "q8_0":
        blocks = weight.view(-1, 32)
        step = blocks.abs().amax(1, keepdim=True) / 127
        rounding = 0.5 + 127 * 2**-11  # of the numbers, and of the scale to fp16
        assert ((got.view(-1, 32) - blocks).abs() <= rounding * step).all()
        assert not torch.equal(got, weight)
    else:
        assert torch.equal(
            got, weight.to(getattr(torch, {"f32": "float32", "f16": "float16"}.get(dtype, "bfloat16"))).float()
        )


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
@torch.no_grad()
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    """A reader nobody here wrote: the logits of the file are those of the model."""
    transformers = pytest.importorskip("transformers")
    theirs = published(name, tmp_path, **READ_BY_TRANSFORMERS[name])
    written(tmp_path, tmp_path / "x.gguf", "f32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    assert rms_ratio(model.eval()(IDS).logits, theirs(IDS).logits) < 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_llama_cpp_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    published(name, tmp_path)
    model = written(tmp_path, tmp_path / "x.gguf", "f32")
    runner = llama_cpp.Llama(
        str(tmp_path / "x.gguf"), n_ctx=128, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0,
        flash_attn=False,
    )  # fmt: skip
    runner.eval(IDS[0].tolist())
    # Its GELU is a table of fp16.
    bound = 1e-4 if model.config.mlp == "swiglu" else 3e-3
    assert rms_ratio(torch.from_numpy(runner.scores[:40].copy()), model(IDS)[0]) < bound


def test_llama3_factors_are_the_ratio_of_the_frequencies_in_transformers(tmp_path: Path) -> None:
    theirs = published("llama-llama3", tmp_path)
    written(tmp_path, tmp_path / "x.gguf", "f32")
    _, tensors, types = read(tmp_path / "x.gguf")
    plain = 1e4 ** (-torch.arange(0, 16, 2) / 16)
    assert types["rope_freqs.weight"] == "F32"
    assert torch.allclose(tensors["rope_freqs.weight"], plain / theirs.model.rotary_emb.inv_freq, rtol=1e-5)


def test_rope_scaling_is_in_the_metadata(tmp_path: Path) -> None:
    published("qwen2-yarn", tmp_path)
    written(tmp_path, tmp_path / "x.gguf", "f32")
    fields, _, _ = read(tmp_path / "x.gguf")
    scaling = {key.removeprefix("qwen2.rope.scaling."): v for key, v in fields.items() if "rope.scaling" in key}
    factor = 1.3 / (1 + 0.1 * np.log(4.0))
    assert scaling == {
        "type": "yarn", "factor": 4.0, "original_context_length": 16, "attn_factor": pytest.approx(factor),
    }  # fmt: skip


def test_a_sliding_window_that_llama_cpp_lacks_bounds_the_context(tmp_path: Path) -> None:
    published("mistral", tmp_path)
    how = write_gguf(load_model(tmp_path), tmp_path / "x.gguf", dtype="f16", name="tiny")
    fields, _, _ = read(tmp_path / "x.gguf")
    assert fields["llama.context_length"] == 64
    assert "sliding window" in how.notes[0]


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**dict(vocab_size=96, hidden_size=64, num_layers=2, num_heads=4), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(attention=("dijiang",)), "dijiang"),
        (dict(attention=("softmax", "hybrid")), "hybrid"),
        (dict(attention=("dijiang-official",)), "linearized"),
        (dict(positions="sinusoidal", norm="layernorm", mlp="gelu"), "sinusoidal"),
        (dict(positions="none"), "none"),
        (dict(rotary_dim=8), "8 of 16"),
        (dict(norm="layernorm"), "layernorm"),
        (dict(attention=("sliding",), sinks=4), "first tokens"),
        (dict(qk_norm=True, mlp_bias=True), "qk_norm"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        plan(config(**changes))
    assert "llama.cpp" in str(caught.value)


def test_a_model_of_no_published_family_goes_where_it_fits() -> None:
    assert plan(config()).architecture == "llama"
    assert plan(config(qk_norm=True)).architecture == "qwen3"
    classic = dict(norm="layernorm", mlp="gelu", attention_bias=True, mlp_bias=True)
    assert plan(config(positions="learned", **classic)).architecture == "gpt2"
    assert plan(config(rotary_dim=8, **classic)).architecture == "gptneox"


@pytest.mark.parametrize("kind", ["learned", "softmax"])
def test_missing_biases_are_zeros_and_ties_are_kept(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    if kind == "learned":
        model = Decoder(model.config.with_(mlp="gelu", norm="layernorm"))
    write_gguf(model, tmp_path / "x.gguf", dtype="f32", name="tiny")
    _, tensors, _ = read(tmp_path / "x.gguf")
    assert ("output.weight" in tensors) == (kind == "learned")
    if kind == "learned":
        assert tensors["blk.0.attn_qkv.bias"].count_nonzero() == 0 and len(tensors["blk.0.attn_qkv.bias"]) == 3 * 64


def test_numbers_too_large_for_f16_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = make("softmax")
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(UserError, match="bf16"):
        write_gguf(model, tmp_path / "x.gguf", dtype="f16", name="tiny")
    assert not list(tmp_path.iterdir())
    write_gguf(model, tmp_path / "x.gguf", dtype="bf16", name="tiny")
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]


def test_an_interrupted_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"old")
    original, calls = gguf.GGUFWriter.write_tensor_data, []

    def interrupted(self: Any, tensor: Any) -> None:
        calls.append(tensor)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(self, tensor)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_gguf(make("softmax"), file, dtype="f16", name="tiny")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_tensors_are_converted_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one is written, the one before it is gone."""
    import weakref

    original, alive = gguf.GGUFWriter.write_tensor_data, []

    def watched(self: Any, tensor: Any) -> None:
        assert all(reference() is None for reference in alive)
        alive.append(weakref.ref(tensor))
        original(self, tensor)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", watched)
    write_gguf(make("softmax"), tmp_path / "x.gguf", dtype="f16", name="tiny")
    assert len(alive) > 10


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(make("softmax"), tmp_path / "my run" / "model")
    assert main(["export", "my run"]) == 0
    assert "llama, f16" in capsys.readouterr().out
    assert read(tmp_path / "my-run-F16.gguf")[0]["general.name"] == "my-run"
    assert main(["export", "my run"]) == 2 and "--overwrite" in capsys.readouterr().err
    assert main(["export", "my run", "--overwrite", "--dtype", "q8_0", "--out", "sub/x.gguf"]) == 0
    assert read(tmp_path / "sub" / "x.gguf")[2]["token_embd.weight"] == "Q8_0"
    save_model(make("hybrid"), tmp_path / "linear")
    assert main(["export", "linear"]) == 2
    error = capsys.readouterr().err
    assert "hybrid" in error and error.count("\n") == 1 and not Path("linear-F16.gguf").exists()
    (tmp_path / "linear" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert main(["export", "linear"]) == 2


def test_weights_that_a_type_cannot_hold_or_that_are_not_finite_make_no_file(tmp_path: Path) -> None:
    model, file = make("softmax"), tmp_path / "x.gguf"
    weight = model.layers[1].mlp.down_proj.weight
    for value, dtype, said in (
        (float("nan"), "f32", "not finite"), (float("inf"), "q8_0", "not finite"), (1e5, "f16", "f16 cannot hold"),
        (3.4e38, "bf16", "bf16 cannot hold"), (1e7, "q8_0", "q8_0 cannot hold"),
    ):  # fmt: skip
        with torch.no_grad():
            weight[0, 0] = value
        with pytest.raises(UserError, match=f"blk.1.ffn_down.weight has numbers that (are )?{said}"):
            write_gguf(model, file, dtype=dtype, name="tiny")
        assert not list(tmp_path.iterdir())
