"""What `yeoul evaluate --out` leaves: evaluate.json, and the scores as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.errors import UserError
from yeoul.files import write_json
from yeoul.recipes.machine import machine_facts
from yeoul.recipes.run_folder import made_in
from yeoul.report.content import Command, Report, Section, Text, Words, table_section
from yeoul.units import count, size

if TYPE_CHECKING:
    from yeoul.evaluate.agreement import Agreement
    from yeoul.evaluate.associative import RecallGrid
    from yeoul.evaluate.compare import Comparison
    from yeoul.evaluate.decode_speed import DecodeSpeeds
    from yeoul.evaluate.korean import KoreanScore
    from yeoul.evaluate.long_context import Estimate, LongContextScore
    from yeoul.evaluate.recall import RecallScore
    from yeoul.recipes.evaluation_result import EvaluateResult

RECORD = "evaluate.json"


def check_out(folder: Path) -> None:
    """Said before anything is measured.

    Raises:
        UserError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("a file is in the way", f"--out {folder}", "choose a folder")
    if made_in(folder) and not (folder / RECORD).is_file():
        raise UserError("the folder is not that of an evaluation", f"--out {folder}", "choose another folder")


def leave_evaluation(result: EvaluateResult, folder: Path, line: str) -> Path:
    """Writes record and page, whole, over those of an earlier evaluation; `line` is its command, if there is one.

    Returns:
        The page.
    """
    from yeoul.report.page import write_report

    write_json(folder / RECORD, result.as_dict())
    return write_report(evaluation_report(result, line), folder)[0]


def evaluation_report(result: EvaluateResult, line: str) -> Report:
    """The page."""
    compared, score = result.comparison, result.score
    name = Path(result.model).name
    title = Text(f"Evaluation: {name}", f"평가: {name}")
    sections = [_scores(result)]
    if score.by_position:
        rows = tuple((_span(b.first, b.last), f"{b.loss:.4f}", f"{b.tokens:,}") for b in score.by_position)
        sections.append(table_section(BY_POSITION, head=("position", "loss", "tokens"), rows=rows))
    if result.recall is not None:
        sections.append(_recall(result.recall))
    if result.korean:
        sections.append(_korean(result.korean))
    sections += [_grid(kind, {"accuracy": grid}) for kind, grid in result.grids.items()]
    figures: list[tuple[Words, Text]] = [(f"{score.perplexity:,.4g}", Text("perplexity", "퍼플렉시티"))]
    if score.bits_per_byte is not None:
        figures.append((f"{score.bits_per_byte:.4f}", Text("bits per byte", "바이트당 비트")))
    notes: list[Words] = [result.tokenizer.begins]
    if compared is not None:
        title = Text(f"{name} beside its teacher", f"{name}, 교사와 나란히")
        sections += _comparison(compared)
        if (kept := _kept(compared)) is not None:
            figures.append((_estimate(kept), Text("of the long-context gain retained", "긴 문맥 이득 가운데 남은 몫")))
        notes += [f"{part}: {reason}" for part, reason in compared.not_measured.items()]
    return Report(
        title=title, lead=_lead(result), figures=tuple(figures), sections=tuple(sections), machine=machine_facts(),
        reproduce=(Command(line=line),) if line else (), notes=tuple(notes),
    )  # fmt: skip


BY_POSITION = Text("By position in the sequence", "시퀀스 안의 위치별")
GRIDS = {
    "mqar": Text("Recall of pairs (MQAR)", "쌍의 회상(MQAR)"),
    "needle": Text("A needle in a text", "텍스트 속의 바늘"),
}


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def _estimate(found: Estimate) -> str:
    if found.value is None:
        return "–"
    return f"{found.value:.2f}" + (f" ± {found.stderr:.2f}" if found.stderr else "")


def _kept(compared: Comparison) -> Estimate | None:
    """The converted model's share of the long-context gain, where that is no noise."""
    score = compared.long_context
    return score.row("converted").retained if score is not None and score.measurable else None


