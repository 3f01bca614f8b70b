"""`yeoul chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from yeoul.commands.screen import ScreenFlags
from yeoul.commands.terminal import checked_text, note, read_message, stopped_by_ctrl_c, with_history
from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.files import write_text
from yeoul.foreign_text import say
from yeoul.infer.params import SamplingParams
from yeoul.units import count, rate, size

if TYPE_CHECKING:
    from yeoul.infer.engine import GenerationResult
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

HELP = """\
/reset         forget the conversation
/system TEXT   set the system prompt; without TEXT, remove it
/temp NUMBER   temperature: 0 always takes the most likely token, higher is more varied
/undo          forget the last question and its answer
/adapter NAME  answer with this adapter, "none" for the base model; without NAME, list them
/save FILE     write the conversation as one JSON line
/load FILE     continue a conversation from a file
/help          show this list
/exit          leave (so does Ctrl-D; Ctrl-C stops an answer)
A line that ends with \\ continues on the next one; \"\"\" begins and ends a text of several lines."""

Message = dict[str, str]
Screen = Callable[[list[Message], str | None], str | None]
"""Given the conversation up to a question, and its answer or None before there is one: why to refuse it, or None."""


@dataclass(frozen=True)
class Config:
    """Talk with a model. In the conversation, /help lists the commands."""

    model: Place
    """Model folder, run folder, adapter folder, or id on the Hugging Face hub."""
    _: KW_ONLY
    system: str | None = None
    """System prompt: what the model is told before the conversation."""
    sampling: Annotated[SamplingParams, Parameter(name="*")] = field(default_factory=SamplingParams)
    adapter: Annotated[tuple[Place, ...], Parameter(consume_multiple=False)] = ()
    """LoRA adapter for the model: a folder, or an id on the Hugging Face hub. The flag can be repeated; the first
    adapter answers until /adapter selects another."""
    safety: Annotated[ScreenFlags, Parameter(name="*")] = field(default_factory=ScreenFlags)
    """The safety screen."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Number type of the weights: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Loads the model and talks until the user leaves."""
    import yeoul
    from yeoul.text.chat import ensure_template

    screen = config.safety.open(config.device)
    model, tokenizer = yeoul.load(config.model, device=config.device, dtype=config.dtype, adapter=config.adapter)
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it cannot chat", config.model)
    ready = ensure_template(tokenizer)
    if ready is not tokenizer:
        note("The model has no chat template and was probably not trained to chat; the default template is used.")
    Chat(model, ready, config.sampling, config.system, screen=screen).talk()
    return 0


