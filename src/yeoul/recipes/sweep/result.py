"""What a sweep found: values, a table for the terminal, and the recommendation in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from yeoul.config import flat_values
from yeoul.evaluate.korean import KoreanScore
from yeoul.evaluate.nucleus import Nucleus
from yeoul.evaluate.sampling import PLAIN, Prompt, Setting, SettingScore
from yeoul.evaluate.tradeoff import Tradeoff
from yeoul.recipes.sweep.config import SweepConfig
from yeoul.report.content import Text

COLUMNS: tuple[tuple[str, Callable[[SettingScore], str]], ...] = (
    ("temperature", lambda s: f"{s.setting.temperature:g}"),
    ("top-k", lambda s: f"{s.setting.top_k}" if s.setting.top_k else "–"),
    ("top-p", lambda s: f"{s.setting.top_p:g}" if s.setting.top_p < 1 else "–"),
    ("min-p", lambda s: f"{s.setting.min_p:g}" if s.setting.min_p else "–"),
    ("perplexity", lambda s: _number(s.perplexity)),
    ("judge's perplexity", lambda s: _number(s.judge_perplexity)),
    ("recall", lambda s: _percent(s.recall)),
    ("as greedy", lambda s: _percent(s.greedy)),
    ("distinct-1", lambda s: f"{s.distinct_1:.2f}"),
    ("distinct-2", lambda s: f"{s.distinct_2:.2f}"),
    ("distinct-3", lambda s: f"{s.distinct_3:.2f}"),
    ("self-BLEU", lambda s: "–" if s.self_bleu is None else f"{s.self_bleu:.0f}"),
    ("entropy", lambda s: f"{s.entropy:.2f}"),
    ("tokens kept", lambda s: _number(s.kept)),
    ("repetition", lambda s: _percent(s.repetition)),
    ("particles", lambda s: _percent(s.korean.particle_rate)),
    ("syllables", lambda s: _percent(s.korean.broken_rate)),
    ("spacing", lambda s: _percent(s.korean.spacing_rate)),
)
"""Heads of the table of settings, and what stands below them."""
SHORT = {
    "temperature": "temp", "perplexity": "ppl", "judge's perplexity": "judge", "as greedy": "greedy",
    "distinct-1": "d-1", "distinct-2": "d-2", "distinct-3": "d-3", "self-BLEU": "sBLEU", "entropy": "bits",
    "tokens kept": "kept", "repetition": "rep", "particles": "part", "syllables": "syll", "spacing": "space",
}  # fmt: skip
"""Heads as a terminal has room for them."""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}" if 0 < share < 0.0995 else f"{100 * share:.0f}"


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What was found.

    Attributes:
        model, judge: what they are called; `judge` is None where there is none.
        config: what was asked for.
        prompts: that were continued.
        scores: of each setting, in the order of the grid.
        greedy, plain: of greedy decoding, and of temperature 1 with nothing ruled out.
        tradeoff: indices of the efficient edge among them, and of the recommended setting.
        nucleus: the model's next token behind the first prompt, and what top-p keeps of it.
        texts: the continuations of each setting, in the order of the prompts.
        seconds: that this run took; what was measured before is not counted.
    """

    model: str
    judge: str | None
    config: SweepConfig
    prompts: tuple[Prompt, ...]
    scores: tuple[SettingScore, ...]
    greedy: SettingScore
    plain: SettingScore
    tradeoff: Tradeoff
    nucleus: Nucleus
    texts: dict[Setting, tuple[str, ...]]
    seconds: float

    @property
    def best(self) -> SettingScore | None:
        """The recommended setting; None where nothing was written."""
        return None if self.tradeoff.chosen is None else self.scores[self.tradeoff.chosen]

    @property
    def edge(self) -> tuple[SettingScore, ...]:
        """Settings that no other beats in both accuracy and diversity, the most accurate first."""
        return tuple(self.scores[i] for i in self.tradeoff.edge)

    @property
    def korean(self) -> KoreanScore:
        """Mistakes in the texts of all settings together."""
        return sum((score.korean for score in self.scores), KoreanScore())

    @property
    def judged_by(self) -> Text:
        """Whose perplexity stands for accuracy."""
        if self.judge is None:
            return Text("the model's own perplexity", "모델 자신의 퍼플렉시티")
        return Text(f"the perplexity of {self.judge}", f"{self.judge}의 퍼플렉시티")

    @property
    def why(self) -> Text:
        """The recommendation and its reason, one sentence."""
        best, greedy = self.best, self.greedy
        if best is None and not any(score.tokens for score in self.scores):
            return Text(
                "No setting wrote a single token, so there is nothing to recommend.",
                "어떤 설정에서도 토큰이 생성되지 않아 추천할 것이 없습니다.",
            )
        if best is None:
            return Text(
                "Use greedy decoding: no setting of the grid is more varied.",
                "추천 설정은 탐욕 디코딩입니다. 더 다양한 설정이 없습니다.",
            )
        facts = _facts(best, greedy) if self.tradeoff.faithful else Text("", "")
        return Text(
            f"Use {best.setting}: of the efficient edge it buys the most diversity for its perplexity "
            f"({_point(best).en}), measured against greedy decoding ({_point(greedy).en}) and plain sampling "
            f"({_point(self.plain).en}){facts.en}.",
            f"추천 설정은 {best.setting}입니다. 탐욕 디코딩({_point(greedy).ko})과 순수 "
            f"샘플링({_point(self.plain).ko})에 "
            f"견주어, 효율 경계에서 퍼플렉시티에 비해 가장 많은 다양성을 얻습니다({_point(best).ko}){facts.ko}.",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; texts are in results.jsonl."""
        edge, chosen = self.tradeoff.edge, self.tradeoff.chosen
        return {
            "model": self.model, "judge": self.judge, "settings": flat_values(self.config),
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "recommended": None if self.best is None else asdict(self.best.setting),
            "why": asdict(self.why), "greedy": self.greedy.as_dict(), "plain": self.plain.as_dict(),
            "scores": [
                score.as_dict() | {"edge": i in edge, "recommended": i == chosen}
                for i, score in enumerate(self.scores)
            ],
            "korean": self.korean.as_dict(), "nucleus": self.nucleus.as_dict(), "seconds": self.seconds,
        }  # fmt: skip

    def rows(self) -> tuple[list[str], list[tuple[str, list[str]]]]:
        """Heads and rows of the table, the most accurate first: (mark, cells); columns that nothing fills are left out.

        Marks: "→" the recommended setting, "*" the others of the edge, "g" greedy decoding, "p" plain sampling where it
        is not in the grid.
        """
        edge, chosen = self.tradeoff.edge, self.tradeoff.chosen
        order = sorted(range(len(self.scores)), key=lambda i: self.scores[i].accuracy or float("inf"))
        marks = {i: "→" if i == chosen else "*" if i in edge else "" for i in order}
        plain = [] if any(score.setting == PLAIN for score in self.scores) else [("p", self.plain)]
        found = [("g", self.greedy), *plain, *((marks[i], self.scores[i]) for i in order)]
        used = [(head, cell) for head, cell in COLUMNS if any(cell(score) != "–" for _, score in found)]
        return [head for head, _ in used], [(mark, [cell(score) for _, cell in used]) for mark, score in found]

    def table(self) -> str:
        """The settings as text, the most accurate first."""
        heads, rows = self.rows()
        lines = [["", *(SHORT.get(head, head) for head in heads)], *([mark, *cells] for mark, cells in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*text, "", "→ recommended, * efficient edge, g greedy, p plain; recall to space in %"])


def _point(score: SettingScore) -> Text:
    values = f"distinct-2 {score.distinct_2:.2f}", _number(score.accuracy)
    return Text(f"{values[0]} at {values[1]}", f"{values[0]}, 퍼플렉시티 {values[1]}")


def _facts(best: SettingScore, greedy: SettingScore) -> Text:
    own, other = (f"{100 * (score.recall or 0):.0f}" for score in (best, greedy))
    return Text(
        f"; of the facts told in the prompts {own} % come back ({other} % with greedy decoding)",
        f". 프롬프트에서 알려 준 사실은 {own}%가 되돌아옵니다(탐욕 디코딩 {other}%)",
    )
