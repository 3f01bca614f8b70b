"""A small template language for Korean, and the words that fill it.

In a template
    {toy}        is a word of the category "toy": chosen once a text and then kept; {toy2} is another one;
    {*toy}       is a fresh word each time;
    {act.고}     is a verb phrase with an ending (`hangul.Verb.form`);
    {은}         is a particle that fits the character before it (`hangul.PARTICLES`);
    [a|b|]       is one of the alternatives, which may hold templates again;
    <a|b>        is the first in familiar speech, the second in polite speech;
    @            is nothing in familiar speech and 요 in polite speech;
    ~            is the ending after ㅆ of the text's style: 다, 어요 or 습니다; {act.~} the present tense of a verb,
    {=}          and {=} the copula (이다, 이에요, 입니다) in that style.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeVar

from yeoul.data.builtin.hangul import PARTICLES, Verb, particle

T = TypeVar("T")
Word = str | Verb
ENDINGS = ("다", "어요", "습니다")
PRESENT = ("ㄴ다", "어요", "ㅂ니다")
COPULA = ("이다", "이에요", "입니다")
SYNONYMS = {
    "하지만": ("하지만", "그러나", "그렇지만"),
    "드디어": ("드디어", "마침내"),
    "마침내": ("마침내", "드디어"),
    "무척": ("무척", "아주", "몹시", "정말"),
    "아주": ("아주", "무척", "참"),
    "얼른": ("얼른", "재빨리", "서둘러"),
    "함께": ("함께", "같이"),
    "금세": ("금세", "금방", "곧"),
    "날마다": ("날마다", "매일", "하루도 빠짐없이"),
    "갑자기": ("갑자기", "별안간"),
    "문득": ("문득", "불현듯"),
    "다시": ("다시", "또다시"),
    "그래서": ("그래서", "그리하여"),
    "조금씩": ("조금씩", "차츰", "차차"),
    "점점": ("점점", "점차", "갈수록"),
    "말했~.": ("말했~.", "이야기했~."),
    "빙그레": ("빙그레", "싱긋"),
    "힘껏": ("힘껏", "온 힘을 다해"),
    "가만히": ("가만히", "조용히", "말없이"),
    "그때": ("그때", "바로 그때", "그 순간"),
}
"""Words of narrative templates that others may stand for (`with_synonyms`)."""


class Dice:
    """Choices by `random.Random.random` alone, whose sequence is the same in every version of Python."""

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(seed).random

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Different items in random order."""
        rest = list(items)
        return [rest.pop(int(self.random() * len(rest))) for _ in range(min(count, len(rest)))]


class _Slot(NamedTuple):
    name: str
    category: str
    ending: str
    fresh: bool


class _Particle(NamedTuple):
    name: str


class _Choice(NamedTuple):
    options: tuple[tuple[_Node, ...], ...]
    by_register: bool


class _Mark(NamedTuple):
    char: str


_Node = str | _Slot | _Particle | _Choice | _Mark


def _slot(content: str) -> _Node:
    if content == "=":
        return _Mark("=")
    if content in PARTICLES:
        return _Particle(content)
    name, _, ending = content.partition(".")
    fresh = name.startswith("*")
    name = name.removeprefix("*")
    return _Slot(name, name.rstrip("0123456789"), ending, fresh)


def _parse(text: str, start: int, stops: str) -> tuple[tuple[_Node, ...], int]:
    nodes: list[_Node] = []
    literal = ""
    index = start
    while index < len(text) and text[index] not in stops:
        char = text[index]
        if char not in "{[<@~":
            literal += char
            index += 1
            continue
        if literal:
            nodes.append(literal)
            literal = ""
        if char == "{":
            end = text.index("}", index)
            nodes.append(_slot(text[index + 1 : end]))
            index = end + 1
        elif char in "@~":
            nodes.append(_Mark(char))
            index += 1
        else:
            options, close = [], "]" if char == "[" else ">"
            while True:
                option, index = _parse(text, index + 1, "|" + close)
                options.append(option)
                if index >= len(text):
                    raise ValueError(f"{close} is missing in the template: {text}")
                if text[index] == close:
                    break
            nodes.append(_Choice(tuple(options), char == "<"))
            index += 1
    if literal:
        nodes.append(literal)
    return tuple(nodes), index


