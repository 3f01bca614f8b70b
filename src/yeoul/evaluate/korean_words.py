"""Words that end like a particle without being one: what the judge of Korean lets pass, and nouns that it is sure of.

Closed classes are listed whole (syllables that end the stem of a verb or adjective), open ones by the words that occur
in print.
"""

from __future__ import annotations

VERB_SYLLABLES = frozenset(
    "먹막묵박삭색썩속식익작적죽직찍착축녹격깍낙갉닉욱"  # ㄱ, and what verbs in ㄲ are often written with
    "신안"  # ㄴ
    "들살알울놀길멀돌벌팔풀밀빌끌걸열썰불물달날갈말틀졸절떨털몰쓸일늘줄글둘굴찔질뒹훌덜널엘얼을볼빨칠"  # ㄹ, kept by error
    "감검남넘담둠듬품뿜삼숨심참춤탐품머금잠다듬더듬헤매굼뭄"  # ㅁ
    "갑겁굽깁꼽눕돕뵙뽑씹업엽입잡접줍집춥컵굽쉽맵좁럽롭답쭙곱엄"  # ㅂ, and a slip of 없는
    "긋낫벗붓빗뺏앗솟씻웃잇젓짓줏밋딧돗떳컷맛햇닷"  # ㅅ, and what verbs in ㄷ, ㅈ, ㅆ are often written with
)
"""Last syllables with a final consonant of stems: 는 after them may be the ending of a verb (먹는, 안는). None ends in
ㅇ. Consonants that hardly any noun ends in (ㄲ ㄶ ㄷ ㅀ ㅆ ㅈ ...) are not listed: see `NOUN_SYLLABLES`."""

NOUN_SYLLABLES = frozenset("꽃빛끝앞옆숲잎밖곁밑팥밭")
"""Syllables in those consonants that end nouns, and no stem before 는."""

DEUL_VERBS = ("만들", "흔들", "힘들", "거들", "받들", "길들", "철들", "찌들", "시들", "잠들", "떠들", "엎들", "드들")
"""Stems of verbs in 들; another 들 is the plural."""


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


PASSING = {
    "은": _listed(
        """나은 지은 이은 그은 저은 부은 모은 꼬은 수은 조은 고은 다은 시은 가은 하은 채은 소은 혜은 재은 예은 주은 여은 세은 포은
        사은 보은 노은 배은 려은 서은 쉬은 마은 거은 로은 러은 최은 애은 자은"""
    ),
    "을": _listed(
        "나을 지을 이을 그을 저을 부을 모을 마을 가을 노을 고을 새을 과을 시을 까을 쉬을 호을 거을 아을 라을"
    ),
    "를": _listed("들를 서를 일를 잘를 걸를 눌를 물를 불를 말를 흘를 골를 찔를 질를 갈를 몰를 올를 벌를 빨를 딸를"),
    "과": _listed(
        """사과 치과 내과 외과 피부과 효과 무화과 초과 통과 투과 여과 부과 모과 이과 비뇨기과 소아과 라과 교과 고과 수과 대과 제과
        다과 유과 시과 죄과 공과 화과 사회과 국어과 역사과 지리과 하과 자과"""
    ),
    "와": _listed("안와 잠와 못와 잘와 들와 돌와 른와 찍와 만와 됨와 얼와 영와 편와"),
    "로": _listed(
        """진로 경로 통로 선로 항로 종로 행로 난로 근로 원로 장로 폭로 백로 탄로 판로 험로 침로 언로 육로 향로 연로 신로 먼로 정로
        간로 산로 전로 환로 약로 막로 녹로 목로 북로 강로 청로 송로 명로 중로 방로 감로 남로 담로 맨로 단로 분로 함로 학로 공로
        양로 엔로 몬로"""
    ),
    "으로": (),
}
"""Ends of words that look like a particle in the form that does not belong there, and are none, for each form."""

KNOWN = frozenset(
    """서로 바로 새로 스스로 따로 별로 홀로 절로 함부로 제대로 그대로 대로 실로 날로 진실로 주로 때로 도로 미로 가로 세로 피로 회로
    수로 기로 위로 나는 너는 저는 우리는 사는 아는 오는 가는 하는 되는 보는 주는 쓰는 타는 자는 치는 피는 크는 파는""".split()
)
"""Words that end like a particle in its right form and are none, or may be none."""

