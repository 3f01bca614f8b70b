"""Does a text keep the rules of Korean that can be checked without a dictionary? Particles, syllables, spacing.

A particle has two forms, and the final consonant before it decides: 은/는, 이/가, 을/를, 와/과, 으로/로 (로 also after
ㄹ). Many words only end like a particle: 먹는, 나이, 가을, 사과, 서로. A rule cannot tell 집는, a verb form ("picking
up"), from 집 with the wrong particle, so it says nothing there: such endings are counted as undecided, and what is
found is meant to be a mistake. `korean_words` lists what is let pass.

The judge reads text alone: no model, no tokenizer, no torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from yeoul.data.builtin.hangul import PARTICLES, final_consonant, particle
from yeoul.evaluate import korean_words as words

Kind = Literal["particle", "syllable", "spacing"]

_WORD = re.compile(r"[가-힣]+")
_ENDING = re.compile(r"(?:으로|은|는|이|가|을|를|과|와|로)\Z")
_GOES_ON = frozenset("-'’_~")
"""Behind a word, these may mean that it is not whole."""
_NAMES = {form: name for name in ("은", "이", "을", "과", "으로") for form in PARTICLES[name]}
"""Form of a particle -> the particle's name in `PARTICLES`."""

_MODERN = frozenset(map(chr, range(0x3131, 0x3164)))
_MOODS = frozenset("ㅋㅎㅠㅜㅡㅉㄷㅇㅗㅏㅑㅓㅣ")
"""Letters that are written alone on purpose: laughter, tears, faces."""
_CONSONANTS = frozenset(map(chr, range(0x3131, 0x314F)))
_SHORT = frozenset(("ㄳ", "ㅄ", "ㅆ"))
"""Thanks, and an insult or two: written so by everybody."""
_FACE = re.compile(r"([ㅠㅜㅡㅗ])[ㄱ-ㅣ]\1")
_LETTERS = re.compile(r"[ㄱ-ㅣ]+|[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]+")
_OLD_SYLLABLES = re.compile(
    r"([\u1100-\u115e\ua960-\ua97f]+[\u1161-\u11a7\ud7b0-\ud7c6]+[\u11a8-\u11ff\ud7cb-\ud7ff]*)+"
)
"""Whole syllables of Hangul that no single character stands for."""

_RIEUL = "".join(chr(code) for code in range(ord("가"), ord("힣") + 1) if final_consonant(chr(code)) == "ㄹ")
_NEVER_ALONE = (
    "를|을|는|에서|에게|에게서|께서|으로|으로서|으로써|처럼|까지|부터|조차|에는|에서는|에게는|으로는|부터는|까지는|"
    "이라는|이라고"
)
_SPACING = tuple(
    (re.compile(pattern), better)
    for pattern, better in (
        (rf"([가-힣]) ({_NEVER_ALONE})(?![가-힣])", r"\1\2"),  # a particle belongs to its word
        (r"([가-힣])(?<![.,!?])([.,!?])([가-힣])", r"\1\2 \3"),
        (r"([가-힣]) +([.,!?])(?![.,!?])", r"\1\2"),
        (r"(\S) {2,}(?=\S)", r"\1 "),
        (r"([가-힣])(때문)", r"\1 \2"),  # nouns that need another one before them
        (r"(는|던)(것)(?=[은이을도만과들입임의에]|\b)", r"\1 \2"),
        (r"(것)(같[다아은습네이았으고던])", r"\1 \2"),
        (rf"([{_RIEUL}])(수)([있없])", r"\1 \2 \3"),
    )
)
"""What must not be written so, and how it is written: Hangul orthography (한글 맞춤법), articles 41 and 42, and its
appendix on punctuation."""


@dataclass(frozen=True)
class Finding:
    """One mistake: `text[start:end]` of the text that was judged, and what should stand there ("" if unknown)."""

    kind: Kind
    start: int
    end: int
    text: str
    better: str = ""

    def __str__(self) -> str:
        return f"{self.text} → {self.better}" if self.better else self.text


