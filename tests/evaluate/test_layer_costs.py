"""What distance is worth in each layer, and which layers stay softmax for it."""

from __future__ import annotations

import pytest
import torch

from models import VOCAB, make
from yeoul.data.batch import Batch
from yeoul.evaluate.layer_costs import layer_costs, layers_to_keep, shared_out
from yeoul.evaluate.long_context import cut_teacher
from yeoul.evaluate.perplexity import score


def batches() -> list[Batch]:
    ids = torch.randint(0, VOCAB, (2, 41), generator=torch.Generator().manual_seed(3))
    return [Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])]


@torch.no_grad()
def test_a_cost_is_what_cutting_that_layer_alone_loses() -> None:
    teacher = make("softmax").requires_grad_(False)
    whole = score(teacher, batches(), None).loss
    before = [block.self_attn for block in teacher.layers]
    costs = layer_costs(teacher, batches, window=4, sinks=1)
    assert [block.self_attn for block in teacher.layers] == before
    assert score(teacher, batches(), None).loss == whole
    cut = cut_teacher(teacher, 4, 1)
    cut.layers[1].self_attn = teacher.layers[1].self_attn  # only layer 0 is cut
    assert costs[0] == pytest.approx(score(cut, batches(), None).loss - whole, abs=1e-6)
    assert set(costs) == {0, 1} and abs(costs[0]) > 1e-4


def test_nothing_is_lost_where_the_window_covers_the_text() -> None:
    costs = layer_costs(make("softmax").requires_grad_(False), batches, window=64, sinks=0)
    assert all(abs(cost) < 1e-6 for cost in costs.values())


def test_the_costliest_layers_stay() -> None:
    costs = {0: 0.01, 1: -0.002, 2: 0.2, 3: 0.05, 4: 0.0, 5: 0.1, 6: 0.0, 7: 0.0}
    assert layers_to_keep(costs, 0) == () and layers_to_keep(costs, 3) == (2, 3, 5)
    assert layers_to_keep(costs) == (2,)  # 0.2 of 0.36 is more than half
    assert layers_to_keep({0: 0.1, 1: 0.1, 2: 0.1, 3: 0.1}) == (0,)  # at most a quarter
    assert layers_to_keep({0: 0.001, 1: 0.002}) == ()  # not worth one


def test_pairs_go_where_distance_is_worth_most() -> None:
    costs = {1: 0.01, 3: 0.04, 5: 0.16, 7: -0.002}
    assert shared_out(costs, 70, 1000) == {1: 10, 3: 20, 5: 40, 7: 0}
    assert shared_out(costs, 70, 30) == {1: 13, 3: 27, 5: 30, 7: 0}  # what one has no room for goes to the others
    assert shared_out(costs, 500, 100) == {1: 100, 3: 100, 5: 100, 7: 100}
    assert shared_out({0: 0.001, 4: 0.003}, 64, 1000) == {0: 32, 4: 32}  # next to nothing: noise decides no more
    for total in range(60):
        assert sum(shared_out({0: 0.3, 1: 0.1, 2: 0.07}, total, 25).values()) == total
