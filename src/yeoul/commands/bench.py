"""`yeoul bench`: tokens per second and cache bytes at growing contexts, models in turns."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.files import only_writer, write_text

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder


@dataclass(frozen=True)
class Config:
    """Measure how fast models read and write at growing context lengths, and what their caches hold.

    Several models are measured in turns within one run, and the others are compared with the first. Beyond a
    model's own context length only speed is measured; what it would generate there is meaningless.
    """

    models: tuple[Place, ...]
    """Models: Hugging Face folders, run folders, or ids on the hub."""
    _: KW_ONLY
    contexts: tuple[int, ...] = (512, 2048, 8192)
    """Tokens in the cache when decoding starts; one or more numbers."""
    steps: int = 8
    """Decoding steps per turn."""
    turns: int = 7
    """Turns of each model at each context; the median and the quartiles are printed."""
    prefills: int = 1
    """Number of prefill measurements at each context."""
    batch_size: int = 1
    """Sequences at a time."""
    chunk: int = 1024
    """Tokens per forward pass of the prefill."""
    seed: int = 0
    """Seed of the random tokens in the cache."""
    json: bool = False
    """Print JSON instead of the table."""
    out: Path | None = None
    """Also write the JSON to this file."""
    threads: int | None = None
    """CPU threads; when not given, as many as the machine offers."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Number type of the weights: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("no model was given", fix="give one or more model folders")
        if not self.contexts:
            raise UserError("no context length was given", "--contexts", "give one or more, such as 512")
        numbers = {"steps": self.steps, "turns": self.turns, "prefills": self.prefills, "chunk": self.chunk}
        for flag, value in {**numbers, "batch-size": self.batch_size, "contexts": min(self.contexts)}.items():
            if value < 1:
                raise UserError(f"--{flag} is {value}, but must be at least 1")


def run(config: Config) -> int:
    """Measure, and print a table or JSON."""
    with nullcontext() if config.out is None else only_writer(config.out):
        return _run(config)


def _run(config: Config) -> int:
    from yeoul import runtime
    from yeoul.evaluate import speed

    threads = runtime.set_threads(config.threads)
    models = load_models(config)
    positions = max(config.contexts) + speed.decoded(config.steps, config.turns)
    records = speed.compare(
        {name: speed.lengthened(model, positions) for name, model in models.items()},
        config.contexts,
        steps=config.steps,
        turns=config.turns,
        prefills=config.prefills,
        batch_size=config.batch_size,
        chunk=config.chunk,
        seed=config.seed,
        progress=lambda what: print(what, file=sys.stderr, flush=True),
    )
    first = next(iter(models))
    values = {
        "cpu": runtime.cpu_name(),
        "threads": threads,
        "device": str(next(iter(models.values())).device),
        "parameters": {name: model.num_parameters() for name, model in models.items()},
        "records": [record.as_dict() for record in records],
    }
    text = json.dumps(values, ensure_ascii=False, indent=2)
    if config.out is not None:
        write_text(config.out, text + "\n")
    print(text if config.json else speed.table(records, first if len(models) > 1 else None))
    return 0


def load_models(config: Config) -> dict[str, Decoder]:
    """The models by their shortest names that differ."""
    import yeoul

    loaded = {}
    for name, path in zip(short_names(config.models), config.models, strict=True):
        model, _ = yeoul.load(path, device=config.device, dtype=config.dtype)
        loaded[name] = model
    return loaded


def short_names(paths: tuple[str, ...]) -> list[str]:
    """The last parts of paths, as many as it takes to tell them apart; equal paths are numbered."""
    parts = [[part for part in Path(path).parts if part not in ("/", "..", ".")] or [path] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]
