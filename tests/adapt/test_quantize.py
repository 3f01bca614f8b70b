"""Weights of few bits: what the numbers mean, every kind of model, their folders, the verb."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import yeoul
from folders import write_small_folder
from models import KINDS, VOCAB, bare_conversion, make, rms_ratio
from yeoul import cli
from yeoul.adapt import quant_statistics
from yeoul.adapt.gptq import gptq
from yeoul.adapt.linearize import convert
from yeoul.adapt.lora.layers import dense
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.adapt.rounding import limits, round_to_nearest
from yeoul.errors import UserError
from yeoul.model.checkpoint import save_model
from yeoul.model.decoder import Decoder
from yeoul.model.exact_score import ExactScore
from yeoul.model.quantized import QuantizedLinear, quantized_modules
from yeoul.ops.low_bit import dequantize, pack, unpack

BOTH = [
    QuantizationConfig.rounded(bits=8, embeddings=True),
    QuantizationConfig.rounded(bits=4, group_size=32, embeddings=True),
]


def whole_numbers(bits: int, *shape: int) -> Tensor:
    high = 2 ** (bits - 1)
    return torch.randint(-high, high, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(bits))


def ids(rows: int = 2, length: int = 24) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("width", [8, 40, 64])
def test_packing_is_undone_by_unpacking(bits: int, width: int) -> None:
    q = whole_numbers(bits, 5, width)
    assert torch.equal(unpack(pack(q, bits), bits, width), q)


def test_four_bits_lie_as_compressed_tensors_has_them() -> None:
    """Eight numbers in an int32, the first in its lowest bits, each raised by 8."""
    q = torch.tensor([[-8, 7, 0, 1, -1, 2, 3, 4]], dtype=torch.int8)
    wanted = sum((int(value) + 8) << (4 * place) for place, value in enumerate(q[0]))
    assert pack(q, 4).item() & 0xFFFFFFFF == wanted


@pytest.mark.parametrize("bits,group", [(8, 0), (8, 32), (6, 0), (4, 32), (4, 64)])
def test_rounding_is_off_by_half_a_step_at_most_inside_the_range(bits: int, group: int) -> None:
    weight = torch.randn(16, 128)
    q, scale = round_to_nearest(weight, bits, group)
    steps = scale.float().repeat_interleave(group or 128, 1)
    error = (q.float() * steps - weight).abs()
    low, high = limits(bits)
    inside = (q > low) & (q < high)
    assert inside.float().mean() > 0.8
    assert (error <= 0.51 * steps.abs())[inside].all()
    assert error.square().mean().sqrt() < {8: 0.012, 6: 0.05, 4: 0.13}[bits]


@pytest.mark.parametrize("rows", [1, 3, 16, 64])
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_kernels_agree_with_the_dequantized_weight(bits: int, rows: int) -> None:
    q, scale = round_to_nearest(torch.randn(64, 128), bits, 0 if bits == 8 else 32)
    layer = QuantizedLinear.of(q, scale, bits)
    x = torch.randn(rows, 128)
    exact = x @ layer.dequantized().T
    torch.testing.assert_close(layer(x), exact)
    assert rms_ratio(layer(x.bfloat16()), x.bfloat16().float() @ layer.dequantized().T) < 0.01


def test_the_input_gets_the_gradient_of_a_linear_layer() -> None:
    layer = QuantizedLinear.of(*round_to_nearest(torch.randn(16, 32), 4, 32), 4)
    x = torch.randn(5, 32, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    (other @ dense(layer).T).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize("bits,group", [(4, 32), (8, 0)])
def test_gptq_loses_less_on_its_text_than_rounding(bits: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=generator)
    x = torch.randn(512, 64, generator=generator) @ torch.randn(64, 64, generator=generator)  # correlated
    lost = []
    for q, scale in (round_to_nearest(weight, bits, group), gptq(weight, x.T @ x, bits, group)):
        packed = pack(q, 4) if bits == 4 else q
        lost.append((x @ (dequantize(packed, scale, torch.float32) - weight).T).square().mean().item())
    assert lost[1] < 0.8 * lost[0]


def test_gptq_is_the_column_by_column_rule() -> None:
    """Against the plain form: round a column, spread its error over those to come by the inverse Hessian."""
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(6, 32, generator=generator), torch.randn(200, 32, generator=generator)
    q, scale = gptq(weight, x.T @ x, 8, 0, ordered=False)
    H = (x.T @ x).double()
    H += 0.01 * H.diagonal().mean() * torch.eye(32)
    left, wanted = weight.double().clone(), torch.empty(6, 32)
    for k in range(32):
        inverse = torch.linalg.inv(H[k:, k:])
        wanted[:, k] = (left[:, k] / scale[:, 0].double()).round().clamp(-128, 127)
        error = (left[:, k] - wanted[:, k] * scale[:, 0].double()) / inverse[0, 0]
        left[:, k:] -= error[:, None] * inverse[0][None]
    assert (q.float() != wanted).float().mean() < 0.02  # ties of rounding in fp32


def without_choice(model: Decoder) -> Decoder:
    """A copy whose layers keep the oldest pairs exactly: rounding may tip a score, and another pair is no rounding."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, ExactScore):
            module.reset_parameters()
    return copied


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_computes_one_meaning_and_is_read_back(kind: str, tmp_path: Path) -> None:
    for number, config in enumerate(BOTH):
        model = make(kind)
        quantize_model(model, config)
        whole = model(ids())
        lost = rms_ratio(without_choice(model)(ids()), without_choice(make(kind))(ids()))
        assert 0 < lost < (0.1 if config.bits == 8 else 1.0)
        cache = model.new_cache(2)
        pieces = [model(ids()[:, a:b], cache=cache) for a, b in ((0, 7), *((t, t + 1) for t in range(7, 24)))]
        assert rms_ratio(torch.cat(pieces, 1), whole) < 1e-5
        save_model(model, tmp_path / str(number))
        again, _ = yeoul.load(tmp_path / str(number))
        assert torch.equal(again(ids()), whole)
        assert {path for path, _ in quantized_modules(again)} == {path for path, _ in quantized_modules(model)}


