"""Plots of a report as SVG: loss curves, bits per byte, speed and memory against context.

A plot is one panel or more, each a picture of its own, so that a page can lay them out for a wide or a narrow screen.
Labels stay text, in the reader's own font: they are drawn in English, and the Korean words are put in their places
(`Panel.in_language`, `inline`), so that no Hangul font is needed here. Colours are from Okabe and Ito's palette, told
apart by colour-blind readers; lines are labelled where they end. The background is clear and the ink a grey that can be
read on white and on black; a page that embeds a plot may replace `INK` by its own text colour.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yeoul.report.content import Curve, Report, Scatter, SpeedPoint, Text, Words
from yeoul.report.dot_labels import dot_labels
from yeoul.report.languages import LANGUAGES, text
from yeoul.units import short, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#6b7480"
PANEL = (3.3, 2.5)
"""Inches of a panel: three stand side by side on a wide page, one fills a phone."""
SCATTER = (4.6, 3.3)
DOTS: dict[str, dict[str, Any]] = {
    "other": {"color": "#9aa3ad", "marker": "o", "linestyle": "", "markersize": 4, "alpha": 0.8, "zorder": 2},
    "edge": {"color": "#0080c8", "marker": "o", "linestyle": "", "markersize": 5.5, "zorder": 3},
    "reference": {"color": "#9468c2", "marker": "D", "linestyle": "", "markersize": 6, "zorder": 3},
    "chosen": {"color": "#d55e00", "marker": "o", "linestyle": "", "markersize": 9, "zorder": 4},
}
BITS = "bits per byte of held-out text (less is better)"
COLOURS = {"teacher": "#d55e00", "converted": "#0080c8", "ablation": "#9aa3ad"}
STAGE_COLOURS = {"train": "#0080c8", "validation": "#d55e00"}
RUN_COLOURS = ("#0080c8", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a6fd0", "#9aa3ad")
"""Of lines that are told apart by the run that they are of, in turn."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture: `name` is its file name without ending, `title` stands above it."""

    name: str
    title: Words
    svg: str

    def in_language(self, language: str) -> str:
        """The SVG with its labels in "en" or "ko"."""
        return _LABEL.sub(lambda m: f"{m[1]}{_label(m[2], language)}</text>", self.svg)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Panels that belong together; `alt` says in words what they show."""

    name: str
    caption: Text
    alt: Text
    panels: tuple[Panel, ...]


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def all_plots(report: Report) -> list[Plot]:
    """Every plot that the report has numbers for; needs matplotlib."""
    makers: list[Callable[[Report], Plot | None]] = [loss_curves, bits_per_byte, speed]
    made = [plot for plot in (make(report) for make in makers) if plot is not None]
    return made + [scatter(section.scatter) for section in report.sections if section.scatter is not None]


def scatter(content: Scatter) -> Plot:
    """Points, the edge among them as a line, and labels at those that have one."""

    def draw(axes: Axes) -> None:
        for kind, style in DOTS.items():
            own = [dot for dot in content.dots if dot.kind == kind]
            axes.plot([dot.x for dot in own], [dot.y for dot in own], **style)
        edge = sorted((dot.x, dot.y) for dot in content.dots if dot.joined)
        axes.plot([x for x, _ in edge], [y for _, y in edge], color=COLOURS["converted"], linewidth=1.4, zorder=1)
        if content.costs:
            axes.set_yscale("log")
            _plain_log_ticks(axes, [dot.y for dot in content.dots])
            axes.invert_yaxis()
        shown = sorted((dot for dot in content.dots if dot.label), key=lambda dot: (dot.kind != "chosen", dot.x))
        labels = [(dot.x, dot.y, text(dot.label).en, DOTS[dot.kind]["color"]) for dot in shown]
        dot_labels(axes, labels, [(dot.x, dot.y) for dot in content.dots], INK)
        axes.set_xlabel(content.x_label)
        axes.set_ylabel(content.y_label)

    panel = Panel(name=content.name, title="", svg=_svg(content.name, SCATTER, draw))
    return Plot(name=content.name, caption=content.caption, alt=content.alt, panels=(panel,))


def _plain_log_ticks(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import NullFormatter

    low, high = min(values) / 1.15, max(values) * 1.15
    axes.set_ylim(low, high)
    ticks = _log_ticks(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_formatter(NullFormatter())


def loss_curves(report: Report) -> Plot | None:
    """A panel for each stage: training loss as a line, validation as dots."""
    stages = list(dict.fromkeys(curve.stage for curve in report.curves))
    if not stages:
        return None
    panels = []
    for stage in stages:
        own = [curve for curve in report.curves if curve.stage == stage]
        svg = _svg(f"loss-{stage}", PANEL, lambda axes, own=own: _loss_panel(axes, own))  # type: ignore[misc]
        panels.append(Panel(name=f"loss-{stage}", title=stage, svg=svg))
    names = [text(stage) for stage in stages]
    return Plot(
        name="loss",
        caption=Text(
            "Loss against tokens read. Thin line: each step; thick line: running mean; dots: held-out text.",
            "읽은 토큰에 따른 손실입니다. 가는 선은 스텝마다의 값, 굵은 선은 이동 평균, 점은 따로 둔 텍스트입니다.",
        ),
        alt=Text(
            "Loss curves of " + ", ".join(name.en for name in names),
            "손실 곡선: " + ", ".join(name.ko for name in names),
        ),
        panels=tuple(panels),
    )


def _loss_panel(axes: Axes, curves: Sequence[Curve]) -> None:
    runs = [name for name in dict.fromkeys(curve.name for curve in curves) if name not in STAGE_COLOURS]
    colours = STAGE_COLOURS | {name: RUN_COLOURS[i % len(RUN_COLOURS)] for i, name in enumerate(runs)}
    for curve in curves:
        colour = colours[curve.name]
        if curve.name == "validation":
            axes.plot(curve.x, curve.y, "o-", color=colour, markersize=4, linewidth=1)
        else:
            axes.plot(curve.x, curve.y, color=colour, alpha=0.3, linewidth=0.9)
            axes.plot(curve.x, smooth(curve.y), "o-" if len(curve.x) == 1 else "-", color=colour, markersize=4)
    values = sorted(y for curve in curves for y in curve.y if math.isfinite(y))
    if values:
        # The first steps of a fresh model are far above the rest and would flatten it.
        top = max(values[int(0.97 * (len(values) - 1))], max(c.y[-1] for c in curves))
        low, room = values[0], max(top - values[0], 1e-6)
        axes.set_ylim(low - 0.08 * room, top + 0.12 * room)
    _end_labels(axes, [(c.x[-1], c.y[-1], c.name, colours[c.name]) for c in curves])
    axes.set_xlabel("tokens")
    axes.set_ylabel(curves[0].unit)
    axes.xaxis.set_major_formatter(_formatter(short))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.locator_params(axis="x", nbins=4)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential running mean over about a twentieth of the values, without the bias of its start."""
    weight = 1 - 1 / max(2.0, len(values) / 20)
    result, mean, total = [], 0.0, 0.0
    for value in values:
        mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        result.append(mean / total)
    return result


