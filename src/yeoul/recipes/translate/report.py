"""Translations of two systems as a page: scores, sentence against sentence, texts."""

from __future__ import annotations

from yeoul.recipes.machine import machine_facts
from yeoul.recipes.translate.result import TranslateResult
from yeoul.report.content import Command, Dot, Report, Scatter, Section, Table, Text, Words
from yeoul.units import count

SHOWN = 40
"""Sentences that are shown; all are in translate.json."""
ORDER = Text(
    "Those that differ most come first; in brackets chrF.", "차이가 큰 문장부터 적었습니다. 괄호 안은 chrF입니다."
)
GREEDY = Text(
    "Translations are greedy: the likeliest token each time.", "번역은 매번 확률이 가장 높은 토큰을 골랐습니다."
)


def translate_report(result: TranslateResult, line: str = "") -> Report:
    """The page; `line` is the command that makes it."""
    names, number = " / ".join(result.systems), len(result.sources)
    figures: tuple[tuple[Words, Text], ...] = tuple(
        (f"{own['chrF2'].score:.1f}", Text(f"chrF, {name}", f"chrF, {name}"))
        for name, own in zip(result.systems, result.scores, strict=False)
    )
    return Report(
        title=Text(f"Translations: {names}", f"번역 비교: {names}"),
        lead=result.verdict,
        figures=figures,
        sections=(*_scores(result), _sentences(result), *_examples(result)),
        machine=machine_facts(),
        reproduce=(Command(line=line, what=Text(count(number, "sentence"), f"문장 {number}개")),) if line else (),
        notes=_notes(result),
    )


def _scores(result: TranslateResult) -> tuple[Section, ...]:
    if not result.scores:
        return ()
    heads, rows = result.rows()
    dots: tuple[Dot, ...] = ()
    if len(result.sentences) == 2:
        dots = tuple(Dot(x=a, y=b) for a, b in zip(*result.sentences, strict=True))
        dots += tuple(Dot(x=equal, y=equal, kind="reference", joined=True) for equal in (0.0, 100.0))
    better = [sum(b > a for a, b in zip(*result.sentences, strict=True)),
              sum(a > b for a, b in zip(*result.sentences, strict=True))] if dots else [0, 0]  # fmt: skip
    picture = Scatter(
        name="sentences", x_label="chrF of the first system", y_label="chrF of the second system", dots=dots,
        costs=False,
        caption=Text(
            "Each dot is a sentence; on the line both are as good. The second system is ahead in "
            f"{better[0]}, the first in {better[1]}.",
            "점 하나가 문장 하나이고, 선 위에서는 둘이 같습니다. 두 번째가 나은 문장이 "
            f"{better[0]}개, 첫 번째가 나은 문장이 {better[1]}개입니다.",
        ),
        alt=Text(f"chrF of {len(result.sources)} sentences, one system against the other",
                 f"두 번역의 문장별 chrF {len(result.sources)}개"),
    )  # fmt: skip
    return (
        Section(
            heading=Text("Scores", "점수"),
            paragraphs=(
                Text(
                    "chrF counts the character n-grams that a translation shares with the reference, BLEU its word "
                    "n-grams; 100 is the reference itself. 95 %: the interval by bootstrap over sentences. p: how "
                    "likely such a difference is between systems that are equally good, by paired bootstrap.",
                    "chrF는 번역이 참조 번역과 공유하는 문자 n-gram을, BLEU는 단어 n-gram을 셉니다. 참조 번역과 "
                    "똑같으면 100입니다. 95 %는 문장을 다시 뽑아(부트스트랩) 구한 구간이고, p는 실력이 같은데도 우연히 "
                    "이만한 차이가 날 확률로, 대응 부트스트랩으로 구했습니다.",
                ),
            ),
            scatter=picture if dots else None,
            tables=(("", Table(head=heads, rows=tuple(rows))),),
        ),
    )


def _sentences(result: TranslateResult) -> Section:
    places = list(range(len(result.sources)))
    if len(result.sentences) == 2:
        first, second = result.sentences
        places.sort(key=lambda i: -abs(second[i] - first[i]))
    shown: list[tuple[Words, str]] = []
    for i in places[:SHOWN]:
        lines = [result.sources[i], *([f"= {result.references[i]}"] if result.references[i] else [])]
        for number, (name, own) in enumerate(zip(result.systems, result.translations, strict=True)):
            score = f" [{result.sentences[number][i]:.0f}]" if result.sentences else ""
            lines.append(f"{name}{score}: {own[i]}")
        shown.append((str(i + 1), "\n".join(lines)))
    return Section(
        heading=Text("Sentence by sentence", "문장별 번역"),
        paragraphs=(ORDER,) if len(result.sentences) == 2 else (),
        texts=tuple(shown),
    )  # fmt: skip


def _examples(result: TranslateResult) -> tuple[Section, ...]:
    if not result.examples:
        return ()
    heads = (result.config.source_language, result.config.target_language)
    return (Section(heading=Text("Examples in the prompt", "프롬프트에 든 예시"),
                    tables=(("", Table(head=heads, rows=result.examples)),)),)  # fmt: skip


def _notes(result: TranslateResult) -> tuple[Words, ...]:
    notes: list[Words] = [GREEDY]
    if result.scores:
        signatures = ", ".join(f"{name} {score.signature}" for name, score in result.scores[0].items())
        notes.append(Text(f"sacrebleu: {signatures}", f"sacrebleu: {signatures}"))
    return tuple(notes)
