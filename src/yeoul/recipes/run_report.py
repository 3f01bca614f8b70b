"""`yeoul.report_runs`: a page about one run, or one that compares several, from what they left in their folders."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yeoul.errors import UserError
from yeoul.recipes.demo.report import UNITS, collect, linear_results
from yeoul.recipes.options import Say, silent
from yeoul.recipes.runs import RECORDS, RunSummary, is_number, summarize, validations
from yeoul.report.content import (
    Command,
    Curve,
    Report,
    Section,
    Stage,
    Text,
    Words,
    curves,
    read_metrics,
    table_section,
)
from yeoul.report.languages import korean_duration, korean_number
from yeoul.report.markdown import as_text
from yeoul.safe_json import read_object
from yeoul.units import duration, rate, size, spelled

TITLES = {
    "pretrain": Text("Pretraining", "사전 학습"),
    "linearize": Text("From softmax to linear time", "소프트맥스에서 선형 시간으로"),
    "finetune": Text("Fine-tuning", "파인튜닝"),
    "quantize": Text("Quantization", "양자화"),
}
COMPARED = Text("Runs compared", "실행 비교")
NAMES = {
    "bits_per_byte": "bits per byte", "macro_f1": "macro F1", "spearman": "rank correlation",
}  # fmt: skip
"""Values of validations whose names are not just their keys with blanks."""
TASKS = {"classify": "nats per text", "embed": "contrastive loss", "dpo": "DPO loss"}
"""Of the losses of fine-tunings, unless they are nats per token."""
LONGEST_LABEL = 16
"""Characters at the end of a line in a plot."""
TELLING = {"bits_per_byte": True, "accuracy": False, "spearman": False, "perplexity": True}
"""Values that say how good a result is, the most telling first; whether less is better."""
UNTOLD = frozenset({"out", "overwrite", "resume", "config", "dry_run"})
"""Settings that decide nothing about a result."""
MOST_RUNS = 8


def report_runs(runs: Sequence[str | Path], out: str | Path | None = None, *, say: Say | None = None) -> Path:
    """Write `report.html`, `report.md` and `report.ko.md` about runs; returns the path of the first.

    Args:
        runs: folders of `pretrain`, `linearize`, `finetune`, `quantize`; finished ones, or how far they are.
        out: folder for the files; None takes the run's own, or of several `report` where one is.
        say: is told where they are.

    Raises:
        UserError: a folder has no run, or there are more than `MOST_RUNS`.
    """
    from yeoul.report.page import write_report

    folders = [Path(run).expanduser() for run in runs]
    if not 0 < len(folders) <= MOST_RUNS:
        raise UserError(f"{len(folders)} runs are given, but a report is about 1 to {MOST_RUNS}")
    made = run_report(folders[0]) if len(folders) == 1 else compared(folders)
    target = Path(out).expanduser() if out is not None else folders[0] if len(folders) == 1 else Path("report")
    target.mkdir(parents=True, exist_ok=True)
    page, _ = write_report(made, target)
    (say or silent)(f"The report is in {page}")
    return page


def leave_report(folder: Path, say: Say) -> None:
    """A report in the folder of a run that has just ended; that it cannot be written takes nothing from the run."""
    try:
        report_runs([folder], say=say)
    except (UserError, OSError) as error:
        why = str(error).rstrip(".")
        say(f"The report could not be written ({why}). To write it later: yeoul report {shlex.quote(str(folder))}")


def run_report(folder: Path) -> Report:
    """The report about the run in a folder.

    Raises:
        UserError: there is none, or none of a kind that a report can be made of.
    """
    summary = _summary(folder)
    if summary.verb == "linearize" and summary.state == "finished":
        return _linearized(folder)
    record, before, after = _results(folder, summary)
    parts = [Stage(name=summary.verb, tokens=summary.tokens or None, seconds=summary.seconds or None,
                   result=_result_words(before, after))]  # fmt: skip
    sections = [_values("Held-out text", before, after)] if before or after else []
    if summary.verb == "quantize":
        parts, sections = [], [_quantized(record), *sections]
    settings = _settings(folder)
    command = ["yeoul", summary.verb, "--config", str(folder / "config.yaml"), "--out", str(folder)]
    return Report(
        title=TITLES[summary.verb], lead=_words(summary, record, before, after), parameters=record.get("parameters"),
        stages=tuple(parts), sections=tuple(sections), curves=tuple(_curves(folder, summary)),
        configuration={f"yeoul {summary.verb}": settings} if settings else {},
        machine=tuple((str(name), str(value)) for name, value in record.get("machine", ())),
        reproduce=() if summary.verb == "quantize" else (Command(line=shlex.join(command)),),
    )  # fmt: skip


def compared(folders: Sequence[Path]) -> Report:
    """The report that sets runs side by side.

    Raises:
        UserError: as for `run_report`.
    """
    names, labels = _names(folders)
    summaries = [_summary(folder) for folder in folders]
    results = [_results(folder, summary) for folder, summary in zip(folders, summaries, strict=True)]
    lines: list[Curve] = []
    for label, folder, summary in zip(labels, folders, summaries, strict=True):
        own = [curve for curve in _curves(folder, summary) if curve.name == "train"]
        lines += [Curve(stage=c.stage, name=label, x=c.x, y=c.y, unit=c.unit) for c in own]
    settings = [_settings(folder) for folder in folders]
    return Report(
        title=COMPARED, lead=_comparison_words(names, results), curves=tuple(lines),
        sections=(_runs_table(names, summaries, results), *_differences(labels, settings)),
        reproduce=tuple(
            Command(line=shlex.join(["yeoul", s.verb, "--config", str(f / "config.yaml"), "--out", str(f)]), what=name)
            for name, f, s in zip(names, folders, summaries, strict=True) if s.verb != "quantize"
        ),
    )  # fmt: skip


# -- what runs left


def _summary(folder: Path) -> RunSummary:
    found = summarize(folder) if folder.is_dir() else None
    if found is None:
        raise UserError("there is no run", folder, "yeoul runs FOLDER lists the runs in a folder")
    if found.verb not in RECORDS:
        raise UserError("yeoul demo wrote its own report", folder, f"open {folder / 'report.html'}")
    return found


def _results(folder: Path, summary: RunSummary) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """The record of a run, and the values before and after it; of one that goes on, those of its last validation."""
    path = folder / RECORDS[summary.verb]
    record = read_object(path, finite=False) if path.is_file() else {}
    before, after = validations(record)
    if not after:
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if line.get("kind") == "val"]
        left = {"kind", "step", "tokens", "seconds"}
        after = {k: float(v) for k, v in (lines[-1] if lines else {}).items() if k not in left and is_number(v)}
    told = {"bytes", "tokens", "tokens_per_second"}
    before, after = ({k: v for k, v in side.items() if k not in told} for side in (before, after))
    return record, before, after


def _settings(folder: Path) -> dict[str, Any]:
    from yeoul.config import read_yaml

    if not (folder / "config.yaml").is_file():
        return {}
    return {name: value for name, value in read_yaml(folder / "config.yaml").items() if name not in UNTOLD}


def _curves(folder: Path, summary: RunSummary) -> list[Curve]:
    if summary.verb != "linearize":
        unit = TASKS.get(str(_settings(folder).get("task")), "nats per token")
        return curves(read_metrics(folder / "metrics.jsonl"), summary.verb, unit=unit)
    found: list[Curve] = []
    for stage in sorted((folder / "stages").glob("*-*")):
        name = stage.name.split("-", 1)[1]
        found += curves(read_metrics(stage / "metrics.jsonl"), name, unit=UNITS.get(name, "nats per token"))
    return found


def _linearized(folder: Path) -> Report:
    values = linear_results(folder)
    made = collect(None, folder)
    made["machine"] = tuple((str(name), str(value)) for name, value in values.get("machine", ()))
    section = _kept(values.get("comparison") or {})
    command = values.get("command")
    return Report(
        **made, sections=() if section is None else (section,),
        reproduce=(Command(line=str(command)),) if command else (),
        next_steps=(Command(line=shlex.join(["yeoul", "chat", str(folder)])),
                    Command(line=shlex.join(["yeoul", "inspect", str(folder), "--text", "옛날 옛적에"]))),
    )  # fmt: skip


def _kept(comparison: Mapping[str, Any]) -> Section | None:
    """What a conversion keeps of distant text, where it was compared with its teacher."""
    score, recalls = comparison.get("long_context"), comparison.get("mqar") or {}
    if not score:
        return None
    rows: list[tuple[Words, ...]] = []
    sure = score["measurable"] and score["gain"]["stderr"] is not None  # otherwise it may be noise over noise
    for row in score["rows"]:
        recall = (recalls.get(row["name"]) or {}).get("of_teacher_beyond_window", {}).get("exact")
        share = _estimate(row["retained"]) if sure else "–"
        rows.append((row["name"], f"{row['ratio']:.3f} ×", share, "–" if recall is None else f"{recall:.2f}"))
    head = ("model", "perplexity, of the teacher's", "retained", "recall beyond the window, of the teacher's")
    note = Text(
        f"Retained: 1 is the teacher, 0 the teacher cut to a window of {score['window']} and {score['sinks']} sinks; "
        f"{score['tokens']:,} tokens.",
        f"남은 몫: 교사가 1, 윈도 {score['window']}과 싱크 {score['sinks']}개만 보게 한 교사가 0입니다. "
        f"토큰 {score['tokens']:,}개로 쟀습니다.",
    )
    return table_section("What is kept of distant text", head=head, rows=tuple(rows), note=note)


def _estimate(value: Mapping[str, Any]) -> str:
    if value.get("value") is None:
        return "–"
    error = value.get("stderr")
    return f"{value['value']:.2f}" + ("" if error is None else f" ± {error:.2f}")


# -- in words and rows


def named(key: str) -> str:
    """A value's name for people."""
    return NAMES.get(key, key.replace("_", " "))


