"""The documentation is true: its commands parse, its Python runs, its links lead somewhere, its map is the house."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from yeoul import cli
from yeoul.commands import pretrain
from yeoul.config import application, arguments_by_flag, save_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDE = ROOT / "docs" / "guides"
CONCEPTS = ROOT / "docs" / "concepts"
TRANSLATED = [
    (page, page.with_name(page.name.replace(".md", ".ko.md")))
    for page in PAGES
    if page.with_name(page.name.replace(".md", ".ko.md")).exists()
]
OTHER_FLAGS = {"--constraint", "--editable", "--help", "--version", "--config", "--model"}
"""Flags of pip in the installation and of lm-eval, and those that every verb has."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    found, start, language, lines = [], 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and not start:
            start, language, lines = number, fence[1], []
        elif fence:
            found.append(Block(page, start, language, "\n".join(lines) + "\n"))
            start = 0
        elif start:
            lines.append(line)
    assert not start, f"{page}:{start}: the block does not end"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(block: Block) -> Iterator[list[str]]:
    """Simple commands of a shell block, as argument lists; pipes and lists of commands are taken apart."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        words.whitespace_split = True
        command: list[str] = []
        for word in words:
            if set(word) <= set("|&;"):
                yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command


YEOUL = [
    pytest.param(command[1:], id=f"{block}: {' '.join(command[1:4])}")
    for block in BLOCKS
    if block.language == "sh"
    for command in commands_of(block)
    if command[0] == "yeoul"
]


@pytest.fixture
def documented_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration files that the pages speak of, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    recipes = [block.text for block in BLOCKS if block.language == "yaml"]
    (tmp_path / "recipe.yaml").write_text(recipes[0], encoding="utf-8")
    save_config(pretrain.Config("my-text", out=Path("runs/mine")), tmp_path / "runs" / "mine" / "config.yaml")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")


def test_there_is_something_to_read() -> None:
    assert len(YEOUL) > 40
    assert len([block for block in BLOCKS if block.language == "python"]) > 10
    assert {"README.md", "concepts.md", "linearize.md"} <= {english.name for english, _ in TRANSLATED}


@pytest.mark.parametrize("arguments", YEOUL)
def test_commands_parse(arguments: list[str], documented_files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line's own way, up to the point where the verb would run."""
    module = importlib.import_module(f"yeoul.commands.{arguments[0]}")
    reached = []
    if hasattr(module, "SUBCOMMANDS"):
        silent = {name: (config, reached.append) for name, (config, _) in module.SUBCOMMANDS.items()}
        monkeypatch.setattr(module, "SUBCOMMANDS", silent)
    else:
        monkeypatch.setattr(module, "run", reached.append)
    cli._dispatch(list(arguments))
    assert len(reached) == 1


@pytest.mark.parametrize(("english", "korean"), TRANSLATED, ids=lambda page: page.name)
def test_translations_have_the_same_commands(english: Path, korean: Path) -> None:
    first, second = (
        [command for block in blocks_of(page) if block.language == "sh" for command in commands_of(block)]
        for page in (english, korean)
    )
    assert first == second


@pytest.mark.parametrize(("english", "korean"), TRANSLATED, ids=lambda page: page.name)
def test_translations_have_the_same_python(english: Path, korean: Path) -> None:
    """But for comments, so that what runs of the one is true of the other."""
    first, second = (
        [ast.dump(ast.parse(block.text)) for block in blocks_of(page) if block.language == "python"]
        for page in (english, korean)
    )
    assert first == second


def test_every_concept_is_short_runs_checks_itself_and_is_in_both_indexes() -> None:
    english = {page for page in CONCEPTS.glob("*.md") if not page.name.endswith(".ko.md")}
    assert english <= {page for page, _ in TRANSLATED}
    for ending in (".md", ".ko.md"):
        index = (CONCEPTS / f"README{ending}").read_text(encoding="utf-8")
        links = [name for name in re.findall(r"\]\(([\w.-]+)\)", index) if not name.startswith("README")]
        expected = [page.name.replace(".md", ending) for page in sorted(english) if page.name != "README.md"]
        assert sorted(links) == expected
    for page in english - {CONCEPTS / "README.md"}:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 60, page.name
        code = "".join(block.text for block in blocks_of(page) if block.language == "python")
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code))), page.name


def test_make_demo_installs_what_the_readme_then_uses() -> None:
    """Its commands run in the environment that `make demo` leaves, and in that of the installation without make."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (demo,) = re.findall(r"\.demo:.*?--editable '\.\[([\w,]+)\]'", makefile, flags=re.S)
    for name in ("README.md", "README.ko.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"--editable '\.\[([\w,]+)\]'", text) == [demo], name
        commands = [words for block in blocks_of(ROOT / name) if block.language == "sh" for words in commands_of(block)]
        assert any("gguf" in words for words in commands) <= ("gguf" in demo.split(","))
        assert {"viz", "data"} <= set(demo.split(","))  # the demo's report; .parquet and .zst


def _known_flags() -> set[str]:
    flags = set(OTHER_FLAGS)
    for verb in cli.VERBS:
        module = importlib.import_module(f"yeoul.commands.{verb}")
        subcommands = getattr(module, "SUBCOMMANDS", None)
        configs = [module.Config] if subcommands is None else [config for config, _ in subcommands.values()]
        for config in configs:
            flags |= set(arguments_by_flag(application(config, verb, {}, "")))
    return flags


def test_every_flag_that_is_named_exists() -> None:
    known = _known_flags()
    wrong = [
        f"{page.relative_to(ROOT)}:{number}: {flag}"
        for page in PAGES
        if "benchmarks" not in page.parts  # programs there have flags of their own
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
        if flag not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_every_verb_is_in_the_readme_and_the_design() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "design.md"):
        text = page.read_text(encoding="utf-8")
        assert not [verb for verb in cli.VERBS if not re.search(rf"\b{verb}\b", text)]


def _anchors(page: Path) -> set[str]:
    """Names of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or not there.is_relative_to(ROOT):
            wrong.append(target)
        elif anchor and anchor not in _anchors(there):
            wrong.append(target)
    assert not wrong, wrong


