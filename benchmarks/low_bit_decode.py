"""Decoding with weights of 8 and 4 bits against bfloat16, models in turns.

    python benchmarks/low_bit_decode.py --preset 1b --out low-bit-decode.json

The weights are random: what they say changes no speed. Each model reads a short text and decodes one token after the
other. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn

from yeoul import runtime
from yeoul.evaluate.speed import compare, table
from yeoul.model.config import preset
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear, replace_module
from yeoul.model.quantized_folder import candidates


def random_model(name: str, vocab_size: int, bits: int) -> Decoder:
    """A model of a preset with random weights: 16 bits are bfloat16; embeddings beside 4 bits have 8 in memory."""
    model = skeleton(preset(name, vocab_size=vocab_size, max_position_embeddings=4096))
    generator = torch.Generator().manual_seed(0)
    if bits != 16:
        for path, module, _ in list(candidates(model)):
            rows, width = module.weight.shape  # type: ignore[union-attr]
            table_like = isinstance(module, nn.Embedding)
            own = 6 if bits == 4 and table_like else bits
            high = 2 ** (own - 1)
            q = torch.randint(1 - high, high, (rows, width), dtype=torch.int8, generator=generator)
            groups = width // 64 if own == 4 else 1
            scale = torch.full((rows, groups), 0.02 / high, dtype=torch.bfloat16)
            kind = QuantizedEmbedding if table_like else QuantizedLinear
            replace_module(model, path, kind.of(q, scale, own))
    for path, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            value = torch.randn(parameter.shape, generator=generator).mul_(0.02).to(torch.bfloat16)
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))
    return model.to(torch.bfloat16).eval()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="1b")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    arguments = parser.parse_args()

    runtime.set_threads()
    names = {"bfloat16": 16, "8 bits": 8, "4 bits": 4}
    models = {name: random_model(arguments.preset, arguments.vocab_size, bits) for name, bits in names.items()}
    records = compare(models, [arguments.context], steps=arguments.steps, turns=arguments.turns)
    print(f"{runtime.cpu_name()}; {models['bfloat16'].num_parameters():,} parameters")
    print(table(records, "bfloat16"))
    if arguments.out:
        facts = {"machine": runtime.machine(), "command": " ".join(["python", *sys.argv]),
                 "rows": [record.as_dict() for record in records]}  # fmt: skip
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
