"""Killed at any event of the file system, a writer leaves the old result or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from report.test_page import example
from yeoul import cli, files
from yeoul.errors import UserError
from yeoul.files import replace_folder, write_text
from yeoul.model.checkpoint import load_model
from yeoul.recipes.saving import save_folder
from yeoul.report import page
from yeoul.text.files import put_tokenizer
from yeoul.text.tokenizer import Tokenizer
from yeoul.train.runstate import Checkpoints, RunState, random_state

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Writer:
    """A command or a part of it that replaces what stands under `place`.

    Attributes:
        write: version 0 or 1, over whatever is there.
        read: a fingerprint of the whole result; fails where it is not whole.
    """

    write: Callable[[Path, int], Any]
    read: Callable[[Path], str]


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory where there is one: everything is fsynced."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="yeoul-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _at_each_event(act: Callable[[int], None], place: Path, near: bool) -> None:
    """From now on `act` is called with the number of each event that changes the disk, before it happens.

    Args:
        near: of those only that name something directly in `place`.
    """
    count = 0

    def event(*paths: object) -> None:
        nonlocal count
        if not near or any(isinstance(p, str | Path) and Path(p).parent == place for p in paths):
            count += 1
            act(count)

    def audit(name: str, details: tuple[Any, ...]) -> None:
        if name in CHANGES or (name == "open" and isinstance(details[2], int) and details[2] & WRITES):
            event(*details[:2])

    sys.addaudithook(audit)
    fsync, exchange = os.fsync, files._exchange
    os.fsync = lambda descriptor: (event(), fsync(descriptor))[1]  # type: ignore[assignment]
    files._exchange = lambda one, other: (event(one, other), exchange(one, other))[1]


def _in_child(action: Callable[[], object]) -> int:
    """Exit code of a forked child that runs `action`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        action()
        code = 0
    finally:
        os._exit(code)


def _count(writer: Writer, place: Path, near: bool) -> int:
    reading, writing = os.pipe()
    counted: list[int] = []

    def action() -> None:
        _at_each_event(counted.append, place, near)
        writer.write(place, 1)
        os.write(writing, str(len(counted)).encode())

    assert _in_child(action) == 0
    os.close(writing)
    with os.fdopen(reading) as file:
        return int(file.read())


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _litter(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def check(writer: Writer, disk: Path, monkeypatch: pytest.MonkeyPatch, near: bool = False, every: int = 1) -> None:
    """Kill it at each event (or each `every`-th), let the next run fail for a full disk, and let a third one work."""
    first, place = disk / "first" / "place", disk / "work" / "place"
    first.parent.mkdir()
    writer.write(first, 0)
    old = writer.read(first)
    shutil.copytree(first.parent, disk / "work", symlinks=True)
    events = _count(writer, place, near)
    new = writer.read(place)
    assert events > 3 and old != new
    seen = set()
    for number in range(1, events + 1, every):
        shutil.rmtree(disk / "work")
        shutil.copytree(first.parent, disk / "work", symlinks=True)

        def dies(number: int = number) -> None:
            _at_each_event(lambda count: os._exit(9) if count == number else None, place, near)
            writer.write(place, 1)

        assert _in_child(dies) == 9, number
        one_step = files._exchange is not NEVER
        if one_step:
            assert writer.read(place) in (old, new), number
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full)
            with pytest.raises(UserError, match="disk is full"):
                writer.write(place, 1)
        found = writer.read(place)
        assert found in (old, new), number
        seen.add(found)
        if number % 5 == 1 or number == events:
            writer.write(place, 1)
            assert writer.read(place) == new and not _litter(disk / "work"), number
    assert old in seen and (every > 1 or new in seen)


def NEVER(one: Path, other: Path) -> bool:  # noqa: N802
    """An exchange as on systems that have none."""
    return False


