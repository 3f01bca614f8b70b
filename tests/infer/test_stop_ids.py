"""Where model and tokenizer meet: every token that ends a text, and ids that the model does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import yeoul
from infer.conftest import Scripted
from infer.test_folder import sentences
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.infer.engine import end_ids, run
from yeoul.infer.params import SamplingParams
from yeoul.model.checkpoint import save_model
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(sentences(), TokenizerConfig(vocab_size=340), path)
    save_model(tiny(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id), path)
    return path


def test_an_answer_ends_at_any_of_the_end_tokens(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    first, second = tokenizer.encode("여울은"), tokenizer.encode("얕은")
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 330, 331]}), encoding="utf-8")
    listing = Tokenizer.load(tmp_path)
    for end, chosen in ((330, listing), (331, listing), (3, listing), (tokenizer.token_id("<|end|>"), tokenizer)):
        model = Scripted([[*first, end, *second, *[3] * 40]], vocab_size=340)
        (result,) = run(model, chosen, ["나무꾼이"], SamplingParams(temperature=0, max_tokens=20))  # type: ignore[arg-type]
        assert (result.finish_reason, result.ids) == ("eos", first)
    (result,) = run(
        Scripted([[*first, 330, *second, *[3] * 40]], vocab_size=340), tokenizer, ["나무꾼이"],
        SamplingParams(temperature=0, max_tokens=20),
    )  # type: ignore[arg-type]  # fmt: skip
    assert result.ids == [*first, 330, *second]


@pytest.mark.parametrize("ends", [[3, 330, 331], [331, 330, 3], [330], 331])
def test_each_end_token_of_config_json_counts_without_a_generation_config(
    ends: Any, folder: Path, tmp_path: Path
) -> None:
    Tokenizer.load(folder).save(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    described = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(described | {"eos_token_id": ends}), encoding="utf-8")
    model, tokenizer = yeoul.load(tmp_path, device="cpu")
    assert tokenizer is not None and end_ids(model, tokenizer) >= set(ends if isinstance(ends, list) else [ends])
    save_model(model, tmp_path / "again")
    listed = json.loads((tmp_path / "again" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert listed == ends or [listed] == ends


def test_the_tokenizer_of_another_model(
    folder: Path, tmp_path: Path, tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Tokenizer.load(folder).save(tmp_path)
    save_model(tiny(vocab_size=300), tmp_path)
    with pytest.raises(UserError, match="up to 339 of text, but the model knows only 300"):
        yeoul.load(tmp_path, device="cpu")
    assert main(["generate", str(tmp_path), "여울은", "--device", "cpu"]) == 2
    text = capsys.readouterr().err
    assert "use the tokenizer that the model was trained with" in text and text.count("\n") == 1


def test_added_tokens_may_lie_beyond_the_model(folder: Path, tmp_path: Path, tiny: Callable[..., Any]) -> None:
    """A padding token that nobody gave a row, as many published folders have it."""
    Tokenizer.load(folder).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    tool, pad = {"content": "<tool>", "special": False}, {"content": "<late-pad>", "special": True}
    config |= {"added_tokens_decoder": {"340": pad, "341": tool}, "pad_token": "<late-pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_model(tiny(vocab_size=340), tmp_path)
    model, tokenizer = yeoul.load(tmp_path, device="cpu", dtype="float32")
    assert tokenizer is not None and tokenizer.pad_id == 340 and tokenizer.vocab_size == 342
    settings = dict(max_tokens=5, seed=0, ignore_eos=True)
    short = yeoul.generate(model, tokenizer, "여울은", **settings)
    assert yeoul.generate(model, tokenizer, ["여울은", "나무꾼이 산길에서 호랑이를 만났다."], **settings)[0] == short
    with pytest.raises(UserError, match="beyond the model's 340"):
        yeoul.generate(model, tokenizer, "<tool>", **settings)
