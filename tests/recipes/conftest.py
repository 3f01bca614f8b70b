"""The home of small models that tests of fine-tuning share."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.finetuning import make_home


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of every attention, of one tokenizer, and conversations."""
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return home
