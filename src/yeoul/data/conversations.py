"""Records to learn from: conversations, plain texts and preferences, recognised by their keys.

Every shape becomes messages with the roles system, user and assistant. A record that cannot be used is an error that
names it, or is counted and passed over; none gets lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yeoul.data.reading import DEFAULT, Columns, Reading
from yeoul.data.record_files import OnBadRecord, Records, check_column, is_unicode, listed
from yeoul.data.sources import Spec
from yeoul.data.typographic import parse_any_marks
from yeoul.errors import UserError, shown
from yeoul.safe_json import JSONError

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}, and "weight": 0 where it is not learned."""

ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""Names of roles in message lists, and what they become."""
ANSWERING = ("system", "assistant", "bot", "model")
"""Speakers of the dialog schema who are the answering side, whatever the order."""


@dataclass(frozen=True)
class Conversation:
    """Messages, at least one of them the assistant's; `where` is the record's place, as "file.jsonl:3"."""

    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True)
class PlainText:
    """A text without roles: all of it is trained."""

    text: str
    where: str


@dataclass(frozen=True)
class Preference:
    """Two continuations of a conversation after `prompt`, of which the first is the better one."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    where: str


Record = Conversation | PlainText | Preference
Kind = Literal["conversation", "preference"]


def read_conversations(
    spec: Spec,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    on_bad_record: OnBadRecord = "error",
    kind: Kind = "conversation",
    reading: Reading = DEFAULT,
) -> Records[Record]:
    """The records of a data specification, as `read_documents` takes it but for the built-in corpus and .txt files.

    Shapes, by their keys; further keys are ignored, but "system" is a first message where there is none:

    - `{"dialogs": [{"id", "conversation": [{"speaker", "utterance"}]}]}`, or one dialog a line in .jsonl. The speaker
      "system" (or "assistant") answers the other one; of two other names, the one who speaks first is the user.
      Consecutive turns of one speaker are one message, joined by newlines.
    - `{"messages": [{"role", "content"}]}`, `{"conversations": [{"from", "value"}]}`; a message with "weight": 0 is
      part of the conversation and not learned
    - `{"instruction", "input", "output"}`, input may be missing; with "history" [[question, answer], ...]
    - `{"prompt", "completion"}`: texts or lists of messages
    - `{"Q", "A"}`, `{"question", "answer"}`
    - `{"text"}`: `PlainText`
    - `{"prompt", "chosen", "rejected"}`, for kind "preference" alone: texts or lists of messages. Lists that begin with
      the same question need no "prompt"; what both have first belongs to it.

    In tables the same keys are columns; message lists are JSON there, in .parquet lists.

    Args:
        question_column, answer_column: keys or columns of a question and its answer, in place of the shapes above.
        on_bad_record: "error" raises at the first, "skip" counts it and goes on.
        kind: "preference" reads preferences, and nothing else.
        reading: encoding and bounds of the files.

    Raises:
        UserError: wrong paths at once; the rest while reading: a bad record, a file that cannot be read as a whole, a
            table without the columns of any shape, no usable record at all.
    """
    if (question_column is None) != (answer_column is None):
        raise UserError("only one of the columns with question and answer was given", fix="give both")
    columns = None if question_column is None or answer_column is None else (question_column, answer_column)
    if columns and kind == "preference":
        raise UserError("preferences have no columns with question and answer")
    shapes = _Shapes(kind, columns)
    return Records(
        spec, shapes.record, shapes.check_columns, on_bad_record=on_bad_record, reading=reading,
        plain_text=("plain text does not say who speaks", 'put texts into .jsonl lines {"text": ...}'),
    )  # fmt: skip


Reader = Callable[[Mapping[str, Any]], "tuple[Message, ...] | str"]


