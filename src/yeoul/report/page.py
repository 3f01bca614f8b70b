"""A report as one self-contained HTML page, and as Markdown with its pictures in a folder beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.files import replace_folder, write_text
from yeoul.report import plots
from yeoul.report.content import Command, ModelRow, Report
from yeoul.report.plots import Plot
from yeoul.report.summary import cache_ratio, in_korean, in_words
from yeoul.units import duration, size

if TYPE_CHECKING:
    from markupsafe import Markup

NO_PLOTS = "matplotlib is not installed, so this report has tables only; `pip install 'yeoul[viz]'` adds the plots."


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.html`, `report.md` and the plots in `report/`; returns the paths of the two pages.

    Each is replaced as a whole, so that an older report stays whole until then.
    """
    pictures = plots.all_plots(report) if plots.available() else []

    def write(images: Path) -> None:
        for plot in pictures:
            write_text(images / f"{plot.name}.svg", plot.svg)

    replace_folder(folder / "report", write)
    page, notes = folder / "report.html", folder / "report.md"
    missing = "" if plots.available() else NO_PLOTS
    write_text(page, render_html(report, pictures, missing))
    write_text(notes, render_markdown(report, pictures, missing))
    return page, notes


def render_html(report: Report, pictures: Sequence[Plot], missing: str = "") -> str:
    """The page as text; everything that comes from a model or a file is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    shown = {plot.name: plot for plot in pictures}

    def plot(name: str) -> Markup:
        if name not in shown:
            return Markup("")
        own = shown[name]
        return Markup(
            '<figure role="img" aria-label="{}"><div class="wide">{}</div><figcaption>{}</figcaption></figure>'
        ).format(own.alt, Markup(plots.inline(own)), own.caption)

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("yeoul.report").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        words=in_words(report),
        korean=in_korean(report),
        highlights=highlights(report),
        missing=missing,
        plot=plot,
        duration=duration,
        size=size,
        plain=plain,
        gap=lambda row: gap(report, row),
        gaps=any(gap(report, row) for row in report.models),
        recall=any(row.recall is not None for row in report.models),
    )


def highlights(report: Report) -> list[tuple[str, str]]:
    """The few figures that stand in large type: (value, label)."""
    found = []
    teacher, converted, pair = report.row("teacher"), report.row("converted"), report.longest()
    if teacher and converted and teacher.bits_per_byte and converted.bits_per_byte:
        label = "bits per byte, softmax → DiJiang (less is better)"
        found.append((f"{teacher.bits_per_byte:.3f} → {converted.bits_per_byte:.3f}", label))
    if pair:
        old, new = pair
        found.append((f"{new.decode / old.decode:.1f} ×", f"decoding speed at {new.context:,} tokens of context"))
        smaller = 1 / cache_ratio(report)
        found.append(
            (
                f"1/{smaller:.3g}" if smaller > 1 else f"{1 / smaller:.3g} ×",
                f"cache at {new.context:,} tokens",
            )
        )
    seconds = report.seconds or sum(stage.seconds or 0 for stage in report.stages)
    if seconds:
        found.append((duration(seconds), "from text to this page"))
    return found


def gap(report: Report, row: ModelRow) -> str:
    """Difference to the teacher in bits per byte, "" where there is none."""
    teacher = report.row("teacher")
    if teacher is None or row is teacher or teacher.bits_per_byte is None or row.bits_per_byte is None:
        return ""
    return f"{row.bits_per_byte - teacher.bits_per_byte:+.3f}"


def plain(value: Any) -> str:
    """A setting in words: lists with commas, mappings as name: value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        if len(items) > 1 and len(set(items)) == 1:
            return f"{items[0]} × {len(items)}"
        return ", ".join(items)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def render_markdown(report: Report, pictures: Sequence[Plot], missing: str = "") -> str:
    """The same report in Markdown; plots are linked as `report/NAME.svg`."""
    shown = {plot.name: f"![{plot.alt}](report/{plot.name}.svg)\n\n{plot.caption}" for plot in pictures}
    parts = [f"# {report.title} · {report.korean_title}", in_words(report), f"> {in_korean(report)}", missing]
    if report.stages:
        rows = [
            [
                s.name,
                "" if s.tokens is None else f"{s.tokens:,}",
                "" if s.seconds is None else duration(s.seconds),
                s.result,
            ]
            for s in report.stages
        ]
        parts += ["## Steps", _table(["step", "tokens", "time", "what came out"], rows)]
    parts.append(shown.get("loss", ""))
    if report.models:
        rows = [
            [
                f"{m.name} ({m.note})" if m.note else m.name,
                f"{m.loss:.3f}",
                f"{m.perplexity:,.2f}",
                "–" if m.bits_per_byte is None else f"{m.bits_per_byte:.3f}",
                gap(report, m),
                "–" if m.recall is None else f"{100 * m.recall:.0f} %",
            ]
            for m in report.models
        ]
        head = ["model", "loss", "perplexity", "bits per byte", "against the teacher", "recall"]
        parts += ["## Models", _table(head, rows)]
    parts.append(shown.get("bits-per-byte", ""))
    if report.speeds:
        rows = [
            [
                p.model,
                f"{p.context:,}",
                f"{p.prefill:,.0f}",
                f"{p.decode:,.0f}",
                f"{p.decode_low:,.0f}–{p.decode_high:,.0f}",
                size(p.cache_bytes),
                "–" if p.peak_bytes is None else f"+{size(p.peak_bytes)}",
            ]
            for p in report.speeds
        ]
        head = ["model", "context", "prefill tokens/s", "decode tokens/s", "quartiles", "cache", "peak memory"]
        parts += ["## Speed and memory", shown.get("speed", ""), _table(head, rows)]
    parts += _samples(report) + _commands("Again", report.reproduce) + _commands("Go on", report.next_steps)
    parts += _setting(report)
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _samples(report: Report) -> list[str]:
    if not report.samples:
        return []
    parts = ["## Samples", report.sample_settings]
    for sample in report.samples:
        for name, text in (("softmax, before", sample.before), ("DiJiang, after", sample.after)):
            parts.append(f"{name}:")
            parts.append(_fenced(sample.prompt + text))
    return parts


def _commands(heading: str, commands: Sequence[Command]) -> list[str]:
    if not commands:
        return []
    lines = [f"# {c.what}\n{c.line}" if c.what else c.line for c in commands]
    return [f"## {heading}", _fenced("\n".join(lines), "sh")]


def _setting(report: Report) -> list[str]:
    parts = []
    if report.machine:
        parts += ["## Machine", _table(["", ""], [[key, value] for key, value in report.machine])]
    for name, values in report.configuration.items():
        parts += [
            f"## Configuration: {name}",
            _table(["setting", "value"], [[k, plain(v)] for k, v in values.items()]),
        ]
    return parts


def _fenced(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, the others to the right."""
    escape = lambda cell: str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")  # noqa: E731
    lines = ["| " + " | ".join(head) + " |", "|" + ":--|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
