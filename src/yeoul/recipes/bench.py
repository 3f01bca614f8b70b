"""`yeoul.bench`: tokens per second and cache bytes at growing contexts, models in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.config import Settings
from yeoul.errors import UserError
from yeoul.recipes.options import Say, silent

if TYPE_CHECKING:
    from yeoul.evaluate.speed import SpeedRecord
    from yeoul.model.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """Where models are measured, and how often."""

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
    threads: int | None = None
    """CPU threads; when not given, as many as the machine offers."""
    dtype: str = "auto"
    """Dtype of the weights: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        if not self.contexts:
            raise UserError("no context length was given", "--contexts", "give one or more, such as 512")
        numbers = {"steps": self.steps, "turns": self.turns, "prefills": self.prefills, "chunk": self.chunk}
        for flag, value in {**numbers, "batch-size": self.batch_size, "contexts": min(self.contexts)}.items():
            if value < 1:
                raise UserError(f"--{flag} is {value}, but must be at least 1")


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Speeds of some models on one machine.

    Attributes:
        cpu: its name.
        threads: that torch computed with.
        device: of the first model.
        parameters: of each model, by its name.
        records: of each model at each context, in the order of the contexts.
    """

    cpu: str
    threads: int
    device: str
    parameters: dict[str, int]
    records: tuple[SpeedRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "cpu": self.cpu,
            "threads": self.threads,
            "device": self.device,
            "parameters": self.parameters,
            "records": [record.as_dict() for record in self.records],
        }

    def table(self) -> str:
        """For people; the other models are compared with the first."""
        from yeoul.evaluate import speed

        first = next(iter(self.parameters)) if len(self.parameters) > 1 else None
        return speed.table(list(self.records), first)


def bench(
    models: Sequence[str | Path] | Mapping[str, Decoder],
    config: BenchConfig | None = None,
    *,
    device: str = "auto",
    say: Say | None = None,
) -> BenchResult:
    """Measure how fast models read and write at growing context lengths, and what their caches hold.

    Several models are measured in turns. Beyond a model's own context length only speed is measured; what it would
    generate there is meaningless.

    Args:
        models: folders, runs or ids on the hub; or models that are loaded, by the names that they are to have.
        config: at which contexts, and how often; None for the defaults.
        device: "auto", "cpu", "cuda" or "cuda:N"; loaded models are measured where they are.
        say: called with progress messages; None for no output.

    Raises:
        UserError: no model, or one that cannot be loaded.
    """
    from yeoul.evaluate import speed
    from yeoul.recipes.loading import load

    if not models:
        raise UserError("no model was given", fix="give one or more model folders")
    config = config or BenchConfig()
    threads = runtime.set_threads(config.threads)
    if isinstance(models, Mapping):
        loaded = dict(models)
    else:
        names = short_names(tuple(map(str, models)))
        loaded = {
            name: load(path, device=device, dtype=config.dtype)[0] for name, path in zip(names, models, strict=True)
        }
    positions = max(config.contexts) + speed.decoded(config.steps, config.turns)
    records = speed.compare(
        {name: speed.lengthened(model, positions) for name, model in loaded.items()},
        config.contexts,
        steps=config.steps,
        turns=config.turns,
        prefills=config.prefills,
        batch_size=config.batch_size,
        chunk=config.chunk,
        seed=config.seed,
        progress=say or silent,
    )
    return BenchResult(
        cpu=runtime.cpu_name(), threads=threads, device=str(next(iter(loaded.values())).device),
        parameters={name: model.num_parameters() for name, model in loaded.items()}, records=tuple(records),
    )  # fmt: skip


def short_names(paths: tuple[str, ...]) -> list[str]:
    """The last parts of paths, as many as it takes to tell them apart; equal paths are numbered."""
    parts = [[part for part in Path(path).parts if part not in ("/", "..", ".")] or [path] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]
