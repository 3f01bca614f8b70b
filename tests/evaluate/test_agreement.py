"""chrF against sacrebleu, and comparisons of continuations that are known."""

from __future__ import annotations

import random

import pytest

from models import make
from yeoul.errors import UserError
from yeoul.evaluate.agreement import agreement, chrf, common_prefix, compared, distinct, style
from yeoul.infer.engine import GenerationResult
from yeoul.text.framing import Framing

TEXTS = [
    ("강가에 작은 마을이 있었다.", "강가에 작은 집이 있었다."),
    ("The cat sat on the mat.", "The cat is on  the\nmat"),
    ("", "없음"),
    ("말", ""),
    ("가", "가"),
    ("", ""),
    ("가나다라마바사", "사바마라다나가"),
    ("aaaaaaa", "aa"),
    ("aa", "aaaaaaa"),
]


def test_chrf_is_sacrebleus():
    metric = pytest.importorskip("sacrebleu.metrics").CHRF()
    rng = random.Random(0)
    texts = TEXTS + [tuple("".join(rng.choices("가나 ab", k=rng.randint(0, 12))) for _ in "12") for _ in range(40)]
    for count in (1, 2, 5, len(texts)):
        for start in range(0, len(texts) - count + 1, count):
            own, other = zip(*texts[start : start + count], strict=True)
            assert chrf(own, other) == pytest.approx(metric.corpus_score(list(own), [list(other)]).score, abs=1e-9)


def test_chrf_of_the_same_is_100_and_of_strangers_0():
    assert chrf(["강가에 작은 마을"], ["강가에 작은 마을"]) == pytest.approx(100)
    assert chrf(["abc"], ["xyz"]) == 0 and chrf([""], [""]) == 0


def test_repetition_and_variety():
    assert distinct([[1, 2, 1, 2, 1]], 2) == 2 / 4 and distinct([[1], [1]], 1) == 0.5 and distinct([[1]], 2) == 1
    found = style([[1, 2, 3, 4, 1, 2, 3, 4], [5, 6, 7, 8]])
    # the first has 5 4-grams, one of them twice; the second has one
    assert found.repetition == pytest.approx((1 / 5 + 0) / 2) and found.tokens == 6
    assert found.distinct_1 == pytest.approx(8 / 12) and found.distinct_2 == pytest.approx((4 + 3) / 10)


def result(ids: list[int], reason: str = "length") -> GenerationResult:
    return GenerationResult(
        text=" ".join(map(str, ids)), ids=ids, finish_reason=reason, prompt_tokens=1, seconds=1.0,  # type: ignore[arg-type]
        prefill_seconds=0.5, cache_bytes=0,
    )  # fmt: skip


def test_prefixes_count_the_end_of_a_text():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2 and common_prefix([], [1]) == 0
    wanted = [result([1, 2, 3]), result([1, 2], "eos"), result([1, 2], "eos")]
    given = [result([1, 5, 3]), result([1, 2], "eos"), result([1, 2, 7])]
    found = compared(wanted, given, 3)
    assert found.prefix_mean == pytest.approx((1 + 3 + 2) / 3) and found.prefix_median == 2
    assert found.equal == pytest.approx(1 / 3) and found.prompts == 3 and found.converted.tokens == pytest.approx(8 / 3)


class Numbers:
    """A tokenizer whose text is the ids."""

    vocab_size, eos_id, bos_id, pad_id = 101, None, None, 0
    stop_ids, framing = (), Framing()

    def encode(self, text, *, bos=False, eos=False):
        return [int(number) for number in text.split()]

    def token_bytes(self, token):
        return f"{token} ".encode()

    def stream(self):
        return self

    def push(self, token):
        return f"{token} "

    def flush(self):
        return ""


def test_a_model_agrees_with_itself_and_not_with_another():
    teacher, other = make("softmax"), make("hybrid")
    prompts: list[str | list[int]] = [[1, 2, 3], "4 5 6 7", [8]]
    same = agreement(teacher, teacher, Numbers(), prompts, max_tokens=12)
    assert same.equal == 1 and same.prefix_mean == 12 and same.chrf == pytest.approx(100)
    assert same.teacher == same.converted
    found = agreement(teacher, other, Numbers(), prompts, max_tokens=12, batch_size=2)
    assert found.equal < 1 and found.prefix_mean < 12 and found.chrf < 100


def test_no_prompt_is_an_error():
    with pytest.raises(UserError, match="no prompt"):
        agreement(make("softmax"), make("softmax"), Numbers(), [])