def bits_per_byte(report: Report) -> Plot | None:
    """A bar a model; shorter is better."""
    rows = [row for row in report.models if row.bits_per_byte is not None]
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        values = [row.bits_per_byte or 0.0 for row in rows]
        places = range(len(rows))
        bars = axes.barh(places, values, color=[COLOURS[row.role] for row in rows], height=0.62)
        axes.bar_label(bars, labels=[f"{v:.3f}" for v in values], padding=4, color=INK)
        axes.set_yticks(places, [row.name for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, max(values) * 1.16)
        axes.set_xlabel(BITS)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    names = [(text(row.name), row.bits_per_byte) for row in rows]
    svg = _svg("bits-per-byte", (4.2, 0.8 + 0.3 * len(rows)), draw)
    return Plot(
        name="bits-per-byte",
        caption=Text(
            "Bits that each model needs for a byte of text it has never seen; less is better.",
            "처음 보는 텍스트 1바이트에 모델마다 필요한 비트 수입니다. 낮을수록 좋습니다.",
        ),
        alt=Text(
            "Bits per byte: " + ", ".join(f"{name.en} {bits:.3f}" for name, bits in names),
            "바이트당 비트: " + ", ".join(f"{name.ko} {bits:.3f}" for name, bits in names),
        ),
        panels=(Panel(name="bits-per-byte", title="", svg=svg),),
    )


def speed(report: Report) -> Plot | None:
    """Decode speed, prefill speed and cache against context, all axes logarithmic."""
    if not report.speeds:
        return None
    names = list(dict.fromkeys(point.model for point in report.speeds))
    values: dict[str, tuple[str, Callable[[SpeedPoint], float]]] = {
        "speed-decode": ("decoding, tokens/s", lambda p: p.decode),
        "speed-prefill": ("prefill, tokens/s", lambda p: p.prefill),
        "speed-cache": ("cache", lambda p: float(p.cache_bytes)),
    }
    panels = []
    for name, (title, value) in values.items():
        cache, spread = name == "speed-cache", name == "speed-decode"

        def draw(axes: Axes, value: Callable[[SpeedPoint], float] = value, c: bool = cache, s: bool = spread) -> None:
            _context_panel(axes, report.speeds, names, value, size if c else short, spread=s, base=2 if c else 10)

        panels.append(Panel(name=name, title=title, svg=_svg(name, PANEL, draw)))
    return Plot(
        name="speed",
        caption=Text(
            "Speed and cache as the context grows; models measured in turns, vertical bars are quartiles.",
            "문맥이 길어질 때의 속도와 캐시입니다. 두 모델을 번갈아 쟀고, 세로 막대는 사분위 범위입니다.",
        ),
        alt=Text(
            "Tokens per second and cache size against context for " + " and ".join(names),
            "문맥에 따른 초당 토큰 수와 캐시 크기: " + ", ".join(text(name).ko for name in names),
        ),
        panels=tuple(panels),
    )


def _context_panel(
    axes: Axes,
    points: Sequence[SpeedPoint],
    names: Sequence[str],
    value: Callable[[SpeedPoint], float],
    words: Callable[[float], str],
    *,
    spread: bool = False,
    base: int = 10,
) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    ends = []
    for name in names:
        own = sorted((p for p in points if p.model == name), key=lambda p: p.context)
        x, y, colour = [p.context for p in own], [value(p) for p in own], COLOURS[own[0].role]
        axes.plot(x, y, "o-", color=colour, markersize=4)
        if spread:
            axes.vlines(x, [p.decode_low for p in own], [p.decode_high for p in own], color=colour, alpha=0.6)
        ends.append((x[-1], y[-1], name, colour))
    contexts = sorted({p.context for p in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=base)
    shown = contexts if len(contexts) <= 4 else contexts[:: -(-len(contexts) // 4)]
    axes.set_xticks(shown, [f"{c:,}" for c in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    values = [value(p) for p in points]
    low, high = min(values) / 1.6, max(values) * 1.6
    axes.set_ylim(low, high)
    ticks = _log_ticks(low, high) if base == 10 else _binary_ticks(low, high)
    axes.set_yticks(ticks, [words(t) for t in ticks])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("context, tokens")
    _end_labels(axes, ends)


def _log_ticks(low: float, high: float) -> list[float]:
    """Three to six round values (1, 2 or 5 times a power of ten, or finer where the limits are near) between them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = tuple(tenth / 10 for tenth in range(10, 100))
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), fine):
        ticks = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks[:: -(-len(ticks) // 6)]
    return ticks


def _binary_ticks(low: float, high: float) -> list[float]:
    """Three to six powers of two between the limits, alike far apart."""
    ticks = [2.0**n for n in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    return ticks[:: -(-len(ticks) // 6)]


def _end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name each line beside its last point; labels that would touch are moved apart."""
    to_fraction = axes.transScale + axes.transLimits
    height = 0.7 * axes.get_figure().get_size_inches()[1] * 72  # type: ignore[union-attr]  # of a panel, points
    places = [(to_fraction.transform((x, y))[1] * height, x, y, label, colour) for x, y, label, colour in ends]
    lowest = 0.0
    for place, x, y, label, colour in sorted(places):
        shifted = max(place, lowest)
        lowest = shifted + 13
        axes.annotate(
            label,
            (x, y),
            xytext=(6, shifted - place),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=8.5,
            fontweight="bold",
            annotation_clip=False,
        )


def _formatter(words: Callable[[float], str]) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: words(value))


def _svg(name: str, inches: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Draw on a figure of its own, without pyplot's global state; the same numbers give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    return re.sub(r"(?s)\s*<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :])


_LABEL = re.compile(r"(<text [^>]*>)([^<]*)</text>")


def _label(escaped: str, language: str) -> str:
    return html.escape(getattr(text(html.unescape(escaped)), language), quote=False)


def inline(panel: Panel) -> str:
    """The SVG for the middle of an HTML page: ink in the text's colour, ids of its own, labels in all languages."""

    def labels(match: re.Match[str]) -> str:
        words = {language: _label(match[2], language) for language in LANGUAGES}
        if len(set(words.values())) == 1:
            return match[0]
        spans = (f'<tspan class="in" lang="{language}">{word}</tspan>' for language, word in words.items())
        return f"{match[1]}{''.join(spans)}</text>"

    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{panel.name}-\1"', panel.svg)
    drawn = re.sub(r'(href="|url\()#', rf"\1#{panel.name}-", drawn)
    drawn = _LABEL.sub(labels, drawn).replace(INK, "currentColor")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening = rf'<svg \1 {spaces} aria-hidden="true">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, drawn, count=1)