def _digest(folder: Path, record: str | None = None) -> str:
    """Of all files and their contents; of a folder with a record that is written again later without the record, and
    without what a killed writer of it left."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if record is not None and (path.name == record or path.name.startswith((".tmp-", ".lock-"))):
            continue
        if path.is_file():
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    assert any(folder.iterdir())
    return found.hexdigest()


def _command(*arguments: object) -> None:
    """A command in this process; its refusals are raised."""
    argv = list(map(str, arguments))
    cli._dispatch(argv)


@pytest.fixture(scope="module")
def models(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that differ in their weights."""
    other = tmp_path_factory.mktemp("other") / "softmax"
    model = load_model(home / "softmax")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_folder(model, Tokenizer.load(home / "softmax"), other)
    return home / "softmax", other


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_folder(disk, monkeypatch, way):
    if way == "two renames":
        monkeypatch.setattr(files, "_exchange", NEVER)

    def write(place: Path, version: int) -> None:
        def fill(new: Path) -> None:
            for name in ("a", "b"):
                (new / name).write_text(str(version))

        replace_folder(place, fill)

    check(Writer(write, _digest), disk, monkeypatch)


def test_file(disk, monkeypatch):
    def write(place: Path, version: int) -> None:
        with files.only_writer(place):
            write_text(place, str(version))

    check(Writer(write, Path.read_text), disk, monkeypatch)


def test_tokenizer_beside_other_files(disk, monkeypatch, home):
    second = Tokenizer.load(home / "softmax").with_template("{{ messages[0].content }}")
    versions = [{"tokenizer.model": b"x", "vocab.json": b"{}"}, second._files]

    def write(place: Path, version: int) -> None:
        put_tokenizer(place, versions[version])
        if not version:
            (place / "config.json").write_text("{}")

    check(Writer(write, _digest), disk, monkeypatch)


def test_checkpoint(disk, monkeypatch):
    def write(place: Path, version: int) -> None:
        with files.only_run(place):
            checkpoints = Checkpoints(place / "checkpoints", 1)
            checkpoints.clean()
            rng, plain = random_state()
            values = {"step": 2, "tokens": version, "seconds": 0.0, "pending": {"count": 0, "loss": 0}, "best": None,
                      "config": {}, "identity": {}, "loader": {}}  # fmt: skip
            state = RunState(values=values, weights={}, optimizer={}, rng=rng, plain_rng=plain)
            checkpoints.save(state, lambda folder: None)

    def read(place: Path) -> str:
        state = Checkpoints(place / "checkpoints", 1).load_newest(print)
        assert state is not None
        return str(state.values["tokens"])

    check(Writer(write, read), disk, monkeypatch)


@pytest.mark.parametrize("flags", [("--format", "hf"), ("--format", "gguf")], ids=["hf", "gguf"])
def test_export(disk, monkeypatch, models, flags):
    pytest.importorskip("gguf")

    def write(place: Path, version: int) -> None:
        _command("export", models[version], *flags, "--out", place, "--overwrite")

    def read(place: Path) -> str:
        return _digest(place) if place.is_dir() else hashlib.sha256(place.read_bytes()).hexdigest()

    check(Writer(write, read), disk, monkeypatch, every=5 if "hf" in flags else 2)


def test_quantize(disk, monkeypatch, models):
    def write(place: Path, version: int) -> None:
        flags = ("--method", "rtn", "--eval-tokens", 0, "--overwrite", "--no-report")
        _command("quantize", models[version], *flags, "--out", place)

    # its record says how many seconds it took, and gets the scores as they become known; the page comes behind it
    check(Writer(write, lambda place: _digest(place, "quantize.json")), disk, monkeypatch, every=11)


def test_embed(disk, monkeypatch, models):
    texts = disk / "t.txt"
    texts.write_text("a\nb\n")

    def write(place: Path, version: int) -> None:
        _command("embed", models[version], "--data", texts, "--out", place.with_suffix(".npy"))

    check(Writer(write, lambda place: str(np.load(place.with_suffix(".npy")))), disk, monkeypatch)


def test_report(disk, monkeypatch):
    monkeypatch.setattr(page.plots, "all_plots", lambda report: [])  # they take long

    def write(place: Path, version: int) -> None:
        report = example()
        with files.only_run(place):
            page.write_report(type(report)(**{**vars(report), "parameters": version}), place)

    for name in ("report.html", "report.md"):
        (disk / name).mkdir()
        check(Writer(write, lambda place, name=name: (place / name).read_text()), disk / name, monkeypatch, every=3)


