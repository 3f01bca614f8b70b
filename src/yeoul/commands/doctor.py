"""`yeoul doctor`: what this machine has, what will be used and why, and what to install."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass
from typing import Any

from yeoul.units import count, size


@dataclass(frozen=True)
class Config:
    """Show what this machine has, what will be used and why, and what is missing."""

    _: KW_ONLY
    json: bool = False
    """Print JSON instead of text."""
    measure: bool = True
    """Measure matrix products (takes about two seconds)."""


def run(config: Config) -> int:
    """Print the examination; always 0, since nothing here fails."""
    from yeoul.recipes.doctor import examine

    report = examine(measure=config.measure)
    if config.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(describe(report))
    return 0


def _decoding(found: dict[str, str | None]) -> str:
    return f"PyTorch ({found['reason']})" if found["reason"] else f"the native library ({found['native']})"


def describe(report: dict[str, Any]) -> str:
    """The examination as text."""
    cpu, cuda, use = report["cpu"], report["cuda"], report["use"]
    gpus = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {size(gpu['memory_free'])} of "
        f"{size(gpu['memory_total'])} free"
        for gpu in cuda["devices"]
    ] or ["none seen by torch"]
    bf16 = "in hardware" if cpu["native_bf16"] else "emulated, slow"
    rows = [
        ("Yeoul", f"{report['yeoul']}, Python {report['python']} ({sys.executable})"),
        (
            "torch",
            f"{report['torch']}, built for {'CUDA ' + cuda['built_for'] if cuda['built_for'] else 'the CPU'}",
        ),
        ("CPU", f"{cpu['name']}, {count(cpu['usable_cores'], 'usable core')}, {count(cpu['threads'], 'thread')}"),
        ("", f"{', '.join(cpu['features']) or 'no known vector extensions'}; bfloat16 {bf16}"),
        ("memory", f"{size(report['memory']['available'])} of {size(report['memory']['total'])} available"),
        ("disk", f"{size(report['disk']['free'])} free in {report['disk']['folder']}"),
        *((("GPU" if i == 0 else ""), gpu) for i, gpu in enumerate(gpus)),
        ("driver", cuda["driver"] or "no NVIDIA driver"),
        ("will use", f"{use['device']} with {use['dtype']}: {use['why']}"),
        ("", f"linear attention in {use['linear_attention']}"),
        ("", f"decoding on the CPU by {_decoding(use['decoding'])}"),
    ]
    if "gflops" in report:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in report["gflops"].items())
        rows.append(("products", f"{rates} GFLOP/s on {use['device']}"))
    for extra, found in report["extras"].items():
        versions = ", ".join(f"{name} {version}" for name, version in found["installed"].items())
        missing = f"missing {', '.join(found['missing'])}" if found["missing"] else ""
        state = "; ".join(part for part in (versions, missing) if part)
        rows.append((f"[{extra}]", f"{state} ({found['for']})"))
    text = [f"{name:<9} {value}" for name, value in rows]
    advice = report["advice"] or ["Nothing is missing. Next: `yeoul demo`."]
    return "\n".join([*text, "", *advice])
