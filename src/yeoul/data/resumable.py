"""What the loaders of training batches share: epochs without end, and going on exactly where a run stopped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from yeoul.errors import UserError

T = TypeVar("T")


def generator(seed: int, epoch: int) -> np.random.Generator:
    """A generator of its own for each epoch: global random states are never touched."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))


class ResumableLoader(ABC, Generic[T]):
    """An endless stream of items, epoch after epoch, in an order that depends on the seed alone.

    Args:
        seed: of the order.
        rank, world_size: this process takes every `world_size`-th batch; all processes together draw each item once.

    Attributes:
        epoch: that of the last item drawn.
        index: items of it drawn so far.
    """

    place: object = None
    """Named in errors about a state that belongs to other data."""

    def __init__(self, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.index = 0
        self._items: Iterator[T] | None = None

    @abstractmethod
    def _epoch_items(self, epoch: int) -> Iterator[T]:
        """The items of one epoch, in order."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What has to be the same in a resumed run, as values that JSON can hold."""

    def _next(self) -> T:
        if self._items is None:
            self._items = self._epoch_items(self.epoch)
        item = next(self._items, None)
        while item is None:
            self.epoch, self.index = self.epoch + 1, 0
            self._items = self._epoch_items(self.epoch)
            item = next(self._items, None)
        self.index += 1
        return item

    def _next_of_rank(self, batch_size: int) -> list[T]:
        """The next `batch_size` items of this process; a batch may reach into the next epoch."""
        drawn = [self._next() for _ in range(batch_size * self.world_size)]
        return drawn[self.rank * batch_size : (self.rank + 1) * batch_size]

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, as values that JSON can hold."""
        return {"epoch": self.epoch, "index": self.index, "seed": self.seed, **self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            UserError: the state belongs to other data or settings.
        """
        settings = self._settings()
        for key in ("epoch", "index", "seed", *settings):
            if key not in state:
                raise UserError(f'the position in the data is damaged: "{key}" is missing')
            if key in settings and state[key] != settings[key]:
                raise UserError(
                    f"the run was started with {key} = {state[key]}, now it is {settings[key]}",
                    self.place,
                    "resume with the same data and settings",
                )
        self.seed, self.epoch, self.index = int(state["seed"]), int(state["epoch"]), int(state["index"])
        self._items = islice(self._epoch_items(self.epoch), self.index, None)
