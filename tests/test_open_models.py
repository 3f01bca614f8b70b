"""The figures of docs/guides/open-models.md are what their program computes, from the published shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from yeoul.model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import open_models  # noqa: E402

RECORDED = {
    row["model"]: row
    for row in json.loads((ROOT / "docs" / "benchmarks" / "open-models.json").read_text(encoding="utf-8"))["models"]
}
PUBLISHED = {
    "EleutherAI/polyglot-ko-1.3b": 1_331_810_304,
    "EleutherAI/polyglot-ko-5.8b": 5_885_059_072,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-3-1b-pt": 999_885_952,
}
"""Parameters as the makers or the hub count them."""
TINY = dict(
    vocab_size=8, hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=96,
    attention=("softmax",),
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_are_the_published_ones(name: str) -> None:
    assert RECORDED[name]["parameters"] == PUBLISHED[name]


def test_the_recorded_figures_are_the_computed_ones(tmp_path: Path) -> None:
    """In another process, because tables that are cached under a FakeTensorMode have no numbers."""
    assert set(RECORDED) == set(open_models.MODELS)
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "open_models.py"), "--models",
               "mistralai/Mistral-7B-v0.1", "google/gemma-3-270m", "--out", str(tmp_path / "out.json")]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True)
    for now in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["models"]:
        recorded = RECORDED[now["model"]]
        for key in now.keys() & {"peak", "peak_align_only"}:  # what a layer keeps may differ between versions of torch
            assert now.pop(key) == pytest.approx(recorded[key], rel=0.05)
        assert now == {key: recorded[key] for key in now}


def test_tensors_without_numbers_keep_what_real_ones_keep() -> None:
    real = [open_models.kept_of_layer(ModelConfig(**TINY), batch, 128) for batch in (1, 2)]
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import open_models as o\n"
        "from yeoul.model.config import ModelConfig\n"
        f"kept = o.kept_bytes(ModelConfig(**{TINY!r}), 'hybrid', 128)\n"
        "print([[fixed + batch * each for fixed, each in kept] for batch in (1, 2)])\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert [tuple(sizes) for sizes in json.loads(done.stdout)] == real
    assert all(map(all, real))


def test_the_guides_have_the_program_s_table() -> None:
    for name in ("open-models.md", "open-models.ko.md"):
        guide = (ROOT / "docs" / "guides" / name).read_text(encoding="utf-8")
        for line in open_models.table(list(RECORDED.values())).splitlines()[2:]:
            assert line in guide, f"{name}: {line}"