class _Shapes:
    """From the value of a record to the record."""

    def __init__(self, kind: Kind, columns: tuple[str, str] | None) -> None:
        self.kind, self.columns = kind, columns

    def check_columns(self, found: Columns, path: Path) -> None:
        """Raises where a table has the columns of no shape."""
        columns = found.names
        if self.columns:
            for name in self.columns:
                check_column(columns, name, path)
        elif self.kind == "preference":
            if not {"chosen", "rejected"} <= {*columns}:
                raise UserError(f'the columns "chosen" and "rejected" are missing; there are: {listed(columns)}', path)
        elif _reader(columns) is None:
            fix = "give the columns with question and answer"
            raise UserError(f"the columns match no known format: {listed(columns)}", path, fix)

    def record(self, value: Mapping[str, Any], where: str, kind: str) -> Record:
        """The record at `where`; what is wrong with it is raised with its place."""
        try:
            if kind in (".csv", ".tsv"):
                value = {key: _from_cell(key, cell) for key, cell in value.items()}
            if self.kind == "preference":
                return _preference(value, where)
            read = (lambda record: _pair(record, *self.columns)) if self.columns else _reader(value)
            if read is None:
                raise _Bad(_unknown(value))
            found = read(value)
            if isinstance(found, str):
                return PlainText(found, where)
            messages = _with_system(found, value)
            answers = [message for message in messages if message["role"] == "assistant"]
            if not answers:
                raise _Bad("the conversation has no assistant turn")
            if all(message.get("weight") == 0 for message in answers):
                raise _Bad("every assistant turn has weight 0, so there is nothing to learn")
            return Conversation(messages, where)
        except _Bad as bad:
            raise UserError(str(bad), where, bad.fix) from None


class _Bad(Exception):
    """What is wrong with a record; its place is added where it is known."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.fix = fix


def _text(value: Any, what: str) -> str:
    """A text that can be learned from."""
    if not isinstance(value, str):
        raise _Bad(f"{what} is missing" if value is None else f"{what} is not text but {shown(value)}")
    if not value.strip():
        raise _Bad(f"{what} is empty")
    if "\0" in value:
        raise _Bad(f"{what} has a NUL character")
    if not is_unicode(value):
        raise _Bad(f"{what} is not UTF-8, or has half of a surrogate pair")
    return value


def _items(value: Any, what: str) -> list[Mapping[str, Any]]:
    """A list of objects that is not empty."""
    if not isinstance(value, list):
        raise _Bad(f"{what} is not a list but {shown(value)}")
    if not value:
        raise _Bad(f"{what} is empty")
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            twice = isinstance(item, UserError)  # an object with a key twice
            raise _Bad(f"entry {number} of {what} is not an object" if not twice else f"{item.what} in {what}")
    return value


def _messages(value: Any, what: str, role_key: str = "role", text_key: str = "content") -> tuple[Message, ...]:
    """Messages of a list; an empty system message says nothing and is left out."""
    messages: list[Message] = []
    for number, item in enumerate(_items(value, what), 1):
        role, content = item.get(role_key), item.get(text_key)
        place = f"entry {number} of {what}"
        if not isinstance(role, str):
            raise _Bad(f'{place} has no text under "{role_key}"')
        if role.lower() not in ROLES:
            raise _Bad(f"{place} has the role {shown(role)}; only system, user and assistant are read")
        if item.get("tool_calls") or item.get("function_call"):
            raise _Bad(f"{place} calls a tool, which is not supported")
        if isinstance(content, list):
            content = _joined_parts(content, place)
        if ROLES[role.lower()] == "system" and isinstance(content, str) and not content.strip():
            continue
        message: Message = {"role": ROLES[role.lower()], "content": _text(content, f'"{text_key}" of {place}')}
        messages.append(message | _weight(item.get("weight"), place))
    return tuple(messages)


def _weight(value: Any, place: str) -> Message:
    """The key of a message that is not learned."""
    if value not in (None, 0, 1):
        raise _Bad(f'the "weight" of {place} is {shown(value)}, but only 0 and 1 are read')
    return {"weight": 0} if value == 0 else {}


def _joined_parts(parts: list[Any], place: str) -> str:
    """The text of `[{"type": "text", "text": ...}, ...]`."""
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _Bad(f"{place} has a part that is not text: {shown(part)}")
    return "".join(part["text"] for part in parts)


def _from_dialog(record: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = _items(record["conversation"], "the conversation")
    for number, turn in enumerate(turns, 1):
        _text(turn.get("speaker"), f'"speaker" of turn {number}')
        _text(turn.get("utterance"), f'"utterance" of turn {number}')
    speakers = list(dict.fromkeys(turn["speaker"] for turn in turns))
    if len(speakers) > 2:
        raise _Bad(f"the dialog has {len(speakers)} speakers, a conversation with a model has two")
    others = [name for name in speakers if name != "user"]
    answering = next((name for name in ANSWERING if name in speakers), others[-1] if len(speakers) == 2 else None)
    messages: list[Message] = []
    for turn in turns:
        role = "assistant" if turn["speaker"] == answering else "user"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n" + turn["utterance"]
        else:
            messages.append({"role": role, "content": turn["utterance"]})
    return tuple(messages)


def _asked(question: str, answer: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question}, {"role": "assistant", "content": answer})


def _from_instruction(record: Mapping[str, Any]) -> tuple[Message, ...]:
    question, more = _text(record["instruction"], '"instruction"'), record.get("input")
    if more is not None and more != "":
        question += "\n\n" + _text(more, '"input"')
    history = record.get("history")
    if history is not None and not isinstance(history, list):
        raise _Bad(f'"history" is not a list but {shown(history)}')
    messages: tuple[Message, ...] = ()
    for number, pair in enumerate(history or [], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise _Bad(f'entry {number} of "history" is not a question with its answer')
        what = f'of entry {number} of "history"'
        messages += _asked(_text(pair[0], f"the question {what}"), _text(pair[1], f"the answer {what}"))
    return messages + _asked(question, _text(record["output"], '"output"'))


def _from_completion(record: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _messages(prompt, '"prompt"') + _messages(completion, '"completion"')
    return _pair(record, "prompt", "completion")


def _pair(record: Mapping[str, Any], question: str, answer: str) -> tuple[Message, ...]:
    return _asked(_text(record.get(question), f'"{question}"'), _text(record.get(answer), f'"{answer}"'))


_READERS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("messages",), lambda record: _messages(record["messages"], '"messages"')),
    (("conversation",), _from_dialog),
    (("conversations",), lambda record: _messages(record["conversations"], '"conversations"', "from", "value")),
    (("instruction", "output"), _from_instruction),
    (("prompt", "completion"), _from_completion),
    (("Q", "A"), lambda record: _pair(record, "Q", "A")),
    (("question", "answer"), lambda record: _pair(record, "question", "answer")),
    (("text",), lambda record: _text(record["text"], '"text"')),
)
"""Keys of a shape, and what reads it; the first whose keys are all there."""


def _reader(keys: Mapping[str, Any] | Sequence[str]) -> Reader | None:
    return next((read for wanted, read in _READERS if all(key in keys for key in wanted)), None)


def _unknown(record: Mapping[str, Any]) -> str:
    if "chosen" in record and "rejected" in record:
        return "the record is a preference, not a conversation"
    keys = ", ".join(str(key) for key in record) or "none"
    return f"the keys match no known format: {keys if len(keys) <= 100 else keys[:97] + '...'}"


def _from_cell(key: str, cell: Any) -> Any:
    """The value of a table's cell: message lists are JSON there."""
    lists = ("messages", "conversation", "conversations", "history")
    perhaps = ("prompt", "completion", "chosen", "rejected")
    if (key in lists and cell) or (key in perhaps and cell.lstrip().startswith("[{")):
        try:
            return parse_any_marks(cell, finite=False)
        except JSONError:
            raise _Bad(f'the column "{key}" is not valid JSON') from None
    return cell


