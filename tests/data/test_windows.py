"""Sequences that begin with a token: every row, document and piece, and each token of text learned or scored once."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from yeoul.data.batch import IGNORE, Batch
from yeoul.data.examples import Example, in_pieces
from yeoul.data.loader import PackedLoader, evaluation_batches
from yeoul.data.shards import TokenShards, build_shards
from yeoul.data.windows import TextStream
from yeoul.errors import UserError

BEGINS = [(7000,), (7000, 7001)]
EOS = 9999
LENGTHS = (0, 1, 2, 3, 15, 16, 17, 40, 1, 1, 1, 30, 33, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in which every token says where it stands: 100 * document + place."""
    rows = iter([[100 * number + place for place in range(length)] for number, length in enumerate(LENGTHS)])
    folder = tmp_path_factory.mktemp("shards") / "data"
    build_shards(["x"] * len(LENGTHS), lambda batch: [next(rows) for _ in batch], EOS, 10_000, "f", folder)
    return folder / "train"


def sequences(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Inputs and labels of each sequence of a batch, without padding."""
    found = []
    for row in range(len(batch.input_ids)):
        ids, labels = batch.input_ids[row], batch.labels[row]
        seq = torch.zeros_like(ids) if batch.seq_ids is None else batch.seq_ids[row]
        for number in range(int(seq.max()) + 1):
            found.append((ids[seq == number].tolist(), labels[seq == number].tolist()))
    return found


def check(ids: list[int], labels: list[int], begin: tuple[int, ...]) -> None:
    """It begins as it must, once; labels follow inputs, and none of them is a begin token."""
    size = len(begin)
    assert tuple(ids[:size]) == begin and len(labels) == len(ids)
    assert tuple(ids[size : 2 * size]) != begin
    assert not set(labels) & set(begin)
    for place, token in enumerate(ids[1:]):
        assert labels[place] == (IGNORE if token in begin else labels[place])
        assert labels[place] in (token, IGNORE)
    for before, token in itertools.pairwise(ids):  # every document in it begins so
        if before == EOS:
            assert token == begin[0]


@pytest.mark.parametrize("begin", BEGINS)
@pytest.mark.parametrize("context", [3, 4, 16, 17, 1000])
@pytest.mark.parametrize("isolated", [False, True])
def test_scoring_has_every_token_of_text_once(
    folder: Path, begin: tuple[int, ...], context: int, isolated: bool
) -> None:
    shards = TokenShards.open(folder, begin)
    batches = evaluation_batches(shards, batch_size=3, context=context, isolate_documents=isolated)
    found = [part for batch in batches for part in sequences(batch)]
    scored: list[int] = []
    for ids, labels in found:
        check(ids, labels, begin)
        assert len(ids) <= context and (isolated or len(ids) == context or (ids, labels) == found[-1])
        scored += [label for label in labels if label != IGNORE]
    wanted = shards.tokens.tolist()
    assert Counter(scored) == Counter(wanted) and (isolated or scored == wanted)


@pytest.mark.parametrize("begin", BEGINS)
@pytest.mark.parametrize("context", [5, 16, 33])
@pytest.mark.parametrize("isolated", [False, True])
def test_training_learns_no_text_from_its_middle(
    folder: Path, begin: tuple[int, ...], context: int, isolated: bool
) -> None:
    """Behind a begin token only what documents begin with is learned, and every other token at most once an epoch."""
    shards = TokenShards.open(folder, begin)
    loader = PackedLoader(shards, batch_size=1, context=context, seed=3, isolate_documents=isolated)
    firsts = {int(shards.document(i)[0]) for i in range(shards.num_documents)}
    seen: Counter[int] = Counter()
    while True:
        batch = loader.next_batch()
        if loader.epoch:
            break
        for ids, labels in sequences(batch):
            check(ids, labels, begin)
            assert isolated or len(ids) == context
            for place in range(len(ids)):
                if ids[place] == begin[-1] and labels[place] != IGNORE:
                    assert labels[place] in firsts
            seen.update(label for label in labels if label != IGNORE)
    repeated = [token for token, count in seen.items() if count > 1 and token != EOS]
    assert len(repeated) <= (0 if isolated else len(LENGTHS) * len(begin))
    if isolated:
        assert set(shards.tokens.tolist()) - set(seen) <= {EOS}  # but for the documents of nothing else


def test_training_goes_on_exactly(folder: Path) -> None:
    def new() -> PackedLoader:
        return PackedLoader(TokenShards.open(folder, (7000,)), batch_size=2, context=9, seed=5)

    straight = new()
    states = [straight.state_dict()]
    batches = []
    for _ in range(40):
        batches.append(straight.next_batch())
        states.append(straight.state_dict())
    for step in (0, 3, 30):
        resumed = new()
        resumed.load_state_dict(states[step])
        for batch in batches[step : step + 10]:
            again = resumed.next_batch()
            assert torch.equal(again.input_ids, batch.input_ids) and torch.equal(again.labels, batch.labels)


def test_without_begin_tokens_rows_and_states_are_what_they_were(folder: Path) -> None:
    shards = TokenShards.open(folder)
    loader = PackedLoader(shards, batch_size=2, context=16, seed=1)
    assert "begin" not in loader.state_dict()
    stream = shards.tokens.tolist()
    for _ in range(10):
        for ids, labels in sequences(loader.next_batch()):
            place = next(i for i in range(len(stream)) if stream[i : i + 16] == ids)
            assert stream[place + 1 : place + 17] == labels


def test_a_run_with_other_beginnings_is_not_gone_on_with(folder: Path) -> None:
    """Such as one of a version that gave its rows no begin token."""
    old = PackedLoader(TokenShards.open(folder), context=9)
    new = PackedLoader(TokenShards.open(folder, (7000,)), context=9)
    for one, other in ((old, new), (new, old)):
        with pytest.raises(UserError, match="begin differently"):
            one.load_state_dict(other.state_dict())


def test_a_part_of_the_text_is_scored_by_labels(folder: Path) -> None:
    for begin in BEGINS:
        shards = TokenShards.open(folder, begin)
        batches = evaluation_batches(shards, batch_size=2, context=4, max_tokens=3)
        scored = [label for batch in batches for label in batch.labels.flatten().tolist() if label != IGNORE]
        assert 1 <= len(scored) <= 3 and scored == shards.tokens[: len(scored)].tolist()


def test_a_context_needs_room_for_text(folder: Path) -> None:
    shards = TokenShards.open(folder, (7000, 7001))
    with pytest.raises(UserError, match="context 2|context of 2"):
        PackedLoader(shards, context=2)
    with pytest.raises(UserError, match="context of 2"):
        list(evaluation_batches(shards, batch_size=1, context=2))


def test_the_stream_knows_where_documents_begin() -> None:
    tokens, offsets = np.array([10, 11, 20, 21, 22]), np.array([0, 2, 5])
    stream = TextStream(tokens, offsets, (1, 2))
    assert stream.size == 9
    assert [stream.text_at(place) for place in range(9)] == [2, 2, 2, 3, 6, 6, 6, 7, 8]
    assert [stream.opens(place) for place in range(9)] == [False, False, True, False, False, False, True, False, False]
    ids, given = stream.row(3, 8)
    assert ids.tolist() == [1, 2, 11, 1, 2, 20, 21, 22]
    assert given.tolist() == [True, True, False, True, True, False, False, False]


@pytest.mark.parametrize("begin", [(), (7,), (7, 8)])
@pytest.mark.parametrize("length", [0, 4, 5, 6, 7, 23, 40])
def test_whole_texts_go_on_in_pieces_that_begin_alike(begin: tuple[int, ...], length: int) -> None:
    context = 6
    ids = np.array([*begin, *range(100, 100 + length), 9], dtype=np.int32)
    pieces = list(in_pieces([Example(ids, np.ones(len(ids), dtype=bool))], context, begin))
    learned: list[int] = []
    for number, (part, trained) in enumerate(pieces):
        assert tuple(part[: len(begin)].tolist()) == begin and len(part) <= context + 1
        learned += part[1:][trained[1:]].tolist()
        if number and begin:
            assert not trained[: len(begin) + 1].any()
    assert learned == ids[1:].tolist()


def test_what_is_learned_in_part_stays_whole() -> None:
    example = Example(np.arange(30, dtype=np.int32), np.arange(30) > 20)
    assert [len(part.ids) for part in in_pieces([example], 6, (0,))] == [30]
