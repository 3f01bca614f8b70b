"""A conversation as ids, and which of them a model is trained to say.

What is trained comes from the rendering itself: each character of the rendered text knows which message wrote it
(`yeoul.text.tracked`). The ids are always those of the text that the template writes for the whole conversation.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from yeoul.errors import UserError, shown
from yeoul.text.template import from_message, has_generation, render
from yeoul.text.tracked import MIXED, WRITTEN, Tracked

if TYPE_CHECKING:
    from yeoul.text.tokenizer import Tokenizer

CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Special tokens of `DEFAULT_TEMPLATE`."""

DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|assistant|>' }}{%- generation -%}{{ message['content'] + '<|end|>' }}{%- endgeneration -%}
{%- elif message['role'] in ['system', 'user'] -%}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}
{%- else -%}
{{ raise_exception('the role must be system, user or assistant, not ' + message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
"""`<|user|>question<|end|><|assistant|>answer<|end|>`: only the answers and their ends are trained."""

PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ 'Assistant:\\n' }}{%- generation -%}{{ message['content'] + eos_token }}{%- endgeneration -%}{{ '\\n' }}
{%- elif message['role'] == 'user' -%}
{{ 'User:\\n' + message['content'] + '\\n' }}
{%- elif message['role'] == 'system' -%}
{{ 'System:\\n' + message['content'] + '\\n' }}
{%- else -%}
{{ raise_exception('the role must be system, user or assistant, not ' + message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:\\n' }}{%- endif -%}
"""
"""For a vocabulary without the tokens of `DEFAULT_TEMPLATE`: lines `User:` and `Assistant:` before what they say, the
end token behind an answer. A line break stands before each text, so that no token reaches from a name into it."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""A template writes the role as it stands, so nothing else may stand there."""

Message = Mapping[str, Any]
TrainOn = Literal["assistant", "all"]


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    train_on: TrainOn = "assistant",
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation by the tokenizer's chat template, and which are trained.

    Trained are the assistant's texts with the token that ends each: what the template's `{% generation %}` blocks
    enclose; without such blocks, what the template writes of each assistant message and behind the place where the
    generation prompt before it would end. Messages with the weight 0 are not. A token is trained when any of its
    characters is.

    Special tokens are those that the template writes; in a message the same characters are ordinary text, also where
    the tokenizer would make such a token of any text.

    Args:
        tokenizer: its template, or `DEFAULT_TEMPLATE` when it has none and knows the tokens of that; any other base
            model's gets one from `ensure_template`.
        messages: mappings with "role" and "content", both texts; "weight" may be 0 or 1.
        add_generation_prompt: end with the beginning of an assistant's turn.
        train_on: "all" is every token but those of messages with the weight 0.

    Returns:
        ids, and as many truth values.

    Raises:
        UserError: no template, a message without role or content, one that the template refuses, or an answer that it
            does not write.
    """
    talk = Talk(tokenizer, messages)
    text = talk.render(add_generation_prompt)
    flags = trained_characters(talk, text, train_on)
    ids, places = _encode(talk, text)
    return ids, [any(flags[start:end]) for start, end in places]


def render_ids(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
    """The ids alone, for a conversation that continues, whatever the template makes of earlier answers."""
    talk = Talk(tokenizer, messages)
    return _encode(talk, talk.render(add_generation_prompt))[0]


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
) -> tuple[list[int], list[int]]:
    """What a model reads before it answers.

    Args:
        tools: functions that it may call, as OpenAI describes them ({"type": "function", "function": {...}}).

    Returns:
        ids, and how many of them stand before the end of each message's text, for the messages that the template
        writes once each and in their order: behind these numbers of ids other conversations may go on otherwise.
    """
    talk = Talk(tokenizer, messages, tools)
    text = talk.render(True)
    ids, places = _encode(talk, text)
    ends = [end for _, end in places]
    return ids, sorted({bisect_right(ends, end) for _, end, _ in _pieces(text)} - {0})


def takes_tools(tokenizer: Tokenizer) -> bool:
    """Whether the chat template writes what tools there are."""
    return re.search(r"\btools\b", _template_of(tokenizer)) is not None


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """The conversation as the template writes it, special tokens spelled out: for programs that pass texts on.

    Args:
        add_generation_prompt: end with the beginning of an assistant's turn; otherwise the text ends where the last
            message does, so that it can be continued.
    """
    text = Talk(tokenizer, messages).render(add_generation_prompt)
    return text.plain() if add_generation_prompt else text.plain()[: len(text) - len(_ending(text))]


def encode_written(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of what `render_text` gave, and of what was written behind it: special tokens are found anywhere in it."""
    ids = list[int]()
    for segment in _segments(tokenizer, Tracked.all_from(text, WRITTEN)):
        ids += [token for token, _ in segment.encoded(tokenizer)]
        ids += [] if segment.token is None else [segment.token]
    return ids


class Talk:
    """A checked conversation and what renders it.

    Attributes:
        roles, weights: of each message.
        messages: for the template, their texts with their origin.
    """

    def __init__(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        self.tokenizer, self.source = tokenizer, _template_of(tokenizer)
        self.tools = None if not tools else [from_message(dict(tool), MIXED) for tool in tools]  # nobody's message
        self.messages = [_checked(message, number) for number, message in enumerate(messages)]
        self.roles = [message["role"] for message in self.messages]
        self.weights = [message.get("weight", 1) for message in messages]

    def render(self, prompt: bool, count: int | None = None) -> Tracked:
        """The conversation, or its first `count` messages."""
        names = self.tokenizer.special_names
        return render(self.source, self.messages[:count], prompt=prompt, names=names, tools=self.tools)

    def render_or_nothing(self, prompt: bool, count: int) -> Tracked | None:
        """None where the template refuses so short a conversation, for example one without a user's message."""
        try:
            return self.render(prompt, count)
        except UserError:
            return None


def _checked(message: Message, number: int) -> dict[str, Any]:
    where = f"message {number + 1}"
    if not isinstance(message, Mapping):
        raise UserError("a message must be a mapping with role and content", where)
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise UserError(f'a message needs the text "{key}"', where)
    if message["role"] not in ROLES:
        raise UserError(f"the role must be one of {', '.join(ROLES[:5])}, not {shown(message['role'])}", where)
    if message.get("weight", 1) not in (0, 1):
        raise UserError(f"the weight of a message must be 0 or 1, not {shown(message['weight'])}", where)
    texts = {key: value for key, value in message.items() if key not in ("role", "weight")}
    return {"role": message["role"], **from_message(texts, number)}


def ensure_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a chat template: its own; else a default, which it saves as `chat_template.jinja`.

    The default is `DEFAULT_TEMPLATE` where the vocabulary has its tokens, else `PLAIN_TEMPLATE`, behind the begin token
    where texts of the model have one.

    Raises:
        UserError: none of its own, and no end token.
    """
    if tokenizer.chat_template is not None:
        return tokenizer
    if _knows_chat_tokens(tokenizer):
        return tokenizer.with_template(DEFAULT_TEMPLATE)
    if tokenizer.eos_id is None:
        what = "the tokenizer has no chat template, and no end token for the default one"
        raise UserError(what, "chat_template.jinja", "add one to the model's folder")
    return tokenizer.with_template("{{- bos_token -}}\n" * tokenizer.add_bos + PLAIN_TEMPLATE)


def _knows_chat_tokens(tokenizer: Tokenizer) -> bool:
    return all(token in tokenizer.special_tokens for token in CHAT_TOKENS)


def _template_of(tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    if _knows_chat_tokens(tokenizer):
        return DEFAULT_TEMPLATE
    raise UserError("the tokenizer has no chat template", "chat_template.jinja", "add one to the model's folder")


# -- what is trained


def trained_characters(talk: Talk, text: Tracked, train_on: TrainOn = "assistant") -> bytearray:
    """1 for each character of the rendered text that is trained."""
    flags = bytearray(len(text))
    if train_on == "all" and all(talk.weights):
        return bytearray(b"\1") * len(text)
    spans = _block_spans(talk, text) if has_generation(talk.source) else _turn_spans(talk, text)
    if train_on == "all":
        flags = bytearray(b"\1") * len(text)
        spans += [(start, end, source) for start, end, source in _pieces(text) if talk.roles[source] != "assistant"]
    for start, end, source in spans:
        flags[start:end] = bytes([talk.weights[source]]) * (end - start)
    return flags


Span = tuple[int, int, int]
"""Begin and end in the rendered text, and the message."""


def _pieces(text: Tracked) -> list[Span]:
    """Where messages stand: from the first to the last character of one, without another's between."""
    pieces, at = list[Span](), 0
    for length, mark in text.runs:
        if mark.source is not None and mark.source >= 0:
            if pieces and pieces[-1][2] == mark.source:
                pieces[-1] = pieces[-1][0], at + length, mark.source
            else:
                pieces.append((at, at + length, mark.source))
        at += length
    return pieces


def _block_spans(talk: Talk, text: Tracked) -> list[Span]:
    """`{% generation %}` blocks, each with the message that speaks in it."""
    blocks, at = dict[int, Span](), 0
    for length, mark in text.runs:
        if mark.block is not None:
            start, _, source = blocks.get(mark.block, (at, at, -1))
            known = mark.source if mark.source is not None and source < 0 else source
            blocks[mark.block] = start, at + length, known
        at += length
    answers = [number for number, role in enumerate(talk.roles) if role == "assistant"]
    if len(answers) == len(blocks):  # one without a text of its own is told by its place
        found = zip(blocks.values(), answers, strict=True)
        return [(start, end, source if source >= 0 else number) for (start, end, source), number in found]
    return [span for span in blocks.values() if span[2] >= 0]


def _turn_spans(talk: Talk, text: Tracked) -> list[Span]:
    """The assistant's turns, for templates that do not mark them."""
    pieces, turns, plain = _pieces(text), _Turns(talk), text.plain()
    places: dict[int, list[int]] = {}
    for place, (_, _, source) in enumerate(pieces):
        places.setdefault(source, []).append(place)
    spans: list[Span] = []
    for number, role in enumerate(talk.roles):
        if role != "assistant":
            continue
        mine = places.get(number)
        if not mine:
            spans += _unwritten(talk, text, number)
            continue
        place = max(mine, key=lambda place: pieces[place][1] - pieces[place][0])
        start, end, _ = pieces[place]
        before = plain[pieces[place - 1][1] if place else 0 : start]
        after = plain[end : pieces[place + 1][0] if place + 1 < len(pieces) else len(text)]
        begin = start - len(before) + turns.prompt_end(before, number)
        spans.append((begin, end + turns.turn_end(after, number), number))
    return spans


def _unwritten(talk: Talk, text: Tracked, number: int) -> list[Span]:
    """Of an answer that is nowhere in the text: its end alone if it is empty; else it cannot be trained."""
    if talk.messages[number]["content"].strip():
        if talk.weights[number] == 0:
            return []
        what = "the chat template does not write this answer, so it cannot be trained"
        raise UserError(what, f"message {number + 1}", "use a template with {% generation %} blocks")
    before, whole = talk.render_or_nothing(True, number), talk.render_or_nothing(False, number + 1)
    if before and whole and text.startswith(before) and text.startswith(whole) and len(before) < len(whole):
        return [(len(before), len(before) + _stripped(talk.tokenizer, whole[len(before) :]), number)]
    return []


def _ending(text: Tracked) -> str:
    """What the template writes behind the last character of a message."""
    pieces = _pieces(text)
    return text.plain()[pieces[-1][1] if pieces else 0 :]


@dataclass
class _Turns:
    """Where a turn of the assistant's begins and ends in what the template writes around it.

    Found by rendering the conversation up to there; what the template writes around turns is mostly the same, and is
    looked into once.
    """

    talk: Talk
    begins: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)

    def prompt_end(self, before: str, number: int) -> int:
        """Characters of `before`, which stands between the last message and the answer, that a prompt has."""
        if before not in self.begins:
            self.begins[before] = self._prompt_end(before, number)
        return self.begins[before]

    def _prompt_end(self, before: str, number: int) -> int:
        prompt = self.talk.render_or_nothing(True, number)
        if prompt is None:
            return len(before)
        asked = _ending(prompt)
        if before.startswith(asked):
            return len(asked)
        if asked.startswith(before):  # the prompt goes on, as one that begins the reasoning
            return len(before)
        without = self.talk.render_or_nothing(False, number)
        beginning = asked.removeprefix(_ending(without)) if without is not None else ""
        found = before.rfind(beginning) if beginning else -1
        return found + len(beginning) if found >= 0 else len(before)

    def turn_end(self, after: str, number: int) -> int:
        """Characters of `after`, which stands between the answer and the next message, that end the turn."""
        if after not in self.ends:
            self.ends[after] = self._turn_end(after, number)
        return self.ends[after]

    def _turn_end(self, after: str, number: int) -> int:
        tokenizer = self.talk.tokenizer
        first = pattern.search(after) if (pattern := _marks(tokenizer)) else None
        if first and tokenizer.token_id(first[0]) in tokenizer.stop_ids:
            return first.end()
        whole = self.talk.render_or_nothing(False, number + 1)
        own = _ending(whole) if whole is not None else after
        return _stripped(tokenizer, own if after.startswith(own) else after[: first.start() if first else None])


def _stripped(tokenizer: Tokenizer, ending: str) -> int:
    """Length of what ends a turn without the white space behind its last special token."""
    pattern = _marks(tokenizer)
    ends = [match.end() for match in pattern.finditer(ending)] if pattern else []
    return ends[-1] if ends and not ending[ends[-1] :].strip() else len(ending)


# -- ids


@lru_cache(maxsize=8)
def _marks(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Finds special tokens, and those that end a turn."""
    ends = (tokenizer.piece(token) for token in tokenizer.stop_ids)
    texts = sorted({text for text in (*tokenizer.special_tokens, *ends) if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


@lru_cache(maxsize=8)
def _controls(tokenizer: Tokenizer, source: str) -> frozenset[int]:
    """Tokens that the tokenizer would make of any text, and that steer the conversation: the template names them."""
    named = {i for text, i in tokenizer.added_tokens.items() if text in source and len(text) > 1 and not text.isspace()}
    return frozenset(named) | frozenset(tokenizer.stop_ids)


Place = tuple[int, int]
"""Begin and end of a token in the rendered text."""


def _encode(talk: Talk, text: Tracked) -> tuple[list[int], list[Place]]:
    """Ids of the rendered text and their places; special tokens are found only in what the template writes."""
    tokenizer = talk.tokenizer
    segments = _segments(tokenizer, text)
    coded = [segment.encoded(tokenizer) for segment in segments]
    authors = _authors(talk, text)
    seen = _written(tokenizer, coded, authors)
    told = _controls(tokenizer, talk.source)
    stops = frozenset(tokenizer.stop_ids)
    ids, places = list[int](), list[Place]()
    for segment, found in zip(segments, coded, strict=True):
        if any(token in told or token in seen for token, _ in found):
            found = _disarmed(tokenizer, segment, found, authors, {True: seen | stops, False: seen | told})
        ids += [token for token, _ in found]
        places += [place for _, place in found]
        if segment.token is not None:
            ids.append(segment.token)
            places.append(segment.place)
    return ids, places


Coded = list[tuple[int, Place]]


@dataclass(frozen=True)
class _Segment:
    """Text between special tokens, and the one behind it.

    Attributes:
        start: of the text in the whole.
        first: whether it begins the whole.
        token, place: the special token behind it; None at the end.
    """

    text: str
    start: int
    first: bool
    token: int | None
    place: Place

    def encoded(self, tokenizer: Tokenizer) -> Coded:
        """Ids with their places in the whole."""
        return _coded(tokenizer, self.text, self.start, self.first)


def _coded(tokenizer: Tokenizer, text: str, start: int, first: bool) -> Coded:
    ids, spans = tokenizer.encode_with_spans(text, first=first)
    return [(token, (start + a, start + max(b, a + 1))) for token, (a, b) in zip(ids, spans, strict=True)]


def _segments(tokenizer: Tokenizer, text: Tracked) -> list[_Segment]:
    """The text at the special tokens that the template writes, which may take the white space around them."""
    plain, segments = text.plain(), list[_Segment]()
    start, first, after = 0, True, False
    for begin, end, token in [*_special_places(tokenizer, text, plain), (len(plain), len(plain), None)]:
        part = plain[start:begin]
        if after:
            start += len(part) - len(part.lstrip())
            part = part.lstrip()
        before, following = tokenizer.stripping.get(token, (False, False)) if token is not None else (False, False)
        segments.append(_Segment(part.rstrip() if before else part, start, first, token, (begin, end)))
        start, first, after = end, False, following
    return segments


def _special_places(tokenizer: Tokenizer, text: Tracked, plain: str) -> list[tuple[int, int, int | None]]:
    pattern, found, at = _special_pattern(tokenizer), list[tuple[int, int, int | None]](), 0
    if pattern is None:
        return found
    begin = 0
    for length, mark in (*text.runs, (0, None)):
        if mark is None or mark.source is not None:
            matches = pattern.finditer(plain, begin, at)
            found += [(match.start(), match.end(), tokenizer.special_tokens[match[0]]) for match in matches]
            begin = at + length
        at += length
    return found


@lru_cache(maxsize=8)
def _special_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    texts = sorted((text for text in tokenizer.special_tokens if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _authors(talk: Talk, text: Tracked) -> bytes:
    """For each character: 0 the template's, 1 the assistant's, 2 somebody else's."""
    kinds = bytearray()
    for length, mark in text.runs:
        known = mark.source is not None and mark.source >= 0
        kind = 0 if mark.source is None else 1 if known and talk.roles[mark.source] == "assistant" else 2
        kinds += bytes([kind]) * length
    return bytes(kinds)


def _written(tokenizer: Tokenizer, coded: Sequence[Coded], authors: bytes) -> frozenset[int]:
    """Added tokens that the template itself has written here."""
    added = tokenizer.added_ids
    return frozenset(
        token for part in coded for token, (a, b) in part if token in added and not any(authors[a:b]) and b - a > 1
    )


def _disarmed(
    tokenizer: Tokenizer, segment: _Segment, found: Coded, authors: bytes, forbidden: Mapping[bool, frozenset[int]]
) -> Coded:
    """The ids of a segment in which no message makes a control token: where one does, its text is cut in two.

    Args:
        forbidden: tokens that others than the template may not write, by whether it is the assistant.
    """
    begin, end, cuts = segment.start, segment.start + len(segment.text), set[int]()

    def offends(token: int, place: Place) -> bool:
        whose = max(authors[place[0] : place[1]], default=0)
        return whose > 0 and token in forbidden[whose == 1]

    while more := {a + 1 for token, (a, b) in found if begin < a + 1 < end and offends(token, (a, b))} - cuts:
        cuts |= more
        edges, found = [begin, *sorted(cuts), end], []
        for a, b in zip(edges, edges[1:], strict=False):
            found += _coded(tokenizer, segment.text[a - begin : b - begin], a, segment.first and a == begin)
    return found
