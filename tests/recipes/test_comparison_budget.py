"""A short training gets a short comparison."""

from __future__ import annotations

from yeoul.evaluate.associative import PAIRS
from yeoul.recipes.linearize.evaluation import FULL_COMPARISON, comparison_budget


def test_little_text_has_few_questions_and_much_has_all() -> None:
    whole, half, little = (comparison_budget(n) for n in (FULL_COMPARISON, FULL_COMPARISON // 2, 1024))
    assert whole.pairs == half.pairs == PAIRS and half.questions < whole.questions
    cells = lambda budget: len(budget.pairs) * len(budget.distances) + len(budget.lengths) * len(budget.depths)  # noqa: E731
    assert cells(little) * 6 <= cells(whole) and little.tokens == 1024
    assert 0 in little.distances and max(little.distances) > 64, "within the window and beyond it"
