"""Tiny commands whose results are recorded to the last bit, and how they are run and measured.

Only the command line is used, so that the code behind it can be moved about. A case is a command in which a name in
braces stands for a file of data, for the folder of an earlier case, or, as {out}, for the case's own result.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import random
import re
import string
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from yeoul.cli import main

VALUES = Path(__file__).with_name("values.json")
WORDS = "강 산 바다 하늘 나무 여름 겨울 친구 음악 시장".split()
ENDS = ("좋아요.", "간다?", "read it,", "12!")
MACHINE = {"YEOUL_DEVICE": "cpu", "YEOUL_DTYPE": "float32", "YEOUL_THREADS": "1", "OMP_NUM_THREADS": "1"}
NOT_REPEATABLE = {
    "seconds",
    "prefill_seconds",
    "tokens_per_second",
    "energy",
    "machine",
    "speed",
    "model",
    "out",
    "data",
    "teacher",
}

LOG = "--log-every 1 --save-every 0 --eval-every 0"
ROWS = "--context 64 --batch-size 2 --val-fraction 0.1 --val-tokens 512"
SHAPE = "--preset 1m --hidden-size 32 --layers 2 --heads 2 --kv-heads 1 --intermediate-size 64"
PRETRAIN = f"pretrain {{text}} --out {{out}} {ROWS} {LOG}"
LINEARIZE = (
    f"linearize {{softmax}} --data {{text}} --out {{out}} {ROWS} --log-every 1 --save-every 0 --tokens 1536 --window 8 "
    "--align-share 0.34 --finetune-share 0.33 --patience 0 --contexts 64 --judge-tokens 0 --lr 1e-3 --finetune-lr 1e-3"
)
FINETUNE = f"--out {{out}} --epochs 2 --batch-size 6 --context 64 --val-fraction 0.25 {LOG}"
QUANTIZE = (
    "quantize {softmax} --out {out} --data {text} --calibration-tokens 512 --eval-data {text} --eval-tokens 512 "
    "--dtype float32 --no-speed"
)
GENERATE = "--prompt 강가에 --max-tokens 12 --ignore-eos --json"
CASES = {
    "tokenizer": "tokenizer train {text} --out {out} --vocab-size 330",
    "softmax": f"{PRETRAIN} --tokenizer {{tokenizer}} {SHAPE} --tokens 3072 --lr 2e-2",
    "pretrain-hybrid": f"{PRETRAIN} --tokenizer {{tokenizer}} {SHAPE} --tokens 768 --attention hybrid --window 8",
    "pretrain-muon": f"{PRETRAIN} --tokenizer {{tokenizer}} {SHAPE} --tokens 768 --attention sliding dijiang "
    "--window 8 --optimizer muon --schedule wsd --isolate-documents --accumulate 2",
    "delta": f"{LINEARIZE} --state-update delta --exact 0",
    "exact": f"{LINEARIZE} --exact 6",
    "dijiang": f"{LINEARIZE} --map dijiang --attention dijiang",
    "gated": f"{LINEARIZE} --map dijiang --decay gated --state-update additive --softmax-layers 0 --exact 0 "
    "--train-distil low-rank",
    "pretrain-delta": f"{PRETRAIN} --init {{delta}} --tokens 512",
    "chat-full": f"finetune {{softmax}} --data {{dialogs}} {FINETUNE} --lr 1e-3",
    "chat-packed": f"finetune {{delta}} --data {{dialogs}} {FINETUNE} --lr 1e-3 --packing --train-on all",
    "chat-lora": f"finetune {{softmax}} --data {{dialogs}} {FINETUNE} --method lora --dropout 0.1",
    "chat-dora": f"finetune {{gated}} --data {{dialogs}} {FINETUNE} --method lora --dora --rslora",
    "chat-qlora": f"finetune {{softmax}} --data {{dialogs}} {FINETUNE} --method qlora --group-size 32",
    "classify": f"finetune {{softmax}} --task classify --data {{labels}} {FINETUNE} --lr 1e-3",
    "classify-lora": f"finetune {{dijiang}} --task classify --data {{labels}} {FINETUNE} --method lora --lr 3e-3",
    "embed": f"finetune {{softmax}} --task embed --data {{pairs}} {FINETUNE} --lr 3e-4",
    "embed-whiten": f"finetune {{delta}} --task embed --data {{pairs}} {FINETUNE} --whiten --freeze-model",
    "dpo": f"finetune {{softmax}} --task dpo --data {{preferences}} {FINETUNE} --lr 1e-3",
    "dpo-lora": f"finetune {{delta}} --task dpo --data {{preferences}} {FINETUNE} --method lora --lr 1e-2",
    "generate-greedy": f"generate {{softmax}} {GENERATE} --temperature 0",
    "generate-sampled": f"generate {{softmax}} {GENERATE} --seed 3 --num-samples 2 --top-k 50 --repetition-penalty 1.1",
    "generate-delta": f"generate {{delta}} {GENERATE} --seed 3",
    "generate-exact": f"generate {{exact}} {GENERATE} --temperature 0",
    "generate-dijiang": f"generate {{dijiang}} {GENERATE} --temperature 0",
    "generate-gated": f"generate {{gated}} {GENERATE} --temperature 0",
    "generate-adapter": f"generate {{chat-lora}} {GENERATE} --temperature 0",
    "evaluate": "evaluate {softmax} --data {text} --context 64 --max-tokens 512 --by-position --json",
    "evaluate-low-bit": "evaluate {quantize-4} --data {text} --context 64 --max-tokens 512 --json",
    "compare": "evaluate {delta} --teacher {softmax} --data {text} --context 64 --max-tokens 512 --window 4 --sinks 2 "
    "--prompts 2 --new-tokens 4 --json",
    "quantize-8": QUANTIZE,
    "quantize-4": f"{QUANTIZE} --bits 4 --group-size 32 --method rtn",
    "quantize-awq": f"{QUANTIZE} --bits 4 --group-size 32 --method awq",
    "export-hf": "export {chat-lora} --format hf --dtype bf16 --out {out}",
    "export-gguf": "export {softmax} --dtype q8_0 --out {out}.gguf",
    "classify-texts": "classify {classify} --data {labels} --json",
    "embed-texts": "embed {embed} --data {labels} --out {out}.npy",
}


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of the CPU and float32, whatever the machine has: only so are results repeatable."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MACHINE.items():
            patch.setenv(name, value)
        torch.set_num_threads(1)
        yield


def kind_of_machine() -> str:
    """Machines of one kind compute the same bits; the makers' processors take different ways through MKL."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = [re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE) for name in ("vendor_id", "cpu family", "model")]
    processor = "-".join(match[1] for match in found if match) or platform.machine()
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {processor}"