def _lead(result: EvaluateResult) -> Text:
    where = f"{result.score.tokens:,}", f"{result.context:,}"
    en = f"Scored on {where[0]} tokens of {result.data} in sequences of {where[1]}."
    ko = f"{result.data}의 토큰 {where[0]}개를 {where[1]}토큰 시퀀스로 나누어 채점했습니다."
    compared = result.comparison
    if compared is None or compared.long_context is None:
        return Text(en, ko)
    score, kept = compared.long_context, _kept(compared)
    ratio = f"{score.row('converted').ratio:.4f}"
    en += f" The converted model's perplexity is {ratio} times its teacher's."
    ko += f" 변환한 모델의 퍼플렉시티는 교사의 {ratio}배입니다."
    if kept is None:
        return Text(
            f"{en} On this text the teacher gains nothing measurable from distance, so that perplexity says nothing "
            "about long context.",
            f"{ko} 이 텍스트에서는 교사도 먼 문맥에서 얻는 것이 잡음보다 작아, 퍼플렉시티로는 긴 문맥을 "
            "판단할 수 없습니다.",
        )
    return Text(
        f"{en} Of what the teacher gains from distance it retains {_estimate(kept)}.",
        f"{ko} 교사가 먼 문맥에서 얻는 것 가운데 {_estimate(kept)}만큼이 남았습니다.",
    )


def _scores(result: EvaluateResult) -> Section:
    score = result.score
    bits = "–" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"
    rows: list[tuple[Words, ...]] = [
        ("loss", f"{score.loss:.4f}"), ("perplexity", f"{score.perplexity:,.3f}"), ("bits per byte", bits),
        ("tokens", f"{score.tokens:,}"), ("context", f"{result.context:,}"),
    ]  # fmt: skip
    return table_section(Text("Scores", "점수"), head=("", "value"), rows=rows)


def _recall(found: RecallScore) -> Section:
    rows = [(found.method, f"{found.accuracy:.1%} ± {found.stderr:.1%}", f"{found.chance:.0%}", f"{found.questions:,}")]
    head = ("", "accuracy", Text("guessing", "찍었을 때"), Text("questions", "문항"))
    return table_section(Text("Recall of facts told earlier", "앞에서 알려 준 사실의 회상"), head=head, rows=rows)


def _korean(scores: dict[str, KoreanScore]) -> Section:
    names = {"written": Text("written by the model", "모델이 쓴 글"), "text": Text("the text itself", "원래 글")}
    rows: list[tuple[Words, ...]] = []
    for words, wrong, among, rate in (
        (Text("wrong particles", "틀린 조사"), "wrong_particles", "particles", "particle_rate"),
        (Text("broken syllables", "깨진 음절"), "broken", "syllables", "broken_rate"),
        (Text("spacing errors", "띄어쓰기 오류"), "spacing", "words", "spacing_rate"),
    ):
        told = [score.as_dict() for score in scores.values()]
        cells = ["–" if s[rate] is None else f"{s[rate]:.2%} ({s[wrong]:,}/{s[among]:,})" for s in told]
        rows.append((words, *cells))
    head = ("", *(names.get(name, name) for name in scores))
    return table_section(Text("Korean, by rule", "규칙으로 본 한국어"), head=head, rows=rows)


def _grid(kind: str, grids: dict[str, RecallGrid]) -> Section:
    """Right answers of models to the same questions."""
    first = next(iter(grids.values()))
    rows: list[tuple[Words, ...]] = []
    for place, cell in enumerate(first.cells):
        star = " *" if cell.beyond_window else ""
        if cell.depth is None:
            label = Text(f"{count(cell.pairs, 'pair')}, {cell.distance:,} apart{star}",
                         f"쌍 {cell.pairs}개, 거리 {cell.distance:,}{star}")  # fmt: skip
        else:
            label = Text(f"{cell.length:,} tokens, at {cell.depth:.0%}{star}",
                         f"{cell.length:,}토큰, {cell.depth:.0%} 지점{star}")  # fmt: skip
        found = [grid.cells[place] for grid in grids.values()]
        rows.append((label, *(f"{100 * own.exact:.0f} / {100 * own.choice:.0f}" for own in found)))
    note = Text(
        "% right: likeliest of all tokens / of the candidates. "
        f"* All of it is more than {first.window:,} positions back.",
        f"정답률(%): 모든 토큰 가운데 / 후보 가운데. *는 모두 {first.window:,}자리보다 앞에 있다는 뜻입니다.",
    )
    return table_section(GRIDS[kind], head=("", *grids), rows=rows, note=note)


