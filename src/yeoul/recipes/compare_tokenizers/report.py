"""A comparison of tokenizers as a report."""

from __future__ import annotations

from yeoul.recipes.compare_tokenizers.result import TokenizerComparison, TokenizerScore, gigaflops
from yeoul.recipes.compare_tokenizers.serving import TEXT
from yeoul.recipes.machine import machine_facts
from yeoul.report.content import Command, Dot, Report, Scatter, Section, Table, Text, Words
from yeoul.report.languages import korean_duration
from yeoul.units import count, duration, size


def comparison_report(result: TokenizerComparison, line: str = "") -> Report:
    """The page of a comparison; `line` is the command that makes it."""
    best, shortest = result.best, result.shortest
    figures: list[tuple[Words, Text]] = []
    if best is not None and best.model is not None:
        label = Text(f"bits per byte with {best.name}, the fewest", f"바이트당 비트, 가장 낮은 {best.name}")
        figures.append((f"{best.model.bits_per_byte:.3f}", label))
    label = Text(f"bytes per token of {shortest.name}, the most", f"토큰당 바이트, 가장 긴 {shortest.name}")
    figures.append((f"{shortest.fit.bytes_per_token or 0:.2f}", label))
    number = len(result.scores)
    what = Text(count(number, "tokenizer"), f"토크나이저 {number}개")
    return Report(
        title=Text("Tokenizers compared", "토크나이저 비교"),
        lead=result.why,
        figures=tuple(figures),
        sections=(_all(result), *_model(result), _serving(result), _examples(result)),
        machine=machine_facts(),
        reproduce=(Command(line=line, what=what),) if line else (),
        notes=_notes(result),
    )  # fmt: skip


def _all(result: TokenizerComparison) -> Section:
    heads, rows = result.rows(without=("GFLOP per 1,000 characters", "cache per 1,000 characters"))
    best = {i for i, score in enumerate(result.scores) if score is result.best}
    return Section(
        heading=Text("Length, and what a model learns", "길이와 모델이 배우는 정도"),
        paragraphs=(
            Text(
                f"All on {size(result.val_bytes)} of held-out text. A syllable of Hangul is three bytes; a word is "
                f"what white space separates. In bytes: tokens that spell one byte of a character without a piece. "
                f"Old jamo: tokens for one jamo of 15th-century Hangul, which no syllable of Unicode holds. Speed: "
                f"one thread.",
                f"모두 따로 둔 텍스트 {size(result.val_bytes)}에서 쟀습니다. 한글 음절 하나는 3바이트이고 어절은 "
                f"공백으로 "
                f"나눈 "
                f"단위입니다. ‘바이트로 쓴 토큰’은 어휘에 없는 문자를 한 바이트씩 적은 토큰이고, ‘옛한글 자모당 "
                f"토큰’은 "
                f"유니코드 "
                f"음절에 없는 15세기 한글의 자모 하나에 드는 토큰입니다. 속도는 스레드 하나로 쟀습니다.",
            ),
        ),
        scatter=_picture(result),
        tables=(("", Table(head=tuple(heads), rows=tuple(map(tuple, rows)), marked=frozenset(best))),),
    )


def _picture(result: TokenizerComparison) -> Scatter | None:
    """Bits per byte against length; without small models what serving costs instead."""
    shown = [score for score in result.scores if score.fit.bytes_per_token]
    if trained := [score for score in shown if score.model is not None]:
        shown = trained
    if not shown:
        return None
    dots = tuple(
        Dot(
            x=score.fit.bytes_per_token or 0.0, label=score.name, kind="chosen" if score is result.best else "edge",
            y=score.serving.gigaflops if score.model is None else score.model.bits_per_byte,
        )
        for score in shown
    )  # fmt: skip
    names = ", ".join(score.name for score in shown)
    bits = Text("the small model needs fewer bits for the same text", "작은 모델이 같은 텍스트에 비트를 적게 씁니다")
    cost = Text("serving the same text costs less", "같은 텍스트를 서비스하는 비용이 낮습니다")
    up = bits if trained else cost
    return Scatter(
        name="tokenizers", x_label="bytes per token (more is shorter)", dots=dots,
        y_label="bits per byte of held-out text" if trained else "GFLOP per 1,000 characters",
        caption=Text(
            f"To the right, sequences are shorter; up, {up.en}.", f"오른쪽일수록 시퀀스가 짧고, 위로 갈수록 {up.ko}."
        ),
        alt=Text(
            f"{'Bits per byte' if trained else 'GFLOP'} against bytes per token: {names}",
            f"토큰당 바이트에 따른 {'바이트당 비트' if trained else 'GFLOP'}: {names}",
        ),
    )  # fmt: skip


