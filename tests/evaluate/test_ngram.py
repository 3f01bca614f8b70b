"""N-grams: nltk's Kneser-Ney, the formula counted by hand, and probabilities that add up to one."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from yeoul.errors import UserError
from yeoul.evaluate.ngram import NGram, _estimated

V = 12


def text(length: int = 400, seed: int = 0) -> list[int]:
    """Words of a few letters in random order: some n-grams are frequent, many occur once."""
    dice = random.Random(seed)
    words = [[dice.randrange(V - 2) for _ in range(dice.randint(1, 4))] for _ in range(9)]
    found: list[int] = []
    while len(found) < length:
        found += dice.choices(words, weights=range(1, 10))[0]
    return found[:length]


def by_hand(tokens: list[int], order: int, given: tuple[float, float, float] | None, history: list[int]) -> list[float]:
    """p(w | history) of every w, from dictionaries and the formula."""
    grams = [Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)) for n in range(1, order + 1)]
    p = [1 / V] * V
    for n in range(1, order + 1):
        counts: Counter[tuple[int, ...]] = grams[n - 1]
        if n < order:
            before = defaultdict(set)
            for gram in grams[n]:
                before[gram[1:]].add(gram[0])
            counts = Counter({gram: len(before[gram]) for gram in grams[n - 1]})
        D = (0.0, *(given or _estimated(np.array(list(counts.values())))))
        h = tuple(history[len(history) - n + 1 :])
        if len(h) < n - 1:
            break
        following = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == h}
        total = sum(following.values())
        if total:
            freed = sum(min(D[min(c, 3)], c) for c in following.values())
            p = [max(c - D[min(c, 3)], 0) / total + freed / total * p[w]
                 for w, c in ((w, following.get(w, 0)) for w in range(V))]  # fmt: skip
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("discounts", [None, (0.7, 0.7, 0.7)])
def test_probabilities_are_the_formulas(order: int, discounts: tuple[float, float, float] | None) -> None:
    tokens, other = text(), text(60, seed=1) + [V - 1, 3, V - 2, 0]
    model = NGram.fit(tokens, V, order, discounts=discounts)
    losses = model.losses(other)
    assert losses.shape == (64,)
    for place in (0, 1, 2, 3, 4, 5, 30, 59, 60, 61, 62, 63):
        expected = by_hand(tokens, order, discounts, other[:place])
        assert sum(expected) == pytest.approx(1)
        assert losses[place] == pytest.approx(-math.log(expected[other[place]]), rel=1e-9), place


def test_the_higher_orders_are_nltks() -> None:
    """nltk has one discount and gives unseen words nothing at order 1: its own order 1 is replaced by ours."""
    models = pytest.importorskip("nltk.lm.models")
    from nltk.lm.smoothing import KneserNey

    tokens, other, d = text(), text(60, seed=1), 0.6
    unigrams = NGram.fit(tokens, V, 3, discounts=(d, d, d)).orders[0]
    first = {
        str(key): max(c - d, 0) / unigrams.total[0] + unigrams.rest[0] / unigrams.total[0] / V
        for key, c in zip(unigrams.key, unigrams.counts, strict=True)
    }

    class Ours(KneserNey):  # type: ignore[misc,name-defined]
        def unigram_score(self, word: str) -> float:
            return first.get(word, unigrams.rest[0] / unigrams.total[0] / V)

    oracle = models.InterpolatedLanguageModel(Ours, 3, params={"discount": d, "order": 3})
    words = [str(token) for token in tokens]
    grams = [tuple(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)]
    oracle.fit([grams], vocabulary_text=[str(word) for word in range(V)])
    losses = NGram.fit(tokens, V, 3, discounts=(d, d, d)).losses(other)
    for place in range(2, 60):
        expected = oracle.score(str(other[place]), [str(token) for token in other[place - 2 : place]])
        assert losses[place] == pytest.approx(-math.log(expected), rel=1e-9), place


def test_longer_histories_predict_a_text_better_that_has_them() -> None:
    losses = [float(NGram.fit(text(4000), V, order).losses(text(1000, seed=0)).mean()) for order in (1, 2, 3, 5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.5


def test_what_cannot_be_counted_is_one_sentence() -> None:
    with pytest.raises(UserError, match="too few for n-grams of order 5"):
        NGram.fit([1, 2], V)
    with pytest.raises(UserError, match="use 1 to 10"):
        NGram.fit(text(), V, 11)
    assert NGram.fit(text(), V).losses([]).shape == (0,)
    assert NGram.fit(text(), V).size > V and NGram.fit(text(), V).nbytes > 0
