"""Training: steps of 159 million parameters on random tokens, then a pretraining of some minutes by the product.

Operations are 6 for each weight of a product and token, and those of attention: 12 T D a head, layer and token for all
pairs, half of which are used (softmax, T the sequence); of linear layers only what they have in common, so that their
share is understated. The share of the peak (MFU) is of the matrix product measured in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.decode import kinds
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.setting import Setting, spread

import yeoul
from yeoul.data.batch import Batch
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.pretrain.config import PretrainConfig
from yeoul.train.config import TrainConfig
from yeoul.train.log import MetricsLog, Progress
from yeoul.train.loop import train
from yeoul.train.loss import language_model_objective

WARM_UP = 1, 3
"""Steps that are not counted: of a toy run, and else."""
RESERVE = 60.0
"""Seconds of the stage that text, tokenizer, validation and saving are given beside the training."""
BYTES = "40MB"
"""Of the built-in corpus."""


class RandomTokens:
    """Endless batches of random tokens."""

    def __init__(self, batch_size: int, context: int, vocab_size: int) -> None:
        self.shape, self.vocab_size, self.drawn = (batch_size, context + 1), vocab_size, 0

    def next_batch(self) -> Batch:
        self.drawn += 1
        ids = torch.randint(self.vocab_size, self.shape, generator=torch.Generator().manual_seed(self.drawn))
        return Batch(input_ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def flops_per_token(model: Decoder, context: int) -> float:
    """Operations of a token, forward and backward."""
    config = model.config
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2) - model.model.embed_tokens.weight.numel()
    weights += model.output_weight.numel()
    H, _, D = config.heads
    return 6.0 * weights + 6.0 * context * D * H * config.attention.count("softmax")


def run(bench: Setting, book: Report) -> None:
    """A short measurement of softmax gives the length of the pretraining; the other kinds and torch.compile follow."""
    batch, context = (1, 24) if bench.tiny else (16, 2048)
    shape = bench.shape("160m", max_position_embeddings=context)
    rate = steps_row(bench, book, "softmax", shape, batch, context).get("tokens_per_second")
    what = {"model": "160m", "kind": "softmax", "method": "yeoul.pretrain", "batch": batch, "context": context}
    if rate is not None:
        book.measure("train", what, bench.deadline, lambda: pretrain(bench, batch, context, rate))
    for kind, config in list(kinds(shape).items())[1:]:
        steps_row(bench, book, kind, config, batch, context)
    steps_row(bench, book, "softmax", shape, batch, context, compile=True)
    book.finish(
        "train",
        {
            "model": "model", "kind": "attention", "method": "by", "batch": "batch", "context": "context",
            "tokens_per_second": "tokens/s", "tflops": "TFLOP/s", "share_of_product": "MFU", "peak_bytes": "peak bytes",
            "tokens": "tokens", "loss": "loss", "validation_loss": "held out",
        },
    )  # fmt: skip


def steps_row(
    bench: Setting, book: Report, kind: str, config: ModelConfig, batch: int, context: int, compile: bool = False
) -> Row:
    """A row of the loop on random tokens."""
    method = "loop, compiled" if compile else "loop"
    what = {"model": "160m", "kind": kind, "method": method, "batch": batch, "context": context}
    return book.measure("train", what, bench.deadline, lambda: steps(bench, config, batch, context, compile))


def steps(bench: Setting, config: ModelConfig, batch: int, context: int, compile: bool) -> Row:
    """Tokens a second of each step but the first, in as large parts of a batch as fit."""
    for part in (batch, batch // 4):
        try:
            return _steps(bench, config, batch, context, compile, part)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return _steps(bench, config, batch, context, compile, 1)


def _steps(bench: Setting, config: ModelConfig, batch: int, context: int, compile: bool, part: int) -> Row:
    warm_up = WARM_UP[0] if bench.tiny else WARM_UP[1]
    count = warm_up + (1 if bench.tiny else 12)
    torch.manual_seed(0)
    model = Decoder(config).to(bench.device)
    settings = TrainConfig(
        tokens=count * batch * context, batch_size=batch, context=context, compile=compile, log_every=1, save_every=0,
        eval_every=0, micro_batch=max(1, part),
    )  # fmt: skip
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    loader = RandomTokens(batch, context, config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, loader, language_model_objective, settings, Path(folder),
            save_model=lambda target: target.mkdir(), name=f"{config.attention[0]} steps",
            progress=Progress(config.attention[0], count),
        )  # fmt: skip
        lines = MetricsLog(Path(folder) / "metrics.jsonl").read()
    speeds = [line["tokens_per_second"] for line in lines[warm_up:]]
    row = spread([batch * context / speed for speed in speeds]).row()
    row |= {"tokens_per_second": statistics.median(speeds), "parameters": model.num_parameters()}
    row["micro_batch"] = max(1, part)
    row["peak_bytes"] = torch.cuda.max_memory_allocated() if bench.on_gpu else None
    return row | bench.shares(row["seconds"], flops=batch * context * flops_per_token(model, context))


def pretrain(bench: Setting, batch: int, context: int, rate: float) -> Row:
    """The product's pretraining, for as long as was asked for or as is left."""
    seconds = min(60 * bench.train_minutes, bench.deadline - time.monotonic() - RESERVE)
    if bench.tiny:
        seconds = 40 * batch * context / rate
    elif seconds < 20:
        return {"skipped": "no time left"}
    step = batch * context
    tokens = max(1, int(seconds * rate / step)) * step
    folder = Path(tempfile.mkdtemp(prefix="yeoul-gpu-")) / "run"
    settings: dict[str, Any] = dict(preset="350m", layers=12, vocab_size=8000)
    if bench.tiny:
        settings = dict(preset="1m", layers=1, kv_heads=2, vocab_size=2048)
    config = PretrainConfig.of(
        **settings, tokens=tokens, batch_size=batch, context=context, eval_every=0, save_every=0, log_every=5,
        val_tokens=2_000 if bench.tiny else 100_000,
    )  # fmt: skip
    begin = time.perf_counter()
    data = "builtin:200KB" if bench.tiny else f"builtin:{BYTES}"
    result = yeoul.pretrain(data, config, out=folder, device=bench.device.type)
    whole = time.perf_counter() - begin
    bench.run_folder, bench.train_tokens = folder, result.tokens
    lines = MetricsLog(folder / "metrics.jsonl").read()
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    speed = statistics.median(speeds[1:] or speeds)
    row: Row = {"tokens": result.tokens, "tokens_per_second": speed, "loss": result.loss}
    row |= {"validation_loss": result.validation.get("loss"), "parameters": result.model.num_parameters()}
    row |= {"training_seconds": result.seconds, "whole_seconds": whole, "notes": list(result.notes)}
    return row | bench.shares(1.0, flops=speed * flops_per_token(result.model, context))
