"""Shared by the examples: a small bidirectional encoder with a choice of attention, its training and its speed.

All attention layers map (B, T, width) -> (B, T, width) and use the same names for their projections, so that weights
can be copied from one to another. Seconds are CPU time, which other programs disturb least.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import yeoul


class Batches(Protocol):
    """Inputs and labels (B,) of one epoch; its length is the number of batches."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class SoftmaxAttention(nn.Module):
    """Full softmax attention, which DiJiang replaces."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def attention(kind: str, width: int, heads: int) -> nn.Module | None:
    """The attention layer of a kind; None for "none", which shows how much the task needs attention."""
    if kind == "none":
        return None
    return SoftmaxAttention(width, heads) if kind == "softmax" else yeoul.DiJiangAttention(width, heads, causal=False)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, kind: str, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention(kind, width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        if self.attention is not None:
            x = x + self.attention(self.norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    """Embedding, blocks, mean over the positions, and a linear layer to the classes.

    Args:
        embed: from a batch of inputs to tokens (B, T, width).
        kind: "softmax", "dijiang" or "none".
        positions: number T of learned positions; 0 for none.
    """

    def __init__(
        self, embed: nn.Module, kind: str, *, width: int, heads: int, layers: int, classes: int, positions: int = 0
    ) -> None:
        super().__init__()
        self.embed, self.kind = embed, kind
        self.positions = nn.Parameter(torch.randn(positions, width) / 2) if positions else None
        self.blocks = nn.ModuleList(Block(kind, width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = self.embed(x)
        if self.positions is not None:
            x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def train(model: nn.Module, batches: Batches, epochs: int, lr: float) -> float:
    """Train with cross-entropy, AdamW and a one-cycle learning rate; returns CPU seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(batches) + 1)
    model.train()
    start = time.process_time()
    for _ in range(epochs):
        for x, y in batches:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return time.process_time() - start


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of correct answers."""
    model.eval()
    right = [
        int((model(part).argmax(-1) == labels).sum()) for part, labels in zip(x.split(32), y.split(32), strict=True)
    ]
    return sum(right) / len(y)


@torch.inference_mode()
def speed(layers: dict[str, nn.Module], inputs: dict[int, Tensor], turns: int) -> list[dict[str, Any]]:
    """Forward time of "softmax" and "dijiang", measured alternately: medians and their ratio for each input length."""
    rows = []
    for length, x in inputs.items():
        taken: dict[str, list[float]] = {kind: [] for kind in layers}
        for turn in range(turns + 1):  # the first one warms up
            for kind, layer in layers.items():
                start = time.process_time()
                layer(x)
                if turn:
                    taken[kind].append(1e3 * (time.process_time() - start))
        ratio = statistics.median(s / d for s, d in zip(taken["softmax"], taken["dijiang"], strict=True))
        rows.append({"tokens": length, **{k: statistics.median(t) for k, t in taken.items()}, "ratio": ratio})
    return rows


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, minimum and maximum accuracy and mean seconds of each model over its seeds."""
    rows = []
    for name in dict.fromkeys(r["model"] for r in results):
        scores = [r["accuracy"] for r in results if r["model"] == name]
        seconds = statistics.mean(r["seconds"] for r in results if r["model"] == name)
        row = {"model": name, "accuracy": statistics.mean(scores), "least": min(scores), "greatest": max(scores)}
        rows.append({**row, "seeds": len(scores), "seconds": seconds})
    return rows


def report(title: str, results: list[dict[str, Any]], times: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Print both tables, and write everything to the file `options["json"]` if given."""
    print(f"\n{title}\n{'model':34} {'accuracy':>8}  {'least to greatest':17} {'seconds':>8}")
    rows = summary(results)
    for r in rows:
        spread = f"{r['least']:.3f} to {r['greatest']:.3f}"
        print(f"{r['model']:34} {r['accuracy']:8.3f}  {spread:17} {r['seconds']:8.1f}")
    print(f"\n{'tokens':>8} {'softmax, ms':>12} {'dijiang, ms':>12} {'ratio':>7}")
    for r in times:
        print(f"{r['tokens']:8,} {r['softmax']:12.2f} {r['dijiang']:12.2f} {r['ratio']:7.2f}")
    out: Path | None = options.pop("json")
    if out:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        found = {"options": options, **machine, "summary": rows, "speed_ms": times, "results": results}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
