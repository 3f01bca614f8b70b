"""Texts of the built-in corpus from its templates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from yeoul.data.builtin import dialog_scripts, forest, people, people_plots, recall_lines, review_lines
from yeoul.data.builtin.essays import essay_documents
from yeoul.data.builtin.grammar import Context, Dice, Plot, Word, lines, parse_plots, with_synonyms
from yeoul.data.builtin.hangul import attach
from yeoul.data.builtin.vocabulary import childlike, season_words, words
from yeoul.data.dialogs import render_dialog

CORPUS_VERSION = 1
"""Raised when the same seed gives other bytes."""

SHARES = {"story": 0.45, "dialog": 0.17, "essay": 0.18, "review": 0.07, "recall": 0.13}
"""Share of each genre in `generate_documents`, in bytes."""

_story_plots = cache(lambda: (parse_plots(people_plots.PLOTS), parse_plots(forest.PLOTS)))
_dialog_plots = cache(
    lambda: (parse_plots(dialog_scripts.TOPICS + dialog_scripts.MORE_TOPICS), parse_plots(dialog_scripts.SERVICE))
)
_lines = cache(lines)


def generate_documents(seed: int = 0, target_bytes: int = 5_000_000) -> Iterator[str]:
    """Documents of all genres in turn, until they have `target_bytes` bytes of UTF-8 (the last may go over it).

    A larger target begins with the documents of a smaller one.
    """
    makers = {
        "story": generate_stories(seed),
        "dialog": _dialog_documents(seed),
        "essay": essay_documents(seed),
        "review": _review_documents(seed),
        "recall": _recall_documents(seed),
    }
    written = dict.fromkeys(makers, 0)
    while sum(written.values()) < target_bytes:
        genre = min(makers, key=lambda name: written[name] / SHARES[name])
        document = next(makers[genre])
        written[genre] += len(document.encode())
        yield document


def _base(name: str) -> dict[str, Word]:
    """A child as the hero of a story."""
    child = childlike(name)
    return {"hero": child, "hero_call": attach(name, "아"), "hero_me": attach(name, "이야")}


def _one(context: Context, block: str) -> str:
    return context.render(context.dice.pick(_lines(block)))


def _title(plot: Plot) -> tuple[str, list[str], bool]:
    """A plot's title, the seasons in which it may happen, and whether the friend is a stranger in it."""
    title, _, flags = plot.title.partition(" #")
    title, _, seasons = title.partition(" @")
    return title, seasons.split() or list(season_words()), flags == "stranger"


def generate_stories(seed: int = 0) -> Iterator[str]:
    """Endless short stories: half about children, half about animals."""
    dice = Dice(f"story {seed}")
    child_plots, forest_plots = _story_plots()
    while True:
        human = dice.chance(0.6)
        plot = dice.pick(child_plots if human else forest_plots)
        yield (_people_story if human else _forest_story)(dice, plot)


@cache
def _story_words() -> dict[str, tuple[Word, ...]]:
    return {**words(), "pet": ("강아지", "고양이", "토끼")}


@cache
def _forest_words() -> dict[str, tuple[Word, ...]]:
    spots = ("나무 뒤", "풀숲 속", "나무 아래", "바위 옆", "큰 돌 밑", "덤불 속", "굴 앞", "쓰러진 통나무 옆", "바위틈")
    return {**words(), "spot": spots}


def _people_story(dice: Dice, plot: Plot) -> str:
    title, seasons, stranger = _title(plot)
    hero, friend, kid, other = dice.sample(words()["name"], 4)
    assert all(isinstance(name, str) for name in (hero, friend, kid, other))
    bound = _base(str(hero)) | {"season": dice.pick(seasons), "kid": childlike(str(kid)), "name": childlike(str(other))}
    bound |= {"friend": childlike(str(friend)), "friend_call": attach(str(friend), "아")}
    context = Context(dice, _story_words(), style=dice.pick((0, 0, 1, 2)), bound=bound)
    openings = [line for line in _lines(people.OPENINGS) if not (stranger and "{friend}" in line)]
    opening = [context.render(dice.pick(openings))]
    if dice.chance(0.6):
        opening.append(_one(context, people.TIMES))
    scenery = people.SCENERY[str(bound["season"])]
    text = _tell(context, plot, opening, (scenery, people.MOMENTS, people.ENDINGS))
    if not stranger:
        text = _introduce(text, str(bound["friend"]), "친구 ")
    return _titled(context, title, text)