TRAINING: dict[str, tuple[object, ...]] = {
    "pretrain": ("--preset", "1m", "--hidden-size", 32, "--layers", 1, "--heads", 2, "--kv-heads", 1, "--context", 16,
                 "--batch-size", 2, "--tokens", 64, "--val-fraction", 0),
    "finetune": ("--epochs", 0.1, "--val-fraction", 0),
    "linearize": ("--tokens", 96, "--context", 16, "--batch-size", 1, "--contexts", 16, "--compare-tokens", 0,
                  "--val-tokens", 32),
}  # fmt: skip


@pytest.mark.parametrize("verb", TRAINING)
def test_training_over_a_finished_run(disk, monkeypatch, home, verb):
    """Killed at what happens directly in the run's folder: inside, folders are replaced as wholes."""
    given: dict[str, tuple[object, ...]] = {
        "pretrain": ("builtin:40KB", "--tokenizer", home / "tokenizer"),
        "finetune": (home / "softmax", "--data", home / "dialogs.jsonl"),
        "linearize": (home / "softmax", "--data", "builtin:40KB"),
    }

    def write(place: Path, version: int) -> None:
        flags = ("--seed", version, "--overwrite", "--device", "cpu", "--dtype", "float32", "--out", place)
        _command(verb, *given[verb], *TRAINING[verb], *flags)

    check(Writer(write, lambda place: _digest(place / "model")), disk, monkeypatch, near=True, every=SPARSE[verb])
    assert not [path for path in (disk / "work" / "place").rglob(".tmp-*")]


SPARSE = {"pretrain": 5, "finetune": 5, "linearize": 13}


def _limited(argv: list[str], said: Path, limit: int) -> int:
    """Exit code of a command whose files may have so many bytes; what it says goes to a file, which may too."""
    import resource

    def action() -> None:
        texts = io.StringIO()
        with contextlib.redirect_stderr(texts), contextlib.redirect_stdout(io.StringIO()):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            code = cli.main(argv)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        said.write_text(texts.getvalue())
        os._exit(code)

    return _in_child(action)


@pytest.mark.parametrize(
    "verb", ["export hf", "export gguf", "quantize", "embed", "embed parquet", "tokenizer", *TRAINING]
)
def test_a_limit_of_the_file_size_is_one_sentence(disk, home, verb):
    pytest.importorskip("resource")
    (disk / "t.txt").write_text("강가에 갈까\n" * 2000)
    train = ("--device", "cpu", "--dtype", "float32")
    given: dict[str, tuple[object, ...]] = {
        "export hf": ("export", home / "softmax", "--format", "hf"),
        "export gguf": ("export", home / "softmax"),
        "quantize": ("quantize", home / "softmax", "--method", "rtn", "--eval-tokens", 0),
        "embed": ("embed", home / "softmax", "--data", disk / "t.txt"),
        "embed parquet": ("embed", home / "softmax", "--data", disk / "t.txt"),
        "tokenizer": ("tokenizer", "train", disk / "t.txt", "--vocab-size", 300),
        "pretrain": ("pretrain", "builtin:40KB", "--tokenizer", home / "tokenizer", *TRAINING["pretrain"], *train),
        "finetune": ("finetune", home / "softmax", "--data", home / "dialogs.jsonl", *TRAINING["finetune"], *train),
        "linearize": ("linearize", home / "softmax", "--data", "builtin:40KB", *TRAINING["linearize"], *train),
    }
    out = disk / "out" / {"embed": "v.npy", "embed parquet": "v.parquet"}.get(verb, "result")
    code = _limited(list(map(str, (*given[verb], "--out", out))), disk / "said", 3000)
    said = [line for line in (disk / "said").read_text().splitlines() if line.startswith("yeoul: ")]
    assert code == 2 and len(said) == 1, (disk / "said").read_text()
    assert re.search("limit|largest size", said[0]) and not _litter(disk)
    assert not out.exists() or (out.is_dir() and not (out / "model").exists())
