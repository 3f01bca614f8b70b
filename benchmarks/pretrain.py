"""Pretraining speed: our loop against transformers' Trainer on the same shape, and against the machine's products.

    python benchmarks/pretrain.py --dtype bfloat16 --out docs/benchmarks/pretrain.json

Both train a Llama shape of 10 to 20 million parameters on the same random tokens with AdamW, clipping and the same
batches: they take turns of a few steps in one process. A turn's first steps are warm-up and not counted. Work is 6
floating-point operations for each parameter and token (the embedding counted once, attention's products not counted),
set against the rate of a square matrix product in the same run. The profile is of our loop's steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yeoul import runtime
from yeoul.data.batch import Batch
from yeoul.model.config import PRESETS, ModelConfig, preset
from yeoul.model.decoder import Decoder
from yeoul.train.config import TrainConfig
from yeoul.train.log import MetricsLog
from yeoul.train.loop import train
from yeoul.train.loss import language_model_objective

WARM_UP = 2
"""Steps of a turn that are not counted."""
LONGEST_PRODUCT = 20.0
"""Seconds that one measured matrix product may take; emulated bfloat16 gets a smaller one."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="15m", choices=sorted(PRESETS), help="shape of the model")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--steps", type=int, default=6, help="counted steps of a turn")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--compile", action="store_true", help="compile our model")
    parser.add_argument("--ours-only", action="store_true", help="leave transformers out")
    parser.add_argument("--product", type=int, default=2048, help="side of the matrix product")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    return parser.parse_args(arguments)


