"""What is printed before a conversion starts: the converted layers, the budget, cache sizes, and the estimated time."""

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
"""Passes over the held-out text at the end: the teacher, the result, and the result without its parts."""


def choices(
    options: ConversionOptions,
    student: Decoder,
    recipe: Recipe,
    budget: int,
    text: int,
    context: int,
    compute: torch.dtype,
) -> list[str]:
    """The settings that decide the result, given or chosen, in a few lines.

    Args:
        options: how the layers are converted.
        student: converted.
        recipe: the stages.
        budget, text: tokens to train on, and tokens of the text.
        context: tokens of a sequence.
        compute: dtype of the matrix multiplications.
    """
    name, update = options.linear_part
    beside = f"hybrid, window {student.config.window}, {count(student.config.sinks, 'sink')}{_pairs(student)}"
    kind = beside if options.attention == "hybrid" else "linear attention alone"
    step = next(iter(recipe.settings.values()))
    lines = [
        converted_line(student),
        f"Attention in them: {kind}, feature map {name}, decay {options.decay}, state {update}.",
        f"Budget: {budget:,} tokens, {budget / text:.2g} passes over {text:,}; steps of {step.batch_size} x "
        f"{step.accumulate} sequences of {context:,} tokens; computing in {str(compute).removeprefix('torch.')}.",
    ]
    return [*lines, *recipe.lines()]


def _pairs(student: Decoder) -> str:
    """The exact pairs of the converted layers, as words."""
    pairs = [n for n, kind in zip(student.config.exact, student.config.attention, strict=True) if kind == "hybrid"]
    if not any(pairs):
        return ""
    numbers = [pairs[0]] if len(set(pairs)) == 1 else pairs
    return f", {', '.join(map(str, numbers))} exact pairs"


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
        parts.append(f"{sliding} already {'use' if sliding > 1 else 'uses'} a sliding window of {width:,} and "
                     f"{'stay' if sliding > 1 else 'stays'} as {'they are' if sliding > 1 else 'it is'}")  # fmt: skip
    return "; ".join(parts) + "."


def warnings(options: StageOptions, recipe: Recipe, budget: int) -> list[str]:
    """Warnings about stages for which the budget is too small."""
    lines = []
    step = next(iter(recipe.settings.values())).tokens_per_step
    for stage in options.stages:
        settings = recipe.settings.get(stage)
        if settings is None and options.shares[stage] > 1e-9:
            lines.append(
                f"Warning: {stage} gets no steps: its share of {budget:,} tokens is less than one step of {step:,} "
                "(give more --tokens, or a smaller --batch-size or --context)."
            )
        elif settings is not None and settings.steps < 3:
            lines.append(
                f"Warning: {stage} has only {count(settings.steps, 'step')} of {step:,} tokens, too few to train "
                "anything (give more --tokens, or a smaller --batch-size or --context)."
            )
    return lines


def cache_line(teacher: Decoder, student: Decoder) -> str:
    """Cache sizes of both models, and the length from which on the converted model needs less."""
    (fixed, growing), (own, grows) = (cache_bytes(model.config, teacher.dtype.itemsize) for model in (teacher, student))
    each = growing - grows
    if each <= 0:
        return f"Cache: {size(own)} for the converted model at any length, {size(fixed)} for the teacher."
    even = max(0, -(-(own - fixed) // each))
    grown = f" and {grows:,} bytes per token" if grows else " at any length"
    always = f"{size(fixed)} and " if fixed else ""
    return (
        f"Cache: {size(own)}{grown}, the teacher's {always}{growing:,} bytes per token; below {even:,} tokens the "
        "converted model's cache is the larger one."
    )


def time_lines(recipe: Recipe, teacher: Decoder, make: Callable[[], Decoder], batch: Batch, val: int) -> list[str]:
    """Estimated times of the stages and of the evaluation, from one example that is computed here.

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
    return [
        *dry_run.time_lines(parts),
        "  Not included: the comparison with the teacher (--compare-tokens 0 skips it) and the speed measurements.",
    ]
