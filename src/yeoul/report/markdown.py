"""A report in Markdown, in either language; plots are linked from the folder `report/` beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yeoul.report.content import Command, ModelRow, Report, Section, Words
from yeoul.report.korean import in_korean
from yeoul.report.languages import korean_duration, text
from yeoul.report.plots import Plot
from yeoul.report.summary import in_words
from yeoul.units import duration, size

Say = Callable[[Words], str]


def render_markdown(report: Report, pictures: Sequence[Plot], missing: Words = "", language: str = "en") -> str:
    """The report's text in "en" or "ko"; plots are `report/NAME.svg`, in Korean `report/NAME.ko.svg`."""

    def say(words: Words) -> str:
        return str(getattr(text(words), language))

    ending = ".svg" if language == "en" else f".{language}.svg"
    shown = {plot.name: _picture(plot, ending, say) for plot in pictures}
    words = in_words(report) if language == "en" else in_korean(report)
    parts = [f"# {say(report.title)}", f"{say(report.lead)} {words}".strip(), say(missing)]
    for section in report.sections:
        parts += _section(section, shown, say)
    parts += [*_stages(report, say), shown.get("loss", "")]
    parts += [*_models(report, say), shown.get("bits-per-byte", "")]
    if report.speeds:
        parts += [f"## {say('Speed and memory')}", shown.get("speed", ""), _speeds(report, say)]
    parts += _samples(report, say) + _commands(say("Do it again"), report.reproduce, say)
    parts += _commands(say("What next"), report.next_steps, say) + _setting(report, say)
    if report.notes:
        parts += [f"## {say('Notes')}", "\n".join(f"- {say(note)}" for note in report.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _picture(plot: Plot, ending: str, say: Say) -> str:
    links = [f"![{say(panel.title) or say(plot.alt)}](report/{panel.name}{ending})" for panel in plot.panels]
    return f"{' '.join(links)}\n\n{say(plot.caption)}"


def _section(section: Section, shown: Mapping[str, str], say: Say) -> list[str]:
    parts = [f"## {say(section.heading)}", *(say(paragraph) for paragraph in section.paragraphs)]
    if section.scatter is not None:
        parts.append(shown.get(section.scatter.name, ""))
    for before, table in section.tables:
        rows = [[say(cell) for cell in row] for row in table.rows]
        rows = [[f"**{row[0]}**", *row[1:]] if i in table.marked else row for i, row in enumerate(rows)]
        parts += [say(before), _table(table.head, rows, say)]
    for title, own in section.texts:
        parts += [f"{say(title)}:", _fenced(own)]
    return parts


def _stages(report: Report, say: Say) -> list[str]:
    if not report.stages:
        return []
    time = duration if say("time") == "time" else korean_duration
    rows = [
        [
            say(s.name),
            "" if s.tokens is None else f"{s.tokens:,}",
            "" if s.seconds is None else time(s.seconds),
            say(s.result),
        ]
        for s in report.stages
    ]
    return [f"## {say('Steps')}", _table(("step", "tokens", "time", "result"), rows, say)]


def _models(report: Report, say: Say) -> list[str]:
    if not report.models:
        return []
    rows = [
        [
            f"{say(m.name)} ({say(m.note)})" if m.note else say(m.name),
            f"{m.loss:.3f}",
            f"{m.perplexity:,.2f}",
            "–" if m.bits_per_byte is None else f"{m.bits_per_byte:.3f}",
            gap(report, m),
            "–" if m.recall is None else f"{100 * m.recall:.0f} %",
        ]
        for m in report.models
    ]
    head = ("model", "loss", "perplexity", "bits per byte", "vs. teacher", "recall")
    return [f"## {say('Models')}", _table(head, rows, say)]


def _speeds(report: Report, say: Say) -> str:
    rows = [
        [
            say(p.model),
            f"{p.context:,}",
            f"{p.prefill:,.0f}",
            f"{p.decode:,.0f}",
            f"{p.decode_low:,.0f}–{p.decode_high:,.0f}",
            size(p.cache_bytes),
            "–" if p.peak_bytes is None else f"+{size(p.peak_bytes)}",
        ]
        for p in report.speeds
    ]
    head = ("model", "context", "prefill tokens/s", "decode tokens/s", "quartiles", "cache", "peak memory")
    return _table(head, rows, say)


def _samples(report: Report, say: Say) -> list[str]:
    if not report.samples:
        return []
    parts = [f"## {say('Samples')}", say(report.sample_settings)]
    for sample in report.samples:
        for name, continued in (("softmax, before", sample.before), ("DiJiang, after", sample.after)):
            parts += [f"{say(name)}:", _fenced(sample.prompt + continued)]
    return parts


def _commands(heading: str, commands: Sequence[Command], say: Say) -> list[str]:
    if not commands:
        return []
    lines = [f"# {say(c.what)}\n{c.line}" if c.what else c.line for c in commands]
    return [f"## {heading}", _fenced("\n".join(lines), "sh")]


def _setting(report: Report, say: Say) -> list[str]:
    parts = []
    if report.machine:
        rows = [[say(key), say(value)] for key, value in report.machine]
        parts += [f"## {say('Machine')}", _table(("", ""), rows, say)]
    for name, values in report.configuration.items():
        rows = [[key, say(as_text(value))] for key, value in values.items()]
        parts += [f"## {say('Configuration')}: {say(name)}", _table(("setting", "value"), rows, say)]
    return parts


def gap(report: Report, row: ModelRow) -> str:
    """Difference to the teacher in bits per byte, "" where there is none."""
    teacher = report.row("teacher")
    if teacher is None or row is teacher or teacher.bits_per_byte is None or row.bits_per_byte is None:
        return ""
    return f"{row.bits_per_byte - teacher.bits_per_byte:+.3f}"


def as_text(value: Any) -> str:
    """A setting in words: lists with commas, mappings as name: value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {as_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        items = [as_text(item) for item in value]
        if len(items) > 1 and len(set(items)) == 1:
            return f"{items[0]} × {len(items)}"
        return ", ".join(items)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _fenced(content: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in content:
        fence += "`"
    return f"{fence}{language}\n{content}\n{fence}"


def _table(head: Sequence[Words], rows: Sequence[Sequence[str]], say: Say) -> str:
    """A Markdown table: first column to the left, the others to the right."""
    escape = lambda cell: str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")  # noqa: E731
    lines = ["| " + " | ".join(map(say, head)) + " |", "|" + ":--|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
