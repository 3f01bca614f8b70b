"""A dataclass is a command's flags, its YAML and its documentation.

`parse_flags` fills it from the command line and `--config FILE.yaml` (a flag beats the file, the file beats
the default); `save_config` and `load_config` write and read it as YAML. Nested dataclasses that are annotated
`Parameter(name="*")` are flat in all three. YAML keys are the field names, with `_` or `-`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar, cast, get_args, get_type_hints

from yeoul.errors import UserError
from yeoul.files import write_text
from yeoul.plain_text import decode_marked

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError
    from cyclopts.argument import Argument

T = TypeVar("T")
_PLACE = object()
Place = Annotated[str, _PLACE]
"""The type of a field that names a folder, a file or what the hub calls so, or several with commas; `~` is the home
folder in it, as in every `Path`."""
FILE_FIELD = "config"
"""The field that names the YAML file; a property of the call, so it is never saved."""


def parse_flags(cls: type[T], argv: Sequence[str], *, program: str) -> T | None:
    """Make a `cls` from command-line arguments, or print its help and return None when asked for it.

    Args:
        cls: the dataclass; fields before `_: KW_ONLY` are positional, the lines under fields are their help.
        argv: arguments after the verb.
        program: how the command is called, for example "yeoul pretrain".

    Raises:
        UserError: unknown flag or key, missing or unreadable value, bad YAML file.
    """
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    argv[:end] = own = _under_new_names(argv[:end], renamed_flags(cls))
    app = application(cls, program, {}, "")
    if "--help" in own or "-h" in own:
        app.help_print([])
        return None
    arguments = arguments_by_flag(app)
    _refuse_unknown_flags(own, arguments, program)
    argv = _whole_numbers(own, arguments) + argv[len(own) :]
    values: dict[str, Any] = {}
    path = _flag_value(own, f"--{FILE_FIELD}") if any(f.name == FILE_FIELD for f in fields(cls)) else None  # type: ignore[arg-type]
    if path is not None:
        file = Path(os.path.expanduser(path))
        values = _checked_values(_new_keys(read_yaml(file), renamed_flags(cls)), arguments, file)
    return _parse(cls, argv, program, values, str(path))


def load_config(cls: type[T], path: str | Path) -> T:
    """Read a `cls` from a YAML file; fields that the file leaves out keep their defaults.

    Raises:
        UserError: file missing, not UTF-8, not YAML, unknown key, wrong or missing value.
    """
    path = Path(path)
    arguments = arguments_by_flag(application(cls, "", {}, ""))
    values = _checked_values(_new_keys(read_yaml(path), renamed_flags(cls)), arguments, path)
    return _parse(cls, [], "", values, str(path))


def save_config(config: Any, path: str | Path) -> None:
    """Write a dataclass as YAML that `load_config` and `--config` read back; the folder is made when missing.

    Paths become strings and tuples lists. The file is written beside and renamed, so it is never half there.
    """
    save_values(flat_values(config), path)


def save_values(values: Mapping[str, Any], path: str | Path) -> None:
    """Write settings by name as `save_config` writes those of a dataclass."""
    import yaml

    plain = {key: _plain(value) for key, value in values.items()}
    write_text(Path(path), yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))


def flat_values(config: Any) -> dict[str, Any]:
    """Field values of a dataclass as plain YAML types, nested dataclasses flattened, without `config`."""
    values: dict[str, Any] = {}
    for field in fields(config):
        if field.name == FILE_FIELD:
            continue
        value = getattr(config, field.name)
        inner = flat_values(value) if is_dataclass(value) else {field.name: _plain(value)}
        if clash := values.keys() & inner.keys():
            raise TypeError(f"{type(config).__name__}: two fields are called {sorted(clash)}")
        values |= inner
    return values


class Settings:
    """Base of dataclasses whose groups of settings may be given flat, by the names of the flags."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The settings with these values; those that are not named keep their defaults.

        Raises:
            UserError: a name that no setting has.
        """
        made, left = _from_flat(cls, values)
        if left:
            fix = suggestion(left[0], flat_values(cls()))
            raise UserError(f'unknown setting "{left[0]}" ({cls.__name__})', fix=fix)
        return cast(Self, made)


def _from_flat(cls: type, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A dataclass with groups filled from flat values, and the names that nothing in it has."""
    given: dict[str, Any] = {}
    left = set(values)
    for field in fields(cls):
        group = field.default_factory
        if field.name in values:
            given[field.name] = values[field.name]
            left.discard(field.name)
        elif isinstance(group, type) and is_dataclass(group):
            given[field.name], unknown = _from_flat(group, values)
            left &= set(unknown)
    return cls(**given), sorted(left)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | NoneType) else str(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping.

    Raises:
        UserError: file missing, not UTF-8, not YAML (with the line), not a mapping.
    """
    import yaml

    try:
        text = decode_marked(path.read_bytes())
    except FileNotFoundError:
        raise UserError("there is no such configuration file", path, "check the path") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError("the configuration is not UTF-8", f"{path}, line {line}", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the configuration cannot be read: {error.strerror}", path) from None
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"the configuration is not valid YAML: {error.problem}", f"{path}, line {line}") from None
    except yaml.YAMLError as error:
        raise UserError(f"the configuration is not valid YAML: {str(error).splitlines()[0]}", path) from None
    except ValueError as error:  # such as the date 2026-13-45
        raise UserError(f"the configuration has an impossible value: {error}", path) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            "the configuration is not a mapping of keys to values", path, 'write lines such as "key: value"'
        )
    return values


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """The clause "did you mean X" for the known word that is closest to `word`, if one is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"' if close else None


def application(cls: type, program: str, values: dict[str, Any], source: str) -> App:
    """The parser of a dataclass's flags.

    Args:
        cls: the dataclass.
        program: how the command is called.
        values: from a YAML file, by flag; `source` is the file's name.
    """
    from cyclopts import App, Parameter
    from cyclopts.config import Dict
    from cyclopts.help import DefaultFormatter

    app = App(
        help_formatter=DefaultFormatter(column_specs=_help_columns),
        name=program,
        help=_reflowed(cls.__doc__ or ""),
        usage=_usage(cls, program),
        help_format="plaintext",
        version_flags=(),
        result_action="return_value",
        default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
        config=Dict(values, source=source, use_commands_as_keys=False),
    )
    app["--help"].show = False

    def capture(config: Any) -> Any:
        return config

    # The annotation is a run-time value: the flags are the fields of `cls`.
    capture.__annotations__ = {"config": Annotated[cls, Parameter(name="*")]}
    if all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls)):
        capture.__defaults__ = (cls(),)  # cyclopts asks for it when nothing is required
    app.default(capture)
    return app


