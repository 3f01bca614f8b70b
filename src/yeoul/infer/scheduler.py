"""Who is read and who decodes: queue, rows, budgets and fairness of a batch that requests join and leave at any step.

Without tensors. Each step of the engine reads pieces of prompts, `prefill_tokens` together at most, and then draws one
token for everybody who decodes. So nobody who decodes waits for more than that, and whoever is read goes on at every
step. Prompts are read in the order in which they came; a long one gives way to the next after `TURN` pieces and goes on
behind those that are being read by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from yeoul.infer.requests import QueueFull

TURN = 4
"""Pieces of `prefill_tokens` that are read of one prompt before it is the next one's turn."""
SMALLEST = 4
"""A piece that does not end a prompt has at least one in so many of `prefill_tokens`: small ones cost more a token."""


class State(Enum):
    """Where a job is."""

    WAITING = "waiting"
    READING = "reading"
    DECODING = "decoding"
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Job:
    """A request as the scheduler sees it.

    Attributes:
        unread: tokens of its text that have to be read before one is drawn.
        longest: tokens that its text may come to have.
        state: where it is.
        turn: tokens that were read of it since its turn came.
    """

    unread: int
    longest: int
    state: State = State.WAITING
    turn: int = 0


@dataclass(frozen=True)
class Piece:
    """So many tokens of a job that are to be read now."""

    job: Job
    tokens: int


@dataclass(eq=False)
class Scheduler:
    """Jobs from `submit` to `end`. Not safe for several threads.

    Args:
        max_rows: jobs that are read or decode at a time.
        max_waiting: jobs that may wait beyond those for which a row is free.
        prefill_tokens: read at most in a step.
        max_cells: rows times the longest text of one at most, for caches that grow with the text; a job alone is always
            taken. None: no bound.
    """

    max_rows: int
    max_waiting: int
    prefill_tokens: int
    max_cells: int | None = None
    waiting: deque[Job] = field(default_factory=deque)
    reading: deque[Job] = field(default_factory=deque)
    decoding: dict[Job, None] = field(default_factory=dict)
    _budget: int = 0

    def __post_init__(self) -> None:
        for name in ("max_rows", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")

    @property
    def running(self) -> int:
        """Jobs that have a row."""
        return len(self.reading) + len(self.decoding)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or self.decoding)

    def submit(self, job: Job) -> None:
        """Takes a job.

        Raises:
            QueueFull: as many wait as may.
        """
        if len(self.waiting) >= self.max_waiting + self.max_rows - self.running:
            raise QueueFull(f"{len(self.waiting)} requests wait, and no more may")
        assert job.state is State.WAITING and job.unread > 0
        self.waiting.append(job)

    def begin_step(self) -> None:
        """Gives out free rows, first come, first served, and a new budget of tokens to read."""
        self._budget = self.prefill_tokens
        while self.waiting and self.running < self.max_rows and self._fits(self.waiting[0]):
            job = self.waiting.popleft()
            job.state = State.READING
            self.reading.append(job)

    def next_reader(self) -> Job | None:
        """Whose turn it is to be read; None where nobody is, or where too little is left of the step's budget."""
        if not self.reading:
            return None
        job = self.reading[0]
        return job if self._budget >= min(job.unread, max(1, self.prefill_tokens // SMALLEST)) else None

    def piece(self, job: Job) -> Piece:
        """What is to be read of the job whose turn it is."""
        return Piece(job, min(job.unread, self._budget))

    def known(self, job: Job, tokens: int) -> None:
        """So many tokens of a job need not be read, because what is known of them was found; one stays at least."""
        assert job.state is State.READING and 0 <= tokens < job.unread
        job.unread -= tokens

    def read(self, job: Job, tokens: int) -> None:
        """So many tokens of a job have been read; with its last one it decodes."""
        assert job.state is State.READING and 0 < tokens <= job.unread
        job.unread -= tokens
        job.turn += tokens
        self._budget -= tokens
        if not job.unread:
            self._leave(job)
            job.state = State.DECODING
            self.decoding[job] = None
        elif job.turn >= TURN * self.prefill_tokens:
            job.turn = 0
            self._leave(job)
            self.reading.append(job)

    def again(self, job: Job, unread: int) -> None:
        """A job that decodes has to be read anew, and is the next to be read."""
        assert job.state is State.DECODING and unread > 0
        self._leave(job)
        job.state, job.unread, job.turn = State.READING, unread, 0
        self.reading.appendleft(job)

    def end(self, job: Job) -> bool:
        """Takes a job out, wherever it is; whether it was in."""
        if job.state is State.ENDED:
            return False
        self._leave(job)
        job.state = State.ENDED
        return True

    def jobs(self) -> Iterator[Job]:
        """All that have not ended."""
        yield from self.decoding
        yield from self.reading
        yield from self.waiting

    def _leave(self, job: Job) -> None:
        if job.state is State.DECODING:
            del self.decoding[job]
        else:
            (self.reading if job.state is State.READING else self.waiting).remove(job)

    def _fits(self, job: Job) -> bool:
        """Whether there is room for the text of one more."""
        if self.max_cells is None or not self.running:
            return True
        longest = max(job.longest, *(other.longest for other in (*self.reading, *self.decoding)))
        return (self.running + 1) * longest <= self.max_cells
