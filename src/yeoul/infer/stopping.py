"""Text that ends at a stop string, showing nothing that may begin one. Strings only, no tensors."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Reads a text piece by piece and passes on what certainly stands before every stop string.

    Attributes:
        text: everything passed on so far.
        stopped: a stop string was found; from then on nothing is passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.text = ""
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Takes the next piece and returns what may be shown now, perhaps nothing."""
        if self.stopped:
            return ""
        self._held += piece
        found = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._show(min(found))
        return self._show(len(self._held) - self._overlap())

    def flush(self) -> str:
        """What was withheld, when the text has ended otherwise."""
        return "" if self.stopped else self._show(len(self._held))

    def _show(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        self.text += shown
        return shown

    def _overlap(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self.stops):
                return size
        return 0
