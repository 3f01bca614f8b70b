"""A converted model compared with its teacher: quality, long context, recall, generation and speed.

Loss and the gain from long context (`long_context`), recall of pairs and of a needle (`associative`), free generation
(`agreement`), speed and caches of decoding (`decode_speed`). The baseline that a conversion must beat is the teacher
cut to a window without any training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.evaluate.ablations import View, views
from yeoul.evaluate.agreement import Agreement, agreement
from yeoul.evaluate.associative import (
    DEPTHS,
    DISTANCES,
    LENGTHS,
    PAIRS,
    Material,
    Questions,
    RecallGrid,
    ask,
    mqar_questions,
    needle_questions,
)
from yeoul.evaluate.decode_speed import POSITIONS, DecodeSpeeds, decode_speeds
from yeoul.evaluate.energy import Energy
from yeoul.evaluate.long_context import CUT, TEACHER, LongContextScore, aligned_losses, cut_teacher, long_context_score
from yeoul.evaluate.words import TEXT_TOKENS, text_ids

if TYPE_CHECKING:
    import torch

    from yeoul.data.batch import Batch
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

UNASKED = "no attention"
"""Without attention nothing can be recalled: that view is only scored on text."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is measured; the time that a comparison takes is about proportional to each.

    Attributes:
        tokens: scored by each model; None scores all that the batches have.
        questions: MQAR questions in a cell at least; 0 leaves MQAR out.
        needles: items in a cell; 0 leaves needles out.
        prompts: continued greedily by `new_tokens` tokens; 0 leaves generation out.
        prompt_tokens: longest prompt.
        pairs, distances: the grid of MQAR, see `mqar_questions`.
        lengths, depths: the grid of needles, see `needle_questions`.
        batch_tokens: tokens of synthetic items at once.
        positions: at which decoding is measured; none leaves it out.
        speed_seconds: for that; positions that would take longer are left out.
    """

    tokens: int | None = None
    questions: int = 256
    needles: int = 16
    prompts: int = 16
    new_tokens: int = 64
    prompt_tokens: int = 256
    pairs: tuple[int, ...] = PAIRS
    distances: tuple[int, ...] = DISTANCES
    lengths: tuple[int, ...] = LENGTHS
    depths: tuple[float, ...] = DEPTHS
    batch_tokens: int = 8192
    positions: tuple[int, ...] = POSITIONS
    speed_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What a conversion took; `teacher_tokens` is None where nobody knows what the teacher was trained on."""

    tokens: int
    seconds: float
    teacher_tokens: int | None = None
    energy: Energy | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a converted model was found to be, beside its teacher.

    Attributes:
        context: longest sequence in tokens.
        window, sinks: of the cut teacher.
        long_context: None where it could not be measured, like all the others: `not_measured` says why.
        mqar, needle: by the names of models; the teacher's share is `RecallGrid.share_of`.
        cost: of the conversion, where the caller knows it.
        seconds: of each part.
        not_measured: part -> reason.
    """

    context: int
    window: int
    sinks: int
    long_context: LongContextScore | None = None
    mqar: dict[str, RecallGrid] = field(default_factory=dict)
    needle: dict[str, RecallGrid] = field(default_factory=dict)
    agreement: Agreement | None = None
    speed: DecodeSpeeds | None = None
    cost: TrainingCost | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the shares of the teacher's recall."""
        values = asdict(self)
        for kind, grids in (("mqar", self.mqar), ("needle", self.needle)):
            for name, grid in grids.items():
                if TEACHER in grids:
                    values[kind][name]["of_teacher"] = asdict(grid.share_of(grids[TEACHER]))
                    values[kind][name]["of_teacher_beyond_window"] = asdict(
                        grid.share_of(grids[TEACHER], beyond_window=True)
                    )
        return values