def _number(key: str, value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _values(title: Words, before: Mapping[str, float], after: Mapping[str, float]) -> Section:
    at = lambda side, key: _number(key, side[key]) if key in side else "–"  # noqa: E731
    keys = list(dict.fromkeys([*before, *after]))
    if not before:
        return table_section(title, head=("", "value"), rows=tuple((named(key), at(after, key)) for key in keys))
    rows = tuple((named(key), at(before, key), at(after, key)) for key in keys)
    return table_section(title, head=("", "before", "after"), rows=rows)


def _quantized(record: Mapping[str, Any]) -> Section:
    before, after = record["before"], record["after"]
    rows: list[tuple[Words, ...]] = [("size", size(before["bytes"]), size(after["bytes"]))]
    if "tokens_per_second" in before and "tokens_per_second" in after:
        rows.append(("decoding", rate(before["tokens_per_second"]), rate(after["tokens_per_second"])))
    return table_section("Before and after", head=("", "before", "after"), rows=tuple(rows))


def _result_words(before: Mapping[str, float], after: Mapping[str, float]) -> Words:
    key = next((key for key in (*TELLING, "loss") if key in after), None)
    if key is None:
        return ""
    was = f"{_number(key, before[key])} → " if key in before else ""
    value = f"{was}{_number(key, after[key])}"
    return Text(f"{named(key)} {value}", f"{_korean(named(key))} {value}")


def _korean(name: str) -> str:
    from yeoul.report.languages import text

    return text(name).ko


def _words(
    summary: RunSummary, record: Mapping[str, Any], before: Mapping[str, float], after: Mapping[str, float]
) -> Text:
    """What the run cost and gave, in sentences."""
    said = [_state_words(summary), _cost_words(summary, record), _gain_words(before, after)]
    return Text(" ".join(text.en for text in said if text), " ".join(text.ko for text in said if text))


def _state_words(summary: RunSummary) -> Text | None:
    if summary.state == "finished":
        return None
    share = f"{summary.share:.0%}"
    return Text(
        f"This run is {summary.state}, with {share} of its steps done.",
        f"아직 끝나지 않은 실행입니다. 전체 스텝의 {share}를 마쳤습니다.",
    )


def _cost_words(summary: RunSummary, record: Mapping[str, Any]) -> Text | None:
    if summary.verb == "quantize":
        now, ratio = size(record["after"]["bytes"]), record["before"]["bytes"] / max(1, record["after"]["bytes"])
        return Text(
            f"{record['bits']}-bit weights take {now}, 1/{ratio:.3g} of what they took.",
            f"{record['bits']}비트 가중치의 크기는 {now}로, 원래의 {ratio:.3g}분의 1입니다.",
        )
    if not summary.tokens:
        return None
    trained, whole = record.get("trained"), record.get("parameters")
    time = Text(f" in {duration(summary.seconds)}", f" {korean_duration(summary.seconds)} 동안")
    time = time if summary.seconds else Text("", "")
    part = Text("", "")
    if trained and whole:
        part = Text(
            f"; {spelled(trained)} of {spelled(whole)} parameters are trained",
            f" 파라미터 {korean_number(whole)} 개 가운데 {korean_number(trained)} 개를",
        )
    return Text(
        f"Training read {spelled(summary.tokens)} tokens{time.en}{part.en}.",
        f"토큰 {korean_number(summary.tokens)} 개로{time.ko}{part.ko} 학습했습니다.",
    )


def _gain_words(before: Mapping[str, float], after: Mapping[str, float]) -> Text | None:
    key = next((key for key in TELLING if key in after), None)
    if key is None:
        return None
    name, value = named(key), _number(key, after[key])
    if key not in before:
        return Text(f"On held-out text {name} is {value}.", f"따로 떼어 둔 텍스트에서 {_korean(name)}: {value}.")
    old = _number(key, before[key])
    return Text(
        f"On held-out text {name} went from {old} to {value}.",
        f"따로 떼어 둔 텍스트에서 {_korean(name)}: {old} → {value}.",
    )


def _comparison_words(
    names: Sequence[str], results: Sequence[tuple[dict[str, Any], dict[str, float], dict[str, float]]]
) -> Text:
    """Which run is best, by the value that all have."""
    for key, less in TELLING.items():
        known = {name: after[key] for name, (_, _, after) in zip(names, results, strict=True) if key in after}
        if len(known) == len(names):
            winner = (min if less else max)(known, key=known.__getitem__)
            best, what = _number(key, known[winner]), named(key)
            return Text(
                f"The best {what} on held-out text is {best}, of {winner}. Runs that held out different text cannot be "
                "compared by it.",
                f"따로 떼어 둔 텍스트에서 {_korean(what)} 값이 가장 좋은 실행은 {winner}입니다({best}). "
                "서로 다른 텍스트를 떼어 둔 실행끼리는 이 값을 비교할 수 없습니다.",
            )
    return Text("These runs have no value in common.", "공통으로 잰 값이 없습니다.")


def _runs_table(
    names: Sequence[str], summaries: Sequence[RunSummary],
    results: Sequence[tuple[dict[str, Any], dict[str, float], dict[str, float]]],
) -> Section:  # fmt: skip
    keys = [key for key in ("bits_per_byte", "perplexity", "accuracy", "macro_f1", "spearman", "loss")
            if any(key in after for _, _, after in results)]  # fmt: skip
    rows = []
    for name, run, (_, _, after) in zip(names, summaries, results, strict=True):
        time: Words = Text(duration(run.seconds), korean_duration(run.seconds)) if run.seconds else "–"
        cells: list[Words] = [name, f"{run.verb}, {run.task}" if run.task else run.verb,
                              f"{run.tokens:,}" if run.tokens else "–", time]  # fmt: skip
        rows.append((*cells, *(_number(key, after[key]) if key in after else "–" for key in keys)))
    return table_section(
        "Held-out text", head=("run", "made by", "tokens", "time", *map(named, keys)), rows=tuple(rows)
    )


def _differences(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[Section]:
    keys = [key for key in dict.fromkeys(k for each in settings for k in each)
            if len({as_text(each.get(key)) for each in settings}) > 1]  # fmt: skip
    rows = tuple((key, *(as_text(each[key]) if key in each else "–" for each in settings)) for key in keys)
    return [table_section("Settings that differ", head=("setting", *names), rows=rows)] if rows else []


def _names(folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Names of runs, the last parts of their paths, as few as tell them apart; and short ones for plots and heads:
    the same, or numbers, which stand before the names then."""
    whole = [folder.resolve() for folder in folders]
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            if max(map(len, names)) <= LONGEST_LABEL:
                return names, names
            labels = [str(number) for number in range(1, len(names) + 1)]
            return [f"{label}: {name}" for label, name in zip(labels, names, strict=True)], labels
    raise UserError("the same run is given twice")
