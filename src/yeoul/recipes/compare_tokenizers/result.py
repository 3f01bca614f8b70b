"""What a comparison of tokenizers found: values, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yeoul.config import flat_values
from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig
from yeoul.recipes.compare_tokenizers.serving import ServingCost
from yeoul.recipes.compare_tokenizers.small_model import SmallModel
from yeoul.report.content import Text
from yeoul.text.inspection import CorpusFit
from yeoul.text.tokenizer_speed import TokenizerSpeed
from yeoul.units import size


@dataclass(frozen=True, kw_only=True)
class TokenizerScore:
    """One tokenizer.

    Attributes:
        name: that of its folder; place: as it was given.
        kind: what cuts the text, such as "BPE", and "over jamo" where it takes syllables apart.
        fit: how it cuts the held-out text.
        same: share of the held-out documents that come back as they were.
        old_jamo: tokens for one jamo of old Hangul, in verses of the 15th century; None where it loses some.
        speed: on the held-out text.
        model: that was trained with it; None where none was asked for.
        serving: what serving costs.
        example: a sentence cut by it, with bars between tokens.
    """

    name: str
    place: str
    kind: str
    fit: CorpusFit
    same: float
    old_jamo: float | None
    speed: TokenizerSpeed
    model: SmallModel | None
    serving: ServingCost
    example: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name, "place": self.place, "kind": self.kind, "fit": self.fit.as_dict(), "same": self.same,
            "old_jamo": self.old_jamo, "speed": asdict(self.speed),
            "model": None if self.model is None else self.model.as_dict(), "serving": self.serving.as_dict(),
            "example": self.example,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenizerScore:
        """From what `as_dict` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        model = values["model"]
        return cls(
            name=values["name"], place=values["place"], kind=values["kind"], fit=_made(CorpusFit, values["fit"]),
            same=values["same"], old_jamo=values["old_jamo"], speed=_made(TokenizerSpeed, values["speed"]),
            model=None if model is None else _made(SmallModel, model),
            serving=_made(ServingCost, values["serving"]), example=values["example"],
        )  # fmt: skip


def _made(cls: Any, values: dict[str, Any]) -> Any:
    own = {name: values[name] for name in cls.__dataclass_fields__}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


COLUMNS: tuple[tuple[str, Callable[[TokenizerScore], str]], ...] = (
    ("kind", lambda s: s.kind),
    ("vocabulary", lambda s: f"{s.fit.vocab_size:,}"),
    ("tokens per syllable", lambda s: _ratio(s.fit.tokens_per_syllable)),
    ("tokens per word", lambda s: _ratio(s.fit.tokens_per_word)),
    ("bytes per token", lambda s: _ratio(s.fit.bytes_per_token)),
    ("bits per byte", lambda s: "–" if s.model is None else f"{s.model.bits_per_byte:.3f}"),
    ("in bytes", lambda s: _percent(s.fit.byte_share)),
    ("lost", lambda s: "–" if s.fit.unknown_tokens == 0 else _percent(s.fit.unknown_tokens / s.fit.tokens)),
    ("tokens per old jamo", lambda s: _ratio(s.old_jamo)),
    ("GFLOP per 1,000 characters", lambda s: gigaflops(s.serving.gigaflops)),
    ("cache per 1,000 characters", lambda s: size(s.serving.cache_bytes)),
    ("encode, MB/s", lambda s: _rate(s.speed.encode)),
    ("decode, MB/s", lambda s: _rate(s.speed.decode)),
)
"""Heads of the table of tokenizers, and what stands below them."""
SHORT = {
    "vocabulary": "ids", "tokens per syllable": "tok/syl", "tokens per word": "tok/word", "bytes per token": "B/tok",
    "bits per byte": "bits/B", "tokens per old jamo": "old jamo", "GFLOP per 1,000 characters": "GFLOP",
    "cache per 1,000 characters": "cache", "encode, MB/s": "enc", "decode, MB/s": "dec",
}  # fmt: skip
"""Heads as a terminal has room for them."""


def gigaflops(value: float) -> str:
    """A number of them: 0.35, 4.2, 118."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "–" if not share else f"{100 * share:.2g} %"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


@dataclass(frozen=True, kw_only=True)
class TokenizerComparison:
    """What was found.

    Attributes:
        data: the text, as it was given.
        config: what was asked for.
        train_bytes, val_bytes: of the text that was read.
        scores: of the tokenizers, in their order.
    """

    data: str
    config: CompareTokenizersConfig
    train_bytes: int
    val_bytes: int
    scores: tuple[TokenizerScore, ...]

    @property
    def best(self) -> TokenizerScore | None:
        """That with the fewest bits per byte; None where no model was trained."""
        trained = [score for score in self.scores if score.model is not None]
        return min(trained, key=lambda score: _bits(score), default=None)

    @property
    def shortest(self) -> TokenizerScore:
        """That with the most bytes per token."""
        return max(self.scores, key=lambda score: score.fit.bytes_per_token or 0.0)

    @property
    def why(self) -> Text:
        """The result in a sentence or two."""
        short, best = self.shortest, self.best
        lengths = f"{short.fit.bytes_per_token or 0:.2f}"
        length = Text(
            f"{short.name} makes the shortest sequences: {lengths} bytes per token.",
            f"시퀀스가 가장 짧은 것은 {short.name}입니다(토큰당 {lengths}바이트).",
        )
        if best is None:
            return length
        bits = f"{_bits(best):.3f}"
        if best is short:
            length = Text(
                f"It makes the shortest sequences too: {lengths} bytes per token.",
                f"시퀀스도 가장 짧습니다(토큰당 {lengths}바이트).",
            )
        return Text(
            f"With {best.name} the small model needs the fewest bits for a byte of held-out text: {bits}. {length.en}",
            f"작은 모델이 따로 둔 텍스트의 1바이트에 가장 적은 비트를 쓰는 것은 {best.name}입니다({bits}비트). "
            f"{length.ko}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data, "settings": flat_values(self.config), "train_bytes": self.train_bytes,
            "val_bytes": self.val_bytes, "why": asdict(self.why), "scores": [score.as_dict() for score in self.scores],
        }  # fmt: skip

    def rows(self, without: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of the table, the name first; columns that nothing fills are left out, and those `without`."""
        filled = [(head, cell) for head, cell in COLUMNS if any(cell(score) != "–" for score in self.scores)]
        used = [(head, cell) for head, cell in filled if head not in without]
        return ["", *(head for head, _ in used)], [
            [score.name, *(cell(score) for _, cell in used)] for score in self.scores
        ]

    def table(self) -> str:
        """The tokenizers as text."""
        heads, rows = self.rows()
        lines = [[SHORT.get(head, head) for head in heads], *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}" for i, (cell, width) in cells).rstrip()
            for cells in (enumerate(zip(line, widths, strict=True)) for line in lines)
        )


def _bits(score: TokenizerScore) -> float:
    assert score.model is not None
    return score.model.bits_per_byte
