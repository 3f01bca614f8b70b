"""The engine of a server: whoever comes and goes, each request gets what it would get alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from models import KINDS, VOCAB, make
from yeoul.errors import UserError
from yeoul.infer.engine import generate_ids
from yeoul.infer.params import SamplingParams
from yeoul.infer.requests import Closed, Event, QueueFull, Request
from yeoul.infer.serving import Engine
from yeoul.model.config import RopeScaling
from yeoul.model.decoder import Decoder

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


class Numbers:
    """A tokenizer whose texts are the ids themselves, as Korean syllables; <eos> is 1."""

    vocab_size, bos_id, eos_id, pad_id, stop_ids = VOCAB, None, 1, 0, (1,)

    def token_bytes(self, token: int) -> bytes:
        return chr(0xAC00 + token).encode()

    def stream(self) -> Numbers:
        return self

    def push(self, token: int) -> str:
        return chr(0xAC00 + token)

    def flush(self) -> str:
        return ""


def text_of(ids: Sequence[int]) -> str:
    return "".join(chr(0xAC00 + token) for token in ids)


@dataclass
class Client:
    """Collects the events of one request."""

    request: Request
    events: list[Event] = field(default_factory=list)
    ticket: Any = None

    def __call__(self, event: Event) -> None:
        assert not self.events or self.events[-1].finish_reason is None, "nothing comes behind the end"
        self.events.append(event)

    @property
    def last(self) -> Event:
        return self.events[-1]

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.last.finish_reason is not None

    @property
    def ids(self) -> list[int]:
        return [token.id for event in self.events for token in event.tokens]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def cached(self) -> int:
        assert self.last.usage is not None
        return self.last.usage.cached_tokens


def engine_of(model: Decoder, **settings: Any) -> Engine:
    return Engine(model, Numbers(), **settings)  # type: ignore[arg-type]


def submit(engine: Engine, ids: Sequence[int], params: SamplingParams = GREEDY, **more: Any) -> Client:
    client = Client(Request(ids=tuple(ids), params=params, **more))
    client.ticket = engine.submit(client.request, client)
    return client


def finish(engine: Engine) -> None:
    for _ in range(10_000):
        if not engine.step():
            return
    raise AssertionError("it never ends")


def ask(engine: Engine, ids: Sequence[int], params: SamplingParams = GREEDY, **more: Any) -> Client:
    client = submit(engine, ids, params, **more)
    finish(engine)
    return client


def alone(model: Decoder, ids: Sequence[int], params: SamplingParams = GREEDY) -> list[int]:
    return generate_ids(model, [list(ids)], params, eos_ids=(1,))[0]


def some_ids(chance: random.Random, most: int = 40) -> list[int]:
    return [chance.randrange(2, VOCAB) for _ in range(chance.randrange(1, most))]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_everybody_gets_what_it_would_get_alone(kind: str, native: bool) -> None:
    """Twenty requests that come at random, six at a time; some are cancelled, some begin alike."""
    model, chance = make(kind), random.Random(kind)
    engine = engine_of(model, max_rows=6, prefill_tokens=16, snapshot_every=8, native=native)
    if native and not engine.stats().native:
        pytest.skip("PyTorch alone does this kind")
    clients: list[Client] = []
    cancelled: list[Client] = []
    begin = [chance.randrange(2, VOCAB) for _ in range(30)]
    while len(clients) < 20 or engine.step():
        if len(clients) < 20 and chance.random() < 0.4:
            ids = begin[: chance.randrange(len(begin) + 1)] + some_ids(chance)
            params = SamplingParams(max_tokens=chance.randrange(1, 30), temperature=0)
            clients.append(submit(engine, ids, params))
        if clients and chance.random() < 0.03:
            cancelled.append(chance.choice(clients))
            cancelled[-1].ticket.cancel()
        engine.step()
    for client in clients:
        wanted = alone(model, client.request.ids, client.request.params)
        found = client.ids
        if client.last.finish_reason == "cancelled":
            assert client in cancelled and found == wanted[: len(found)]
            continue
        ended = found[-1:] == [1]
        assert (found[:-1] if ended else found) == wanted
        assert (client.last.finish_reason, client.last.ended_by) == (("stop", "eos") if ended else ("length", None))
        assert client.text == text_of(wanted)
    stats = engine.stats()
    assert stats.decoding == stats.reading == stats.waiting == stats.cache_bytes == 0
    assert sum(stats.finished.values()) == stats.requests == 20 and stats.hits > 0


@pytest.mark.parametrize("kind", ["softmax", "sliding", "dijiang", "delta-hybrid", "mixed"])
def test_32_who_come_at_random_get_what_they_would_get_alone(kind: str) -> None:
    model, chance = make(kind), random.Random(2)
    engine, clients, most = engine_of(model, max_rows=32, prefill_tokens=64), list[Client](), 0
    while len(clients) < 48 or engine.step():
        if len(clients) < 48 and chance.random() < 0.8:
            params = SamplingParams(max_tokens=chance.randrange(5, 90), temperature=0, ignore_eos=True)
            clients.append(submit(engine, some_ids(chance, 38), params))
        engine.step()
        most = max(most, engine.stats().decoding)
    assert most > 24
    for client in clients:
        assert client.ids == alone(model, client.request.ids, client.request.params)


@pytest.mark.parametrize("kind", ["softmax", "exact-delta", "hybrid-sinks", "mixed", "lstm", "sliding"])
def test_a_conversation_reads_only_what_is_new(kind: str) -> None:
    """Turn after turn, an earlier one changed, and a prompt that is asked again: the same ids as without snapshots."""
    model, chance = make(kind), random.Random(1)
    engine, text, lengths = engine_of(model, prefill_tokens=8), [5, 6, 7], []
    for _ in range(4):
        lengths.append(len(text))
        text = text + some_ids(chance, 9)
        client = ask(engine, text, marks=(len(text) - 1,))
        assert client.ids == alone(model, text)
        before = lengths[-1]
        if before > 3:
            assert client.cached >= before - 1  # all but the last token of the answer, which nobody has read
        text = text + client.ids
    again = ask(engine, client.request.ids)
    unread = int(kind == "softmax")  # which keeps only the longest text, and no logits within it
    assert again.ids == client.ids and again.cached == len(again.request.ids) - unread
    assert again.last.usage and again.last.usage.prompt_tokens == len(again.request.ids)
    edited = [*client.request.ids[:-1], 50, 51]
    other = ask(engine, edited)
    assert other.ids == alone(model, edited)
    assert other.cached == len(client.request.ids) - 1  # the mark


@pytest.mark.parametrize("kind", ["softmax", "hybrid", "delta-hybrid"])
def test_choices_of_one_prompt_read_it_once(kind: str) -> None:
    model = make(kind)
    engine, ids = engine_of(model, prefill_tokens=16), [7 * i % 90 + 2 for i in range(60)]
    params = [SamplingParams(max_tokens=20, temperature=1.0, seed=seed) for seed in range(5)]
    clients = [submit(engine, ids, own) for own in params]
    finish(engine)
    assert engine.stats().prompt_tokens == 60 and [client.cached for client in clients] == [0, 60, 60, 60, 60]
    for client, own in zip(clients, params, strict=True):
        found = client.ids[:-1] if client.last.ended_by == "eos" else client.ids
        assert found == alone(model, ids, own)
    assert len({tuple(client.ids) for client in clients}) == 5


def test_snapshots_stay_below_their_bytes_and_can_be_left_out() -> None:
    model, chance = make("hybrid"), random.Random(0)
    engine = engine_of(model, snapshot_bytes=200_000, snapshot_every=8)
    for _ in range(30):
        ask(engine, some_ids(chance))
        assert engine.stats().snapshot_bytes <= 200_000
    assert 3 < engine.stats().snapshots < 90
    for most, keep in ((0, True), (200_000, False)):
        engine = engine_of(model, snapshot_bytes=most)
        for _ in range(2):
            assert ask(engine, range(2, 30), keep=keep).cached == 0
        assert engine.stats().snapshots == 0


def test_settings_are_those_of_each_request() -> None:
    model, chance = make("hybrid-sinks"), random.Random(3)
    settings: list[dict[str, Any]] = [
        dict(temperature=0), dict(temperature=0, repetition_penalty=1.3), dict(temperature=0.9, top_p=0.8, seed=4),
        dict(temperature=0, presence_penalty=1.5, frequency_penalty=0.5), dict(temperature=1.2, top_k=5, seed=9),
        dict(temperature=0, logit_bias={17: 60}), dict(temperature=0.7, min_p=0.1, seed=1, frequency_penalty=1.0),
    ]  # fmt: skip
    params = [SamplingParams(max_tokens=25, ignore_eos=True, **own) for own in settings]
    engine = engine_of(model)
    clients = []
    for own in params:
        clients.append(submit(engine, some_ids(chance), own))
        engine.step()
    finish(engine)
    for client in clients:
        assert client.ids == alone(model, client.request.ids, client.request.params)


def test_a_stop_string_ends_the_text_before_it_and_is_never_shown() -> None:
    model = make("softmax")
    wanted = alone(model, [5, 6, 7])
    stop = text_of(wanted[4:6])
    client = ask(engine_of(model), [5, 6, 7], SamplingParams(max_tokens=12, temperature=0, stop=("ABC", stop)))
    assert client.text == text_of(wanted[:4]) and client.ids == wanted[:6]
    assert (client.last.finish_reason, client.last.ended_by) == ("stop", "string")
    for cut in range(len(client.events)):
        assert stop[0] not in "".join(event.text for event in client.events[:cut])


@torch.no_grad()
def test_logprobs_are_the_models_own() -> None:
    model = make("delta-hybrid")
    params = SamplingParams(max_tokens=6, temperature=0, logit_bias=((9, 90), (11, -50)))
    ids = [5, 6, 7, 8, 90, 12]
    engine = engine_of(model, prefill_tokens=2)
    ask(engine, ids)
    client, other = submit(engine, ids, params, logprobs=3, prompt_logprobs=2), submit(engine, ids, params, logprobs=0)
    finish(engine)
    assert client.ids[0] == 9 and client.cached == 0 and other.cached == len(ids)
    logprobs = model(torch.tensor([ids + client.ids]))[0].log_softmax(-1)
    tokens = [token for event in client.events for token in event.tokens]
    for place, token in enumerate(tokens):
        row = logprobs[len(ids) - 1 + place]
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert [top for top, _ in token.top] == row.topk(3).indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    assert [token.id for event in other.events for token in event.tokens] == client.ids
    assert all(token.top == () for event in other.events for token in event.tokens)
    (prompt,) = [event.prompt for event in client.events if event.prompt is not None]
    assert prompt[0] is None and len(prompt) == len(ids)
    for place, found in enumerate(prompt[1:]):
        assert found is not None and found.id == ids[place + 1]
        assert found.logprob == pytest.approx(logprobs[place, found.id].item(), abs=1e-4) and len(found.top) == 2


class Counting:
    """A grammar of so many tokens, each one more than the last."""

    def __init__(self, first: int, size: int, packed: bool) -> None:
        self.first, self.size, self.packed = first, size, packed

    def matcher(self) -> Counting:
        return Counting(self.first, self.size, self.packed)

    def mask(self) -> np.ndarray:
        allowed = np.zeros(VOCAB, bool)
        allowed[self.first] = True
        return (
            np.packbits(np.pad(allowed, (0, -VOCAB % 32)), bitorder="little").view(np.uint32)
            if self.packed
            else allowed
        )

    def accept(self, token: int) -> None:
        assert token == self.first
        self.first, self.size = self.first + 1, self.size - 1

    def is_done(self) -> bool:
        return self.size == 0


def test_a_grammar_holds_its_own_answer_and_no_other() -> None:
    model = make("hybrid")
    engine = engine_of(model)
    free = submit(engine, [5, 6, 7])
    held = [submit(engine, [5, 6, 7], grammar=Counting(20 + i, 3 + i, bool(i)), logprobs=1) for i in range(2)]
    broken = submit(engine, [5, 6, 7], grammar=Counting(VOCAB - 2, 9, False))
    finish(engine)
    assert free.ids == alone(model, [5, 6, 7])
    for i, client in enumerate(held):
        assert client.ids == list(range(20 + i, 23 + 2 * i)) and client.last.ended_by == "grammar"
    assert broken.last.finish_reason == "error" and broken.ids == [VOCAB - 2, VOCAB - 1]
    assert broken.last.usage and broken.last.usage.error


def test_an_error_ends_those_whom_it_concerns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("hybrid")
    engine = engine_of(model)
    fine, gone = submit(engine, [5, 6]), Client(Request(ids=(5, 6, 7), params=GREEDY))

    def vanish(event: Event) -> None:
        gone(event)
        raise ConnectionError("nobody is there")

    engine.submit(gone.request, vanish)
    finish(engine)
    assert fine.ids == alone(model, [5, 6]) and gone.last.finish_reason == "error" and len(gone.events) == 2

    real = engine._read

    def unreadable(one: Any, start: int, end: int) -> Any:
        if one.text[0] == 66:
            raise MemoryError("too much")
        return real(one, start, end)

    monkeypatch.setattr(engine, "_read", unreadable)
    bad, good = submit(engine, [66, 5]), submit(engine, [8, 9])
    finish(engine)
    assert bad.last.usage and bad.last.usage.error == "too much" and good.ids == alone(model, [8, 9])

    rows = [submit(engine, [10, 11]), submit(engine, [12, 13])]
    engine.step()
    monkeypatch.setattr(engine._rows, "step", lambda tokens: 1 / 0)
    engine.step()
    assert all(client.last.finish_reason == "error" for client in rows)
    after = ask(engine, [10, 11])
    assert after.ids == alone(model, [10, 11]) and after.last.finish_reason == "length"
    assert engine.stats().finished["error"] == 4


def test_numbers_that_are_not_finite_end_the_request_alone() -> None:
    model = make("learned")
    with torch.no_grad():
        model.model.embed_tokens.weight[40] = float("nan")
    for native in (True, False):
        engine = engine_of(model, native=native)
        bias = SamplingParams(max_tokens=12, temperature=0, logit_bias=((40, 100),))
        good, unread, drawn = submit(engine, [5, 6]), submit(engine, [5, 40]), submit(engine, range(5, 30), bias)
        finish(engine)
        assert unread.last.finish_reason == drawn.last.finish_reason == "error" and drawn.ids == [40]
        after = [submit(engine, [7 + i]) for i in range(3)]
        finish(engine)
        for client in (good, *after):
            assert client.ids == alone(model, client.request.ids)
        assert engine.stats().snapshots == 5  # nothing of the two that failed but a prompt


def test_requests_that_cannot_be_answered_are_refused() -> None:
    model = make("softmax")
    engine = engine_of(model, max_rows=1, max_waiting=1)
    for ids in ((), (VOCAB,), (-1,), tuple([5] * 128)):
        with pytest.raises(UserError):
            submit(engine, ids)
    for more in (dict(logprobs=-1), dict(logprobs=VOCAB + 1), dict(marks=(9,))):
        with pytest.raises(UserError):
            submit(engine, [5, 6], **more)
    with pytest.raises(UserError, match="logit-bias"):
        submit(engine, [5], SamplingParams(logit_bias=((VOCAB, 1),)))
    clients = [submit(engine, [5]), submit(engine, [6])]
    with pytest.raises(QueueFull):
        submit(engine, [7])
    finish(engine)
    assert all(client.ended for client in clients)
    last = ask(engine, [5] * 120, SamplingParams(max_tokens=50, temperature=0, ignore_eos=True))
    assert len(last.ids) == 8 and last.last.finish_reason == "length"  # the model's context is full


@pytest.mark.parametrize("when", ["waiting", "reading", "decoding", "ended"])
def test_cancelling_frees_the_row_at_any_time(when: str) -> None:
    model = make("hybrid")
    engine = engine_of(model, max_rows=1, prefill_tokens=4)
    before = submit(engine, [5] * 20) if when == "waiting" else None
    client = submit(engine, [6] * 20)
    engine.step()
    if when != "waiting":
        while when == "decoding" and not client.events:
            engine.step()
        if when == "ended":
            finish(engine)
    client.ticket.cancel()
    client.ticket.cancel()
    engine.step()
    assert client.last.finish_reason == ("length" if when == "ended" else "cancelled")
    if before is not None:
        finish(engine)
        assert before.ids == alone(model, [5] * 20)
    after = ask(engine, [7] * 9)
    assert after.ids == alone(model, [7] * 9)
    assert engine.stats().cache_bytes == 0


def test_a_thread_answers_many_threads_and_drains_at_its_end() -> None:
    model = make("exact-delta")
    engine = engine_of(model, max_rows=4, max_waiting=100)
    engine.start()
    clients: list[Client] = []
    done = threading.Semaphore(0)

    def talk(number: int) -> None:
        chance = random.Random(number)
        for _ in range(5):
            client = Client(Request(ids=tuple(some_ids(chance)), params=GREEDY))

            def told(event: Event, client: Client = client) -> None:
                client(event)
                if client.ended:
                    done.release()

            engine.submit(client.request, told)
            clients.append(client)
            if chance.random() < 0.5:
                assert done.acquire(timeout=60)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close(drain=True)
    assert len(clients) == 20
    for client in clients:
        assert client.ids == alone(model, client.request.ids)
    with pytest.raises(Closed):
        submit(engine, [5])


def test_a_bug_in_the_engine_ends_all_requests_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(make("hybrid"), max_rows=2)
    clients = [submit(engine, [5, 6, 7 + i]) for i in range(4)]
    with monkeypatch.context() as broken:
        broken.setattr(engine._scheduler, "begin_step", lambda: 1 / 0)
        engine.start()
        for _ in range(500):
            if all(client.ended for client in clients):
                break
            time.sleep(0.01)
    assert [client.last.finish_reason for client in clients] == ["error"] * 4
    after = submit(engine, [5, 6])
    engine.close(drain=True)
    assert after.ids == alone(engine.model, [5, 6]) and engine.stats().finished["error"] == 4


def test_closing_without_draining_cancels() -> None:
    engine = engine_of(make("softmax"), max_rows=2)
    clients = [submit(engine, [5, 6], SamplingParams(max_tokens=100, ignore_eos=True)) for _ in range(4)]
    engine.start()
    engine.close(drain=False)
    assert all(client.last.finish_reason == "cancelled" for client in clients)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotations_by_length_are_those_of_each_text(kind: str, tiny: Callable[..., Decoder]) -> None:
    """Texts on both sides of the length, and some that pass it while they are written."""
    scaling = RopeScaling(rope_type="dynamic", factor=2.0)
    if kind == "longrope":
        scaling = RopeScaling(
            rope_type="longrope", original_max_position_embeddings=32, short_factor=(1.0,) * 4,
            long_factor=(2.0, 3.0, 5.0, 9.0),
        )  # fmt: skip
    changes = dict(rope_scaling=scaling, vocab_size=VOCAB, max_position_embeddings=96 if kind == "longrope" else 40)
    for attention in ("softmax", "hybrid") if kind == "longrope" else ("hybrid",):
        model, chance = tiny(attention, **changes), random.Random(5)
        engine = engine_of(model, max_rows=4, prefill_tokens=12, snapshot_every=8)
        params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
        begin, clients = some_ids(chance) + [3] * 20, []
        for size in (10, 15, 20, 28, 33, 40, 45, 20, 31, 38):
            clients.append(submit(engine, (begin * 2)[:size], params))
            engine.step()
        finish(engine)
        for client in clients:
            assert client.ids == alone(model, client.request.ids, params)
        assert engine.stats().hits > 0


@pytest.mark.parametrize("kind", ["softmax", "hybrid", "exact-delta", "lstm"])
def test_what_is_known_of_a_text_goes_on_in_another_engine(kind: str) -> None:
    model, text, more = make(kind), list(range(5, 40)), [3, 7]
    first, second = engine_of(model), engine_of(model)
    ask(first, text)
    assert first.known(text[:-1] + [2]) is None and first.known([]) is None and second.known(text) is None
    cache = first.known(text)
    assert cache is not None
    second.keep(text, cache)
    client = ask(second, text + more)
    assert client.ids == alone(model, text + more) and client.cached >= len(text)
    assert ask(first, text + more).ids == client.ids  # neither has disturbed the other


def test_a_closed_engine_says_so_to_those_who_ask_what_it_knows() -> None:
    engine = engine_of(make("hybrid"))
    engine.start()
    assert engine.alive and engine.known([5, 6]) is None
    engine.close()
    assert not engine.alive
    with pytest.raises(Closed):
        engine.known([5, 6])