def _comparison(compared: Comparison) -> list[Section]:
    sections = []
    if compared.long_context is not None:
        sections += _long_context(compared.long_context)
    sections += [_grid(kind, grids) for kind, grids in (("mqar", compared.mqar), ("needle", compared.needle)) if grids]
    if compared.agreement is not None:
        sections.append(_agreement(compared.agreement))
    if compared.speed is not None:
        sections.append(_speed(compared.speed))
    return sections


def _long_context(score: LongContextScore) -> list[Section]:
    rows = []
    for row in score.rows:
        bits = "–" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"
        shares = [_estimate(own) if score.measurable else "–" for own in (row.retained, row.retained_long_range)]
        rows.append((row.name, f"{row.perplexity:,.3f}", f"{row.ratio:.4f} ×", bits, *shares))
    head = (
        "model",
        "perplexity",
        "vs. teacher",
        "bits per byte",
        "retained",
        Text("of long-range tokens", "먼 토큰에서"),
    )
    note = Text(
        f"Retained: 1 is the teacher, 0 the teacher cut to a window of {score.window} and {score.sinks} sinks. "
        f"Long-range tokens, which lose most by that: {score.long_range_tokens:,} of {score.tokens:,}.",
        f"남은 몫: 교사가 1, 윈도 {score.window}과 싱크 {score.sinks}개만 보게 한 교사가 0입니다. "
        f"그때 크게 나빠지는 먼 토큰은 {score.tokens:,}개 가운데 {score.long_range_tokens:,}개입니다.",
    )
    places = [
        (_span(bucket.first, bucket.last), *(f"{row.by_position[index].perplexity:,.3f}" for row in score.rows))
        for index, bucket in enumerate(score.rows[0].by_position)
    ]
    names = [row.name for row in score.rows]
    return [
        table_section("What is kept of distant text", head=head, rows=rows, note=note),
        table_section(Text("Perplexity by position", "위치별 퍼플렉시티"), head=("position", *names), rows=places),
    ]


def _agreement(found: Agreement) -> Section:
    rows = [
        (name, f"{style.tokens:.1f}", f"{style.repetition:.3f}", f"{style.distinct_1:.3f}", f"{style.distinct_2:.3f}")
        for name, style in (("teacher", found.teacher), ("converted", found.converted))
    ]
    note = Text(
        f"Greedy continuations of {count(found.prompts, 'prompt')}: the same for {found.prefix_mean:.1f} tokens on "
        f"average, to the end in {found.equal:.0%}; chrF {found.chrf:.1f} of 100.",
        f"프롬프트 {found.prompts}개를 탐욕 디코딩으로 이어 썼습니다. 평균 {found.prefix_mean:.1f}토큰까지 같고, "
        f"끝까지 같은 것이 {found.equal:.0%}입니다. chrF는 100점 만점에 {found.chrf:.1f}입니다.",
    )
    head = ("model", "tokens", "repetition", "distinct-1", "distinct-2")
    return table_section(Text("Free generation", "자유 생성"), head=head, rows=rows, note=note)


def _speed(speed: DecodeSpeeds) -> Section:
    rows = [
        (f"{own.position:,}", own.model, f"{own.tokens_per_second:,.1f}", f"{own.low:,.1f}–{own.high:,.1f}",
         size(own.cache_bytes)) for own in speed.records
    ]  # fmt: skip
    head = ("position", "model", "decode tokens/s", "quartiles", "cache")
    threads = Text(f"One sequence, {count(speed.threads, 'thread')}.", f"시퀀스 하나, 스레드 {speed.threads}개.")
    return table_section("Speed and memory", head=head, rows=rows, note=threads)
