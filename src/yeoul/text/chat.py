"""A conversation as ids, and which of them a model is trained to say.

Templates are Jinja as in transformers: the same variables, filters and `{% generation %}` blocks; in a
sandbox, because a template comes with somebody's checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

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

OPEN, CLOSE, GUARD = "\ufdd0", "\ufdd1", "\ufdd2"
"""Begin and end of trained text, and what keeps a user's text from being a special token. Unicode
noncharacters: they never stand for themselves, so those in a message are dropped."""

Message = Mapping[str, Any]


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation by the tokenizer's chat template, and which are trained.

    Trained are the assistant's texts with the token that ends each: what the template's `{% generation %}`
    blocks enclose, else what each assistant message adds after its generation prompt. Special tokens are
    those that the template writes; in a message the same characters are ordinary text.

    Args:
        tokenizer: its template, or `DEFAULT_TEMPLATE` when it has none and knows the tokens of that; any other base
            model's gets one from `ensure_template`.
        messages: mappings with "role" and "content", both texts.
        add_generation_prompt: end with the beginning of an assistant's turn.

    Returns:
        ids, and as many truth values.

    Raises:
        UserError: no template, a message without role or content, or one that the template refuses.
    """
    marked = render_marked(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    return _to_ids(tokenizer, marked)


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """What the template writes for a conversation, as `apply_chat_template(..., tokenize=False)` gives it."""
    marked = render_marked(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    return re.sub(f"[{OPEN}{CLOSE}{GUARD}]", "", marked)


def render_marked(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The rendered text: `OPEN` and `CLOSE` around what is trained, `GUARD` in look-alikes of special tokens."""
    source = _template_of(tokenizer)
    special = _special_pattern(tokenizer)
    checked = [_checked(message, number, special) for number, message in enumerate(messages, 1)]

    def render(part: Sequence[Message], prompt: bool) -> str:
        return _render(source, part, prompt, tokenizer.special_names)

    text = render(checked, add_generation_prompt)
    if not re.search(r"\{%-?\s*generation\s*-?%\}", source):
        for start, end in reversed(_added_by_assistant(render, checked, text, special)):
            text = text[:start] + OPEN + text[start:end] + CLOSE + text[end:]
    return text


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


def _special_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    texts = sorted((t for t in tokenizer.special_tokens if t), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _checked(message: Message, number: int, special: re.Pattern[str] | None) -> dict[str, Any]:
    """The message with its content disarmed."""
    if not isinstance(message, Mapping):
        raise UserError("a message must be a mapping with role and content", f"message {number}")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise UserError(f'a message needs the text "{key}"', f"message {number}")
    content = re.sub(f"[{OPEN}{CLOSE}{GUARD}]", "", message["content"])
    # Again, because breaking one special token can leave another that overlapped it.
    while special and (found := special.search(content)) and len(found[0]) > 1:
        content = special.sub(lambda match: match[0][0] + GUARD + match[0][1:], content)
    return {**message, "content": content}


def _render(source: str, messages: Sequence[Message], prompt: bool, names: Mapping[str, str]) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    fix = "mend or replace it"
    try:
        return _compiled(source).render(
            messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **names
        )
    except TemplateSyntaxError as error:
        where = f"chat template, line {error.lineno}"
        raise UserError(f"the chat template is damaged: {error.message}", where, fix) from None
    except TemplateError as error:
        reason = str(error).rstrip(".")
        raise UserError(f"the chat template refuses the messages: {reason}", "chat template") from None
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise UserError(f"the chat template fails: {error}", "chat template", fix) from None


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Jinja as transformers sets it up (`transformers.utils.chat_template_utils`)."""
    import json
    from datetime import datetime

    from jinja2 import TemplateError, nodes, pass_eval_context
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` encloses what the assistant says."""

        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _marked(self, context: Any, caller: Any) -> str:
            return OPEN + str(caller()) + CLOSE

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _added_by_assistant(
    render: Any, messages: Sequence[Message], text: str, special: re.Pattern[str] | None
) -> list[tuple[int, int]]:
    """Places in `text` of the assistant's turns, for templates that do not mark them.

    A turn is what the conversation up to it has more than the conversation before it with a generation
    prompt. Templates that write a turn differently once others follow (dropping its reasoning, say) break
    that rule; there the turn is where its content is found.
    """
    spans: list[tuple[int, int]] = []
    done = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        content = message["content"].strip()
        before = _render_or_nothing(render, messages[:number], True)
        after = _render_or_nothing(render, messages[: number + 1], False)
        grows = before and text.startswith(before) and text.startswith(after)
        if grows and content in after[len(before) :]:
            start, end = len(before), _end_of_turn(text, len(before), len(after), special)
        else:
            start = text.find(content, done)
            if start < 0:
                what = "the chat template does not write this answer, so it cannot be trained"
                raise UserError(what, f"message {number + 1}", "use a template with {% generation %} blocks")
            end = start + len(content)
            following = special.match(text, end) if special else None
            end = following.end() if following else end
        spans.append((start, end))
        done = end
    return spans


def _render_or_nothing(render: Any, messages: Sequence[Message], prompt: bool) -> str:
    try:
        return str(render(messages, prompt))
    except UserError:  # for example a template that wants a user's message first
        return ""


def _end_of_turn(text: str, start: int, end: int, special: re.Pattern[str] | None) -> int:
    """Leave out the white space after the token that ends the turn."""
    ends = [match.end() for match in special.finditer(text, start, end)] if special else []
    return ends[-1] if ends and not text[ends[-1] : end].strip() else end


def _to_ids(tokenizer: Tokenizer, marked: str) -> tuple[list[int], list[bool]]:
    """Encode the text between special tokens; a token is trained when it begins in trained text."""
    special = _special_pattern(tokenizer)
    pattern = re.compile(f"[{OPEN}{CLOSE}]" + (f"|{special.pattern}" if special else ""))
    ids: list[int] = []
    trained: list[bool] = []
    text, inside, at = "", 0, 0
    first = True  # no special token so far
    stripping = False  # the last one takes the white space behind it
    flags: list[bool] = []  # for every character of `text`

    for match in [*pattern.finditer(marked), None]:
        plain = marked[at : match.start() if match else len(marked)].replace(GUARD, "")
        if stripping:
            plain = plain.lstrip()
            stripping = not plain
        text, flags = text + plain, flags + [inside > 0] * len(plain)
        if match is None or match[0] not in (OPEN, CLOSE):
            token = tokenizer.special_tokens[match[0]] if match else -1
            before, after = tokenizer.stripping.get(token, (False, False))
            found, offsets = tokenizer.encode_with_offsets(text.rstrip() if before else text, first=first)
            first, stripping = False, after
            ids += found
            trained += [flags[min(offset, len(flags) - 1)] for offset in offsets]
            text, flags = "", []
        if match is None:
            break
        at = match.end()
        if match[0] in (OPEN, CLOSE):
            inside += 1 if match[0] == OPEN else -1
        else:
            ids.append(token)
            trained.append(inside > 0)
    return ids, trained
