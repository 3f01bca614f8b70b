"""`yeoul chat` with small random models: input of many lines, files, adapters, memory, the screen."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch

import yeoul
from folders import write_small_folder
from yeoul.adapt.lora.api import LoraConfig, add_lora, lora_layers, save_adapter
from yeoul.cli import main
from yeoul.commands.conversation import TerminalChat
from yeoul.commands.terminal import read_message
from yeoul.data.conversations import Conversation, read_conversations
from yeoul.errors import UserError
from yeoul.infer import generation
from yeoul.infer.params import SamplingParams
from yeoul.text.tokenizer import Tokenizer

TEXTS = ["여울은 흐르고 웃었다. 나무꾼이 여울에서 물고기를 만났다.", "안녕? 네, 안녕하세요. 그래서?"] * 4
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def softmax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_folder(tmp_path_factory.mktemp("softmax"), TEXTS, vocab_size=300, max_position_embeddings=512)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    return write_small_folder(
        folder, TEXTS, vocab_size=300, max_position_embeddings=512, attention=("hybrid", "dijiang")
    )


@pytest.fixture(scope="module")
def adapters(softmax: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that change every answer, each in a folder of its name."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("story", "poem")):
        model, _ = yeoul.load(softmax, device="cpu")
        torch.manual_seed(seed)
        add_lora(model, LoraConfig(r=4, base_model=str(softmax)))
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.adapter("default").B, std=0.5)
        save_adapter(model, root / name)
    return {"story": root / "story", "poem": root / "poem"}


@pytest.fixture(autouse=True)
def _whole_syllables(softmax: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models would say bytes that make no characters; these say pieces of text alone."""
    tokenizer, draw = Tokenizer.load(softmax), generation.sample_rows
    pieces = [tokenizer.token_bytes(token).decode("utf-8", "replace").strip() for token in range(tokenizer.vocab_size)]
    mute = torch.tensor([token for token, text in enumerate(pieces) if not text or "\ufffd" in text or text.isascii()])
    only = lambda logits, *more: draw(logits.index_fill(1, mute, -torch.inf), *more)  # noqa: E731
    monkeypatch.setattr(generation, "sample_rows", only)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Any]:
    """talk(folder, "line", ..., flags=[...]) -> what was printed."""

    def say(folder: Path, *lines: str, flags: tuple[object, ...] = ()) -> Any:
        data = "\n".join(lines).encode() + b"\n"
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data), encoding="utf-8"))
        arguments = [
            "chat",
            *map(str, flags),
            "--temperature",
            "0",
            "--max-tokens",
            "8",
            "--device",
            "cpu",
            str(folder),
        ]
        assert main(arguments) == 0
        return capsys.readouterr()

    return say


def saved(path: Path) -> list[dict[str, str]]:
    (record,) = read_conversations(path)
    assert isinstance(record, Conversation)
    return list(record.messages)


def chat_with(folder: Path, **options: Any) -> TerminalChat:
    model, tokenizer = yeoul.load(folder, device="cpu")
    assert tokenizer is not None
    return TerminalChat(model, tokenizer, GREEDY, **options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["안녕?"], ("안녕?", False)),
        (["하나\\", "둘\\  ", "셋"], ("하나\n둘\n셋", False)),
        (["끝\\"], ("끝\n", False)),
        (["/system 너는\\", "여울이다"], ("/system 너는\n여울이다", False)),
        (['"""', "/reset", "", "  둘", '"""'], ("/reset\n\n  둘", True)),
        (['"""하나"""'], ("하나", True)),
        (['"""하나', '둘"""', "셋"], ("하나\n둘", True)),
        (['"""', "열린 채"], ("열린 채", True)),
        (['""""""'], ("", True)),
    ],
)
def test_messages_of_many_lines(lines: list[str], message: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = "\n".join(lines).encode()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data), encoding="utf-8"))
    assert read_message(False) == message


