"""200 damaged model folders: 200 sentences, no hang, and no memory beyond twice the files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from model import damage

COUNT = 200


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    """What a process of its own, whose memory can be measured and limited, found out about each folder."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is measured as Linux does it")
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(str(root / name) for name in ("src", "tests"))
    command = [sys.executable, damage.__file__, "--count", str(COUNT), "--json"]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == COUNT, done.stderr[-3000:]  # less where one hung, or ended the process
    return found


def test_every_damaged_folder_is_one_clear_sentence_without_much_memory(outcomes: list[dict[str, Any]]) -> None:
    assert [outcome for outcome in outcomes if outcome["fault"] or outcome["said"] is None] == []


def test_the_damages_are_of_all_kinds_and_families(outcomes: list[dict[str, Any]]) -> None:
    assert {outcome["damage"] for outcome in outcomes} == set(damage.DAMAGES)
    assert min(Counter(outcome["family"] for outcome in outcomes).values()) >= 10


def test_the_folders_that_are_damaged_are_healthy_and_files_may_be_links(tmp_path: Path) -> None:
    """The hub's cache keeps files under other names, elsewhere, and links to them."""
    ids = torch.arange(9)[None]
    for family, folder in damage.make_folders(tmp_path / "healthy").items():
        linked = tmp_path / "snapshots" / family
        linked.mkdir(parents=True)
        for number, file in enumerate(sorted(folder.iterdir())):
            blob = tmp_path / "blobs" / f"{family}{number}"
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(file.read_bytes())
            (linked / file.name).symlink_to(Path("../../blobs") / blob.name)
        (model, tokenizer), (same, _) = yeoul.load(folder, device="cpu"), yeoul.load(linked, device="cpu")
        assert tokenizer is not None
        with torch.inference_mode():
            assert torch.equal(model(ids), same(ids))
