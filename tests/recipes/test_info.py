"""`yeoul info`: facts about published folders, their cards, and what comes next."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.finetuning import ATTENTION, finetune, low_bit_folder
from text.published import SHAPES, edit
from yeoul import cli
from yeoul.config import parse_flags
from yeoul.model.checkpoint import save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.state_updates.registry import STATE_UPDATES
from yeoul.recipes.caches import cache_bytes
from yeoul.recipes.info.examine import info
from yeoul.recipes.info.sizes import skeleton_shapes, weight_bytes
from yeoul.text.model_card import read_card

CARD = """---
license: apache-2.0
language:
- ko
- no
base_model: some-org/small
tags: [text-generation, "한국어"]
model-index: [{name: x, results: []}]
---
<!-- a comment
over two lines -->
# Small

[![badge](https://x/y.svg)](https://x)

**Small** is a [model](https://x/y) that
writes Korean\x1b[31m.

More.
"""


def config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = dict(
        vocab_size=425, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, max_position_embeddings=128,
        attention=("sliding", "softmax", "sliding"), sliding_window=16, window=8,
    )  # fmt: skip
    return ModelConfig(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True, "norm_placement": "post", "no_rope_layers": (1,)},
        {"norm_placement": "sandwich", "attention_softcap": 50.0, "rope_local_theta": 1e4, "sliding_window": None},
        {"attention": ("hybrid", "sliding", "softmax")},
        {"attention": ("dijiang", "hybrid", "softmax"), "feature_map": {"features": 12}},
        {"num_kv_heads": 4, "head_dim": 24, "positions": "learned"},
        {"attention": ("hybrid", "dijiang", "softmax"), "short_conv": 4, "sinks": 4},
        {"attention": ("hybrid", "dijiang", "hybrid"), "feature_map": {"decay": "gated"}, "num_kv_heads": 1},
        {
            "attention": ("hybrid", "dijiang", "sliding"),
            "state_update": "delta",
            "feature_map": {"name": "fourier"},
            "short_conv": 4,
            "sinks": 4,
        },
        {"attention": ("hybrid", "softmax", "hybrid"), "state_update": "delta", "short_conv": 4, "num_kv_heads": 1},
        {
            "attention": ("hybrid", "dijiang", "hybrid"),
            "state_update": "retention",
            "feature_map": {"name": "cosformer"},
        },
        {"attention": ("hybrid", "softmax", "hybrid"), "exact": (3, 0, 6), "feature_map": {"name": "codebook"}},
        {"attention": ("sliding", "hybrid", "hybrid"), "exact": (5,), "sinks": 4, "sliding_sinks": 1},
        {"attention": ("hybrid",), "exact": (5,), "state_update": "delta", "feature_map": {"name": "cosformer"}},
        {"attention": "dijiang-official", "num_kv_heads": 4},
        *({"attention": ("hybrid", "dijiang", "hybrid"), "state_update": name} for name in STATE_UPDATES.names),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_those_of_the_model(changes: dict[str, Any], dtype: torch.dtype) -> None:
    description = config(**changes)
    fixed, growing = cache_bytes(description, dtype.itemsize)
    model = Decoder(description).to(dtype).eval()
    cache = model.new_cache(1)
    with torch.inference_mode():
        model(torch.zeros(1, 40, dtype=torch.int64), cache=cache)
    assert cache.nbytes() == fixed + 40 * growing


def test_cache_of_a_large_window_is_counted_without_making_it() -> None:
    large = config(num_kv_heads=2, head_dim=128, attention=("sliding",), sliding_window=2**20, num_layers=32)
    fixed, growing = cache_bytes(large, 2)
    assert growing == 0 and fixed == 32 * (2**20 * (2 * 2 * 128 * 2 + 1))  # K and V, and which slots are taken


def test_weight_bytes() -> None:
    description = config(attention=("hybrid",), norm="layernorm", attention_bias=True)
    model = Decoder(description)
    own = {name: parameter for name, parameter in model.named_parameters() if "feature_map" in name}
    numbers, maps = model.num_parameters(), sum(parameter.numel() for parameter in own.values())
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name not in own)
    sizes = weight_bytes(skeleton_shapes(description))
    assert maps > 0 and sizes["float32"] == 4 * numbers
    assert sizes["bfloat16"] == sizes["float16"] == 2 * numbers + 2 * maps
    assert sizes["8-bit"] == matrices * 34 // 32 + 4 * (numbers - matrices)
    assert sizes["4-bit"] == matrices * 18 // 32 + 4 * (numbers - matrices)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    SHAPES["llama3"](tmp_path)
    save_model(Decoder(config(attention=("softmax",), sliding_window=None)), tmp_path)
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path


def report_of(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert cli.main(["info", str(folder), "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, "generation_config.json", eos_token_id=[421, 424])
    report = report_of(folder, capsys, "--context", "1000")
    assert report["format"] == report["family"] == "llama" and report["architectures"] == ["LlamaForCausalLM"]
    assert (report["context_length"], report["context"]) == (128, 1000)
    assert report["config"]["rope_scaling"] is None
    assert set(report["memory"]) == {"float32", "bfloat16", "float16", "8-bit", "4-bit"}
    tokenizer = report["tokenizer"]
    assert tokenizer["kind"] == "byte-level BPE" and tokenizer["file"] == "tokenizer.json" and tokenizer["add_bos"]
    assert tokenizer["stop_ids"] == [421, 424] and tokenizer["bos_id"] == 420 and tokenizer["chat_template"]
    assert report["card"] == {
        "license": "apache-2.0", "language": ["ko", "no"], "base_model": "some-org/small",
        "tags": ["text-generation", "한국어"], "summary": "Small is a model that writes Korean [31m.",
    }  # fmt: skip
    verbs = [row["verb"] for row in report["commands"]]
    assert verbs == ["generate", "chat", "finetune", "linearize", "evaluate", "bench", "export"]
    assert cli.main(["info", str(folder), "--context", "1000"]) == 0
    text = capsys.readouterr().out
    for words in ("apache-2.0", "ko, no", "writes Korean", "llama (LlamaForCausalLM), float32",
                  "at 1,000 tokens", "answers end with 421, 424", "in 4-bit",
                  "texts begin with <|begin_of_text|>", "byte-level BPE", "rotary, up to 128, base 10000",
                  *(row["command"] for row in report["commands"])):  # fmt: skip
        assert words in text
    assert "\x1b" not in text


def test_the_function_gives_values_and_rows(folder: Path) -> None:
    found = info(folder)
    assert found.run is None and found.values["parameters"]["total"] == sum(
        number for part, number in found.values["parameters"].items() if part != "total"
    )
    assert ("vocabulary", "425, output tied to the embeddings") in found.rows() and "apache-2.0" in str(found)


def test_the_commands_are_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in report_of(folder, capsys)["commands"]:
        program, verb, *arguments = shlex.split(row["command"])
        assert program == "yeoul" and verb == row["verb"] and verb in cli.VERBS
        module = importlib.import_module(f"yeoul.commands.{verb}")
        assert parse_flags(module.Config, arguments, program=f"yeoul {verb}") is not None
    chat = next(row["command"] for row in report_of(folder, capsys)["commands"] if row["verb"] == "generate")
    assert cli.main([*shlex.split(chat)[1:], "--max-tokens", "2", "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(),
         {"generate", "chat", "finetune", "linearize", "evaluate"}),
        (lambda folder: (folder / "chat_template.jinja").unlink(), {"chat"}),
        (lambda folder: save_model(Decoder(config(vocab_size=300, attention=("softmax",))), folder),
         {"generate", "chat", "finetune", "linearize", "evaluate"}),
        (lambda folder: save_model(Decoder(config(attention=("hybrid",))), folder), {"linearize", "export"}),
    ],
)  # fmt: skip
def test_what_cannot_be_done(
    change: Callable[[Path], object], missing: set[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {row["verb"] for row in report_of(folder, capsys)["commands"]}
    change(folder)
    assert before - {row["verb"] for row in report_of(folder, capsys)["commands"]} == missing


def test_positions_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    stretched = config(
        attention=("sliding", "softmax", "sliding"), rope_scaling=scaling, rope_local_theta=5000.0, no_rope_layers=(1,),
        qk_norm=True, norm_placement="sandwich", logit_softcap=30.0,
    )  # fmt: skip
    save_model(Decoder(stretched), folder)
    assert cli.main(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    for words in ("2 x sliding", "window 16", "(5000 in sliding layers)", "stretched by 4 (yarn)", "none in 1 layer\n",
                  "norms of queries and keys", "before and after each part", "logit capped at 30"):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\xff\xfe\0\0", b"---", b"---\n---", b"---\n[" + b"[" * 10_000 + b"\n---\n", b"---\n: : :\n---\nText",
        b"---\na: &a [x]\nlicense: *a\n---\nText", b"---\n" + b"{a: " * 3000 + b"\n---\n", b"[" * 60_000,
        b"<!--" * 9000,
        b"---\n" + b"? " * 8000 + b"\n---\n", b"---\nlicense: {a: b}\ntags: [[x]]\nlanguage: 3\n---\n",
        b"[a](" * 15_000,
        b"---\n- a\n---\nText", b"---\n!!python/object/apply:os.system [ls]\n---\nText", b"\0" * 1000, b"a " * 40_000,
        b"---\n<<: {a: b}\nlicense: mit\n---\n",
    ],
    ids=range(18),
)  # fmt: skip
def test_hostile_cards(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text)
    card = read_card(tmp_path)
    assert card is not None and len(json.dumps(card)) < 5000
    assert all(isinstance(value, str | list) for value in card.values())
    assert str(card.get("summary", "")).isprintable()


def test_no_card(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    (tmp_path / "README.md").mkdir()
    assert read_card(tmp_path) is None


def without_torch(*commands: Sequence[str | Path]) -> None:
    """Each command ends well, in one process that has not imported torch at its end."""
    program = (
        "import json, sys\nfrom yeoul import cli\n"
        "codes = [cli.main(command) for command in json.loads(sys.argv[1])]\n"
        "print()\nprint(codes, 'torch' in sys.modules)"
    )
    given = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run([sys.executable, "-c", program, given], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == [f"{[0] * len(commands)} False"], done.stderr


def test_no_torch(home: Path, tmp_path: Path) -> None:
    """It would take most of the time; also not for adapters, quantized models, GGUF files, runs and what is on them."""
    low_bit_folder(home)
    for out, *flags in ((tmp_path / "lora", "--method", "lora"), (tmp_path / "full",)):
        assert finetune(home, out, "--epochs", "1", "--val-fraction", "0", *flags) == 0
    shutil.copytree(tmp_path / "full", tmp_path / "begun")
    (tmp_path / "begun" / "finetune.json").unlink()  # as if it had been stopped behind its checkpoint
    run = info(tmp_path / "begun").run
    assert run is not None and run.state == "stopped" and run.checkpoint is not None
    assert cli.main(["export", str(home / "softmax"), "--out", str(tmp_path / "softmax.gguf")]) == 0
    models = [*(home / name for name in (*ATTENTION, "low-bit")), tmp_path / "lora", tmp_path / "full"]
    models += [tmp_path / "begun", tmp_path / "softmax.gguf"]
    without_torch(
        *(("info", model) for model in models),
        ("runs", tmp_path),
        ("report", tmp_path / "full"),
        ("report", tmp_path / "full", tmp_path / "lora", "--out", tmp_path / "both"),
    )


def test_tokenizers_need_no_torch(home: Path, tmp_path: Path) -> None:
    without_torch(
        ("tokenizer", "train", "builtin:20KB", "--vocab-size", "900", "--out", tmp_path / "bpe"),
        (
            "tokenizer",
            "train",
            "builtin:20KB",
            "--vocab-size",
            "400",
            "--model-type",
            "byte-level",
            "--out",
            tmp_path / "b",
        ),
        ("tokenizer", "inspect", home / "tokenizer", "--text", "강가에"),
        ("tokenizer", "inspect", home / "tokenizer", "--data", "builtin:10KB", "--json"),
    )


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_needs_no_torch(verb: str) -> None:
    without_torch((verb, "--help"))