@dataclass(frozen=True, kw_only=True)
class KoreanScore:
    """What was found in one text or in several.

    Attributes:
        words: words that contain a Hangul syllable, as blanks separate them.
        syllables: Hangul syllables.
        particles: endings that look like one of the five particles and that a rule could decide, right or wrong.
        undecided: endings that look like one, but may be part of the word.
        wrong_particles: the form that does not go with the final consonant before it.
        broken: replacement characters (U+FFFD) and Hangul letters that stand outside a syllable.
        spacing: missing or superfluous blanks, as far as a rule can tell.
    """

    words: int = 0
    syllables: int = 0
    particles: int = 0
    undecided: int = 0
    wrong_particles: int = 0
    broken: int = 0
    spacing: int = 0

    def __add__(self, other: KoreanScore) -> KoreanScore:
        return KoreanScore(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def particle_rate(self) -> float | None:
        """Wrong ones among the particles that could be decided; None where there is none."""
        return self.wrong_particles / self.particles if self.particles else None

    @property
    def broken_rate(self) -> float | None:
        """Broken syllables among all; None in a text without Hangul."""
        return self.broken / (self.syllables + self.broken) if self.syllables + self.broken else None

    @property
    def spacing_rate(self) -> float | None:
        """Spacing errors for each word; None in a text without Hangul."""
        return self.spacing / self.words if self.words else None

    def as_dict(self) -> dict[str, Any]:
        """Counts and rates, plain values for JSON."""
        rates = {name: getattr(self, name) for name in ("particle_rate", "broken_rate", "spacing_rate")}
        return asdict(self) | rates


def judge(text: str) -> KoreanScore:
    """The score of one text."""
    return judge_all([text])


def judge_all(texts: Iterable[str]) -> KoreanScore:
    """The score of several texts together."""
    total = KoreanScore()
    for text in texts:
        text = unicodedata.normalize("NFC", text)
        decided = list(_particles(text))
        total += KoreanScore(
            words=sum(bool(_WORD.search(word)) for word in text.split()),
            syllables=sum(map(len, _WORD.findall(text))),
            particles=sum(right is not None for _, right in decided),
            undecided=sum(right is None for _, right in decided),
            wrong_particles=sum(right is False for _, right in decided),
            broken=sum(1 for _ in _broken(text)),
            spacing=sum(1 for _ in _spacing(text)),
        )
    return total


def findings(text: str) -> list[Finding]:
    """Every mistake in a text, in order; places are those of its NFC form."""
    text = unicodedata.normalize("NFC", text)
    wrong = [_corrected(match) for match, right in _particles(text) if right is False]
    return sorted([*wrong, *_broken(text), *_spacing(text)], key=lambda found: found.start)


# -- particles


def _particles(text: str) -> Iterator[tuple[re.Match[str], bool | None]]:
    """Words that end like a particle, and whether that is its right form; None where a rule cannot know."""
    for match in _WORD.finditer(text):
        ending = _ENDING.search(match[0])
        after = text[match.end() : match.end() + 1]
        if ending is not None and ending.start() > 0 and not (after.isalnum() or after in _GOES_ON):
            yield match, decide(match[0][: ending.start()], ending[0])


def decide(stem: str, form: str) -> bool | None:
    """Whether `form` is the right form of a particle after `stem`, both in Hangul syllables; None if it may be none.

    The right form counts as one only where the wrong one would have been noticed, so that the share of wrong ones
    among those decided is that of the particles.
    """
    final = final_consonant(stem[-1])
    right = particle(stem[-1], _NAMES[form])
    other = next(f for f in PARTICLES[_NAMES[form]] if f != right)
    if stem + form in words.KNOWN or not words.noticed(stem, other, final):
        return None
    return form == right


def _corrected(match: re.Match[str]) -> Finding:
    ending = _ENDING.search(match[0])
    assert ending is not None
    stem = match[0][: ending.start()]
    better = stem + particle(stem[-1], _NAMES[ending[0]])
    return Finding("particle", match.start(), match.end(), match[0], better)


# -- syllables


def _broken(text: str) -> Iterator[Finding]:
    """Replacement characters, and letters outside syllables that are no laughter, tears, faces, initials or marks."""
    for match in _LETTERS.finditer(text):
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        if not _on_purpose(match[0], before, after):
            yield Finding("syllable", match.start(), match.end(), match[0])
    for match in re.finditer("\ufffd+", text):
        yield Finding("syllable", match.start(), match.end(), match[0])


def _on_purpose(letters: str, before: str, after: str) -> bool:
    """Whether a run of Hangul letters was meant so, by what it is and by the characters beside it ("" for none)."""
    if letters[0] not in _MODERN:
        return _OLD_SYLLABLES.fullmatch(letters) is not None
    beside = _is_syllable(before) + _is_syllable(after)
    if set(letters) <= _MOODS or letters in _SHORT or _FACE.fullmatch(letters):
        return True
    if len(letters) > 1 and set(letters) <= _CONSONANTS:  # initials: ㅇㅈ, ㄱㅅ, 빨리ㄱㄱ
        return beside < 2
    return beside == 0 and bool(after) and (after in ".)]:-" or not (before.isspace() or after.isspace() or not before))


def _is_syllable(char: str) -> bool:
    return "가" <= char <= "힣"


# -- spacing


def _spacing(text: str) -> Iterator[Finding]:
    """Blanks that are missing or should not be there."""
    for pattern, better in _SPACING:
        for match in pattern.finditer(text):
            yield Finding("spacing", match.start(), match.end(), match[0], match.expand(better))
