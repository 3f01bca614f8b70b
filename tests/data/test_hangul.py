"""Word forms: particles, verb endings, numbers."""

import pytest

from yeoul.data.builtin.hangul import Verb, attach, final_consonant, native_number, sino_number

PARTICLES = """
사람 은 사람은 | 바다 은 바다는 | 사람 이 사람이 | 바다 이 바다가 | 사람 을 사람을 | 바다 을 바다를
사람 과 사람과 | 바다 과 바다와 | 집 으로 집으로 | 학교 으로 학교로 | 서울 으로 서울로 | 길 으로 길로 | 산 으로 산으로
민준 아 민준아 | 지우 아 지우야 | 민준 이야 민준이야 | 지우 이야 지우야 | 별 이라고 별이라고 | 나비 이라고 나비라고
콩이 이에요 콩이예요 | 곰 이에요 곰이에요 | 책 이었 책이었 | 의자 이었 의자였 | 귤 이나 귤이나 | 배 이나 배나
동생 이랑 동생이랑 | 언니 이랑 언니랑 | 3 을 3을 | 4 을 4를 | 1 으로 1로 | 10 은 10은 | LLM 은 LLM은 | GPU 을 GPU를
""".replace("\n", "|")

CONJUGATION = {
    "듣다/들어/들으": "듣고 듣는 들어요 들었 들으면 들을 들은 듣는다 듣습니다 들으니까 들으러",
    "줍다/주워/주우": "줍고 줍는 주워요 주웠 주우면 주울 주운 줍는다 줍습니다 주우니까 주우러",
    "짓다/지어/지으": "짓고 짓는 지어요 지었 지으면 지을 지은 짓는다 짓습니다 지으니까 지으러",
    "만들다/만들어": "만들고 만드는 만들어요 만들었 만들면 만들 만든 만든다 만듭니다 만드니까 만들러",
    "그리다/그려": "그리고 그리는 그려요 그렸 그리면 그릴 그린 그린다 그립니다 그리니까 그리러",
    "부르다/불러": "부르고 부르는 불러요 불렀 부르면 부를 부른 부른다 부릅니다 부르니까 부르러",
    "쓰다/써": "쓰고 쓰는 써요 썼 쓰면 쓸 쓴 쓴다 씁니다 쓰니까 쓰러",
    "읽다/읽어": "읽고 읽는 읽어요 읽었 읽으면 읽을 읽은 읽는다 읽습니다 읽으니까 읽으러",
    "보다/봐": "보고 보는 봐요 봤 보면 볼 본 본다 봅니다 보니까 보러",
    "하다": "하고 하는 해요 했 하면 할 한 한다 합니다 하니까 하러",
    "놓다/놓아": "놓고 놓는 놓아요 놓았 놓으면 놓을 놓은 놓는다 놓습니다 놓으니까 놓으러",
    "주다/줘": "주고 주는 줘요 줬 주면 줄 준 준다 줍니다 주니까 주러",
}
ENDINGS = ("고", "는", "어요", "었", "으면", "을", "은", "ㄴ다", "ㅂ니다", "으니까", "으러")


@pytest.mark.parametrize("case", [case.strip() for case in PARTICLES.split("|") if case.strip()])
def test_particles(case):
    word, name, expected = case.split()
    assert attach(word, name) == expected


@pytest.mark.parametrize("entry", CONJUGATION)
def test_conjugation(entry):
    verb = Verb.parse(entry)
    assert [verb.form(ending) for ending in ENDINGS] == CONJUGATION[entry].split()


def test_more_endings():
    song = Verb.parse("노래를 부르다/불러")
    assert song.form("었기") == "노래를 불렀기" and song.form("어야") == "노래를 불러야"
    bread = Verb.parse("빵을 굽다/구워/구우")
    assert (
        bread.form("으셔") == "빵을 구우셔" and bread.form("느라") == "빵을 굽느라" and bread.form("자") == "빵을 굽자"
    )
    laundry = Verb.parse("빨래를 널다/널어")
    assert [laundry.form(ending) for ending in ("느라", "으려고", "으셔", "을")] == [
        f"빨래를 {form}" for form in ("너느라", "널려고", "너셔", "널")
    ]
    with pytest.raises(ValueError, match="missing"):
        Verb.parse("그림을 그리다")


def test_numbers():
    assert [native_number(value) for value in (1, 3, 10, 11, 20, 21, 48, 99)] == [
        "한", "세", "열", "열한", "스무", "스물한", "마흔여덟", "아흔아홉",
    ]  # fmt: skip
    assert [sino_number(value) for value in (1, 10, 15, 100, 3500, 10_000, 12_000, 250_000)] == [
        "일", "십", "십오", "백", "삼천오백", "만", "만 이천", "이십오만",
    ]  # fmt: skip
    for wrong in (0, 100):
        with pytest.raises(ValueError):
            native_number(wrong)


def test_final_consonants():
    assert [final_consonant(char) for char in "가각갈닭7n!"] == [" ", "ㄱ", "ㄹ", "ㄺ", "ㄹ", "ㄴ", " "]