def _with_system(messages: tuple[Message, ...], record: Mapping[str, Any]) -> tuple[Message, ...]:
    system = record.get("system")
    if system is None or system == "" or any(message["role"] == "system" for message in messages):
        return messages
    return ({"role": "system", "content": _text(system, '"system"')}, *messages)


def _preference(record: Mapping[str, Any], where: str) -> Preference:
    if "chosen" not in record or "rejected" not in record:
        raise _Bad('a preference needs "chosen" and "rejected"')
    chosen, rejected = (_answer(record[key], f'"{key}"') for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise _Bad('"chosen" and "rejected" are the same')
    alike = 0
    while alike < min(len(chosen), len(rejected)) and chosen[alike] == rejected[alike]:
        alike += 1
    prompt = chosen[:alike]
    if not prompt or prompt[0]["role"] == "assistant":  # else the lists repeat the prompt
        prompt = _prompt(record.get("prompt")) + prompt
    chosen, rejected = chosen[alike:], rejected[alike:]
    for answer, what in ((chosen, '"chosen"'), (rejected, '"rejected"')):
        if not answer or answer[0]["role"] != "assistant":
            raise _Bad(f"{what} does not continue with an assistant turn")
    return Preference(_with_system(prompt, record), chosen, rejected, where)


def _answer(value: Any, what: str) -> tuple[Message, ...]:
    if isinstance(value, list):
        return _messages(value, what)
    return ({"role": "assistant", "content": _text(value, what)},)


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, list):
        return _messages(value, '"prompt"')
    return ({"role": "user", "content": _text(value, '"prompt"')},)
