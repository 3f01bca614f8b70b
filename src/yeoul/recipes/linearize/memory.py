"""Whether a conversion fits into memory, and what is chosen so that it does."""

from __future__ import annotations

from pathlib import Path

import torch

from yeoul.adapt.exact_init import MOST_SCORES
from yeoul.adapt.linear_init import MOST_TOKENS
from yeoul.adapt.linearize import Conversion, convert
from yeoul.evaluate.perplexity import logits_at_once
from yeoul.model.decoder import Decoder
from yeoul.recipes import fitting
from yeoul.recipes.fitting import Fitted
from yeoul.recipes.linearize.config import LinearizeConfig, Stage
from yeoul.recipes.linearize.stages import Recipe, set_trainable
from yeoul.train.memory import Choice, Need, Sizes, Work, scoring

CALIBRATION_CONTEXT = 2048
"""Longest sequence that is used for initialisation before training."""
SHORTEST = 256
"""Shortest context, in tokens, that is chosen when none is given."""
COMPARED_TOGETHER = 8192
"""Positions that the comparison computes at once."""


def fit(
    recipe: Recipe,
    config: LinearizeConfig,
    teacher: Decoder,
    context: int,
    saved: torch.dtype,
    before: int,
    *,
    out: Path,
    goes_on: bool,
) -> Fitted:
    """Micro-batch, recomputing and context that fit, for all stages together.

    Args:
        recipe: the stages, at the context that is asked for.
        config: what is converted, and whether a micro-batch and a context are given.
        teacher: loaded, frozen.
        context: asked for, by a flag or by the model's length.
        saved: type of the weights in the result.
        before: what `fitting.resident` gave before the teacher was loaded.
        out: the run's folder.
        goes_on: whether an earlier session has begun.
    """
    habits, options = config.habits, config.conversion
    settings = next(iter(recipe.settings.values()))
    sizes = fitting.sizes_of([teacher], teacher, settings)
    place = fitting.place_of(teacher.device, sizes.weights, before)
    conversion = options.conversion(teacher.config, habits.seed, context=context)
    stages = [_phases(conversion, recipe, stage, teacher, saved) for stage in recipe.settings]
    converted = next(iter(stages)).model

    def needs(choice: Choice) -> list[Need]:
        found = [need for stage in stages for need in stage(choice)]
        found.append(_comparison(teacher, converted, stages[0], choice, saved))
        return [*found, _calibration(teacher, sizes.weights, choice.context)] if options.calibrate else found

    shorter = [] if habits.context is not None else [context >> n for n in range(1, 8)]
    flags = "--train-distil maps or low-rank" if recipe.trains.get("distil") == "all" else "a smaller model"
    flags += ", or a shorter --context" if habits.context is not None else ""
    flags += ", or leave --micro-batch out" if habits.micro_batch is not None else ""
    return fitting.fit(
        needs, fitting.asked_of(settings), place, batch=settings.batch_size, settings=settings, out=out,
        goes_on=goes_on, contexts=[n for n in shorter if n >= max(SHORTEST, 2 * conversion.window)], flags=flags,
    )  # fmt: skip


def _phases(
    conversion: Conversion, recipe: Recipe, stage: Stage, teacher: Decoder, saved: torch.dtype
) -> fitting.Phases:
    """Of one stage, asked of a student that shares all of the teacher's memory."""
    student, settings = convert(teacher, conversion, share=True), recipe.settings[stage]
    set_trainable(student, recipe.trains[stage], rank=recipe.rank)
    sizes = fitting.sizes_of([teacher, student], student, settings)
    alignment = "layers" if recipe.align_on == "outputs" else "states"
    loss = {"align": alignment, "distil": "divergence", "finetune": "cross-entropy"}[stage]
    return fitting.Phases(
        stage, student, sizes, settings, batch=settings.batch_size, loss=loss, teacher=teacher,
        copies=0 if saved == torch.float32 == teacher.dtype else saved.itemsize * student.num_parameters(),
    )  # fmt: skip


def _calibration(teacher: Decoder, weights: int, context: int) -> Need:
    """The calibration's looks at some rows' scores of one layer and at all rows' queries and keys, in fp64 too."""
    H, G, D = teacher.config.heads
    T = min(context, CALIBRATION_CONTEXT)
    rows = max(4, MOST_TOKENS // T)
    scores = 5 * 4 * H * max(T * T, min(MOST_SCORES, 4 * T * T))
    vectors = rows * T * (4 * (3 * teacher.config.hidden_size + 4 * (H + G) * D) + 8 * 2 * (H + G) * D)
    return Need(phase="calibration", parts={"weights": weights, "activations": scores + vectors})


def _comparison(
    teacher: Decoder, student: Decoder, phases: fitting.Phases, choice: Choice, saved: torch.dtype
) -> Need:  # fmt: skip
    """Teacher, what is saved, and the same in the teacher's type, over the comparison's batches without gradients."""
    numbers = student.num_parameters()
    weights = teacher.dtype.itemsize * (teacher.num_parameters() + numbers)
    weights += 0 if saved == teacher.dtype else saved.itemsize * numbers
    V, width = teacher.config.vocab_size, teacher.config.hidden_size
    rows = max(choice.micro_batch, COMPARED_TOGETHER // choice.context)
    work = Work(rows=rows, context=choice.context)
    sizes = Sizes(vocabulary=V, width=width, weights=weights, trained=0)
    return scoring("the comparison", sizes, phases.blocks(choice.context)[1], work, logits_at_once(V))
