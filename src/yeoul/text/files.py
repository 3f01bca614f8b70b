"""The files of a tokenizer in a Hugging Face folder: found, read whole, and replaced whole; or those of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yeoul.errors import UserError
from yeoul.files import replace_files
from yeoul.gguf_header import gguf_file
from yeoul.plain_text import without_mark
from yeoul.safe_json import read_bytes
from yeoul.text.gguf_tokenizer import gguf_tokenizer_files, has_tokenizer

PAIR = ("vocab.json", "merges.txt")
"""Byte-level BPE in two files; only together are they a vocabulary."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", *PAIR)
"""The first that is there is used."""
SINGLE = {".json": "tokenizer.json", ".model": "tokenizer.model"}
"""Endings of single files -> what they are."""
BINARY = ("tokenizer.model",)
LARGEST = 2**28
"""Bytes of a file; the largest vocabularies of published models take 40 MB."""
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
TEMPLATES = "additional_chat_templates"
GENERATION = "generation_config.json"
"""Belongs to the model, but names tokens that end a text."""


def find_folder(path: str | Path) -> Path | None:
    """The folder with the vocabulary: `path`, or the `model` folder in it, or a single file; None when there is none.

    A single file is a GGUF file, or a `tokenizer.json` or `tokenizer.model` under whatever name.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        single = any((folder / name).is_file() for name in VOCABULARIES if name not in PAIR)
        if single or all((folder / name).is_file() for name in PAIR):
            return folder
    if path.is_file() and path.suffix in SINGLE:
        return path
    file = gguf_file(path)
    return file if file is not None and has_tokenizer(file) else None


def read_files(folder: Path) -> dict[str, bytes]:
    """All tokenizer files of a folder; a text file comes in UTF-8 and without a byte-order mark.

    Of a GGUF file they are made.

    Raises:
        UserError: one cannot be read; a GGUF file has a tokenizer that is not known here.
    """
    if folder.is_file() and folder.suffix in SINGLE:
        name = SINGLE[folder.suffix]
        beside = read_files(folder.parent) if folder.name == name else {}
        others = {other: data for other, data in beside.items() if other not in VOCABULARIES}
        return others | {name: _read(folder, name)}
    if folder.is_file():
        return gguf_tokenizer_files(folder)
    files: dict[str, bytes] = {}
    templates = sorted(f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja"))
    for name in (*VOCABULARIES, *COMPANIONS, *templates, GENERATION):
        try:
            if not (folder / name).exists():
                continue
        except OSError as error:
            raise UserError(f"the file cannot be read: {error.strerror}", folder / name) from None
        files[name] = _read(folder / name, name)
    return files


def _read(path: Path, name: str) -> bytes:
    """The bytes of a file that plays the part of `name`."""
    try:
        data = read_bytes(path, LARGEST)
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", path) from None
    return data if name in BINARY else without_mark(data)


def put_tokenizer(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put the files of a tokenizer into a folder, and those of another out of it, all in one step."""
    left = [f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja")]
    stale = [name for name in (*VOCABULARIES, *COMPANIONS, *left) if name not in files]
    replace_files(folder, files, stale)
