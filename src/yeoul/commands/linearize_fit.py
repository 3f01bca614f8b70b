"""What `yeoul linearize` says before it begins: what is converted, whether it fits into memory, what the budget buys,
and with `--dry-run` how long it would take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from yeoul.commands.linearize_choice import conversion, linear_part
from yeoul.recipes import dry_run, fitting
from yeoul.units import count, size

if TYPE_CHECKING:
    import torch

    from yeoul.commands.linearize import Config
    from yeoul.data.batch import Batch
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.fitting import Fitted
    from yeoul.recipes.linearize.stages import Recipe, Stage
    from yeoul.train.memory import Choice, Need

SHORTEST = 256
"""Tokens of the shortest context that is chosen where none is given."""
SCORED = 6
"""Times that the held-out text is scored at the end: by the teacher, the result, and the result without its parts."""
JUDGED_TOGETHER = 8192
"""Positions that the judgement computes at once."""


def fit(
    config: Config, recipe: Recipe, teacher: Decoder, context: int, saved: torch.dtype, before: int, *, goes_on: bool
) -> Fitted:
    """Micro-batch, recomputing and context that fit, for all stages together.

    Args:
        config: the flags.
        recipe: its stages, at the context that is asked for.
        teacher: loaded, frozen.
        context: asked for, by a flag or by the model's length.
        saved: type of the weights in the result.
        before: what `fitting.resident` gave before the teacher was loaded.
        goes_on: whether an earlier session has begun.
    """
    sizes = fitting.sizes_of([teacher], teacher, next(iter(recipe.settings.values())))
    place = fitting.place_of(teacher.device, sizes.weights, before)
    stages = [_phases(config, recipe, stage, teacher, saved) for stage in recipe.settings]
    converted = next(iter(stages)).model

    def needs(choice: Choice) -> list[Need]:
        found = [need for stage in stages for need in stage(choice)]
        found.append(_judging(teacher, converted, stages[0], choice, saved))
        return [*found, _calibration(teacher, sizes.weights, choice.context)] if config.calibrate else found

    settings = next(iter(recipe.settings.values()))
    shorter = [] if config.context is not None else [context >> n for n in range(1, 8)]
    flags = "--train-distil maps or low-rank" if recipe.trains.get("distil") == "all" else "a smaller model"
    flags += ", or a shorter --context" if config.context is not None else ""
    flags += ", or leave --micro-batch out" if config.micro_batch is not None else ""
    return fitting.fit(
        needs, fitting.asked_of(settings), place, batch=config.batch_size, settings=settings,
        out=config.out, goes_on=goes_on, contexts=[n for n in shorter if n >= max(SHORTEST, 2 * config.window)],
        flags=flags,
    )  # fmt: skip


def _phases(config: Config, recipe: Recipe, stage: Stage, teacher: Decoder, saved: torch.dtype) -> fitting.Phases:
    """Of one stage, asked of a student that shares all of the teacher's memory."""
    import torch

    from yeoul.adapt.linearize import convert
    from yeoul.recipes.linearize.stages import mark

    student, settings = convert(teacher, conversion(config), share=True), recipe.settings[stage]
    mark(student, recipe.trains[stage], rank=recipe.rank)
    sizes = fitting.sizes_of([teacher, student], student, settings)
    alignment = "layers" if recipe.align_on == "outputs" else "states"
    loss = {"align": alignment, "distil": "divergence", "finetune": "cross-entropy"}[stage]
    return fitting.Phases(
        stage, student, sizes, settings, batch=config.batch_size, loss=loss, teacher=teacher,
        copies=0 if saved == torch.float32 == teacher.dtype else saved.itemsize * student.num_parameters(),
    )  # fmt: skip


