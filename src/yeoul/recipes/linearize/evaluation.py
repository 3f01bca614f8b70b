"""Evaluation of a conversion: scores, comparison with its teacher, speed and cache size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from yeoul.adapt.linearize import Conversion, convert
from yeoul.data.batch import Batch
from yeoul.evaluate import speed
from yeoul.evaluate.ablations import ablations, parts
from yeoul.evaluate.associative import LENGTHS, PAIRS
from yeoul.evaluate.compare import Budget, Comparison, TrainingCost, compare
from yeoul.evaluate.perplexity import LMScore, score
from yeoul.model.decoder import Decoder
from yeoul.recipes.linearize.stages import StageResult
from yeoul.recipes.linearize.tables import total_energy
from yeoul.recipes.options import Say
from yeoul.text.tokenizer import Tokenizer

FULL_COMPARISON = 50_000
"""Tokens of a comparison with all questions and continuations; one of fewer tokens has fewer."""
SMALL_SHARE = 0.1
"""Of that; below it a few cells of each grid of questions are asked."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation of a converted model.

    Attributes:
        scores: of the teacher, the model, and the model without its parts, by name.
        comparison: with the teacher, and with the teacher cut to the window; None if it was skipped.
        speeds: of both models at each context.
    """

    scores: dict[str, LMScore]
    comparison: Comparison | None
    speeds: list[speed.SpeedRecord]


class Evaluator:
    """Measures a converted model against its teacher.

    Args:
        teacher: the softmax model.
        student: converted, trained.
        tokenizer: of both.
        batches: makes the same batches of held-out text each time it is called.
        dtype: of the matrix multiplications.
        say: called with progress messages.
    """

    def __init__(
        self,
        teacher: Decoder,
        student: Decoder,
        tokenizer: Tokenizer,
        batches: Callable[[], Iterable[Batch]],
        dtype: torch.dtype,
        say: Say,
    ) -> None:
        self.teacher, self.student, self.tokenizer = teacher, student, tokenizer
        self.batches, self.dtype, self.say = batches, dtype, say

    def scores(self, conversion: Conversion) -> dict[str, LMScore]:
        """Loss and perplexity of the teacher, the model and its parts, and of the window without any training."""
        lengths = self.tokenizer.byte_lengths()
        self.say("Scoring the teacher, the converted model and its parts ...")
        scores = {"teacher": score(self.teacher, self.batches(), lengths, dtype=self.dtype)}
        scores |= ablations(self.student, self.batches, lengths, dtype=self.dtype)
        if conversion.attention == "hybrid":
            alone = replace(conversion, exact=(0,))
            with parts(convert(self.teacher, alone, share=True), linear=False) as untrained:
                scores["teacher's weights, window only"] = score(untrained, self.batches(), lengths, dtype=self.dtype)
        return scores

    def comparison(
        self, conversion: Conversion, stages: Mapping[str, StageResult], context: int, tokens: int
    ) -> Comparison | None:
        """On so many tokens; None for 0."""
        if not tokens:
            return None
        plain = {name: stage.as_dict() for name, stage in stages.items()}
        cost = TrainingCost(
            tokens=sum(stage.tokens for stage in stages.values()),
            seconds=sum(stage.seconds for stage in stages.values()), energy=total_energy(plain),
        )  # fmt: skip
        budget = comparison_budget(tokens)
        return compare(
            self.teacher, self.student, self.tokenizer, self.batches, context=context, window=conversion.window,
            sinks=conversion.sinks, cost=cost, training_length=context, budget=budget, dtype=self.dtype,
            progress=lambda what: self.say(f"  measuring {what}"),
        )  # fmt: skip

    def speeds(self, contexts: tuple[int, ...]) -> list[speed.SpeedRecord]:
        """Tokens per second and cache size in bytes at each context, of the models as `yeoul.load` gives them."""
        longest = max(contexts) + 128
        models = {
            "teacher": speed.lengthened(self.teacher, longest),
            "converted": speed.lengthened(self.student, longest),
        }
        return speed.compare(models, contexts, progress=lambda what: self.say(f"  {what}"))


def comparison_budget(tokens: int) -> Budget:
    """How much is asked beside so many tokens of text: a comparison should not take longer than a short training.

    Questions and continuations cost as much as text does, so little text has fewer of them, and very little has only
    the first cells of each grid.
    """
    share = min(1.0, tokens / FULL_COMPARISON)
    budget = Budget(
        tokens=tokens, questions=max(16, round(64 * share)), needles=max(2, round(16 * share)),
        prompts=max(2, round(16 * share)), speed_seconds=max(15.0, 60 * share),
    )  # fmt: skip
    if share >= SMALL_SHARE:
        return budget
    return replace(budget, pairs=PAIRS[:1], distances=(0, 512), lengths=LENGTHS[:1], depths=(0.5,))


def record_of(stages: Mapping[str, StageResult], found: Evaluation) -> dict[str, Any]:
    """Plain values for JSON."""
    plain = {name: stage.as_dict() for name, stage in stages.items()}
    return {
        "tokens": sum(stage.tokens for stage in stages.values()),
        "seconds": sum(stage.seconds for stage in stages.values()),
        "energy": total_energy(plain).as_dict(),
        "stages": plain,
        "scores": {name: value.as_dict() for name, value in found.scores.items()},
        "comparison": found.comparison.as_dict() if found.comparison else None,
        "speed": [record.as_dict() for record in found.speeds],
    }
