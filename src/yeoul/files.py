"""The one place that writes results: beside, fsync, rename, fsync of the folder; one writer for a name at a time.

What stands under a name is whole, the old or the new, whatever is killed at whatever moment. Some names
belong to this module, and each begins with a dot, so that no reader of data or models takes it for one:

    .tmp-NAME-HOST-PID.N   a writer's own, before it is NAME; of a killed one, removed by the next writer of NAME
    .tmp-old-NAME          where two folders cannot be exchanged: the old one, for the moment between two renames
    .lock-NAME             held while NAME is being written; the system lets go of it when the process ends
    .lock                  in a run's folder, held while a process trains there
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from yeoul.errors import UserError

UNFINISHED = ".tmp-"
RUN_LOCK = ".lock"
_OLD, _LOCK = f"{UNFINISHED}old-", ".lock-"
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_OWN = re.compile(rf"{re.escape(UNFINISHED)}(?P<name>.+)-(?P<host>[0-9a-f]{{8}})-(?P<pid>\d+)\.\d+", re.DOTALL)
_LONGEST = 200  # bytes of a name that go into one of ours; systems allow 255

_numbers = itertools.count()
_unfinished: set[Path] = set()  # folders that this process is filling
_held: dict[tuple[int, int, Path], int] = {}  # (process, thread, lock file) -> how often it is held


# -- single files


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name to write under; what is there when the block ends is fsynced and takes the place of `path`.

    Where the block fails nothing is left, and what stood under `path` stays. Its folder is made where it is missing;
    a pipe or a device is written to as it is.

    Raises:
        UserError: the disk is full or cannot be written, or `path` is a folder.
    """
    if path.is_dir():
        raise UserError("this is a folder, not a file", path, "name a file")
    if _is_unfinished(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with disk_errors(path):
        if _is_special(path):
            yield path
            return
        path = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _temporary(path)
        try:
            yield beside
            _share(beside)
            sync(beside)
            os.replace(beside, path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file, whole; raises UserError where the disk does not take it."""
    with new_file(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text in UTF-8, whole; raises UserError where the disk does not take it."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Replace a file by JSON, whole; raises UserError where the disk does not take it."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


# -- folders


def replace_folder(folder: Path, write: Callable[[Path], object], kept: str = "") -> None:
    """Let `write` fill a new folder beside `folder`, then exchange the two in one step.

    Args:
        folder: what is there stays whole until then; where it is a link, what it leads to.
        write: gets the new folder, which exists and is empty.
        kept: a clause for the error's end that says what is not lost.

    Raises:
        UserError: the disk is full or cannot be written, or another process writes this folder; the old one stays.
    """
    folder = Path(os.path.realpath(folder))
    with only_writer(folder), disk_errors(folder, kept), scratch_folder(folder) as new:
        write(new)
        sync_tree(new)
        put_in_place(new, folder)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, on its disk, that is gone when the block ends; the next writer removes a dead one."""
    new = _temporary(path)
    new.mkdir(parents=True)
    _unfinished.add(new)
    try:
        yield new
    finally:
        _unfinished.discard(new)
        shutil.rmtree(new, ignore_errors=True)


def put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what stood there is afterwards found under `new`, or gone.

    At every moment one of the two is whole under the name of `folder`. Only where the system cannot exchange two names
    there is a moment with none: then the old folder stands beside, and the next writer begins by putting it back.
    """
    if not os.path.lexists(folder):
        os.rename(new, folder)
    elif not _exchange(new, folder):
        old = folder.with_name(_OLD + _short(folder.name))
        os.rename(folder, old)
        os.rename(new, folder)
        os.rename(old, new)
    sync(folder.parent)


def replace_files(folder: Path, files: Mapping[str, bytes], remove: Iterable[str] = ()) -> None:
    """Put files into a folder and take others out of it, all in one step: a new folder with links to the rest.

    Args:
        folder: made where it is missing.
        files: contents by their names, which may have a subfolder.
        remove: names of files that go.

    Raises:
        UserError: as `replace_folder`.
    """
    if _is_unfinished(folder):
        _put_files(folder, files, remove)
        return
    place = Path(os.path.realpath(folder))
    if place.is_dir() and (os.path.ismount(place) or _is_here(place)):
        # Such a folder cannot be exchanged, or its user would be left in the old one: one file after the other.
        with only_writer(place), disk_errors(place):
            _put_files(place, files, remove)
        return

    def write(new: Path) -> None:
        gone = {*files, *remove}
        for parent, folders, names in os.walk(place):
            inside = Path(parent).relative_to(place)
            (new / inside).mkdir(exist_ok=True)
            links = [name for name in folders if (place / inside / name).is_symlink()]
            folders[:] = [name for name in folders if name not in links and not _is_ours(name)]
            for name in (*names, *links):
                if (inside / name).as_posix() not in gone and not _is_ours(name):
                    _link(place / inside / name, new / inside / name)
        _put_files(new, files, ())

    replace_folder(place, write)


def _put_files(folder: Path, files: Mapping[str, bytes], remove: Iterable[str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, content)
    for name in remove:
        (folder / name).unlink(missing_ok=True)


def _link(file: Path, new: Path) -> None:
    try:
        os.link(file, new, follow_symlinks=False)
    except (OSError, NotImplementedError):  # FAT has no such links
        shutil.copy2(file, new, follow_symlinks=False)


def remove(path: Path) -> None:
    """Remove a file or a folder, which is gone at once or not at all: half a folder never keeps its name."""
    if not os.path.lexists(path):
        return
    doomed = _temporary(path)
    with disk_errors(path):
        os.rename(path, doomed)
        try:
            sync(path.parent)
        finally:
            delete(doomed)


def delete(path: Path) -> None:
    """Remove a file or a folder as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


# -- one writer for a name


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the right to write `path`, a file or a folder, and begin by mending what a killed writer left.

    May be taken again by the thread that holds it. Folders above that are missing are made; those that stay empty are
    removed again.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    if _is_special(path):
        yield
        return
    path = Path(os.path.realpath(path))
    lock = path.with_name(_LOCK + _short(path.name))
    with (
        _with_parents(path.parent),
        _lock(lock, "another process is writing this", path, lambda alone: _mend(path, alone)),
    ):
        yield


@contextmanager
def only_run(run_dir: Path) -> Iterator[None]:
    """Hold the right to train in a folder, and begin by mending what a killed run left directly in it.

    Raises:
        UserError: another process trains there, or the folder cannot be written.
    """
    run_dir = Path(os.path.realpath(run_dir))
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError("this is a file, not a folder", f"--out {run_dir}", "choose another --out")

    def mend(_: bool) -> None:
        for name in {_named(entry) for entry in os.listdir(run_dir)} - {None}:
            with suppress(UserError), only_writer(run_dir / str(name)):  # another verb may be writing it
                pass

    with (
        _with_parents(run_dir),
        _lock(run_dir / RUN_LOCK, "another process is training in this folder", run_dir, mend),
    ):
        yield


def is_own_run(folder: Path) -> bool:
    """Whether this thread holds the right to train in the folder."""
    return (os.getpid(), threading.get_ident(), Path(os.path.realpath(folder)) / RUN_LOCK) in _held


def is_running(run_dir: Path) -> bool:
    """Whether some process trains in a folder at this moment; False where it cannot be known."""
    file = run_dir / RUN_LOCK
    if not file.is_file():
        return False
    try:
        import fcntl

        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


@contextmanager
def _with_parents(folder: Path) -> Iterator[None]:
    missing = list(itertools.takewhile(lambda parent: not parent.exists(), (folder, *folder.parents)))
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):  # it is in use now
                parent.rmdir()


@contextmanager
def _lock(file: Path, refusal: str, path: Path, mend: Callable[[bool], None]) -> Iterator[None]:
    """Hold a lock file; `mend` is told whether it excludes others, which some file systems cannot do."""
    key = (os.getpid(), threading.get_ident(), file)
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    try:
        descriptor = _locked(file)
    except BlockingIOError:
        raise UserError(refusal, path, "wait for it, or choose another --out") from None
    except FileNotFoundError as error:  # its folder is there: /proc and the like make no files
        raise UserError("no file can be made here", path, "choose another folder") from error
    except OSError as error:
        raise disk_error(error, path) or error from error
    _held[key] = 1
    try:
        with disk_errors(path):
            mend(descriptor is not None)
        yield
    finally:
        del _held[key]
        if descriptor is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)  # while it is held, so that nobody's new one is met
            os.close(descriptor)