def write_data(home: Path) -> None:
    """Text, dialogs, labels, pairs and preferences, drawn from a fixed seed."""
    draw = random.Random(0)

    def some() -> str:
        return " ".join(draw.sample(WORDS, 2)) + " " + draw.choice(ENDS)

    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    records: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": " ".join(some() for _ in range(15))} for _ in range(60)],
        "dialogs": [{"messages": turns(some(), some()) + turns(some(), some())} for _ in range(24)],
        "labels": [{"text": f"{some()} {ENDS[number % 2]}", "label": "가나"[number % 2]} for number in range(24)],
        "pairs": [{"sentence1": some(), "sentence2": some(), "score": draw.random()} for _ in range(24)],
        "preferences": [{"prompt": some(), "chosen": f"{some()} 좋다", "rejected": some()} for _ in range(24)],
    }
    for name, lines in records.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (home / f"{name}.jsonl").write_text(text, encoding="utf-8")


class Home:
    """A folder of data and of results, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.measured: dict[str, Any] = {}
        write_data(folder)

    def values(self, case: str) -> Any:
        """What the case's command gives, as JSON values."""
        if case not in self.measured:
            printed = self._run(case)
            self.measured[case] = {"printed": printed, **results(self.folder / case)}
        return self.measured[case]

    def _run(self, case: str) -> Any:
        names = {name for _, name, _, _ in string.Formatter().parse(CASES[case]) if name}
        for earlier in names & CASES.keys():
            self.values(earlier)
        places = {name: self.folder / (name if name in CASES else f"{name}.jsonl") for name in names}
        command = [word.format_map(places | {"out": self.folder / case}) for word in CASES[case].split()]
        out, err = io.StringIO(), io.StringIO()
        torch.manual_seed(0)
        with redirect_stdout(out), redirect_stderr(err):
            code = main(command)
        assert code == 0, f"{' '.join(command)}\n{err.getvalue()}"
        return repeatable(parsed(out.getvalue())) if "--json" in command else None


def parsed(text: str) -> Any:
    """JSON, or lines of it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


def results(out: Path) -> dict[str, Any]:
    """Losses of every step, scores, and digests of the weights that a command left behind."""
    found: dict[str, Any] = {}
    for path in sorted([*out.rglob("*"), *out.parent.glob(f"{out.name}.*")]):
        name = path.name if path.parent == out.parent else path.relative_to(out).as_posix()
        if "checkpoints" in path.parts:
            continue
        if path.name == "metrics.jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            found[name] = [repeatable(json.loads(line)) for line in lines]
        elif path.name in ("quantize.json", "finetune.json", "classification.json"):
            found[name] = repeatable(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".safetensors":
            found[name] = digest(load_file(path))
        elif path.suffix == ".gguf":
            found[name] = "sha256 " + hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".npy" and path.parent == out.parent:
            vectors = np.load(path)
            found[name] = [digest({"vectors": torch.from_numpy(vectors)}), vectors[:2].astype(float).tolist()]
    return found


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of tensors: names, types, shapes and bytes."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256 " + whole.hexdigest()


def repeatable(values: Any) -> Any:
    """Values without times and paths."""
    if isinstance(values, dict):
        return {name: repeatable(value) for name, value in values.items() if name not in NOT_REPEATABLE}
    return [repeatable(value) for value in values] if isinstance(values, list) else values


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    """Numbers and words of nested values, by their place."""
    if not isinstance(values, (dict, list)):
        return {path: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {place: leaf for name, value in items for place, leaf in leaves(value, f"{path} > {name}").items()}
