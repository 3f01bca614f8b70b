"""Facts that are told early and asked late, and the sentences between, in the template language of `grammar`.

`{who}` is a person; a fact is told by one of its statements and asked by one of its questions; `{value}` is the answer.
"""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """How a fact is told and asked; `thing` and `value` are categories of words ("" for no thing)."""

    thing: str
    value: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


FACTS = (
    Fact(
        "item",
        "colorname",
        ("{who}의 {thing}{은} {value}이었~.", "{who}{은} {value} {thing}{을} 가지고 있었~."),
        ("{who}의 {thing}{은} 무슨 색이었나요?", "{who}{이} 가지고 있던 {thing}{은} 무슨 색인가요?"),
    ),
    Fact(
        "",
        "city",
        ("{who}{은} {value}에서 [태어났|자랐]~.", "{who}의 고향은 {value}{이었}~."),
        ("{who}의 고향은 어디인가요?",),
    ),
    Fact(
        "",
        "food",
        (
            "{who}{은} 음식 가운데 {value}{을} 가장 좋아했~.",
            "{who}{이} 가장 좋아하는 음식은 {value}{이었}~.",
        ),
        ("{who}{이} 가장 좋아하는 음식은 무엇인가요?",),
    ),
    Fact(
        "",
        "pet",
        ("{who}{은} 집에서 {value}{을} 키웠~.", "{who}네 집에는 {value}{이} 한 마리 있었~."),
        ("{who}{이} 키우는 동물은 무엇인가요?",),
    ),
    Fact(
        "catdog",
        "petname",
        ("{who}의 {thing} 이름은 {value}{이었}~.", "{who}{은} {thing}에게 {value}{이라는} 이름을 지어 주었~."),
        ("{who}의 {thing} 이름은 무엇인가요?",),
    ),
    Fact(
        "",
        "job",
        ("{who}의 꿈은 {value}{이었}~.", "{who}{은} 커서 {value}{이} 되고 싶어 했~."),
        ("{who}의 꿈은 무엇인가요?", "{who}{은} 무엇이 되고 싶어 했나요?"),
    ),
    Fact(
        "",
        "instrument",
        ("{who}{은} {value}{을} 배우고 있었~.", "{who}{이} 배우는 악기는 {value}{이었}~."),
        ("{who}{이} 배우는 악기는 무엇인가요?",),
    ),
    Fact(
        "item",
        "homespot",
        ("{who}{은} {thing}{을} {value}에 두었~.", "{who}의 {thing}{은} {value}에 있었~."),
        ("{who}의 {thing}{은} 어디에 있었나요?", "{who}{은} {thing}{을} 어디에 두었나요?"),
    ),
    Fact(
        "marble",
        "count",
        ("{who}{은} {thing}{을} {value} 개 가지고 있었~.", "{who}의 주머니에는 {thing}{이} {value} 개 있었~."),
        ("{who}{이} 가진 {thing}{은} 몇 개인가요?",),
    ),
    Fact(
        "",
        "month",
        ("{who}의 생일은 {value}{이었}~.", "{who}{은} {value}에 태어났~."),
        ("{who}의 생일은 몇 월인가요?",),
    ),
    Fact(
        "",
        "number",
        ("{who}의 사물함 번호는 {value}번이었~.", "{who}{은} {value}번 사물함을 썼~."),
        ("{who}의 사물함은 몇 번인가요?",),
    ),
    Fact(
        "",
        "age",
        ("{who}{은} 올해 {value} 살이 되었~.", "{who}의 나이는 {value} 살이었~."),
        ("{who}{은} 올해 몇 살인가요?",),
    ),
    Fact(
        "",
        "flower",
        ("{who}{이} 가장 좋아하는 꽃은 {value}{이었}~.", "{who}{은} 꽃 가운데 {value}{을} 가장 좋아했~."),
        ("{who}{이} 가장 좋아하는 꽃은 무엇인가요?",),
    ),
    Fact(
        "",
        "sport",
        ("{who}{이} 가장 잘하는 운동은 {value}{이었}~.", "{who}{은} 운동 가운데 {value}{을} 가장 잘했~."),
        ("{who}{이} 가장 잘하는 운동은 무엇인가요?",),
    ),
)

COUNTED = {"count": " 개", "month": "", "number": "번", "age": " 살"}
"""What follows the value in an answer."""

FILLERS = """
하늘에는 구름이 [천천히|느릿느릿|소리 없이] 흘러갔~.
창밖에서 바람이 [불었|소리를 내며 지나갔|나뭇가지를 흔들었]~.
시장에는 [아침부터|이른 시간부터|여느 때처럼] 사람이 많았~.
골목에서는 아이들이 {play.고} 있었~.
{animal} 한 마리가 {spot}에서 [졸고|햇볕을 쬐고|무언가를 찾고] 있었~.
멀리서 [종소리|기차 소리|웃음소리|새소리|파도 소리]가 들려왔~.
{weather} {season}날이었~.
{building} 앞에는 [긴 줄이 있었|버스 한 대가 서 있었|아무도 없었|꽃이 피어 있었]~.
버스는 [조금|오 분쯤|십 분이나] 늦게 왔~.
아저씨 한 분이 {shop} 앞을 쓸고 있었~.
누군가 {softly} 문을 두드렸~.
텔레비전에서는 [내일 날씨|축구 경기|옛날 노래|동물 이야기]가 나오고 있었~.
길가의 {tree} 아래에 [의자가 하나 있었|노인 두 분이 앉아 있었|낙엽이 쌓여 있었]~.
부엌에서는 [구수한|맛있는|고소한] 냄새가 났~.
시계는 {hour} 시를 가리키고 있었~.
{errand.는} 사람도 있고 {errand2.는} 사람도 있었~.
{building} 앞에서 {job} 한 사람이 {errandperson}{을} 기다렸~.
{shop}에는 {fruit}{과} {snack}{이} 나란히 놓여 있었~.
{beast} 이야기가 나오는 {genre}{이} 책상 위에 펼쳐져 있었~.
누군가 {home.으면서} 노래를 흥얼거렸~.
{study.는} 아이들 곁으로 {animal}{이} 지나갔~.
{building}에서 {building2}까지는 걸어서 {walk} 분이 걸렸~.
{kin}께서는 {food}{을} 만드시고 {kin2}께서는 {drink}{을} 준비하셨~.
학교 종이 울리자 모두 교실로 들어갔~.
강물은 [소리 없이|쉬지 않고|햇빛을 받으며] 흘렀~.
{weekday} 아침의 거리는 [조용했|한산했|분주했]~.
어떤 사람은 {hobby.고}, 어떤 사람은 {hobby2.었}~.
{wildplace}에서는 {beast}{이} {wild.고} 있었~.
저녁이 되자 집집마다 불이 켜졌~.
비가 올 듯하다가 [오지 않았|금세 개었]~.
우체부가 편지를 {few} 통 놓고 갔~.
아이들은 교실에서 {study.었}~.
이웃집에서는 누가 {home.고} 있었~.
빵집 앞을 지나자 {snack} 냄새가 났~.
공원의 분수에서 물이 [시원하게|높이] 솟았~.
가로등이 하나둘 [켜졌|깜박였]~.
{vehicle} 안은 [조용했|사람들로 붐볐|따뜻했]~.
"""
