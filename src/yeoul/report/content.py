"""What a report says, as plain values: the page and the plots are made from these and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yeoul.safe_json import parse

Role = Literal["teacher", "converted", "ablation"]


@dataclass(frozen=True)
class Text:
    """A sentence in the two languages of a report."""

    en: str
    ko: str


Words = str | Text
"""A `str` is a name, a number, or a word that `languages` knows."""


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """How good one model is.

    Attributes:
        role: the softmax model, what became of it, or that with a part taken out.
        loss: nats per token; `bits_per_byte` is None where byte lengths are unknown.
        recall: share of right answers to questions about facts told early; None when not asked.
        note: a few words beside the name.
    """

    name: str
    role: Role
    loss: float
    perplexity: float
    bits_per_byte: float | None = None
    recall: float | None = None
    note: Words = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one step of the run cost and gave: tokens read, seconds taken, and the result in a few words."""

    name: str
    tokens: int | None = None
    seconds: float | None = None
    result: Words = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of one panel: x in tokens seen, y the loss.

    Attributes:
        stage: the panel, "pretrain", "align", "distil", ...
        name: label of the line, "train" or "validation".
        unit: of y: "nats per token" unless said otherwise.
    """

    stage: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    unit: str = "nats per token"


@dataclass(frozen=True, kw_only=True)
class SpeedPoint:
    """One model at one context: tokens per second (median, quartiles) and bytes."""

    model: str
    role: Role
    context: int
    prefill: float
    decode: float
    decode_low: float
    decode_high: float
    cache_bytes: int
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt continued before and after the conversion, with the same settings and seed."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line and what it does."""

    line: str
    what: Words = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, its first column to the left and the others to the right; `marked` are numbers of rows."""

    head: tuple[Words, ...]
    rows: tuple[tuple[Words, ...], ...]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point of a `Scatter`; a line goes through those that are `joined`, and those with a label carry it."""

    x: float
    y: float
    kind: Literal["other", "edge", "chosen", "reference"] = "other"
    joined: bool = False
    label: Words = ""


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Points in a plane whose best corner is the upper right one.

    Attributes:
        x_label, y_label: words that `languages` knows.
        costs: y is a cost on a logarithmic axis, drawn downwards.
        alt: what it shows, in words.
    """

    name: str
    x_label: str
    y_label: str
    dots: tuple[Dot, ...]
    caption: Text
    alt: Text
    costs: bool = True


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: sentences, a picture, tables with what stands before each, and texts under their titles."""

    heading: Words
    paragraphs: tuple[Words, ...] = ()
    scatter: Scatter | None = None
    tables: tuple[tuple[Words, Table], ...] = ()
    texts: tuple[tuple[Words, str], ...] = ()


def table_section(
    heading: Words, *, head: Sequence[Words], rows: Sequence[tuple[Words, ...]], note: Words = ""
) -> Section:
    """A part that is one table, with a note before it."""
    return Section(heading=heading, tables=((note, Table(head=tuple(head), rows=tuple(rows))),))


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole report; empty parts are left out of the page.

    Attributes:
        lead: sentences at the beginning, before those that are made of the numbers below.
        figures: (value, label) in large type, before those that are made of the numbers below.
        sections: what comes first on the page.
        parameters: of the softmax model; `seconds`: the whole took, more than the stages together.
        recall_chance: share that guessing gives in the models' `recall`.
        configuration: title -> setting -> value.
        reproduce, next_steps: commands to have it again, and to go on.
    """

    title: Words = Text("From softmax to linear time", "소프트맥스에서 선형 시간으로")
    lead: Words = ""
    figures: tuple[tuple[Words, Text], ...] = ()
    sections: tuple[Section, ...] = ()
    parameters: int | None = None
    seconds: float | None = None
    stages: tuple[Stage, ...] = ()
    models: tuple[ModelRow, ...] = ()
    recall_chance: float | None = None
    curves: tuple[Curve, ...] = ()
    speeds: tuple[SpeedPoint, ...] = ()
    samples: tuple[Sample, ...] = ()
    sample_settings: Words = ""
    configuration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    machine: tuple[tuple[str, Words], ...] = ()
    reproduce: tuple[Command, ...] = ()
    next_steps: tuple[Command, ...] = ()
    notes: tuple[Words, ...] = ()

    def row(self, role: Role) -> ModelRow | None:
        """The first model of this role."""
        return next((row for row in self.models if row.role == role), None)

    def longest(self) -> tuple[SpeedPoint, SpeedPoint] | None:
        """Softmax and converted model at the longest context that both were measured at."""
        return next(iter(reversed(self.speed_pairs())), None)

    def speed_pairs(self) -> list[tuple[SpeedPoint, SpeedPoint]]:
        """(softmax, converted) at every context that both were measured at, ascending."""
        old = {p.context: p for p in self.speeds if p.role == "teacher"}
        new = {p.context: p for p in self.speeds if p.role == "converted"}
        return [(old[c], new[c]) for c in sorted(old.keys() & new.keys())]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line torn by a kill is left out, an absent file is empty."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            value = parse(text, finite=False)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def curves(lines: Sequence[Mapping[str, Any]], stage: str, *, unit: str = "nats per token") -> list[Curve]:
    """Training and validation curves of one stage from its metrics lines ("kind", "tokens", "loss")."""
    found = []
    for kind, name in (("train", "train"), ("val", "validation")):
        points = [(float(v["tokens"]), float(v["loss"])) for v in lines if v.get("kind") == kind and "loss" in v]
        if points:
            x, y = zip(*points, strict=True)
            found.append(Curve(stage=stage, name=name, x=x, y=y, unit=unit))
    return found
