"""`yeoul generate` and `yeoul chat`, with a scripted model behind `yeoul.load`."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import yeoul
from yeoul.cli import main
from yeoul.infer.params import SamplingParams

Says = Callable[..., Any]


class Stdin(io.TextIOWrapper):
    """Piped standard input."""

    def __init__(self, data: str | bytes) -> None:
        super().__init__(io.BytesIO(data.encode() if isinstance(data, str) else data), encoding="utf-8")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Any) -> Callable[..., None]:
    """loaded(model) -> what `yeoul.load` gives for any path."""

    def put(model: Any, tokenizer: Any = byte_tokenizer) -> None:
        monkeypatch.setattr(yeoul, "load", lambda path, **_: (model, tokenizer))

    return put


def test_one_prompt_streams_its_continuation(says: Says, loaded: Any, capsys: Any) -> None:
    loaded(says("흐른다."))
    assert main(["generate", "m", "여울은", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "흐른다.\n"
    assert main(["generate", "m", "여울은", "--temperature", "0", "--echo", "--stop", "다"]) == 0
    assert capsys.readouterr().out == "여울은흐른\n"


def test_stats_go_to_standard_error(says: Says, loaded: Any, capsys: Any) -> None:
    loaded(says("abc"))
    assert main(["generate", "m", "12345", "--temperature", "0", "--stats"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "abc\n"
    assert "5 tokens read, 3 generated" in shown.err and "tokens/s" in shown.err and "cache 8 B" in shown.err


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_prompt_from_standard_input(
    says: Says, loaded: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    loaded(says("ok"))
    monkeypatch.setattr(sys, "stdin", Stdin("두 줄의\n물음\n"))
    assert main(["generate", "m", *arguments, "--json", "--temperature", "0"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["prompt"] == "두 줄의\n물음" and line["text"] == "ok" and line["finish_reason"] == "eos"
    assert line["prompt_tokens"] == len("두 줄의\n물음".encode()) and line["ids"] == [111, 107]


def test_prompts_of_a_file_and_samples(says: Says, loaded: Any, capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("가\n\n나나\n", encoding="utf-8")
    loaded(says("1", "2"))
    assert main(["generate", "m", "--prompt-file", str(file), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["가", "나나"]
    loaded(says("1"))  # a scripted row follows its prompt, and equal prompts are read once
    assert main(["generate", "m", "가", "--num-samples", "3", "--stats"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "--- 1 of 3 ---\n1\n--- 2 of 3 ---\n1\n--- 3 of 3 ---\n1\n"
    assert "3 generated" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["p", "--temperature", "-1"], "--temperature is -1"),
        (["p", "--top-p", "0"], "--top-p is 0"),
        (["p", "--num-samples", "0"], "--num-samples is 0"),
        (["p", "--prompt-file", "x"], "both a prompt and --prompt-file"),
        (["--prompt-file", "no/such/file"], "no/such/file"),
        (["p", "--tempratur", "1"], "--temperature"),
    ],
)
def test_mistakes_are_one_sentence(says: Says, loaded: Any, capsys: Any, arguments: list[str], message: str) -> None:
    loaded(says("x"))
    assert main(["generate", "m", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and message in shown.err and shown.err.count("\n") == 1


def test_a_terminal_is_not_steered(
    says: Says, loaded: Any, template: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(says("\x1b[2J<가>\x07"))
    for argv in (["generate", "m", "<"], ["generate", "m", "<", "--num-samples", "2"], ["chat", "m"]):
        for terminal in (False, True):
            monkeypatch.setattr(sys, "stdin", Stdin("go\n"))
            monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
            assert main([*argv, "--temperature", "0", "--max-tokens", "20"]) == 0
            out = capsys.readouterr().out
            assert ("\\x1b[2J<가>\\x07" if terminal else "\x1b[2J<가>\x07") in out and ("\x1b" in out) != terminal


def test_text_that_is_not_utf8(
    says: Says, loaded: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded(says("x"))
    monkeypatch.setattr(sys, "stdin", Stdin("가".encode("cp949")))
    assert main(["generate", "m"]) == 2
    korean = "not UTF-8, but reads as Korean in CP949 (standard input, line 1); add --encoding cp949"
    assert korean in capsys.readouterr().err
    assert main(["generate", "m", "\udcb0\udca1"]) == 2
    assert "not UTF-8, but reads as Korean in CP949 (PROMPT, line 1)" in capsys.readouterr().err
    file = tmp_path / "prompts.txt"
    file.write_bytes("괜찮다\n".encode() + b"\xff\xfe")
    assert main(["generate", "m", "--prompt-file", str(file)]) == 2
    assert f"not UTF-8 ({file}, line 2)" in capsys.readouterr().err
    assert main(["generate", "m", "--prompt-file", str(file), "--encoding", "klingon"]) == 2
    assert "the encoding 'klingon' is not known (--encoding)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "flags"),
    [
        ("utf-8", []),
        ("utf-8-sig", []),
        ("utf-16", []),
        ("cp949", ["--encoding", "cp949"]),
        ("cp949", ["--encoding", "EUC-KR"]),
    ],
)
def test_only_a_line_feed_ends_a_prompt(
    says: Says, loaded: Any, capsys: Any, tmp_path: Path, encoding: str, flags: list[str]
) -> None:
    loaded(says("x", "x"))
    inside = "a\x0cb\x0bc\x1cd" + ("" if encoding == "cp949" else "\u2028e\x85f\u2029g")
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"첫 줄 {inside}\r\n\n둘째 {inside}\n".encode(encoding))
    assert main(["generate", "m", "--prompt-file", str(file), "--json", *flags]) == 0
    found = [json.loads(line)["prompt"] for line in capsys.readouterr().out.split("\n") if line]
    assert found == [f"첫 줄 {inside}", f"둘째 {inside}"]


@pytest.mark.parametrize("verb", [["generate", "m", "p"], ["chat", "m"]])
def test_a_folder_without_tokenizer(says: Says, loaded: Any, capsys: Any, verb: list[str]) -> None:
    loaded(says("x"), None)
    assert main(verb) == 2
    assert "no tokenizer" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context(says: Says, loaded: Any, capsys: Any) -> None:
    loaded(says("x", context=16))
    assert main(["generate", "m", "p" * 17]) == 2
    assert "context longer than the model's" in capsys.readouterr().err


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat template for the byte tokenizer: S, U or A, the text, <eos>."""

    def render(tok: Any, messages: Any, *, add_generation_prompt: bool = False) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [*message["role"][0].upper().encode(), *message["content"].encode(), 257]
        ids += list(b"A") if add_generation_prompt else []
        return ids

    module = SimpleNamespace(render_ids=render, ensure_template=lambda tokenizer: tokenizer)
    monkeypatch.setitem(sys.modules, "yeoul.text.chat", module)