def _help_columns(console: Any, options: Any, entries: list[Any]) -> tuple[Any, ...]:
    """The columns of cyclopts's help, the first wide enough for every flag: a flag cut in two cannot be copied.

    Where that leaves too little for the words beside it, they stand below their flags instead.
    """
    from cyclopts.help import ColumnSpec, DescriptionRenderer, NameRenderer
    from cyclopts.help.specs import get_default_parameter_columns
    from rich.console import Group
    from rich.padding import Padding

    for entry in entries:  # lines of a docstring in the source are not lines of the help
        words = getattr(entry.description, "primary_renderable", None)
        if words is not None and "\n" in words.plain:
            words.plain = " ".join(words.plain.split())
    indent, frame, enough = 2, 6, 40  # of a flag's further names; of the box and between columns; for the words
    longest = max((len(word) for entry in entries for word in entry.all_options), default=0) + indent
    if console.width < longest + frame + enough:
        name, about = NameRenderer(max_width=console.width - frame), DescriptionRenderer()
        return (ColumnSpec(renderer=lambda entry: Group(name(entry), Padding(about(entry), (0, 0, 0, 4)))),)
    return tuple(
        column
        if not isinstance(column.renderer, NameRenderer) or (column.max_width or longest) >= longest
        else column.copy(renderer=NameRenderer(max_width=longest), min_width=longest, max_width=longest)
        for column in get_default_parameter_columns(console, options, entries)
    )


