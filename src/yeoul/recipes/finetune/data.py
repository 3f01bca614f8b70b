"""What examples a fine-tuning reads, how they are divided, and how the first of them is shown."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.units import count

if TYPE_CHECKING:
    from yeoul.model.config import ModelConfig
    from yeoul.text.tokenizer import Tokenizer

SHOWN = 60
"""Tokens of the first example that are printed."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ExampleOptions:
    """How examples are read, and which of them validate."""

    text_column: str | None = None
    """Column of tables (key of JSON objects) with the text; with --task chat it is learned as plain text. When not
    given, it is looked up by its usual names."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    val_data: Place | None = None
    """Data for validation; when not given, a share of --data is held out."""
    val_fraction: float = 0.05
    """Share of the examples held out for validation, equal ones kept together; 0 for none."""
    val_max: int = 2000
    """Hold out at most this many examples with --val-fraction."""
    on_bad_record: Literal["error", "skip"] = "error"
    """What to do about an unusable record: stop with its file and line, or skip and count it."""

    def __post_init__(self) -> None:
        check_share(self.val_fraction, "--val-fraction")
        if self.val_max < 1:
            raise UserError(
                f"--val-max is {self.val_max}, but must be at least 1", fix="give --val-fraction 0 for no validation"
            )

    def held_out(self, records: Sequence[T], key: Callable[[T], Hashable]) -> tuple[list[T], list[T]]:
        """`train_val_split` with the share that is asked for."""
        return train_val_split(records, self.val_fraction, self.val_max, key)


def check_share(value: float, flag: str) -> None:
    """UserError unless a value is from 0 to below 1."""
    if not 0 <= value < 1:
        raise UserError(f"{value} is not a share from 0 to below 1", flag)


def train_val_split(
    records: Sequence[T], fraction: float, most: int, key: Callable[[T], Hashable]
) -> tuple[list[T], list[T]]:
    """Records to train on, and to validate on, each in their order.

    Which are which depends on the records alone and on no seed of the training. Records of one key stay on one side:
    what is held out has not been seen.

    Args:
        records: all.
        fraction: share of the validation; 0 is none, else it gets at least one key.
        most: largest number of keys for it.
        key: what makes two records equal.

    Raises:
        UserError: nothing would be left to train on.
    """
    keys = [key(record) for record in records]
    distinct = list(dict.fromkeys(keys))
    held_out = min(most, max(1, round(fraction * len(distinct)))) if fraction else 0
    if held_out >= len(distinct):
        what = f"{count(len(distinct), 'example')} cannot be divided between training and validation"
        raise UserError(what, "--val-fraction", "give more, or --val-fraction 0")
    # Sorted by a digest: as good as drawn, and the same after the data has been put into another order.
    chosen = set(
        sorted(distinct, key=lambda k: hashlib.blake2b(repr(k).encode("utf-8", "surrogatepass")).digest())[:held_out]
    )
    train = [record for record, k in zip(records, keys, strict=True) if k not in chosen]
    return train, [record for record, k in zip(records, keys, strict=True) if k in chosen]


def show_loss_mask(tokenizer: Tokenizer, ids: Sequence[int], trained: Sequence[bool]) -> str:
    """The beginning of an example for people: tokens between bars, those without loss in brackets."""
    parts = []
    for is_trained, run in itertools.groupby(
        list(zip(ids, trained, strict=True))[:SHOWN], key=lambda pair: bool(pair[1])
    ):
        text = "│".join(tokenizer.decode([int(token)], skip_special=False) for token, _ in run).replace("\n", "⏎")
        parts.append(text if is_trained else f"[{text}]")
    more = " …" if len(ids) > SHOWN else ""
    return f"First example (tokens in brackets are not trained on):\n  {'│'.join(parts)}{more}"


def chosen_context(given: int | None, model: ModelConfig, otherwise: int) -> int:
    """Tokens of the longest example: those asked for, else `otherwise`.

    Args:
        given: of --context.
        model: that is trained.
        otherwise: where nothing is asked for.

    Raises:
        UserError: the model has fewer positions than are asked for.
    """
    if given is None:
        return otherwise
    model.check_context(given)
    return given
