"""Rows of Parquet files, a few at a time: what a few bytes of a file expand to is never all in memory at once.

Texts that are stored once and referred to many times (a dictionary, as most writers make it) stay so in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from yeoul.data.reading import DEFAULT, CheckColumns, Columns, Reading, Row
from yeoul.data.streams import COMPRESSED, open_bytes, read_bounded
from yeoul.errors import UserError
from yeoul.units import size

_ROWS = 1024
"""Rows that are read at once, at most."""
_BATCH_BYTES = 1 << 24
_BUFFER = 1 << 20
_RATIO = 200
"""No file of real texts expands to this many times its size; only checked beyond `Reading.largest_whole`."""
_MOST_REPEATED = 1 << 26
"""Values of a column of lists in a row group; beyond, each of them has to take at least a quarter of a bit."""


def parquet_rows(path: Path, check_columns: CheckColumns, reading: Reading = DEFAULT) -> Iterator[Row]:
    """Rows as dicts by column; see `record_files.read_records`. Categories and string views are texts as others are.

    Raises:
        UserError: not Parquet, damaged, or columns that could only fill memory.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading .parquet needs the package pyarrow", path, "pip install pyarrow") from error
    with open_bytes(path) as file:
        try:
            packed = path.suffix.lower() in COMPRESSED
            source = pa.BufferReader(read_bounded(file, path, reading)) if packed else pa.PythonFile(file, mode="r")
            table = pq.ParquetFile(source, buffer_size=_BUFFER)
            wanted = check_columns(_columns(pa, table.schema_arrow), path)
            names = list(dict.fromkeys(table.schema_arrow.names if wanted is None else wanted))
            if not names:
                return
            leaves = [leaf for leaf in _leaves(table) if any(f"{leaf.path}.".startswith(f"{name}.") for name in names)]
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            repeated = {leaf.path for leaf in leaves if leaf.max_repetition_level > 0}
            _check_sizes(table.metadata, source.size(), repeated, path, reading)

            def opened(dictionary: list[str]) -> Any:
                return pq.ParquetFile(source, metadata=table.metadata, buffer_size=_BUFFER, read_dictionary=dictionary)

            number = 0
            for batch in _batches(pa, opened, texts, names):
                for value in _values(pa, batch, reading):
                    number += 1
                    where = f"{path}, row {number}"
                    yield where, UserError(value, where) if isinstance(value, str) else value
        except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise UserError(f"the file is not readable as Parquet: {reason}", path) from error


def _batches(pa: Any, opened: Callable[[list[str]], Any], texts: list[str], names: list[str]) -> Iterator[Any]:
    """Rows of a file, a few at a time.

    An encoding in which a text says only how it differs from the one before cannot be read as a dictionary. There a
    long text costs next to nothing, so rows are read one by one.
    """
    table, plain = opened(texts), None
    for group in range(table.num_row_groups):
        stored, count = table.metadata.row_group(group).total_byte_size, table.metadata.row_group(group).num_rows
        rows, done = max(1, min(_ROWS, _BATCH_BYTES * count // max(1, stored))), 0
        try:
            for batch in table.iter_batches(batch_size=rows, row_groups=[group], columns=names, use_threads=False):
                yield batch
                done += batch.num_rows
        except (OSError, pa.ArrowNotImplementedError):  # a damage is found again
            plain = plain or opened([])
            again = plain.iter_batches(batch_size=1, row_groups=[group], columns=names, use_threads=False)
            yield from islice(again, done, None)


def _leaves(table: Any) -> Iterator[Any]:
    """The columns as the file stores them: one for each part of a nested one."""
    return (table.schema.column(number) for number in range(len(table.schema)))


def _columns(pa: Any, schema: Any) -> Columns:
    return Columns(list(schema.names), [field.name for field in schema if _holds_text(pa, field.type)])


def _holds_text(pa: Any, kind: Any) -> bool:
    """Whether a type is text, or a list of texts."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _holds_text(pa, kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _check_sizes(metadata: Any, size_of_file: int, repeated: set[str], path: Path, reading: Reading) -> None:
    """Raises `UserError` where the file itself says that it expands far more than real data do."""
    fix = "if you trust the file, raise --record-mib"
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        if group.total_byte_size > max(reading.largest_whole, _RATIO * size_of_file):
            what = f"the file has {size(size_of_file)}, but says that rows of it have {size(group.total_byte_size)}"
            raise UserError(what, path, fix)
        if not repeated:
            continue  # Arrow ends the process over some damages of what it is asked below
        for column in (group.column(number) for number in range(group.num_columns)):
            if column.path_in_schema in repeated:
                if column.num_values > max(_MOST_REPEATED, 32 * column.total_compressed_size):
                    what = f'the column "{column.path_in_schema}" takes {size(column.total_compressed_size)}, but says '
                    raise UserError(what + f"that it holds {column.num_values:,} values", path, fix)


def _values(pa: Any, batch: Any, reading: Reading) -> Iterator[dict[str, Any] | str]:
    """Rows of an Arrow batch as dicts; a sentence for one that cannot become a dict."""
    values, length = map(sum, zip(*(_weight(pa, column) for column in batch.columns), strict=True))
    small = values <= reading.most_values and length <= reading.largest_record
    if small:
        try:
            yield from batch.to_pylist()
            return
        except UnicodeDecodeError:
            if batch.num_rows == 1:
                yield "the text is not UTF-8"
                return
    elif batch.num_rows == 1:
        yield reading.too_large("the row", "").what
        return
    half = batch.num_rows // 2
    yield from _values(pa, batch.slice(0, half), reading)
    yield from _values(pa, batch.slice(half), reading)


def _weight(pa: Any, array: Any) -> tuple[int, int]:
    """(values, bytes) that an Arrow array becomes as Python's objects, as far as they are data."""
    import pyarrow.compute as pc

    types, kind = pa.types, array.type
    if types.is_dictionary(kind):
        found = array.dictionary
        if not (types.is_string(found.type) or types.is_binary(found.type)):
            return len(array), len(array) * 8
        lengths = pc.take(pc.binary_length(found), array.indices)
        return len(array), pc.sum(lengths.cast(pa.int64())).as_py() or 0
    if types.is_struct(kind):
        parts = array.flatten()
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind) or types.is_fixed_size_list(kind):
        parts = [array.flatten()]
    else:
        return len(array), array.nbytes
    found = [_weight(pa, part) for part in parts]
    return len(array) + sum(values for values, _ in found), sum(length for _, length in found)
