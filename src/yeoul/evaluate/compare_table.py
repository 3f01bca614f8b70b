"""A comparison as plain text, at most 100 columns wide, for somebody who reads one for the first time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from yeoul.evaluate.associative import CellScore, RecallGrid, RetainedShare
from yeoul.evaluate.long_context import CUT, LONG_RANGE_NATS, TEACHER, Estimate, LongContextScore, PositionScore
from yeoul.units import count, duration, size

if TYPE_CHECKING:
    from yeoul.evaluate.agreement import Agreement
    from yeoul.evaluate.compare import Comparison, TrainingCost
    from yeoul.evaluate.decode_speed import DecodeSpeeds

WIDTH = 100
LABEL = 24
COLUMN = 13


def comparison_table(comparison: Comparison) -> str:
    """All parts that were measured, separated by blank lines; then those that were not, and why."""
    parts = [_legend(comparison)]
    if comparison.cost is not None:
        parts.append(_cost(comparison.cost))
    if comparison.long_context is not None:
        score = comparison.long_context
        parts += [_long_context(score), _gain(score), _positions(score)]
    for grids in (comparison.mqar, comparison.needle):
        if grids:
            parts.append(recall_table(grids))
    if comparison.agreement is not None:
        parts.append(_agreement(comparison.agreement))
    if comparison.speed is not None:
        parts.append(_speed(comparison.speed))
    parts += [_wrapped(f"Not measured, {part}: {reason}") for part, reason in comparison.not_measured.items()]
    return "\n\n".join(parts)


def _legend(comparison: Comparison) -> str:
    rows = [
        (TEACHER, "the softmax model before the conversion"),
        (CUT, f"sees only the last {comparison.window} and the first {comparison.sinks} positions, without training:"),
        ("", "the baseline that a conversion must beat"),
        ("converted", "the model after the conversion"),
        ("linear only, window only", "the converted model with the other part of its attention switched off"),
        ("no pairs", "all that leaves its window enters the state"),
    ]
    return "\n".join(f"{name:<{LABEL}}  {text}" for name, text in rows)


def _cost(cost: TrainingCost) -> str:
    of = ""
    if cost.teacher_tokens:
        of = f" (1/{cost.teacher_tokens / max(cost.tokens, 1):,.0f} of the teacher's)"
    energy = f" Energy: {cost.energy}." if cost.energy is not None else ""
    return _wrapped(f"Converted with {cost.tokens:,} tokens{of} in {duration(cost.seconds)}.{energy}")


def _long_context(score: LongContextScore) -> str:
    head = f"{'text':<{LABEL}}  {'perplexity':>10}  {'of teacher':>10}  {'bits/byte':>9}"
    lines = [f"{head}  {'retained':>17}  {'long-range tokens':>17}"]
    for row in score.rows:
        bits = "-" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"
        line = f"{row.name:<{LABEL}}  {row.perplexity:>10.3f}  {row.ratio:>10.4f}  {bits:>9}"
        lines.append(f"{line}  {_share(row.retained):>17}  {_share(row.retained_long_range):>17}")
    return "\n".join(lines)


def _share(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    return f"{estimate.value:.3f}" + (f" +- {estimate.stderr:.3f}" if estimate.stderr else "")


def _gain(score: LongContextScore) -> str:
    if score.gain.value is None:
        return "The teacher could not be cut, so the long-context gain is unknown."
    gain = _nats(score.gain)
    if not score.measurable:
        return _wrapped(
            f"The long-context gain is not measurable on this text: cutting the teacher to {score.window} positions "
            f"and {score.sinks} sinks changes its loss by {gain} nats per token, which is within the noise. "
            "So no share of it can be retained or lost, and perplexity says nothing about long context here."
        )
    words = (
        f"Long-context gain: {gain} nats per token, by which the loss rises when the teacher is cut. Retained: the "
        "share of it that a model does not lose (teacher 1, cut teacher 0). Long-range tokens, whose loss rises by at "
        f"least {LONG_RANGE_NATS}: "
        f"{score.long_range_tokens:,} of {score.tokens:,} in {score.sequences:,} sequences"
    )
    return _wrapped(words + (f", by {_nats(score.gain_long_range)} on average." if score.long_range_tokens else "."))


def _nats(estimate: Estimate) -> str:
    return f"{estimate.value:.4f}" + (f" +- {estimate.stderr:.4f}" if estimate.stderr is not None else "")


def _positions(score: LongContextScore) -> str:
    names = [row.name for row in score.rows]
    lines = [_columns("perplexity at position", names)]
    lines += [
        _columns(_place(bucket), [f"{row.by_position[index].perplexity:,.3f}" for row in score.rows])
        for index, bucket in enumerate(score.rows[0].by_position)
    ]
    return "\n".join(lines)


def _place(bucket: PositionScore) -> str:
    return f"{bucket.first:,}-{bucket.last:,}" + (" untrained" if bucket.beyond else "")


def _columns(label: str, values: Sequence[str]) -> str:
    width = min(LABEL, WIDTH - COLUMN * len(values))
    return f"{label:<{width}}" + "".join(f"{value:>{COLUMN}}" for value in values)


def recall_table(grids: dict[str, RecallGrid]) -> str:
    """Accuracies of models on the same questions, "exact / choice" in percent; with a teacher, shares of its own."""
    first = next(iter(grids.values()))
    what = "recall of pairs (MQAR)" if first.kind == "mqar" else "needle in a text"
    lines = [_columns(what, list(grids))]
    for index, cell in enumerate(first.cells):
        lines.append(_columns(_cell(cell), [_accuracy(grid.cells[index]) for grid in grids.values()]))
    if TEACHER in grids:
        teacher = grids[TEACHER]
        shares = [grid.share_of(teacher) for grid in grids.values()]
        lines.append(_columns("of the teacher's", [_retained(share) for share in shares]))
        if any(cell.beyond_window for cell in first.cells):
            beyond = [grid.share_of(teacher, beyond_window=True) for grid in grids.values()]
            lines.append(_columns("  beyond the window *", [_retained(share) for share in beyond]))
        if shares[0].excluded:
            lines.append(
                f"Shares of exact answers leave out {shares[0].excluded} of {len(first.cells)} cells, "
                "where the teacher itself only guesses."
            )
    lines.append(
        _wrapped(
            "% right: most likely of all tokens / of the candidates. "
            f"* every pair is more than {first.window} positions back when it is asked for."
        )
    )
    return "\n".join(lines)


def _cell(cell: CellScore) -> str:
    star = " *" if cell.beyond_window else ""
    if cell.depth is None:
        return f"{cell.pairs} pairs, {cell.distance:,} apart{star}"
    return f"{cell.length:,} tokens, at {100 * cell.depth:.0f} %{star}"


def _accuracy(cell: CellScore) -> str:
    return f"{100 * cell.exact:.0f} / {100 * cell.choice:.0f}"


def _retained(share: RetainedShare) -> str:
    return " / ".join("-" if value is None else f"{value:.2f}" for value in (share.exact, share.choice))


def _agreement(found: Agreement) -> str:
    head = (
        f"Greedy continuations of {count(found.prompts, 'prompt')}, up to {found.max_tokens} tokens each: the same for "
    )
    lines = [
        _wrapped(
            f"{head}{found.prefix_mean:.1f} tokens on average (median {found.prefix_median:g}), to the end in "
            f"{100 * found.equal:.0f} %; chrF {found.chrf:.1f} of 100."
        ),
        f"{'generated text':<{LABEL}}{'tokens':>12}{'repeated 4-grams':>20}{'distinct-1':>14}{'distinct-2':>14}",
    ]
    for name, style in ((TEACHER, found.teacher), ("converted", found.converted)):
        line = f"{name:<{LABEL}}{style.tokens:>12.1f}{style.repetition:>20.3f}"
        lines.append(f"{line}{style.distinct_1:>14.3f}{style.distinct_2:>14.3f}")
    return "\n".join(lines)


def _speed(speed: DecodeSpeeds) -> str:
    head = f"{'decoding at position':<{LABEL}}{'teacher tokens/s':>17}{'converted tokens/s':>19}{'speed':>8}"
    lines = [f"{head}{'teacher cache':>15}{'converted cache':>17}"]
    positions = {r.position for r in speed.records} | {r.position for r in speed.left_out}
    for position in sorted(positions):
        teacher, converted = speed.at(TEACHER, position), speed.at("converted", position)
        times = "-"
        if teacher is not None and converted is not None:
            times = f"{converted.tokens_per_second / teacher.tokens_per_second:.2f}x"
        rates = ["-" if r is None else f"{r.tokens_per_second:,.1f}" for r in (teacher, converted)]
        caches = ["-" if r is None else size(r.cache_bytes) for r in (teacher, converted)]
        line = f"{position:<{LABEL},}{rates[0]:>17}{rates[1]:>19}{times:>8}{caches[0]:>15}{caches[1]:>17}"
        lines.append(line)
    threads = count(speed.threads, "thread")
    words = f"One sequence, {threads}, medians of {count(speed.turns, 'turn')} of {count(speed.steps, 'token')}. "
    words += "Caches were filled by repeating the states of a short text, which does not affect speed."
    lines.append(_wrapped(words))
    lines += [_wrapped(f"Not measured: {r.model} at {r.position:,}: {r.reason}.") for r in speed.left_out]
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH))