def _calibration(teacher: Decoder, weights: int, context: int) -> Need:
    """The calibration's looks at four rows' scores of one layer and at all rows' queries and keys, in fp64 too."""
    from yeoul.adapt.linear_init import MOST_TOKENS
    from yeoul.commands.linearize import CALIBRATION_CONTEXT
    from yeoul.train.memory import Need

    H, G, D = teacher.config.heads
    T = min(context, CALIBRATION_CONTEXT)
    rows = max(4, MOST_TOKENS // T)
    scores = 5 * 4 * (4 * H * T * T)
    vectors = rows * T * (4 * (3 * teacher.config.hidden_size + 4 * (H + G) * D) + 8 * 2 * (H + G) * D)
    return Need(phase="calibration", parts={"weights": weights, "activations": scores + vectors})


def _judging(
    teacher: Decoder, student: Decoder, phases: fitting.Phases, choice: Choice, saved: torch.dtype
) -> Need:  # fmt: skip
    """Teacher, what is saved, and the same in the teacher's type, over the judgement's batches without gradients."""
    from yeoul.evaluate.perplexity import logits_at_once
    from yeoul.train.memory import Sizes, Work, scoring

    numbers = student.num_parameters()
    weights = teacher.dtype.itemsize * (teacher.num_parameters() + numbers)
    weights += 0 if saved == teacher.dtype else saved.itemsize * numbers
    V, width = teacher.config.vocab_size, teacher.config.hidden_size
    rows = max(choice.micro_batch, JUDGED_TOGETHER // choice.context)
    work = Work(rows=rows, context=choice.context)
    sizes = Sizes(vocabulary=V, width=width, weights=weights, trained=0)
    return scoring("the judgement", sizes, phases.blocks(choice.context)[1], work, logits_at_once(V))


# -- what is said


def choices(
    config: Config, student: Decoder, recipe: Recipe, budget: int, text: int, context: int, compute: torch.dtype
) -> list[str]:
    """What decides the result, whether it was given or chosen, in a few lines."""
    name, update = linear_part(config)
    beside = f"hybrid, window {config.window}, {count(student.config.sinks, 'sink')}"
    kind = beside if config.attention == "hybrid" else "linear attention alone"
    lines = [
        converted_line(student),
        f"Attention there: {kind}, feature map {name}, decay {config.decay}, state {update}.",
        f"Budget: {budget:,} tokens, {budget / text:.2g} passes over {text:,}; steps of {config.batch_size} x "
        f"{config.accumulate} sequences of {context:,} tokens; products in {str(compute).removeprefix('torch.')}.",
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


def warnings(config: Config, recipe: Recipe, budget: int) -> list[str]:
    """Where the budget is so small that it shows."""
    lines = []
    shares = {"align": config.align_share, "finetune": config.finetune_share}
    shares["distil"] = 1 - sum(shares.values())
    step = next(iter(recipe.settings.values())).tokens_per_step
    for stage in config.stages:
        settings = recipe.settings.get(stage)
        if settings is None and shares[stage] > 1e-9:
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
    from yeoul.commands.info import cache_bytes

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


# -- a dry run


def time_lines(recipe: Recipe, teacher: Decoder, make: Callable[[], Decoder], batch: Batch, val: int) -> list[str]:
    """Times of the stages and of what is scored, from one example that is computed here.

    Args:
        recipe: the stages.
        teacher: frozen.
        make: a student that shares the teacher's memory.
        batch: of the text.
        val: tokens of a validation.
    """
    from yeoul.recipes.linearize.stages import mark
    from yeoul.train.loss import language_model_objective

    parts: list[tuple[str, int, float, int]] = []
    for stage, settings in recipe.settings.items():
        student = make()
        mark(student, recipe.trains[stage], rank=recipe.rank)
        each, measured = dry_run.seconds_a_token(student, recipe.objective(stage, teacher), batch, settings)
        parts.append((stage, settings.tokens, each, measured))
    settings = next(iter(recipe.settings.values()))
    each, measured = dry_run.seconds_a_token(make(), language_model_objective, batch, settings, gradients=False)
    parts.append(("validation", (1 + len(recipe.settings)) * val, each, measured))
    parts.append(("scores at the end", SCORED * val, each, measured))
    return [*dry_run.time_lines(parts), "  The judgement and the speeds at the end come to that (--judge-tokens 0)."]
