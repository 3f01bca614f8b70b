"""The built-in corpus: the same bytes for a seed, grammatical, varied, and answerable."""

import hashlib
import itertools
import random
import re

import pytest

from yeoul.data.builtin import (
    dialog_scripts,
    essay_lines,
    forest,
    generate_dialogs,
    generate_documents,
    generate_recall,
    generate_reviews,
    generate_stories,
    people,
    people_plots,
    recall_lines,
    review_lines,
)
from yeoul.data.builtin.grammar import Context, Dice, _Choice, _Slot, compile_template, lines, with_synonyms
from yeoul.data.builtin.hangul import final_consonant
from yeoul.data.builtin.vocabulary import VERB_CATEGORIES, words

CORPUS_HASH = "4f6666c0376392f7ef674cd0de36b5dc86161fa16260088b89c9308fcf0521a3"

BOUND = """hero hero_call hero_me friend friend_call third kid season name you_a you_b a_call b_call who thing
value kind person k_name k_look k_eats k_place k_does k_made do work eat make"""


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(generate_documents(seed=0, target_bytes=1_000_000))


def templates() -> list[str]:
    """Every template of the package."""
    found: list[str] = []

    def collect(value) -> None:
        if isinstance(value, str):
            found.extend(lines(value))
        elif isinstance(value, dict):
            collect(list(value.values()))
        elif isinstance(value, list | tuple):
            for part in value:
                collect(part)

    for module in (people, people_plots, forest, dialog_scripts, review_lines, recall_lines, essay_lines):
        tables = {"ANIMALS", "JOBS", "THINGS", "COUNTED"}
        collect([value for name, value in vars(module).items() if name.isupper() and name not in tables])
    return [line for line in found if "-" not in line[:1]]


def slots(nodes):
    for node in nodes:
        if isinstance(node, _Slot):
            yield node
        elif isinstance(node, _Choice):
            for option in node.options:
                yield from slots(option)


def test_a_seed_gives_the_same_bytes_for_ever(corpus):
    text = "\n\n".join(corpus)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == CORPUS_HASH, "raise CORPUS_VERSION and write the new hash here"
    random.seed(5)
    beginning = list(generate_documents(seed=0, target_bytes=50_000))
    assert beginning == corpus[: len(beginning)]
    assert list(generate_documents(seed=1, target_bytes=5_000)) != corpus[:5]


def test_size_is_as_asked(corpus):
    sizes = [len(document.encode()) for document in corpus]
    assert 1_000_000 <= sum(sizes) < 1_000_000 + max(sizes)


def test_every_slot_has_words_and_every_verb_an_ending():
    table = words()
    categories = {name.partition("@")[0] for name in table}
    for template in templates():
        for slot in slots(compile_template(template)):
            if slot.name in BOUND.split() or slot.category in BOUND.split():
                continue
            assert slot.category in categories, template
            assert (slot.category in VERB_CATEGORIES) == bool(slot.ending), template


def test_particles_in_templates_are_not_fixed():
    """A slot whose words end differently may not be followed by one form of a particle."""
    table = words()
    fixed = re.compile(r"\{\*?([a-z_]+)\d*\}(은|는|이|가|을|를|과|와|으로|로)(?=[ .,!?~])")
    for template in templates():
        for name, _ in fixed.findall(template):
            finals = {final_consonant(str(word)[-1]) != " " for word in table.get(name, ("가", "각"))}
            assert name == "season" or len(finals) == 1, template


def test_no_wrong_particles_in_the_text(corpus):
    """The nouns of the vocabulary, wherever they stand, take the form that fits."""
    nouns = {str(word) for name in ("item", "food", "fruit", "tree", "flower", "city") for word in words()[name]}
    pattern = re.compile(
        rf"(?<!\S)({'|'.join(sorted(nouns, key=len, reverse=True))})(은|는|을|를|과|와|으로|로)(?=[ .,])"
    )
    found = pattern.findall("\n".join(corpus))
    assert len(found) > 800
    for noun, particle in found:
        closed = final_consonant(noun[-1]) != " "
        if particle in ("으로", "로"):
            assert (particle == "으로") == (closed and final_consonant(noun[-1]) != "ㄹ"), noun + particle
        else:
            assert (particle in ("은", "을", "과")) == closed, noun + particle