# -- the map


def _tree() -> dict[Path, bool]:
    """Paths in the design's tree, and whether their contents are listed too."""
    (block,) = [b for b in blocks_of(ROOT / "docs" / "design.md") if b.language == "tree"]
    parents: list[tuple[int, Path]] = [(-1, Path())]
    found: dict[Path, bool] = {}
    for line in block.text.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        while parents[-1][0] >= depth:
            parents.pop()
        path = parents[-1][1] / name
        if len(parents) > 1:
            found[parents[-1][1]] = True
        found[path] = False
        if name.endswith("/"):
            parents.append((depth, path))
    return found


def test_the_design_shows_the_house_as_it_is() -> None:
    tree = _tree()
    assert not [str(path) for path in tree if not (ROOT / path).exists()], "these are not there"
    unlisted = []
    for folder in (path for path, listed in tree.items() if listed):
        for entry in (ROOT / folder).iterdir():
            package = entry.is_dir() and any(entry.glob("*.py"))
            module = entry.suffix == ".py" and (entry.name != "__init__.py" or folder == Path("src/yeoul"))
            if (package or module) and entry.name != "__main__.py" and folder / entry.name not in tree:
                unlisted.append(str(folder / entry.name))
    assert not unlisted, "these are not on the map"


# -- a walk, and Python at its end


RUNNABLE = [
    block
    for block in BLOCKS
    if block.language == "python" and (block.page.parent == ROOT or block.page == GUIDE / "python.md")
]
SNIPPETS = [
    block
    for block in BLOCKS
    if block.language == "python"
    and block.page.parent == CONCEPTS
    and not block.page.name.endswith(".ko.md")  # the same, see above
]


def _walk(home: Path, steps: int = 3) -> None:
    """Tokenizer, pretrain and linearize with the smallest budgets: `home/runs/demo` is as a demo leaves it.

    Args:
        home: where the runs are put.
        steps: how many of the three are gone.
    """
    text, demo = "builtin:150KB", home / "runs" / "demo"
    common = ["--batch-size", "4", "--val-tokens", "500", "--device", "cpu", "--dtype", "float32", "--save-every", "0"]
    commands = [
        ["tokenizer", "train", text, "--vocab-size", "1500", "--out", f"{demo}/tokenizer"],
        ["pretrain", text, "--tokenizer", f"{demo}/tokenizer", "--out", f"{demo}/pretrain", "--preset", "1m",
         "--hidden-size", "32", "--layers", "2", "--heads", "2", "--context", "64", "--tokens", "2e3", *common],
        ["linearize", f"{demo}/pretrain", "--data", text, "--out", f"{demo}/linear", "--tokens", "2000",
         "--window", "8", "--contexts", "32", "128", *common],
    ]  # fmt: skip
    for command in commands[:steps]:
        assert cli.main(command) == 0, command


def _execute(block: Block) -> None:
    lines = "\n" * block.line + block.text  # so that a traceback names the page and its line
    exec(compile(lines, str(block.page), "exec"), {"__name__": "docs"})


def test_the_python_of_the_concepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a tokenizer and a model as a demo leaves them; one test, for the same reason as below."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("YEOUL_DEVICE", "cpu")
    _walk(tmp_path, steps=2)
    monkeypatch.chdir(tmp_path)
    for block in SNIPPETS:
        _execute(block)


def test_a_walk_and_the_python_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One test, because every worker of a parallel run would walk the way again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("YEOUL_DEVICE", "cpu")
    _walk(tmp_path)
    for run in ("pretrain", "linear"):
        folder = str(tmp_path / "runs" / "demo" / run)
        capfd.readouterr()
        assert cli.main(["generate", folder, "옛날", "--max-tokens", "8", "--seed", "0", "--ignore-eos", "--echo"]) == 0
        assert capfd.readouterr().out.startswith("옛날")
    assert (tmp_path / "runs" / "demo" / "linear" / "linearize.json").is_file()
    monkeypatch.chdir(tmp_path)
    for block in RUNNABLE:
        _execute(block)


# -- nothing of the place where it was written


PLACES = {
    "an absolute path of a workplace": re.compile(r"(?<![\w.~/-])/(wo" + r"rk|tm" + r"p/plan)(?=/|\b)(?![\w-])"),
    "a package index": re.compile(r"--(extra-)?index" + r"-url|pypi\.|/sim" + r"ple/"),
    "an issue number": re.compile(r"\bissues? (show )?#?\d"),
}


def test_no_word_of_a_workplace() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so nobody knows which files belong to the project")
    wrong = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # a picture, or a file that is being removed
            continue
        for what, pattern in PLACES.items():
            wrong += [f"{name}: {what}: {match[0]}" for match in pattern.finditer(text)]
    assert not wrong, "\n".join(wrong)
