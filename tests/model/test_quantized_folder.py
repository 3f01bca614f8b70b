"""Folders of few bits: what config.json says of them, what is refused, who else opens them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import yeoul
from models import make, rms_ratio
from yeoul import cli, runtime
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.errors import UserError
from yeoul.model.checkpoint import load_model, load_quantization, save_model, stored_dtype
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear, quantized_modules
from yeoul.ops import low_bit

IDS = torch.arange(20)[None] * 3 % 90


def llama(bits: int, *, tie: bool = False, embeddings: bool = False) -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, tie_embeddings=tie,
        initializer_range=0.1, max_position_embeddings=64,
    )  # fmt: skip
    model = Decoder(config).eval()
    group = 32 if bits == 4 else None
    quantize_model(
        model, QuantizationConfig.rounded(bits=bits, group_size=group, embeddings=embeddings, head=embeddings)
    )
    return model


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tie", [True, False])
def test_a_folder_is_written_twice_alike(bits: int, tie: bool, tmp_path: Path) -> None:
    model = llama(bits, tie=tie, embeddings=True).to(torch.bfloat16)
    save_model(model, tmp_path / "a", shard_bytes=10_000)
    again = load_model(tmp_path / "a")
    save_model(again, tmp_path / "b", shard_bytes=10_000)
    assert stored_dtype(tmp_path / "a") == torch.bfloat16 == again.dtype
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    assert again.num_parameters() == Decoder(model.config).num_parameters()
    scales = [module.weight_scale.dtype for _, module in quantized_modules(again.half().float())]
    assert set(scales) == {torch.bfloat16}, "whatever type the model is given, scales stay what they are"


def test_embeddings_look_up_what_their_weight_stands_for() -> None:
    table = llama(4, tie=True, embeddings=True).model.embed_tokens
    assert isinstance(table, QuantizedEmbedding) and table.bits == 6
    assert torch.equal(table(IDS), table.dequantized()[IDS])
    assert table.to(torch.bfloat16)(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("bits", "tie", "embeddings", "kind"),
    [(8, True, False, "llama"), (4, False, False, "llama"), (8, False, True, "llama"), (4, False, True, "yeoul"),
     (8, True, True, "yeoul")],
)  # fmt: skip
def test_the_family_is_kept_where_transformers_can_open_it(
    bits: int, tie: bool, embeddings: bool, kind: str, tmp_path: Path
) -> None:
    model = llama(bits, tie=tie, embeddings=embeddings)
    save_model(model, tmp_path)
    assert config_of(tmp_path)["model_type"] == kind
    transformers = pytest.importorskip("transformers")
    if kind == "yeoul":
        pytest.importorskip("yeoul.hf")
        with pytest.raises(UserError, match=r"yeoul\.load"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        return
    pytest.importorskip("compressed_tensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert rms_ratio(theirs(IDS).logits, model(IDS)) < 1e-5


def test_gpt2_is_written_as_our_own_kind(tmp_path: Path) -> None:
    """Its published form has queries, keys and values in one matrix, which lies the other way round."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=96, hidden_size=64, num_layers=1, num_heads=4, positions="learned", norm="layernorm", mlp="gelu",
        activation="gelu_tanh", attention_bias=True, mlp_bias=True, family="gpt2",
    )  # fmt: skip
    model = Decoder(config).eval()
    quantize_model(model, QuantizationConfig.rounded(bits=8))
    save_model(model, tmp_path)
    assert config_of(tmp_path)["model_type"] == "yeoul"
    assert torch.equal(load_model(tmp_path)(IDS), model(IDS))


