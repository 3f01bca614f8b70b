"""What this machine has, what will be used and why, and what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.version import VERSION

if TYPE_CHECKING:
    import torch

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "viz": (("matplotlib",), "plots in reports"),
    "data": (("pyarrow", "zstandard"), "Parquet and Zstandard files"),
    "train": (("tensorboard",), "TensorBoard logs"),
    "hf": (("transformers",), "linearized models inside transformers"),
    "gguf": (("gguf",), "GGUF files for llama.cpp"),
    "eval": (("lm_eval", "sacrebleu"), "standard tasks, self-BLEU in sweeps"),
    "serve": (("fastapi", "llguidance", "prometheus_client", "uvicorn"), "the server"),
}
"""Extra -> the modules it brings, and what they are for."""

MEASURE_SECONDS = 0.4


def install_hint(module: str) -> str:
    """How to install a module that is missing, as an imperative clause."""
    for extra, (modules, _) in EXTRAS.items():
        if module.partition(".")[0] in modules:
            return f"run `pip install 'yeoul[{extra}]'` (from a checkout: `pip install -e '.[{extra}]'`)"
    return "install Yeoul again: `pip install -e .`"


def examine(*, measure: bool = True) -> dict[str, Any]:
    """What this machine has, what will be used and why, and what is missing.

    Args:
        measure: also measure matrix products, which takes about two seconds.

    Returns:
        JSON-able values by section; sizes in bytes, rates in GFLOP/s, `advice` as sentences, most important first.
    """
    import torch

    device = runtime.resolve_device()
    dtype = runtime.resolve_dtype("auto", device)
    report: dict[str, Any] = {
        "yeoul": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cpu": {
            "name": runtime.cpu_name(),
            "usable_cores": runtime.usable_cpus(),
            "threads": runtime.set_threads(),
            "features": runtime.cpu_features().names(),
            "native_bf16": runtime.has_native_bf16(torch.device("cpu")),
        },
        "memory": {"total": runtime.memory_total(), "available": runtime.memory_available()},
        "disk": {"folder": str(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "cuda": _cuda(),
        "use": {
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "why": _why(device, dtype),
            "linear_attention": _linear_attention(device),
            "decoding": _decoding(),
        },
        "extras": _extras(),
    }
    if measure:
        report["gflops"] = _rates(device)
    report["advice"] = _advice(report)
    return report


def _cuda() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"built_for": torch.version.cuda, "driver": _driver_version(), "devices": []}
    if not torch.cuda.is_available():
        return found
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found["devices"].append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_total": total,
                "memory_free": free,
            }
        )
    return found


def _driver_version() -> str | None:
    """Version of NVIDIA's kernel driver; None where there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        return next((word for word in text.split() if word[0].isdigit() and "." in word), None)
    except OSError:
        pass
    import subprocess

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.split()[0] if answer.split() else None


def _linear_attention(device: torch.device) -> str:
    from yeoul.ops.triton_chunked import why_not

    reason = why_not(device)
    return "Triton kernels" if reason is None else f"PyTorch ({reason})"


def _decoding() -> dict[str, str | None]:
    """Instruction set of the native library that decodes on the CPU, or why there is none."""
    from yeoul.infer.native.binding import instruction_sets, why_not

    reason = why_not()
    return {"native": None, "reason": reason} if reason else {"native": instruction_sets()[0], "reason": None}


def _why(device: torch.device, dtype: torch.dtype) -> str:
    import torch

    place = "torch sees a GPU" if device.type == "cuda" else "torch sees no GPU"
    if not torch.cuda.is_available() and _driver_version() is not None:
        place = "there is an NVIDIA driver, but this torch does not use it"
    elif torch.cuda.is_available() and device.type == "cpu":
        place = "the CPU was asked for"
    if runtime.requested_dtype("auto") is not None:
        return f"{place}; the dtype was asked for (YEOUL_DTYPE)"
    if device.type == "cuda":
        native = "multiplies bfloat16 in hardware" if dtype == torch.bfloat16 else "has no bfloat16 hardware"
        return f"{place}, and it {native}"
    native = "multiplies bfloat16 in hardware" if dtype == torch.bfloat16 else "would only emulate bfloat16"
    return f"{place}; this CPU {native}"


def _extras() -> dict[str, dict[str, Any]]:
    found = {}
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        versions = {m: importlib.metadata.version(m) for m in modules if m not in missing}
        found[extra] = {"for": purpose, "installed": versions, "missing": missing}
    return found


def _rates(device: torch.device) -> dict[str, float]:
    """GFLOP/s of square matrix products in fp32 and bf16."""
    import torch

    return {
        str(dtype).removeprefix("torch."): round(_matmul_rate(dtype, device) / 1e9, 1)
        for dtype in (torch.float32, torch.bfloat16)
    }


def _matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of square matrices; the size grows until one takes a measurable time.

    It starts small because an emulated bfloat16 is a hundred times slower than it looks.
    """
    import torch

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    size, largest = 128, 8192 if device.type == "cuda" else 2048
    warm = torch.ones(size, size, dtype=dtype, device=device)
    warm @ warm  # starts the threads
    deadline = finished() + MEASURE_SECONDS
    best = 0.0
    while True:
        a = torch.ones(size, size, dtype=dtype, device=device)
        a @ a
        start = finished()
        a @ a
        seconds = max(finished() - start, 1e-9)
        best = max(best, 2 * size**3 / seconds)
        # Doubling costs eight times as much, twice (once to warm up).
        if size < largest and finished() + 16 * seconds < deadline:
            size *= 2
        elif finished() + seconds > deadline:
            return best


def _advice(report: dict[str, Any]) -> list[str]:
    """Sentences on what to mend, most important first."""
    advice = []
    cuda = report["cuda"]
    if cuda["driver"] and not cuda["devices"]:
        advice.append(
            "There is an NVIDIA driver, but torch sees no GPU: install a CUDA build of torch for that driver."
        )
    threads, cores = report["cpu"]["threads"], report["cpu"]["usable_cores"]
    if threads > cores:
        advice.append(f"{threads} threads on {cores} cores get in one another's way: set YEOUL_THREADS={cores}.")
    elif threads < cores:
        advice.append(f"Only {threads} of {cores} cores are used: unset OMP_NUM_THREADS or set YEOUL_THREADS={cores}.")
    if report["memory"]["available"] < 3 * 2**30:
        advice.append("Less than 3 GiB of memory is free, and `yeoul demo` needs that much: close other programs.")
    if report["disk"]["free"] < 2 * 2**30:
        advice.append("Less than 2 GiB of disk is free here: checkpoints may not fit.")
    if (reason := report["use"]["decoding"]["reason"]) is not None and runtime.native_allowed():
        advice.append(f"PyTorch decodes tokens several times slower than the native library, but {reason}.")
    for found in report["extras"].values():
        if found["missing"]:
            names = ", ".join(found["missing"])
            advice.append(f"For {found['for']} ({names} missing): {install_hint(found['missing'][0])}.")
    return advice
