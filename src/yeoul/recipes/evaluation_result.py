"""What an evaluation has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yeoul.evaluate.associative import RecallGrid
    from yeoul.evaluate.compare import Comparison
    from yeoul.evaluate.korean import KoreanScore
    from yeoul.evaluate.perplexity import LMScore
    from yeoul.evaluate.recall import RecallScore
    from yeoul.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What was found of a model.

    Attributes:
        model, teacher: what they are called; `teacher` is None where there was none.
        data: the text.
        context: tokens of a sequence.
        tokenizer: of the model.
        score: loss, perplexity and bits per byte, by position where that was asked for.
        recall: of facts told earlier; None where nothing was asked.
        korean: mistakes by rule (`yeoul.evaluate.korean`) in what the model has "written", and in the "text" itself.
        grids: "mqar" and "needle" of one model, where they were asked for.
        comparison: with the teacher.
    """

    model: str
    teacher: str | None
    data: str
    context: int
    tokenizer: Tokenizer
    score: LMScore
    recall: RecallScore | None
    korean: dict[str, KoreanScore]
    grids: dict[str, RecallGrid]
    comparison: Comparison | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        begin = self.tokenizer.spelled(self.tokenizer.framing.begin) or None
        values: dict[str, Any] = {
            "model": self.model, "data": self.data, "context": self.context, "begins_with": begin,
            **self.score.as_dict(),
        }  # fmt: skip
        if self.recall is not None:
            values["recall"] = self.recall.as_dict()
        if self.korean:
            values["korean"] = {name: score.as_dict() for name, score in self.korean.items()}
        values |= {kind: grid.as_dict() for kind, grid in self.grids.items()}
        if self.comparison is not None:
            values |= {"teacher": self.teacher, "comparison": self.comparison.as_dict()}
        return values