def _model(result: TokenizerComparison) -> tuple[Section, ...]:
    if all(score.model is None for score in result.scores):
        return ()
    head = ("", "bits per byte", "without embedding", "embedding", "parameters", "tokens read", "training",
            "scoring, KB/s")  # fmt: skip
    config = result.config
    changed = ((config.hidden_size, "hidden size", "폭"), (config.layers, "layers", "층"))
    shape = Text(
        config.preset + "".join(f", {name} {value}" for value, name, _ in changed if value is not None),
        config.preset + "".join(f", {name} {value}" for value, _, name in changed if value is not None),
    )
    return (
        Section(
            heading=Text("The small model", "작은 모델"),
            paragraphs=(
                Text(
                    f"Preset {shape.en}, trained with each tokenizer on the same {size(result.train_bytes)} of "
                    f"text, once, in the same order: sequences of at most {config.segment_bytes:,} bytes, "
                    f"{config.batch_size} in a step. Only the embedding, which is the output projection too, differs "
                    f"in size. Bits per byte are those of all tokens over the bytes of the text, whatever its tokens "
                    f"are; for each byte that a tokenizer loses 8 bits are charged.",
                    f"프리셋 {shape.ko} 모델을 토크나이저마다 같은 텍스트 {size(result.train_bytes)}로 같은 "
                    f"순서로 "
                    f"한 번 학습했습니다. 시퀀스는 {config.segment_bytes:,}바이트 이하이고 한 스텝에 "
                    f"{config.batch_size}개씩입니다. 크기가 다른 것은 출력 투영을 겸하는 임베딩뿐입니다. 바이트당 "
                    f"비트는 "
                    f"모든 토큰의 비트를 텍스트의 바이트 수로 나눈 값이고, 토크나이저가 잃는 바이트에는 8비트를 "
                    f"매깁니다.",
                ),
            ),
            tables=(("", Table(head=head, rows=tuple(map(_model_row, result.scores)))),),
        ),
    )


def _model_row(score: TokenizerScore) -> tuple[Words, ...]:
    model = score.model
    if model is None:
        return (score.name, *("–",) * 7)
    return (
        score.name, f"{model.bits_per_byte:.3f}", f"{model.inner:,}", f"{model.embedding:,}", f"{model.parameters:,}",
        f"{model.trained_tokens:,}", Text(duration(model.seconds), korean_duration(model.seconds)),
        f"{1000 * model.read_rate:.0f}",
    )  # fmt: skip


def _serving(result: TokenizerComparison) -> Section:
    head = ("", "parameters", "embedding", "tokens per 1,000 characters", "GFLOP per 1,000 characters",
            "cache per 1,000 characters")  # fmt: skip
    rows = tuple(
        (score.name, f"{cost.parameters:,}", f"{cost.embedding:,}", f"{cost.tokens:,.0f}", gigaflops(cost.gigaflops),
         size(cost.cache_bytes))
        for score in result.scores
        for cost in (score.serving,)
    )  # fmt: skip
    return Section(
        heading=Text("Serving the same text", "같은 텍스트를 서비스하는 비용"),
        paragraphs=(
            Text(
                f"Computed for the preset {result.config.serve} with each vocabulary and {TEXT:,} characters of the "
                f"held-out text: products with weights, output projection included, and the cache in 16 bits. "
                f"Attention to the context comes on top, and grows with the number of tokens too.",
                f"프리셋 {result.config.serve}에 각 어휘를 쓸 때 따로 둔 텍스트 {TEXT:,}자에 드는 비용을 계산했습니다. "
                f"출력 투영을 포함한 가중치 곱과 16비트 캐시이고, 문맥에 대한 어텐션은 빠져 있으며 이것도 토큰 수에 "
                f"따라 "
                f"늘어납니다.",
            ),
        ),
        tables=(("", Table(head=head, rows=rows)),),
    )


def _examples(result: TokenizerComparison) -> Section:
    return Section(
        heading=Text("One sentence", "한 문장"),
        texts=tuple((score.name, score.example) for score in result.scores),
    )


def _notes(result: TokenizerComparison) -> tuple[Words, ...]:
    notes: list[Words] = []
    for score in result.scores:
        if score.model is not None and score.model.rows <= score.fit.vocab_size:
            rows = score.model.rows
            notes.append(Text(
                f"{score.name}: the small model has rows for the {rows:,} tokens of {score.fit.vocab_size:,} that "
                f"occur in the text, which spares it those that never do.",
                f"{score.name}: 작은 모델은 어휘 {score.fit.vocab_size:,}개 가운데 텍스트에 나오는 {rows:,}개만 "
                f"가지므로, 나오지 않는 토큰의 부담이 없습니다.",
            ))  # fmt: skip
        if score.same < 1:
            share = f"{100 * (1 - score.same):.2g}"
            notes.append(Text(
                f"{score.name}: {share} % of the held-out documents do not come back as they were.",
                f"{score.name}: 따로 둔 문서의 {share}%는 원래대로 되돌아오지 않습니다.",
            ))  # fmt: skip
    return tuple(notes)