def test_nothing_of_the_template_language_is_left(corpus):
    text = "\n".join(corpus)
    assert not re.search(r"[{}\[\]<>@~|/_]", text)
    assert "  " not in text and " ." not in text
    assert not re.search(r"[ \t]$", text, flags=re.M)


def test_speech_keeps_its_register():
    """In a dialog every sentence is polite or none is."""
    polite = re.compile(r"(요|니다|니까|죠|씨)[.?!]$")
    for dialog in generate_dialogs(seed=2, count=500)["dialogs"]:
        turns = [turn["utterance"] for turn in dialog["conversation"]]
        sentences = [part.strip() for turn in turns for part in re.findall(r"[^.?!]+[.?!]+", turn)]
        if sum(bool(polite.search(sentence)) for sentence in sentences) > len(sentences) / 2:
            assert all(polite.search(sentence) for sentence in sentences), turns
        else:
            assert not any(re.search(r"(요|니다|죠|씨)[.?!]$", sentence) for sentence in sentences), turns


def test_dialogs_follow_the_schema():
    dialogs = generate_dialogs(seed=3, count=200)
    assert dialogs == generate_dialogs(seed=3, count=200) and len(dialogs["dialogs"]) == 200
    assert len({dialog["id"] for dialog in dialogs["dialogs"]}) == 200
    for dialog in dialogs["dialogs"]:
        speakers = [turn["speaker"] for turn in dialog["conversation"]]
        assert speakers == ["user", "system"] * (len(speakers) // 2) and len(speakers) >= 4
        assert all(turn["utterance"].strip() and "\n" not in turn["utterance"] for turn in dialog["conversation"])


def test_reviews_have_balanced_labels():
    reviews = list(generate_reviews(seed=1, count=1000))
    assert len(reviews) == 1000 and reviews == list(generate_reviews(seed=1, count=1000))
    positive = sum(review["label"] == "positive" for review in reviews)
    assert 400 < positive < 600 and {review["label"] for review in reviews} == {"positive", "negative"}
    assert len({review["text"] for review in reviews}) > 900


@pytest.mark.parametrize("distance", [0, 5, 80])
def test_recall_can_be_answered_from_the_prompt_alone(distance):
    for item in generate_recall(seed=4, count=200, distance=distance):
        prompt, answer = item["prompt"], item["answer"]
        assert prompt.endswith("\n답:") and answer
        body, question = prompt.rsplit("\n질문: ", 1)
        assert answer in body
        who = re.match(r"(\S+?)(이|가|은|는|의|네)\s", question)
        assert who and who[1] in body
        assert len(re.findall(r"[.]", body)) >= distance


def test_stories_keep_their_characters():
    for story in itertools.islice(generate_stories(seed=1), 300):
        assert 100 < len(story) < 2500
        assert re.search(r"[.!?\"]$", story)


def test_the_corpus_is_varied(corpus):
    text = "\n".join(corpus)
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n", text) if part]
    eojeols = text.split()
    assert len(set(sentences)) / len(sentences) > 0.5
    assert len(set(eojeols)) > 7000 and len({char for char in text if "가" <= char <= "힣"}) > 850
    assert len(set(corpus)) == len(corpus)


def test_template_language():
    context = Context(Dice(0), {"꽃": ("장미", "국화"), "색@봄": ("노란",), "색": ("하얀",)}, style=1, polite=True)
    context.bound["season"] = "봄"
    assert context.render("{색} {꽃}{을} 봤~.") in ("노란 장미를 봤어요.", "노란 국화를 봤어요.")
    assert context.render("{꽃}, {꽃}") in ("장미, 장미", "국화, 국화")
    assert context.render("{꽃} {꽃2}") in ("장미 국화", "국화 장미")
    assert context.render("<응|네>, [좋아@|좋아@].") == "네, 좋아요."
    with pytest.raises(ValueError, match="missing"):
        compile_template("[하나|둘")
    assert with_synonyms('하지만 "하지만 나는" 갔~.').startswith("[하지만|") and '"하지만 나는"' in with_synonyms(
        '하지만 "하지만 나는" 갔~.'
    )
