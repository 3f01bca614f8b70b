"""Chat templates: Jinja as transformers sets it up, in a sandbox that nothing gets out of and that ends.

A template comes with somebody's checkpoint. It reaches no attribute beyond those listed here, and every loop, every
copy and every search is paid for from a budget that grows with the conversation; what a normal template needs is a
thousandth of it. So nothing has to be watched from outside, and it works the same in threads and on every system.

Texts of messages are `Tracked`: what is rendered says for each character which message wrote it, and which
`{% generation %}` block it stands in.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, cast

from yeoul.errors import UserError
from yeoul.text.tracked import (
    CHARACTERS,
    METHODS,
    Mark,
    TooMuch,
    Tracked,
    budget,
    charge,
    check_width,
    joined,
    percent,
    runs_of,
    tracked,
    whole,
)  # fmt: skip

if TYPE_CHECKING:
    from jinja2 import Environment, Template

LONGEST_SOURCE = 200_000
"""Characters of a template; the longest published ones have about 30,000."""
STEPS, SECONDS = 100_000, 5.0
"""What every rendering may cost; the conversation's own size comes on top."""
ALLOWED: dict[type, frozenset[str]] = {
    str: METHODS, dict: frozenset({"get", "items", "keys", "values", "copy"}),
    list: frozenset({"count", "index", "copy"}), tuple: frozenset({"count", "index"}),
    int: frozenset(), float: frozenset(), bytes: frozenset(), range: frozenset(),
}  # fmt: skip
"""Attributes of plain values."""
FILTERS = """
    abs attr batch capitalize center count d default dictsort e escape first float format groupby indent int items join
    last length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort string
    sum title trim truncate unique upper wordcount
""".split()
"""Those of Jinja that write no HTML."""
WIDTHS = frozenset({"batch", "center", "indent", "round", "slice", "truncate"})
"""Filters whose numbers decide how long the result is."""
THROUGH = frozenset(
    """
    dictsort format groupby max min sort string sum tojson unique
    == != < > <= >= eq equalto ge greaterthan gt in le lessthan lt ne
    """.split()
)
"""Filters and tests that look at all that a value holds, however deep."""
LARGEST_BITS = 4096
"""Of a whole number that a template computes."""
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def has_generation(source: str) -> bool:
    """Whether a template says itself what the assistant generates."""
    return GENERATION.search(source) is not None


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    prompt: bool,
    names: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Tracked:
    """What a template writes for messages, each character with its origin.

    Args:
        source: the template.
        messages: with `Tracked` texts where the origin matters, see `from_message`.
        prompt: end with the beginning of an assistant's turn.
        names: further variables, such as "eos_token".
        tools: functions that may be called, as OpenAI describes them, with `Tracked` texts.

    Raises:
        UserError: the template is damaged, refuses the messages, fails, or would need too much time or memory.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    fix = "mend or replace it"
    size = _size(messages) + _size(tools)
    try:
        with budget(STEPS + size, SECONDS):
            text = _compiled(source).render(
                messages=messages, add_generation_prompt=prompt, tools=tools, documents=None, **names
            )
            return tracked(text)
    except TooMuch:
        what = "the chat template would take too much time or memory"
        raise UserError(what, "chat template", "use another one") from None
    except TemplateSyntaxError as error:
        where = f"chat template, line {error.lineno}"
        raise UserError(f"the chat template is damaged: {_reason(error.message)}", where, fix) from None
    except TemplateError as error:
        raise UserError(f"the chat template refuses the messages: {_reason(error)}", "chat template") from None
    except Exception as error:  # whatever code in a template may raise: that is the template's fault, not the program's
        raise UserError(f"the chat template fails: {_reason(error)}", "chat template", fix) from error


def from_message(value: Any, number: int) -> Any:
    """A value of a message with all its texts as that message's."""
    if isinstance(value, str):
        return Tracked.all_from(value, Mark(number))
    if isinstance(value, Mapping):
        return {from_message(key, number): from_message(item, number) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [from_message(item, number) for item in value]
    return value


def _size(value: Any) -> int:
    """Characters and entries of the conversation."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(100 + _size(item) for item in value.values())
    return sum(100 + _size(item) for item in value) if isinstance(value, list | tuple) else 0


def _reason(error: object) -> str:
    """An error of Jinja or Python as the end of a sentence."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    if len(source) > LONGEST_SOURCE:
        what = f"the chat template is longer than {LONGEST_SOURCE:,} characters"
        raise UserError(what, "chat template", "use another one")
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Jinja as transformers sets it up (`transformers.utils.chat_template_utils`), with a budget."""
    from jinja2 import filters, pass_context, tests
    from jinja2.ext import loopcontrols

    environment = _sandbox()(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols],
        optimized=False, finalize=pass_context(lambda _, value: _shown(value)),
    )  # fmt: skip
    # With a finalizer that asks for the context and without the optimizer nothing is computed while compiling.
    known: dict[str, Any] = {name: filters.FILTERS[name] for name in FILTERS}
    known |= {"join": _join, "format": _format_filter, "safe": lambda value: value, "tojson": _tojson}
    environment.filters = {name: _bounded(known[name], name) for name in known}
    environment.tests = {name: _bounded(cast(Any, test), name) for name, test in tests.TESTS.items()}
    environment.globals.pop("lipsum", None)
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "range": _range}
    return environment


def _sandbox() -> type[Environment]:
    """The sandbox as a class: Jinja is imported only when a conversation is rendered."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, operators
    from jinja2.runtime import Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Counting(CodeGenerator):
        """Code that pays for its loops, comparisons and joined texts."""

        def visit_For(self, node: nodes.For, frame: Any) -> None:
            step = lambda: nodes.EnvironmentAttribute("step", lineno=node.lineno)  # noqa: E731 - a property that pays
            node.body.insert(0, nodes.ExprStmt(step(), lineno=node.lineno))
            if node.test is not None:
                node.test = nodes.And(step(), node.test, lineno=node.lineno)
            super().visit_For(node, frame)

        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
            self.write("environment.concat([")
            for part in node.nodes:
                self._through("shown", part, frame)
                self.write(", ")
            self.write("])")

        def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:
            self.write("(")
            self._through("weighed", node.expr, frame)
            for operand in node.ops:
                self.write(f" {operators[operand.op]} ")
                self._through("weighed", operand.expr, frame)
            self.write(")")

        def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
            self.write("{")
            for item in node.items:
                self._through("weighed", item.key, frame)  # it is hashed
                self.write(": ")
                self.visit(item.value, frame)
                self.write(", ")
            self.write("}")

        def _through(self, function: str, node: nodes.Node, frame: Any) -> None:
            if isinstance(node, nodes.Const):
                self.visit(node, frame)
                return
            self.write(f"environment.{function}(")
            self.visit(node, frame)
            self.write(")")

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Counting
        intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
        concat = staticmethod(joined)
        shown = staticmethod(lambda value: _shown(value))
        weighed = staticmethod(lambda value: _weighed(value))

        @property
        def step(self) -> bool:
            charge(1)
            return True

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            return _operation(operator, left, right, super().call_binop, context)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
            owner = getattr(__obj, "__self__", None)
            charge(1 + (len(owner) / CHARACTERS if isinstance(owner, (str, list, tuple, range)) else 0))
            if not isinstance(__obj, Macro):
                _weighed((args, kwargs))
            return super().call(__context, __obj, *args, **kwargs)

        def getattr(self, obj: Any, attribute: str) -> Any:
            return super().getattr(tracked(obj) if type(obj) is str else obj, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            named = type(obj) is str and isinstance(argument, str)
            return super().getitem(tracked(obj) if named else obj, _weighed(argument))

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            known = next((names for kind, names in ALLOWED.items() if isinstance(obj, kind)), None)
            return super().is_safe_attribute(obj, attr, value) and (known is None or attr in known)

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            text, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
            if not isinstance(text, str) or name not in ("format", "format_map"):
                return None
            if name == "format":
                return lambda *args, **kwargs: _formatted(self, text, args, kwargs)
            return lambda values: _formatted(self, text, (), values)

    return Sandbox


def _generation() -> type[Any]:
    """`{% generation %}...{% endgeneration %}` encloses what the assistant says."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            text = caller()
            block = next(_BLOCKS)
            return Tracked(text, ((length, mark._replace(block=block)) for length, mark in runs_of(text)))

    return Generation


_BLOCKS = itertools.count()
"""Numbers of `{% generation %}` blocks, each one's its own."""


# -- what a template does with values


def _weighed(value: Any) -> Any:
    """The value, after paying for whoever goes through all of it: a comparison, a hash, a text of it.

    Values that hold one another many times over are small in memory and endless to look through.
    """
    waiting = [] if isinstance(value, int) else [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if len(item) > CHARACTERS:
                charge(len(item) / CHARACTERS)
        elif isinstance(item, range):
            charge(len(item) / 4)
        elif inside := _inside(item):
            charge(len(inside) / 4)
            waiting += inside
    return value


def _inside(value: Any) -> Sequence[Any]:
    """What a value holds; a `namespace` shows its attributes as its text."""
    if isinstance(value, (list, tuple)):
        return value
    if not isinstance(value, dict):
        value = getattr(value, "_Namespace__attrs", None)
    return [*value.keys(), *value.values()] if isinstance(value, dict) else ()


def _shown(value: Any) -> str:
    """What is written for a value."""
    return value if isinstance(value, str) else whole(str(_weighed(value)), value)


def _bounded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter or a test that pays for what it is given, and whose text keeps its origin."""

    @wraps(function)  # the marks by which Jinja passes it a context, too
    def run(*args: Any, **kwargs: Any) -> Any:
        value = args[0] if args else ""
        charge(1 + (len(value) / CHARACTERS if isinstance(value, (str, list, tuple, dict, range)) else 0))
        if name in THROUGH:
            _weighed((args, kwargs))
        if name in WIDTHS:
            lines = str.count(value, "\n") + 1 if isinstance(value, str) else 1
            for width in (*args[1:], *kwargs.values()):
                check_width(width)
                charge(lines * width / CHARACTERS if isinstance(width, int) else 0)
        made = function(*(tracked(arg) if type(arg) is str else arg for arg in args), **kwargs)
        return whole(made, args) if isinstance(made, str) else made

    return run


def _operation(operator: str, left: Any, right: Any, plainly: Callable[..., Any], context: Any) -> Any:
    """`left operator right`, unless it would be out of proportion."""
    charge(1)
    sequence = (str, list, tuple)
    if operator == "%" and isinstance(left, str):
        return percent(left, _weighed(right))
    if operator == "+" and isinstance(left, str) and isinstance(right, str):
        return joined((left, right))
    if operator == "+" and isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        charge((len(left) + len(right)) / 8)
    elif operator == "*" and isinstance(left, sequence) != isinstance(right, sequence):
        many, count = (left, right) if isinstance(left, sequence) else (right, left)
        charge(len(many) * max(count, 0) / 8 if isinstance(count, int) else 0)
    elif isinstance(left, int) and isinstance(right, int):
        if operator == "**" and abs(left) > 1 and right > 64:
            raise TooMuch
        made = plainly(context, operator, left, right)
        if isinstance(made, int) and made.bit_length() > LARGEST_BITS:
            raise TooMuch
        return made
    return plainly(context, operator, left, right)


def _formatted(environment: Any, form: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """`form.format(...)`, each value with its own origin."""
    from jinja2.sandbox import SandboxedFormatter

    _weighed([*args, *kwargs.values()])
    formatter = SandboxedFormatter(environment)
    parts, number = list[str](), 0
    for literal, field, spec, conversion in formatter.parse(form):
        parts.append(whole(literal, form))
        if field is None:
            continue
        if not re.match(r"[^.\[]", field):
            field, number = f"{number}{field}", number + 1
        value = formatter.convert_field(_weighed(formatter.get_field(field, args, kwargs)[0]), conversion or "")
        if "{" in (spec or ""):
            raise ValueError("a format within a format")
        for digits in re.findall(r"\d+", spec or ""):
            check_width(int(digits[:10]))
        parts.append(value if isinstance(value, str) and not spec else whole(format(value, spec or ""), value))
    return joined(parts)


def _join(value: Any, d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    if attribute is not None:
        items = [_environment().getitem(item, attribute) for item in items]
    return tracked(_shown(d)).join(map(_shown, items))


def _format_filter(value: Any, *args: Any, **kwargs: Any) -> str:
    return percent(_shown(value), kwargs or args)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    if options.get("indent") is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)
    check_width(options["indent"])
    # Deep values are written mostly in spaces.
    return joined(map(_shown, map(_weighed, json.JSONEncoder(ensure_ascii=ensure_ascii, **options).iterencode(value))))


def _range(*args: int) -> range:
    made = range(*args)
    charge(len(made) / 8)
    return made


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
