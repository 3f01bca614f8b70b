"""A folder with a small softmax model and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from yeoul.cli import main


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    walk = (
        f"pretrain builtin:100KB --preset 1m --vocab-size 1200 --tokens 256 --context 32 --batch-size 4 --out {folder}"
    )
    assert main([*walk.split(), "--val-tokens", "500"]) == 0
    return folder / "model"
