"""When training no longer pays: looks at the loss every so many steps, and ends the run with a short decay."""

from __future__ import annotations

import math
from typing import Any

from yeoul.train.config import TrainConfig
from yeoul.train.optim import learning_rate

MIN_GAIN = 0.01
"""Share of the loss that a window of steps must gain on the one before it."""


class Plateau:
    """Decides where a run ends and what its learning rate is until then.

    The steps are cut into windows of `config.patience`. With m the mean loss of a window and s the standard error of
    the difference of two such means, a run goes on while m_before - m + s >= 1 % of m_before: noise speaks for going
    on. Otherwise the learning rate decays linearly to its last value within half a window more, and the run ends.
    Nothing but the losses decides, so a resumed run ends at the same step.

    Args:
        config: what the run is told.
        start: where a finished run was lengthened; 0 for one that was not.

    Attributes:
        end: number of steps of the run as far as is known; `config.steps` until a plateau is found.
    """

    def __init__(self, config: TrainConfig, start: int = 0) -> None:
        self.config, self.start, self.end = config, start, config.steps
        self._found_at, self._rate = 0, 0.0
        self._now: list[float] = []
        self._before: tuple[float, float] | None = None  # mean loss and squared standard error

    def learning_rate(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        if not self._found_at:
            return learning_rate(self.config, step, self.start)
        low = min(self._rate, self.config.lr * self.config.min_lr_ratio)
        return self._rate + (low - self._rate) * (step - self._found_at + 1) / max(1, self.end - self._found_at)

    def note(self, step: int, loss: float, lr: float) -> bool:
        """Takes in the mean loss and the learning rate of a step; True where it is the one that shows the plateau.

        Args:
            step: steps done, this one included.
        """
        window = self.config.patience
        if not window or self._found_at:
            return False
        self._now.append(loss)
        if len(self._now) < window:
            return False
        mean = sum(self._now) / window
        error = sum((value - mean) ** 2 for value in self._now) / max(1, window - 1) / window
        before, self._before, self._now = self._before, (mean, error), []
        if before is None or before[0] - mean + math.sqrt(before[1] + error) >= MIN_GAIN * abs(before[0]):
            return False
        end = min(self.config.steps, step + max(1, window // 2))
        if end == self.config.steps:
            return False  # the schedule is as short
        self._found_at, self._rate, self.end = step, lr, end
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "end": self.end, "found_at": self._found_at, "rate": self._rate, "now": self._now, "before": self._before,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.end, self._found_at, self._rate = state["end"], state["found_at"], state["rate"]
        self._now = list(state["now"])
        self._before = None if state["before"] is None else (state["before"][0], state["before"][1])
