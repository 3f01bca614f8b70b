"""Texts with a label, and texts that belong together: what classification and embeddings are learned from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from yeoul.data.reading import DEFAULT, Columns, Reading
from yeoul.data.record_files import (
    TEXT_COLUMNS,
    MissingColumn,
    OnBadRecord,
    Records,
    check_column,
    find_column,
    good_records,
    is_unicode,
    listed,
    read_records,
)
from yeoul.data.sources import Spec, resolve
from yeoul.errors import UserError, shown

LABEL_COLUMNS = ("label", "labels", "class", "category", "sentiment", "emotion", "intent", "target")
"""Columns taken for the label when none is named, the first that is there."""
PAIR_COLUMNS = (
    ("sentence1", "sentence2"), ("text1", "text2"), ("sentence_a", "sentence_b"), ("question1", "question2"),
    ("anchor", "positive"), ("query", "positive"), ("question", "answer"), ("Q", "A"),
)  # fmt: skip
"""Columns taken for two texts that belong together when none are named."""
SCORE_COLUMNS = ("score", "similarity", "similarity_score")
NEGATIVE_COLUMNS = ("negative",)
_WHOLE = re.compile(r"-?\d{1,100}")


@dataclass(frozen=True)
class LabelledText:
    """A text and its label as it was written; `where` is the record's place, as "file.tsv:3"."""

    text: str
    label: str
    where: str


