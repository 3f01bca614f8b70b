"""The native library against PyTorch: every kind of model, with padding and without, across everything that moves."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import yeoul
from models import KINDS, VOCAB, make, rms_ratio
from yeoul.adapt.lora.api import add_lora
from yeoul.adapt.lora.config import LoraConfig
from yeoul.infer import next_token
from yeoul.infer.engine import generate_ids
from yeoul.infer.native import binding
from yeoul.infer.native.binding import NativeError, instruction_sets, native_library, why_not
from yeoul.infer.native.decoder import NativeDecoder, decoder_of
from yeoul.infer.native.program import Unsupported
from yeoul.infer.params import SamplingParams
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear, replace_module

pytestmark = pytest.mark.skipif(native_library() is None, reason=f"no native library: {why_not()}")

PYTORCH_ONLY = {"hedgehog-hybrid", "elu", "exact-positions", "lstm", "gru", "conv", "rnn-beside-softmax"}
"""Kinds with a feature map or a layer that the library does not know."""


def compare(model: Decoder, native: NativeDecoder, ids: Tensor, mask: Tensor | None, steps: int) -> float:
    """Largest relative distance of logits after a prefill, over steps that both go from the same cache."""
    found = []
    with torch.inference_mode():
        mine, theirs = model.new_cache(len(ids)), model.new_cache(len(ids))
        for cache in (mine, theirs):
            model(ids, mask, cache=cache)
        tokens = ids[:, -1]
        for step in range(steps):
            assert native.takes(mine, len(ids))
            logits = native.step(tokens, mine)
            wanted = model(tokens[:, None], cache=theirs)[:, -1]
            found.append(rms_ratio(logits, wanted))
            tokens = wanted.argmax(-1)
            if step == steps // 2 and len(ids) > 1:  # a row is done
                keep = torch.arange(1, len(ids))
                mine.reorder(keep), theirs.reorder(keep)
                ids, tokens = ids[1:], tokens[1:]
        # PyTorch goes on where the library stopped, with several tokens at once
        more = torch.randint(VOCAB, (len(ids), 3))
        found.append(rms_ratio(model(more, cache=mine), model(more, cache=theirs)))
        assert mine.length == theirs.length and mine.nbytes() == theirs.nbytes()
    return max(found)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - PYTORCH_ONLY))
@pytest.mark.parametrize("padded", [False, True])
def test_it_computes_what_pytorch_does(kind: str, padded: bool) -> None:
    model = make(kind).eval()
    torch.manual_seed(1)
    ids, mask = torch.randint(VOCAB, (3, 11)), None
    if padded:
        mask = torch.ones_like(ids)
        mask[0, :4] = mask[1, :1] = 0
    native = NativeDecoder(model, 3, threads=2 if padded else 1)
    assert compare(model, native, ids, mask, steps=40) < 2e-5


@pytest.mark.parametrize("kind", sorted(set(KINDS) - PYTORCH_ONLY))
def test_several_tokens_of_a_text_at_once(kind: str) -> None:
    model = make(kind).eval()
    native = NativeDecoder(model, 9, threads=2)
    torch.manual_seed(2)
    with torch.inference_mode():
        mine, theirs = model.new_cache(1), model.new_cache(1)
        start = torch.randint(VOCAB, (1, 8))
        for cache in (mine, theirs):
            model(start, cache=cache)
        for length in (5, 1, 9, 2, 7):
            ids = torch.randint(VOCAB, (length,))
            before = mine.snapshot()
            native.read(torch.randint(VOCAB, (4,)), mine)  # wrong guesses
            mine = before
            found, wanted = native.read(ids, mine), model(ids[None], cache=theirs)[0]
            assert rms_ratio(found, wanted) < 2e-5


@pytest.mark.parametrize("kind", sorted(PYTORCH_ONLY))
def test_what_it_does_not_know_stays_with_pytorch(kind: str) -> None:
    with pytest.raises(Unsupported):
        NativeDecoder(make(kind), 1)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("kind", ["gemma-like", "exact-codebook", "fourier-hybrid", "classic"])
def test_all_instruction_sets_agree(isa: str, kind: str) -> None:
    if isa not in instruction_sets():
        pytest.skip(f"this processor has no {isa}")
    model = make(kind).eval()
    native = NativeDecoder(model, 2, threads=1, isa=isa)
    assert compare(model, native, torch.randint(VOCAB, (2, 9)), None, steps=20) < 2e-5


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_and_threads_of_any_number(rows: int, threads: int) -> None:
    model = make("exact-beside-sliding").eval()
    native = NativeDecoder(model, rows, threads=threads)
    assert compare(model, native, torch.randint(VOCAB, (rows, 12)), None, steps=12) < 2e-5


def few_bits(bits: int, group: int) -> Decoder:
    """A model whose tables and products have whole numbers of so many bits as weights."""
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2
    )
    torch.manual_seed(0)
    model = Decoder(config).eval()
    table = "model.embed_tokens"
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) or path == table:
            K = module.weight.shape[1]
            scale = module.weight.abs().amax(1, keepdim=True).expand(-1, K // (group or K)) / (2 ** (bits - 1) - 1)
            wide = scale.bfloat16().float().repeat_interleave(group or K, 1)
            q = (module.weight / wide).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)
            kind = QuantizedEmbedding if path == table else QuantizedLinear
            replace_module(model, path, kind.of(q.detach(), scale.detach().bfloat16().contiguous(), bits))
    return model


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 32), (6, 0), (4, 32), (4, 64), (4, 128)])
def test_weights_of_few_bits(bits: int, group: int) -> None:
    """Inputs are rounded to 16 bits in blocks: the error stays below a ten-thousandth."""
    model = few_bits(bits, group)
    for rows in (1, 3):
        native = NativeDecoder(model, rows, threads=2)
        assert compare(model, native, torch.randint(VOCAB, (rows, 9)), None, steps=10) < 1e-4


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lost(isa: str, bits: int, value: float) -> None:
    """Activations that have run over give logits of which somebody can see it, as they do in PyTorch."""
    if isa not in instruction_sets():
        pytest.skip(f"this processor has no {isa}")
    model = few_bits(bits, 32) if bits < 16 else make("softmax").eval()
    model = model.bfloat16() if bits == 16 else model
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = value
    for rows in (1, 2):
        tokens = torch.randint(VOCAB, (rows,))
        with torch.inference_mode():
            assert not model(tokens[:, None]).isfinite().any()
            found = NativeDecoder(model, rows, threads=2, isa=isa).step(tokens, model.new_cache(rows))
        assert not found.isfinite().any()


@pytest.mark.parametrize("kind", ["gemma-like", "exact-sinks", "delta-hybrid-sinks", "convolution"])
def test_weights_of_bfloat16(kind: str) -> None:
    """Ours is nearer to what the same weights give in fp32 than PyTorch's, which rounds activations as well."""
    model = make(kind).eval()
    half = copy.deepcopy(model).bfloat16()
    exact = copy.deepcopy(half).float()
    native = NativeDecoder(half, 2, threads=2)
    ids = torch.randint(VOCAB, (2, 20))
    with torch.inference_mode():
        caches = [m.new_cache(2) for m in (half, half, exact)]
        for m, cache in zip((half, half, exact), caches, strict=True):
            m(ids, cache=cache)
        ours, theirs = [], []
        for step in range(10):
            wanted = exact(ids[:, step : step + 1], cache=caches[2])[:, -1]
            ours.append(rms_ratio(native.step(ids[:, step], caches[0]), wanted))
            theirs.append(rms_ratio(half(ids[:, step : step + 1], cache=caches[1])[:, -1], wanted))
    assert sum(ours) < 1.1 * sum(theirs) and max(ours) < 0.2


