"""A model and a loader small enough for a thousand steps a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from yeoul.data.batch import Batch
from yeoul.train.config import TrainConfig

VOCAB, WIDTH = 19, 8


class ToyModel(nn.Module):
    """Embedding, one linear layer with dropout (so that random state matters), norm, output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def hidden(self, input_ids: Tensor, positions: Tensor | None = None, seq_ids: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        return self.norm(x + self.drop(torch.tanh(self.mix(x))))

    @property
    def output_weight(self) -> Tensor:
        return self.head.weight

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")


def toy_model(seed: int = 0) -> ToyModel:
    torch.manual_seed(seed)
    return ToyModel()


class ToyLoader:
    """Batches that depend only on how many were drawn."""

    def __init__(self, batch_size: int, context: int) -> None:
        self.batch_size, self.context, self.drawn = batch_size, context, 0

    def next_batch(self) -> Batch:
        # One row at a time, so that two batches of 4 are one batch of 8.
        rows = []
        for _ in range(self.batch_size):
            generator = torch.Generator().manual_seed(1000 + self.drawn)
            self.drawn += 1
            start = torch.randint(VOCAB, (1,), generator=generator)
            rows.append((start + torch.arange(self.context + 1) * 3) % VOCAB)
        ids = torch.stack(rows)
        labels = ids[:, 1:].clone()
        labels[0, : self.drawn % 3] = -100
        return Batch(input_ids=ids[:, :-1], labels=labels)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def toy_config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "tokens": 40 * 4 * 6, "batch_size": 4, "context": 6, "lr": 1e-2, "dtype": "float32",
        "log_every": 1, "eval_every": 0, "save_every": 5, "keep_last": 2,
    }  # fmt: skip
    return TrainConfig(**(values | changes))


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what a clock decides."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]