class Chat:
    """One conversation: its messages, its settings and the session that keeps the cache between turns.

    Args:
        model, tokenizer: the tokenizer has a chat template.
        params: how answers are drawn.
        system: what the model is told first.
        screen: asked before and after each answer, which is then shown only when it is whole.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        params: SamplingParams,
        system: str | None = None,
        *,
        screen: Screen | None = None,
    ) -> None:
        from yeoul.infer.engine import Session

        self.model, self.tokenizer, self.params, self.system = model, tokenizer, params, system
        self.screen = screen
        self.session = Session(model, tokenizer)
        self.messages: list[Message] = []
        self.said_too_long = False
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.commands = {
            "/reset": self.reset, "/system": self.set_system, "/temp": self.set_temperature, "/undo": self.undo,
            "/adapter": self.set_adapter, "/save": self.save, "/load": self.load, "/help": lambda _: note(HELP),
        }  # fmt: skip

    def talk(self) -> None:
        """Reads messages and answers them, until /exit or the end of the input."""
        if self.terminal:
            with_history()
            note("/help lists the commands, /exit leaves.")
        while True:
            try:
                text, quoted = read_message(self.terminal)
            except EOFError:
                break
            except KeyboardInterrupt:
                print(flush=True)
                note("Ctrl-D or /exit leaves.")
                continue
            if text == "/exit" and not quoted:
                break
            try:
                self.answer(text) if quoted else self.take(text)
            except UserError as error:
                note(str(error))
        if self.terminal:
            print()

    def take(self, text: str) -> None:
        """What the user typed: a command, or something to answer."""
        word, _, rest = text.partition(" ")
        if word in self.commands:
            self.commands[word](rest.strip())
        elif word.startswith("/"):
            raise UserError(
                f"unknown command {word}", fix='see /help, or put the text between """ to ask it as a question'
            )
        else:
            self.answer(text)

    def answer(self, question: str) -> None:
        """Writes the model's answer while it is generated, and a line about its cost."""
        if not question.strip():
            return
        asked = {"role": "user", "content": checked_text(question)}
        if self._refused([*self.messages, asked], None):
            return
        stream = self.session.stream(self._fitting_prompt([*self.messages, asked]), self.params)
        try:
            with stopped_by_ctrl_c(stream):
                for piece in stream:
                    self._show(piece if self.screen is None else "")
            assert stream.result is not None
            text = stream.result.text
            if self._refused([*self.messages, asked], text):
                return
            self._show(text if self.screen is not None else "")
        finally:
            print(flush=True)
        note(self._cost(stream.result))
        self._say_when_too_long(stream.result)
        if text.strip():
            self.messages += [asked, {"role": "assistant", "content": text}]
        else:
            note("The answer was empty; the question is forgotten.")

    def _say_when_too_long(self, result: GenerationResult) -> None:
        """Once: the conversation is longer than any text on which linear attention was trained."""
        from yeoul.commands.generate import beyond_training

        said = beyond_training(self.model.config, result.prompt_tokens + len(result.ids))
        if said is not None and not self.said_too_long:
            self.said_too_long = True
            note(said)

    def _show(self, piece: str) -> None:
        say(piece, end="", flush=True)

    def _refused(self, messages: list[Message], answer: str | None) -> bool:
        reason = self.screen(self._whole(messages), answer) if self.screen is not None else None
        if reason is not None:
            what = "The question is not answered" if answer is None else "The answer is not shown"
            note(f"{what}: {reason}. It is forgotten.")
        return reason is not None

    def _whole(self, messages: list[Message]) -> list[Message]:
        """The conversation with what the model is told before it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *messages]

    def _fitting_prompt(self, messages: list[Message]) -> list[int]:
        """Ids of the conversation; its oldest turns are forgotten where the model's context is too short."""
        from yeoul.text.chat import render_ids

        limit, forgotten = self.model.config.bounded_context, 0
        room = 0 if limit is None else limit - min(self.params.max_tokens, limit // 4)
        while True:
            ids = render_ids(self.tokenizer, self._whole(messages), add_generation_prompt=True)
            if limit is None or len(ids) <= room or len(messages) < 3:
                break
            messages, forgotten = messages[2:], forgotten + 1
        if forgotten:
            self.messages, are = messages[:-1], "is" if forgotten == 1 else "are"
            note(
                f"The conversation outgrew the model's context; the oldest {count(forgotten, 'turn')} {are} forgotten."
            )
        return ids

    def _cost(self, result: GenerationResult) -> str:
        used, limit = result.prompt_tokens + len(result.ids), self.model.config.bounded_context
        context = f"{count(used, 'token')} of context" if limit is None else f"{used:,} of {limit:,} tokens of context"
        constant = ", constant" if self.model.config.is_linear else ""  # however long the conversation
        cache = f"cache {size(result.cache_bytes)}{constant}"
        parts = [rate(result.tokens_per_second), context, cache]
        if self.session.reused:
            parts.append(f"{count(self.session.reused, 'token')} from the cache")
        if result.finish_reason == "cancelled":
            parts.append("stopped")
        elif result.finish_reason == "length":
            parts.append("cut by --max-tokens" if len(result.ids) == self.params.max_tokens else "context full")
        return " · ".join(parts)

    def reset(self, _: str) -> None:
        """/reset"""
        self.messages = []
        note("A new conversation.")

    def undo(self, _: str) -> None:
        """/undo"""
        if not self.messages:
            raise UserError("there is nothing to undo")
        asked = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        self.messages = self.messages[: asked[-1] if asked else 0]
        note("The last question and its answer are forgotten.")

    def set_system(self, text: str) -> None:
        """/system TEXT"""
        self.system = checked_text(text) or None
        note("The new system prompt applies from the next answer on." if text else "The system prompt is removed.")

    def set_temperature(self, text: str) -> None:
        """/temp NUMBER"""
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"{text!r} is not a number", "/temp", "write, for example, /temp 0.7") from None
        self.params = replace(self.params, temperature=value)
        note(f"Temperature {value:g}.")

    def set_adapter(self, name: str) -> None:
        """/adapter NAME"""
        from yeoul.adapt.lora import api as lora
        from yeoul.adapt.lora.peft_files import adapter_name

        if name and name != "none" and name not in lora.adapter_names(self.model) and Path(name).expanduser().is_dir():
            path, name = Path(name).expanduser(), adapter_name(name)
            lora.load_adapter(self.model, path, name)
        if name:
            lora.set_adapter(self.model, None if name == "none" else name)
            self.session = type(self.session)(self.model, self.tokenizer)  # the cache is the other one's
        active = lora.active_adapter(self.model)
        names = [f"{known} (active)" if known == active else known for known in lora.adapter_names(self.model)]
        alone = "" if active else ", the base model answers"
        note(f"Adapters: {', '.join(names) or 'none'}{alone}.")

    def save(self, text: str) -> None:
        """/save FILE"""
        path = _named(text, "/save")
        line = json.dumps({"messages": self._whole(self.messages)}, ensure_ascii=False) + "\n"
        write_text(path, line)
        note(f"Saved to {path}.")

    def load(self, text: str) -> None:
        """/load FILE"""
        from yeoul.data.conversations import Conversation, read_conversations

        path = _named(text, "/load")
        record = next(iter(read_conversations(path)))
        if not isinstance(record, Conversation):
            raise UserError("the file holds plain text, not a conversation", record.where)
        messages = [{"role": message["role"], "content": message["content"]} for message in record.messages]
        while messages[-1]["role"] != "assistant":  # nobody answered
            messages.pop()
        self.system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        self.messages = messages
        answers = sum(message["role"] == "assistant" for message in messages)
        note(f"Loaded from {record.where}: {count(answers, 'answer')}.")


def _named(text: str, command: str) -> Path:
    if not text:
        raise UserError("no file was given", command, f"write, for example, {command} talk.jsonl")
    return Path(text).expanduser()