def test_what_is_asked_in_many_lines(talk: Any, softmax: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    shown = talk(
        softmax, "하나\\", "둘", '"""', "/exit", "", "셋", '"""', '""""""', "", f"/save {file}", "/exit", "never"
    )
    assert [m["content"] for m in saved(file)[::2]] == ["하나\n둘", "/exit\n\n셋"]
    assert shown.err.count("tokens/s") == 2


def test_ctrl_c_at_the_prompt_gives_up_the_message(softmax: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = iter(["하나\\", KeyboardInterrupt, "둘", EOFError])

    def scripted(prompt: str = "") -> str:
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", scripted)
    chat = chat_with(softmax)
    chat.talk()
    assert [m["content"] for m in chat.messages[::2]] == ["둘"] and "Ctrl-D or /exit" in capsys.readouterr().err


def test_a_saved_conversation_goes_on(talk: Any, softmax: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.jsonl" for name in "abc")
    talk(softmax, "/system 너는 여울이다", "안녕?", f"/save {first}", "그래서?", f"/save {second}")
    shown = talk(
        softmax, "/undo", f"/load {first}", "그래서?", f"/save {third}", f"/load {second}", "/undo", f"/save {second}"
    )
    assert "nothing to undo" in shown.err and f"Loaded from {first}:1: 1 answer." in shown.err
    assert [m["role"] for m in saved(third)] == ["system", "user", "assistant", "user", "assistant"]
    assert saved(third)[:3] == saved(first) == saved(second)


def test_conversations_from_elsewhere(softmax: Path, tmp_path: Path, capsys: Any) -> None:
    chat = chat_with(softmax, system="누구")
    file = tmp_path / "dialog.json"
    turns = [("user", "안녕?"), ("system", "네."), ("user", "그래서?")]
    dialog = {"conversation": [{"speaker": speaker, "utterance": text} for speaker, text in turns]}
    file.write_text(json.dumps({"dialogs": [dialog, dialog]}), encoding="utf-8")
    chat.take(f"/load {file}")
    assert chat.system is None
    assert chat.messages == [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네."}]
    before = list(chat.messages)
    file.write_text('{"text": "여울"}', encoding="utf-8")
    for command, what in (
        (f"/load {file}", "plain text, not a conversation"),
        (f"/load {tmp_path / 'none.jsonl'}", "no such file"),
        ("/load", "no file was given"),
    ):
        with pytest.raises(UserError, match=what):
            chat.take(command)
    assert chat.messages == before
    chat.take("/undo")
    assert chat.messages == [] and "forgotten" in capsys.readouterr().err


def test_a_question_without_an_answer_is_forgotten(softmax: Path, capsys: Any) -> None:
    chat = chat_with(softmax)
    chat.take("안녕?")
    before = list(chat.messages)
    chat.take("/reset")
    chat.params = replace(GREEDY, stop=(before[1]["content"][0],))
    chat.take("안녕?")
    assert chat.messages == [] and "The answer was empty; the question is forgotten." in capsys.readouterr().err


def test_undo_takes_back_the_whole_turn(softmax: Path) -> None:
    chat = chat_with(softmax)
    roles = ["assistant", "user", "assistant", "user", "user", "assistant", "assistant"]
    chat.messages = [{"role": role, "content": str(number)} for number, role in enumerate(roles)]
    chat.take("/undo")
    assert [message["content"] for message in chat.messages] == ["0", "1", "2", "3"]
    chat.take("/undo")
    chat.take("/undo")
    assert [message["content"] for message in chat.messages] == ["0"]
    chat.take("/undo")
    assert chat.messages == []


def test_adapters_are_switched(talk: Any, softmax: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    def answer(*flags: object) -> str:
        file = tmp_path / "one.jsonl"
        talk(softmax, "안녕?", f"/save {file}", flags=flags)
        return saved(file)[1]["content"]

    alone, story, poem = answer(), answer("--adapter", adapters["story"]), answer("--adapter", adapters["poem"])
    assert len({alone, story, poem}) == 3
    lines = ["/adapter", "안녕?"]
    for name in ("none", "poem", "story"):
        lines += ["/reset", f"/adapter {name}", "안녕?"]
    both = ("--adapter", adapters["story"], "--adapter", adapters["poem"])
    shown = talk(softmax, *lines, "/adapter nobody", flags=both)
    assert shown.out == "".join(f"{text}\n" for text in (story, alone, poem, story))
    assert shown.err.count("Adapters: story (active), poem.") == 2 and "Adapters: story, poem (active)." in shown.err
    assert "Adapters: story, poem, the base model answers." in shown.err
    assert "the model has no adapter 'nobody'; it has story, poem." in shown.err


def test_an_adapter_in_the_middle_of_a_conversation(softmax: Path, adapters: dict[str, Path]) -> None:
    chat = chat_with(softmax)
    chat.take("안녕?")
    chat.take(f"/adapter {adapters['poem']}")
    chat.take("그래서?")
    assert chat.session.reused == 0  # what the other one read counts for nothing
    switched = chat_with(softmax)
    switched.take(f"/adapter {adapters['poem']}")
    switched.messages = chat.messages[:2]
    switched.take("그래서?")
    assert switched.messages == chat.messages
    chat.take("/adapter none")
    chat.take("안녕?")
    assert chat.session.reused == 0


def test_without_adapters(softmax: Path, capsys: Any) -> None:
    chat = chat_with(softmax)
    chat.take("/adapter")
    chat.take("/adapter none")
    assert capsys.readouterr().err == "Adapters: none, the base model answers.\n" * 2
    with pytest.raises(UserError, match="no adapter 'story'; it has none"):
        chat.take("/adapter story")


@pytest.mark.parametrize("kind", ["softmax", "hybrid"])
def test_memory_is_constant_where_it_is_said_to_be(kind: str, request: pytest.FixtureRequest, talk: Any) -> None:
    error = talk(request.getfixturevalue(kind), "안녕?", "여울은 흐르고 웃었다. " * 3, "그래서?").err
    costs = [line for line in error.splitlines() if "tokens/s" in line]
    caches = [re.search(r"cache ([\d.]+ \w+)(, constant)?", cost) for cost in costs]
    assert len(caches) == 3 and all(cache is not None for cache in caches)
    assert [cache[2] == ", constant" for cache in caches] == [kind == "hybrid"] * 3  # type: ignore[index]
    assert len({cache[1] for cache in caches}) == (1 if kind == "hybrid" else 3)  # type: ignore[index]


def test_a_base_model_gets_the_default_template(talk: Any, softmax: Path, tmp_path: Path) -> None:
    shutil.copytree(softmax, tmp_path, dirs_exist_ok=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / name).unlink(missing_ok=True)
    shown = talk(tmp_path, "안녕?")
    assert "no chat template" in shown.err and "tokens/s" in shown.err
    assert "no chat template" not in talk(softmax, "안녕?").err
    assert not (tmp_path / "chat_template.jinja").exists()


def test_the_screen_sees_questions_and_answers(softmax: Path, capsys: Any) -> None:
    seen: list[tuple[list[str], str | None]] = []

    def screen(messages: list[dict[str, str]], answer: str | None) -> str | None:
        seen.append(([message["content"] for message in messages], answer))
        return "it is about poison" if "독" in messages[-1]["content"] else None

    plain = chat_with(softmax, system="너는 여울이다")
    plain.take("안녕?")
    written = capsys.readouterr().out
    chat = chat_with(softmax, system="너는 여울이다", screen=screen)
    chat.take("안녕?")
    assert capsys.readouterr().out == written and chat.messages == plain.messages
    answer = chat.messages[1]["content"]
    assert seen == [(["너는 여울이다", "안녕?"], None), (["너는 여울이다", "안녕?"], answer)]
    before = list(chat.messages)

    chat.take("독은?")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "The question is not answered: it is about poison. It is forgotten.\n"
    assert len(seen) == 3 and chat.messages == before

    chat.screen = lambda messages, answer: None if answer is None else "it is about poison"
    chat.take("그래서?")
    shown = capsys.readouterr()
    assert shown.out.strip() == "" and shown.err.startswith("The answer is not shown: it is about poison.")
    assert chat.messages == before

    chat.screen = None
    chat.take("그래서?")
    plain.take("그래서?")
    assert chat.messages == plain.messages
