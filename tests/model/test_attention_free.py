"""Layers without attention: what torch's own modules and the formulas give; how far they see; where they cannot go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import VOCAB, make, rms_ratio
from yeoul import cli
from yeoul.adapt.linearize import Conversion, convert
from yeoul.adapt.lora.api import add_lora
from yeoul.adapt.lora.config import LoraConfig
from yeoul.errors import UserError
from yeoul.model.attention_free import GatedConvolution, Recurrent, RecurrentCache
from yeoul.model.checkpoint import load_model, save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.gguf_plan import plan
from yeoul.recipes.caches import cache_bytes

LIMIT = 1e-5


def ids(length: int = 40, rows: int = 2) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


def _by_cells(layer: Recurrent, x: Tensor) -> Tensor:
    """Token by token through torch's cell with the same weights."""
    width = x.shape[2]
    cell: nn.Module = nn.LSTMCell(width, width) if layer.kind == "lstm" else nn.GRUCell(width, width)
    cell.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in layer.rnn.state_dict().items()})
    state, out = None, []
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
        out.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(out, 1)


def _by_taps(layer: GatedConvolution, x: Tensor) -> Tensor:
    """One tap after the other: tap j of K reaches (K - 1 - j) dilations back."""
    (dilation,), T = layer.conv.dilation, x.shape[1]
    y = layer.conv.bias.expand(len(x), T, -1)
    for j in range(layer.conv.kernel_size[0]):
        back = (layer.conv.kernel_size[0] - 1 - j) * dilation
        y = y + F.pad(x, (0, 0, back, 0))[:, :T] @ layer.conv.weight[:, :, j].T
    a, b = y.chunk(2, -1)
    return a * torch.sigmoid(b)


@pytest.mark.parametrize("kind", ["lstm", "gru", "conv"])
@torch.no_grad()
def test_the_whole_model_is_what_the_formulas_say(kind: str) -> None:
    model = make(kind)
    x = model.model.embed_tokens(ids())
    for block in model.layers:
        normed = block.input_layernorm(x)
        layer = block.self_attn
        x = x + (_by_taps(layer, normed) if isinstance(layer, GatedConvolution) else _by_cells(layer, normed))
    expected = model.model.norm(x) @ model.output_weight.T
    assert rms_ratio(model(ids()), expected) < LIMIT


@torch.no_grad()
def test_a_convolution_sees_so_far_and_no_farther() -> None:
    config = ModelConfig(vocab_size=VOCAB, hidden_size=16, num_layers=10, num_heads=1, attention=("conv",),
                         conv_kernel=3, positions="none", mlp="none")  # fmt: skip
    assert config.dilations == (1, 2, 4, 8, 16, 32, 64, 128, 1, 2) and config.conv_reach == 2 * (255 + 3)
    short = config.with_(num_layers=3, attention=("conv",) * 3)
    torch.manual_seed(0)
    model, text = Decoder(short).double(), ids(40, 1)
    for far, same in ((short.conv_reach + 1, True), (short.conv_reach, False)):
        other = text.clone()
        other[0, 39 - far] = (text[0, 39 - far] + 1) % VOCAB
        assert torch.equal(model(text)[0, -1], model(other)[0, -1]) == same


@pytest.mark.parametrize("kind", ["lstm", "gru", "conv"])
@torch.no_grad()
def test_the_cache_is_as_large_as_said_and_goes_on_behind_padding(kind: str) -> None:
    model = make(kind)
    cache = model.new_cache(2)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :12] = torch.tensor([0] * 9 + [1] * 3)
    model(ids(12), mask, cache=cache)
    first = cache.nbytes()
    assert first == 2 * cache_bytes(model.config, 4)[0] and cache_bytes(model.config, 4)[1] == 0
    later = model(ids(30)[:, 12:], cache=cache)
    assert cache.nbytes() == first
    alone = torch.cat((ids(12)[1:, 9:], ids(30)[1:, 12:]), 1)
    assert rms_ratio(later[1], model(alone)[0, 3:]) < LIMIT


