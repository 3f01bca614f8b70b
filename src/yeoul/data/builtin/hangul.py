"""Korean word forms: particles by final consonant, verb endings from principal parts, numbers in words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_FIRST, _LAST = 0xAC00, 0xD7A3
_FINALS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_DIGIT_FINALS = dict(zip("0123456789", "ㅇㄹ ㅁ  ㄱㄹㄹ ", strict=True))  # 영 일 이 삼 사 오 육 칠 팔 구
_LETTER_FINALS = {"l": "ㄹ", "r": "ㄹ", "m": "ㅁ", "n": "ㄴ"}

PARTICLES: dict[str, tuple[str, str]] = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "과": ("과", "와"),
    "으로": ("으로", "로"),
    "아": ("아", "야"),
    "이야": ("이야", "야"),
    "이라고": ("이라고", "라고"),
    "이라는": ("이라는", "라는"),
    "이라서": ("이라서", "라서"),
    "이랑": ("이랑", "랑"),
    "이나": ("이나", "나"),
    "이고": ("이고", "고"),
    "이지만": ("이지만", "지만"),
    "이었": ("이었", "였"),
    "이에요": ("이에요", "예요"),
    "이다": ("이다", "다"),
    "이네": ("이네", "네"),
    "이지": ("이지", "지"),
    "이죠": ("이죠", "죠"),
    "이라도": ("이라도", "라도"),
    "이라면": ("이라면", "라면"),
    "이요": ("이요", "요"),
}
"""Name -> the form after a final consonant, the form after a vowel."""


def final_consonant(char: str) -> str:
    """The final consonant of a syllable as a compatibility letter, or " " when it ends in a vowel.

    Digits count as they are read (1 is 일), Latin letters roughly as they sound.
    """
    code = ord(char)
    if _FIRST <= code <= _LAST:
        return _FINALS[(code - _FIRST) % 28]
    return _DIGIT_FINALS.get(char) or _LETTER_FINALS.get(char.lower(), " ")


@lru_cache(maxsize=4096)
def particle(char: str, name: str) -> str:
    """The form of a particle after a word that ends in `char`; 으로 is 로 also after ㄹ."""
    final = final_consonant(char)
    with_final, with_vowel = PARTICLES[name]
    return with_vowel if final == " " or (name == "으로" and final == "ㄹ") else with_final


def attach(word: str, name: str) -> str:
    """A word with a particle."""
    return word + particle(word[-1], name)


def with_final(text: str, final: str) -> str:
    """The text with another final consonant in its last syllable; " " takes it away."""
    code = ord(text[-1]) - _FIRST
    return text[:-1] + chr(_FIRST + code - code % 28 + _FINALS.index(final))


@dataclass(frozen=True)
class Verb:
    """A verb phrase by its principal parts, from which every ending follows without exceptions.

    Attributes:
        stem: before 다, as 듣.
        a_form: with 아/어, as 들어.
        u_form: what 으면 and the like attach to, as 들으; a stem in ㄹ stays as it is.
    """

    stem: str
    a_form: str
    u_form: str

    @classmethod
    def parse(cls, entry: str) -> Verb:
        """Read "dictionary form", "dictionary form/아어 form" or "dictionary form/아어 form/으 form".

        The last two give the last word only: "음악을 듣다/들어/들으". Verbs in 하다 need nothing but the first.
        """
        base, *parts = entry.split("/")
        head, _, last = base.rpartition(" ")
        head = head and head + " "
        stem = last.removesuffix("다")
        if not parts and not stem.endswith("하"):
            raise ValueError(f"{entry}: the 아/어 form is missing")
        a_form = parts[0] if parts else stem[:-1] + "해"
        regular = stem if final_consonant(stem[-1]) in " ㄹ" else stem + "으"
        return cls(head + stem, head + a_form, head + (parts[1] if len(parts) > 1 else regular))

    def form(self, ending: str) -> str:
        """The verb with an ending: 다, 고, 지, 기, 게, 자, 는, ㄴ다, ㅂ니다, 어..., 었..., 으면, 으러, 을, 은 ...

        Endings that begin with 어 go to the 아/어 form, those with 으 to the 으 form, the rest to the stem.
        """
        stem, final = self.stem, final_consonant(self.stem[-1])
        if ending.startswith("었"):
            return with_final(self.a_form, "ㅆ") + ending[1:]
        if ending.startswith("어"):
            return self.a_form + ending[1:]
        bare = with_final(stem, " ") if final == "ㄹ" else stem
        u_bare = bare if final == "ㄹ" else self.u_form
        if ending in ("을", "은"):
            return with_final(u_bare, "ㄹ" if ending == "을" else "ㄴ")
        if ending.startswith(("을", "은")):
            return with_final(u_bare, "ㄹ" if ending[0] == "을" else "ㄴ") + ending[1:]
        if ending.startswith(("으니", "으세", "으시", "으셔")):
            return u_bare + ending[1:]
        if ending.startswith("으"):
            return self.u_form + ending[1:]
        if ending == "ㄴ다":
            return stem + "는다" if final not in " ㄹ" else with_final(bare, "ㄴ") + "다"
        if ending == "ㅂ니다":
            return stem + "습니다" if final not in " ㄹ" else with_final(bare, "ㅂ") + "니다"
        if ending.startswith(("는", "네", "느")):
            return bare + ending
        return stem + ending


_NATIVE_ONES = ("", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉")
_NATIVE_TENS = ("", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔")
_SINO = ("", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")


def native_number(value: int) -> str:
    """1 ... 99 as it stands before a counter: 한 (개), 열두 (마리), 스무 (살)."""
    if not 1 <= value <= 99:
        raise ValueError(f"no native number for {value}")
    return "스무" if value == 20 else _NATIVE_TENS[value // 10] + _NATIVE_ONES[value % 10]


def sino_number(value: int) -> str:
    """1 ... 99,999,999 in Sino-Korean words, with a space after 만: 삼천오백, 만 이천."""
    if not 1 <= value < 10**8:
        raise ValueError(f"no number for {value}")
    high, low = divmod(value, 10**4)
    words = []
    if high:
        words.append(("" if high == 1 else _below_ten_thousand(high)) + "만")
    if low:
        words.append(_below_ten_thousand(low))
    return " ".join(words)


def _below_ten_thousand(value: int) -> str:
    text = ""
    for unit, name in ((1000, "천"), (100, "백"), (10, "십"), (1, "")):
        digit, value = divmod(value, unit)
        if digit:
            text += name if digit == 1 and name else _SINO[digit] + name
    return text
