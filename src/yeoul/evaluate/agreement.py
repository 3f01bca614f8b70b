"""Does a converted model write what its teacher writes? Greedy continuations of the same prompts, side by side.

A small gap in likelihood can be a large gap in free generation, where a model reads its own mistakes.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.infer.engine import GenerationResult, run
from yeoul.infer.params import SamplingParams

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

END = -1
"""Stands for the end of a text in comparisons: both may end at the same place."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What a set of texts is like, in tokens.

    Attributes:
        tokens: mean length.
        repetition: mean share of a text's 4-grams that occurred in it before.
        distinct_1, distinct_2: different 1-grams and 2-grams over all of them, all texts together (Li and others
            2016, arXiv 1510.03055).
    """

    tokens: float
    repetition: float
    distinct_1: float
    distinct_2: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Greedy continuations of two models compared.

    Attributes:
        prompts: how many; `max_tokens` new tokens at most for each.
        prefix_mean, prefix_median: tokens until the two differ for the first time; the end of a text counts as one.
        equal: share of prompts whose continuations are the same to the end.
        chrf: character n-gram F-score of the texts, 0 to 100, the teacher's as reference; see `chrf`.
        teacher, converted: repetition and variety of each.
    """

    prompts: int
    max_tokens: int
    prefix_mean: float
    prefix_median: float
    equal: float
    chrf: float
    teacher: Style
    converted: Style

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def agreement(
    teacher: Decoder,
    converted: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    *,
    max_tokens: int = 64,
    batch_size: int = 16,
) -> Agreement:
    """Continue held-out prompts with both models and compare.

    Args:
        prompts: texts or token ids; with `max_tokens` they must fit into the models' contexts.
        max_tokens: new tokens of each continuation; fewer where the end-of-text token comes.
        batch_size: prompts at once.

    Raises:
        UserError: no prompt, or one that does not fit.
    """
    if not prompts:
        raise UserError("there is no prompt to continue")
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    wanted = run(teacher, tokenizer, prompts, params, batch_size=batch_size)
    given = run(converted, tokenizer, prompts, params, batch_size=batch_size)
    return compared(wanted, given, max_tokens)


def compared(wanted: Sequence[GenerationResult], given: Sequence[GenerationResult], max_tokens: int) -> Agreement:
    """The comparison of finished continuations, the teacher's first."""
    pairs = [(_sequence(a), _sequence(b)) for a, b in zip(wanted, given, strict=True)]
    prefixes = [common_prefix(a, b) for a, b in pairs]
    return Agreement(
        prompts=len(pairs), max_tokens=max_tokens,
        prefix_mean=statistics.fmean(prefixes), prefix_median=statistics.median(prefixes),
        equal=statistics.fmean(a == b for a, b in pairs),
        chrf=chrf([result.text for result in given], [result.text for result in wanted]),
        teacher=style([result.ids for result in wanted]), converted=style([result.ids for result in given]),
    )  # fmt: skip


def _sequence(result: GenerationResult) -> list[int]:
    return [*result.ids, END] if result.finish_reason == "eos" else result.ids


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are the same before the first difference."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def style(texts: Sequence[Sequence[int]]) -> Style:
    """Length, repetition and variety of token sequences."""
    return Style(
        tokens=statistics.fmean(len(text) for text in texts),
        repetition=statistics.fmean(1 - distinct([text], 4) for text in texts),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
    )


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of the texts; 1 where there are none."""
    grams = [gram for text in texts for gram in _ngrams(tuple(text), n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _ngrams(sequence: Sequence[Hashable], n: int) -> list[Any]:
    return [sequence[i : i + n] for i in range(len(sequence) - n + 1)]


def chrf(texts: Sequence[str], references: Sequence[str], *, order: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score over all texts together, 0 to 100 (Popović 2015, chrF2).

    The same figure as `sacrebleu.metrics.CHRF().corpus_score`: n-grams of 1 to `order` characters without white
    space, precision and recall averaged over the orders that occur.
    """
    precisions, recalls = [], []
    for n in range(1, order + 1):
        written = wanted = matching = 0
        for text, reference in zip(texts, references, strict=True):
            own, other = (Counter(_ngrams("".join(t.split()), n)) for t in (text, reference))
            written += own.total() if other else 0  # as sacrebleu: nothing to match is no mistake
            wanted += other.total()
            matching += (own & other).total()
        if written and wanted:
            precisions.append(matching / written)
            recalls.append(matching / wanted)
    if not precisions:
        return 0.0
    precision, recall = statistics.fmean(precisions), statistics.fmean(recalls)
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
