"""Linear attention on texts longer than those it was trained on: said once, in generate and in chat."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from models import bare_conversion
from yeoul import cli, load
from yeoul.adapt.linearize import convert
from yeoul.commands.conversation import TerminalChat
from yeoul.infer.cost import beyond_training
from yeoul.infer.params import SamplingParams
from yeoul.model.checkpoint import load_model
from yeoul.recipes.saving import save_folder


def test_the_length_of_the_training_is_kept_in_the_folder(home: Path, tmp_path: Path) -> None:
    teacher, tokenizer = load(home / "softmax", device="cpu")
    student = convert(teacher, bare_conversion(window=8, trained_context=24))
    save_folder(student, tokenizer, tmp_path)
    read = load_model(tmp_path).config
    assert (read.trained_context, read.linear_context) == (24, 24)
    assert read == replace(read, trained_context=None)  # it changes nothing that is computed
    assert beyond_training(read, 24) is None
    said = beyond_training(read, 1025)
    assert said is not None and "1,025 tokens" in said and "up to 24" in said
    assert teacher.config.linear_context is None and beyond_training(teacher.config, 10**6) is None
    assert replace(read, trained_context=None).linear_context == 96  # of a model that says nothing: its positions


def test_generate_says_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--max-tokens", "4", "--temperature", "0", "--device", "cpu"]
    assert cli.main(["generate", str(home / "dijiang"), "안녕", *flags]) == 0
    assert "trained on" not in capsys.readouterr().err
    assert cli.main(["generate", str(home / "dijiang"), "강물은 흐르고 " * 60, *flags]) == 0
    assert "was trained on texts of up to 96" in capsys.readouterr().err


def test_chat_says_it_once(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "dijiang", tmp_path / "model")
    model, tokenizer = load(tmp_path / "model", device="cpu")
    assert tokenizer is not None
    chat = TerminalChat(model, tokenizer, SamplingParams(temperature=0.0, max_tokens=4))
    for _ in range(2):
        chat.answer("강물은 흐르고 " * 60)
    said = capsys.readouterr()
    assert (said.out + said.err).count("was trained on texts of up to 96") == 1
