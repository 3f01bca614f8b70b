"""A small audio classifier on synthesised calls and replies, with softmax and with DiJiang attention.

    python examples/audio.py --json audio.json

A recording is 16,384 samples of noise (4 kHz, four seconds) with two notes: a call, a sine somewhere in the first
quarter, and a reply, with its octave, somewhere in the last. The class is how many steps the reply is above the call,
modulo the number of pitches. Neither note alone decides it, and at least half of the recording is between them: the
frames of one have to attend to those of the other. Frames are the magnitudes of a short-time Fourier transform, 1,024
of them, without positions. For every seed, one model of each kind is trained with the same recordings and steps. At the
end, the trained models are timed on longer recordings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from encoder import Encoder, accuracy, report, speed, train
from torch import Tensor, nn

WIDTH, HEADS, LAYERS = 32, 2, 1
RATE, HOP, BINS = 4000, 16, 33
NOISE = 0.1


class Frames(nn.Module):
    """Samples (B, N) to tokens (B, N / 16, width): log-magnitudes of a Fourier transform, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(2 * (BINS - 1)))
        self.convolution = nn.Conv1d(BINS, WIDTH, kernel_size=5, padding=2)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, N) -> (B, N / 16, width)."""
        spectrum = torch.stft(samples, len(self.window), HOP, window=self.window, return_complex=True)
        return self.convolution(torch.log(spectrum[..., :-1].abs() + 0.5)).transpose(1, 2)


def recordings(count: int, frames: int, pitches: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples (count, 16 frames) and classes (count,): the steps from call to reply, modulo the pitches."""
    length = frames * HOP
    time = torch.arange(length // 5) / RATE
    samples = NOISE * torch.randn(count, length, generator=generator)
    call, reply = torch.randint(0, pitches, (2, count), generator=generator)
    for pitch, harmonics, earliest in ((call, (1,), 0), (reply, (1, 2), 3 * length // 4)):
        phase = 2 * math.pi * (300 * 1.5 ** pitch[:, None] * time + torch.rand(count, 1, generator=generator))
        note = torch.hann_window(len(time)) * sum(torch.sin(h * phase) for h in harmonics) / len(harmonics) ** 0.5
        start = earliest + torch.randint(0, length // 4 - len(time), (count, 1), generator=generator)
        samples.scatter_add_(1, start + torch.arange(len(time)), note)
    return samples, (reply - call) % pitches


class Recordings:
    """New recordings in every epoch: 16 batches of 16."""

    def __init__(self, frames: int, pitches: int, seed: int) -> None:
        self.frames, self.pitches = frames, pitches
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return 16

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(self)):
            yield recordings(16, self.frames, self.pitches, self.generator)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, measure speed and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of 256 new recordings each")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--frames", type=int, default=1024, help="of a recording")
    parser.add_argument("--pitches", type=int, choices=(2, 3), default=2, help="of a note; as many classes")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096, 16384], help="frames that are timed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    models: dict[str, nn.Module] = {}
    for seed in range(options.seeds):
        test = recordings(256, options.frames, options.pitches, torch.Generator().manual_seed(1_000_000 + seed))
        for kind in ("none", "softmax", "dijiang"):
            torch.manual_seed(seed)
            models[kind] = Encoder(Frames(), kind, width=WIDTH, heads=HEADS, layers=LAYERS, classes=options.pitches)
            data = Recordings(options.frames, options.pitches, seed)
            seconds = train(models[kind], data, options.epochs, options.lr)
            row = {"seed": seed, "model": kind, "accuracy": accuracy(models[kind], *test), "seconds": seconds}
            results.append(row)
            print(f"seed {seed}: {kind}: {row['accuracy']:.3f}", flush=True)
    generator = torch.Generator().manual_seed(0)
    inputs = {frames: recordings(1, frames, options.pitches, generator)[0] for frames in options.tokens}
    pair = {kind: models[kind] for kind in ("softmax", "dijiang")}
    report(f"Call and reply, {options.frames:,} frames", results, speed(pair, inputs, options.turns), vars(options))


if __name__ == "__main__":
    main()
