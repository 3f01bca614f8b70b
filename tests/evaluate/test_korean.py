"""Mistakes in Korean that rules can find, and words that only look like one."""

import random

import pytest

from yeoul.data.builtin import generate_documents
from yeoul.data.builtin.hangul import PARTICLES, final_consonant
from yeoul.evaluate.korean import KoreanScore, decide, findings, judge, judge_all

WRONG = """
사람는 사람은 | 하늘는 하늘은 | 선생님는 선생님은 | 학교은 학교는 | 영화은 영화는 | 사람들는 사람들은 | 꽃는 꽃은
영화이 영화가 | 친구이 친구가 | 사람가 사람이 | 학생들가 학생들이 | 감독가 감독이
영화을 영화를 | 배우을 배우를 | 사건를 사건을 | 극장판를 극장판을
아버지과 아버지와 | 감성와 감성과 | 모습와 모습과
학교으로 학교로 | 서울으로 서울로 | 그림로 그림으로 | 연필으로 연필로
""".replace("\n", "|")
RIGHT = """사람은 하늘은 학교는 영화가 사람이 영화를 사건을 아버지와 감성과 학교로 서울로 그림으로 연필로 선생님은"""
MERELY_ENDS_SO = """
먹는 있는 없는 찾는 앉는 듣는 웃는 재밌는 했는 만드는 만들는 안는 남는 잡는 나은 지은 이은 김고은 수은
나이 아이 차이 오이 많이 같이 높이 어린이 작가 평가 국가 물가 누군가 뭔가 아닌가 하는가 잘가
가을 마을 노을 지을 나을 서를 들를 사과 효과 치과 니카라과 못와 종로 선로 난로 통로 폭로
""".split()


@pytest.mark.parametrize("pair", [pair.split() for pair in WRONG.split("|") if pair.strip()], ids=" ".join)
def test_a_wrong_particle_is_found_and_mended(pair: list[str]) -> None:
    wrong, right = pair
    (found,) = findings(f"그래서 {wrong} 여기 있다.")
    assert (found.kind, found.text, found.better) == ("particle", wrong, right)
    assert findings(f"그래서 {right} 여기 있다.") == []
    assert judge(f"{right}, {wrong}").particle_rate == 0.5


@pytest.mark.parametrize("word", RIGHT.split())
def test_right_particles_count(word: str) -> None:
    score = judge(f"{word} 좋다")
    assert (score.particles, score.wrong_particles, score.undecided) == (1, 0, 0)


@pytest.mark.parametrize("word", MERELY_ENDS_SO)
def test_words_that_end_like_a_particle_pass(word: str) -> None:
    assert judge(f"{word} 것").wrong_particles == 0


def test_words_that_go_on_are_not_judged() -> None:
    assert judge("영화은2 학교은A 사람는~ 영화을_").particles == 0
    assert judge("은 는 이 가 을 로").particles == 0  # no word before them


def test_what_was_written_by_rule_has_no_mistake() -> None:
    """Every particle and every blank of the built-in corpus is set by rule; nothing in it may be called wrong."""
    texts = [text for text, _ in zip(generate_documents(seed=77), range(300), strict=False)]
    score = judge_all(texts)
    assert score.words > 5_000 and score.particles > 1_000
    assert [str(found) for text in texts for found in findings(text)] == []


def test_swapped_particles_are_counted() -> None:
    """Half of the particles that can be decided in the other form: the rate must be the half."""
    draw = random.Random(0)
    stems = ["사람", "영화", "감독", "학교", "하늘", "친구", "사랑", "노래", "사건", "드라마"]
    words, wrong = [], 0
    for _ in range(400):
        stem, name = draw.choice(stems), draw.choice(["은", "을", "과", "으로", "이"])
        form = draw.choice(PARTICLES[name])
        right = decide(stem, form)
        assert right is not None, stem + form
        words.append(stem + form)
        wrong += not right
    score = judge(" ".join(words))
    assert (score.particles, score.wrong_particles, score.undecided) == (len(words), wrong, 0)
    assert 0.4 < (score.particle_rate or 0) < 0.6


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("안녕\ufffd하세요", ["\ufffd"]),
        ("영\ufffd\ufffd\ufffd가", ["\ufffd\ufffd\ufffd"]),
        ("영ㅎ화가 좋ㄷ다 ㅋㅋㅋ", []),
        ("봤ㄴ다", ["ㄴ"]),
        ("갑ㄴ디ㅓ", ["ㄴ"]),
        ("ㅋㅋㅋ 웃겨ㅎㅎ ㅠㅠ 와ㅡㅡ ㅇㅈ 빨리ㄱㄱ >ㅅ<", []),
        ("ㄱ. 첫째 ㄴ) 둘째", []),
        ("나랏말\u110a\u119e미", []),  # an old syllable, whole
        ("나랏\u119e말", ["\u119e"]),
    ],
)
def test_broken_syllables(text: str, broken: list[str]) -> None:
    found = [f.text for f in findings(text) if f.kind == "syllable"]
    assert found == broken and judge(text).broken == len(broken)


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("학교 에서 놀았다", "교에서"),
        ("너 를 보았다", "너를"),
        ("갔다.그리고", "다. 그"),
        ("하나,둘", "나, 둘"),
        ("좋다 .", "다."),
        ("그는  갔다", "는 "),
        ("할수있다", "할 수 있"),
        ("너때문에", "너 때문"),
        ("하는것은", "는 것"),
        ("온 것같다", "것 같다"),
    ],
)
def test_spacing(text: str, better: str) -> None:
    (found,) = findings(text)
    assert (found.kind, found.better) == ("spacing", better)


@pytest.mark.parametrize(
    "text",
    ["그것은 좋다. 이것도!", "할수록 좋다", "그래...서", "3.5점", "볼 수 있다", "나, 너, 우리", "에서 왔다", "는 것"],
)
def test_right_spacing_passes(text: str) -> None:
    assert [f for f in findings(text) if f.kind == "spacing"] == []


def test_scores_add_and_have_no_rate_without_material() -> None:
    assert judge_all(["사람는 학교 에서", "영\ufffd화"]) == judge("사람는 학교 에서") + judge("영\ufffd화")
    empty = judge("Only English here.")
    assert empty == KoreanScore() and empty.particle_rate is empty.spacing_rate is empty.broken_rate is None
    assert judge("바다는").as_dict()["particle_rate"] == 0.0


def test_the_form_is_read_from_composed_text() -> None:
    import unicodedata

    assert judge(unicodedata.normalize("NFD", "사람는 좋다")).wrong_particles == 1
    assert final_consonant("람") == "ㅁ"