@torch.no_grad()
def test_a_row_without_a_token_keeps_its_state() -> None:
    layer = Recurrent(8, "lstm")
    x, cache = torch.randn(2, 5, 8), RecurrentCache()
    layer.scan(x, None, cache)
    assert cache.h is not None and cache.c is not None
    h, c = cache.h.clone(), cache.c.clone()
    layer.scan(x, torch.tensor([5, 0]), cache)
    assert torch.equal(cache.h[1], h[1]) and torch.equal(cache.c[1], c[1]) and not torch.equal(cache.h[0], h[0])


@pytest.mark.parametrize("kind", ["lstm", "gru", "conv"])
def test_adapters_have_the_table_of_tokens_alone(kind: str) -> None:
    with pytest.raises(UserError, match="no projections that a low-rank adapter could stand beside.*--method full"):
        add_lora(make(kind), LoraConfig())
    model = make(kind)
    before = model(ids())
    add_lora(model, LoraConfig(target_modules=("embed_tokens",)))
    assert rms_ratio(model(ids()), before) < LIMIT
    model(ids()).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["lstm", "gru", "conv"])
@torch.no_grad()
def test_texts_of_a_row_may_be_numbered_and_laid_in_any_way(kind: str) -> None:
    model, text = make(kind), ids(12, 1)
    numbers = torch.tensor([[3, 3, 0, 0, 0, 3, 1, -1, 0, 1, 3, 1]])
    found = model(text, seq_ids=numbers)
    for number in (0, 1, 3):
        own = numbers[0] == number
        assert rms_ratio(found[0, own], model(text[:, own])[0]) < LIMIT


def test_what_needs_attention_refuses_in_a_sentence() -> None:
    with pytest.raises(UserError, match="no softmax layer to linearize"):
        convert(make("lstm"), Conversion())
    with pytest.raises(UserError, match="llama.cpp has no layers of kind gru"):
        plan(make("gru").config)
    with pytest.raises(UserError, match="without MLP"):
        ModelConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=1, mlp="none", parallel_residual=True)
    with pytest.raises(UserError, match="conv_kernel"):
        ModelConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=1, attention=("conv",), conv_kernel=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lstm", "gru", "conv"])
def test_folders_hold_it_and_it_decodes_in_every_type(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make(kind).to(dtype)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.config == model.config and again.dtype == dtype
    with torch.no_grad():
        assert torch.equal(again(ids()), model(ids()))
        cache = again.new_cache(2)
        again(ids(), cache=cache)
        assert torch.isfinite(again(ids(1), cache=cache)).all()


@pytest.mark.parametrize("preset", ["lstm-10m", "gru-10m", "cnn-10m"])
def test_the_verbs_take_it(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, run = tmp_path / "text.txt", str(tmp_path / "run")
    text.write_text("옛날 옛적에 강가에 다람쥐가 살았습니다.\n" * 200, encoding="utf-8")
    data = ["--data", str(text)]
    shape = ["--preset", preset, "--hidden-size", "32", "--layers", "2", "--vocab-size", "300", "--context", "32"]
    trained = ["--tokens", "512", "--batch-size", "4", "--val-fraction", "0.1", "--isolate-documents", "--no-report"]
    for arguments, said in (
        (["pretrain", str(text), *shape, *trained, "--out", run], ""),
        (["generate", run, "옛날", "--max-tokens", "9"], ""), (["evaluate", run, *data], "perplexity"),
        (["info", run], "at any length"), (["bench", run, "--contexts", "32", "--steps", "2"], "tokens/s"),
        (["quantize", run, "--method", "rtn", "--no-report", "--no-speed", *data, "--out", f"{run}-8"], "8 bits"),
        (["generate", f"{run}-8", "옛날", "--max-tokens", "9"], ""),
    ):  # fmt: skip
        assert cli.main([*arguments, "--device", "cpu"] if arguments[0] != "info" else arguments) == 0, arguments
        output = capsys.readouterr()
        assert said in output.out + output.err, (arguments, output)
    for arguments, said in (
        (["inspect", run, "--text", "옛날 옛적에"], "has no attention that could be shown"),
        (["linearize", run, *data, "--out", f"{run}-l"], "no softmax layer to linearize"),
        (["export", run, "--format", "gguf", "--out", f"{run}.gguf"], "llama.cpp has no layers of kind"),
    ):  # fmt: skip
        assert cli.main(arguments) == 2
        assert said in capsys.readouterr().err