@pytest.mark.parametrize("kind", ["softmax", "exact-codebook", "fourier-hybrid"])
def test_generation_decodes_with_it_and_says_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind).eval()
    prompts = [[5, 6, 7, 8, 9, 10, 11], [7, 8], [9, 10, 11]]
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=3)
    steps = []
    real = NativeDecoder.step
    monkeypatch.setattr(NativeDecoder, "step", lambda *a: steps.append(1) or real(*a))  # type: ignore[func-returns-value]
    found = generate_ids(model, prompts, params)
    assert len(steps) == 39
    monkeypatch.setattr(next_token, "decoder_of", lambda *a: None)
    assert generate_ids(model, prompts, params) == found and len(steps) == 39


def test_what_is_out_of_range_is_refused_before_it_runs() -> None:
    model = make("softmax").eval()
    native = NativeDecoder(model, 1)
    cache = model.new_cache(1)
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]), cache=cache)
        for token in (-1, VOCAB, 2**40):
            with pytest.raises(NativeError, match="no token"):
                native.step(torch.tensor([token]), cache)
        with pytest.raises(Unsupported):
            NativeDecoder(model, 1000)


def test_a_cache_of_another_type_is_left_to_pytorch() -> None:
    model, ids = make("softmax").eval(), torch.tensor([[1, 2, 3]])
    cache = model.new_cache(1)
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(ids, cache=cache)
        assert cache.layers[0].k.dtype == torch.bfloat16  # type: ignore[attr-defined]
        assert not NativeDecoder(model, 1).takes(cache, 1)