class RandomTokens:
    """The same random batches for both: tensors (B, T) and (B, T), labels already shifted."""

    def __init__(self, batch_size: int, context: int, vocab_size: int) -> None:
        self.shape, self.vocab_size, self.drawn = (batch_size, context + 1), vocab_size, 0

    def draw(self) -> Tensor:
        """(B, T + 1) int64."""
        self.drawn += 1
        generator = torch.Generator().manual_seed(self.drawn)
        return torch.randint(self.vocab_size, self.shape, generator=generator)

    def next_batch(self) -> Batch:
        ids = self.draw()
        return Batch(input_ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def product_rate(dtype: torch.dtype, device: torch.device, side: int) -> tuple[float, int]:
    """(GFLOP/s, side) of a square product, the median of five; a smaller side where this one would take too long."""

    def seconds(n: int) -> float:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        start = time.perf_counter()
        result = a @ b
        float(result[0, 0])  # waits for a GPU
        return time.perf_counter() - start

    small = 256
    while side > small and seconds(small) * (side / small) ** 3 > LONGEST_PRODUCT:
        side //= 2
    seconds(side)
    median = statistics.median(seconds(side) for _ in range(5))
    return 2 * side**3 / median / 1e9, side


def our_turn(model: Decoder, arguments: argparse.Namespace) -> list[float]:
    """Tokens/s of each counted step of our loop."""
    steps = WARM_UP + arguments.steps
    config = TrainConfig(
        tokens=steps * arguments.batch_size * arguments.context,
        batch_size=arguments.batch_size,
        context=arguments.context,
        dtype=arguments.dtype,
        compile=arguments.compile,
        log_every=1,
        save_every=0,
        eval_every=0,
    )
    loader = RandomTokens(arguments.batch_size, arguments.context, arguments.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, loader, language_model_objective, config, Path(folder),
            save_model=lambda target: target.mkdir(), name="ours",
        )  # fmt: skip
        lines = MetricsLog(Path(folder) / "metrics.jsonl").read()
    return [line["tokens_per_second"] for line in lines[WARM_UP:]]


def make_trainer_turn(config: ModelConfig, arguments: argparse.Namespace, bfloat16: bool) -> Callable[[], list[float]]:
    """A function that lets transformers' Trainer take a turn: tokens/s of each counted step."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    logging.getLogger("transformers").setLevel(logging.ERROR)
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(shape)
    steps = WARM_UP + arguments.steps
    source = RandomTokens(1, arguments.context - 1, arguments.vocab_size)
    rows = [source.draw()[0] for _ in range(steps * arguments.batch_size)]
    examples = [{"input_ids": row, "labels": row} for row in rows]

    class Clock(TrainerCallback):  # type: ignore[misc]
        ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    def turn() -> list[float]:
        clock = Clock()
        clock.ends = []
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=arguments.batch_size,
                max_steps=steps,
                learning_rate=1e-3,
                weight_decay=0.1,
                max_grad_norm=1.0,
                bf16=bfloat16,
                use_cpu=runtime.resolve_device(arguments.device).type == "cpu",
                optim="adamw_torch_fused",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                dataloader_pin_memory=False,
            )
            Trainer(model=model, args=settings, train_dataset=examples, callbacks=[clock]).train()
        tokens = arguments.batch_size * arguments.context
        ends = clock.ends[WARM_UP - 1 :]
        return [tokens / (after - before) for before, after in zip(ends, ends[1:], strict=False)]

    return turn


def profile(model: Decoder, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The operations that take most of our steps: name, share of the time, calls."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    on_gpu = next(model.parameters()).is_cuda
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with torch_profile(activities=activities) as recorded:
        our_turn(model, argparse.Namespace(**{**vars(arguments), "steps": 1}))
    averages = recorded.key_averages()

    def own_time(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    total = sum(map(own_time, averages)) or 1.0
    top = sorted(averages, key=own_time, reverse=True)[:15]
    return [{"name": e.key, "share": round(own_time(e) / total, 4), "calls": e.count} for e in top]


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "low": quartiles[0], "high": quartiles[2]}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{result['machine']}, {result['threads']} threads, torch {result['torch']}, {result['dtype']}")
    print(f"{result['parameters']:,} parameters, {result['batch_size']} x {result['context']} tokens a step")
    print("\n| product | side | GFLOP/s |\n|---|---|---|")
    for name, rate in result["products"].items():
        print(f"| {name} | {rate['side']} | {rate['gflops']:,.0f} |")
    print("\n| loop | tokens/s (quartiles) | GFLOP/s | of the product | ours over it |\n|---|---|---|---|---|")
    for name, row in result["loops"].items():
        print(
            f"| {name} | {row['median']:,.0f} ({row['low']:,.0f} to {row['high']:,.0f}) | {row['gflops']:,.0f} | "
            f"{row['share']:.1%} | {result['loops']['ours']['median'] / row['median']:.2f} |"
        )
    print("\n| operation of ours | share | calls |\n|---|---|---|")
    for row in result["profile"]:
        print(f"| {row['name']} | {row['share']:.1%} | {row['calls']} |")


def main() -> None:
    arguments = parse()
    device = runtime.resolve_device(arguments.device)
    threads = runtime.set_threads(arguments.threads)
    dtype = runtime.resolve_dtype(arguments.dtype, device)
    runtime.seed_everything(0)
    products = {}
    for kind in (torch.bfloat16, torch.float32):
        rate, side = product_rate(kind, device, arguments.product)
        products[str(kind).removeprefix("torch.")] = {"gflops": rate, "side": side}

    shape = preset(arguments.preset, vocab_size=arguments.vocab_size, max_position_embeddings=arguments.context)
    model = Decoder(shape).to(device)
    turns: dict[str, Callable[[], list[float]]] = {"ours": lambda: our_turn(model, arguments)}
    if not arguments.ours_only:
        turns["transformers Trainer"] = make_trainer_turn(shape, arguments, dtype == torch.bfloat16)
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(arguments.turns):
        for name, turn in turns.items():
            rates[name] += turn()

    name = str(dtype).removeprefix("torch.")
    loops = {}
    for loop, values in rates.items():
        gflops = 6 * model.num_parameters() * statistics.median(values) / 1e9
        loops[loop] = {**spread(values), "gflops": gflops, "share": gflops / products[name]["gflops"]}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    result = {
        "machine": gpu or runtime.cpu_name(),
        "threads": threads,
        "torch": torch.__version__,
        "dtype": name,
        "parameters": model.num_parameters(),
        "batch_size": arguments.batch_size,
        "context": arguments.context,
        "products": products,
        "loops": loops,
        "profile": profile(model, arguments),
    }
    show(result)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
