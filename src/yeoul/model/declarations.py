"""What a class declares, read from the text of its file: its constants and class methods, without its imports.

Feature maps and state updates stand in one file each, with what may be chosen of them beside what they compute; a
configuration needs the former alone, and importing torch for it would take seconds. So the class statement is compiled
again without everything but

- annotated constants, `name: ClassVar[...] = value`;
- class methods, whose arguments and results are plain numbers;

and its base classes likewise, as far as they are of the same package. Values and class methods may use constants of
their module, and constants that are imported from other modules of the package.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import copy
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

_FUTURE = __future__.annotations.compiler_flag


@functools.cache
def declared_class(module: str, name: str) -> type:
    """The declarations of a class as a class.

    Args:
        module: dotted name of its module.
        name: of the class; "" is the one class of the module that is registered (`Registry.register`).

    Raises:
        LookupError: there is no such class.
    """
    file = _read(module)
    for node in file.tree.body:
        if isinstance(node, ast.ClassDef) and (node.name == name if name else _is_registered(node)):
            return file.declarations(node)
    raise LookupError(f"there is no class {name or 'that is registered'} in {module}")


@functools.cache
def _read(module: str) -> _File:
    return _File(module)


class _File:
    """The text of a module."""

    def __init__(self, module: str) -> None:
        package, _, leaf = module.rpartition(".")
        self.module, self.package = module, module.partition(".")[0]
        self.path = Path(importlib.import_module(package).__path__[0], f"{leaf}.py")
        self.tree = ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))
        self.constants: dict[str, ast.expr] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.constants[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == self.package:
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = str(node.module), alias.name

    def declarations(self, node: ast.ClassDef) -> type:
        bases = tuple(base for base in map(self._base, node.bases) if base is not object)
        body = [part for part in node.body if _is_declaration(part)]
        called = [part for part in body if isinstance(part, ast.FunctionDef)]
        values = [part.value for part in body if isinstance(part, ast.AnnAssign) and part.value is not None]
        names = {name for part in (*called, *values) for name in _names(part)}
        space: dict[str, Any] = {"__name__": self.module, "_bases": bases}
        for name in names:
            if not hasattr(builtins, name) and self._has(name):
                space[name] = self.constant(name)
        bare = copy.copy(node)
        bare.bases, bare.decorator_list = [ast.Starred(ast.Name("_bases", ast.Load()), ast.Load())], []
        bare.body = list(body) or [ast.Pass()]
        program = ast.fix_missing_locations(ast.Module([bare], []))
        exec(compile(program, str(self.path), "exec", _FUTURE, dont_inherit=True), space)
        made: type = space[node.name]
        return made

    def _base(self, node: ast.expr) -> type:
        """The declarations of a base class; `object` where it is not of this package."""
        if not isinstance(node, ast.Name):
            return object
        if node.id in self.imported:
            return declared_class(*self.imported[node.id])
        if any(isinstance(other, ast.ClassDef) and other.name == node.id for other in self.tree.body):
            return declared_class(self.module, node.id)
        return object

    def _has(self, name: str) -> bool:
        if name in self.constants:
            return True
        if name not in self.imported:
            return False
        module, there = self.imported[name]
        return _read(module)._has(there)

    def constant(self, name: str) -> Any:
        """The value of a constant of the module."""
        if name in self.imported:
            module, there = self.imported[name]
            return getattr(sys.modules[module], there) if module in sys.modules else _read(module).constant(there)
        value = self.constants[name]
        space = {used: self.constant(used) for used in _names(value) if self._has(used)}
        return eval(compile(ast.Expression(value), str(self.path), "eval"), space)


def _names(node: ast.AST) -> set[str]:
    """Names that an expression or the body of a function reads."""
    parts = node.body if isinstance(node, ast.FunctionDef) else [node]
    return {
        name.id for part in parts for name in ast.walk(part)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load)
    }  # fmt: skip


def _is_declaration(node: ast.stmt) -> bool:
    if isinstance(node, ast.AnnAssign):
        return node.value is not None and "ClassVar" in ast.unparse(node.annotation)
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(decorator, ast.Name) and decorator.id == "classmethod" for decorator in node.decorator_list
    )


def _is_registered(node: ast.ClassDef) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == "register" for one in node.decorator_list)
