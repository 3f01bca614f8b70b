"""The house keeps its floors: every import, function-level ones too, goes downwards."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILES = sorted((SOURCE / "yeoul").rglob("*.py"))

FLOORS = {
    "config": 0, "errors": 0, "files": 0, "runtime": 0, "hub": 0, "units": 0, "foreign_text": 0, "lines": 0,
    "plain_text": 0, "safe_json": 0, "gguf_header": 0, "version": 0,
    "ops": 1,
    "text": 2, "data": 2, "model": 2,
    "train": 3, "adapt": 3, "infer": 3, "serve": 3, "evaluate": 3, "report": 3,
    "recipes": 4,
    "yeoul": 5, "hf": 5, "lm_eval": 5,  # the public face
    "commands": 6,
    "cli": 7, "__main__": 8,
}  # fmt: skip
NEIGHBOURS = {
    ("serve", "infer"),
    ("evaluate", "infer"),
    ("config", "errors"),
    ("config", "files"),
    ("files", "errors"),
    ("runtime", "errors"),
    ("runtime", "units"),
    ("lines", "foreign_text"),
    ("hub", "errors"),
    ("config", "plain_text"),
    ("safe_json", "errors"),
    ("safe_json", "plain_text"),
    ("safe_json", "units"),
    ("hub", "files"),
    ("hub", "gguf_header"),
    ("gguf_header", "errors"),
}
LAZY = {
    "datasets", "gguf", "huggingface_hub", "jinja2", "lm_eval", "matplotlib", "pyarrow", "sacrebleu", "sentencepiece",
    "tensorboard", "tokenizers", "torch.utils.tensorboard", "transformers", "zstandard",
}  # fmt: skip
"""Only imported inside functions: they cost time or may be missing."""


@dataclass(frozen=True)
class Import:
    """One import of one file; `module` is its dotted name, with the imported name where that is a module."""

    file: Path
    line: int
    module: str
    inside_function: bool
    for_types_only: bool

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(SOURCE)}:{self.line}"


def imports_of(file: Path) -> list[Import]:
    return list(_walk(ast.parse(file.read_text(encoding="utf-8")), file, False, False))


def _walk(node: ast.AST, file: Path, inside: bool, types_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(file, child.lineno, name.name, inside, types_only)
        elif isinstance(child, ast.ImportFrom):
            for name in child.names:
                yield Import(file, child.lineno, _target(child, name.name, file), inside, types_only)
        elif isinstance(child, ast.Call) and getattr(child.func, "attr", "") == "import_module" and child.args:
            if isinstance(child.args[0], ast.Constant):
                yield Import(file, child.lineno, str(child.args[0].value), inside, types_only)
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        yield from _walk(child, file, inside or function, types_only or typing)


def _target(node: ast.ImportFrom, name: str, file: Path) -> str:
    """`from yeoul import runtime` is yeoul.runtime; `from yeoul import load` is yeoul."""
    base = node.module or ""
    if node.level:
        package = file.relative_to(SOURCE).with_suffix("").parts[: -node.level]
        base = ".".join([*package, base] if base else package)
    path = SOURCE.joinpath(*base.split("."), name)
    return f"{base}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else base


def room_of(module: str) -> str:
    """yeoul.model.config -> model; the package itself -> yeoul."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def room_of_file(file: Path) -> str:
    inner = file.relative_to(SOURCE / "yeoul").with_suffix("").parts
    return "yeoul" if inner == ("__init__",) else inner[0]


@functools.cache
def all_imports() -> list[Import]:
    return [found for file in FILES for found in imports_of(file)]


def test_there_is_something_to_read() -> None:
    assert len(FILES) > 20 and len(all_imports()) > 100


def test_every_room_has_a_floor() -> None:
    assert {room_of_file(file) for file in FILES} <= FLOORS.keys()


