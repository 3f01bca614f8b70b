"""The report's words in English and Korean: a sentence is a `Text`, a word that stands alone is in `KOREAN`.

Numbers are the same in both; how large ones and durations are read is not.
"""

from __future__ import annotations

from yeoul.report.content import Text, Words
from yeoul.units import rate

LANGUAGES = ("en", "ko")

KOREAN = {
    # headings
    "Steps": "단계",
    "Models": "모델",
    "Speed and memory": "속도와 메모리",
    "Samples": "생성 예",
    "Do it again": "다시 해 보기",
    "What next": "다음에 해 볼 것",
    "Machine and configuration": "장비와 설정",
    "Machine": "장비",
    "Configuration": "설정",
    "Notes": "참고",
    # table heads
    "step": "단계",
    "tokens": "토큰",
    "time": "시간",
    "result": "결과",
    "model": "모델",
    "loss": "손실",
    "perplexity": "퍼플렉시티",
    "bits per byte": "바이트당 비트",
    "vs. teacher": "교사 대비",
    "recall": "회상",
    "context": "문맥",
    "prefill tokens/s": "프리필 토큰/s",
    "decode tokens/s": "디코딩 토큰/s",
    "quartiles": "사분위",
    "cache": "캐시",
    "peak memory": "최대 메모리",
    "setting": "항목",
    "value": "값",
    "run": "실행",
    "made by": "명령",
    "system": "시스템",
    "chrF of the first system": "첫 번째 시스템의 chrF",
    "chrF of the second system": "두 번째 시스템의 chrF",
    "before": "이전",
    "after": "이후",
    "size": "크기",
    "parameters": "파라미터",
    "accuracy": "정확도",
    "macro F1": "매크로 F1",
    "rank correlation": "순위 상관(스피어먼)",
    "margin": "마진",
    "decoding": "디코딩",
    "Held-out text": "따로 떼어 둔 텍스트",
    "Before and after": "이전과 이후",
    "Settings that differ": "서로 다른 설정",
    "What is kept of distant text": "먼 문맥에서 얻던 것 가운데 남은 몫",
    "perplexity, of the teacher's": "퍼플렉시티, 교사 대비",
    "retained": "남은 몫",
    "recall beyond the window, of the teacher's": "윈도 밖 회상, 교사 대비",
    # an evaluation
    "position": "위치",
    "teacher": "교사",
    "cut teacher": "잘린 교사",
    "converted": "변환한 모델",
    "linear only": "선형 부분만",
    "window only": "윈도만",
    "no pairs": "정확한 쌍 없이",
    "no attention": "어텐션 없이",
    # models, stages, lines
    "softmax": "소프트맥스",
    "without the linear part": "선형 부분 없이",
    "without the window": "윈도 없이",
    "without exact pairs": "정확한 쌍 없이",
    "without attention": "어텐션 없이",
    "teacher's weights, window only": "교사 가중치, 윈도만",
    "text": "텍스트",
    "tokenizer": "토크나이저",
    "pretrain": "사전 학습",
    "align": "정렬(align)",
    "distil": "증류(distil)",
    "finetune": "파인튜닝(finetune)",
    "train": "학습",
    "validation": "검증",
    "softmax, before": "소프트맥스, 변환 전",
    "DiJiang, after": "DiJiang, 변환 후",
    # plots
    "decoding, tokens/s": "디코딩, 토큰/s",
    "prefill, tokens/s": "프리필, 토큰/s",
    "context, tokens": "문맥, 토큰",
    "nats per token": "토큰당 내트",
    "relative error of a layer": "층의 상대 오차",
    "KL to the teacher, nats": "교사와의 KL, 내트",
    "nats per text": "텍스트당 내트",
    "contrastive loss": "대조 손실",
    "DPO loss": "DPO 손실",
    "quantize": "양자화(quantize)",
    "linearize": "선형화(linearize)",
    "bits per byte of held-out text (less is better)": "따로 둔 텍스트의 바이트당 비트(낮을수록 좋음)",
    # a sweep
    "perplexity (less is more accurate)": "퍼플렉시티(낮을수록 정확함)",
    "distinct-2 (more is more varied)": "distinct-2(높을수록 다양함)",
    "recommended": "추천",
    "greedy": "탐욕 디코딩",
    "plain sampling": "순수 샘플링",
    "temperature": "온도",
    "judge's perplexity": "심판의 퍼플렉시티",
    "as greedy": "탐욕과 같음",
    "entropy": "엔트로피",
    "tokens kept": "남긴 토큰",
    "repetition": "반복",
    "particles": "조사",
    "syllables": "음절",
    "spacing": "띄어쓰기",
    "token": "토큰",
    "probability": "확률",
    "together": "누적",
    "tokens that are kept": "남는 토큰",
    "their probability together": "그 확률의 합",
    # tokenizers
    "bytes per token (more is shorter)": "토큰당 바이트(높을수록 짧음)",
    "bits per byte of held-out text": "따로 둔 텍스트의 바이트당 비트",
    "kind": "종류",
    "vocabulary": "어휘",
    "tokens per syllable": "음절당 토큰",
    "tokens per word": "어절당 토큰",
    "bytes per token": "토큰당 바이트",
    "in bytes": "바이트로 쓴 토큰",
    "lost": "잃은 토큰",
    "tokens per old jamo": "옛한글 자모당 토큰",
    "GFLOP per 1,000 characters": "1,000자당 GFLOP",
    "cache per 1,000 characters": "1,000자당 캐시",
    "tokens per 1,000 characters": "1,000자당 토큰",
    "encode, MB/s": "인코딩, MB/s",
    "decode, MB/s": "디코딩, MB/s",
    "without embedding": "임베딩 제외",
    "embedding": "임베딩",
    "tokens read": "읽은 토큰",
    "training": "학습",
    "scoring, KB/s": "채점, KB/s",
    "come back unchanged": "그대로 되돌아온 문서",
    # the machine
    "processor": "프로세서",
    "usable cores": "쓸 수 있는 코어",
    "instruction sets": "명령어 집합",
    "none that matter": "해당 없음",
    "threads": "스레드",
    "memory": "메모리",
    "GPU": "GPU",
    "software": "소프트웨어",
    "yes": "예",
    "no": "아니요",
}
"""Words that stand alone, as the page has them in English -> Korean."""


def text(words: Words) -> Text:
    """Words in both languages; what is not known is the same in both, as names and numbers are."""
    return words if isinstance(words, Text) else Text(words, KOREAN.get(words, words))


def korean_duration(seconds: float) -> str:
    """75 -> "1분 15초", 3700 -> "1시간 1분"; in the steps of `yeoul.units.duration`."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}초"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}초"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}분 {rest}초" if rest else f"{minutes}분"
    hours, rest = divmod(round(whole / 60), 60)
    return f"{hours:,}시간 {rest}분" if rest else f"{hours:,}시간"


def korean_number(number: float) -> str:
    """1234567 -> "123만", 4.1e9 -> "41억"; below ten thousand in full."""
    for magnitude, letter in ((1e12, "조"), (1e8, "억"), (1e4, "만")):
        if round(number) >= magnitude:
            value = number / magnitude
            return f"{value:,.0f}{letter}" if value >= 100 else f"{value:.3g}{letter}"
    return f"{number:,.0f}"


def korean_rate(number: float) -> str:
    """ "초당 1,234토큰"."""
    return f"초당 {rate(number).split()[0]}토큰"