def _forest_story(dice: Dice, plot: Plot) -> str:
    title, seasons, _ = _title(plot)
    hero, friend, third = (str(word) for word in dice.sample(words()["beast"], 3))
    bound: dict[str, Word] = {"season": dice.pick(seasons), "third": third, "friend": friend, "hero": hero}
    bound |= {"hero_call": attach(hero, "아"), "friend_call": attach(friend, "아")}
    context = Context(dice, _forest_words(), style=dice.pick((0, 0, 1, 2)), bound=bound)
    opening = [_one(context, forest.OPENINGS)]
    if dice.chance(0.6):
        opening.append(_one(context, forest.TIMES))
    scenery = forest.SCENERY[str(bound["season"])]
    text = _tell(context, plot, opening, (scenery, forest.MOMENTS, forest.ENDINGS))
    return _titled(context, title, text)


def _tell(context: Context, plot: Plot, opening: list[str], blocks: tuple[str, str, str]) -> str:
    """An opening, the beats of a plot with scenery and side glances between, and an ending, as paragraphs."""
    dice = context.dice
    scenery, moments, endings = blocks
    paragraphs = [opening]
    if dice.chance(0.5):
        opening.append(_one(context, moments))
    for number, beat in enumerate(plot.beats):
        if beat.odds < 1 and not dice.chance(beat.odds):
            continue
        if beat.paragraph:
            paragraphs.append([])
        if (beat.paragraph or number == 0) and dice.chance(0.35):
            paragraphs[-1].append(_one(context, scenery))
        paragraphs[-1].append(context.render(with_synonyms(dice.pick(beat.options))))
    paragraphs[-1].append(_one(context, endings))
    return "\n".join(" ".join(sentences) for sentences in paragraphs)


def _introduce(text: str, name: str, role: str) -> str:
    """Put a role before the first mention of a name outside of quotes, unless an earlier mention is inside."""
    found = re.search(rf"(?<!\S){name}(?!야)", text)
    first = text.find(name)
    if found is None or found.start() != first or text.count('"', 0, first) % 2:
        return text
    return text[:first] + role + text[first:]


def _titled(context: Context, title: str, text: str) -> str:
    """A quarter of the stories has its title in the first line."""
    return f"{context.render(title)}\n{text}" if context.dice.chance(0.25) else text


def _dialog(dice: Dice) -> list[dict[str, str]]:
    """The turns of one dialog."""
    friends_plots, service_plots = _dialog_plots()
    first, second, third = (str(name) for name in dice.sample(words()["name"], 3))
    bound: dict[str, Word] = {"season": dice.pick(season_words())}
    if dice.chance(0.25):
        context = Context(dice, words(), polite=True, bound=bound)
        return _turns(context, [_beat_line(context, beat.options) for beat in dice.pick(service_plots).beats])
    polite = dice.chance(0.5)
    for key, name in (("a", first), ("b", second)):
        bound[f"{key}_call"] = f"{name} 씨" if polite else attach(name, "아")
        bound[f"you_{key}"] = f"{name} 씨" if polite else "너"
    bound["third"] = f"{third} 씨" if polite else childlike(third)
    context = Context(dice, words(), polite=polite, bound=bound)
    blocks: list[str] = []
    if dice.chance(0.6):
        greeting = _one(context, dialog_scripts.GREETINGS)
        blocks.append(greeting)
        if "지냈어" in greeting:
            blocks.append(_one(context, dialog_scripts.REPLIES))
    blocks += [_beat_line(context, beat.options) for beat in dice.pick(friends_plots).beats]
    if dice.chance(0.6):
        blocks.append(_one(context, dialog_scripts.CLOSINGS))
    return _turns(context, blocks)


def _beat_line(context: Context, options: tuple[str, ...]) -> str:
    return context.render(context.dice.pick(options))


def _turns(context: Context, blocks: list[str]) -> list[dict[str, str]]:
    utterances = [text for block in blocks for text in block.split(" / ")]
    return [{"speaker": ("user", "system")[number % 2], "utterance": text} for number, text in enumerate(utterances)]


def generate_dialogs(seed: int = 0, count: int = 1000) -> dict[str, Any]:
    """Daily dialogs: {"dialogs": [{"id": "0", "conversation": [{"speaker": "user" | "system", "utterance"}]}]}."""
    dice = Dice(f"dialog {seed}")
    return {"dialogs": [{"id": str(number), "conversation": _dialog(dice)} for number in range(count)]}


def _dialog_documents(seed: int) -> Iterator[str]:
    dice = Dice(f"dialog {seed}")
    while True:
        yield render_dialog(_dialog(dice))


