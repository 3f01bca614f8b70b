"""What a conversation needs of a terminal: messages of one or many lines, notes beside the answers, Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from yeoul.data.reading import Reading, text_of
from yeoul.errors import UserError
from yeoul.files import new_file
from yeoul.foreign_text import say, visible
from yeoul.lines import folded

QUOTES = '"""'


def with_history() -> None:
    """Gives `input` its history and arrow keys, where the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def note(text: str) -> None:
    """Something that is not the model's: on standard error, dim in a terminal."""
    dim, text = sys.stderr.isatty(), folded(visible(text), sys.stderr)
    print(f"\033[2m{text}\033[0m" if dim else text, file=sys.stderr, flush=True)


def read_message(prompting: bool) -> tuple[str, bool]:
    """The next message from standard input, and whether it stood in quotation marks.

    A line that ends with a backslash goes on in the next one. A text of any lines stands between two times three
    quotation marks, the first at the beginning of a line and the last at the end of one; it is taken as it is. The
    end of the input ends both.

    Args:
        prompting: show that a line is waited for.

    Raises:
        EOFError: there is nothing more.
        UserError: the text is not UTF-8.
    """
    line = _line("> " if prompting else "").strip()
    more = "… " if prompting else ""
    if line.startswith(QUOTES):
        lines = [line.removeprefix(QUOTES)]
        while not lines[-1].endswith(QUOTES):
            try:
                lines.append(_line(more).rstrip())
            except EOFError:
                break
        return "\n".join(lines).removesuffix(QUOTES).strip("\n"), True
    while line.endswith("\\"):
        line = line[:-1] + "\n"
        with contextlib.suppress(EOFError):
            line += _line(more).rstrip()
    return line, False


def _line(prompt: str) -> str:
    try:
        return input(prompt)
    except UnicodeDecodeError:
        raise UserError("the text is not UTF-8", "standard input") from None


def standard_input(reading: Reading) -> str:
    """All of standard input.

    Raises:
        UserError: it is not in the encoding of `reading`.
    """
    source = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if source is None else text_of(source.read(), "standard input", reading)


def write_lines(lines: Iterator[str], out: Path | None) -> None:
    """Lines on the screen as they come, or as one file, which is begun with the first of them."""
    begun = list(islice(lines, 1))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(stack.enter_context(new_file(out)).open("w", encoding="utf-8")) if out else None
        for line in chain(begun, lines):
            say(line, file=file)


def checked_text(text: str) -> str:
    """The text, if it is one: a terminal passes on bytes that are not UTF-8 as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("the text is not UTF-8", "standard input") from None
    return text


@contextlib.contextmanager
def stopped_by_ctrl_c(cancel: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `cancel`, which ends an answer between two tokens; a second one ends it at once."""
    presses = 0

    def press(number: int, frame: Any) -> None:
        nonlocal presses
        presses += 1
        cancel()
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
