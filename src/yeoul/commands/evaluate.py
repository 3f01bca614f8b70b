"""`yeoul evaluate`: how well a model predicts text, what it recalls, and what a conversion has kept."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.recipes.evaluate import EvaluateConfig
from yeoul.recipes.tasks.run import READ, TasksConfig, alone, evaluate_tasks


@dataclass(frozen=True)
class Config:
    """Score a model on a text: loss, perplexity and bits per byte.

    Bits per byte can be compared between models with different tokenizers; loss and perplexity cannot. With
    --teacher, a converted model is judged against the model it was made from: how much it keeps of the use of
    distant text, of recall, and of free generation. With --tasks, it is asked standard tasks instead, by lm-eval.
    """

    model: Place
    """Model: a Hugging Face folder, a GGUF file, a run's folder, or an id on the hub."""
    _: KW_ONLY
    data: Place | None = None
    """Text: a file, a folder, a Hub dataset or "builtin"; when not given, the text that the run held out."""
    teacher: Place | None = None
    """Softmax model that MODEL was converted from; measures what MODEL kept, including --mqar and --needle."""
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    """Standard task: a name (yeoul_korean, kobest_copa), a YAML file, or a folder of these; several with commas."""
    asking: Annotated[TasksConfig, Parameter(name="*")] = field(default_factory=TasksConfig)
    """How standard tasks are asked."""
    settings: Annotated[EvaluateConfig, Parameter(name="*")] = field(default_factory=EvaluateConfig)
    """What is measured."""
    out: Path | None = None
    """Write evaluate.json and a report (report.html, report.md) into this folder, too."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Print the scores."""
    from yeoul.evaluate.compare_table import comparison_table, recall_table
    from yeoul.recipes.evaluate import evaluate

    say = None if config.json else _tell
    if config.tasks:
        alone(config.settings, data=config.data, teacher=config.teacher, out=config.out)
        given = {name: getattr(config.settings, name) for name in READ}
        asked = evaluate_tasks(config.model, config.tasks, config.asking, device=config.device, say=say, **given)
        print(json.dumps(asked.as_dict(), ensure_ascii=False, indent=2) if config.json else asked.table())
        return 0
    result = evaluate(
        config.model, config.data, config.settings, teacher=config.teacher, out=config.out, device=config.device,
        say=say,
    )  # fmt: skip
    values = result.as_dict()
    if config.json:
        print(json.dumps(values, ensure_ascii=False, indent=2))
        return 0
    print(f"{describe(values)}\n{result.tokenizer.begins}")
    for grid in result.grids.values():
        print("\n" + recall_table({"accuracy": grid}))
    if result.comparison is not None:
        print("\n" + comparison_table(result.comparison))
    return 0


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def describe(values: dict[str, Any]) -> str:
    """The scores as text."""
    bits = "not known" if values["bits_per_byte"] is None else f"{values['bits_per_byte']:.4f}"
    lines = [
        f"{values['data']}: {values['tokens']:,} tokens, {values['bytes'] or 0:,} bytes, context {values['context']:,}",
        f"loss            {values['loss']:.4f} nats per token",
        f"perplexity      {values['perplexity']:,.3f}",
        f"bits per byte   {bits}",
    ]
    if "by_position" in values:
        lines += ["", f"{'position':>15}  {'loss':>8}  {'tokens':>10}"]
        for bucket in values["by_position"]:
            place = (
                f"{bucket['first']:,}"
                if bucket["first"] == bucket["last"]
                else f"{bucket['first']:,}-{bucket['last']:,}"
            )
            lines.append(f"{place:>15}  {bucket['loss']:>8.4f}  {bucket['tokens']:>10,}")
    if "recall" in values:
        r = values["recall"]
        lines += [
            "",
            f"recall ({r['method']})   {100 * r['accuracy']:.1f} % +- {100 * r['stderr']:.1f} "
            f"of {r['questions']} questions, "
            f"guessing gives {100 * r['chance']:.0f} %" + (f", {r['skipped']} did not fit" if r["skipped"] else ""),
        ]
    return "\n".join(lines + _korean(values["korean"] if "korean" in values else {}))


def _korean(scores: dict[str, Any]) -> list[str]:
    """Mistakes in what the model has written, beside those in the text."""
    if not scores:
        return []
    lines = ["", f"{'Korean, by rule':<18}  {'written':>20}  {'text':>20}"]
    for name, wrong, among, rate in (
        ("wrong particles", "wrong_particles", "particles", "particle_rate"),
        ("broken syllables", "broken", "syllables", "broken_rate"),
        ("spacing errors", "spacing", "words", "spacing_rate"),
    ):
        cells = [
            "–" if s[rate] is None else f"{100 * s[rate]:.2f} % ({s[wrong]:,}/{s[among]:,})" for s in scores.values()
        ]
        lines.append(f"{name:<18}  " + "  ".join(f"{cell:>20}" for cell in cells))
    return lines
