"""How long a training would take, estimated from one example that is computed here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from yeoul.units import duration, rate

if TYPE_CHECKING:
    from yeoul.data.batch import Batch
    from yeoul.model.decoder import Decoder
    from yeoul.train.config import TrainConfig
    from yeoul.train.loss import Objective

MEASURED_TOKENS = 512
"""Length of the row that is timed, where rows are longer."""


def seconds_a_token(
    model: Decoder, objective: Objective, batch: Batch, settings: TrainConfig, *, gradients: bool = True
) -> tuple[float, int]:
    """Seconds that a position takes, forward and backward, and how many positions that was measured on.

    One example of at most `MEASURED_TOKENS` positions is computed twice, and the second time counts.
    """
    import torch

    from yeoul.train.compute import autocast_dtype

    dtype = autocast_dtype(settings, model.device)
    part = _short(batch.split(1)[0]).to(model.device)
    was_training = model.training
    model.train()
    spent = math.inf
    try:
        for _ in range(2):
            start = time.perf_counter()
            with torch.autocast(model.device.type, dtype, enabled=dtype is not None), torch.set_grad_enabled(gradients):
                loss = objective(model, part)
            if gradients:
                loss.total.backward()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            spent = time.perf_counter() - start
    finally:
        model.train(was_training)
        for parameter in model.parameters():
            parameter.grad = None
    return spent / part.input_ids.numel(), part.input_ids.numel()


def _short(batch: Batch) -> Batch:
    """Its first columns."""
    from dataclasses import fields

    import torch

    shape = batch.input_ids.shape
    changes = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor) and value.shape == shape:
            changes[field.name] = value[:, :MEASURED_TOKENS]
    return replace(batch, **changes)


def time_lines(parts: Iterable[tuple[str, int, float, int]]) -> list[str]:
    """How long a run will take, for people.

    Args:
        parts: name, positions, seconds for each, and on how many that was measured.
    """
    found = list(parts)
    lines = [f"  {name}: {duration(tokens * each)} ({tokens:,} tokens at {rate(1 / each)}, measured on {measured:,})"
             for name, tokens, each, measured in found if tokens]  # fmt: skip
    whole = duration(sum(tokens * each for _, tokens, each, _ in found))
    return [f"Time: about {whole}, estimated from one example on this machine:", *lines]


NOTHING_WRITTEN = "Dry run: nothing was trained or written."
