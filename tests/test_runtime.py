"""Device, dtype, threads, seed, memory, and the environment variables that change them."""

from __future__ import annotations

import ctypes
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from yeoul import runtime
from yeoul.errors import UserError

VARIABLES = (
    "YEOUL_DEVICE", "YEOUL_DTYPE", "YEOUL_THREADS", "OMP_NUM_THREADS", "RANK", "LOCAL_RANK", "WORLD_SIZE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_auto_device_exists() -> None:
    assert runtime.resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.resolve_device("cpu") == runtime.resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps:0", ""])
def test_unknown_device(name: str) -> None:
    with pytest.raises(UserError, match="unknown device"):
        runtime.resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absent_gpu() -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        runtime.resolve_device("cuda")


def test_gpu_of_this_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.resolve_device() == torch.device("cuda", 1)
    assert runtime.resolve_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(UserError, match="does not exist"):
        runtime.resolve_device("cuda:2")


def test_environment_replaces_auto_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YEOUL_DEVICE", "nonsense")
    monkeypatch.setenv("YEOUL_DTYPE", "bf16")
    assert runtime.resolve_device("cpu") == torch.device("cpu")
    assert runtime.resolve_dtype("auto", "cpu") == torch.bfloat16
    assert runtime.resolve_dtype("float32", "cpu") == torch.float32
    with pytest.raises(UserError, match="YEOUL_DEVICE"):
        runtime.resolve_device("auto")


def test_dtypes() -> None:
    native = runtime.has_native_bf16(torch.device("cpu"))
    assert runtime.resolve_dtype("auto", "cpu") == (torch.bfloat16 if native else torch.float32)
    assert runtime.resolve_dtype("fp16", "cpu") == runtime.resolve_dtype(torch.float16, "cpu") == torch.float16
    assert runtime.requested_dtype("auto") is None
    assert runtime.computes_natively(torch.float32, torch.device("cpu"))
    assert not runtime.computes_natively(torch.float16, torch.device("cpu"))
    with pytest.raises(UserError, match='unknown dtype "int4"'):
        runtime.resolve_dtype("int4", "cpu")


def test_emulated_bf16_is_not_native() -> None:
    avx512_only = "flags\t: fpu avx2 avx512f avx512bw avx512vl avx512dq avx512_vnni\n"
    features = runtime.parse_cpu_flags(avx512_only)
    assert features.names() == ["avx2", "avx512", "avx512_vnni"]
    assert not features.native_bf16
    assert runtime.parse_cpu_flags("flags : avx512_bf16 amx_tile amx_bf16 amx_int8").native_bf16
    arm = runtime.parse_cpu_flags("processor : 0\nFeatures : fp asimd bf16\n")
    assert arm.neon and arm.arm_bf16 and arm.native_bf16
    assert runtime.parse_cpu_flags("").names() == []


def test_cpu_features_without_cpuinfo_agree_with_torch() -> None:
    assert runtime._cpu_features_from_torch().avx2 == bool(torch.cpu.get_capabilities().get("avx2"))


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert runtime.set_threads(1) == torch.get_num_threads() == 1
        monkeypatch.setenv("YEOUL_THREADS", "2")
        assert runtime.set_threads() == torch.get_num_threads() == 2
        monkeypatch.setenv("YEOUL_THREADS", "many")
        with pytest.raises(UserError, match="YEOUL_THREADS=many"):
            runtime.set_threads()
        with pytest.raises(UserError, match="threads"):
            runtime.set_threads(0)
    finally:
        torch.set_num_threads(before)


def test_threads_before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_cpu_quotas", lambda: [])
    runtime.prepare_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(runtime, "_cpu_quotas", lambda: [1, 8])
    runtime.prepare_threads()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(runtime, "_cpu_quotas", lambda: [])
    runtime.prepare_threads()
    assert os.environ["OMP_NUM_THREADS"] == "1", "a value that is there is respected"
    monkeypatch.setenv("YEOUL_THREADS", "3")
    runtime.prepare_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_machine_can_be_written_down() -> None:
    machine = json.loads(json.dumps(runtime.machine()))
    assert machine["cores"] >= 1 and machine["torch"] == torch.__version__ and machine["memory"] > 0


def test_seed_repeats_everything() -> None:
    def draw() -> tuple[float, float, float]:
        runtime.seed_everything(2**40 + 7)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library has no malloc_trim")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    runtime.return_freed_memory()
    kept = []
    before = resident()
    for _ in range(2000):  # below the size that glibc maps by itself; every second one stays, so that nothing melts
        big, small = torch.ones(12_000), torch.ones(16)  # together
        kept += [big, small]
    held = resident()
    assert held - before > 60 * 2**20
    del kept[::2], big
    runtime.return_freed_memory()
    assert resident() - before < 0.3 * (held - before)


def test_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (runtime.rank(), runtime.local_rank(), runtime.world_size()) == (0, 0, 1)
    assert runtime.is_main_process()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (runtime.rank(), runtime.world_size(), runtime.is_main_process()) == (3, 4, False)
    monkeypatch.setenv("RANK", "-1")
    with pytest.raises(UserError, match="RANK"):
        runtime.rank()


def test_memory_is_that_of_the_container(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    total, available = runtime.memory_total(), runtime.memory_available()
    assert 0 < available <= total
    for name, value in (("memory.max", "1000000"), ("memory.current", "600000"), ("memory.stat", "")):
        (tmp_path / name).write_text(value + "\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\nactive_file 7\n")
    monkeypatch.setattr(runtime, "_cgroup_folders", lambda controller: [tmp_path])
    assert runtime.memory_total() == 1_000_000
    assert runtime.memory_available() == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert runtime.memory_total() == total


def test_cpu_quota(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_cgroup_folders", lambda controller: [tmp_path])
    cores = runtime.usable_cpus()
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert runtime.usable_cpus() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert runtime.usable_cpus() == cores