def test_a_model_with_an_adapter_or_a_hook_stays_with_pytorch() -> None:
    model = make("softmax").eval()
    assert decoder_of(model, 1) is not None
    handle = model.layers[0].register_forward_hook(lambda *a: None)
    assert decoder_of(model, 1) is None
    handle.remove()
    add_lora(model, LoraConfig(r=2), "a")
    assert decoder_of(model, 1) is None


def test_weights_that_change_are_seen_by_the_next_decoder() -> None:
    model, ids = make("gemma-like").eval(), torch.randint(VOCAB, (1, 9))
    compare(model, NativeDecoder(model, 1), ids, None, steps=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert compare(model, NativeDecoder(model, 1), ids, None, steps=5) < 2e-5


@pytest.fixture
def unknown_library() -> Iterator[None]:
    """Asks for the library anew, inside and behind."""
    caches = (binding.native_library, binding.why_not, binding._load, binding.instruction_sets)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("broken", ["absent", "no library", "another version", "switched off"])
def test_without_the_library_pytorch_decodes(
    broken: str, unknown_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "_step.so"
    path.write_bytes(b"not a library")
    if broken == "absent":
        monkeypatch.setattr(binding, "location", lambda: None)
    elif broken == "no library":
        monkeypatch.setattr(binding, "location", lambda: str(path))
    elif broken == "another version":
        monkeypatch.setattr(binding, "KINDS", binding.KINDS[1:])
    else:
        monkeypatch.setenv("YEOUL_NATIVE", "0")
    said = {"absent": "was not built", "no library": "cannot be loaded", "another version": "install Yeoul again",
            "switched off": "YEOUL_NATIVE=0"}  # fmt: skip
    reason = why_not()
    assert reason is not None and said[broken] in reason and instruction_sets() == ()
    model = make("softmax").eval()
    assert decoder_of(model, 1) is None
    assert len(generate_ids(model, [[5, 6]], SamplingParams(max_tokens=4, ignore_eos=True))[0]) == 4


def test_a_child_process_has_threads_of_its_own() -> None:
    model = make("softmax").eval()
    native = NativeDecoder(model, 1, threads=2)
    cache = model.new_cache(1)
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]), cache=cache)
        native.step(torch.tensor([5]), cache)
        child = os.fork()
        if child == 0:
            native.step(torch.tensor([6]), cache)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)  # a build with sanitizers, and torch under them
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    """With sanitizers for addresses and undefined behaviour; damaged programs, too."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ for a build with sanitizers")
    asan = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("this g++ has no address sanitizer")
    source, built = Path(binding.__file__).parent / "csrc" / "step.cpp", tmp_path / "step.so"
    flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-w", "-fsanitize=address,undefined",
             "-fno-sanitize-recover=all"]  # fmt: skip
    subprocess.run([compiler, *flags, "-o", str(built), str(source), "-lpthread"], check=True)
    script = Path(__file__).with_name("native_sanitized.py")
    environment = os.environ | {
        "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([str(script.parents[1]), str(Path(yeoul.__file__).parents[1])]),
    }  # fmt: skip
    done = subprocess.run([sys.executable, str(script), str(built)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "damaged programs were refused" in done.stdout
