"""What the state does with a token, by associative recall: tiny models trained from scratch on key-value pairs.

    python benchmarks/state_updates.py --out docs/benchmarks/state-updates.json
    python benchmarks/state_updates.py --rewritten --symbols 8 --pairs 4 --lr 5e-3 \
        --out docs/benchmarks/state-updates-rewritten.json

A row states `--pairs` pairs (key, value), then asks for each key once, in another order and with blanks between
(multi-query associative recall, arXiv 2312.04927). With `--rewritten` a pair is one token, so that no layer has to look
one token back first, and each key is stated twice, where the later value counts. Only the answers count, in the loss
and in the accuracy, which is taken on rows that no training saw. All models have the same sizes, batches, learning
rates and steps; the best learning rate of each is chosen by its mean accuracy over the seeds, and every run is in the
JSON. Runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yeoul import runtime
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder

LINEAR = dict(attention=("dijiang",))
MODELS: dict[str, dict[str, Any]] = {
    "softmax": dict(attention=("softmax",)),
    "additive": LINEAR,
    "additive, learned decay": LINEAR | dict(feature_map=FeatureMapConfig(decay="learned")),
    "delta rule": LINEAR | dict(state_update="delta"),
}


def rows(count: int, pairs: int, symbols: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and labels, (count, 4 * pairs) int64 each; labels are -100 but where a key is asked for.

    Token 0 is a blank; then come the keys, then the values.
    """
    keys = torch.rand(count, symbols, generator=generator).argsort(1)[:, :pairs] + 1
    values = torch.randint(symbols, (count, pairs), generator=generator) + 1 + symbols
    stated = torch.stack((keys, values), dim=2).flatten(1)
    order = torch.rand(count, pairs, generator=generator).argsort(1)
    asked, answers = keys.gather(1, order), values.gather(1, order)
    questions = torch.stack((asked, torch.zeros_like(asked)), dim=2).flatten(1)
    labels = torch.full((count, 4 * pairs), -100)
    labels[:, 2 * pairs :: 2] = answers
    return torch.cat((stated, questions), dim=1), labels


def rewritten_rows(count: int, pairs: int, symbols: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and labels, (count, 3 * pairs) int64 each: every key stated twice, then asked for.

    Tokens are those of `rows`, and after them one for each pair of a key and a value.
    """
    keys = torch.rand(count, symbols, generator=generator).argsort(1)[:, :pairs]
    which = torch.rand(count, 2 * pairs, generator=generator).argsort(1) % pairs
    values = torch.randint(symbols, (count, 2 * pairs), generator=generator)
    stated = 1 + 2 * symbols + keys.gather(1, which) * symbols + values
    last = ((which[:, :, None] == torch.arange(pairs)) * torch.arange(2 * pairs)[:, None]).amax(1)  # (count, pairs)
    order = torch.rand(count, pairs, generator=generator).argsort(1)
    answers = (values.gather(1, last) + 1 + symbols).gather(1, order)
    labels = torch.cat((torch.full((count, 2 * pairs), -100), answers), dim=1)
    return torch.cat((stated, keys.gather(1, order) + 1), dim=1), labels


def build(settings: dict[str, Any], arguments: argparse.Namespace, seed: int) -> Decoder:
    """An untrained model; `seed` draws its weights."""
    torch.manual_seed(seed)
    symbols = arguments.symbols
    config = ModelConfig(
        vocab_size=1 + 2 * symbols + (symbols**2 if arguments.rewritten else 0), hidden_size=arguments.hidden,
        num_layers=2, num_heads=2, intermediate_size=2 * arguments.hidden,
        max_position_embeddings=4 * arguments.pairs, **settings,
    )  # fmt: skip
    return Decoder(config)


def train(model: Decoder, arguments: argparse.Namespace, lr: float, seed: int) -> dict[str, Any]:
    """Accuracy and loss on held-out rows, and the seconds that training took."""
    generator = torch.Generator().manual_seed(1000 + seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    draw = rewritten_rows if arguments.rewritten else rows
    began, steps = time.perf_counter(), arguments.steps
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)
        inputs, labels = draw(arguments.batch_size, arguments.pairs, arguments.symbols, generator)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    seconds = time.perf_counter() - began
    inputs, labels = draw(512, arguments.pairs, arguments.symbols, torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = model.eval()(inputs)
    asked = labels >= 0
    right = (logits.argmax(-1) == labels)[asked].double().mean().item()
    return {"accuracy": right, "loss": F.cross_entropy(logits[asked], labels[asked]).item(), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--symbols", type=int, default=16, help="different keys, and different values")
    parser.add_argument("--rewritten", action="store_true", help="a pair is one token, and keys are stated twice")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    print(
        f"{runtime.cpu_name()}, torch {torch.__version__}, fp32, 1 thread; guessing gives {1 / arguments.symbols:.3f}"
    )
    print(f"{'state':<26} {'parameters':>10} {'lr':>7} {'accuracy':>8}  {'of each seed':<16} {'loss':>6} {'s/run':>6}")
    records, best = [], {}
    for name in arguments.models:
        for lr in arguments.lr:
            runs = []
            for seed in range(arguments.seeds):
                model = build(MODELS[name], arguments, seed)
                runs.append({"seed": seed, **train(model, arguments, lr, seed)})
            mean = statistics.mean(run["accuracy"] for run in runs)
            record = {"state": name, "parameters": model.num_parameters(), "lr": lr, "accuracy": mean, "runs": runs}
            records.append(record)
            if mean > best.get(name, {"accuracy": -1.0})["accuracy"]:
                best[name] = record
            each = " ".join(f"{run['accuracy']:.3f}" for run in runs)
            loss, seconds = (statistics.mean(run[key] for run in runs) for key in ("loss", "seconds"))
            row = f"{name:<26} {model.num_parameters():>10,} {lr:>7g} {mean:>8.3f}  {each:<16} {loss:>6.3f}"
            print(f"{row} {seconds:>6.0f}", flush=True)
    print("\nbest learning rate of each: " + "; ".join(f"{n} {r['accuracy']:.3f}" for n, r in best.items()))
    if arguments.out:
        facts = {
            "machine": runtime.machine(), "command": " ".join(["python", *sys.argv]),
            "chance": 1 / arguments.symbols, "best": {name: record["lr"] for name, record in best.items()},
            **{key: value for key, value in vars(arguments).items() if key not in ("out", "lr", "models")},
            "records": records,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
