"""The command that does what was done from Python or from another command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from yeoul.config import flat_values


def command_line(verb: str, *positional: str | Path, settings: Any = None, **flags: Any) -> str:
    """`yeoul VERB ...`.

    Args:
        verb: the command.
        positional: its first arguments.
        settings: a dataclass of its flags; those that have their defaults are left out.
        flags: more of them, by field name, all given; None leaves one out.
    """
    words = ["yeoul", verb, *map(str, positional)]
    for name, value in {**{k: v for k, v in flags.items() if v is not None}, **_changed(settings)}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return shlex.join(words)


def _changed(settings: Any) -> Mapping[str, Any]:
    """Flat values of a dataclass that are not the defaults of their fields."""
    if settings is None:
        return {}
    values = flat_values(settings)
    defaults: dict[str, Any] = {}
    for field in fields(settings):
        if field.default_factory is not MISSING:
            default = field.default_factory()
            group = hasattr(default, "__dataclass_fields__")
            defaults |= flat_values(default) if group else {field.name: default}
        elif field.default is not MISSING:
            default = field.default
            defaults[field.name] = list(default) if isinstance(default, tuple) else default
    same = {name for name, default in defaults.items() if values.get(name) in (default, str(default))}
    return {name: value for name, value in values.items() if name not in same and value is not None}
