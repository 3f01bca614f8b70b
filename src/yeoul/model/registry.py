"""Classes by name, one file of a package for each: whoever adds a file has added a name, and edits nothing else."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Generic, TypeVar

from yeoul.errors import UserError, shown
from yeoul.model.declarations import declared_class

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes of a package by the names of their files, with hyphens for underscores.

    A file is imported when its class is first asked for; what the class declares can be read without that.

    Args:
        package: dotted name of the package.
        folder: where its files are.
        what: what they are, for messages.
        shared: files that stand for no class but hold what several of them share; `__init__` and `registry` do anyhow.
    """

    def __init__(self, package: str, folder: Path, what: str, shared: tuple[str, ...] = ()) -> None:
        self.package, self.what = package, what
        found = {file.stem for file in folder.glob("*.py")} - {"__init__", "registry", *shared}
        self.names = tuple(sorted(name.replace("_", "-") for name in found))
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Decorator of the one class of a file that the file's name stands for."""
        self._classes[cls.__module__.rpartition(".")[2].replace("_", "-")] = cls
        return cls

    def check(self, name: object) -> str:
        """The name itself; a UserError with a suggestion where nothing is called so."""
        if name in self.names:
            return str(name)
        near = difflib.get_close_matches(shown(name).strip("'"), self.names, n=1)
        hint = f"did you mean {shown(near[0])}" if near else f"choose one of {', '.join(self.names)}"
        raise UserError(f"{self.what} cannot be {shown(name)}", fix=hint)

    def declared(self, name: str) -> type[T]:
        """The class of a name, or as long as that is not imported its constants and class methods alone.

        Raises:
            UserError: nothing is called so.
        """
        if self.check(name) in self._classes:
            return self._classes[name]
        return declared_class(f"{self.package}.{name.replace('-', '_')}", "")

    def __getitem__(self, name: str) -> type[T]:
        """The class of a name.

        Raises:
            UserError: nothing is called so.
        """
        if self.check(name) not in self._classes:
            importlib.import_module(f"{self.package}.{name.replace('-', '_')}")
        return self._classes[name]
