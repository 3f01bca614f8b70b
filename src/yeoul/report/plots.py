"""Plots of a report as SVG: loss curves, bits per byte, speed and memory against context.

Labels are English, so that no Hangul font is needed. Colours are from Okabe and Ito's palette, told apart by
colour-blind readers; lines are labelled where they end. The background is clear and the ink a grey that can
be read on white and on black; a page that embeds a plot may replace `INK` by its own text colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yeoul.report.content import Curve, Report, SpeedPoint
from yeoul.units import short, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#6b7480"
COLOURS = {"teacher": "#d55e00", "converted": "#0080c8", "ablation": "#9aa3ad"}
STAGE_COLOURS = {"train": "#0080c8", "validation": "#d55e00"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "path",
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
class Plot:
    """One picture: `name` is its file name without ending, `alt` says in words what it shows."""

    name: str
    caption: str
    alt: str
    svg: str


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
    return [plot for plot in (make(report) for make in makers) if plot is not None]


def loss_curves(report: Report) -> Plot | None:
    """A panel a stage: training loss as a line, validation as dots."""
    stages = list(dict.fromkeys(curve.stage for curve in report.curves))
    if not stages:
        return None

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(stages), squeeze=False)[0]
        unit = ""
        for axes, stage in zip(panels, stages, strict=True):
            own = [curve for curve in report.curves if curve.stage == stage]
            _loss_panel(axes, own)
            axes.set_title(stage)
            if own[0].unit != unit:
                unit = own[0].unit
                axes.set_ylabel(unit)

    return Plot(
        name="loss",
        caption="Loss against tokens read. Thin: each step; thick: running mean; dots: held-out text.",
        alt="Loss curves of " + ", ".join(stages),
        svg=_svg("loss", (9.2, 2.9), draw),
    )


def _loss_panel(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve in curves:
        colour = STAGE_COLOURS.get(curve.name, COLOURS["ablation"])
        if curve.name == "validation":
            axes.plot(curve.x, curve.y, "o-", color=colour, markersize=4, linewidth=1)
        else:
            axes.plot(curve.x, curve.y, color=colour, alpha=0.3, linewidth=0.9)
            axes.plot(curve.x, smooth(curve.y), color=colour)
    values = sorted(y for curve in curves for y in curve.y if math.isfinite(y))
    if values:
        # The first steps of a fresh model are far above the rest and would flatten it.
        top = max(values[int(0.97 * (len(values) - 1))], max(c.y[-1] for c in curves))
        low, room = values[0], max(top - values[0], 1e-6)
        axes.set_ylim(low - 0.08 * room, top + 0.12 * room)
    _end_labels(axes, [(c.x[-1], c.y[-1], c.name, STAGE_COLOURS.get(c.name, INK)) for c in curves])
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(_formatter(short))
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

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = [row.bits_per_byte or 0.0 for row in rows]
        places = range(len(rows))
        bars = axes.barh(places, values, color=[COLOURS[row.role] for row in rows], height=0.62)
        axes.bar_label(bars, labels=[f"{v:.3f}" for v in values], padding=4, color=INK)
        axes.set_yticks(places, [row.name for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, max(values) * 1.12)
        axes.set_xlabel("bits per byte of held-out text (less is better)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return Plot(
        name="bits-per-byte",
        caption="Bits that each model needs for a byte of text it has never seen; less is better.",
        alt="Bits per byte: " + ", ".join(f"{row.name} {row.bits_per_byte:.3f}" for row in rows),
        svg=_svg("bits-per-byte", (9.2, 0.9 + 0.38 * len(rows)), draw),
    )


def speed(report: Report) -> Plot | None:
    """Decode speed, prefill speed and cache against context, all axes logarithmic."""
    if not report.speeds:
        return None
    names = list(dict.fromkeys(point.model for point in report.speeds))

    def draw(figure: Figure) -> None:
        decode, prefill, cache = figure.subplots(1, 3)
        _context_panel(decode, report.speeds, names, lambda p: p.decode, short, spread=True)
        decode.set_title("decoding, tokens/s")
        _context_panel(prefill, report.speeds, names, lambda p: p.prefill, short)
        prefill.set_title("reading (prefill), tokens/s")
        _context_panel(cache, report.speeds, names, lambda p: float(p.cache_bytes), size, base=2)
        cache.set_title("cache")

    return Plot(
        name="speed",
        caption="Speed and cache as the context grows; models measured in turns, bars are quartiles.",
        alt="Tokens per second and cache bytes against context for " + " and ".join(names),
        svg=_svg("speed", (9.2, 3.0), draw),
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
    """Three to six round values (1, 2 or 5 times a power of ten) between the limits."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
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
    places = [(to_fraction.transform((x, y))[1] * height, x, y, text, colour) for x, y, text, colour in ends]
    lowest = 0.0
    for place, x, y, text, colour in sorted(places):
        shifted = max(place, lowest)
        lowest = shifted + 13
        axes.annotate(
            text,
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


def _svg(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draw on a figure of its own, without pyplot's global state; the same numbers give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def inline(plot: Plot) -> str:
    """The SVG for the middle of an HTML page: ink in the text's colour, identifiers of its own."""
    text = re.sub(r'\bid="([^"]+)"', rf'id="{plot.name}-\1"', plot.svg)
    text = re.sub(r'(href="|url\()#', rf"\1#{plot.name}-", text)
    text = text.replace(INK, "currentColor")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening = rf'<svg \1 {spaces} aria-hidden="true">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, text, count=1)