def _locked(file: Path) -> int | None:
    """A descriptor that holds the lock, or None where there are no locks; BlockingIOError where another holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except FileNotFoundError:  # its holder removed it between our two steps
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                return None
            raise
        os.close(descriptor)


def _mend(path: Path, alone: bool) -> None:
    """Put an old folder back that was lost between two renames, and remove what dead writers of this name left.

    Args:
        alone: whether no other process can be writing it, as far as the lock says.
    """
    name = _short(path.name)
    old = path.with_name(_OLD + name)
    if os.path.lexists(old) and alone:
        if os.path.lexists(path):
            delete(old)
        else:
            os.rename(old, path)
            sync(path.parent)
    own = {file for file in _unfinished if file.parent == path.parent}
    for entry in os.listdir(path.parent):
        if _named(entry) == name and entry != old.name and path.parent / entry not in own:
            if alone or _is_dead(entry):
                delete(path.parent / entry)


def clean(folder: Path) -> None:
    """Remove what killed writers of any name left directly in a folder."""
    if folder.is_dir():
        for entry in os.listdir(folder):
            if _OWN.fullmatch(entry) and _is_dead(entry):
                delete(folder / entry)


def _named(entry: str) -> str | None:
    """The (shortened) name that a temporary one stands for, in the spelling of this or of an earlier version."""
    if not entry.startswith(UNFINISHED):
        return None
    if own := _OWN.fullmatch(entry):
        return own["name"]
    return entry.removeprefix(_OLD if entry.startswith(_OLD) else UNFINISHED)


def _is_dead(entry: str) -> bool:
    """Whether the process that a temporary name belongs to is known to have ended."""
    own = _OWN.fullmatch(entry)
    if own is None or own["host"] != _HOST or os.name != "posix":
        return False
    try:
        os.kill(int(own["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


# -- names


def _temporary(path: Path) -> Path:
    return path.with_name(f"{UNFINISHED}{_short(path.name)}-{_HOST}-{os.getpid()}.{next(_numbers)}")


def _short(name: str) -> str:
    """The name, or a digest of one that has no room for what is put before and behind it."""
    whole = os.fsencode(name)
    return name if len(whole) <= _LONGEST else hashlib.sha256(whole).hexdigest()[:32]


def _is_ours(name: str) -> bool:
    return name == RUN_LOCK or name.startswith((UNFINISHED, _LOCK))


def _is_special(path: Path) -> bool:
    """A pipe or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_here(folder: Path) -> bool:
    """Whether the process works in this folder or below."""
    with suppress(OSError):
        return Path.cwd().is_relative_to(folder)
    return False


