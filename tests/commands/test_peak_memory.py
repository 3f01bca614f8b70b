"""Estimates against the peak that the system measures; more shapes and verbs: benchmarks/memory_estimates.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yeoul.data.documents import read_documents
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes.saving import save_folder
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer

CHILD = """
import sys
from yeoul.cli import main
code = main(sys.argv[1:])
print("PEAK", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""
ROWS, CONTEXT = 32, 128
SHAPE = dict(hidden_size=128, num_layers=4, num_heads=4, num_kv_heads=2, intermediate_size=384)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("verb", ["pretrain", "classify"])
def test_an_estimate_is_within_a_quarter_of_the_peak(verb: str, tmp_path: Path) -> None:
    train_tokenizer(read_documents("builtin:40KB"), TokenizerConfig(vocab_size=1000), tmp_path / "tokenizer")
    common = ["--out", tmp_path / "run", "--batch-size", ROWS, "--context", CONTEXT, "--dtype", "float32",
              "--device", "cpu", "--save-every", 0, "--eval-every", 0]  # fmt: skip
    if verb == "pretrain":
        command = [
            "pretrain", "builtin:300KB", "--tokenizer", tmp_path / "tokenizer", "--tokens", 2 * ROWS * CONTEXT,
            "--hidden-size", 128, "--layers", 4, "--heads", 4, "--kv-heads", 2, "--intermediate-size", 384,
            "--val-fraction", 0, *common,
        ]  # fmt: skip
    else:
        tokenizer = Tokenizer.load(tmp_path / "tokenizer")
        torch.manual_seed(0)
        config = ModelConfig(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, **SHAPE)  # type: ignore[arg-type]
        save_folder(Decoder(config), tokenizer, tmp_path / "model")
        texts = [{"text": f"{n} " + "강물은 흐르고 여울은 얕다. " * 40, "label": "ab"[n % 2]} for n in range(2 * ROWS)]
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts))
        command = [
            "finetune", tmp_path / "model", "--data", tmp_path / "texts.jsonl", "--task", "classify", "--epochs", 1,
            "--method", "lora", "--val-fraction", 0, *common,
        ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = 1024 * int(done.stdout.rsplit("PEAK", 1)[1])
    said = json.loads((tmp_path / "run" / "memory.json").read_text())
    # What Python and torch take is known beforehand: without it, so that the estimate itself is judged.
    program = said["parts"]["program and text"]
    assert peak - program > 150 * 2**20  # else nothing is tested
    assert 0.75 < (said["bytes"] - program) / (peak - program) < 1.25
