"""The end of `yeoul linearize`: what the conversion cost and gained, printed and written to OUT/linearize.json."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from yeoul.units import duration

if TYPE_CHECKING:
    import torch

    from yeoul.commands.linearize import Config
    from yeoul.data.batch import Batch
    from yeoul.evaluate.compare import Comparison
    from yeoul.evaluate.energy import Energy
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

FULL_JUDGEMENT = 50_000
"""Tokens of a judgement with all questions and continuations; one of fewer tokens has fewer."""


def conclude(
    config: Config,
    teacher: Decoder,
    student: Decoder,
    tokenizer: Tokenizer,
    batches: Callable[[], Iterable[Batch]],
    stages: dict[str, Any],
    context: int,
    judged: int,
) -> None:
    """Scores, judgement, speeds and cache of teacher and student; printed, and written to OUT/linearize.json.

    Args:
        judged: tokens of the judgement; 0 leaves it out.
    """
    from yeoul import runtime
    from yeoul.adapt.linearize import convert
    from yeoul.commands.linearize_choice import conversion
    from yeoul.commands.results import machine_facts
    from yeoul.evaluate import speed
    from yeoul.evaluate.ablations import ablations, parts
    from yeoul.evaluate.compare_table import comparison_table
    from yeoul.evaluate.perplexity import score
    from yeoul.files import write_json

    dtype = runtime.resolve_dtype(config.dtype, teacher.device)
    lengths = tokenizer.byte_lengths()
    print("Scoring the teacher, the converted model and its parts ...", flush=True)
    scores = {"teacher": score(teacher, batches(), lengths, dtype=dtype)}
    scores |= ablations(student, batches, lengths, dtype=dtype)
    if config.attention == "hybrid":
        kept = tuple(i for i, kind in enumerate(student.config.attention) if kind == "softmax")
        with parts(convert(teacher, conversion(config, kept), share=True), linear=False) as untrained:
            scores["teacher's weights, window only"] = score(untrained, batches(), lengths, dtype=dtype)
    judgement = judge(config, teacher, student, tokenizer, batches, stages, context, dtype, judged)
    longest = max(config.contexts) + 128
    models = {"teacher": speed.lengthened(teacher, longest), "converted": speed.lengthened(student, longest)}
    records = speed.compare(models, config.contexts, dtype=dtype, progress=lambda what: print(f"  {what}", flush=True))
    print("\n" + cost_table(stages))
    print("\n" + score_table({name: value.as_dict() for name, value in scores.items()}))
    if judgement:
        print("\n" + comparison_table(judgement))
    print("\n" + speed.table(records, "teacher"))
    spent = sum(stage["tokens"] for stage in stages.values())
    result = {
        "tokens": spent,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "energy": _energy(stages).as_dict(),
        "stages": stages,
        "scores": {name: value.as_dict() for name, value in scores.items()},
        "comparison": judgement.as_dict() if judgement else None,
        "speed": [record.as_dict() for record in records],
        "machine": machine_facts(),
        "command": shlex.join(["yeoul", *sys.argv[1:]]),
    }
    write_json(config.out / "linearize.json", json.loads(json.dumps(result, default=str)))
    print(f"\nThe model is in {config.out / 'model'}, these figures in {config.out / 'linearize.json'}. Next:")
    run = shlex.quote(str(config.out))
    print(f'  yeoul generate {run} "옛날 옛적에"\n  yeoul chat {run}', flush=True)


def judge(
    config: Config, teacher: Decoder, student: Decoder, tokenizer: Tokenizer, batches: Callable[[], Iterable[Batch]],
    stages: dict[str, Any], context: int, dtype: torch.dtype, tokens: int,
) -> Comparison | None:  # fmt: skip
    """The judgement against the teacher on so many tokens, or None where there are to be none."""
    from yeoul.evaluate import compare as comparing

    if not tokens:
        return None
    cost = comparing.TrainingCost(
        tokens=sum(stage["tokens"] for stage in stages.values()),
        seconds=sum(stage["seconds"] for stage in stages.values()),
        energy=_energy(stages),
    )
    # Questions and continuations cost as much as text does: fewer of them where little text is judged.
    share = min(1.0, tokens / FULL_JUDGEMENT)
    budget = comparing.Budget(
        tokens=tokens, questions=max(16, round(64 * share)), needles=max(2, round(16 * share)),
        prompts=max(2, round(16 * share)), speed_seconds=max(15.0, 60 * share),
    )  # fmt: skip
    return comparing.compare(
        teacher, student, tokenizer, batches, context=context, window=config.window, sinks=config.sinks, cost=cost,
        training_length=context, budget=budget, dtype=dtype,
        progress=lambda what: print(f"  measuring {what}", flush=True),
    )  # fmt: skip


def _energy(stages: dict[str, Any]) -> Energy:
    """Of all stages together."""
    from yeoul.evaluate.energy import Energy, total

    return total(Energy(**stage["energy"]) for stage in stages.values())


def cost_table(stages: dict[str, Any]) -> str:
    """Tokens, time and energy of each stage as plain text."""
    from yeoul.evaluate.energy import Energy

    width = max(map(len, [*stages, "total"]))
    lines = [f"{'training':<{width}}  {'tokens':>12}  {'time':>12}  {'tokens/s':>9}  {'energy':>15}"]
    rows = [(name, s["tokens"], s["seconds"], Energy(**s["energy"])) for name, s in stages.items()]
    whole = _energy(stages)
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows), whole))
    for name, tokens, seconds, energy in rows:
        speed = tokens / seconds if seconds else 0.0
        lines.append(f"{name:<{width}}  {tokens:>12,}  {duration(seconds):>12}  {speed:>9,.0f}  {energy.amount:>15}")
    return "\n".join([*lines, f"Energy, validations and checkpoints included: {whole}."])


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """Scores as plain text, with the loss against the first row."""
    width = max(len(name) for name in scores)
    first = next(iter(scores.values()))["loss"]
    lines = [f"{'model':<{width}}  {'loss':>8}  {'perplexity':>10}  {'bits/byte':>9}  {'against teacher':>15}"]
    for name, s in scores.items():
        bits = "-" if s["bits_per_byte"] is None else f"{s['bits_per_byte']:.4f}"
        lines.append(
            f"{name:<{width}}  {s['loss']:>8.4f}  {s['perplexity']:>10.3f}  {bits:>9}  {s['loss'] - first:>+15.4f}"
        )
    return "\n".join(lines)
