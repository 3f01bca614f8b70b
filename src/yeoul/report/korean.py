"""The numbers of a report in Korean words: the same sentences as `summary` has in English."""

from __future__ import annotations

from yeoul.report.content import Report
from yeoul.report.languages import KOREAN, korean_duration, korean_number, korean_rate
from yeoul.report.summary import cache_ratio, stages_together
from yeoul.units import size


def in_korean(report: Report) -> str:
    """One paragraph; sentences without numbers are left out."""
    sentences = [_pretraining(report), _conversion(report), _speed(report), _parts(report), _recall(report)]
    return " ".join(sentence for sentence in sentences if sentence)


def _quality(bits: float | None, perplexity: float) -> str:
    return f"바이트당 {bits:.3f}비트(퍼플렉시티 {perplexity:,.1f})" if bits else f"퍼플렉시티 {perplexity:,.1f}"


def _pretraining(report: Report) -> str:
    teacher = report.row("teacher")
    if teacher is None:
        return ""
    tokens, seconds = stages_together(report, ("pretrain",))
    size_words = f"파라미터가 {korean_number(report.parameters)} 개인 " if report.parameters else ""
    quality = _quality(teacher.bits_per_byte, teacher.perplexity)
    if not tokens:
        return f"{size_words}소프트맥스 모델의 성능은 {quality}입니다."
    time = f" {korean_duration(seconds)} 동안" if seconds else ""
    return f"{size_words}소프트맥스 모델을 토큰 {korean_number(tokens)} 개로{time} 사전 학습한 결과는 {quality}입니다."


def _conversion(report: Report) -> str:
    teacher, converted = report.row("teacher"), report.row("converted")
    if teacher is None or converted is None:
        return ""
    tokens, seconds = stages_together(report, ("align", "distil", "linearize"))
    before, _ = stages_together(report, ("pretrain",))
    share = f"(사전 학습의 {100 * tokens / before:.0f}%)" if tokens and before else ""
    time = f" {korean_duration(seconds)} 동안" if seconds else ""
    spent = f"토큰 {korean_number(tokens)} 개{share}로{time} 선형화한 " if tokens else "선형화한 "
    text = f"{spent}DiJiang 모델은 {_quality(converted.bits_per_byte, converted.perplexity)}"
    if teacher.bits_per_byte and converted.bits_per_byte:
        change = converted.bits_per_byte - teacher.bits_per_byte
        percent = abs(100 * change / teacher.bits_per_byte)
        worse = "높습니다(낮을수록 좋습니다)" if change >= 0 else "낮습니다(낮을수록 좋습니다)"
        text += f"로, 교사보다 {abs(change):.3f}비트({percent:.1f}%) {worse}."
        return text + (" 그동안 텍스트를 더 읽은 덕도 있습니다." if change < 0 and tokens else "")
    return f"{text}입니다."


def _speed(report: Report) -> str:
    pair = report.longest()
    if pair is None:
        return ""
    old, new = pair
    ratio = new.decode / old.decode
    faster = f"{ratio:.1f}배 빠르고" if ratio >= 1 else f"{1 / ratio:.1f}배 느리고"
    text = (
        f"문맥 {new.context:,}토큰에서 디코딩은 소프트맥스 어텐션보다 {faster}"
        f"({korean_rate(new.decode)}, 소프트맥스는 {korean_rate(old.decode)}), "
        f"캐시는 {size(old.cache_bytes)}에서 {size(new.cache_bytes)}로 "
    )
    text += f"{1 / cache_ratio(report):.3g}분의 1이 됩니다." if cache_ratio(report) < 1 else "줄지 않습니다."
    slower = [n.context for o, n in report.speed_pairs() if n.decode < o.decode]
    if slower and ratio >= 1:
        text += f" 문맥이 {max(slower):,}토큰 이하일 때는 아직 소프트맥스가 더 빠릅니다."
    return text


def _parts(report: Report) -> str:
    converted = report.row("converted")
    if converted is None or converted.bits_per_byte is None:
        return ""
    losses = [
        f"{KOREAN.get(row.name, row.name)} {row.bits_per_byte - converted.bits_per_byte:+.3f}"
        for row in report.models
        if row.role == "ablation" and row.bits_per_byte is not None and row.name.startswith("without")
    ]
    return f"한 부분을 빼면 바이트당 비트가 이만큼 달라집니다: {', '.join(losses)}." if losses else ""


def _recall(report: Report) -> str:
    teacher, converted = report.row("teacher"), report.row("converted")
    if teacher is None or converted is None or teacher.recall is None or converted.recall is None:
        return ""
    guess = f"(무작위로 고르면 {100 * report.recall_chance:.0f}%)" if report.recall_chance else ""
    old, new = f"{100 * teacher.recall:.0f}%", f"{100 * converted.recall:.0f}%"
    return f"앞에서 알려 준 사실을 한참 뒤에 물으면 소프트맥스 모델은 {old}, DiJiang 모델은 {new}를 맞힙니다{guess}."
