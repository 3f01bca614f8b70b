"""What is written is whole, the old or the new; two writers of one name never meet."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from yeoul import files
from yeoul.errors import UserError

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def _put(folder: Path, text: str) -> None:
    for name in ("a", "sub/b"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def _texts(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch) -> str:
    """Both ways of putting a new folder in the place of an old one."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return str(request.param)


def test_exchange_is_one_step_here(tmp_path):
    if sys.platform not in ("linux", "darwin"):
        pytest.skip("this system cannot exchange two names")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_text() == "b" and (tmp_path / "b").is_dir()
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "a", tmp_path / "none")


def test_replaced_folder_is_old_or_new(tmp_path, way):
    folder = tmp_path / "model"
    files.replace_folder(folder, lambda new: _put(new, "old"))

    def fail(new: Path) -> None:
        _put(new, "new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        files.replace_folder(folder, fail)
    assert _texts(folder) == {"old"} and os.listdir(tmp_path) == ["model"]
    files.replace_folder(folder, lambda new: _put(new, "new"))
    assert _texts(folder) == {"new"} and os.listdir(tmp_path) == ["model"]


def test_what_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "real")
    files.replace_folder(tmp_path / "model", lambda new: _put(new, "new"))
    (tmp_path / "file").symlink_to(tmp_path / "disk" / "text")
    files.write_text(tmp_path / "file", "text")
    assert (tmp_path / "model").is_symlink() and _texts(tmp_path / "disk" / "real") == {"new"}
    assert (tmp_path / "file").is_symlink() and (tmp_path / "disk" / "text").read_text() == "text"


def test_pipes_and_devices_are_written_to(tmp_path):
    with files.only_writer(Path(os.devnull)), files.new_file(Path(os.devnull)) as path:
        path.write_text("x")
    assert not Path(os.devnull).is_file()


def test_files_are_put_into_a_folder_that_keeps_the_rest(tmp_path, way):
    folder = tmp_path / "model"
    _put(folder.mkdir() or folder, "rest")
    (folder / "link").symlink_to("a")
    (folder / "there").symlink_to("sub")
    (folder / "empty").mkdir()
    (folder / "stale").write_text("stale")
    big = folder / "a"
    inode = big.stat().st_ino
    os.chmod(big, 0o640)
    files.replace_files(folder, {"x.json": b"new", "templates/y": b"new"}, ["stale"])
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert found == ["a", "empty", "link", "sub", "sub/b", "templates", "templates/y", "there", "x.json"]
    assert big.stat().st_ino == inode and big.stat().st_mode & 0o777 == 0o640
    assert os.readlink(folder / "link") == "a" and os.listdir(tmp_path) == ["model"]


def test_files_are_put_into_the_folder_one_works_in(tmp_path, monkeypatch):
    _put(tmp_path, "rest")
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    files.replace_files(Path(), {"x.json": b"new"}, ["a"])
    assert Path("x.json").read_text() == "new" and not Path("a").exists() and tmp_path.stat().st_ino == inode


@FORK
def test_second_writer_is_refused_and_a_killed_one_is_not(tmp_path):
    path = tmp_path / "deep" / "model.gguf"
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with files.only_writer(path), files.new_file(path) as beside:
            beside.write_text("half")
            os.write(write, b"x")
            os.read(os.pipe()[0], 1)  # until it is killed
        os._exit(0)
    os.read(read, 1)
    with (
        pytest.raises(UserError, match=r"another process is writing this .*model\.gguf") as error,
        files.only_writer(path),
    ):
        pass
    assert "\n" not in str(error.value) and len(os.listdir(path.parent)) == 2
    os.kill(child, 9)
    os.waitpid(child, 0)
    with files.only_writer(path), files.only_writer(path):
        assert len(os.listdir(path.parent)) == 1  # what it had written is gone
        files.write_text(path, "whole")
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["model.gguf"]


def test_folders_made_for_a_lock_go_when_they_stay_empty(tmp_path):
    with pytest.raises(UserError), files.only_run(tmp_path / "a" / "run"):
        assert (tmp_path / "a" / "run" / ".lock").exists()
        raise UserError("no")
    assert not os.listdir(tmp_path)


def test_old_folder_is_put_back_first(tmp_path):
    _put((tmp_path / ".tmp-old-model").mkdir() or tmp_path / ".tmp-old-model", "old")
    (tmp_path / ".tmp-model").mkdir()  # an earlier version's
    with files.only_writer(tmp_path / "model"):
        assert _texts(tmp_path / "model") == {"old"}
    assert os.listdir(tmp_path) == ["model"]


def test_only_dead_writers_are_cleaned_up_after(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = int(done.stdout)
    kept = [f".tmp-x-{files._HOST}-{os.getpid()}.0", f".tmp-x-00000000-{dead}.0", ".tmp-foreign"]
    for name in (*kept, f".tmp-x-{files._HOST}-{dead}.0"):
        (tmp_path / name).mkdir()
    files.clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("name", ["가" * 80 + ".gguf", "a" * 250])
def test_long_names_leave_room(tmp_path, name):
    with files.only_writer(tmp_path / name):
        files.write_text(tmp_path / name, "x")
    files.replace_folder(tmp_path / "b" / name, lambda new: _put(new, "x"))
    assert os.listdir(tmp_path / "b") == [name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_known_in_all_its_languages(code):
    for error in (OSError(code, "x"), SafetensorError(f"io (os error {code})"), OSError("96 requested and 8 written")):
        assert files.disk_full(error) and "\n" not in str(files.disk_error(error, "x"))
    assert not files.disk_full(OSError(errno.EACCES, "x")) and not files.disk_full(ValueError("os error 28"))


def test_a_limit_of_the_file_size_is_said(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "x").write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="larger than the file system or its limit"):
            files.write_bytes(tmp_path / "x", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "x").read_text() == "old" and os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system that makes no files")
def test_a_place_where_no_file_can_be_made_is_named() -> None:
    with pytest.raises(UserError, match="no file can be made here"), files.only_writer(Path("/proc/new")):
        pass
