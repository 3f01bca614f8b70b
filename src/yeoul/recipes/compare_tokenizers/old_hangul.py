"""Old Hangul, whose jamo no syllable of Unicode holds: what a tokenizer makes of it."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yeoul.text.tokenizer import Tokenizer

VERSES = (
    "東京 ᄇᆞᆯᄀᆞᆫ ᄃᆞ래 새도록 노니다가",
    "드러 내 자리ᄅᆞᆯ 보니 가ᄅᆞ리 네히로섀라",
    "아으 둘흔 내 해어니와 둘흔 뉘 해어니오",
    "나랏 말ᄊᆞ미 듀ᇰ귁에 달아 문ᄍᆞᆼ와로 서르 ᄉᆞᄆᆞᆺ디 아니ᄒᆞᆯᄊᆡ",
)
"""From the Song of Cheoyong in 악학궤범 (1493), and the first words of 훈민정음 언해 (1459), without tone marks."""
JAMO = re.compile("[\u1100-\u11ff\ua960-\ua97c\ud7b0-\ud7fb]+")


def tokens_per_old_jamo(tokenizer: Tokenizer) -> float | None:
    """Tokens for one jamo in runs that NFC leaves apart, each run read for itself; None where some are lost."""
    runs = JAMO.findall(unicodedata.normalize("NFC", "\n".join(VERSES)))
    ids = [tokenizer.encode(run) for run in runs]
    if any(tokenizer.unk_id in own for own in ids):
        return None
    return sum(map(len, ids)) / sum(map(len, runs))
