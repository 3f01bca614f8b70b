"""Time and peak memory of loading a random Llama or GPT-NeoX in bfloat16 here and in transformers, in turns.

    python benchmarks/load.py --repeats 5
    python benchmarks/load.py --shape neox-1b --json docs/benchmarks/load-neox.json

Every load runs in a process of its own, after the imports, from a file that is in the page cache. "ready" is the time
until the model is returned; "used" adds a reduction over every weight, so that what is mapped and not yet read is paid
for. Peak memory is the largest resident set of the process (file pages that it maps included) above what it was before
loading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys, threading, time
import psutil, torch
torch.set_num_threads(int(sys.argv[3]))
if sys.argv[1] == "yeoul":
    from yeoul.model.checkpoint import load_model as load
else:
    from transformers import GPTNeoXForCausalLM, LlamaForCausalLM
    kind = LlamaForCausalLM if sys.argv[4] == "llama" else GPTNeoXForCausalLM
    load = lambda folder: kind.from_pretrained(folder)
process = psutil.Process()
before, peak, done = process.memory_info().rss, 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)
watcher = threading.Thread(target=watch, daemon=True); watcher.start()
start = time.perf_counter()
model = load(sys.argv[2])
ready = time.perf_counter() - start
for p in model.parameters():
    p.detach().view(torch.int16).max()  # touches every byte
used = time.perf_counter() - start
done.set(); watcher.join()
output = model.output_weight if sys.argv[1] == "yeoul" else model.get_output_embeddings().weight
check = float(output.detach().double().sum())
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"ready": ready, "used": used, "peak": (peak - before) / size, "bytes": size, "check": check}))
"""
SHAPES = {
    "1b": dict(
        vocab_size=32000, hidden_size=2048, num_layers=20, num_heads=32, num_kv_heads=8, intermediate_size=6144,
        tie_embeddings=False,
    ),
    "neox-1b": dict(
        vocab_size=50432, hidden_size=2048, num_layers=16, num_heads=16, intermediate_size=8192, norm="layernorm",
        mlp="gelu", attention_bias=True, mlp_bias=True, parallel_residual=True, rotary_dim=32, tie_embeddings=False,
    ),
    "tiny": dict(vocab_size=1000, hidden_size=256, num_layers=4, num_heads=4, tie_embeddings=False),
}  # fmt: skip


def make(folder: Path, shape: str) -> None:
    """A random model of this shape in bfloat16."""
    import torch

    from yeoul.model.checkpoint import save_model
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import skeleton

    model = skeleton(ModelConfig(**SHAPES[shape])).to(torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.02)
    save_model(model, folder)


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/load.json"))
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"yeoul": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.shape)
        family = json.loads((Path(folder) / "config.json").read_text())["model_type"]
        for _ in range(arguments.repeats + 1):
            for name, found in runs.items():
                command = [sys.executable, "-c", CHILD, name, folder, str(arguments.threads), family]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len({run["check"] for found in runs.values() for run in found}) == 1, "the weights differ"
    print(f"{'':<14}{'ready, s':>22}{'used, s':>22}{'peak / weights':>16}")
    for name, found in runs.items():
        del found[0]  # warms the page cache
        cells = []
        for key in ("ready", "used"):
            values = [run[key] for run in found]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        print(f"{name:<14}{cells[0]:>22}{cells[1]:>22}{max(run['peak'] for run in found):>16.2f}")
    from yeoul.recipes.machine import machine_facts

    result = {"command": " ".join(["python", *sys.argv]), "machine": machine_facts(), "runs": runs}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
