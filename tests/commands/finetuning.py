"""Small models of every attention with one tokenizer, conversations, and `yeoul finetune` on them in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from yeoul import cli
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.data.documents import read_documents
from yeoul.model.checkpoint import load_model
from yeoul.model.config import preset
from yeoul.model.decoder import Decoder
from yeoul.recipes.saving import save_folder
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

SMALL = dict(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=64, max_position_embeddings=96
)
ATTENTION: dict[str, dict[str, Any]] = {
    "softmax": {},
    "dijiang": dict(attention=("dijiang",)),
    "hybrid": dict(attention=("hybrid", "softmax"), window=8),
    "delta": dict(attention=("hybrid",), window=8, state_update="delta", feature_map=dict(name="fourier")),
}
QUICK = [
    "--epochs", "4", "--batch-size", "8", "--lr", "1e-2", "--dtype", "float32", "--device", "cpu", "--eval-every", "0",
    "--save-every", "0", "--log-every", "1",
]  # fmt: skip
QUESTIONS = ("안녕", "뭐 해", "밥 먹었어", "어디 가", "강가에 갈까")
ANSWERS = ("반가워요", "강가를 걸어요", "네, 먹었어요", "산에 가요", "좋아요")
PAIRS = tuple(zip(QUESTIONS, ANSWERS, strict=True))


def make_home(home: Path) -> None:
    """Models by the names of their attention, and dialogs.jsonl."""
    train_tokenizer(read_documents("builtin:40KB"), TokenizerConfig(vocab_size=1000), home / "tokenizer")
    tokenizer = Tokenizer.load(home / "tokenizer")
    for name, shape in ATTENTION.items():
        torch.manual_seed(0)
        save_folder(Decoder(preset("1m", **SMALL, **ids_of(tokenizer), **shape)), tokenizer, home / name)
    lines = []
    for number in range(60):
        first, second = number % 5, number * 7 % 5
        turns = [("user", QUESTIONS[first] + "?" * (number % 3)), ("assistant", ANSWERS[first])]
        turns += [("user", f"{QUESTIONS[second]} {number}"), ("assistant", ANSWERS[second])]
        lines.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    (home / "dialogs.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def ids_of(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id}  # fmt: skip


def low_bit_folder(home: Path) -> None:
    """The softmax model in 8 bits, as `home`/low-bit."""
    model = load_model(home / "softmax")
    quantize_model(model, QuantizationConfig.rounded(bits=8))
    save_folder(model, Tokenizer.load(home / "tokenizer"), home / "low-bit")


def finetune(home: Path, out: Path, *arguments: object, model: str = "softmax", data: str = "dialogs.jsonl") -> int:
    """The exit code of the command."""
    given = ["--data", str(home / data), "--out", str(out), *map(str, arguments)]
    return cli.main(["finetune", str(home / model), *quickly(given)])


def quickly(arguments: list[str]) -> list[str]:
    """Arguments, with the quick settings that they leave open."""
    pairs = zip(QUICK[::2], QUICK[1::2], strict=True)
    return arguments + [word for flag, value in pairs if flag not in arguments for word in (flag, value)]


def report(out: Path) -> dict[str, Any]:
    """finetune.json of a run."""
    return dict(json.loads((out / "finetune.json").read_text()))
