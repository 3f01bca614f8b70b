"""The command line from outside: help at once, one line for what a user can mend, exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import pytest

import yeoul
from yeoul import cli
from yeoul.config import application
from yeoul.errors import UserError

SOURCE = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Config:
    """Try something."""

    name: str
    """What to try."""
    _: KW_ONLY
    times: int = 1
    """How often."""
    config: Path | None = None
    """YAML file."""


Play = Callable[[Callable[[Config], Any]], None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Installs a verb "try" that does what a test wants."""
    module: Any = types.ModuleType("yeoul.commands.try")
    module.Config = Config
    monkeypatch.setitem(sys.modules, "yeoul.commands.try", module)
    monkeypatch.setattr(cli, "VERBS", (*cli.VERBS, "try"))

    def play(run: Callable[[Config], Any]) -> None:
        module.run = run

    yield play


def raising(error: BaseException) -> Callable[[Config], int]:
    def run(config: Config) -> int:
        print("some output")
        raise error

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("yeoul: ") and text.endswith("\n") and text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


def command(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "yeoul", *argv],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        **options,
    )


def test_help_is_quick_and_complete() -> None:
    seconds = []
    for argv in ((), ("--help",), ("-h",), ("--help",), ("--help",)):
        start = time.perf_counter()
        done = command(*argv)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and not done.stderr
    assert min(seconds) <= 0.3
    places = [done.stdout.index(f"\n  {verb} ") for verb in cli.VERBS]
    assert places == sorted(places)
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"yeoul {yeoul.__version__}\n"


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"yeoul.commands.{name}")
    subcommands = getattr(module, "SUBCOMMANDS", None) or {None: (module.Config, module.run)}
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: yeoul {name}" in capsys.readouterr().out
    for sub, (config_class, run) in subcommands.items():
        assert callable(run)
        assert cli.main([name, *([sub] if sub else []), "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert (config_class.__doc__ or "").strip().split("\n")[0] in text
        arguments = application(config_class, "x", {}, "").assemble_argument_collection(parse_docstring=True)
        silent = [a.name for a in arguments if not a.children and not a.parameter.help]
        assert not silent, "flags without a line of help"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pretrian"], ['unknown command "pretrian"', 'did you mean "pretrain"']),
        (["xyzzy"], ['unknown command "xyzzy"', "yeoul --help"]),
        (["--verson"], ['unknown flag "--verson"', 'did you mean "--version"']),
        (["doctor", "--jsn"], ['unknown flag "--jsn"', 'did you mean "--json"']),
        (["info"], ["MODEL is missing"]),
        (["info", "no/such/model/folder"], ["no/such/model/folder"]),
        (["info", "m", "--context", "0"], ["--context"]),
        (["info", "m", "--context", "many"], ["--context", "whole number"]),
        (["tokenizer", "trian"], ['unknown command "tokenizer trian"', 'did you mean "train"']),
        (["pretrain", "--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["pretrain", "--learning-rat", "1"], ["--learning-rat"]),
    ],
)
def test_user_errors(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    line = one_line(capsys)
    for word in words:
        assert word in line


def test_user_error_from_outside() -> None:
    done = command("pretrian")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3)])
def test_exit_code_is_the_commands(verb: Play, result: int | None, code: int) -> None:
    seen: list[Config] = []

    def run(config: Config) -> int | None:
        seen.append(config)
        return result

    verb(run)
    assert cli.main(["try", "this", "--times", "2"]) == code
    assert seen == [Config("this", times=2)]


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", "/data/model.safetensors")


class SafetensorError(Exception):
    """Stands for the one of safetensors, which is recognised by name."""


class OutOfMemoryError(RuntimeError):
    """Stands for torch's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            UserError("the corpus is empty", "a.txt", "give some text"),
            ["the corpus is empty (a.txt); give some text."],
        ),
        (UserError("two\nlines"), ["two lines."]),
        (disk_full(), ["the disk is full (/data/model.safetensors)"]),
        (SafetensorError("I/O error: No space left on device (os error 28)"), ["the disk is full"]),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), ["no permission", "/root/x"]),
        (MemoryError(), ["out of memory"]),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), ["out of memory"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ["out of memory"]),
        (ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow"), ["pyarrow", "yeoul[data]"]),
    ],
)
def test_one_sentence_for_what_a_user_can_mend(
    verb: Play, error: Exception, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(error))
    assert cli.main(["try", "this"]) == 2
    line = one_line(capsys)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        RuntimeError("x"),
        OSError(errno.EIO, "x"),
        ModuleNotFoundError("y", name="yeoul.y"),
        KeyError(1),
    ],
)
def test_a_bug_shows_its_traceback(verb: Play, error: Exception) -> None:
    verb(raising(error))
    with pytest.raises(type(error)):
        cli.main(["try", "this"])


def test_interrupt(verb: Play, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyboardInterrupt()))
    assert cli.main(["try", "this"]) == 130
    assert one_line(capsys) == "yeoul: interrupted.\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "import sys; from yeoul import cli\ncli.overview = lambda: 'line\\n' * 100_000\nsys.exit(cli.main([]))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_stdout_is_one_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "yeoul"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 2 and "disk is full" in done.stderr and done.stderr.count("\n") == 1


def test_terminal_without_korean() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-m", "yeoul", "여울"], capture_output=True, env=environment, timeout=60)
    assert done.returncode == 2 and b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 1


def test_subcommands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = types.ModuleType("yeoul.commands.try", "Try things.")
    module.SUBCOMMANDS = {"once": (Config, lambda config: config.times)}
    monkeypatch.setitem(sys.modules, "yeoul.commands.try", module)
    monkeypatch.setattr(cli, "VERBS", (*cli.VERBS, "try"))
    assert cli.main(["try"]) == 0
    assert "Try things." in (text := capsys.readouterr().out) and "once  Try something." in text
    assert cli.main(["try", "once", "x", "--times", "7"]) == 7
    assert cli.main(["try", "onse"]) == 2
    assert 'did you mean "once"' in one_line(capsys)
    assert cli.main(["try", "once"]) == 2
    assert "NAME is missing (yeoul try once)" in one_line(capsys)
