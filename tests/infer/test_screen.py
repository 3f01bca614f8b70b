"""The safety screen: what it reads, when it refuses, what it remembers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import yeoul
from folders import write_small_folder
from yeoul.errors import UserError
from yeoul.infer.screen import Screen
from yeoul.infer.texts import TextClassifier
from yeoul.model.heads import ClassificationHead, SequenceClassifier

FILLER = "여울은 흐르고 나무꾼은 웃었다. "


class ByKeyword(TextClassifier):
    """Finds "독" (0.6 hate, 0.3 insult) and "욕" (0.1 hate, 0.7 insult); else 0.98 harmless."""

    asked: list[str]

    def logits(self, texts: Sequence[str], **_: Any) -> Tensor:
        self.asked = [*getattr(self, "asked", []), *texts]
        rows = {"독": (0.1, 0.6, 0.3), "욕": (0.2, 0.1, 0.7)}
        found = (next((rows[word] for word in rows if word in text), (0.98, 0.01, 0.01)) for text in texts)
        return torch.tensor(list(found)).log()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[SequenceClassifier, Any]:
    folder = write_small_folder(
        tmp_path_factory.mktemp("model"), [FILLER * 4, "독이 든 사과", "욕을 하다"] * 4, vocab_size=290
    )
    decoder, tokenizer = yeoul.load(folder, device="cpu")
    torch.manual_seed(0)
    return SequenceClassifier(decoder, ClassificationHead(32, ["none", "hate", "insult"])).eval(), tokenizer


@pytest.fixture
def classifier(parts: tuple[SequenceClassifier, Any]) -> ByKeyword:
    return ByKeyword(*parts)


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]


def test_questions_and_answers_are_refused_from_the_threshold_on(classifier: ByKeyword) -> None:
    screen = Screen(classifier, "hate", 0.6)
    assert screen(said("안녕?"), None) is None
    assert screen(said("독은?"), None) == 'the screen classified it as "hate" (probability 0.60)'
    assert screen(said("안녕?"), "독입니다") == 'the screen classified it as "hate" (probability 0.60)'
    assert Screen(classifier, "hate", 0.61)(said("독은?"), None) is None
    both = Screen(classifier, ("insult", "hate", "insult"), 0.75)
    assert both(said("욕은?"), None) == 'the screen classified it as "insult" or "hate" (probability 0.80)'


def test_all_of_a_conversation_is_judged_and_each_text_once(classifier: ByKeyword) -> None:
    screen = Screen(classifier, "hate", 0.5)
    assert screen(said("안녕?", "네", "그래서?"), None) is None
    assert screen(said("안녕?", "네", "그래서?"), "강이요") is None
    assert screen(said("안녕?", "네", "그래서?", "강이요", "또?"), None) is None
    assert sorted(classifier.asked) == sorted(["안녕?", "네", "그래서?", "강이요", "또?"])
    reason = 'the screen classified an earlier message as "hate" (probability 0.60)'
    assert screen([{"role": "system", "content": "독을 권해"}, *said("안녕?")], None) == reason
    assert screen(said("안녕?", "독이요", "그래서?"), None) == reason
    assert screen(said("독?", "네", "그래서?"), "강이요") is None  # the conversation was judged before
    assert screen(said("  "), "\n") is None


def test_several_threads_may_ask(parts: tuple[SequenceClassifier, Any]) -> None:
    screen, texts = Screen(TextClassifier(*parts), "hate", 0.3), [f"{FILLER}{n}" for n in range(24)]
    wanted = [screen(said(text), None) for text in texts]
    anew = Screen(screen.classifier, "hate", 0.3)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda text: anew(said(text), None), texts)) == wanted


@pytest.mark.parametrize("place", range(0, 61, 6))
def test_nothing_hides_in_a_long_text(place: int, classifier: ByKeyword) -> None:
    words = (FILLER * 20).split()
    text = " ".join([*words[:place], "독", *words[place:]])
    assert len(classifier.tokenizer.encode(text)) > 2 * 64
    screen = Screen(classifier, "hate", 0.5)
    assert screen.probabilities([FILLER, text, "독"]) == pytest.approx([0.01, 0.6, 0.6])
    assert all(len(classifier.tokenizer.encode(piece)) <= 64 for piece in classifier.asked)
    assert classifier.asked[-2].endswith(text[-3:])
    assert screen(said("안녕?"), text) is not None


def test_pieces_of_a_real_classifier_are_read_whole(parts: tuple[SequenceClassifier, Any]) -> None:
    screen, text = Screen(TextClassifier(*parts), "hate"), FILLER * 20
    pieces = screen._pieces(text)
    wanted = screen.classifier.logits(pieces).softmax(-1)[:, 1].max()
    assert len(pieces) > 2 and screen.probabilities([text])[0] == pytest.approx(float(wanted))
    assert text.startswith(pieces[0]) and text.endswith(pieces[-1])
    for first, second in zip(pieces, pieces[1:], strict=False):  # each begins within the one before
        assert text.index(first) < text.index(first) + len(first) // 2 and second[:10] in first


@pytest.mark.parametrize(
    ("labels", "threshold", "words"),
    [
        ("toxic", 0.5, 'no label "toxic".*it has none, hate, insult'),
        ((), 0.5, "no label is refused.*none, hate, insult"),
        (("none", "hate", "insult"), 0.5, "all labels"),
        ("hate", 0.0, "is 0, but must be above 0"),
        ("hate", 50, "is 50, but must be above 0"),
        ("hate", float("nan"), "is nan, but must be above 0"),
    ],
)
def test_what_cannot_be_is_said(labels: Any, threshold: float, words: str, classifier: ByKeyword) -> None:
    with pytest.raises(UserError, match=words):
        Screen(classifier, labels, threshold)
