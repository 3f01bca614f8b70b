"""Examples in batches: every label once, no leak between conversations, exact resumption."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from models import VOCAB, make
from yeoul.data.batch import IGNORE
from yeoul.data.conversations import Conversation, PlainText, Preference, read_conversations
from yeoul.data.examples import Example, ExampleLoader, example_batches, fit_examples, make_examples
from yeoul.errors import UserError
from yeoul.train.loss import language_model_objective

PAD = 7


def example(number: int, length: int, trained: slice = slice(None)) -> Example:
    """Every token says where it stands: 100 * number + place."""
    mask = np.zeros(length, dtype=bool)
    mask[trained] = True
    return Example(np.arange(100 * number, 100 * number + length, dtype=np.int32), mask)


EXAMPLES = [example(number, 2 + (7 * number) % 40, slice(1 + number % 3, None)) for number in range(1, 60)]
EXAMPLES = [found for found in EXAMPLES if found.trained[1:].any()]


def labels_of(batches) -> list[int]:
    return sorted(label for batch in batches for label in batch.labels[batch.labels != IGNORE].tolist())


def wanted(examples) -> list[int]:
    return sorted(token for ids, trained in examples for token in ids[1:][trained[1:]].tolist())


def check(batch, packing: bool) -> None:
    """A label follows its input inside one example; positions restart; padding is marked."""
    real = batch.seq_ids >= 0
    assert (batch.labels[~real] == IGNORE).all() and (batch.input_ids[~real] == PAD).all()
    for ids, labels, positions, seqs in zip(batch.input_ids, batch.labels, batch.positions, batch.seq_ids, strict=True):
        assert seqs.max() == 0 or packing
        for number in range(int(seqs.max()) + 1):
            inside = seqs == number
            assert len({int(token) // 100 for token in ids[inside]}) == 1
            assert positions[inside].tolist() == [int(token) % 100 for token in ids[inside]]
            follows = labels[inside] == ids[inside] + 1
            assert (follows | (labels[inside] == IGNORE)).all() and follows.any()


def same(left, right) -> bool:
    return all(
        torch.equal(getattr(left, f), getattr(right, f)) for f in ("input_ids", "labels", "positions", "seq_ids")
    )


@pytest.mark.parametrize("packing", [True, False])
def test_one_pass_has_every_label_once(packing):
    batches = list(example_batches(EXAMPLES, batch_size=4, context=48, packing=packing, pad_id=PAD))
    for batch in batches:
        check(batch, packing)
    assert labels_of(batches) == wanted(EXAMPLES)
    filled = sum(int((batch.seq_ids >= 0).sum()) for batch in batches)
    assert filled > (0.9 if packing else 0.75) * sum(batch.input_ids.numel() for batch in batches)


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_has_every_label_once(packing):
    loader = ExampleLoader(EXAMPLES, batch_size=1, context=48, seed=3, packing=packing, pad_id=PAD)
    batches = [[], [], [], []]
    while loader.epoch < 3:
        batch = loader.next_batch()
        check(batch, packing)
        batches[loader.epoch].append(batch)
    orders = [[int(batch.input_ids[0, 0]) for batch in epoch] for epoch in batches[:3]]
    assert all(labels_of(epoch) == wanted(EXAMPLES) for epoch in batches[:3])
    assert orders[0] != orders[1] != orders[2]
    assert loader.tokens == sum(len(ids) - 1 for ids, _ in EXAMPLES)


@pytest.mark.parametrize("batch_size", [7, 100])
def test_padded_batches_reach_into_the_next_epoch(batch_size):
    loader = ExampleLoader(EXAMPLES, batch_size=batch_size, context=48, seed=3, packing=False, pad_id=PAD)
    batches = [loader.next_batch() for _ in range(len(EXAMPLES))]
    assert all(len(batch.input_ids) == batch_size for batch in batches)
    assert labels_of(batches) == sorted(wanted(EXAMPLES) * batch_size)


def test_padded_batches_are_alike_in_length():
    rng = np.random.default_rng(0)
    examples = [example(number, int(length)) for number, length in enumerate(rng.integers(2, 90, 400), 1)]
    loader = ExampleLoader(examples, batch_size=8, context=96, seed=1, packing=False, pad_id=PAD)
    batches = [loader.next_batch() for _ in range(50)]
    assert loader.epoch == 0 and labels_of(batches) == wanted(examples)
    spreads = [(batch.seq_ids >= 0).sum(1).float() for batch in batches]
    assert sum(float(lengths.max() - lengths.min()) for lengths in spreads) / 50 < 6
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert (
        len(set(widths)) > 9
        and not any(width % 8 for width in widths)
        and widths != sorted(widths)
        and widths != sorted(widths, reverse=True)
    )


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5, 80])
def test_resumes_exactly(packing, batch_size):
    options = {"batch_size": batch_size, "context": 40, "packing": packing, "pad_id": PAD}
    loader = ExampleLoader(EXAMPLES, seed=5, **options)
    states, batches = [], []
    for _ in range(40):
        states.append(json.loads(json.dumps(loader.state_dict())))
        batches.append(loader.next_batch())
    for start in (0, 1, 13, 39):
        again = ExampleLoader(EXAMPLES, seed=99, **options)
        again.load_state_dict(states[start])
        assert all(same(again.next_batch(), batch) for batch in batches[start:])
    other = ExampleLoader(EXAMPLES, seed=6, **options)
    assert not all(same(other.next_batch(), batch) for batch in batches)


@pytest.mark.parametrize("packing", [True, False])
def test_ranks_share_the_rows(packing):
    options = {"context": 40, "seed": 2, "packing": packing, "pad_id": PAD}
    whole = ExampleLoader(EXAMPLES, batch_size=6, **options)
    ranks = [ExampleLoader(EXAMPLES, batch_size=2, rank=rank, world_size=3, **options) for rank in range(3)]
    for _ in range(20):
        assert labels_of([whole.next_batch()]) == labels_of([rank.next_batch() for rank in ranks])


def test_the_state_of_other_data_is_refused():
    options = {"batch_size": 2, "context": 40, "seed": 0, "pad_id": PAD}
    state = ExampleLoader(EXAMPLES, packing=True, **options).state_dict()
    changed = [Example(ids, ~trained) if number == 4 else Example(ids, trained)
               for number, (ids, trained) in enumerate(EXAMPLES)]  # fmt: skip
    for other in (
        ExampleLoader(changed, packing=True, **options),
        ExampleLoader(EXAMPLES[:-1], packing=True, **options),
        ExampleLoader(EXAMPLES, packing=False, **options),
        ExampleLoader(EXAMPLES, packing=True, **options | {"context": 41}),
    ):
        with pytest.raises(UserError, match="started with"):
            other.load_state_dict(state)
    with pytest.raises(UserError, match='"epoch" is missing'):
        other.load_state_dict({key: value for key, value in state.items() if key != "epoch"})


def test_long_examples_keep_their_beginning():
    examples = [example(1, 30), example(2, 30, slice(20, None)), example(3, 10), example(4, 1), example(5, 5, slice(1))]
    fitted = fit_examples(examples, 12)
    assert (len(fitted.examples), fitted.cut, fitted.dropped) == (2, 2, 3)
    assert [len(ids) for ids, _ in fitted.examples] == [13, 10]
    loader = ExampleLoader(examples, batch_size=1, context=12, seed=0, packing=True, pad_id=PAD)
    assert (loader.cut, loader.dropped) == (2, 3)
    assert labels_of([loader.next_batch() for _ in range(2)]) == wanted(fitted.examples)
    with pytest.raises(UserError, match="none of 1 examples.*longer context"):
        ExampleLoader(examples[1:2], batch_size=1, context=12, seed=0, packing=True, pad_id=PAD)
    with pytest.raises(UserError, match="none of 0 examples.*more data"):
        list(example_batches([], batch_size=1, context=12, packing=False, pad_id=PAD))
    with pytest.raises(UserError, match="at least 1"):
        ExampleLoader(EXAMPLES, batch_size=0, context=12, seed=0, packing=True, pad_id=PAD)


@pytest.mark.parametrize(
    "kind",
    ["softmax", "learned", "sliding-sinks", "dijiang", "dijiang-decay", "hybrid", "hybrid-bounded", "hybrid-sinks",
     "delta", "delta-hybrid-sinks", "fourier-hybrid", "mixed"],
)  # fmt: skip
def test_the_loss_of_a_conversation_depends_on_nothing_beside_it(kind):
    model = make(kind).double()
    rng = np.random.default_rng(4)
    examples = []
    for length in (24, 3, 17, 40, 9, 2, 31, 12):
        trained = rng.random(length) < 0.6
        trained[-1] = True
        examples.append(Example(rng.integers(0, VOCAB, length).astype(np.int32), trained))

    def loss(chosen, batch_size, packing) -> tuple[float, int]:
        options = {"batch_size": batch_size, "context": 64, "packing": packing, "pad_id": PAD}
        with torch.no_grad():
            losses = [language_model_objective(model, batch) for batch in example_batches(chosen, **options)]
        return sum(float(found.total) for found in losses), sum(found.count for found in losses)

    alone = []
    for ids, trained in examples:
        with torch.no_grad():
            scores = model(torch.from_numpy(ids[None, :-1].astype(np.int64)))[0].log_softmax(-1)
        picked = scores.gather(1, torch.from_numpy(ids[1:, None].astype(np.int64)))[:, 0]
        alone.append(-float(picked[torch.from_numpy(trained[1:])].sum()))
    for number, found in enumerate(examples):
        assert loss([found], 1, True)[0] == pytest.approx(alone[number], rel=1e-6)
    for packing in (True, False):
        total, count = loss(examples, 3, packing)
        assert count == len(wanted(examples))
        assert total == pytest.approx(sum(alone), rel=1e-6)
    # What stands beside the first one changes; its own loss, all labels but its taken away, does not.
    rest = [Example(ids, np.zeros_like(trained)) for ids, trained in examples[1:]]
    for others in (rest, rest[::-1], [Example(ids[::-1].copy(), trained) for ids, trained in rest]):
        marked = [examples[0], *(Example(ids, np.arange(len(ids)) == 1) for ids, _ in others)]
        only = [Example(ids, np.arange(len(ids)) == 1) for ids, _ in others]
        assert loss(marked, 8, True)[0] - loss(only, 8, True)[0] == pytest.approx(alone[0], rel=1e-6)


def render(messages) -> tuple[list[int], list[bool]]:
    if messages[0]["role"] != "user":
        raise UserError("the chat template refuses the messages", "chat template")
    texts = [(ord(char), message["role"] == "assistant") for message in messages for char in message["content"]]
    return [token for token, _ in texts], [trained for _, trained in texts]


def test_records_become_examples(tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"text": "de"},
        {"prompt": "f", "completion": ""},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    make_all = partial(make_examples, render=render, encode=lambda text: [1, *map(ord, text), 2])
    records = read_conversations(path, on_bad_record="skip")
    talk, text = make_all(records)
    assert (records.read, records.skipped) == (2, 2)
    assert f"{path}:2, chat template" in records.complaints[0] and f"{path}:4" in records.complaints[1]
    assert talk.ids.tolist() == [97, 98, 99] and talk.trained.tolist() == [False, False, True]
    assert text.ids.tolist() == [1, 100, 101, 2] and text.trained.all()
    assert talk.ids.dtype == np.int32 and talk.trained.dtype == bool
    with pytest.raises(UserError, match=r"refuses the messages \(.*a\.jsonl:2, chat template\)"):
        make_all(read_conversations(path))
    plain = [PlainText("a", "x:1"), Conversation(({"role": "assistant", "content": "b"},), "x:2")]
    with pytest.raises(UserError, match="x:2"):
        make_all(plain)
    with pytest.raises(TypeError):
        make_all([Preference((), (), (), "x:3")])
