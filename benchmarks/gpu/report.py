"""Rows of a run: written to a JSON file after each, printed as a table after each stage."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


class DeviceLost(Exception):
    """The device answers no call of this process any more."""


class Report:
    """What a run has found.

    Args:
        out: the JSON file, replaced as a whole after every row.
        head: what the figures were measured on.
        append: keep the stages that the file has.
    """

    def __init__(self, out: Path, head: Mapping[str, Any], *, append: bool = False) -> None:
        self.out = out
        self.values: dict[str, Any] = {"command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]), **head}
        self.values |= {"started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "stages": {}}
        if append and out.exists():
            self.values["stages"] = json.loads(out.read_text(encoding="utf-8"))["stages"]
        self._begin = time.monotonic()
        self._write()

    def title(self) -> str:
        """The device and the software, as one line."""
        return ", ".join(f"{name} {self.values[name]}" for name in ("device", "driver", "torch", "cuda", "triton"))

    def begin(self, stage: str) -> None:
        """Starts a stage, without the rows of an earlier run."""
        self.values["stages"][stage] = {"rows": []}
        print(f"\n== {stage}", flush=True)
        self._stage = time.monotonic()

    def note(self, stage: str, **values: Any) -> None:
        """Takes down values of a stage as a whole."""
        self.values["stages"][stage] |= values
        self._write()

    def row(self, stage: str, row: Row) -> Row:
        """Takes down a row."""
        self.values["stages"][stage]["rows"].append(row)
        self._write()
        print("   " + "  ".join(_cell(name, value) for name, value in row.items() if name in SHOWN), flush=True)
        return row

    def measure(self, stage: str, what: Row, deadline: float, call: Callable[[], Row]) -> Row:
        """A row from a call, or the reason why there is none.

        Args:
            stage: to which it belongs.
            what: names the row.
            deadline: on the monotonic clock, after which nothing is begun any more.
            call: gives what was measured; may raise anything.

        Raises:
            DeviceLost: and then nothing else can be measured.
        """
        if time.monotonic() > deadline:
            return self.row(stage, what | {"skipped": "no time left"})
        try:
            return self.row(stage, what | call())
        except ImportError as error:
            reason = f"{error.name or error} cannot be imported"
        except torch.OutOfMemoryError:
            reason = "out of memory"
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0][:200]}"
            print(traceback.format_exc(limit=-4), file=sys.stderr, flush=True)
        row = self.row(stage, what | {"skipped": reason})
        if torch.cuda.is_available():
            try:
                torch.cuda.empty_cache()
                torch.zeros(1, device="cuda").item()
            except RuntimeError as error:
                raise DeviceLost from error
        return row

    def finish(self, stage: str, columns: Mapping[str, str]) -> None:
        """Ends a stage with its table: column headings by the names of values."""
        self.note(stage, seconds=round(time.monotonic() - self._stage, 2))
        print(table(self.values["stages"][stage]["rows"], columns), flush=True)

    def _write(self) -> None:
        self.values["seconds"] = round(time.monotonic() - self._begin, 2)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        beside = self.out.with_name(self.out.name + ".tmp")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(self.values, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.out)


SHOWN = ("method", "model", "kind", "pass", "shape", "batch", "context", "seconds", "tokens_per_second", "skipped")
"""Values of a row that are printed as soon as it is there."""


def _cell(name: str, value: Any) -> str:
    if name == "seconds":
        return f"{1e3 * value:.3f} ms"
    if name == "skipped":
        return f"({value})"
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value)


def table(rows: list[Row], columns: Mapping[str, str]) -> str:
    """Rows as plain text under headings; those that were skipped show why in place of their last columns."""
    lines = [list(columns.values())]
    reasons = [""]
    for row in rows:
        lines.append([_cell(name, row[name]) if row.get(name) is not None else "" for name in columns])
        reasons.append(f"  ({row['skipped']})" if "skipped" in row else "")
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + reason)
        for line, reason in zip(lines, reasons, strict=True)
    )
