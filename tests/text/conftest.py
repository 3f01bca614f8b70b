"""Small tokenizers, trained once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from text.samples import KINDS, small_corpus
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Folders of tokenizers of 560 pieces, by (model_type, normalization)."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {}
    for kind in KINDS:
        model_type, normalization = kind
        config = TokenizerConfig(vocab_size=560, model_type=model_type, normalization=normalization)
        folders[kind] = root / f"{model_type}-{normalization}"
        train_tokenizer(small_corpus(), config, folders[kind])
    return folders


@pytest.fixture(scope="session")
def folder(trained: dict[tuple[str, str], Path]) -> Path:
    """The folder of the BPE tokenizer with NFC."""
    return trained["bpe", "nfc"]


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="session", params=KINDS, ids="-".join)
def any_folder(request: pytest.FixtureRequest, trained: dict[tuple[str, str], Path]) -> Path:
    """Each kind in turn."""
    return trained[request.param]


@pytest.fixture(scope="session")
def any_tokenizer(any_folder: Path) -> Tokenizer:
    return Tokenizer.load(any_folder)