@cache
def with_synonyms(template: str) -> str:
    """A narrative template in which single words have become choices among synonyms; quoted speech stays as it is."""
    spoken = False
    words = []
    for word in template.split(" "):
        spoken ^= word.count('"') % 2 == 1
        plain = not spoken and not word.endswith('"') and word in SYNONYMS
        words.append(f"[{'|'.join(SYNONYMS[word])}]" if plain else word)
    return " ".join(words)


@cache
def compile_template(text: str) -> tuple[_Node, ...]:
    """Parse a template once."""
    nodes, end = _parse(text, 0, "")
    assert end == len(text)
    return nodes


class Context:
    """One text in the making: its words so far and its style.

    Args:
        dice: where choices come from.
        words: category -> words; a category "name@season" goes before "name" when the season is bound.
        style: index into `ENDINGS`.
        polite: whether people speak politely to one another.
        bound: words that stand from the beginning.
    """

    def __init__(
        self,
        dice: Dice,
        words: dict[str, tuple[Word, ...]],
        style: int = 0,
        polite: bool = False,
        bound: dict[str, Word] | None = None,
    ) -> None:
        self.dice, self.words, self.style, self.polite = dice, words, style, polite
        self.bound: dict[str, Word] = dict(bound or {})

    def word(self, name: str, category: str = "", fresh: bool = False) -> Word:
        """The word of a slot, chosen now if it is not bound; never one that another slot of its category has."""
        if not fresh and name in self.bound:
            return self.bound[name]
        category = category or name.rstrip("0123456789")
        choices = self.words.get(f"{category}@{self.bound.get('season')}") or self.words[category]
        word = self.dice.pick(choices)
        taken = [value for key, value in self.bound.items() if key.rstrip("0123456789") == category]
        while word in taken and len(taken) < len(choices):
            word = self.dice.pick(choices)
        if not fresh:
            self.bound[name] = word
        return word

    def render(self, template: str) -> str:
        """Fill a template."""
        pieces: list[str] = []
        self._render(compile_template(template), pieces)
        return "".join(pieces)

    def _render(self, nodes: tuple[_Node, ...], out: list[str]) -> None:
        for node in nodes:
            if isinstance(node, str):
                out.append(node)
            elif isinstance(node, _Particle):
                out.append(particle(out[-1][-1], node.name))
            elif isinstance(node, _Slot):
                word = self.word(node.name, node.category, node.fresh)
                if isinstance(word, Verb):
                    out.append(word.form(PRESENT[self.style] if node.ending == "~" else node.ending))
                elif "@" in word:
                    self._render(compile_template(word), out)
                else:
                    out.append(word)
            elif isinstance(node, _Choice):
                option = node.options[self.polite] if node.by_register else self.dice.pick(node.options)
                self._render(option, out)
            elif node.char == "=":
                text = COPULA[self.style]
                out.append(particle(out[-1][-1], "이에요") if text == "이에요" else text)
            elif node.char == "~":
                out.append(ENDINGS[self.style])
            elif self.polite:
                out.append("요")


class Beat(NamedTuple):
    """One step of a plot."""

    odds: float
    paragraph: bool
    options: tuple[str, ...]


class Plot(NamedTuple):
    """A title and the steps of a text, in order."""

    title: str
    beats: tuple[Beat, ...]


def parse_plots(text: str) -> tuple[Plot, ...]:
    """Read plots written as lines: "= title", then beats between lines of "-"; each line of a beat is an alternative.

    "-?" begins a beat that is left out half of the time, "-/" one that begins a paragraph.
    """
    plots: list[Plot] = []
    for line in lines(text):
        if line.startswith("= "):
            plots.append(Plot(line[2:], (Beat(1.0, False, ()),)))
        elif line in ("-", "-?", "-/"):
            beat = Beat(0.5 if line == "-?" else 1.0, line == "-/", ())
            plots[-1] = plots[-1]._replace(beats=(*plots[-1].beats, beat))
        else:
            *before, last = plots[-1].beats
            plots[-1] = plots[-1]._replace(beats=(*before, last._replace(options=(*last.options, line))))
    return tuple(plots)


def lines(text: str) -> tuple[str, ...]:
    """Non-empty lines of a block."""
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())
