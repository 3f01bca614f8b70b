"""The numbers of a report in words: what each step cost and what it gained."""

from __future__ import annotations

from yeoul.report.content import Report, Stage
from yeoul.units import duration, rate, size, spelled


def in_words(report: Report) -> str:
    """One paragraph; sentences without numbers are left out."""
    sentences = [_pretraining(report), _conversion(report), _speed(report), _parts(report), _recall(report)]
    return " ".join(sentence for sentence in sentences if sentence)


def cache_ratio(report: Report) -> float:
    """Cache bytes of the converted model over softmax's at the longest context; 1 when not measured."""
    pair = report.longest()
    return pair[1].cache_bytes / max(pair[0].cache_bytes, 1) if pair else 1.0


def stages_together(report: Report, names: tuple[str, ...]) -> tuple[float, float]:
    """Tokens and seconds of some stages together."""
    own: list[Stage] = [stage for stage in report.stages if stage.name in names]
    return sum(stage.tokens or 0 for stage in own), sum(stage.seconds or 0 for stage in own)


def _cost(tokens: float, seconds: float) -> str:
    return f"{spelled(tokens)} tokens" + (f" in {duration(seconds)}" if seconds else "")


def _pretraining(report: Report) -> str:
    teacher = report.row("teacher")
    if teacher is None:
        return ""
    tokens, seconds = stages_together(report, ("pretrain",))
    model = f"{spelled(report.parameters)}-parameter softmax model" if report.parameters else "softmax model"
    quality = _quality(teacher.bits_per_byte, teacher.perplexity)
    if not tokens:
        return f"The {model} stands at {quality}."
    return f"Pretraining read {_cost(tokens, seconds)} and brought the {model} to {quality}."


def _quality(bits: float | None, perplexity: float) -> str:
    return f"{bits:.3f} bits per byte (perplexity {perplexity:,.1f})" if bits else f"perplexity {perplexity:,.1f}"


def _conversion(report: Report) -> str:
    teacher, converted = report.row("teacher"), report.row("converted")
    if teacher is None or converted is None:
        return ""
    tokens, seconds = stages_together(report, ("align", "distil", "linearize"))
    before, _ = stages_together(report, ("pretrain",))
    share = f", {100 * tokens / before:.0f} % of the pretraining," if tokens and before else ""
    spent = f"Linearizing took {_cost(tokens, seconds)}{share} and left" if tokens else "Linearizing left"
    text = f"{spent} the DiJiang model at {_quality(converted.bits_per_byte, converted.perplexity)}"
    if teacher.bits_per_byte and converted.bits_per_byte:
        change = converted.bits_per_byte - teacher.bits_per_byte
        words = "worse" if change >= 0 else "better"
        percent = abs(100 * change / teacher.bits_per_byte)
        text += f", {abs(change):.3f} bits per byte ({percent:.1f} %) {words} than its teacher"
        if change < 0 and tokens:
            text += " (it has read more text by then, which helps it too)"
    return text + "."


def _speed(report: Report) -> str:
    pair = report.longest()
    if pair is None:
        return ""
    old, new = pair
    ratio = new.decode / old.decode
    faster = f"{ratio:.1f} times as fast" if ratio >= 1 else f"at {ratio:.2f} times the speed"
    memory = f"{size(new.cache_bytes)} against {size(old.cache_bytes)}"
    text = (
        f"At {new.context:,} tokens of context it decodes {faster} as softmax attention "
        f"({rate(new.decode)} against {rate(old.decode)}) and remembers {memory}"
    ).replace("speed as softmax", "speed of softmax")
    if cache_ratio(report) < 1:
        text += f", 1/{1 / cache_ratio(report):.3g}"
    slower = [n.context for o, n in report.speed_pairs() if n.decode < o.decode]
    if slower and ratio >= 1:
        text += f"; at {max(slower):,} tokens and below softmax is still the faster one"
    return text + "."


def _parts(report: Report) -> str:
    converted = report.row("converted")
    if converted is None or converted.bits_per_byte is None:
        return ""
    losses = [
        f"{row.name} {row.bits_per_byte - converted.bits_per_byte:+.3f}"
        for row in report.models
        if row.role == "ablation" and row.bits_per_byte is not None and row.name.startswith("without")
    ]
    if not losses:
        return ""
    return f"What each part is worth, in bits per byte lost when it is taken out: {'; '.join(losses)}."


def _recall(report: Report) -> str:
    teacher, converted = report.row("teacher"), report.row("converted")
    if teacher is None or converted is None or teacher.recall is None or converted.recall is None:
        return ""
    guess = f" (guessing gives {100 * report.recall_chance:.0f} %)" if report.recall_chance else ""
    asked = "Asked late for facts that were told early"
    old, new = f"{100 * teacher.recall:.0f} %", f"{100 * converted.recall:.0f} %"
    return f"{asked}, the softmax model is right in {old} and the DiJiang model in {new}{guess}."
