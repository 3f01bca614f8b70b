"""Losses of vectors and classes, by their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models import make
from yeoul.data.text_batches import text_batch
from yeoul.model.heads import STATES, ClassificationHead, States, TextVectors, Whitening
from yeoul.train.contrastive import cosent, cosine_regression, info_nce, pearson
from yeoul.train.loss import language_model_objective
from yeoul.train.texts import classification_objective, embedding_objective, pooled_items

N = 6


def vectors(count: int = 2) -> list[Tensor]:
    return list(torch.randn(count, N, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float())


def cos(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_info_nce_by_its_definition() -> None:
    first, second, negative = vectors(3)
    forward = backward = 0.0
    for n in range(N):
        right = math.exp(cos(first[n], second[n]) / 0.1)
        others = [*second, *negative]
        forward -= math.log(right / sum(math.exp(cos(first[n], other) / 0.1) for other in others)) / N
        backward -= math.log(right / sum(math.exp(cos(other, second[n]) / 0.1) for other in first)) / N
    assert float(info_nce(first, second, negative, temperature=0.1)) == pytest.approx(
        (forward + backward) / 2, rel=1e-5
    )
    assert float(info_nce(first, first * 3, temperature=0.01)) == pytest.approx(0, abs=1e-4)


def test_cosent_by_its_definition() -> None:
    first, second = vectors()
    scores = torch.tensor([5.0, 0.0, 2.5, 2.5, 1.0, 5.0])
    total = 1.0
    for i in range(N):
        for j in range(N):
            if scores[i] > scores[j]:
                total += math.exp((cos(first[j], second[j]) - cos(first[i], second[i])) / 0.1)
    assert float(cosent(first, second, scores, temperature=0.1)) == pytest.approx(math.log(total), rel=1e-5)
    assert float(cosent(first, second, scores * 7 - 3, temperature=0.1)) == pytest.approx(math.log(total), rel=1e-5)
    equal = cosent(first.requires_grad_(), second, torch.ones(N))
    equal.backward()  # pairs of one score say nothing
    assert float(equal.detach()) == 0 and float(first.grad.abs().sum()) == 0  # type: ignore[union-attr]


def test_cosine_regression_by_its_definition() -> None:
    first, second = vectors()
    scores = torch.linspace(0, 1, N)
    wanted = sum((cos(first[n], second[n]) - float(scores[n])) ** 2 for n in range(N)) / N
    assert float(cosine_regression(first, second, scores)) == pytest.approx(wanted, rel=1e-5)


def test_pearson_by_its_definition() -> None:
    first, second = vectors()
    scores = torch.tensor([5.0, 0.0, 2.5, 2.5, 1.0, 4.0])
    cosines = [cos(first[n], second[n]) for n in range(N)]
    wanted = 1 - float(np.corrcoef(cosines, scores.numpy())[0, 1])
    assert float(pearson(first, second, scores)) == pytest.approx(wanted, rel=1e-5)
    assert float(pearson(first, second, scores * 7 - 3)) == pytest.approx(wanted, rel=1e-5)
    assert float(pearson(first, second, torch.tensor(cosines))) == pytest.approx(0, abs=1e-5)
    first.requires_grad_()
    for few, what in ((2, scores), (1, scores), (N, torch.ones(N))):  # nothing to learn from
        nothing = pearson(first[:few], second[:few], what[:few])
        first.grad = None
        nothing.backward()
        assert float(nothing.detach()) == 1 and float(first.grad.abs().sum()) == 0  # type: ignore[attr-defined]


def items(ways: int = 1) -> list[tuple[np.ndarray, ...]]:
    draw = np.random.default_rng(2)
    return [tuple(draw.integers(1, 101, draw.integers(2, 9)) for _ in range(ways)) for _ in range(N)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes_are_a_sum_over_texts(smoothing: float) -> None:
    model, head = make("hybrid"), ClassificationHead(64, ["a", "b", "c"], "mean").eval()
    targets = np.array([0, 1, 2, 0, 1, 2])
    objective = classification_objective(head, label_smoothing=smoothing)
    together = objective(model, text_batch(items(), targets, 0))
    alone = [objective(model, text_batch([item], targets[n : n + 1], 0)) for n, item in enumerate(items())]
    assert together.count == N and together.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-5)
    assert together.parts["accuracy"] == sum(x.parts["accuracy"] for x in alone)
    together.total.backward()
    assert head.score.weight.grad is not None and model.layers[0].self_attn.q_proj.weight.grad is not None


def test_the_texts_themselves_are_an_auxiliary_loss() -> None:
    model, head = make("softmax"), ClassificationHead(64, ["a", "b"]).eval()
    batch = text_batch(items(), np.zeros(N, dtype=np.int64), 0)
    plain = classification_objective(head)(model, batch)
    both = classification_objective(head, lm_weight=0.3)(model, batch)
    tokens = language_model_objective(model, batch)
    wanted = float(plain.total) + 0.3 * N * float(tokens.total) / tokens.count
    assert float(both.total) == pytest.approx(wanted, rel=1e-5)


def test_vectors_of_an_example_meet_in_the_loss() -> None:
    model = make("dijiang")
    seen: list[tuple[Tensor, ...]] = []

    def loss(ways: tuple[Tensor, ...], scores: Tensor | None) -> Tensor:
        seen.append(ways)
        return info_nce(*ways)

    result = embedding_objective(loss, TextVectors("last"))(model, text_batch(items(3), None, 0))
    assert result.count == N and float(result.total) == pytest.approx(N * float(info_nce(*seen[0])), rel=1e-5)
    for number, item in enumerate(items(3)):
        for way, ids in enumerate(item):
            alone = model.hidden(torch.from_numpy(ids)[None])[0, -1]
            assert torch.allclose(seen[0][way][number], alone, atol=1e-4)


@pytest.mark.parametrize("states", STATES)
def test_known_pooled_states_are_what_the_model_would_give(states: States) -> None:
    model, texts = make("hybrid"), items(2)
    plain = TextVectors("mean", states)
    known = pooled_items(model, plain, texts, batch_size=4, dtype=torch.float32)
    assert known.shape == (N, 2, plain.width(64)) and not known.requires_grad
    vectors = TextVectors("mean", states, [Whitening(known.flatten(0, 1))])
    chosen = [4, 1, 5]
    batch = text_batch([texts[n] for n in chosen], np.array([3.0, 0.0, 1.0], dtype=np.float32), 0)
    batch = replace(batch, numbers=torch.tensor(chosen))
    loss = lambda ways, scores: pearson(*ways, scores)  # noqa: E731
    asked = embedding_objective(loss, vectors)(model, batch)
    remembered = embedding_objective(loss, vectors, known)(model, batch)
    assert float(remembered.total) == pytest.approx(float(asked.total), rel=1e-2)  # few texts: rounding grows
    remembered.total.backward()
    assert vectors.layers[0].linear.weight.grad is not None and all(p.grad is None for p in model.parameters())  # type: ignore[union-attr]
    asked.total.backward()
    used = model.layers[0].self_attn.q_proj.weight.grad is not None
    assert used == (states != "embeddings") and model.model.embed_tokens.weight.grad is not None
