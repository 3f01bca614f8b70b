"""What is said before a conversion begins: what is converted, what the budget buys, caches, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from yeoul.data.batch import Batch
from yeoul.model.decoder import Decoder
from yeoul.recipes import dry_run
from yeoul.recipes.caches import cache_bytes
from yeoul.recipes.linearize.config import ConversionOptions, StageOptions
from yeoul.recipes.linearize.stages import Recipe, set_trainable
from yeoul.train.loss import language_model_objective
from yeoul.units import count, size

SCORED = 6
"""Times that the held-out text is scored at the end: by the teacher, the result, and the result without its parts."""


def choices(
    options: ConversionOptions,
    student: Decoder,
    recipe: Recipe,
    budget: int,
    text: int,
    context: int,
    compute: torch.dtype,
) -> list[str]:
    """What decides the result, whether it was given or chosen, in a few lines.

    Args:
        options: what becomes of the layers.
        student: converted.
        recipe: the stages.
        budget, text: tokens that are trained on, and that there are.
        context: tokens of a sequence.
        compute: type of the products.
    """
    name, update = options.linear_part
    beside = f"hybrid, window {options.window}, {count(student.config.sinks, 'sink')}"
    kind = beside if options.attention == "hybrid" else "linear attention alone"
    step = next(iter(recipe.settings.values()))
    lines = [
        converted_line(student),
        f"Attention there: {kind}, feature map {name}, decay {options.decay}, state {update}.",
        f"Budget: {budget:,} tokens, {budget / text:.2g} passes over {text:,}; steps of {step.batch_size} x "
        f"{step.accumulate} sequences of {context:,} tokens; products in {str(compute).removeprefix('torch.')}.",
    ]
    return [*lines, *recipe.lines()]


def converted_line(student: Decoder) -> str:
    """Which layers become linear and what the others are."""
    kinds = student.config.attention
    linear = [i for i, kind in enumerate(kinds) if kind in ("hybrid", "dijiang")]
    parts = [f"Converted: {len(linear)} of {count(len(kinds), 'layer')}"]
    if len(linear) < len(kinds):
        parts[0] += f" ({', '.join(map(str, linear))})"
    softmax = [str(i) for i, kind in enumerate(kinds) if kind == "softmax"]
    if softmax:
        parts.append(f"softmax stays in {', '.join(softmax)}")
    sliding = kinds.count("sliding")
    if sliding:
        width = student.config.sliding_window or student.config.window
        parts.append(f"{sliding} {'have' if sliding > 1 else 'has'} a sliding window of {width:,} already and "
                     f"{'stay' if sliding > 1 else 'stays'} as {'they are' if sliding > 1 else 'it is'}")  # fmt: skip
    return "; ".join(parts) + "."


def warnings(options: StageOptions, recipe: Recipe, budget: int) -> list[str]:
    """Where the budget is so small that it shows."""
    lines = []
    step = next(iter(recipe.settings.values())).tokens_per_step
    for stage in options.stages:
        settings = recipe.settings.get(stage)
        if settings is None and options.shares[stage] > 1e-9:
            lines.append(
                f"Warning: {stage} gets no step: its share of {budget:,} tokens is less than the {step:,} of one step "
                "(give more --tokens, or a smaller --batch-size or --context)."
            )
        elif settings is not None and settings.steps < 3:
            lines.append(
                f"Warning: {stage} has only {count(settings.steps, 'step')} of {step:,} tokens, which teaches next to "
                "nothing (give more --tokens, or a smaller --batch-size or --context)."
            )
    return lines


def cache_line(teacher: Decoder, student: Decoder) -> str:
    """From which length on the converted model remembers in less memory than the teacher."""
    (fixed, growing), (own, grows) = (cache_bytes(model.config, teacher.dtype) for model in (teacher, student))
    each = growing - grows
    if each <= 0:
        return f"Caches: {size(own)} for the converted model at any length, {size(fixed)} for the teacher."
    even = max(0, -(-(own - fixed) // each))
    grown = f" and {grows:,} bytes a token" if grows else " at any length"
    always = f"{size(fixed)} and " if fixed else ""
    return (
        f"Caches: {size(own)}{grown}, the teacher's {always}{growing:,} bytes a token: below {even:,} tokens the "
        "converted model's is the larger one."
    )


def time_lines(recipe: Recipe, teacher: Decoder, make: Callable[[], Decoder], batch: Batch, val: int) -> list[str]:
    """Times of the stages and of what is scored, from one example that is computed here.

    Args:
        recipe: the stages.
        teacher: frozen.
        make: a student that shares the teacher's memory.
        batch: of the text.
        val: tokens of a validation.
    """
    parts: list[tuple[str, int, float, int]] = []
    for stage, settings in recipe.settings.items():
        student = make()
        set_trainable(student, recipe.trains[stage], rank=recipe.rank)
        each, measured = dry_run.seconds_a_token(student, recipe.objective(stage, teacher), batch, settings)
        parts.append((stage, settings.tokens, each, measured))
    settings = next(iter(recipe.settings.values()))
    each, measured = dry_run.seconds_a_token(make(), language_model_objective, batch, settings, gradients=False)
    parts.append(("validation", (1 + len(recipe.settings)) * val, each, measured))
    parts.append(("scores at the end", SCORED * val, each, measured))
    return [*dry_run.time_lines(parts), "  The comparison and the speeds at the end come to that (--compare-tokens 0)."]