def test_imports_only_go_downwards() -> None:
    wrong = []
    for found in all_imports():
        if found.module.partition(".")[0] != "yeoul":
            continue
        here, there = room_of_file(found.file), room_of(found.module)
        if here == there or (here, there) in NEIGHBOURS:
            continue
        if FLOORS[there] >= FLOORS[here]:
            wrong.append(f"{found.where}: {here} imports {there}")
    assert not wrong, "\n".join(wrong)


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, however indirectly."""

    def reachable(start: str) -> set[str]:
        found, open_ones = set[str](), [start]
        while open_ones:
            new = imports.get(open_ones.pop(), set()) - found
            found |= new
            open_ones += new
        return found

    reach = {module: reachable(module) for module in imports}
    found: list[set[str]] = []
    for module in imports:
        if module in reach[module] and not any(module in circle for circle in found):
            found.append({other for other in reach[module] if module in reach.get(other, set())})
    return found


def test_no_circle_of_imports() -> None:
    """Not within a room either, and not for types alone: a circle is two files that are really one."""
    imports: dict[str, set[str]] = {module_of(file): set() for file in FILES}
    for found in all_imports():
        if found.module in imports:
            imports[module_of(found.file)].add(found.module)
    wrong = [circle for circle in circles(imports)]
    assert not wrong, "\n".join(", ".join(sorted(circle)) for circle in wrong)


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set()}) == [{"a", "b", "c"}]


def test_only_the_command_line_imports_commands() -> None:
    inside = {f.where for f in all_imports() if f.module.startswith("yeoul.commands") and f.file.name != "cli.py"}
    assert not {where for where in inside if "/commands/" not in where}, inside
    root = SOURCE.parent
    outside = [
        str(file.relative_to(root))
        for folder in ("benchmarks", "examples")
        for file in (root / folder).rglob("*.py")
        if "yeoul.commands" in file.read_text(encoding="utf-8")
    ]
    assert not outside, "these have the public face"


def test_commands_are_short() -> None:
    """They parse, call and print; what they do is a recipe."""
    lengths = {
        file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES if "commands" in file.parts
    }
    assert max(lengths.values()) <= 130 and sum(lengths.values()) <= 3300, lengths


def test_scheduler_and_server_know_no_tensors() -> None:
    wrong = [
        found.where
        for found in all_imports()
        if found.module.partition(".")[0] == "torch"
        and (room_of_file(found.file) == "serve" or found.file.name == "scheduler.py")
    ]
    assert not wrong, wrong


def test_heavy_packages_wait_inside_functions() -> None:
    wrong = [
        f"{found.where}: {found.module}"
        for found in all_imports()
        if (found.module in LAZY or found.module.partition(".")[0] in LAZY)
        and not found.inside_function
        and not found.for_types_only
        and found.file.name not in ("hf.py", "harness.py")  # classes of those packages
    ]
    assert not wrong, wrong


def test_transformers_stays_in_its_extra() -> None:
    found = {f.file.name for f in all_imports() if f.module.partition(".")[0] == "transformers"}
    assert found <= {"hf.py"}


def test_no_pickle() -> None:
    wrong = [
        f.where for f in all_imports() if f.module.partition(".")[0] in ("pickle", "dill", "cloudpickle", "shelve")
    ]
    loads = [
        f"{file.relative_to(SOURCE)}: torch.load"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save")
    ]
    assert wrong + loads == ["yeoul/model/pickles.py: torch.load"]  # asked for by a flag, and for tensors alone
    assert "weights_only=True" in (SOURCE / "yeoul/model/pickles.py").read_text(encoding="utf-8")


def test_one_reader_of_the_environment() -> None:
    wrong = [
        f"{file.relative_to(SOURCE)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and file.name != "runtime.py"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import yeoul, yeoul.cli, yeoul.errors, yeoul.config, yeoul.runtime, yeoul.hub, yeoul.units",
            ("torch", "cyclopts", "yaml"),
        ),
        (
            "import importlib as i, yeoul.cli as c\nfor v in c.VERBS: i.import_module('yeoul.commands.' + v)",
            ("torch", "transformers", "matplotlib"),
        ),
    ],
    ids=["cli", "commands"],
)
def test_what_an_import_does_not_bring(statement: str, absent: tuple[str, ...]) -> None:
    program = f"{statement}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    text = (
        "import torch.nn\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from yeoul import runtime\n"
        "def f():\n    from yeoul.train import loop\n"
        "    import importlib\n    importlib.import_module('yeoul.infer')\n"
    )
    file = tmp_path / "x.py"
    file.write_text(text)
    found = {(i.module, i.inside_function, i.for_types_only) for i in imports_of(file)}
    assert {
        ("torch.nn", False, False),
        ("yeoul.runtime", False, True),
        ("yeoul.train.loop", True, False),
        ("yeoul.infer", True, False),
    } <= found