def _review(dice: Dice) -> tuple[str, bool]:
    """A review of two to five sentences and whether it is positive."""
    good = dice.chance(0.5)
    kind = dice.pick(tuple(review_lines.OPENINGS))
    third = dice.pick(("친구", "동생", "가족", "언니", "형", "누나", "오빠", "이모", "삼촌", "사촌"))
    bound: dict[str, Word] = {"season": dice.pick(season_words()), "third": third}
    bound["kind"] = kind
    context = Context(dice, words(), style=dice.pick((0, 1, 1, 2)), bound=bound)
    mine, other = (review_lines.GOOD, review_lines.BAD) if good else (review_lines.BAD, review_lines.GOOD)
    sentences = [_one(context, review_lines.OPENINGS[kind])] if dice.chance(0.7) else []
    points = dice.sample(_lines(mine[kind]), dice.number(1, 3))
    doubt = _one(context, other[kind])
    if dice.chance(0.15) and not {word[:2] for word in doubt.split()} & {word[:2] for word in points[0].split()}:
        sentences += [doubt, "하지만 " + context.render(points.pop(0))]
    sentences += [context.render(point) for point in points]
    if dice.chance(0.6):
        sentences.append(_one(context, review_lines.VERDICTS[good]))
    return " ".join(sentences), good


def generate_reviews(seed: int = 0, count: int = 1000) -> Iterator[dict[str, str]]:
    """Short reviews: {"text", "label"} with the label "positive" or "negative"."""
    dice = Dice(f"review {seed}")
    for _ in range(count):
        text, good = _review(dice)
        yield {"text": text, "label": "positive" if good else "negative"}


def _review_documents(seed: int) -> Iterator[str]:
    """Several reviews a document, each with its label in Korean."""
    dice = Dice(f"review {seed}")
    while True:
        reviews = [_review(dice) for _ in range(dice.number(2, 5))]
        yield "\n".join(f"{text}\n평가: {'긍정' if good else '부정'}" for text, good in reviews)


@cache
def _recall_words() -> dict[str, tuple[Word, ...]]:
    number = tuple(str(value) for value in range(1, 100))
    return {
        **words(),
        "catdog": ("강아지", "고양이"),
        "marble": ("구슬", "딱지", "조개", "단추", "솔방울"),
        "number": number,
    }


def _recall(dice: Dice, distance: int) -> tuple[str, str]:
    """Facts about several people, `distance` other sentences, a question about one fact, and its answer."""
    style = dice.pick((0, 1, 2))
    season = dice.pick(season_words())
    names = dice.sample(words()["name"], dice.number(2, 4))
    told: list[tuple[str, str, str]] = []  # statement, question, answer
    for fact in dice.sample(recall_lines.FACTS, dice.number(1, 3)):
        context = Context(dice, _recall_words(), style=style)
        thing = context.word(fact.thing) if fact.thing else ""
        for value, name in zip(dice.sample(_recall_words()[fact.value], len(names)), names, strict=True):
            context.bound = {"who": childlike(str(name)), "thing": thing, "value": value}
            answer = f"{value}{recall_lines.COUNTED.get(fact.value, '')}"
            statement, question = context.render(dice.pick(fact.statements)), context.render(dice.pick(fact.questions))
            told.append((statement, question, answer))
    told = dice.sample(told, min(len(told), dice.number(2, 6)))
    _, question, answer = dice.pick(told)
    context = Context(dice, words(), style=style, bound={"season": season})
    fillers: list[str] = []
    while len(fillers) < distance:
        context.bound = {"season": season}
        fillers += [context.render(line) for line in dice.sample(_lines(recall_lines.FILLERS), distance - len(fillers))]
    body = " ".join([*(statement for statement, _, _ in told), *fillers])
    return f"{body}\n질문: {question}\n답:", answer


def generate_recall(seed: int = 0, count: int = 1000, distance: int = 10) -> Iterator[dict[str, str]]:
    """Facts told early and asked late: {"prompt", "answer"}; the text is prompt, a space and answer.

    Args:
        distance: how many other sentences stand between the facts and the question.
    """
    dice = Dice(f"recall {seed} {distance}")
    for _ in range(count):
        prompt, answer = _recall(dice, distance)
        yield {"prompt": prompt, "answer": answer}


def _recall_documents(seed: int) -> Iterator[str]:
    dice = Dice(f"recall {seed}")
    while True:
        prompt, answer = _recall(dice, dice.number(0, 16))
        yield f"{prompt} {answer}"