GPTQ_KINDS = ("softmax", "gemma-like", "fourier-hybrid", "convolution")


@pytest.mark.parametrize("kind,method", [*((kind, "gptq") for kind in GPTQ_KINDS), ("softmax", "awq")])
@torch.no_grad()
def test_a_text_makes_four_bits_better_on_it(kind: str, method: str) -> None:
    text = [ids(8, 32)]
    full = make(kind)
    lost = {}
    for name in ("rtn", method):
        model = make(kind)
        quantize_model(model, QuantizationConfig(bits=4, group_size=32, method=name), text)  # type: ignore[arg-type]
        lost[name] = rms_ratio(model(text[0]), full(text[0]))
    assert lost[method] < lost["rtn"]


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 or 4"):
        QuantizationConfig.rounded(bits=3)
    with pytest.raises(UserError, match="128"):
        QuantizationConfig.rounded(bits=4, group_size=48)
    model = make("softmax")
    with pytest.raises(UserError, match="do not divide"):
        quantize_model(model, QuantizationConfig.rounded(bits=4, group_size=128))
    quantize_model(model, BOTH[1])
    with pytest.raises(UserError, match="again"):
        quantize_model(model, BOTH[0])
    with pytest.raises(UserError):
        convert(model, bare_conversion(window=4))


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_weights_that_are_not_finite_are_named_before_anything_is_changed(method: str) -> None:
    model = make("softmax")
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    config = QuantizationConfig(bits=8, method=method)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model.layers.0.mlp.up_proj.weight.* not finite.* quantized"):
        quantize_model(model, config, [torch.randint(0, 90, (2, 16))])
    assert next(quantized_modules(model), None) is None


@torch.no_grad()
def test_a_text_that_overflows_is_told_from_a_broken_model() -> None:
    model = make("softmax")
    for block in model.layers:
        block.mlp.up_proj.weight.mul_(1e25)
        block.mlp.gate_proj.weight.mul_(1e25)
    for tables, where in ((False, "mlp.down_proj"), (True, "the output projection")):
        config = QuantizationConfig(bits=8, method="gptq", embeddings=tables, head=tables)
        with pytest.raises(UserError, match=rf"not finite before {where}.*rtn"):
            quantize_model(model, config, [torch.randint(0, 90, (2, 16))])


def test_some_predictions_say_of_the_embeddings_what_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model, same = make("softmax"), ids(1).expand(1024, -1)
    asked = quant_statistics.input_moments(model, [same])
    monkeypatch.setattr(quant_statistics, "LOGITS", 6 * VOCAB)
    assert quant_statistics.predicted(VOCAB, 24) == 6 and quant_statistics.predicted(VOCAB, 4) == 4
    found = quant_statistics.input_moments(model, [same])
    assert rms_ratio(found, asked) < 0.15 and abs(float(found.trace() / asked.trace()) - 1) < 0.05


