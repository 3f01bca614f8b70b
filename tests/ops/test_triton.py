"""The Triton kernels of linear attention: in Triton's interpreter, compiled, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.triton_checks import IDS, case, errors, exact, kernels, results
from yeoul.ops import chunked, triton_chunked
from yeoul.ops.linear_attention import linear_attention

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@needs_triton
def test_the_kernels_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/ops/triton_checks.py", "-q", "-n", "0", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 15 and "skipped" not in done.stdout


def test_why_not_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    why_not = triton_chunked.why_not.__wrapped__  # not what was found before
    cpu = torch.device("cpu")
    assert why_not(cpu) == "the kernels are for NVIDIA GPUs"
    monkeypatch.setattr(triton_chunked, "DEVICES", ("cpu",))
    with monkeypatch.context() as absent:
        absent.setattr(importlib.util, "find_spec", lambda name: None)
        assert why_not(cpu) == "Triton is not installed"
    if importlib.util.find_spec("triton") is not None:  # compiled kernels do not run on a CPU, interpreted ones do
        assert str(why_not(cpu)).startswith("Triton cannot compile here: ")


COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from yeoul.ops import triton_kernels

KINDS = {"valid": "*i8", "ids": "*i32", "T": "i32", "NC": "i32", "rows": "i32", "eps": "fp32"}
for name in ("q", "k", "v", "d_out", "d_q", "d_k", "d_v"):
    KINDS[name] = "*bf16"
for name in "q_b q_h q_t k_b k_g k_t v_b v_g v_t".split():
    KINDS[name] = "i32"
VALUES = dict(G=2, H=4, R=2, M=128, D=65, C=64, BM=64, BD=64, IM=32, ID=32, NORMALIZE=True, PRECISION="tf32")
VALUES["RATES"] = True  # the gradient of the decay, which not every call wants
shared = {}
for name in "states outputs d_denominators d_states d_queries d_keys d_values".split():
    kernel = getattr(triton_kernels, name)
    constants = {p.name: VALUES[p.name] for p in kernel.params if p.is_constexpr}
    signature = {n: "constexpr" if n in constants else KINDS.get(n, "*fp32") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    target, options = GPUTarget("cuda", 80, 32), dict(num_warps=4, num_stages=2)
    shared[name] = triton.compile(source, target=target, options=options).metadata.shared
print(json.dumps(shared))
"""


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_without_a_gpu(tmp_path: Path) -> None:
    """To machine code for compute capability 8.0, in the shared memory that every later GPU has (99 KiB)."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    assert len(shared) == 7 and max(shared.values()) <= 99 * 1024, shared


def load_benchmark() -> Any:
    path = ROOT / "benchmarks" / "linear_attention_gpu.py"
    spec = importlib.util.spec_from_file_location("benchmark_linear_attention_gpu", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark


def test_the_benchmark_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--turns", "1"]) == 2
    assert capsys.readouterr().err == "This benchmark needs a CUDA GPU, and torch sees none.\n"


def test_the_benchmark_calls_what_it_says() -> None:
    benchmark = load_benchmark()
    arguments = ["--heads", "4", "--kv-heads", "2", "--dtype", "float32", "--features", "8", "--head-size", "6"]
    options = benchmark.parse(arguments)
    assert options.positions == [2048, 4096, 8192, 16384, 32768, 65536, 131072]
    for method in ("pytorch", "softmax"):
        for which in ("forward", "forward+backward"):
            out = benchmark.make_call(options, method, which, 32, torch.device("cpu"))()
            assert out.shape == (1, 4, 32, 6) and out.requires_grad is (which == "forward+backward")
    assert benchmark.make_call(options, "softmax", "decode step", 32, torch.device("cpu"))().shape == (1, 4, 1, 6)
    assert benchmark.make_call(options, "triton", "decode step", 32, torch.device("cpu"))().shape == (1, 4, 6)
    assert benchmark.make_call(options, "chunk_retention", "decode step", 32, torch.device("cpu")) is None
    record = {"method": "triton", "pass": "forward", "positions": 32}
    measured = record | {"seconds": 0.002, "seconds_quartiles": [0.001, 0.003], "peak_bytes": 2**20}
    assert "2.000 ms [1.000, 3.000]  peak       1.0 MiB" in benchmark.line(measured)
    assert benchmark.line(record | {"skipped": "out of memory"}).endswith("skipped: out of memory")


@pytest.fixture
def whole_factors() -> Iterator[None]:
    """No TensorFloat32 for float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(**sizes: Any) -> dict[str, torch.Tensor]:
    return {name: x.cuda() for name, x in case(**sizes).items()}


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("kind", ["none", "head", "position"])
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_gpu_float32_is_the_definition(kind: str, packed: bool, whole_factors: None) -> None:
    ids = IDS if packed else None
    given = on_gpu(b=2, h=4, g=2, m=70, d=66, kind=kind)
    found = errors(kernels(given, ids), exact(given, ids))
    assert max(found.values()) <= 1e-5, found


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_half_precision_is_as_exact_as_the_other_form(dtype: torch.dtype, whole_factors: None) -> None:
    given = on_gpu(b=2, h=4, g=2, t=200, m=64, d=64)
    given["log_decay"] = given["log_decay"] * 0.05
    for name in ("q", "k", "v", "d_out"):
        given[name] = given[name].to(dtype)
    # The definition itself takes too long at this length: the same sums in float64.
    expected = results(chunked.chunked, {name: x.cpu().double() for name, x in given.items()}, chunk_size=64)
    ours = errors(kernels(given, chunk_size=64), expected)
    theirs = errors(results(chunked.chunked, given, chunk_size=64), expected)
    for name in ("out", "d_q", "d_k", "d_v"):
        assert ours[name] <= 1.2 * theirs[name], (name, ours, theirs)
    assert max(ours.values()) <= 2e-2, ours


@pytest.mark.gpu
@needs_gpu
@needs_triton
def test_on_a_gpu_linear_attention_takes_the_kernels(monkeypatch: pytest.MonkeyPatch, whole_factors: None) -> None:
    assert triton_chunked.why_not(torch.device("cuda", torch.cuda.current_device())) is None
    q, k, v = (on_gpu(t=100)[name] for name in "qkv")
    ours = linear_attention(q, k, v)
    monkeypatch.setattr(triton_chunked, "takes", lambda x: False)
    assert errors({"out": ours}, {"out": linear_attention(q, k, v)})["out"] <= 1e-5
