"""A sweep as a report: the trade-off, the recommendation, what top-p does, texts, Korean."""

from __future__ import annotations

import math
from typing import Any

from yeoul.evaluate.korean import findings
from yeoul.evaluate.nucleus import Nucleus
from yeoul.evaluate.sampling import GREEDY, PLAIN
from yeoul.recipes.machine import machine_facts
from yeoul.recipes.sweep.result import SweepResult
from yeoul.report.content import Command, Dot, Report, Scatter, Section, Table, Text, Words
from yeoul.units import count

MARKS = (0.1, 0.3, 0.5, 0.9)
"""Values of p that are marked token by token."""
EXAMPLES = 8
"""Mistakes in Korean that are shown."""
SHOWN_TEXTS = 2
"""Prompts whose continuations are shown."""


def sweep_report(result: SweepResult, line: str = "") -> Report:
    """The page of a sweep; `line` is the command that makes it."""
    best, greedy = result.best, result.greedy
    figures: list[tuple[Words, Text]] = []
    if best is not None:
        figures = [
            (str(best.setting), Text("recommended", "추천")),
            (_number(best.accuracy), _against(result.judged_by, greedy.accuracy)),
            (f"{best.distinct_2:.2f}", Text(
                f"distinct-2 (greedy {greedy.distinct_2:.2f})", f"distinct-2 (탐욕 디코딩 {greedy.distinct_2:.2f})"
            )),
        ]  # fmt: skip
    count = len(result.scores)
    return Report(
        title=Text(f"Sampling, measured: {result.model}", f"샘플링 설정의 측정: {result.model}"),
        lead=result.why,
        figures=tuple(figures),
        sections=(
            _tradeoff(result), _top_p(result.nucleus), _settings(result), *_texts(result), *_korean(result),
        ),
        machine=machine_facts(),
        reproduce=(Command(line=line, what=Text(f"{count} settings", f"설정 {count}개")),) if line else (),
        notes=_notes(result),
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def _against(judged_by: Text, greedy: float | None) -> Text:
    return Text(f"{judged_by.en} (greedy {_number(greedy)})", f"{judged_by.ko} (탐욕 디코딩 {_number(greedy)})")


def _tradeoff(result: SweepResult) -> Section:
    edge, chosen = result.tradeoff.edge, result.tradeoff.chosen
    dots = []
    for i, score in enumerate(result.scores):
        if score.accuracy is not None and score.setting != PLAIN:
            kind: Any = "chosen" if i == chosen else "edge" if i in edge else "other"
            label = "recommended" if i == chosen else ""
            dots.append(Dot(x=score.distinct_2, y=score.accuracy, kind=kind, joined=i in edge, label=label))
    on_edge = {result.scores[i].setting for i in edge}
    first = min((score.accuracy or 0.0 for score in result.edge), default=math.inf)
    for name, own in (("greedy", result.greedy), ("plain sampling", result.plain)):
        if own.accuracy is not None:
            joined = own.setting in on_edge or (own is result.greedy and own.accuracy < first)
            dots.append(Dot(x=own.distinct_2, y=own.accuracy, kind="reference", joined=joined, label=name))
    picture = Scatter(
        name="tradeoff", x_label="distinct-2 (more is more varied)", y_label="perplexity (less is more accurate)",
        dots=tuple(dots),
        caption=Text(
            f"Each dot is a setting; up and to the right is better. Line: the efficient edge, settings that no other "
            f"beats in both. Perplexity: {result.judged_by.en}.",
            f"점 하나가 설정 하나이고, 오른쪽 위가 좋습니다. 선은 두 값 모두에서 앞서는 다른 설정이 없는 효율 "
            f"경계입니다. "
            f"퍼플렉시티는 {result.judged_by.ko}입니다.",
        ),
        alt=Text(
            f"Perplexity against distinct-2 of {len(dots)} settings",
            f"설정 {len(dots)}개의 distinct-2에 따른 퍼플렉시티",
        ),
    )  # fmt: skip
    heads = ("temperature", "top-k", "top-p", "min-p", "perplexity", "judge's perplexity", "recall", "distinct-2",
             "self-BLEU", "repetition")  # fmt: skip
    return Section(
        heading=Text("Accuracy against diversity", "정확성과 다양성"),
        scatter=picture if dots else None,
        tables=((Text("The efficient edge:", "효율 경계:"), _table(result, heads, edge_only=True)),) if edge else (),
    )


def _settings(result: SweepResult) -> Section:
    return Section(
        heading=Text("All settings", "모든 설정"),
        paragraphs=(
            Text(
                "The most accurate first. Recall: facts told in the prompt that come back word for word. As greedy: "
                "tokens that are the likeliest where they stand. Self-BLEU: likeness of each text to the others. "
                "Entropy (bits) and tokens kept: of what was drawn from. Repetition: 4-grams that occurred before in "
                "the same text. Particles, syllables, spacing: mistakes in Korean. All shares in percent.",
                "정확한 설정부터 적었습니다. 회상은 프롬프트에서 알려 준 사실이 그대로 되돌아온 비율, ‘탐욕과 같음’은 "
                "그 "
                "자리에서 확률이 가장 높은 토큰의 비율, self-BLEU는 글끼리 닮은 정도입니다. 엔트로피(비트)와 남긴 "
                "토큰은 "
                "토큰을 뽑은 분포의 값이고, 반복은 같은 글에 앞서 나온 4-gram의 비율입니다. 조사·음절·띄어쓰기는 "
                "한국어 "
                "오류율입니다. 비율은 모두 퍼센트입니다.",
            ),
        ),
        tables=(("", _table(result)),),
    )


def _table(result: SweepResult, only: tuple[str, ...] = (), *, edge_only: bool = False) -> Table:
    """The table of settings, or its efficient edge with some columns."""
    heads, rows = result.rows()
    if edge_only:
        rows = [(mark, cells) for mark, cells in rows if mark]
    chosen = [i for i, head in enumerate(heads) if not only or head in only]
    names = {
        "→": Text("recommended", "추천"),
        "*": Text("edge", "경계"),
        "g": Text("greedy", "탐욕 디코딩"),
        "p": Text("plain", "순수 샘플링"),
    }
    return Table(
        head=("", *(heads[i] for i in chosen)),
        rows=tuple((names.get(mark, ""), *(cells[i] for i in chosen)) for mark, cells in rows),
        marked=frozenset(i for i, (mark, _) in enumerate(rows) if mark == "→"),
    )


def _top_p(shown: Nucleus) -> Section:
    low, high = shown.kept[0], shown.kept[-2] if len(shown.kept) > 1 else shown.kept[-1]
    prompt = " ".join(shown.prompt.split())
    kept = {share: number for share, number, _ in shown.kept}
    likeliest = tuple(
        (
            Text(own.text, own.text), f"{own.probability:.3f}", f"{own.cumulated:.3f}",
            *("●" if place < kept[share] else "" for share in MARKS if share in kept),
        )
        for place, own in enumerate(shown.candidates)
    )  # fmt: skip
    return Section(
        heading=Text("What top-p does", "top-p가 하는 일"),
        paragraphs=(
            Text(
                f"Top-p keeps the smallest set of likeliest tokens whose probability together reaches p, and draws "
                f"from "
                f"it. So a lower p keeps fewer tokens and makes the text safer; a higher one lets rare tokens in. (It "
                f"is "
                f"often told the other way round.) Behind “{prompt}” this model's p = {low[0]:g} keeps {low[1]:,} of "
                f"{shown.vocab_size:,} tokens, p = {high[0]:g} keeps {high[1]:,}.",
                f"top-p는 확률의 합이 p에 이르는 가장 작은 상위 토큰 집합만 남기고 그 안에서 뽑습니다. 그래서 p가 "
                f"낮을수록 남는 "
                f"토큰이 적어 글이 안전해지고, 높을수록 드문 토큰도 들어옵니다(반대로 설명하는 경우가 많습니다). "
                f"“{prompt}” "
                f"다음에서 이 모델은 p = {low[0]:g}이면 {shown.vocab_size:,}개 토큰 가운데 {low[1]:,}개, p = "
                f"{high[0]:g}이면 "
                f"{high[1]:,}개를 남깁니다.",
            ),
        ),
        tables=(
            ("", Table(
                head=("top-p", "tokens that are kept", "their probability together"),
                rows=tuple((f"{share:g}", f"{number:,}", f"{mass:.3f}") for share, number, mass in shown.kept),
            )),
            (
                Text(
                    "The likeliest next tokens; a dot: kept at this p.",
                    "확률이 높은 다음 토큰입니다. 점은 그 p에서 남는다는 뜻입니다.",
                ),
                Table(
                    head=("token", "probability", "together", *(f"p = {share:g}" for share in MARKS if share in kept)),
                    rows=likeliest,
                ),
            ),
        ),
    )  # fmt: skip


def _texts(result: SweepResult) -> tuple[Section, ...]:
    if result.best is None:
        return ()
    shown: list[tuple[Words, str]] = []
    named = [(Text("greedy", "탐욕 디코딩"), GREEDY), (Text("recommended", "추천"), result.best.setting)]
    if result.edge[-1] is not result.best:
        named.append((Text("the most varied", "가장 다양한 설정"), result.edge[-1].setting))
    each = result.config.samples
    for number, prompt in enumerate(result.prompts[:SHOWN_TEXTS]):
        for name, setting in named:
            title = Text(f"{name.en} ({setting})", f"{name.ko} ({setting})") if setting != GREEDY else name
            shown.append((title, f"{prompt.text}{result.texts[setting][number * each]}".strip()))
    return (Section(heading="Samples", texts=tuple(shown)),)


def _korean(result: SweepResult) -> tuple[Section, ...]:
    total = result.korean
    if not total.words:
        return ()
    examples = list(
        dict.fromkeys(
            str(found)
            for score in result.scores
            for text in result.texts[score.setting]
            for found in findings(text)
            if found.kind == "particle" and 0 < found.start and found.end < len(text)  # whole words
        )
    )[:EXAMPLES]
    en, ko = (f" For example: {', '.join(examples)}.", f" 예: {', '.join(examples)}.") if examples else ("", "")
    return (
        Section(
            heading=Text("Korean, by rule", "규칙으로 본 한국어"),
            paragraphs=(
                Text(
                    f"In all texts together {total.wrong_particles:,} of {total.particles:,} particles have the form "
                    f"that "
                    f"does not go with the final consonant before them; {total.undecided:,} endings may be particles "
                    f"or "
                    f"not and are left out. {total.broken:,} syllables of {total.syllables:,} are broken, and there "
                    f"are "
                    f"{total.spacing:,} spacing errors in {total.words:,} words. Only what a rule can tell is counted.",
                    f"모든 글을 합쳐 조사 {total.particles:,}개 가운데 {total.wrong_particles:,}개가 앞 받침에 맞지 "
                    f"않는 "
                    f"꼴입니다. 조사인지 규칙으로 알 수 없는 어미 {total.undecided:,}개는 뺐습니다. 음절 "
                    f"{total.syllables:,}개 "
                    f"가운데 {total.broken:,}개가 깨졌고, 어절 {total.words:,}개에 띄어쓰기 오류가 {total.spacing:,}개 "
                    f"있습니다. 규칙으로 가릴 수 있는 것만 셉니다.",
                ),
                *((Text(en.strip(), ko.strip()),) if examples else ()),
            ),
        ),
    )


def _notes(result: SweepResult) -> tuple[Words, ...]:
    config, prompts = result.config, len(result.prompts)
    return (
        Text(
            f"{count(prompts, 'prompt')}, {count(config.samples, 'continuation')} of each and setting, at most "
            f"{count(config.max_tokens, 'token')}; a prompt draws with the same seed under every setting. Small "
            "samples are noisy: --samples takes more.",
            f"프롬프트 {prompts}개를 설정마다 {config.samples}번씩, 최대 {config.max_tokens}토큰 이어 썼습니다. "
            f"프롬프트마다 모든 "
            f"설정에서 같은 시드로 뽑습니다. 표본이 적으면 값이 흔들리므로 --samples로 늘릴 수 있습니다.",
        ),
        Text(
            "A model's own perplexity favours what it likes itself; --judge takes another model's."
            if result.judge is None
            else f"The second model, {result.judge}, reads prompt and text in its own tokens.",
            "모델 자신의 퍼플렉시티는 자기가 좋아하는 글에 후합니다. --judge로 다른 모델에게 맡길 수 있습니다."
            if result.judge is None
            else f"두 번째 모델({result.judge})은 프롬프트와 글을 자신의 토큰으로 읽습니다.",
        ),
        Text(
            "The recommended setting is the point of the edge furthest above the line from greedy decoding to plain "
            "sampling (temperature 1, nothing ruled out), with the logarithm of perplexity: the knee. What is less "
            "likely "
            "than plain sampling's text is not recommended.",
            "추천 설정은 퍼플렉시티의 로그로 볼 때 탐욕 디코딩과 순수 샘플링(온도 1, 거르지 않음)을 이은 선에서 가장 "
            "멀리 위에 "
            "있는 경계의 점입니다. 순수 샘플링보다 덜 그럴듯한 설정은 추천하지 않습니다.",
        ),
    )
