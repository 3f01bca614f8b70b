"""`yeoul chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from yeoul.commands.generate import size
from yeoul.errors import UserError
from yeoul.infer.params import SamplingParams

if TYPE_CHECKING:
    from yeoul.infer.engine import GenerationResult, TextStream
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

HELP = """\
/reset         forget the conversation
/system TEXT   say who the model is; without TEXT, nobody in particular
/temp NUMBER   temperature: 0 always takes the likeliest token, higher is bolder
/undo          forget the last question and its answer
/save FILE     write the conversation as one JSON line
/help          this
/exit          leave (so does Ctrl-D; Ctrl-C stops an answer)"""


@dataclass(frozen=True)
class Config:
    """Talk with a model. In the conversation, /help lists the commands."""

    model: str
    """Model folder, run folder, adapter folder, or id on the Hugging Face hub."""
    _: KW_ONLY
    system: str | None = None
    """What the model is told before the conversation."""
    sampling: Annotated[SamplingParams, Parameter(name="*")] = field(default_factory=SamplingParams)
    adapter: str | None = None
    """LoRA adapter for the model: a folder, or an id on the Hugging Face hub."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Number type of the weights: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags beat it."""


def run(config: Config) -> int:
    """Loads the model and talks until the user leaves."""
    import yeoul

    model, tokenizer = yeoul.load(config.model, device=config.device, dtype=config.dtype, adapter=config.adapter)
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it cannot talk", config.model)
    Chat(model, tokenizer, config.sampling, config.system).talk()
    return 0


class Chat:
    """One conversation: its messages, its settings and the session that keeps the cache between turns."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, params: SamplingParams, system: str | None = None) -> None:
        from yeoul.infer.engine import Session

        self.model, self.tokenizer, self.params, self.system = model, tokenizer, params, system
        self.session = Session(model, tokenizer)
        self.messages: list[dict[str, str]] = []
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.commands = {
            "/reset": self.reset, "/system": self.set_system, "/temp": self.set_temperature,
            "/undo": self.undo, "/save": self.save, "/help": lambda _: self.note(HELP),
        }  # fmt: skip

    def talk(self) -> None:
        """Reads lines and answers them, until /exit or the end of the input."""
        if self.terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() its history and arrow keys
            self.note("/help lists the commands, /exit leaves.")
        while True:
            try:
                line = input("> " if self.terminal else "").strip()
            except EOFError:
                break
            except UnicodeDecodeError:
                raise UserError("the text is not UTF-8", "standard input") from None
            except KeyboardInterrupt:
                print(flush=True)
                self.note("Ctrl-D or /exit leaves.")
                continue
            if line == "/exit":
                break
            try:
                self.take(line)
            except UserError as error:
                self.note(str(error))
        if self.terminal:
            print()

    def take(self, line: str) -> None:
        """One line of the user: a command, or something to answer."""
        word, _, rest = line.partition(" ")
        if word in self.commands:
            self.commands[word](rest.strip())
        elif word.startswith("/"):
            raise UserError(f"unknown command {word}", fix="/help lists the commands")
        elif line:
            self.answer(line)

    def answer(self, question: str) -> None:
        """Writes the model's answer while it is generated, and a line about its cost."""
        asked = {"role": "user", "content": _whole(question)}
        ids = self._fitting_prompt([*self.messages, asked])
        stream = self.session.stream(ids, self.params)
        try:
            with stopped_by_ctrl_c(stream):
                for piece in stream:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        finally:
            print(flush=True)
        assert stream.result is not None
        self.messages += [asked, {"role": "assistant", "content": stream.result.text}]
        self.note(self._cost(stream.result))

    def _fitting_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of the conversation; its oldest turns are forgotten where the model's context is too short."""
        from yeoul.text.chat import render_chat

        system = [{"role": "system", "content": self.system}] if self.system else []
        limit, forgotten = self.model.config.bounded_context, 0
        room = 0 if limit is None else limit - min(self.params.max_tokens, limit // 4)
        while True:
            ids, _ = render_chat(self.tokenizer, [*system, *messages], add_generation_prompt=True)
            if limit is None or len(ids) <= room or len(messages) < 3:
                break
            messages, forgotten = messages[2:], forgotten + 1
        if forgotten:
            self.messages = messages[:-1]
            self.note(f"The conversation outgrew the model's context; its {forgotten} oldest turns are forgotten.")
        return list(ids)

    def _cost(self, result: GenerationResult) -> str:
        used, limit = result.prompt_tokens + len(result.ids), self.model.config.bounded_context
        context = f"{used} tokens of context" if limit is None else f"{used} of {limit} tokens of context"
        parts = [f"{result.tokens_per_second:,.1f} tokens/s", context, f"cache {size(result.cache_bytes)}"]
        if self.session.reused:
            parts.append(f"{self.session.reused} tokens read before")
        if result.finish_reason == "cancelled":
            parts.append("stopped")
        elif result.finish_reason == "length":
            parts.append("cut by --max-tokens" if len(result.ids) == self.params.max_tokens else "context full")
        return " · ".join(parts)

    def note(self, text: str) -> None:
        """Something that is not the model's: on standard error, dim in a terminal."""
        dim = sys.stderr.isatty()
        print(f"\033[2m{text}\033[0m" if dim else text, file=sys.stderr, flush=True)

    def reset(self, _: str) -> None:
        """/reset"""
        self.messages = []
        self.note("A new conversation.")

    def undo(self, _: str) -> None:
        """/undo"""
        if not self.messages:
            raise UserError("there is nothing to undo")
        self.messages = self.messages[:-2]
        self.note("The last question and its answer are forgotten.")

    def set_system(self, text: str) -> None:
        """/system TEXT"""
        self.system = _whole(text) or None
        self.note("The model is told so from the next answer on." if text else "The model is told nothing.")

    def set_temperature(self, text: str) -> None:
        """/temp NUMBER"""
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"{text!r} is not a number", "/temp", "write, for example, /temp 0.7") from None
        self.params = replace(self.params, temperature=value)
        self.note(f"Temperature {value:g}.")

    def save(self, text: str) -> None:
        """/save FILE"""
        if not text:
            raise UserError("no file is named", "/save", "write, for example, /save talk.jsonl")
        system = [{"role": "system", "content": self.system}] if self.system else []
        line = json.dumps({"messages": [*system, *self.messages]}, ensure_ascii=False) + "\n"
        path = Path(text).expanduser()
        beside = path.with_name(path.name + ".tmp")
        try:
            beside.write_text(line, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise UserError(f"the conversation cannot be saved: {error.strerror}", path) from None
        self.note(f"Saved to {path}.")


def _whole(text: str) -> str:
    """The text, if it is one: a terminal passes on bytes that are not UTF-8 as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("the text is not UTF-8", "standard input") from None
    return text


@contextlib.contextmanager
def stopped_by_ctrl_c(stream: TextStream) -> Iterator[None]:
    """Ctrl-C ends the answer between two tokens, so that its cache stays whole; a second one, at once."""
    presses = 0

    def press(number: int, frame: Any) -> None:
        nonlocal presses
        presses += 1
        stream.cancel()
        if presses > 1:
            raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, press)
    except ValueError:  # only the main thread may; elsewhere Ctrl-C keeps its meaning
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