def test_what_others_write_by_layer_is_read(tmp_path: Path) -> None:
    """One layer left out by an expression, one with a scheme of its own."""
    model = llama(4)
    full = Decoder(model.config)
    model.layers[1].mlp.down_proj = full.layers[1].mlp.down_proj
    eight = full.layers[0].mlp.up_proj.weight.detach()
    scale = (eight.abs().amax(1, keepdim=True) / 127).bfloat16()
    model.layers[0].mlp.up_proj = QuantizedLinear.of((eight / scale.float()).round().to(torch.int8), scale, 8)
    save_model(model, tmp_path)
    values = config_of(tmp_path)
    values["quantization_config"]["ignore"] = ["lm_head", r"re:.*layers\.1\.mlp\.down_proj$"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert torch.equal(load_model(tmp_path)(IDS), model(IDS))
    quantization = load_quantization(tmp_path)
    assert quantization is not None and {scheme.bits for scheme in quantization.schemes} == {4, 8}


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_scales_of_other_types_stay_what_they_are(bits: int, tmp_path: Path) -> None:
    save_model(llama(bits).to(torch.bfloat16), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = (tensors[name].float() * 1.001).half()
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert {module.weight_scale.dtype for _, module in quantized_modules(model)} == {torch.float16}
    fast = model(IDS[:, :3])
    assert rms_ratio(fast, model.float()(IDS[:, :3])) < 0.03


Change = Callable[[dict[str, Any], dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, w: w.update(num_bits=3), "only 8, 6 and 4"),
        (lambda q, w: w.update(num_bits=8), "int-quantized"),
        (lambda q, w: w.update(symmetric=False), "symmetric"),
        (lambda q, w: w.update(actorder="group"), "actorder"),
        (lambda q, w: w.update(type="float"), "type"),
        (lambda q, w: w.update(group_size=48), "do not divide"),
        (lambda q, w: w.update(group_size=64), "weight_scale.*shape"),
        (lambda q, w: w.update(group_size="all"), "group_size"),
        (lambda q, w: w.update(strategy="tensor"), "strategy"),
        (lambda q, w: q.update(quant_method="gptq"), "gptq"),
        (lambda q, w: q.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (lambda q, w: q.update(ignore="lm_head"), "ignore"),
        (lambda q, w: q.update(ignore=["re:("]), "regular expression"),
        (lambda q, w: q.update(ignore=["re:(.+)+!"]), "more than a name"),
        (lambda q, w: q.update(ignore=["re:.*.*.*.*!"]), "more than a name"),
        (lambda q, w: q.update(ignore=["re:a"] * 300), "more than 200"),
        (lambda q, w: q.update(ignore=["lm_head", "re:.*q_proj"]), "does not belong"),
        (lambda q, w: q.update(config_groups={}), "config_groups"),
        (lambda q, w: q["config_groups"]["group_0"].update(input_activations={"num_bits": 8}), "input_activations"),
        (lambda q, w: q.update(spinquant=True), "spinquant"),
    ],
)
def test_a_description_that_means_something_else_is_refused(change: Change, said: str, tmp_path: Path) -> None:
    save_model(llama(4), tmp_path)
    values = config_of(tmp_path)
    quantization = values["quantization_config"]
    change(quantization, quantization["config_groups"]["group_0"]["weights"])
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=said):
        load_model(tmp_path)


@pytest.mark.parametrize("bits", [8, 4])
def test_damaged_tensors_are_one_sentence(bits: int, tmp_path: Path) -> None:
    """Each kind of tensor lost, of another type, of another shape: named, and never computed with."""
    save_model(llama(bits, tie=True, embeddings=True), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    dice = random.Random(0)
    for name in [n for n in tensors if "layers.0.self_attn.q_proj" in n or "embed" in n]:
        for damage in ("lost", "type", "shape", "value"):
            changed = copy.copy(tensors)
            tensor = tensors[name]
            if damage == "lost":
                del changed[name]
            elif damage == "type":
                changed[name] = tensor.to(torch.float32 if not tensor.is_floating_point() else torch.int8)
            elif damage == "shape":
                changed[name] = tensor[: max(1, dice.randrange(tensor.shape[0]))].contiguous()
            elif name.endswith("weight_shape"):
                changed[name] = tensor + 1
            else:
                continue
            save_file(changed, tmp_path / "model.safetensors")
            with pytest.raises(UserError, match=name.rpartition(".")[2]):
                load_model(tmp_path)


def test_verbs_that_need_full_weights_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(llama(8), tmp_path / "low")
    for command in (["export", str(tmp_path / "low"), "--out", str(tmp_path / "x.gguf")],
                    ["quantize", str(tmp_path / "low"), "--method", "rtn", "--out", str(tmp_path / "y")]):  # fmt: skip
        assert cli.main(command) == 2
        assert "quantized" in capsys.readouterr().err
    assert cli.main(["info", str(tmp_path / "low")]) == 0
    text = capsys.readouterr().out
    assert "8 bits, a scale for each output: linear layers" in text
    assert "yeoul export" not in text and "yeoul linearize" not in text


@torch.no_grad()
def test_a_model_computes_alike_in_bfloat16_and_fp32() -> None:
    for kind in ("softmax", "hybrid", "delta-hybrid"):
        model = make(kind)
        quantize_model(model, QuantizationConfig.rounded(bits=4, group_size=32, embeddings=True))
        exact = model(IDS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert rms_ratio(model(IDS), exact) < 0.05
        low = copy.deepcopy(model).to(torch.bfloat16)
        cache = low.new_cache(1)
        steps = torch.cat([low(IDS[:, t : t + 1], cache=cache) for t in range(IDS.shape[1])], 1)
        assert rms_ratio(steps, exact) < 0.05


def test_a_processor_without_bfloat16_uses_the_kernels_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(4, tie=True, embeddings=True)
    save_model(model.to(torch.bfloat16), tmp_path)
    monkeypatch.setattr(runtime, "has_native_bf16", lambda device: False)
    monkeypatch.setattr(low_bit, "_has_native_bf16", lambda device: False)
    again, _ = yeoul.load(tmp_path, device="cpu")
    assert again.dtype == torch.bfloat16
    rows = IDS.repeat(5, 1)  # so many that the weight is dequantized
    with torch.no_grad():
        assert rms_ratio(again(rows), model.float()(rows)) < 0.03


def test_loading_takes_the_type_that_is_asked_for(tmp_path: Path) -> None:
    save_model(llama(4, tie=True, embeddings=True).to(torch.bfloat16), tmp_path)
    model, _ = yeoul.load(tmp_path, device="cpu", dtype="float32")
    assert model.dtype == torch.float32 == model.model.embed_tokens(IDS).dtype == model.output_weight.dtype
