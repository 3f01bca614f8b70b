"""What two systems made of the same sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from yeoul.evaluate.translation import MetricScore
from yeoul.recipes.translate.config import TranslateConfig
from yeoul.report.content import Text

SURE = 0.05
"""Below this p-value a difference is called significant."""


@dataclass(frozen=True, kw_only=True)
class TranslateResult:
    """Translations and their scores.

    Attributes:
        systems: the names of the first and, where there is one, the second system.
        config: how they were asked.
        sources, references: the sentences; references are "" where there are none.
        translations: of each system.
        scores: of each system by metric; empty without references.
        sentences: chrF of each sentence, of each system; empty without references.
        examples: that stood in the prompts of the first system.
        seconds: that the translating took, over all sessions.
    """

    systems: tuple[str, ...]
    config: TranslateConfig
    sources: tuple[str, ...]
    references: tuple[str, ...]
    translations: tuple[tuple[str, ...], ...]
    scores: tuple[dict[str, MetricScore], ...]
    sentences: tuple[tuple[float, ...], ...]
    examples: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def verdict(self) -> Text:
        """Which system is better by chrF, in a sentence."""
        if len(self.scores) < 2:
            return Text("", "")
        a, b = (own["chrF2"] for own in self.scores)
        p = b.p_value if b.p_value is not None else 1.0
        first, second = self.systems
        better, worse = (second, first) if b.score > a.score else (first, second)
        sure = p < SURE
        return Text(
            f"{better} is better than {worse} by {abs(b.score - a.score):.1f} points of chrF"
            + (f" (p = {p:.3f})." if sure else f", but that may be chance (p = {p:.3f})."),
            f"chrF로 볼 때 {better} 쪽이 {worse} 쪽보다 {abs(b.score - a.score):.1f}점 높습니다"
            + (f"(p = {p:.3f})." if sure else f". 다만 우연일 수 있습니다(p = {p:.3f})."),
        )

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads and rows of the table of scores."""
        rows = []
        for name, own in zip(self.systems, self.scores, strict=False):
            cells = [name]
            for metric in ("chrF2", "BLEU"):
                score = own[metric]
                cells += [f"{score.score:.1f}", f"{score.low:.1f}–{score.high:.1f}",
                          "" if score.p_value is None else f"{score.p_value:.3f}"]  # fmt: skip
            rows.append(tuple(cells))
        return ("system", "chrF", "95 %", "p", "BLEU", "95 %", "p"), rows

    def table(self) -> str:
        """For people."""
        heads, rows = self.rows()
        if not rows:
            return ""
        wide = max(len(row[0]) for row in [heads, *rows])
        widths = (8, 16, 8, 8, 16, 8)
        return "\n".join(
            f"{row[0]:{wide}}" + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
            for row in [heads, *rows]
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "systems": list(self.systems), "config": asdict(self.config), "examples": [list(e) for e in self.examples],
            "scores": [{name: score.as_dict() for name, score in own.items()} for own in self.scores],
            "verdict": self.verdict.en, "seconds": self.seconds,
            "sentences": [
                {"source": source, "reference": reference, "translations": [own[i] for own in self.translations],
                 "chrF": [own[i] for own in self.sentences]}
                for i, (source, reference) in enumerate(zip(self.sources, self.references, strict=True))
            ],
        }  # fmt: skip
