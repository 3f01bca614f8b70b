"""Which feature map comes closest to a trained model's softmax attention: the same short alignment for each.

    python benchmarks/feature_maps.py runs/reviews --out docs/benchmarks/feature-maps.json

MODEL is a run of `yeoul pretrain` (its OUT/data and OUT/val_data or OUT/data/val are read). Every map starts from the
same teacher, sees the same batches and is trained for `--steps` steps of the alignment stage; then the converted model
is scored whole and with its window switched off. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import yeoul
from yeoul import runtime
from yeoul.adapt.linearize import Alignment, Conversion, convert, train_only_maps
from yeoul.data.loader import PackedLoader
from yeoul.data.shards import TokenShards
from yeoul.evaluate.ablations import parts
from yeoul.evaluate.perplexity import score
from yeoul.model.config import FeatureMapConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.token_data import held_out
from yeoul.train.distill import alignment_objective

MAPS: dict[str, dict[str, Any]] = {
    "softmax kernel": dict(),
    "softmax kernel, learned decay": dict(decay="learned"),
    "softmax kernel, normal radii": dict(radii="normal"),
    "softmax kernel, DCT directions kept": dict(learn=("weights", "frequencies")),
    "exp kernel": dict(kernel="exp"),
    "exp kernel, learned decay": dict(kernel="exp", decay="learned"),
    "exp kernel, normal radii": dict(kernel="exp", radii="normal"),
    "exp kernel, DCT directions kept": dict(kernel="exp", learn=("weights", "frequencies")),
}


def align(teacher: Decoder, student: Decoder, loader: PackedLoader, steps: int, lr: float) -> list[float]:
    """Relative squared error of a layer at each step, with a linear decay of the learning rate to a tenth."""
    train_only_maps(student)
    objective = alignment_objective(Alignment(teacher))
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.95))
    errors = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 3) * (1 - 0.9 * step / steps)
        loss = objective(student, loader.next_batch())
        optimizer.zero_grad()
        (loss.total / loss.count).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        errors.append(loss.total.item() / loss.count)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--val-tokens", type=int, default=16_000)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    runtime.set_threads()
    teacher, tokenizer = yeoul.load(str(arguments.model), dtype="float32")
    begin = tokenizer.framing.begin if tokenizer is not None else ()
    teacher.requires_grad_(False)
    context = teacher.config.max_position_embeddings
    shards = TokenShards.open(arguments.model / "data" / "train", begin)
    apart = arguments.model / "val_data" / "train"
    val = TokenShards.open(apart if apart.exists() else arguments.model / "data" / "val", begin)
    batches = held_out(val, batch_size=2, context=context, max_tokens=arguments.val_tokens)
    rows = [{"map": "teacher", "loss": score(teacher, batches(), None).loss}]
    print(f"{runtime.cpu_name()}, torch {torch.__version__}, fp32; teacher {rows[0]['loss']:.4f} nats per token")
    print(f"{'map':<36} {'error, first':>12} {'last 5':>8} {'loss':>8} {'no window':>9} {'seconds':>7}")
    for name, settings in MAPS.items():
        start = time.perf_counter()
        feature_map = FeatureMapConfig(**settings)
        conversion = Conversion(
            window=arguments.window, feature_map=feature_map, sinks=0, exact=(0,), state_update="additive", short_conv=0
        )
        student = convert(teacher, conversion)
        loader = PackedLoader(shards, batch_size=arguments.batch_size, context=context, seed=1)
        errors = align(teacher, student, loader, arguments.steps, arguments.lr)
        whole = score(student, batches(), None).loss
        with parts(student, window=False):
            alone = score(student, batches(), None).loss
        last, spent = sum(errors[-5:]) / len(errors[-5:]), time.perf_counter() - start
        rows.append({"map": name, "first": errors[0], "last": last, "loss": whole, "linear_only": alone})
        print(f"{name:<36} {errors[0]:>12.4f} {last:>8.4f} {whole:>8.4f} {alone:>9.4f} {spent:>7.0f}", flush=True)
    with parts(student, linear=False):
        rows.append({"map": "window only", "loss": score(student, batches(), None).loss})
    print(f"{'window only, nothing trained':<36} {'':>12} {'':>8} {rows[-1]['loss']:>8.4f}")
    if arguments.out:
        facts = {"machine": runtime.machine(), "steps": arguments.steps, "rows": rows}
        arguments.out.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
