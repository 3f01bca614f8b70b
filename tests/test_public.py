"""The public face: lazy names, `load`, and what a user may call a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import yeoul
from yeoul import hub, runtime
from yeoul.cli import VERBS
from yeoul.errors import UserError
from yeoul.model.checkpoint import save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ModelConfig(vocab_size=40, hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=32)
    save_model(Decoder(config), tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("name", sorted(set(yeoul.__all__)))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(yeoul, name) is not None
    assert name in dir(yeoul)


def test_every_name_has_its_home() -> None:
    assert sorted(yeoul.__all__) == sorted({"__version__", *yeoul._HOMES}), "what type checkers see"


OF_A_VERB = {
    "tokenizer": ("train_tokenizer", "inspect_tokenizer", "compare_tokenizers"), "chat": ("Chat",),
    "classify": ("load_classifier",),
    "embed": ("load_embedder",), "evaluate": ("evaluate_model", "compare"), "inspect": ("inspect_attention",),
    "runs": ("list_runs",), "report": ("report_runs",), "serve": ("server_app",),
}  # fmt: skip
"""Names of what a verb does in Python, where they are not the verb's own."""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_function(verb: str) -> None:
    for name in OF_A_VERB.get(verb, (verb,)):
        assert name in yeoul.__all__ and callable(getattr(yeoul, name))


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        yeoul.loda  # noqa: B018


def test_load(folder: Path) -> None:
    model, tokenizer = yeoul.load(folder, device="cpu")
    assert tokenizer is None and isinstance(model, yeoul.Decoder)
    assert model.output_weight.dtype == torch.float32, "auto keeps the type of the file"
    again, _ = yeoul.load(str(folder / "model"), device="cpu")
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids), again(ids))


def test_load_dtype(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YEOUL_DTYPE", raising=False)
    model, _ = yeoul.load(folder, device="cpu", dtype="bfloat16")
    assert model.output_weight.dtype == torch.bfloat16
    save_model(model, folder / "model")
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(runtime, "has_native_bf16", lambda device, native=native: native)
        assert yeoul.load(folder, device="cpu")[0].output_weight.dtype == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder", "no such model folder"),
        ("./nothing", "no such model folder"),
        ("nothing", "no such model folder"),
        (Path("runs/nothing"), "no such model folder"),
        ("한글/모델", "no such model folder"),
    ],
)
def test_what_looks_like_a_path_is_one(name: str | Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_download", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=words):
        yeoul.load(name)


def test_a_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_download", lambda name, pickles: Path("/downloaded"))
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.local_folder("org/name") == Path("org/name")
    assert hub.local_folder("other/name") == Path("/downloaded")
    with pytest.raises(UserError, match="no such model folder"):
        hub.local_folder("org/nmae")  # org/ is here, so this is a misspelled path
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file, not a folder"):
        hub.local_folder("file")


def test_hub_troubles(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: dict[str, object] = {}

    def answer(error: Exception) -> None:
        def download(name: str, **options: object) -> str:
            asked.update(options, name=name)
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    for error, words in (
        (errors.LocalEntryNotFoundError("offline"), "cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (errors.HFValidationError("bad"), "nor a model on the hub"),
    ):
        answer(error)
        with pytest.raises(UserError, match=words):
            hub.local_folder("some-org/some-model")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list) and not any(p.endswith((".bin", ".pt", ".py", "*")) for p in patterns)
    for bug in (PermissionError(13, "Permission denied"), ValueError("bug")):
        answer(bug)
        with pytest.raises(type(bug)):
            hub.local_folder("some-org/some-model")