@dataclass(frozen=True)
class TextPair:
    """Two texts that belong together, by how much (`score`, None: fully), and perhaps one that does not."""

    first: str
    second: str
    score: float | None
    negative: str | None
    where: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The two, or three with the negative."""
        return (self.first, self.second) if self.negative is None else (self.first, self.second, self.negative)


R = TypeVar("R")


@dataclass
class Table(Generic[R]):
    """What was read, in the order of the files.

    Attributes:
        records: those that can be used.
        skipped: how many cannot; complaints: about the first of them, a sentence each.
    """

    records: list[R] = field(default_factory=list)
    skipped: int = 0
    complaints: list[str] = field(default_factory=list)


def read_labelled(
    spec: Spec,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    on_bad_record: OnBadRecord = "error",
    reading: Reading = DEFAULT,
) -> Table[LabelledText]:
    """Texts and labels of .tsv, .csv, .jsonl, .json and .parquet files, each also compressed.

    Labels are words or whole numbers (also true and false); a number and its text are the same label.

    Args:
        spec: as for `read_documents`, without the built-in corpus and .txt files.
        text_column, label_column: None finds them by their usual names.
        on_bad_record: "error" raises at the first record without text or label, "skip" counts it.
        reading: encoding and bounds of the files.

    Raises:
        UserError: a wrong path, a missing column, a bad record, no record at all; with file and line.
    """
    make = partial(_labelled, text_column=text_column, label_column=label_column)
    return _read(spec, make, on_bad_record, reading)


def read_pairs(
    spec: Spec,
    *,
    pair_columns: tuple[str, str] | None = None,
    score_column: str | None = None,
    on_bad_record: OnBadRecord = "error",
    reading: Reading = DEFAULT,
) -> Table[TextPair]:
    """Pairs of texts, with a score or a negative where the records have one.

    Args:
        spec, on_bad_record, reading: as for `read_labelled`.
        pair_columns: the two texts; None finds them by their usual names.
        score_column: how alike they are, on any scale; None takes a column of `SCORE_COLUMNS` where there is one.

    Raises:
        UserError: as `read_labelled`; or only some of the records have a score or a negative.
    """
    make = partial(_pair, pair_columns=pair_columns, score_column=score_column)
    table = _read(spec, make, on_bad_record, reading)
    first = table.records[0]
    for pair in table.records:
        for name in ("score", "negative"):
            if (getattr(pair, name) is None) != (getattr(first, name) is None):
                has, lacks = (first, pair) if getattr(pair, name) is None else (pair, first)
                what = f"this record has no {name}, but the one at {has.where} has"
                raise UserError(what, lacks.where, "give records of one kind")
    return table


def label_names(labels: Iterable[str]) -> list[str]:
    """The different labels in order: numbers by value where all are whole numbers, else by their characters."""
    names = set(labels)
    if all(_WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


# -- records

_MakeRecord = Callable[[Mapping[str, Any], str], R]


def _read(spec: Spec, make: _MakeRecord[R], on_bad_record: OnBadRecord, reading: Reading) -> Table[R]:
    fix = "give a table with columns (.tsv, .csv, .jsonl, .parquet)"
    records = Records(
        spec, lambda value, where, _: make(value, where), partial(_check_columns, make),
        plain_text=("plain text has neither labels nor pairs", fix), on_bad_record=on_bad_record, reading=reading,
    )  # fmt: skip
    return Table(list(records), records.skipped, records.complaints)


def _check_columns(make: _MakeRecord[R], columns: Columns, path: Path) -> None:
    """Raises where a table lacks a column; the values do not matter yet."""
    try:
        make(dict.fromkeys(columns.names, "1"), str(path))
    except MissingColumn:
        raise
    except UserError:
        return


def _labelled(
    record: Mapping[str, Any], where: str, *, text_column: str | None, label_column: str | None
) -> LabelledText:
    label = _named(record, label_column, LABEL_COLUMNS, "label", where)
    others = {name: value for name, value in record.items() if name != label}
    text = _named(others, text_column, TEXT_COLUMNS, "text", where)
    return LabelledText(_text(record[text], text, where), _label(record[label], label, where), where)


def _pair(
    record: Mapping[str, Any], where: str, *, pair_columns: tuple[str, str] | None, score_column: str | None
) -> TextPair:
    columns = pair_columns or next((pair for pair in PAIR_COLUMNS if all(name in record for name in pair)), None)
    if columns is None:
        fix = "name the two columns with texts (--pair-columns)"
        raise MissingColumn(f"no two columns look like a pair of texts; there are: {listed(record)}", where, fix)
    for name in columns:
        check_column(record, name, where)
    score = find_column(record, score_column, SCORE_COLUMNS, where)
    negative = next((name for name in NEGATIVE_COLUMNS if name in record and name not in columns), None)
    first, second = (_text(record[name], name, where) for name in columns)
    return TextPair(
        first, second, None if score is None else _score(record[score], score, where),
        None if negative is None else _text(record[negative], negative, where), where,
    )  # fmt: skip


def _named(record: Mapping[str, Any], name: str | None, usual: Sequence[str], what: str, where: str) -> str:
    """The column that was named, or the first with a usual name."""
    found = find_column(record, name, usual, where)
    if found is None:
        what, fix = f"no column looks like the {what}; there are: {listed(record)}", f"name it (--{what}-column)"
        raise MissingColumn(what, where, fix)
    return found


def _text(value: Any, name: str, where: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f'the text in "{name}" is empty', where)
    if not isinstance(value, str):
        raise UserError(f'"{name}" does not hold text but {shown(value)}', where)
    if not is_unicode(value):
        raise UserError(f'the text in "{name}" has half of a surrogate pair, which is not a character', where)
    return value


def _label(value: Any, name: str, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f'the label in "{name}" is empty', where)
    if not isinstance(value, str) or not is_unicode(value):
        raise UserError(f'the label in "{name}" must be a word or a whole number, not {shown(value)}', where)
    return value.strip()


def _score(value: Any, name: str, where: str) -> float:
    try:
        score = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = float("nan")
    if not math.isfinite(score):
        raise UserError(f'the score in "{name}" must be a number, not {shown(value)}', where)
    return score


# -- texts alone


def read_texts(spec: Spec, *, text_column: str | None = None, reading: Reading = DEFAULT) -> list[str]:
    """Texts in the order of the files, empty ones too, so that text n stands for line or record n.

    Each line of a .txt file is a text; tables and JSON records have theirs in a column, JSON may also be strings.

    Args:
        spec: as for `read_documents`, without the built-in corpus.
        text_column: None finds it by its usual names.
        reading: encoding and bounds of the files.

    Raises:
        UserError: a wrong path, a missing column, a record that cannot be read, no text at all.
    """
    texts: list[str] = []
    for source in resolve(spec, reading=reading):
        if source.builtin_bytes:
            raise UserError("the built-in corpus has documents, not single texts", source.name, "give a file")
        for path, kind in source.files:
            make = partial(_only_text, text_column=text_column)
            rows = read_records(path, kind, partial(_check_columns, make), reading)
            texts += (value if isinstance(value, str) else make(value, where) for where, value in good_records(rows))
    if not any(text.strip() for text in texts):
        raise UserError("there is no text in the data", str(spec))
    return texts


def _only_text(record: Any, where: str, *, text_column: str | None) -> str:
    if not isinstance(record, Mapping):
        raise UserError("the record is not an object with keys", where)
    name = _named(record, text_column, TEXT_COLUMNS, "text", where)
    value = record[name]
    return _text(value, name, where) if value is not None and (not isinstance(value, str) or value.strip()) else ""