def _is_unfinished(path: Path) -> bool:
    """Whether it lies in a folder that this process is filling, which nobody sees before it is whole."""
    return bool(_unfinished) and any(parent in _unfinished for parent in (path, *path.parents))


# -- the system


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below and including `folder`, and give new files the usual permissions."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(parent) / name
            if not file.is_symlink():
                _share(file)
                sync(file)
        sync(Path(parent))


def _share(file: Path) -> None:
    """What the user's umask allows: safetensors makes its files private. A file with other names is an older one."""
    mask = os.umask(0)
    os.umask(mask)
    state = file.lstat()
    if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
        os.chmod(file, 0o666 & ~mask)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    here, there, swap = os.fsencode(one), os.fsencode(other), 2  # RENAME_EXCHANGE and RENAME_SWAP are both 2
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            current = -100  # AT_FDCWD
            failed = libc.renameat2(current, here, current, there, swap)
        elif sys.platform == "darwin":
            failed = libc.renamex_np(here, there, swap)
        else:
            return False
    except (AttributeError, OSError, TypeError):  # an old C library, or none
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


# -- errors


@contextmanager
def disk_errors(target: Path, kept: str = "") -> Iterator[None]:
    """A disk that refuses becomes a UserError of one sentence, which ends with what is not lost."""
    try:
        yield
    except Exception as error:
        if (told := disk_error(error, target, kept)) is not None:
            raise told from error
        raise


def disk_error(error: Exception, target: Path | str | None, kept: str = "") -> UserError | None:
    """The sentence for an exception of Python, safetensors, NumPy or Arrow that the disk is the cause of, or None."""
    code = _code(error)
    if code in (None, errno.EPIPE, errno.ENOENT, errno.EEXIST):  # a reader that has gone; a fault of ours
        return None
    end = f", and {kept}" if kept else ""
    if getattr(error, "errno", code) is None:
        what = "the disk takes no more: it is full, or a file has reached the largest size that it allows"
        return UserError(what, target, f"free some space, or choose an --out on another disk{end}")
    if code in (errno.ENOSPC, errno.EDQUOT):
        return UserError("the disk is full", target, f"free some space and run the same command again{end}")
    if code == errno.EFBIG:
        what = "a file is larger than the file system or its limit (ulimit -f) allows"
        return UserError(what, target, f"raise the limit or choose an --out on another disk{end}")
    reason = getattr(error, "strerror", None) or os.strerror(code)
    return UserError(f"cannot write: {reason}", target, f"mend that and run the same command again{end}")


def disk_full(error: BaseException) -> bool:
    """Whether an exception says that a file cannot grow: no space, no quota, or a limit of its size."""
    return _code(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _code(error: BaseException) -> int | None:
    """The number of the system's error; that of safetensors' Rust side is only in its text."""
    if isinstance(error, OSError):
        # NumPy says only how much of an array was written.
        return errno.ENOSPC if error.errno is None and "requested and" in str(error) else error.errno
    if type(error).__name__ != "SafetensorError":
        return None
    found = re.search(r"os error (\d+)|code: (\d+),", str(error))
    return int(found[1] or found[2]) if found else None