def _reflowed(doc: str) -> str:
    """A docstring whose paragraphs are one line each, for the terminal to wrap; lists keep their lines."""
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    return "\n\n".join(p if re.search(r"^[-*\s]", p, re.MULTILINE) else " ".join(p.split()) for p in paragraphs)


def _usage(cls: type, program: str) -> str:
    """The line "Usage: yeoul pretrain [DATA] [--flags]"."""
    words = []
    for field in fields(cls):
        if field.kw_only:
            continue
        word = field.name.replace("_", "-").upper() + ("..." if "tuple" in str(field.type) else "")
        required = field.default is MISSING and field.default_factory is MISSING
        words.append(word if required else f"[{word}]")
    return " ".join(["Usage:", program, *words, "[--flags]"])


def arguments_by_flag(app: App) -> dict[str, Argument]:
    """Every flag ("--batch-size", "--no-resume") -> cyclopts's description of its field."""
    found = app.assemble_argument_collection()
    return {name: argument for argument in found for name in argument.names if name.startswith("--")}


def renamed_flags(cls: type) -> dict[str, str]:
    """Earlier names of the flags of a dataclass and its groups, which still work -> the names that they have now.

    A dataclass names them by field in its class variable `RENAMED`.
    """
    found = {old: new for old, new in getattr(cls, "RENAMED", {}).items()}
    for field in fields(cls):
        if isinstance(field.default_factory, type) and is_dataclass(field.default_factory):
            found |= renamed_flags(field.default_factory)
    return found


