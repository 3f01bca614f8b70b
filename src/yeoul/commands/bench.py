"""`yeoul bench`: tokens per second and cache bytes at growing contexts, models in turns."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.files import only_writer, write_text
from yeoul.recipes.bench import BenchConfig


@dataclass(frozen=True)
class Config:
    """Measure how fast models read and write at growing context lengths, and what their caches hold.

    Several models are measured in turns within one run, and the others are compared with the first. Beyond a
    model's own context length only speed is measured; what it would generate there is meaningless.
    """

    models: tuple[Place, ...]
    """Models: Hugging Face folders, GGUF files, run folders, or ids on the hub."""
    _: KW_ONLY
    settings: Annotated[BenchConfig, Parameter(name="*")] = field(default_factory=BenchConfig)
    """Where they are measured, and how often."""
    json: bool = False
    """Print JSON instead of the table."""
    out: Path | None = None
    """Also write the JSON to this file."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("no model was given", fix="give one or more model folders")


def run(config: Config) -> int:
    """Measure, and print a table or JSON."""
    from yeoul.recipes.bench import bench

    with nullcontext() if config.out is None else only_writer(config.out):
        result = bench(
            config.models,
            config.settings,
            device=config.device,
            say=lambda what: print(what, file=sys.stderr, flush=True),
        )
        text = json.dumps(result.as_dict(), ensure_ascii=False, indent=2)
        if config.out is not None:
            write_text(config.out, text + "\n")
    print(text if config.json else result.table())
    return 0
