"""How good translations are, by sacrebleu: chrF (Popović 2015) and BLEU (Papineni and others 2002; Post 2018, arXiv
1804.08771), with their signatures; and whether one system is better than another, by paired bootstrap (Koehn 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yeoul.errors import UserError

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class MetricScore:
    """One metric of one system.

    Attributes:
        score: 0 to 100.
        low, high: of its 95 % interval, by bootstrap.
        p_value: how likely such a difference to the first system is if both are equally good; None of the first one.
        signature: sacrebleu's, which says how it was computed.
    """

    score: float
    low: float
    high: float
    p_value: float | None
    signature: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def load_sacrebleu() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import sacrebleu.metrics
        import sacrebleu.significance
    except ImportError:
        raise UserError(
            "chrF and BLEU need the package sacrebleu, which is not installed", None,
            "run `pip install 'yeoul[eval]'`",
        ) from None  # fmt: skip
    return sacrebleu


def make_metrics(tokenize: str | None = None) -> dict[str, Any]:
    """sacrebleu's chrF and BLEU.

    Raises:
        UserError: sacrebleu is not installed, or lacks the tokenizer.
    """
    package = load_sacrebleu()
    try:
        return {"chrF": package.metrics.CHRF(), "BLEU": package.metrics.BLEU(tokenize=tokenize)}
    except (ImportError, RuntimeError, LookupError, AssertionError, ValueError) as error:
        reason = "it is not one of its names" if isinstance(error, LookupError) else " ".join(str(error).split())[:200]
        raise UserError(f"sacrebleu cannot split words by {tokenize!r}: {reason}", "--bleu-tokenize") from None


def compare_translations(
    systems: Sequence[Sequence[str]],
    references: Sequence[str],
    *,
    tokenize: str | None = None,
    resamples: int = RESAMPLES,
) -> list[dict[str, MetricScore]]:
    """Scores of systems by metric ("chrF2", "BLEU"), each against the first one.

    Args:
        systems: translations of each, as many as references.
        references: one of each sentence.
        tokenize: sacrebleu's tokenizer for BLEU; None for "13a". "ko-mecab", "ja-mecab" and "zh" are for those
            languages; "char" needs nothing.
        resamples: of the bootstrap.

    Raises:
        UserError: sacrebleu is not installed, or lacks the tokenizer.
    """
    metrics, significance = make_metrics(tokenize), load_sacrebleu().significance
    named = [(str(number), list(texts)) for number, texts in enumerate(systems)]
    signatures, scores = significance.PairedTest(
        named, metrics, [list(references)], test_type="bs", n_samples=resamples
    )()
    found: list[dict[str, MetricScore]] = [{} for _ in systems]
    for name, signature in signatures.items():
        for own, result in zip(found, scores[name], strict=True):
            own[name] = MetricScore(
                score=float(result.score), low=max(0.0, float(result.mean - result.ci)),
                high=float(result.mean + result.ci),
                p_value=None if result.p_value is None else float(result.p_value), signature=str(signature),
            )  # fmt: skip
    return found


def sentence_scores(translations: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF of each sentence, 0 to 100."""
    metric = load_sacrebleu().metrics.CHRF()
    return [metric.sentence_score(own, [wanted]).score for own, wanted in zip(translations, references, strict=True)]
