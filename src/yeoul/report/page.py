"""A report as one self-contained HTML page with a switch of language, and as Markdown beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.files import replace_folder, write_text
from yeoul.report import plots
from yeoul.report.content import Report, Text, Words
from yeoul.report.korean import in_korean
from yeoul.report.languages import LANGUAGES, korean_duration, text
from yeoul.report.markdown import as_text, gap, render_markdown
from yeoul.report.plots import Plot
from yeoul.report.summary import cache_ratio, in_words
from yeoul.units import duration, size

if TYPE_CHECKING:
    from markupsafe import Markup

NO_PLOTS = Text(
    "matplotlib is not installed, so this report has tables only; `pip install 'yeoul[viz]'` adds the plots.",
    "matplotlib이 설치되어 있지 않아 표만 있습니다. `pip install 'yeoul[viz]'`로 설치하면 그림도 그립니다.",
)
MARKDOWN = {"en": "report.md", "ko": "report.ko.md"}


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.html`, `report.md`, `report.ko.md` and the plots in `report/`; returns the paths of the first two.

    Each is replaced as a whole, so that an older report stays whole until then.
    """
    pictures = plots.all_plots(report) if plots.available() else []
    missing = "" if plots.available() else NO_PLOTS

    def write(images: Path) -> None:
        for panel in (panel for plot in pictures for panel in plot.panels):
            write_text(images / f"{panel.name}.svg", panel.in_language("en"))
            write_text(images / f"{panel.name}.ko.svg", panel.in_language("ko"))

    replace_folder(folder / "report", write)
    page = folder / "report.html"
    write_text(page, render_html(report, pictures, missing))
    for language, name in MARKDOWN.items():
        write_text(folder / name, render_markdown(report, pictures, missing, language))
    return page, folder / MARKDOWN["en"]


def in_each(words: Words) -> Markup:
    """Words as HTML in all languages, of which the page shows one; once where all are the same."""
    from markupsafe import Markup, escape

    said = text(words)
    if said.en == said.ko:
        return escape(said.en)
    span = Markup('<span class="in" lang="{}">{}</span>')
    return Markup("").join(span.format(language, getattr(said, language)) for language in LANGUAGES)


def _figure(plot: Plot) -> Markup:
    from markupsafe import Markup

    panels = Markup("").join(
        Markup('<div class="panel">{}{}</div>').format(
            Markup("<h3>{}</h3>").format(in_each(panel.title)) if panel.title else "",
            Markup(plots.inline(panel)),
        )
        for panel in plot.panels
    )
    body = (
        '<figure class="{}"><div class="panels">{}</div><figcaption>{} <span class="sr">{}</span></figcaption></figure>'
    )
    return Markup(body).format(plot.name, panels, in_each(plot.caption), in_each(plot.alt))


def rendered(template: str, *, title: Text, **values: Any) -> str:
    """A page of `templates/`, which extends `base.html.j2`; everything that is not `Markup` is escaped.

    Args:
        template: file name.
        title: what stands in the browser's bar.
        values: by their names in the template; `t` there is `in_each`.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    templates = resources.files("yeoul.report").joinpath("templates")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FunctionLoader(lambda name: templates.joinpath(name).read_text(encoding="utf-8")),
    )  # fmt: skip
    return environment.get_template(template).render(t=in_each, title=title, **values)


def render_html(report: Report, pictures: Sequence[Plot], missing: Words = "") -> str:
    """The page as text; everything that comes from a model or a file is escaped."""
    from markupsafe import Markup

    shown = {plot.name: plot for plot in pictures}
    return rendered(
        "report.html.j2",
        report=report,
        title=text(report.title),
        words=_joined(text(report.lead), Text(in_words(report), in_korean(report))),
        highlights=highlights(report),
        missing=missing,
        plot=lambda name: _figure(shown[name]) if name in shown else Markup(""),
        duration=lambda seconds: Text(duration(seconds), korean_duration(seconds)),
        size=size,
        as_text=as_text,
        gap=lambda row: gap(report, row),
        gaps=any(gap(report, row) for row in report.models),
        recall=any(row.recall is not None for row in report.models),
    )


def _joined(first: Text, then: Text) -> Text:
    return Text(f"{first.en} {then.en}".strip(), f"{first.ko} {then.ko}".strip())


def highlights(report: Report) -> list[tuple[Words, Text]]:
    """The few figures that stand in large type: (value, label)."""
    found: list[tuple[Words, Text]] = list(report.figures)
    teacher, converted, pair = report.row("teacher"), report.row("converted"), report.longest()
    if teacher and converted and teacher.bits_per_byte and converted.bits_per_byte:
        label = Text(
            "bits per byte, softmax → DiJiang (less is better)", "바이트당 비트, 소프트맥스 → DiJiang (낮을수록 좋음)"
        )
        found.append((f"{teacher.bits_per_byte:.3f} → {converted.bits_per_byte:.3f}", label))
    if pair:
        old, new = pair
        label = Text(
            f"decoding speed at {new.context:,} tokens of context", f"문맥 {new.context:,}토큰에서 디코딩 속도"
        )
        found.append((f"{new.decode / old.decode:.1f} ×", label))
        smaller = 1 / cache_ratio(report)
        label = Text(f"cache at {new.context:,} tokens", f"{new.context:,}토큰에서 캐시 크기")
        found.append((f"1/{smaller:.3g}" if smaller > 1 else f"{1 / smaller:.3g} ×", label))
    if teacher is None:
        return found  # of one run alone the first paragraph says it
    seconds = report.seconds or sum(stage.seconds or 0 for stage in report.stages)
    if seconds:
        time = Text(duration(seconds), korean_duration(seconds))
        whole = Text("from text to this page", "텍스트에서 이 페이지까지")
        found.append((time, whole if report.seconds else Text("of training", "학습 시간")))
    return found
