"""`yeoul inspect`: where each head of a model looks on a text, as a page."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.recipes.inspect_attention import InspectConfig
from yeoul.units import size

if TYPE_CHECKING:
    from yeoul.recipes.inspect_attention import InspectResult


@dataclass(frozen=True)
class Config:
    """Show where each attention head of a model looks while it reads a text, as an HTML page.

    For softmax layers these are the attention weights. A linear or hybrid layer has none; shown are the weights that it
    implies, the coefficient of every past value in its output, by what pays them: window, sinks, exact pairs, state.
    """

    model: Place
    """Model: a Hugging Face folder, a GGUF file, a run's folder, or an id on the hub."""
    _: KW_ONLY
    text: str
    """Text that it reads."""
    against: Place | None = None
    """Second model, shown beside the first. The word "teacher" means the model that MODEL's run was linearized from."""
    out: Path = Path("attention.html")
    """File for the page; one that is there is replaced."""
    settings: Annotated[InspectConfig, Parameter(name="*")] = field(default_factory=InspectConfig)
    """What is looked at."""
    json: bool = False
    """Print the figures of every head as JSON, too."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        if self.out.is_dir():
            raise UserError("this is a folder, not a file", f"--out {self.out}", f"give {self.out / 'attention.html'}")


def run(config: Config) -> int:
    """Write the page, and print the figures of each layer."""
    from yeoul.recipes.inspect_attention import inspect_attention

    result = inspect_attention(
        config.model, config.text, config.settings, against=config.against, device=config.device, say=_tell
    )  # fmt: skip
    path = result.save(config.out)
    say(json.dumps(result.as_dict(), ensure_ascii=False, indent=2) if config.json else describe(result))
    _tell(f"Saved {path} ({size(path.stat().st_size)}); open it in a browser.")
    return 0


def describe(result: InspectResult) -> str:
    """A line for each layer: means over its heads."""
    lines = [] if result.note is None else [result.note.en, ""]
    for model in result.models:
        lines.append(f"{model.name}: {len(result.ids):,} tokens; means over the heads of a layer")
        lines.append(f"{'layer':>5}  {'kind':<10} {'distance':>8} {'bits':>6} {'itself':>7}  looks at")
        for layer, heads in zip(model.layers, model.statistics, strict=True):
            mean = lambda values: sum(values) / len(values)  # noqa: E731
            distance, entropy = mean([h.distance for h in heads]), mean([h.entropy for h in heads])
            itself = mean([h.itself for h in heads])
            parts = list(dict.fromkeys(name for head in heads for name in head.shares))
            shares = [f"{name} {100 * mean([h.shares.get(name, 0.0) for h in heads]):.0f} %" for name in parts]
            lines.append(
                f"{layer.layer:>5}  {layer.kind:<10} {distance:>8.1f} {entropy:>6.2f} {100 * itself:>5.0f} %  "
                + ", ".join(shares)
            )  # fmt: skip
        lines.append("")
    return "\n".join(lines).rstrip()


def _tell(what: str) -> None:
    say(what, file=sys.stderr, flush=True)
