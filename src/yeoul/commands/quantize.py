"""`yeoul quantize`: a model's weights in 8 or 4 bits, and what that costs and gains."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.recipes.model_folder import model_name
from yeoul.recipes.quantize.config import QuantizeConfig


@dataclass(frozen=True)
class Config:
    """Quantize a model's weights to 8 or 4 bits, and compare it before and after.

    Linear layers are quantized, and embeddings and output layer on request; norms, biases, feature maps and gates stay
    as they are. Every command opens the result, and adapters can be trained on it, but they cannot be merged into it,
    and it cannot be linearized or exported as GGUF. It is written before it is scored, so it survives an interruption
    of the scoring.
    """

    model: Place
    """Model: a Hugging Face folder, a GGUF file, a run's folder, or an id on the hub; softmax or linearized."""
    _: KW_ONLY
    settings: Annotated[QuantizeConfig, Parameter(name="*")] = field(default_factory=QuantizeConfig)
    """How it is quantized."""
    out: Path | None = None
    """Folder of the result; when not given, MODEL-8bit or MODEL-4bit in the current folder, after the model's name."""
    overwrite: bool = False
    """Replace the output if it exists."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    report: bool = True
    """Write report.html and report.md beside the weights."""
    json: bool = False
    """Print JSON instead of the table."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Quantize, and print the table."""
    from yeoul.recipes.quantize.run import quantize
    from yeoul.recipes.run_report import leave_report

    out = config.out or Path(f"{model_name(config.model)}-{config.settings.weights.bits}bit")
    say = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    result = quantize(
        config.model, config.settings, out=out, overwrite=config.overwrite, device=config.device, say=say
    )  # fmt: skip
    print(json.dumps(result.record, ensure_ascii=False, indent=2) if config.json else describe(result.record))
    if config.report:
        leave_report(out, say)
    return 0


def describe(values: dict[str, Any]) -> str:
    """The table."""
    before, after = values["before"], values["after"]
    group = f"groups of {values['group_size']}" if values["group_size"] else "a scale for each output"
    lines = [f"{values['out']}: {values['bits']} bits, {group}, {values['method']}", ""]
    lines.append(f"{'':<16}{'before':>14}{'after':>14}{'ratio':>10}")
    for key, name, form in (
        ("bytes", "bytes", "{:,.0f}"), ("perplexity", "perplexity", "{:,.3f}"),
        ("bits_per_byte", "bits per byte", "{:.4f}"), ("tokens_per_second", "tokens/s", "{:,.1f}"),
    ):  # fmt: skip
        one, other = before.get(key), after.get(key)
        if one is not None and other is not None:
            lines.append(f"{name:<16}{form.format(one):>14}{form.format(other):>14}{other / one:>10.4f}")
    share = after["bytes"] / (4 * values["parameters"])
    lines += ["", f"bytes: {share:.3f} of float32, {2 * share:.3f} of bfloat16"]
    if not values["scored"]:
        lines.append(f"not scored; to score it: yeoul evaluate {shlex.quote(values['out'])}")
    return "\n".join(lines)
