"""The loader: every token in its place, no leak between documents, exact resumption."""

import itertools
import json
import random

import numpy as np
import pytest
import torch

from yeoul.data.batch import IGNORE
from yeoul.data.loader import OPEN_ROWS, PackedLoader, Piece, evaluation_batches, pack_rows
from yeoul.data.shards import build_shards
from yeoul.errors import UserError

EOS = 9999


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """40 documents in which every token says where it stands: 100 * document + place."""
    lengths = [(7 * number) % 50 for number in range(40)]
    rows = iter([[100 * number + place for place in range(length)] for number, length in enumerate(lengths)])
    folder = tmp_path_factory.mktemp("shards") / "data"
    texts = ["x" * length for length in lengths]
    train, _ = build_shards(texts, lambda batch: [next(rows) for _ in batch], EOS, 10_000, "f", folder)
    return train


def same(left, right) -> bool:
    fields = ("input_ids", "labels", "positions", "seq_ids")
    pairs = [(getattr(left, field), getattr(right, field)) for field in fields]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def check_isolated(batch) -> None:
    """Labels follow inputs inside one document; positions restart; padding is marked."""
    real = batch.seq_ids >= 0
    assert (batch.labels[~real] == IGNORE).all() and (batch.positions[~real] == 0).all()
    for ids, labels, positions, seqs in zip(batch.input_ids, batch.labels, batch.positions, batch.seq_ids, strict=True):
        for number in range(int(seqs.max()) + 1):
            inside = seqs == number
            tokens, targets = ids[inside].tolist(), labels[inside].tolist()
            assert positions[inside].tolist() == list(range(len(tokens)))
            assert len({token // 100 for token in tokens}) == 1 and EOS not in tokens
            assert targets[:-1] == tokens[1:]
            assert targets[-1] in (tokens[-1] + 1, EOS)


def test_windows_cover_the_stream_once_an_epoch(shards):
    loader = PackedLoader(shards, batch_size=1, context=16, seed=3)
    seen, shifts, stream = [], set(), shards.tokens.tobytes()
    for epoch in range(4):
        inputs, starts = [], []
        while loader.epoch == epoch:
            state = loader.state_dict()
            batch = loader.next_batch()
            if loader.epoch > epoch:
                loader.load_state_dict({**state, "epoch": epoch + 1, "index": 0})
                break
            assert batch.positions is None and batch.seq_ids is None and batch.input_ids.dtype == torch.int64
            assert batch.input_ids[0, 1:].tolist() == batch.labels[0, :-1].tolist()
            inputs.append(tuple(batch.input_ids[0].tolist()))
            starts.append(stream.find(np.array(inputs[-1], dtype=np.uint16).tobytes()) // 2)
        assert len(set(starts)) == len(starts) == (shards.num_tokens - 1 - min(starts)) // 16
        assert len({start % 16 for start in starts}) == 1
        shifts.add(min(starts))
        seen.append(inputs)
    assert len(shifts) > 1 and seen[0] != sorted(seen[0])


@pytest.mark.parametrize("isolated", [False, True])
def test_resuming_is_exact_at_every_step(shards, isolated):
    def new(seed=5):
        return PackedLoader(shards, batch_size=3, context=16, seed=seed, isolate_documents=isolated)

    straight = new()
    states = [json.loads(json.dumps(straight.state_dict()))]
    batches = []
    for _ in range(60):
        batches.append(straight.next_batch())
        states.append(json.loads(json.dumps(straight.state_dict())))
    assert straight.epoch >= 2
    for step in (0, 1, 7, 30, 59):
        resumed = new(seed=0)
        resumed.load_state_dict(states[step])
        assert all(same(resumed.next_batch(), batch) for batch in batches[step : step + 10])
    assert not same(new(seed=6).next_batch(), batches[0])


def test_states_of_other_data_are_refused(shards):
    loader = PackedLoader(shards, context=16)
    with pytest.raises(UserError, match="context = 16"):
        PackedLoader(shards, context=8).load_state_dict(loader.state_dict())
    with pytest.raises(UserError, match="epoch"):
        loader.load_state_dict({"index": 0})


def test_documents_never_see_one_another(shards):
    loader = PackedLoader(shards, batch_size=4, context=32, isolate_documents=True)
    predicted: list[int] = []
    while loader.epoch == 0:
        batch = loader.next_batch()
        check_isolated(batch)
        if loader.epoch == 0:
            predicted += batch.labels[batch.labels != IGNORE].tolist()
    assert max(predicted.count(label) for label in set(predicted) - {EOS}) == 1
    assert len(predicted) > 0.7 * (shards.num_tokens - shards.num_documents)


def test_an_epoch_of_documents_predicts_each_token_once(shards):
    loader = PackedLoader(shards, batch_size=1, context=32, isolate_documents=True)
    predicted: list[int] = []
    while True:
        batch = loader.next_batch()
        if loader.epoch:
            break
        predicted += batch.labels[batch.labels != IGNORE].tolist()
    firsts = {int(shards.document(index)[0]) for index in range(shards.num_documents)}
    expected = [token for token in shards.tokens.tolist() if token != EOS and token not in firsts]
    assert sorted(label for label in predicted if label != EOS) == sorted(expected)


def test_packing_wastes_little_and_keeps_few_rows_open():
    lengths = np.random.default_rng(0).integers(1, 129, size=5000).tolist()
    rows = list(pack_rows((Piece(0, length) for length in lengths), 128))
    used = [sum(piece.length for piece in row) for row in rows]
    assert sum(used) == sum(lengths) and max(used) <= 128
    assert sum(used) / (128 * len(rows)) > 0.97
    pulled = 0

    def pieces():
        nonlocal pulled
        for length in lengths:
            pulled += 1
            yield Piece(0, length)

    next(pack_rows(pieces(), 128))
    assert pulled <= 3 * OPEN_ROWS


def test_ranks_share_the_rows(shards):
    whole = PackedLoader(shards, batch_size=4, context=16)
    parts = [PackedLoader(shards, batch_size=2, context=16, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(20):
        together = torch.cat([part.next_batch().input_ids for part in parts])
        assert torch.equal(whole.next_batch().input_ids, together)


def test_global_random_states_are_left_alone(shards):
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    loader = PackedLoader(shards, context=16, isolate_documents=True)
    for _ in range(10):
        loader.next_batch()
    list(evaluation_batches(shards, batch_size=2, context=16))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_too_little_text_is_said_in_figures(shards):
    PackedLoader(shards, context=shards.num_tokens - 1).next_batch()
    with pytest.raises(UserError, match=f"{shards.num_tokens:,} tokens"):
        PackedLoader(shards, context=shards.num_tokens)
    with pytest.raises(UserError, match="at least 1"):
        PackedLoader(shards, batch_size=0)


@pytest.mark.parametrize(("batch_size", "context"), [(1, 16), (3, 7), (4, 4096)])
def test_evaluation_scores_each_token_once_in_order(shards, batch_size, context):
    batches = list(evaluation_batches(shards, batch_size=batch_size, context=context))
    scored = list(itertools.chain(*(batch.labels[batch.labels != IGNORE].tolist() for batch in batches)))
    assert scored == shards.tokens[1:].tolist()
    assert all(batch.seq_ids is None for batch in batches[:-1])
    last = batches[-1]
    assert last.seq_ids is None or ((last.seq_ids == -1) == (last.labels == IGNORE)).all()


def test_evaluation_of_a_part_and_of_documents(shards):
    batches = list(evaluation_batches(shards, batch_size=2, context=16, max_tokens=100))
    assert sum(int((batch.labels != IGNORE).sum()) for batch in batches) == 100
    batches = list(evaluation_batches(shards, batch_size=2, context=32, isolate_documents=True))
    for batch in batches:
        check_isolated(batch)
    count = sum(int((batch.labels != IGNORE).sum()) for batch in batches)
    assert count == sum(max(len(shards.document(index)) - 1, 0) for index in range(shards.num_documents))
