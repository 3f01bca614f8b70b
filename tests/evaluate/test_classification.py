"""Accuracy, F1 and confusion matrix, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from yeoul.evaluate.classification import classification_scores

LABELS = ("부정", "보통", "긍정", "none")


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_those_of_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 3, 200)  # the last class occurs nowhere
    predicted = np.where(draw.random(200) < 0.6, truth, draw.integers(0, 2 + seed % 2, 200))
    scores = classification_scores(truth, predicted, LABELS)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    assert np.array_equal(scores.confusion, metrics.confusion_matrix(truth, predicted, labels=range(4)))
    wanted = metrics.precision_recall_fscore_support(truth, predicted, labels=range(4), zero_division=0)
    ours = np.array([[c.precision, c.recall, c.f1, c.support] for c in scores.classes])
    assert np.allclose(ours, np.array(wanted).T)


def test_the_table_is_readable() -> None:
    scores = classification_scores([0, 0, 1], [0, 1, 1], ["부정", "ok"])
    assert scores.table() == (
        "class  texts  precision  recall      F1\n"
        "부정       2     1.0000  0.5000  0.6667\n"
        "ok         1     0.5000  1.0000  0.6667\n"
        "\n"
        "truth / predicted  부정  ok\n"
        "부정                  1   1\n"
        "ok                    0   1"
    )
    values = scores.to_dict()
    assert values["confusion"] == [[1, 1], [0, 1]] and values["classes"]["부정"]["recall"] == 0.5
    many = classification_scores([0], [0], [str(n) for n in range(30)])
    assert "truth / predicted" not in many.table()
