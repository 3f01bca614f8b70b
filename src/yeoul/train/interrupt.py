"""Ctrl-C and SIGTERM: finish the step, save, say how to continue."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop, and stopped; what was finished is saved.

    Attributes:
        exit_code: what the command should exit with: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class StopRequests:
    """Notes the first SIGINT or SIGTERM while active; the second one raises `Interrupted` on the spot.

    That does no damage, because a checkpoint is whole or not there. Outside the main thread, where Python
    delivers no signals, this does nothing.

    Attributes:
        requested: number of the signal received, or None.
        at_once: while true (everything is saved, and only validation runs) the first signal already raises.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def _note(self, signum: int, _: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = signum
        if again or self.at_once:
            raise Interrupted(signum)