def talk(monkeypatch: pytest.MonkeyPatch, *lines: str) -> int:
    monkeypatch.setattr(sys, "stdin", Stdin("\n".join(lines) + "\n"))
    return main(["chat", "m", "--temperature", "0", "--max-tokens", "20"])


def test_a_conversation(
    says: Says, loaded: Any, template: None, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded(says("네, 안녕!"))
    file = tmp_path / "talk.jsonl"
    assert talk(monkeypatch, "/system 여울이다", "안녕?", "잘 지내?", f"/save {file}", "/exit", "never") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("네, 안녕!\n") and "tokens/s" in shown.err and "cache" in shown.err
    roles = [(m["role"], m["content"]) for m in json.loads(file.read_text(encoding="utf-8"))["messages"]]
    assert roles[:3] == [("system", "여울이다"), ("user", "안녕?"), ("assistant", "네, 안녕!")]
    assert len(roles) == 3 and "The answer was empty; the question is forgotten." in shown.err  # to the second question
    assert "from the cache" in shown.err  # the second turn read only what was new
    assert not list(tmp_path.glob("*.tmp"))


def test_commands_of_a_conversation(
    says: Says, loaded: Any, template: None, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded(says("ok"))
    file = tmp_path / "talk.jsonl"
    lines = [
        "/undo",
        "one",
        "/undo",
        "two",
        "/reset",
        f"/save {file}",
        "/temp -1",
        "/temp x",
        "/temp 0.5",
        "/nope",
    ]
    assert talk(monkeypatch, *lines, "/help", "/save", f"/save {tmp_path}") == 0
    assert json.loads(file.read_text(encoding="utf-8")) == {"messages": []}
    error = capsys.readouterr().err
    for text in ("nothing to undo", "--temperature is -1", "'x' is not a number", "Temperature 0.5", 
                 "unknown command", "/system TEXT", "no file was given", "this is a folder"):  # fmt: skip
        assert text in error


def test_a_conversation_forgets_what_does_not_fit(
    says: Says, loaded: Any, template: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(says("abc", context=64))
    assert talk(monkeypatch, *["0123456789"] * 6, "x" * 70) == 0
    error = capsys.readouterr().err
    assert "forgotten" in error and "of 64 tokens of context" in error
    assert "context longer than the model's" in error  # one question alone is too long


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    says: Says, template: None, byte_tokenizer: Any, capsys: Any
) -> None:
    from yeoul.commands.conversation import TerminalChat

    model = says("a" * 100)
    chat = TerminalChat(model, byte_tokenizer, SamplingParams(temperature=0))
    read = model.hidden

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if len(model.calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        read(*args, **kwargs)

    model.hidden = interrupted
    before = signal.getsignal(signal.SIGINT)
    chat.take("go")
    assert signal.getsignal(signal.SIGINT) is before
    assert chat.messages[-1]["content"] == "a" * 6 and capsys.readouterr().err.endswith("stopped\n")
