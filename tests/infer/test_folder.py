"""From a folder on disk to text, through the public face and the commands: a real tokenizer, a random model."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from yeoul.cli import main
from yeoul.commands.conversation import TerminalChat
from yeoul.infer import generation
from yeoul.infer.engine import run
from yeoul.infer.params import SamplingParams
from yeoul.model.checkpoint import save_model
from yeoul.text.chat import render_chat
from yeoul.text.training import TokenizerConfig, train_tokenizer

WORDS = (
    "여울은",
    "얕은",
    "곳에서",
    "빠르게",
    "흐르고",
    "나무꾼이",
    "호랑이를",
    "산길에서",
    "만났다",
    "그래서",
    "웃었다",
)


def sentences() -> Iterator[str]:
    for i in range(400):
        yield " ".join(WORDS[(i * (k + 3) + k) % len(WORDS)] for k in range(3 + i % 5)) + "."


@pytest.fixture(scope="module", params=["plain", "dummy-prefix"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    config = TokenizerConfig(vocab_size=340, add_dummy_prefix=request.param == "dummy-prefix")
    tokenizer = train_tokenizer(sentences(), config, path)
    save_model(tiny("hybrid", vocab_size=tokenizer.vocab_size + 12, eos_id=tokenizer.eos_id), path)
    return path


def test_stream_is_generate_and_one_by_one_is_the_batch(folder: Path) -> None:
    model, tokenizer = yeoul.load(folder, device="cpu", dtype="float32")
    settings = dict(max_tokens=20, temperature=1.5, top_p=1.0, ignore_eos=True)
    prompts = ["여울은", "나무꾼이 산길에서", "", "🌊"]
    texts = yeoul.generate(model, tokenizer, prompts, seed=3, **settings)
    for row, prompt in enumerate(prompts):
        pieces = list(yeoul.stream(model, tokenizer, prompt, seed=3 + row, **settings))
        assert "".join(pieces) == texts[row] == yeoul.generate(model, tokenizer, prompt, seed=3 + row, **settings)
    assert len(set(texts)) == 4


def test_prompt_and_continuation_are_one_text(folder: Path) -> None:
    """Byte tokens of a random model rarely make characters: what is whole must be what decoding all gives."""
    model, tokenizer = yeoul.load(folder, device="cpu", dtype="float32")
    assert tokenizer is not None
    (result,) = run(model, tokenizer, ["여울은 얕은"], SamplingParams(max_tokens=40, seed=1, ignore_eos=True))
    whole = tokenizer.decode([*tokenizer.encode("여울은 얕은"), *result.ids])
    assert ("여울은 얕은" + result.text).rstrip("\ufffd") == whole.rstrip("\ufffd")


def test_generate_from_the_command_line(folder: Path, capsys: Any) -> None:
    arguments = ["generate", str(folder), "여울은", "--seed", "1", "--max-tokens", "20", "--device", "cpu"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out == first and first.endswith("\n")


def test_chat_reuses_its_cache(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = yeoul.load(folder, device="cpu", dtype="float32")
    assert tokenizer is not None
    text = "여울은 흐르고 웃었다."
    turn = render_chat(tokenizer, [{"role": "assistant", "content": text}])[0][1:]
    said = iter(turn * 2)  # a random model would not write in the tokenizer's own pieces
    monkeypatch.setattr(generation, "sample_rows", lambda logits, *_: torch.tensor([next(said)]))
    chat = TerminalChat(model, tokenizer, SamplingParams(), system="여울이다")
    chat.take("나무꾼이 만났다")
    assert chat.session.reused == 0
    first = [{"role": "system", "content": "여울이다"}, *chat.messages]
    chat.take("그래서")
    assert [message["content"] for message in chat.messages[1::2]] == [text, text]
    assert chat.session.reused == len(render_chat(tokenizer, first)[0]) - 1  # all but the end of the turn


def test_chat_from_the_command_line(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "안녕?\n/undo\n여울은?\n/exit\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    assert main(["chat", str(folder), "--seed", "1", "--max-tokens", "12", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("tokens/s") == 2 and shown.out.count("\n") >= 2