def test_gptq_survives_inputs_that_say_almost_nothing() -> None:
    """Moments that are not positive definite in any precision: rounding goes on with more damping."""
    weight = torch.randn(8, 32)
    hessian = torch.full((32, 32), 1.0) - 1.5 * torch.eye(32)
    q, scale = gptq(weight, hessian, 8, 0)
    assert rms_ratio(q.float() * scale.float(), weight) < 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["강물은 천천히 흐른다. 여울은 빠르게 흐른다.", "오늘은 비가 온다. 내일은 맑다."] * 20
    return write_small_folder(tmp_path_factory.mktemp("models") / "small", texts, vocab_size=310)


def test_the_verb_prints_a_table_and_leaves_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "low"
    command = ["quantize", str(folder), "--bits", "4", "--group-size", "32", "--eval-tokens", "256",
               "--calibration-tokens", "512", "--dtype", "float32", "--out", str(out)]  # fmt: skip
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for word in ("bytes", "perplexity", "bits per byte", "tokens/s", "gptq"):
        assert word in printed
    sizes = [sum(f.stat().st_size for f in path.glob("*.safetensors")) for path in (folder, out)]
    assert sizes[1] < 0.4 * sizes[0]
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    model, tokenizer = yeoul.load(out)
    assert tokenizer is not None and yeoul.generate(model, tokenizer, "강물은", max_tokens=4, temperature=0) is not None
    assert cli.main(command) == 2 and "--overwrite" in capsys.readouterr().err


LOW = ("--bits", "4", "--group-size", "32", "--method", "rtn", "--calibration-tokens", "64", "--eval-tokens", "128")


@pytest.mark.parametrize("at", [1, 2])
def test_what_ends_the_scoring_leaves_the_result_whole_and_says_that_scores_are_missing(
    at: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from yeoul.evaluate import perplexity

    calls, score = [], perplexity.score

    def ended(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return score(*arguments, **more)  # type: ignore[arg-type]

    out = tmp_path / "low"
    with monkeypatch.context() as patched:
        patched.setattr(perplexity, "score", ended)
        assert cli.main(["quantize", str(folder), *LOW, "--out", str(out)]) == 130
    assert f"{out} is whole" in capsys.readouterr().err
    record = json.loads((out / "quantize.json").read_text())
    assert record["scored"] is False and "perplexity" not in record["after"]
    assert ("perplexity" in record["before"]) is (at == 2), "what is known is kept"
    assert cli.main(["info", str(out)]) == 0 and "not scored yet: yeoul evaluate" in capsys.readouterr().out
    assert cli.main(["evaluate", str(out), "--data", "builtin", "--max-tokens", "200"]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_the_record_says_what_was_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "low"
    assert cli.main(["quantize", str(folder), *LOW, "--out", str(out), "--json"]) == 0
    printed, kept = json.loads(capsys.readouterr().out), json.loads((out / "quantize.json").read_text())
    assert printed == kept and kept["scored"] is True
    assert kept["before"]["perplexity"] > 1 and kept["after"]["tokens_per_second"] > 0
    assert cli.main(["info", str(out)]) == 0
    assert f"perplexity {kept['before']['perplexity']:,.3f} before" in capsys.readouterr().out
    assert cli.main(["quantize", str(folder), *LOW[:-2], "--eval-tokens", "0", "--no-speed", "--overwrite",
                     "--out", str(out)]) == 0  # fmt: skip
    assert "not scored; to score it: yeoul evaluate" in capsys.readouterr().out
    assert json.loads((out / "quantize.json").read_text())["scored"] is False


@pytest.mark.parametrize("damage", ["bits", "scale", "shape", "config"])
def test_a_damaged_folder_is_one_sentence(damage: str, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, _ = yeoul.load(folder)
    quantize_model(model, BOTH[1])
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    if damage == "bits":
        next(iter(config["quantization_config"]["config_groups"].values()))["weights"]["num_bits"] = 3
    elif damage == "config":
        config["quantization_config"] = {"quant_method": "something-else"}
    elif damage == "scale":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:3].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        yeoul.load(tmp_path)
