"""Groups of settings that several recipes share, and progress messages."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.documents import check_documents
from yeoul.data.reading import Reading

if TYPE_CHECKING:
    from yeoul.train.log import Progress

Say = Callable[[str], None]
"""Called with progress messages."""


def silent(text: str) -> None:
    """A `Say` that does nothing."""


def progress_line(name: str, steps: int, say: Say) -> Progress | None:
    """Where a training shows its progress line: standard error, or nowhere beside a `silent` recipe."""
    from yeoul.train.log import Progress

    return Progress(name, steps, stream=io.StringIO()) if say is silent else None


@contextmanager
def given_or_temporary(out: str | Path | None) -> Iterator[Path]:
    """The folder that is given, or one that is gone at the end."""
    if out is not None:
        yield Path(out).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="yeoul-") as folder:
        yield Path(folder)


def changed(group: Any) -> list[str]:
    """Flags of a group of settings that have not their default values."""
    default = type(group)()
    names = (f.name for f in fields(group) if getattr(group, f.name) != getattr(default, f.name))
    return [f"--{name.replace('_', '-')}" for name in names]


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text is read, and what is held out for validation."""

    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; by default, the usual names are tried."""
    join_by: str | None = None
    """Column to group records by: records with the same value become one document."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """How files are read."""
    val_data: Place | None = None
    """Text for validation; by default, a share of --data is held out."""
    val_fraction: float = 0.01
    """Share of the documents held out for validation; 0 for none."""

    def check(self, data: str) -> None:
        """What is wrong with the texts from their first lines on, before a model is loaded.

        Raises:
            UserError: it cannot be read.
        """
        for text in (data, self.val_data):
            if text is not None:
                check_documents(text, text_column=self.text_column, join_by=self.join_by, reading=self.reading)