_VOWEL_NOUNS = """
영화 배우 친구 학교 나라 노래 이야기 아버지 어머니 할머니 할아버지 언니 누나 여자 남자 아기 강아지 토끼 바다 하루 나무 의자 모자 가수 교사 의사
기자 사회 문화 역사 세계 지구 도시 시계 전화 회사 정부 경제 정치 문제 이유 결과 효과 관계 기회 시대 세대 미래 과거 현재 가격 연기 대사 드라마 코미디
스토리 시나리오 캐릭터 주제 소재 감동 커피 우유 주스 케이크 피아노 기타 카메라 컴퓨터 텔레비전 라디오 뉴스 인터뷰 버스 택시 기차 비행기
자동차 자전거 고래 여우 호랑이 사자 코끼리 거미 나비 다리 머리 허리 어깨 무지개 날씨 소나기 더위 추위 오후 휴가 숙제 시험지 편지 잡지 소리
목소리 향기 냄새 재료 요리 고기 바나나 포도 딸기 감자 고구마 김치 가게 동네 마루 창고 거리 둘레 가지 뿌리 열매 아주머니 아저씨 며느리
사위 조카 형제 자매 부모 제자 후배 선배 동료 부하 왕자 공주 마녀 천사 악마 요리사 간호사 변호사 과학자 기술자 노동자 소비자 연구자 지도자
대통령후보 후보 투표 선거 법규 조사 보고서 계획서 자료 정보 제도 정의 자유 평화 무기 군대 부대 경기 축구 야구 농구 배구 선수 코치 
숫자 글자 단어 언어 국어 영어 기계 도구 장치 구조 원리 이론 법칙 연구 실험실 조화 변화 진화 차례 순서 속도 온도 높이 무게 크기 길이
"""
_CLOSED_NOUNS = """
사람 학생 선생 선생님 동생 가족 마음 생각 사랑 시간 오늘 내일 어제 아침 저녁 하늘 구름 바람 눈물 웃음 얼굴 손님 주인 주인공 감독 작품 장면 내용
결말 제목 음악 연출 극장 관객 평점 화면 영상 대본 각본 재미 느낌 감동 공포 스릴 반전 액션 현실 사건 인물 인간 동물 식물 남편 아들 딸 소년 소녀 청년
노인 이웃 마을 집안 교실 병원 식당 시장 공원 도서관 박물관 은행 우체국 서점 빵집 경찰 군인 농부 왕 여왕 대통령 국민 시민 주민 직원 사장 회장 팀장
정신 영혼 육체 건강 행복 불행 희망 절망 기쁨 슬픔 고통 분노 외로움 두려움 그리움 아픔 믿음 도움 물음 걸음 싸움 꿈 힘 땅 산 강 섬 숲 꽃 별 달 해
책 글 말 말씀 질문 대답 설명 방법 과정 목적 원인 결론 상황 환경 조건 문장 단락 그림 사진 색 빨강 파랑 옷 신발 양말 장갑 가방 지갑 우산 안경 연필 공책
밥 국 빵 떡 물 술 음식 점심 과일 수박 귤 생선 계란 설탕 소금 간장 된장 곰 소 양 닭 뱀 용 새벽 밤 낮 봄 여름 가을 겨울 방학 생일 명절
돈 값 월급 세금 물건 상품 제품 기업 공장 산업 기술 과학 문학 철학 종교 신 교육 학문 대학 수업 시험 성적 졸업 취직 직업 일 작업 업무 회의 행사 여행
것 이것 그것 저것 곳 뜻 맛 옷 이름 몸 손 발 눈 입 목 등 가슴 심장 피부병 병 약 침대 책상 거실 부엌 방 문 창문 벽 지붕
"""
NOUNS = frozenset((_VOWEL_NOUNS + _CLOSED_NOUNS).split())
"""Common nouns. So many other words end in 이 after a vowel or in 가 after a consonant (나이, 작가, 하는가) that these are
only called a mistake after one of them."""

NOT_GA = frozenset(
    """음악가 소설가 예술가 운동가 사업가 탐험가 건축가 혁명가 모험가 전문가 연출가 번역가 여행가 사상가 발명가 활동가 비행가 법률가
    등산가 협상가 해안가 시장가 극장가 학원가 대학가 병원가 공원가 상품가 제품가 작품가 은행가 기업가 산업가 공장가 과학가 문학가 철학가
    종교가 교육가 각본가 대본가 평점가 물가 술가 강가 산가 섬가 눈가 입가 목가 발가 귓가 달가 말가 글가 일가 양가 왕가 용가 신가 약가
    병가 방가 문가 벽가 땅가 꽃가 별가 책가 색가 국가 빵가 침가 소금가 옷가 것인가 손가 등가 몸가 돈가 봄가 밤가 딸가 값가 낮가 곰가
    닭가 뱀가 떡가 밥가 힘가 꿈가 숲가 설명가 질문가 도움가 싸움가 그림가 사진가 시험가 직업가 작업가 기술가 정신가 음식가 여름가 일가""".split()
)
"""Words, or parts of longer ones, that a noun and 家, 街, 價, 歌 make: 가 is no particle in them."""


def noticed(stem: str, form: str, final: str) -> bool:
    """Whether `form`, which does not go with the final consonant of `stem`, must be a mistake there.

    Args:
        stem: the Hangul syllables before the form.
        form: 은, 는, 이, 가, 을, 를, 과, 와, 으로 or 로.
        final: final consonant of the stem, " " for none.
    """
    if stem + form in KNOWN:
        return False
    sure = len(stem) > 1 and (stem in NOUNS or (stem.endswith("들") and not stem.endswith(DEUL_VERBS)))
    if form == "이":
        return sure
    if form == "가":
        return sure and stem + form not in NOT_GA
    if sure:
        return True
    if form == "는":
        return stem[-1] in NOUN_SYLLABLES or (final in "ㄱㄴㄹㅁㅂㅅㅇ" and stem[-1] not in VERB_SYLLABLES)
    return not (stem + form).endswith(PASSING[form])