def compare(
    teacher: Decoder,
    converted: Decoder,
    tokenizer: Tokenizer,
    batches: Callable[[], Iterable[Batch]],
    *,
    context: int,
    window: int = 64,
    sinks: int = 4,
    training_length: int | None = None,
    budget: Budget | None = None,
    dtype: torch.dtype | None = None,
    cost: TrainingCost | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare a converted model with its teacher.

    A part that cannot run (no text, no whole words, a teacher that cannot be cut) is left out, and the reason recorded.

    Args:
        teacher: the softmax model.
        converted: the same model after the conversion, with the same tokenizer.
        tokenizer: of both.
        batches: makes the same batches of held-out text each time it is called.
        context: tokens of the longest sequence of synthetic items and prompts.
        window, sinks: of the cut teacher, the baseline without training.
        training_length: positions that the models were trained on; None takes the teacher's own length.
        budget: how much is measured; None takes the defaults of `Budget`.
        dtype: run under autocast in this type, but for generation; None or float32 runs as the weights are.
        cost: of the conversion, for the record.
        progress: called with what is about to be measured, as "recall of pairs of words".
    """
    run = _Measurements(teacher, converted, tokenizer, batches, context, window, sinks, budget or Budget(), dtype, seed)
    parts: dict[str, Callable[[], Any]] = {
        "long_context": lambda: run.long_context(training_length or teacher.config.max_position_embeddings),
        "mqar": run.mqar,
        "needle": run.needle,
        "agreement": run.agreement,
        "speed": run.speed,
    }
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, part in parts.items():
        if progress is not None:
            progress(TITLES[name])
        start = time.perf_counter()
        try:
            result = part()
        except UserError as error:
            run.not_measured[name] = str(error)
            continue
        if result is not None:
            found[name], seconds[name] = result, time.perf_counter() - start
    return Comparison(
        context=context,
        window=window,
        sinks=sinks,
        cost=cost,
        seconds=seconds,
        not_measured=run.not_measured,
        **found,
    )


TITLES = {
    "long_context": "the long-context gain, and how much of it is retained",
    "mqar": "recall of pairs of words",
    "needle": "a needle in a text",
    "agreement": "greedy continuations",
    "speed": "decoding at long positions",
}
"""What `compare` reports as its progress."""


class _Measurements:
    """The models and each part of their comparison; made for one call of `compare`."""

    def __init__(
        self,
        teacher: Decoder,
        converted: Decoder,
        tokenizer: Tokenizer,
        batches: Callable[[], Iterable[Batch]],
        context: int,
        window: int,
        sinks: int,
        budget: Budget,
        dtype: torch.dtype | None,
        seed: int,
    ) -> None:
        self.teacher, self.converted, self.tokenizer = teacher, converted, tokenizer
        self.batches, self.budget, self.dtype, self.seed = batches, budget, dtype, seed
        self.context, self.window, self.sinks = context, window, sinks
        self.not_measured: dict[str, str] = {}
        self.models: dict[str, View] = {TEACHER: lambda: nullcontext(teacher)}
        try:
            cut = cut_teacher(teacher, window, sinks)
            self.models[CUT] = lambda: nullcontext(cut)
        except UserError as error:
            self.not_measured[CUT] = str(error)
        self.models |= views(converted)
        self._material: Material | None = None

    def long_context(self, training_length: int) -> LongContextScore:
        losses = aligned_losses(self.models, self.batches, dtype=self.dtype, max_tokens=self.budget.tokens)
        return long_context_score(
            losses, window=self.window, sinks=self.sinks, training_length=training_length,
            byte_lengths=self.tokenizer.byte_lengths(), seed=self.seed,
        )  # fmt: skip

    def mqar(self) -> dict[str, RecallGrid] | None:
        if not self.budget.questions:
            return None
        budget = self.budget
        return self._asked(mqar_questions(
            self.material(), context=self.context, window=self.window, pairs=budget.pairs, distances=budget.distances,
            questions=budget.questions, seed=self.seed,
        ))  # fmt: skip

    def needle(self) -> dict[str, RecallGrid] | None:
        if not self.budget.needles:
            return None
        budget = self.budget
        return self._asked(needle_questions(
            self.material(), context=self.context, window=self.window, lengths=budget.lengths, depths=budget.depths,
            items=budget.needles, seed=self.seed,
        ))  # fmt: skip

    def agreement(self) -> Agreement | None:
        budget = self.budget
        if not budget.prompts:
            return None
        reaches = (self.context, self.teacher.config.bounded_context, self.converted.config.bounded_context)
        longest = min(reach for reach in reaches if reach is not None)
        new = min(budget.new_tokens, longest // 2)
        text = text_ids(self.tokenizer, self.batches(), TEXT_TOKENS)
        framing = self.tokenizer.framing
        length = min(budget.prompt_tokens, max(1, longest - new - len(framing.begin)), len(text))
        count = min(budget.prompts, len(text) // length)
        starts = [i * (len(text) - length) // max(count - 1, 1) for i in range(count)]
        prompts: list[str | list[int]] = [framing.prompt(text[start : start + length]) for start in starts]
        return agreement(self.teacher, self.converted, self.tokenizer, prompts, max_tokens=new)

    def speed(self) -> DecodeSpeeds | None:
        budget, models = self.budget, {TEACHER: self.teacher, "converted": self.converted}
        if not budget.positions:
            return None
        return decode_speeds(models, budget.positions, budget_seconds=budget.speed_seconds, seed=self.seed)

    def material(self) -> Material:
        """Words and text of the synthetic items."""
        if self._material is None:
            text = text_ids(self.tokenizer, self.batches(), TEXT_TOKENS)
            self._material = Material(self.tokenizer, text, lead=self.sinks)
        return self._material

    def _asked(self, questions: Questions) -> dict[str, RecallGrid]:
        if not questions.cells:
            raise UserError("nothing fits: " + "; ".join(questions.left_out))
        grids = {}
        for name, view in self.models.items():
            if name != UNASKED:
                with view() as model:
                    grids[name] = ask(model, questions, batch_tokens=self.budget.batch_tokens, dtype=self.dtype)
        return grids
