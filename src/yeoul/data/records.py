"""Documents from files, folders, the hub and the built-in corpus, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from yeoul.data.reading import DEFAULT, Reading
from yeoul.data.sources import Source, Spec, resolve
from yeoul.data.streams import read_lines
from yeoul.data.tables import Selection, keyed_texts, record_documents
from yeoul.errors import UserError

LONGEST_BLOCK = 100_000
"""A block of plain text without blank lines is cut at the first line end after so many characters."""


def read_documents(
    spec: Spec,
    *,
    text_column: str | None = None,
    join_by: str | None = None,
    revision: str | None = None,
    reading: Reading = DEFAULT,
) -> Iterator[str]:
    """Stream the documents of a data specification.

    Formats: .txt (a document is a block of lines between blank lines), .jsonl and .json (strings, objects with a
    column of text, or dialogs `{"dialogs": [{"id", "conversation": [{"speaker", "utterance"}]}]}`), .csv, .tsv
    (never quoted) and .parquet; each also compressed as .xz, .gz or .zst.

    Args:
        spec: file, folder (read recursively, sorted), "builtin", "builtin:5MB", hub data set "org/name"; several
            separated by commas or as a sequence.
        text_column: column of tables and JSON objects that holds the text; None finds it by its usual names.
        join_by: column whose equal values make one document of several records, joined by newlines.
        revision: branch, tag or commit of hub data sets.
        reading: encoding and bounds of the files.

    Returns:
        an iterator over texts that are not blank. Paths are checked at once, contents while reading.

    Raises:
        UserError: wrong path, unknown kind, no text at all, text in another encoding, malformed record, missing column,
            damaged archive; it names the file and, where there is one, the line.
    """
    selection = Selection(text_column=text_column, join_by=join_by)
    return _documents(resolve(spec, revision, reading), selection, reading)


def check_documents(
    spec: Spec, *, text_column: str | None = None, join_by: str | None = None, reading: Reading = DEFAULT
) -> None:
    """Read the first text of each part of a data specification, before anything that takes long is begun.

    Args and errors are those of `read_documents`; what comes behind the first text is not looked at.
    """
    selection = Selection(text_column=text_column, join_by=join_by)
    for source in resolve(spec, reading=reading):
        texts = (
            text
            for path, kind in source.files
            for text in (
                text_blocks(path, reading)
                if kind == ".txt"
                else (text for _, text in keyed_texts(path, kind, selection, reading))
            )
        )
        if not source.builtin_bytes and next(texts, None) is None:
            raise UserError("there is no text in the data", source.name)


def _documents(sources: list[Source], selection: Selection, reading: Reading) -> Iterator[str]:
    for source in sources:
        empty = True
        for document in _source_documents(source, selection, reading):
            if document and not document.isspace():
                empty = False
                yield document
        if empty:
            raise UserError("there is no text in the data", source.name)


def _source_documents(source: Source, selection: Selection, reading: Reading) -> Iterator[str]:
    if source.builtin_bytes:
        from yeoul.data.corpus import generate_documents

        yield from generate_documents(target_bytes=source.builtin_bytes)
    for path, kind in source.files:
        if kind == ".txt":
            yield from text_blocks(path, reading)
        else:
            yield from record_documents(path, kind, selection, reading)


def text_blocks(path: Path, reading: Reading = DEFAULT) -> Iterator[str]:
    """Blocks of lines of a text file, separated by blank lines; very long ones are cut at a line end."""
    block: list[str] = []
    size = 0
    for _, line in read_lines(path, reading):
        if line.strip():
            block.append(line)
            size += len(line)
        if block and (not line.strip() or size >= LONGEST_BLOCK):
            yield "\n".join(block)
            block, size = [], 0
    if block:
        yield "\n".join(block)
