"""The scheduler alone: whatever comes and goes, nobody is lost, nobody comes twice, and nobody waits for ever."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.infer.requests import QueueFull
from yeoul.infer.scheduler import SMALLEST, TURN, Job, Scheduler, State


@dataclass
class Client:
    """A job, what it still wants, and what has become of it."""

    job: Job
    prompt: int
    answer: int
    read: list[int] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


class Engine:
    """Plays an engine: reads and draws as the scheduler says, and checks every step."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.clients, self.step_number = scheduler, dict[Job, Client](), 0

    def submit(self, prompt: int, answer: int) -> Client | None:
        client = Client(Job(prompt, prompt + answer), prompt, answer)
        try:
            self.scheduler.submit(client.job)
        except QueueFull:
            assert len(self.scheduler.waiting) >= self.scheduler.max_waiting
            return None
        self.clients[client.job] = client
        return client

    def end(self, client: Client) -> None:
        if self.scheduler.end(client.job):
            client.ended.append(self.step_number)

    def step(self, known: int = 0) -> None:
        scheduler, spent = self.scheduler, 0
        self.step_number += 1
        scheduler.begin_step()
        before = set(scheduler.decoding)
        while (job := scheduler.next_reader()) is not None:
            if known and not self.clients[job].read and job.unread > known:
                scheduler.known(job, known)
            piece = scheduler.piece(job)
            assert piece.tokens > 0
            scheduler.read(job, piece.tokens)
            self.clients[job].read.append(self.step_number)
            spent += piece.tokens
        assert spent <= scheduler.prefill_tokens
        assert before <= set(scheduler.decoding)  # whoever decodes draws at every step
        assert spent > scheduler.prefill_tokens * (1 - 1 / SMALLEST) - 1 or not scheduler.reading
        for job in list(scheduler.decoding):
            client = self.clients[job]
            client.drawn.append(self.step_number)
            if len(client.drawn) == client.answer:
                self.end(client)
        self.check()

    def check(self) -> None:
        scheduler, places = self.scheduler, list(self.scheduler.jobs())
        assert len(places) == len(set(places))
        assert set(places) == {job for job in self.clients if job.state is not State.ENDED}
        assert scheduler.running <= scheduler.max_rows
        running = [*scheduler.reading, *scheduler.decoding]
        if scheduler.max_cells is not None and len(running) > 1:
            assert len(running) * max(job.longest for job in running) <= scheduler.max_cells
        for state, jobs in (
            (State.WAITING, scheduler.waiting), (State.READING, scheduler.reading), (State.DECODING, scheduler.decoding)
        ):  # fmt: skip
            assert all(job.state is state and (job.unread > 0) is (state is not State.DECODING) for job in jobs)
        for client in self.clients.values():
            assert len(client.ended) == (client.job.state is State.ENDED)
            assert client.drawn == sorted(set(client.drawn)) and len(client.drawn) <= client.answer


SIZES = st.builds(
    Scheduler,
    max_rows=st.integers(1, 5),
    max_waiting=st.integers(0, 6),
    prefill_tokens=st.integers(1, 9),
    max_cells=st.none() | st.integers(1, 200),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 60), st.integers(1, 6)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("again"), st.integers(0, 30), st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(0, 3), st.just(0)),
    ),
    max_size=60,
)


@given(SIZES, ACTIONS)
@settings(max_examples=300, deadline=None)
def test_nobody_is_lost_and_everybody_ends_once(scheduler: Scheduler, actions: list[tuple[str, int, int]]) -> None:
    engine = Engine(scheduler)
    for action, a, b in actions:
        if action == "submit":
            engine.submit(a, b)
        elif action == "step":
            engine.step(known=a)
        elif engine.clients:
            client = list(engine.clients.values())[a % len(engine.clients)]
            if action == "cancel":
                engine.end(client)
            elif client.job.state is State.DECODING:
                scheduler.again(client.job, b)
        engine.check()
    while not scheduler.idle:
        engine.step()
    for client in engine.clients.values():
        assert len(client.ended) == 1
    assert scheduler.running == 0


@given(SIZES, st.lists(st.tuples(st.integers(1, 80), st.integers(1, 6)), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_nobody_waits_longer_than_the_work_before(scheduler: Scheduler, wanted: list[tuple[int, int]]) -> None:
    engine = Engine(scheduler)
    clients = [client for prompt, answer in wanted if (client := engine.submit(prompt, answer))]
    started: list[Client] = []
    while not scheduler.idle:
        engine.step()
        for client in clients:
            if client.read and client not in started:
                started.append(client)
    assert started == clients  # first come, first served
    work = 0
    for client in clients:
        work += 2 * client.prompt + (client.answer + 1) * scheduler.prefill_tokens
        assert client.read[0] <= math.ceil(work / scheduler.prefill_tokens) + 1


def test_those_who_decode_draw_at_every_step_while_a_long_prompt_is_read() -> None:
    engine = Engine(Scheduler(max_rows=4, max_waiting=4, prefill_tokens=8))
    quick, long = engine.submit(3, 40), engine.submit(300, 1)
    assert quick and long
    for _ in range(38):
        engine.step()
    assert quick.drawn == list(range(1, 39)) and len(long.drawn) == 1


def test_a_long_prompt_gives_way_to_short_ones_and_still_goes_on() -> None:
    engine = Engine(Scheduler(max_rows=8, max_waiting=8, prefill_tokens=10))
    long = engine.submit(10_000, 1)
    engine.step()
    short = [engine.submit(15, 2) for _ in range(3)]
    for _ in range(TURN + 6):
        engine.step()
    assert long and not long.drawn and long.job.unread < 10_000
    assert all(client and client.ended for client in short)


def test_a_row_that_is_cancelled_is_free_at_once() -> None:
    engine = Engine(Scheduler(max_rows=1, max_waiting=0, prefill_tokens=4))
    first = engine.submit(6, 9)
    assert first and engine.submit(1, 1) is None
    engine.step()
    engine.end(first)
    second = engine.submit(2, 1)
    assert second
    engine.step()
    assert second.ended == [2] and first.ended == [1] and not engine.scheduler.end(first.job)


def test_a_text_too_long_for_the_rest_waits_and_is_not_passed() -> None:
    engine = Engine(Scheduler(max_rows=8, max_waiting=8, prefill_tokens=100, max_cells=100))
    small, large, behind = engine.submit(10, 10), engine.submit(90, 5), engine.submit(1, 1)
    engine.step()
    assert small and large and behind and not large.read and not behind.read
    while not small.ended:
        engine.step()
    engine.step()
    assert large.read and not behind.read  # alone it is taken, and nobody fits beside it


@pytest.mark.parametrize("name", ["max_rows", "prefill_tokens"])
def test_sizes_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Scheduler(**({"max_rows": 1, "max_waiting": 1, "prefill_tokens": 1} | {name: 0}))
