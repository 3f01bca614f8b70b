"""Where and how to compute: device, dtype, threads, seed, rank, memory.

The only module that reads the environment: `YEOUL_DEVICE`, `YEOUL_DTYPE` and `YEOUL_THREADS` replace what
"auto" would choose; `RANK`, `LOCAL_RANK` and `WORLD_SIZE` come from torchrun; `OMP_NUM_THREADS` is respected.
(`HF_*` belongs to huggingface_hub.) torch is imported inside the functions, so that commands without tensors
stay quick.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.units import count

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


@dataclass(frozen=True, kw_only=True)
class CpuFeatures:
    """Instruction sets that decide how fast tensors are on this CPU."""

    avx2: bool = False
    avx512: bool = False
    avx512_vnni: bool = False
    avx512_bf16: bool = False
    amx_bf16: bool = False
    amx_int8: bool = False
    neon: bool = False
    arm_bf16: bool = False

    @property
    def native_bf16(self) -> bool:
        """bf16 matmuls run in hardware; elsewhere they are emulated, up to 100 times slower than fp32."""
        return self.amx_bf16 or self.avx512_bf16 or self.arm_bf16

    def names(self) -> list[str]:
        """The features that are there, in the order of the fields."""
        return [name for name, present in asdict(self).items() if present]


def _setting(name: str) -> str | None:
    """Value of an environment variable; None when unset or blank."""
    value = os.environ.get(name, "").strip()
    return value or None


def endpoint_key() -> str | None:
    """The key that OpenAI-compatible endpoints are given: OPENAI_API_KEY, as their clients have it."""
    return _setting("OPENAI_API_KEY")


def _integer_setting(name: str, default: int, minimum: int) -> int:
    value = _setting(name)
    if value is None:
        return default
    if not re.fullmatch(r"\d+", value) or int(value) < minimum:
        raise UserError(f"{name}={value} is not a whole number of at least {minimum}", "environment variable")
    return int(value)


def rank() -> int:
    """Rank of this process among all of a distributed run; 0 outside one."""
    return _integer_setting("RANK", 0, 0)


def local_rank() -> int:
    """Rank of this process on this machine; 0 outside a distributed run."""
    return _integer_setting("LOCAL_RANK", 0, 0)


def world_size() -> int:
    """Number of processes of the run; 1 outside a distributed run."""
    return _integer_setting("WORLD_SIZE", 1, 1)


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that exists.

    "auto" is `YEOUL_DEVICE` when set, else the GPU of this rank when torch sees one, else the CPU.

    Raises:
        UserError: unknown name, or a GPU that torch does not see.
    """
    import torch

    where = "device"
    name = str(device).strip().lower()
    if name == "auto" and (override := _setting("YEOUL_DEVICE")) is not None:
        where, name = "YEOUL_DEVICE", override.lower()
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = "cuda"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f'unknown device "{name}"', where, 'use "auto", "cpu", "cuda" or "cuda:N"')
    if not torch.cuda.is_available():
        raise UserError(f'device "{name}" is not available, torch sees no GPU', where, "run `yeoul doctor`")
    seen = torch.cuda.device_count()
    index = int(match[1]) if match[1] is not None else local_rank() % seen
    if index >= seen:
        raise UserError(
            f'device "{name}" does not exist: torch sees {count(seen, "GPU")}', where, "GPUs are numbered from 0"
        )
    return torch.device("cuda", index)


def resolve_dtype(dtype: str | torch.dtype = "auto", device: str | torch.device = "auto") -> torch.dtype:
    """Turn "auto", "float32", "bfloat16" or "float16" into a torch dtype that is worth using on `device`.

    "auto" is `YEOUL_DTYPE` when set, else bfloat16 where the hardware multiplies it (a CUDA GPU of compute
    capability 8.0 or more, a CPU with AMX, AVX512-BF16 or ARM's bf16), else float32. A named dtype is taken
    as it is.

    Raises:
        UserError: unknown name.
    """
    import torch

    if (requested := requested_dtype(dtype)) is not None:
        return requested
    return torch.bfloat16 if has_native_bf16(resolve_device(device)) else torch.float32


def requested_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype that somebody named, here or in `YEOUL_DTYPE`; None for "auto".

    Raises:
        UserError: unknown name.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    where, name = "dtype", dtype.strip().lower()
    if name == "auto" and (override := _setting("YEOUL_DTYPE")) is not None:
        where, name = "YEOUL_DTYPE", override.lower()
    if name == "auto":
        return None
    if name not in DTYPE_NAMES:
        raise UserError(f'unknown dtype "{name}"', where, 'use "auto", "float32", "bfloat16" or "float16"')
    resolved: torch.dtype = getattr(torch, DTYPE_NAMES[name])
    return resolved


