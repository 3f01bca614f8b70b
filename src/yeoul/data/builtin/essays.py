"""Diaries, letters, short explanations and sums in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from yeoul.data.builtin import essay_lines
from yeoul.data.builtin.grammar import Context, Dice, Word, lines
from yeoul.data.builtin.hangul import Verb, attach, native_number
from yeoul.data.builtin.vocabulary import childlike, season_words, words

_lines = cache(lines)


@cache
def _essay_words() -> dict[str, tuple[Word, ...]]:
    verbs = {"do": "하다", "work": "일하다", "eat": "먹다/먹어", "make": "만들다/만들어"}
    pets: tuple[Word, ...] = ("강아지", "고양이", "토끼")
    return {**words(), "pet": pets, **{name: (Verb.parse(entry),) for name, entry in verbs.items()}}


def _children(dice: Dice, *keys: str) -> dict[str, Word]:
    """Different children under these names."""
    names = dice.sample(words()["name"], len(keys))
    return {key: childlike(str(name)) for key, name in zip(keys, names, strict=True)}


def _diary(dice: Dice) -> str:
    season = dice.pick(season_words())
    bound = {"season": season, **_children(dice, "third", "name")}
    context = Context(dice, _essay_words(), style=dice.pick((0, 0, 0, 1)), bound=bound)
    head = context.render("{month} {day} 일 {weekday}, {sky}")
    groups = [block for odds, block in essay_lines.DIARY if dice.chance(odds)]
    sentences: list[str] = []
    for block in groups:
        for line in dice.sample(_lines(block), 1 if not sentences else dice.pick((1, 1, 2))):
            sentences.append(context.render(line))
            for key in [key for key, word in context.bound.items() if isinstance(word, Verb)]:
                del context.bound[key]  # a day has many doings
    return f"{head}\n{' '.join(sentences)}"


def _letter(dice: Dice) -> str:
    elder = dice.chance(0.35)
    me, friend, third, other = (str(name) for name in dice.sample(words()["name"], 4))
    bound: dict[str, Word] = {"season": dice.pick(season_words())}
    bound |= {"third": childlike(third), "third2": childlike(other)}
    context = Context(dice, _essay_words(), polite=elder, bound=bound)
    relative = str(context.word("relative"))
    if elder:
        hello = f"{relative}께\n안녕하세요? 저 {attach(childlike(me), '이에요')}."
    else:
        hello = f"{childlike(friend)}에게\n{dice.pick((attach(friend, '아') + ', 안녕?', '안녕?'))} 나 {attach(me, '이야')}."
    body = dice.sample(_lines(essay_lines.LETTER), dice.number(3, 5))
    sentences = []
    for line in (dice.pick(_lines(essay_lines.LETTER_OPENINGS)), *body, dice.pick(_lines(essay_lines.LETTER_CLOSINGS))):
        sentences.append(context.render(line))
        context.bound = {key: word for key, word in context.bound.items() if not isinstance(word, Verb)}
    date = context.render("{month} {day} 일")
    sign = f"{childlike(me)} 올림" if elder else attach(childlike(me), "이")
    return f"{hello} {' '.join(sentences)}\n{date}\n{sign}"


@cache
def _knowledge() -> tuple[tuple[tuple[dict[str, Word], ...], tuple[str, ...]], ...]:
    """(entries, templates) of animals, jobs and things."""
    tables = (
        (essay_lines.ANIMALS, ("k_name", "k_look", "k_eats", "k_place", "k_does"), essay_lines.ANIMAL_TEMPLATES),
        (essay_lines.JOBS, ("k_name", "k_does", "k_place"), essay_lines.JOB_TEMPLATES),
        (essay_lines.THINGS, ("k_name", "k_does", "k_made"), essay_lines.THING_TEMPLATES),
    )
    result: list[tuple[tuple[dict[str, Word], ...], tuple[str, ...]]] = []
    for block, keys, templates in tables:
        rows = (dict(zip(keys, (cell.strip() for cell in line.split(" | ")), strict=True)) for line in lines(block))
        entries: tuple[dict[str, Word], ...] = tuple({**row, "k_does": Verb.parse(row["k_does"])} for row in rows)
        result.append((entries, templates))
    return tuple(result)


def _explanation(dice: Dice) -> str:
    """Three to six short texts about what things are."""
    style = dice.pick((0, 1, 2))
    texts = []
    for _ in range(dice.number(3, 6)):
        entries, templates = dice.pick(_knowledge())
        bound = {**dice.pick(entries), **_children(dice, "person")}
        texts.append(Context(dice, _essay_words(), style=style, bound=bound).render(dice.pick(templates)))
    return "\n".join(texts)


_COUNTED = (
    ("구슬", "개"), ("딱지", "장"), ("사과", "개"), ("공책", "권"), ("연필", "자루"), ("귤", "개"), ("조개", "개"),
    ("사탕", "개"), ("색종이", "장"), ("단추", "개"), ("장미", "송이"), ("우표", "장"), ("밤", "개"), ("쿠키", "개"),
)  # fmt: skip


def _sums(dice: Dice) -> str:
    """Two to four stories of adding and taking away, with the right results."""
    style = dice.pick((0, 1, 2))
    texts = []
    for _ in range(dice.number(2, 4)):
        thing, unit = dice.pick(_COUNTED)
        first, second = dice.number(2, 12), dice.number(2, 9)
        names = _children(dice, "who", "other")
        bound: dict[str, Word] = {**names, "thing": thing, "season": dice.pick(season_words())}

        def many(count: int, unit: str = unit) -> str:
            return f"{native_number(count)} {unit}"

        if dice.chance(0.5):
            bound |= {"a": many(first), "b": many(second), "c": many(first + second)}
            told = dice.pick((
                "{who}{은} {thing}{을} {a} 가지고 있었~. {other}{이} {b}{을} 더 주었~.",
                "{who}에게는 {thing}{이} {a} 있었~. {building}에서 {b}{을} 더 샀~.",
                "{who}{은} 아침에 {thing}{을} {a} 모으고 저녁에 {b} 더 모았~.",
                "상자에 {thing}{이} {a}, 바구니에 {b} 들어 있었~.",
            ))  # fmt: skip
            end = dice.pick(("그래서 {thing}{은} 모두 {c}{이} 되었~.", "모두 합하면 {c}{이었}~."))
        else:
            first += second
            bound |= {"a": many(first), "b": many(second), "c": many(first - second)}
            told = dice.pick((
                "{who}{은} {thing}{을} {a} 가지고 있었~. 그런데 {other}에게 {b}{을} 주었~.",
                "{who}에게는 {thing}{이} {a} 있었~. 그 가운데 {b}{을} 잃어버렸~.",
                "책상 위에 {thing}{이} {a} 있었~. {other}{이} {b}{을} 가져갔~.",
            ))  # fmt: skip
            end = dice.pick(("그래서 {thing}{은} {c}{이} 남았~.", "남은 {thing}{은} {c}{이었}~."))
        texts.append(Context(dice, _essay_words(), style=style, bound=bound).render(f"{told} {end}"))
    return "\n".join(texts)


_MAKERS: tuple[tuple[float, Callable[[Dice], str]], ...] = (
    (0.5, _diary), (0.82, _letter), (0.93, _explanation), (1.0, _sums)
)  # fmt: skip


def essay_documents(seed: int = 0) -> Iterator[str]:
    """Endless diaries, letters, explanations and sums."""
    dice = Dice(f"essay {seed}")
    while True:
        draw = dice.random()
        yield next(maker for limit, maker in _MAKERS if draw < limit)(dice)
