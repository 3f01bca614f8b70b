"""From what a user names as data to the files that hold it."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from yeoul.data.reading import DEFAULT, Reading, looks_like_cp949
from yeoul.data.result_folders import is_result, refuse_result
from yeoul.data.streams import COMPRESSED, open_bytes
from yeoul.errors import UserError
from yeoul.plain_text import marked_encoding
from yeoul.safe_json import JSONError, parse

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Formats that are read, each also with a suffix of `COMPRESSED` behind."""
_ALIASES = {".ndjson": ".jsonl", ".jsonlines": ".jsonl", ".text": ".txt"}
_BEGINNING = 1 << 16
"""Bytes of a file that say whether it is text."""
_JSON = re.compile(r"\s*[\[{]\s*[\[{\"]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x7f]")
_NO_PROSE = (b"%PDF", b"%!PS", b"{\\rtf")
"""Beginnings of files that consist of characters, but hold no text that can be read as it is."""

BUILTIN_BYTES = 5_000_000
"""Size of the built-in corpus when none is given, in bytes of UTF-8."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_SIZE = re.compile(r"builtin(?::(\d+(?:\.\d+)?)\s*(B|KB|MB|GB)?)?", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

Spec = str | Path | Sequence["str | Path"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One part of a data specification: files, or so many bytes of the built-in corpus.

    Attributes:
        name: as the user wrote it.
        files: (path, format) in the order in which they are read; empty for the built-in corpus.
        builtin_bytes: size of the built-in corpus; 0 for files.
    """

    name: str
    files: tuple[tuple[Path, str], ...] = ()
    builtin_bytes: int = 0


def format_of(path: Path) -> str | None:
    """The format of a file by its name, or None when it is none that is read."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    kind = _ALIASES.get(suffixes[-1], suffixes[-1]) if suffixes else None
    return kind if kind in FORMATS else None


def _format_by_content(path: Path, reading: Reading) -> str | None:
    """The format of a file that is text, by its beginning; None for others."""
    if not path.is_file():  # what is read from a pipe is gone
        return None
    with open_bytes(path) as file:
        head = file.read(_BEGINNING)
    codec, length = marked_encoding(head) or (reading.codec or "utf-8", 0)
    try:
        text = codecs.getincrementaldecoder(codec)().decode(head[length:])
    except UnicodeDecodeError as error:
        if not looks_like_cp949(head[error.start :]):
            return None
        text = head.decode("cp949", "replace")  # reading it says what it is
    data = text.encode()
    if _CONTROL.search(data) or data.startswith(_NO_PROSE):
        return None
    if not _JSON.match(text):
        return ".txt"
    first, _, more = text.partition("\n")
    with suppress(JSONError):
        return ".jsonl" if isinstance(parse(first, finite=False), dict) and more else ".json"
    return ".json" if more else ".jsonl"


def _kinds() -> str:
    return f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSED)}"


def _folder_files(folder: Path) -> tuple[tuple[Path, str], ...]:
    """Readable files below a folder, sorted by path; what begins with a dot or is a result of ours is passed over.

    Links to folders are followed. Each folder is read once, however many links lead to it or back up to it.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"the folder cannot be read: {error.strerror}", error.filename)

    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        state = os.stat(root)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_result(Path(root, name)))
        found += [Path(root, name) for name in names if not name.startswith(".")]
    files = [(path, format_of(path)) for path in sorted(found, key=lambda path: path.relative_to(folder).parts)]
    readable = tuple((path, kind) for path, kind in files if kind is not None)
    if not readable:
        raise UserError("the folder holds no file that can be read", folder, f"put text there: {_kinds()}")
    return readable


def _hub_source(name: str, revision: str | None) -> Source:
    """A data set of the Hugging Face hub: its training files, or all when no file name says "train"."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f'there is no file "{name}", and Hub datasets need huggingface_hub', None, "pip install huggingface_hub"
        ) from error
    repo, _, inline = name.partition("@")
    patterns = [f"*{kind}{packed}" for kind in FORMATS for packed in ("", *COMPRESSED)]
    try:
        folder = Path(
            snapshot_download(repo, repo_type="dataset", revision=revision or inline or None, allow_patterns=patterns)
        )
    except Exception as error:  # the hub's client raises its own, httpx's and OSError alike
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise UserError(f'there is no file "{name}", and no such data set came from the hub: {reason}') from error
    files = _folder_files(folder)
    train = tuple(item for item in files if "train" in item[0].relative_to(folder).as_posix().lower())
    return Source(name=name, files=train or files)


def _resolve_one(part: str, revision: str | None, reading: Reading) -> Source:
    builtin = _SIZE.fullmatch(part)
    if builtin:
        size = int(float(builtin[1]) * _UNITS[(builtin[2] or "B").upper()]) if builtin[1] else BUILTIN_BYTES
        if size < 1:
            raise UserError("the built-in corpus needs a size above zero", part, "write, for example, builtin:5MB")
        return Source(name=part, builtin_bytes=size)
    if part.lower().startswith("builtin:"):
        raise UserError("this size cannot be read", part, "write, for example, builtin:5MB")
    path = Path(part).expanduser()
    if path.is_dir():
        refuse_result(path)
        return Source(name=part, files=_folder_files(path))
    if path.exists():
        kind = format_of(path) or _format_by_content(path, reading)
        if kind is None:
            what = "this kind of file is not read, and it is not plain text"
            raise UserError(what, path, f"give plain text or one of: {_kinds()}")
        return Source(name=part, files=((path, kind),))
    if _HUB_ID.fullmatch(part) and format_of(path) is None:
        return _hub_source(part, revision)
    raise UserError("no such file or folder", part)


def resolve(spec: Spec, revision: str | None = None, reading: Reading = DEFAULT) -> list[Source]:
    """The parts of a data specification, files found but not opened.

    Args:
        spec: a file, a folder, "builtin", "builtin:5MB" or a Hub dataset "org/name" (or "org/name@revision"); several
            separated by commas or as a sequence.
        revision: branch, tag or commit of Hub datasets.
        reading: the encoding in which a file with an unknown suffix may be text.

    Raises:
        UserError: something of it is not there or cannot be read.
    """
    parts: list[str] = []
    for item in [spec] if isinstance(spec, str | Path) else spec:
        text = str(item)
        whole = isinstance(item, Path) or "," not in text or Path(text).expanduser().exists()
        parts += [text] if whole else [piece.strip() for piece in text.split(",") if piece.strip()]
    if not parts or not all(parts):
        raise UserError("no data was given", None, 'give a file, a folder, a hub id or "builtin"')
    return [_resolve_one(part, revision, reading) for part in parts]


def source_key(
    spec: Spec,
    *,
    text_column: str | None = None,
    join_by: str | None = None,
    revision: str | None = None,
    reading: Reading = DEFAULT,
) -> str:
    """A digest that changes when the data does: for `build_shards`, which reuses shards with an equal key.

    It covers the names, sizes and modification times of the files, not their content.
    """
    from yeoul.data.builtin import CORPUS_VERSION

    state: list[object] = [text_column, join_by]
    if reading.codec != DEFAULT.codec:  # what a text was read as; left out where it always has been
        state.append(reading.codec)
    for source in resolve(spec, revision, reading):
        if source.builtin_bytes:
            state.append(["builtin", CORPUS_VERSION, source.builtin_bytes])
        for path, _ in source.files:
            stat = path.stat()
            state.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