def computes_natively(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `device` multiplies matrices of `dtype` at full speed, without emulation."""
    import torch

    if dtype == torch.bfloat16:
        return has_native_bf16(device)
    return dtype == torch.float32 or (dtype == torch.float16 and device.type == "cuda")


def has_native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Both questions: oneDNN also says yes to an AVX-512 CPU without bf16, where it emulates.
    return cpu_features().native_bf16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_features() -> CpuFeatures:
    """Instruction sets of this CPU: from /proc/cpuinfo where there is one, else from torch."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _cpu_features_from_torch()
    return parse_cpu_flags(text)


def parse_cpu_flags(cpuinfo: str) -> CpuFeatures:
    """Read the first "flags" (x86) or "Features" (ARM) line of a /proc/cpuinfo text."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return CpuFeatures(
        avx2="avx2" in flags,
        avx512={"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags,
        avx512_vnni="avx512_vnni" in flags,
        avx512_bf16="avx512_bf16" in flags,
        amx_bf16={"amx_tile", "amx_bf16"} <= flags,
        amx_int8={"amx_tile", "amx_int8"} <= flags,
        neon="asimd" in flags,
        arm_bf16="bf16" in flags,
    )


def _cpu_features_from_torch() -> CpuFeatures:
    import torch

    if platform.machine().lower() in ("arm64", "aarch64"):
        return CpuFeatures(neon=True, arm_bf16=bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    found = torch.cpu.get_capabilities()
    return CpuFeatures(
        avx2=bool(found.get("avx2")),
        avx512=all(found.get(f"avx512_{part}") for part in ("f", "bw", "vl", "dq")),
        avx512_vnni=bool(found.get("avx512_vnni")),
        avx512_bf16=bool(found.get("avx512_bf16")),
        amx_bf16=bool(found.get("amx_tile") and found.get("amx_bf16")),
        amx_int8=bool(found.get("amx_tile") and found.get("amx_int8")),
    )


def cpu_name() -> str:
    """Model name of the processor, for reports."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """The machine that figures were measured on, as JSON values; memory in bytes."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cores": usable_cpus(),
        "threads": torch.get_num_threads(),
        "features": cpu_features().names(),
        "memory": memory_total(),
        "gpus": gpus,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def usable_cpus() -> int:
    """Cores that this process may use: its affinity, limited by the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_cpu_quotas()])


def prepare_threads() -> None:
    """Before torch is imported: tell it `YEOUL_THREADS`, or the container's cores when it would take more."""
    if threads := _integer_setting("YEOUL_THREADS", 0, 1):
        os.environ["OMP_NUM_THREADS"] = str(threads)
    elif _setting("OMP_NUM_THREADS") is None and (quotas := _cpu_quotas()):
        # torch counts the machine's cores and does not see the quota of a container.
        os.environ["OMP_NUM_THREADS"] = str(min(usable_cpus(), *quotas))


def set_threads(threads: int | None = None) -> int:
    """Set torch's threads of one operation and return their number.

    Args:
        threads: None = `YEOUL_THREADS` when set, else torch's own choice (`OMP_NUM_THREADS`, or the
            physical cores), but not more than the cores of the container (more only wait).
    """
    import torch

    if threads is None:
        threads = _integer_setting("YEOUL_THREADS", 0, 1) or None
    if threads is None:
        chosen = torch.get_num_threads()
        threads = chosen if _setting("OMP_NUM_THREADS") else min(chosen, usable_cpus())
    if threads < 1:
        raise UserError(f"the number of threads is {threads}, but must be at least 1", "threads")
    torch.set_num_threads(threads)
    return threads


def native_allowed() -> bool:
    """Whether tokens may be decoded by the native library or a CUDA graph: not with `YEOUL_NATIVE=0`."""
    return _setting("YEOUL_NATIVE") != "0"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices). `seed` is taken modulo 2**32, NumPy's range."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def return_freed_memory() -> None:
    """Gives what is free inside the process back to the system, where the C library can (glibc's malloc_trim).

    Tensors of ever other sizes leave holes that glibc keeps, so that a training over texts of all lengths would grow to
    several times what it needs.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def return_large_blocks() -> None:
    """From now on give large tensors back to the system as soon as they are let go, where the C library can (glibc).

    By itself it does so from 32 MiB on; smaller blocks leave holes, a third to more than once of what a training keeps.
    Pages that are taken anew have to be cleared: large matrix products hardly notice, a small model trains at half the
    speed.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-3, 2**20)  # M_MMAP_THRESHOLD, in bytes


def memory_available() -> int:
    """Bytes that can still be taken: free memory of the machine or, if less, of the container or below `ulimit -v`."""
    import psutil

    available = int(psutil.virtual_memory().available)
    if (room := _room_below_the_limit()) is not None:
        available = min(available, room)
    for folder in _cgroup_folders("memory"):
        limit = _read_number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _read_number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            # The page cache counts as use, but is given back on demand.
            available = min(available, max(0, limit - used + _inactive_file_bytes(folder)))
    return available


def _room_below_the_limit() -> int | None:
    """Bytes of address space that the process may still take (`ulimit -v`); None without a limit."""
    import psutil

    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - int(psutil.Process().memory_info().vms))


def memory_resident() -> int:
    """Bytes of memory that this process is in, the pages of files that it maps included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def memory_total() -> int:
    """Bytes of memory of the machine, or of the container when that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for folder in _cgroup_folders("memory"):
        limit = _read_number(folder / "memory.max", folder / "memory.limit_in_bytes")
        if limit is not None:
            total = min(total, limit)
    return total


def _cgroup_folders(controller: str) -> list[Path]:
    """Folders of this process's control group and its parents: any of them may hold the limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, inner = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") / controller if controllers else Path("/sys/fs/cgroup")
        path = root / inner.strip("/")
        # In a container the path may be the host's, which is not mounted; then the root is ours.
        folders += [p for p in (path, *path.parents) if p.is_relative_to(root) and p.is_dir()]
    return folders


def _cpu_quotas() -> list[int]:
    """Whole cores allowed by each control group that sets a quota, at least 1 each."""
    quotas = []
    for folder in _cgroup_folders("cpu"):
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            if quota != "max" and int(quota) > 0:
                quotas.append(max(1, round(int(quota) / int(period))))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return quotas


def _read_number(*candidates: Path) -> int | None:
    for path in candidates:
        try:
            return int(path.read_text().strip())
        except (OSError, ValueError):  # absent, or the word "max"
            continue
    return None


def _inactive_file_bytes(folder: Path) -> int:
    try:
        statistics = (folder / "memory.stat").read_text()
    except OSError:
        return 0
    match = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    return int(match[1]) if match else 0
