"""A small vision transformer on scikit-learn's handwritten digits, with softmax and with DiJiang attention.

    python examples/vision.py --json vision.json

Each 8 x 8 digit is at a random position in a 16 x 16 field, different in every epoch, so that the position of a stroke
says nothing: without attention, counting strokes does not tell the digits apart. A convolution turns a field into 64
tokens. For every seed, one model of each kind is trained from scratch with the same data and steps; then the softmax
model is converted, as one would convert an existing model: the projections are copied, the feature maps are aligned
with the softmax layers, and the whole model is fine-tuned. For comparison, the softmax model is trained for just as
long. At the end, the attention layer alone is timed at growing numbers of tokens.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from encoder import Encoder, accuracy, attention, report, speed, train
from sklearn.datasets import load_digits
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, FIELD = 32, 2, 2, 16


class Patches(nn.Module):
    """Fields (B, 1, 16, 16) to tokens (B, 64, width): a convolution with stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, WIDTH, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) -> (B, 64, width)."""
        return self.convolution(x).flatten(2).transpose(1, 2)


def scattered(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Digits (N, 8, 8), each at a random position in an empty field: (N, 1, 16, 16)."""
    fields = torch.full((len(digits), 1, FIELD, FIELD), -1.0)
    corners = torch.randint(0, FIELD - 7, (len(digits), 2), generator=generator).tolist()
    for field, digit, (top, left) in zip(fields, digits, corners, strict=True):
        field[0, top : top + 8, left : left + 8] = digit
    return fields


class Digits:
    """Training digits in batches, in a new order and at new positions in every epoch."""

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator)
        for rows in order[: len(self) * self.size].split(self.size):
            yield scattered(self.x[rows], self.generator), self.y[rows]


def vision_transformer(kind: str) -> Encoder:
    """The model: 64 tokens with learned positions."""
    return Encoder(Patches(), kind, width=WIDTH, heads=HEADS, layers=LAYERS, classes=10, positions=(FIELD // 2) ** 2)


def converted(teacher: Encoder) -> Encoder:
    """A DiJiang model with all weights of a softmax model; only its feature maps are new."""
    model = vision_transformer("dijiang")
    missing, unexpected = model.load_state_dict(teacher.state_dict(), strict=False)
    assert not unexpected and all("feature_map" in name for name in missing)
    return model


def align(model: Encoder, teacher: Encoder, batches: Digits, epochs: int, lr: float) -> float:
    """Train only the feature maps, to match the teacher's layers on the teacher's inputs; returns seconds."""
    maps = [p for name, p in model.named_parameters() if "feature_map" in name]
    optimizer = torch.optim.AdamW(maps, lr=lr, weight_decay=0.0)
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.attention.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        for block in teacher.blocks
    ]
    start = time.process_time()
    for _ in range(epochs):
        for x, _ in batches:
            seen.clear()
            with torch.no_grad():
                teacher(x)
            pairs = zip(model.blocks, seen, strict=True)
            loss = torch.stack([F.mse_loss(b.attention(i), o) / o.square().mean() for b, (i, o) in pairs]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for hook in hooks:
        hook.remove()
    return time.process_time() - start


def one_seed(seed: int, count: int, epochs: int, more: int, lr: float) -> list[dict[str, Any]]:
    """All models of a seed, which also decides the 500 test digits and the `count` training digits."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(digits.images, dtype=torch.float32)[order] / 8 - 1, torch.tensor(digits.target)[order]
    test, labels = scattered(x[:500], torch.Generator().manual_seed(seed)), y[:500]
    rows: list[dict[str, Any]] = []

    def note(name: str, model: Encoder, seconds: float) -> None:
        rows.append({"seed": seed, "model": name, "accuracy": accuracy(model, test, labels), "seconds": seconds})
        print(f"seed {seed}: {name}: {rows[-1]['accuracy']:.3f}", flush=True)

    def data() -> Digits:
        return Digits(x[500:][:count], y[500:][:count], 32, seed)

    models = {}
    for kind in ("none", "softmax", "dijiang"):
        torch.manual_seed(seed)
        models[kind] = vision_transformer(kind)
        note(kind, models[kind], train(models[kind], data(), epochs, lr))
    teacher = models["softmax"]
    student = converted(teacher)
    note("converted, as it is", student, 0.0)
    seconds = align(student, teacher, data(), more, lr)
    note("converted, aligned", student, seconds)
    note("converted, aligned, finetuned", student, seconds + train(student, data(), more, lr / 2))
    longer = copy.deepcopy(teacher)
    note("softmax, finetuned as long", longer, train(longer, data(), more, lr / 2))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, measure speed and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--digits", type=int, default=1297, help="trained on")
    parser.add_argument("--epochs", type=int, default=16, help="of training from nothing")
    parser.add_argument("--more-epochs", type=int, default=4, help="of the alignment, and of finetuning")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384], help="that are timed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        results += one_seed(seed, options.digits, options.epochs, options.more_epochs, options.lr)
    layers = {kind: attention(kind, 64, 4) for kind in ("softmax", "dijiang")}
    inputs = {T: torch.randn(1, T, 64) for T in options.tokens}
    report("Digits at random places, 64 tokens", results, speed(layers, inputs, options.turns), vars(options))


if __name__ == "__main__":
    main()
