"""Questions and commands that are typed, and answers that appear while they are written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from yeoul.commands.terminal import checked_text, note, read_message, stopped_by_ctrl_c, with_history
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.recipes.chat import Chat

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


class TerminalChat(Chat):
    """A conversation whose questions and commands are typed, and whose answers appear while they are written."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, say=note, **settings)
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()

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
        rest = rest.strip()
        match word:
            case "/reset":
                self.reset()
            case "/undo":
                self.undo()
            case "/help":
                note(HELP)
            case "/system":
                self.set_system(checked_text(rest))
            case "/temp":
                self.set_temperature(_number(rest))
            case "/adapter":
                self.set_adapter(rest)
            case "/save":
                self.save(_file(rest, word))
            case "/load":
                self.load(_file(rest, word))
            case _ if word.startswith("/"):
                fix = 'see /help, or put the text between """ to ask it as a question'
                raise UserError(f"unknown command {word}", fix=fix)
            case _:
                self.answer(text)

    def answer(self, question: str) -> None:
        """Writes the model's answer while it is generated, and a line about its cost."""
        reply = self.ask(checked_text(question))
        if reply is None:
            return
        try:
            with stopped_by_ctrl_c(reply.cancel):
                for piece in reply:
                    say(piece, end="", flush=True)
        finally:
            print(flush=True)
        self.keep(reply)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{text!r} is not a number", "/temp", "write, for example, /temp 0.7") from None


def _file(text: str, command: str) -> Path:
    if not text:
        raise UserError("no file was given", command, f"write, for example, {command} talk.jsonl")
    return Path(text).expanduser()