def _under_new_names(argv: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Arguments with flags under the names that they have now; it is said on standard error."""
    result = []
    for token in argv:
        name, equals, value = token.partition("=")
        old = name[2:].replace("-", "_") if name.startswith("--") else ""
        if old in renamed:
            new = "--" + renamed[old].replace("_", "-")
            print(f"yeoul: {name} is called {new} now.", file=sys.stderr, flush=True)
            token = f"{new}{equals}{value}"
        result.append(token)
    return result


def _new_keys(values: Mapping[Any, Any], renamed: Mapping[str, str]) -> dict[Any, Any]:
    """Keys of a YAML file under the names that they have now, in silence: a run may have written it."""
    return {renamed.get(str(key).replace("-", "_"), key): value for key, value in values.items()}


def _refuse_unknown_flags(argv: Sequence[str], arguments: Mapping[str, Any], program: str) -> None:
    # cyclopts names a missing positional before a misspelled flag, which hides the cause.
    for token in argv:
        name = token.partition("=")[0]
        if token.startswith("--") and name.replace("_", "-") not in arguments:
            fix = suggestion(name, arguments) or f"see `{program} --help`"
            raise UserError(f'unknown flag "{name}"', program, fix)


def _flag_value(argv: Sequence[str], flag: str) -> str | None:
    for i, token in enumerate(argv):
        name, equals, value = token.partition("=")
        if name != flag:
            continue
        if equals:
            return value
        return argv[i + 1] if i + 1 < len(argv) else None
    return None


def _whole_numbers(argv: Sequence[str], arguments: Mapping[str, Argument]) -> list[str]:
    """Values of whole-number flags as plain digits: "1e6" is welcome, and 1.5 must not become 2."""
    result: list[str] = []
    integral, single, flag = False, False, ""
    for token in argv:
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            argument = arguments[name.replace("_", "-")]
            integral, single, flag = _is_integral(argument.hint), argument.token_count() == (1, False), name
            if equals:
                token = f"{name}={_whole_number(value, flag)}" if integral else token
                integral = False
        elif integral:
            token = _whole_number(token, flag)
            integral = not single
        result.append(token)
    return result


def _is_integral(hint: Any) -> bool:
    """Whether a type hint holds whole numbers and nothing else: int, int | None, tuple[int, ...]."""
    if parts := [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]:
        return all(_is_integral(part) for part in parts)
    return hint is int


def _whole_number(value: object, where: object) -> str:
    text = str(value).strip()
    if text.lower() in ("none", "null"):
        return text
    digits = text.replace("_", "")
    if re.fullmatch(r"[+-]?\d+", digits):
        return digits
    if re.fullmatch(r"[+-]?\d+(\.\d+)?([eE]\+?\d{1,2})?", digits) and float(digits).is_integer():
        return str(int(float(digits)))
    raise UserError(f'"{text}" is not a whole number', where)


def _checked_values(raw: Mapping[Any, Any], arguments: Mapping[str, Argument], path: Path) -> dict[str, Any]:
    """Refuse unknown keys and nested mappings; give the rest under flag names, whole numbers as digits."""
    known = {flag[2:].replace("-", "_"): a for flag, a in arguments.items() if flag not in a.negatives}
    known.pop(FILE_FIELD, None)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).replace("-", "_")
        if isinstance(value, Mapping) and name not in known:
            inner = next((str(k) for k in value if str(k).replace("-", "_") in known), None)
            fix = f'settings are flat: write "{inner}" without "{key}"' if inner else "settings are flat"
            raise UserError(f'key "{key}" contains nested keys', path, fix)
        if name not in known:
            raise UserError(f'unknown key "{key}"', path, suggestion(name, known) or _known_keys(known))
        if isinstance(value, Mapping):
            raise UserError(f'key "{key}" contains nested keys instead of a value', path)
        if name.replace("_", "-") in values:
            raise UserError(f'key "{key}" occurs twice, with "_" and with "-"', path)
        if _is_integral(known[name].hint) and value is not None and not isinstance(value, bool):
            where = f"{path}, key {key}"
            many = isinstance(value, list)
            value = [_whole_number(v, where) for v in value] if many else _whole_number(value, where)
        values[name.replace("_", "-")] = value
    return values


def _known_keys(known: Iterable[str]) -> str:
    return "known keys are " + ", ".join(known)


def _parse(cls: type[T], argv: Sequence[str], program: str, values: dict[str, Any], source: str) -> T:
    from cyclopts import CycloptsError

    app = application(cls, program, values, source)
    try:
        config: T = app(list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fix = f"see `{program} --help`" if program else None
        raise UserError(_sentence(error), program or source, fix) from None
    _find_home(config)
    return config


def _find_home(config: Any) -> None:
    """Put the home folder where a path says `~`: no shell does it within a word or a YAML file."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            _find_home(value)
        else:
            object.__setattr__(config, field.name, _with_home(value, _is_place(hints[field.name])))


def _is_place(hint: Any) -> bool:
    return hint is _PLACE or any(map(_is_place, (*get_args(hint), *getattr(hint, "__metadata__", ()))))


def _with_home(value: Any, is_place: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_with_home(item, is_place) for item in value)
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if isinstance(value, str) and is_place and "~" in value:
        parts = (part.strip() for part in value.split(",")) if "," in value else (value,)
        return ",".join(map(os.path.expanduser, parts))
    return value


def _sentence(error: CycloptsError) -> str:
    """One clause, in our words where cyclopts's are technical."""
    from cyclopts.exceptions import CoercionError, MissingArgumentError, UnusedCliTokensError

    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f'unexpected argument "{error.unused_tokens[0]}"'
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        if error.keyword is None and not error.argument.tokens:
            return f"{error.argument.name.lstrip('-').upper()} is missing"
        count = error.argument.token_count()[0]
        return f"{error.argument.name} needs {'a value' if count == 1 else f'{count} values'}"
    kinds: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
    if isinstance(error, CoercionError) and error.token is not None and error.target_type in kinds:
        flag = _key_or_flag(error.token.keyword or "a value")
        place = "" if error.token.source in ("", "cli") else f" in {error.token.source}"
        return f'{flag}{place} must be {kinds[error.target_type]}, not "{error.token.value}"'
    text = re.sub(r"(?<= for )\[[\w-]+\](?= from )", lambda m: _key_or_flag(m[0]), " ".join(str(error).split()))
    return text[:1].lower() + text[1:].rstrip(".")


def _key_or_flag(name: str) -> str:
    """Cyclopts writes a YAML key as "[lr]"."""
    return f'key "{name[1:-1]}"' if name.startswith("[") else name
