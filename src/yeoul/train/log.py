"""What a run reports: metrics.jsonl for programs, a progress line for people, TensorBoard as an option."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from yeoul.files import write_text
from yeoul.lines import fitting, folded
from yeoul.safe_json import parse
from yeoul.units import duration, rate, size


class MetricsLog:
    """An append-only file of JSON lines.

    A run resumed at step s forgets lines past s, so that the final file equals an undisturbed run's, timings
    apart.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; a line torn by a kill is left out."""
        lines = []
        if self.path.exists():
            for text in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    line = parse(text, finite=False)
                except ValueError:
                    continue
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
        return lines

    def truncate(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines past `step`, rewriting the file beside and renaming; returns those kept."""
        kept = [line for line in self.read() if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; it survives a kill at once, and a power cut after `sync`."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make all lines durable."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._file is not None:
            # Every line was flushed when it was added; only one that a full disk refused, and said so, is
            # still here.
            with suppress(OSError):
                self._file.close()
            self._file = None


class Progress:
    """One line, rewritten in place on a terminal and repeated now and then elsewhere.

    Args:
        name: first word of the line.
        steps: total number of steps.
        stream: where to write; standard error by default.
    """

    EVERY_TERMINAL, EVERY_FILE = 0.2, 20.0  # seconds between two lines

    def __init__(self, name: str, steps: int, stream: TextIO | None = None) -> None:
        self.name, self.steps = name, steps
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._last = float("-inf")
        self._open = False

    def due(self) -> bool:
        """Whether the next line may be shown already; asking costs nothing."""
        return time.monotonic() - self._last >= (self.EVERY_TERMINAL if self._terminal else self.EVERY_FILE)

    def show(
        self, step: int, loss: float, lr: float, tokens_per_second: float, seconds_left: float, memory: int
    ) -> None:
        """Show where the run is: loss, learning rate, tokens/s, time left (s), memory (bytes)."""
        parts = [f"loss {loss:.4f}", f"{duration(seconds_left)} left", rate(tokens_per_second), size(memory)]
        self.write(step, [*parts, f"lr {lr:.2e}"])

    def write(self, step: int, parts: list[str]) -> None:
        """Show how many steps are done, and more, the most important first."""
        self._last = time.monotonic()
        share = 100 * step / self.steps
        parts = [f"{self.name} {step:,}/{self.steps:,} ({share:.0f} %)", *parts]
        if self._terminal:
            width = shutil.get_terminal_size().columns
            self._stream.write("\r\x1b[K" + fitting(parts, width - 1))
            self._open = True
        else:
            self._stream.write(" · ".join(parts) + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self.end()
        self._stream.write(folded(text, self._stream) + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the progress line as it is and move below it."""
        if self._open:
            self._stream.write("\n")
            self._open = False


class TensorBoard:
    """Events of the same values in `folder`; needs the package tensorboard."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events past the resumed step are hidden, as metrics.jsonl forgets them.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def append(self, line: dict[str, Any]) -> None:
        """Add the numbers of one metrics line under its kind."""
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{line['kind']}/{key}", value, line["step"])

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process holds on `device` (resident memory on the CPU)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
