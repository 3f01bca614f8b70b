"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data and reference vectors; tests that need it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data and reference vectors at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _one_thread_fixed_seed() -> None:
    """Two-thread operations stall beside other jobs; a fixed seed makes failures repeatable."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training ends with a page, whose plots take a second each: only tests of pages draw them."""
    pages = ("test_run_report", "test_sweep", "test_compare_tokenizers")
    if "report" not in request.path.parts and request.path.stem not in pages:
        monkeypatch.setattr("yeoul.report.plots.available", lambda: False)
