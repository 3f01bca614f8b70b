"""`yeoul.linearize`: convert a softmax model to linear time, and measure what that costs and gains."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from yeoul import runtime
from yeoul.adapt.linear_init import calibrate
from yeoul.adapt.linearize import Conversion, convert, train_only_maps
from yeoul.config import flat_values, save_values
from yeoul.data.batch import IGNORE, Batch
from yeoul.data.loader import PackedLoader
from yeoul.errors import UserError
from yeoul.evaluate.associative import recall_rows
from yeoul.evaluate.compare import Comparison
from yeoul.evaluate.perplexity import LMScore
from yeoul.evaluate.speed import SpeedRecord
from yeoul.files import remove, replace_folder, write_json
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.feature_maps.base import FeatureMap
from yeoul.model.finite import check_finite
from yeoul.recipes import dry_run, fitting
from yeoul.recipes.command_line import command_line
from yeoul.recipes.linearize import memory
from yeoul.recipes.linearize.config import (
    LARGEST_BUDGET,
    LARGEST_VALIDATION,
    LONGEST,
    MOST_PASSES,
    LinearizeConfig,
    Stage,
)  # fmt: skip
from yeoul.recipes.linearize.evaluation import Evaluation, Evaluator, record_of
from yeoul.recipes.linearize.introduction import cache_line, choices, time_lines, warnings
from yeoul.recipes.linearize.layers import check_layers, converted_costs, kept_layers
from yeoul.recipes.linearize.memory import CALIBRATION_CONTEXT
from yeoul.recipes.linearize.recall_text import RecallLoader
from yeoul.recipes.linearize.stages import Recipe, StageResult, run_stages
from yeoul.recipes.machine import machine_facts
from yeoul.recipes.model_folder import ModelFolder
from yeoul.recipes.options import Say, given_or_temporary, silent
from yeoul.recipes.run_folder import RunFolder
from yeoul.recipes.saving import merged_model, save_folder, weights_digest
from yeoul.recipes.token_data import held_out, train_and_val_shards, validation
from yeoul.safe_json import read_object
from yeoul.text.tokenizer import Tokenizer
from yeoul.train.config import TrainConfig

RECORD = "linearize.json"
"""In the run's folder, written behind the model: cost and results of the conversion."""
COSTS = "costs.json"
"""In the run's folder: what cutting each converted layer costs, by which `--exact-total` was divided."""
RANKING_TOKENS = 16_384  # and half as many of recall: all that is looked at
"""Training tokens on which layers are ranked and a conversion is initialised."""


@dataclass(frozen=True, kw_only=True)
class LinearizeResult:
    """Result of a conversion.

    Attributes:
        model: the converted model, in the dtype of the teacher's weights.
        tokenizer: of the model.
        stages: result of each stage, by name.
        scores: on held-out text, of the teacher, the model, and the model without its parts, by name.
        comparison: with the teacher, and with the teacher cut to the window; None if it was skipped.
        speeds: of both models at each context.
        folder: of the saved model; None without `out`.
    """

    model: Decoder
    tokenizer: Tokenizer
    stages: dict[str, StageResult]
    scores: dict[str, LMScore]
    comparison: Comparison | None
    speeds: list[SpeedRecord]
    folder: Path | None


def linearize(
    model: str | Path | Decoder,
    data: str = "builtin",
    config: LinearizeConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> LinearizeResult:
    """Turn the softmax attention of a trained model into DiJiang's linear attention (arXiv 2403.19928).

    Called again with the same `out`, it resumes where it stopped.

    Args:
        model: a Hugging Face folder, a run folder or a Hub id; or a model in memory, which is not changed.
        data: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas.
        config: settings; None for the defaults.
        tokenizer: of a model in memory.
        out: run folder; the model is written to its `model/`. None: nothing is kept but the result.
        overwrite: discard the run in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N"; a model in memory stays where it is.
        say: called with progress messages; None for no output.

    Raises:
        UserError: the settings, the data or the model cannot be used.
        yeoul.train.interrupt.Interrupted: Ctrl-C or SIGTERM, with everything saved.
    """
    config = config or LinearizeConfig()
    config.text.check(data)
    source = _source(model, tokenizer, device)
    with given_or_temporary(out) as folder:
        place = RunFolder(folder, overwrite=overwrite)
        with place.locked():
            run = _Linearization(source, data, config, place, say or silent)
            with place.removed_on_user_error():
                run.prepare(folder)
            result = run.go()
    return result if out is not None else replace(result, folder=None)


def plan_linearize(
    model: str | Path,
    data: str = "builtin",
    config: LinearizeConfig | None = None,
    *,
    out: str | Path,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> list[str]:
    """What `linearize` would do, its memory and its time, in lines for people; writes nothing."""
    config, place = config or LinearizeConfig(), RunFolder(Path(out).expanduser(), overwrite=overwrite)
    config.text.check(data)
    run = _Linearization(_source(model, None, device), data, config, place, say or silent)
    with tempfile.TemporaryDirectory() as folder:
        run.prepare(Path(folder))
        return run.plan()


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the teacher comes from: a folder, or memory."""

    name: str
    device: torch.device
    stored: torch.dtype
    folder: ModelFolder | None = None
    model: Decoder | None = None
    tokenizer: Tokenizer | None = None


def _source(model: str | Path | Decoder, tokenizer: Tokenizer | None, device: str) -> _Source:
    if isinstance(model, Decoder):
        if tokenizer is None:
            raise UserError("a model in memory needs a tokenizer", fix="pass tokenizer=")
        return _Source(name="the model", device=model.device, stored=model.dtype, model=model, tokenizer=tokenizer)
    folder = ModelFolder.open_whole(model)
    return _Source(name=folder.name, device=runtime.resolve_device(device), stored=folder.stored_dtype, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Dtypes:
    """Dtypes of the computation, of weights that are not trained, and of saved weights."""

    compute: torch.dtype
    held: torch.dtype
    saved: torch.dtype


def _dtypes(config: LinearizeConfig, source: _Source) -> Dtypes:
    """By the settings, the machine, and the model's files."""
    compute = runtime.resolve_dtype(config.habits.dtype, source.device)
    if source.model is not None:
        held = source.stored
    elif config.teacher_dtype == "auto":
        held = torch.bfloat16 if compute == source.stored == torch.bfloat16 else torch.float32
    else:
        held = getattr(torch, config.teacher_dtype)
    if held == torch.bfloat16 != compute:
        raise UserError(
            f"bfloat16 weights cannot be used when computing in {str(compute).removeprefix('torch.')}",
            "--teacher-dtype", "give --dtype bfloat16 too, or --teacher-dtype float32",
        )  # fmt: skip
    saved = source.stored if config.save_dtype == "auto" else getattr(torch, config.save_dtype)
    return Dtypes(compute=compute, held=held, saved=saved)


class _Linearization:
    """One run: a teacher, its student, the text, and the stages."""

    def __init__(self, source: _Source, data: str, config: LinearizeConfig, folder: RunFolder, say: Say) -> None:
        self.source, self.data, self.config, self.folder, self.say = source, data, config, folder, say
        runtime.set_threads()
        self.before = fitting.resident()
        self.dtypes = _dtypes(config, source)
        self.teacher, self.tokenizer = self._load()
        self.asked_context = self._context()
        self.costs: dict[int, float] = {}
        self.student = self._convert()
        self._recipe(config.tokens or LARGEST_BUDGET, self.asked_context)  # what cannot be is said before text is read

    def _load(self) -> tuple[Decoder, Tokenizer]:
        source = self.source
        if source.folder is None:
            assert source.model is not None and source.tokenizer is not None
            teacher, tokenizer = source.model, source.tokenizer
        else:
            parameters = skeleton(source.folder.config).num_parameters()
            trains_all = self.config.stages(parameters).trains_all
            fitting.check_weights(
                source.folder.config, source.device, self.dtypes.held.itemsize + (fitting.TRAINED if trains_all else 0),
                where=source.name,
                fix="give a smaller model" + (", or --train-distil maps or low-rank" if trains_all else ""),
            )  # fmt: skip
            teacher = source.folder.load(source.device, self.dtypes.held)
            tokenizer = source.folder.needed_tokenizer()
        teacher.requires_grad_(False)
        check_finite(teacher, source.name, "linearized")
        return teacher, tokenizer

    def _context(self) -> int:
        """Tokens of a sequence, by the setting or the model's length."""
        shape = self.teacher.config
        context = self.config.habits.context or min(shape.max_position_embeddings, LONGEST)
        shape.check_context(context, fix=None, training=True)
        check_layers(self.config.conversion, self.teacher)
        return context

    def _conversion(self, kept: tuple[int, ...] = (), context: int | None = None) -> Conversion:
        return self.config.conversion.conversion(
            self.teacher.config, self.config.habits.seed, kept, context or self.asked_context, self.costs
        )

    def _convert(self, kept: tuple[int, ...] = (), context: int | None = None) -> Decoder:
        return convert(self.teacher, self._conversion(kept, context), share=True)

    def _recipe(self, budget: int, context: int) -> Recipe:
        """The stages for a budget.

        Raises:
            UserError: a stage has nothing to train, or no stage gets a step.
        """
        parameters = self.teacher.num_parameters()
        stages = self.config.stages(parameters)
        recipe = Recipe(
            settings=self.config.planned(budget, context, parameters), trains=stages.trained, align_on=stages.align_on,
            rank=stages.rank, map_lr=stages.map_lr, kl_weight=stages.kl_weight, temperature=stages.temperature,
            positions=stages.positions(self.teacher.config.vocab_size), recall_share=stages.recall_share or 0.0,
        )  # fmt: skip
        for stage in recipe.settings:
            if recipe.trains[stage] == "maps" and not learns_alone(self.student):
                self._refuse_to_train(stage)
        return recipe

    def _refuse_to_train(self, stage: Stage) -> None:
        fix = "give --align-share 0" if stage == "align" else f"choose another --train-{stage}"
        name, _ = self.config.conversion.linear_part
        raise UserError(
            f"the feature map {name!r} has no trained parameters, so there is nothing to {stage}",
            "--map", f"{fix}, or give --learn if the map has parameters that can be trained",
        )  # fmt: skip

    def prepare(self, folder: Path) -> None:
        """Reads the text and chooses what fits; writes nothing but the tokens, into a folder."""
        config, out = self.config, self.folder.out
        self.shards, val = train_and_val_shards(self.data, config.text, folder, self.tokenizer, self.say)
        if val is None:
            raise UserError("there is no text to validate on", "--val-fraction", "hold out a share or give --val-data")
        self.val = val
        self.budget = config.tokens or min(LARGEST_BUDGET, MOST_PASSES * self.shards.meta.tokens)
        self.goes_on = not self.folder.overwrite and any((out / "stages").glob("*/checkpoints/step-*"))
        self.fitted = memory.fit(
            self._recipe(self.budget, self.asked_context), config, self.teacher, self.asked_context,
            self.dtypes.saved, self.before, out=out, goes_on=self.goes_on,
        )  # fmt: skip
        choice = self.fitted.choice
        self.context = choice.context
        recipe = self._recipe(self.budget, self.context)
        settled: dict[Stage, TrainConfig] = {
            name: fitting.settled(settings, choice) for name, settings in recipe.settings.items()
        }
        self.recipe = replace(recipe, settings=settled)
        self.val_tokens = config.scoring.validation(self.budget)
        if self.goes_on and config.scoring.val_tokens is None and not (out / fitting.RECORD).is_file():
            self.val_tokens = LARGEST_VALIDATION  # as runs had it that recorded nothing
        self.loader(1)  # too little text is said before anything is written

    def loader(self, stage: int) -> PackedLoader | RecallLoader:
        """Text for the stage of this number, from 1."""
        name, settings = list(self.recipe.settings.items())[stage - 1]
        loader = PackedLoader(
            self.shards, batch_size=settings.batch_size, context=self.context, seed=settings.seed + stage
        )
        share = self.recipe.recall_share if name == "distil" else 0.0
        return RecallLoader(loader, self.tokenizer, share) if share else loader

    def introduction(self) -> list[str]:
        """What decides the result, what fits, and where the budget is too small."""
        config = self.config
        return [
            *choices(
                config.conversion, self.student, self.recipe, self.budget, self.shards.meta.tokens, self.context,
                self.dtypes.compute,
            ),
            *self.fitted.lines(),
            cache_line(self.teacher, self.student),
            self.tokenizer.begins,
            *warnings(config.training, self.recipe, self.budget),
        ]  # fmt: skip

    def plan(self) -> list[str]:
        """All that, and how long it would take."""
        validated = min(self.val_tokens, self.val.meta.tokens)
        batch = self.loader(1).next_batch()
        return [
            *self.introduction(), *time_lines(self.recipe, self.teacher, self._convert, batch, validated),
            dry_run.NOTHING_WRITTEN,
        ]  # fmt: skip

    def go(self) -> LinearizeResult:
        """Chooses layers, calibrates, trains, measures."""
        config, out = self.config, self.folder.out
        if self.folder.overwrite:
            remove(out / "stages")
        save_values(self._settings(), out / "config.yaml")
        if not self.fitted.recorded:
            fitting.record(self.fitted, out)
        self.fitted.prepare()
        kept = kept_layers(config.conversion, self.teacher, self._some, self.dtypes.compute, self.say)
        self.costs = self._costs(kept)
        self.student = self._convert(kept, self.context)
        for line in self.introduction():
            self.say(line)
        if config.conversion.calibrate:
            calibrate(self.teacher, self.student, self._calibration(self._some()), progress=self.say)
        return self._finish(self._train())

    def _costs(self, kept: tuple[int, ...]) -> dict[int, float]:
        """Of the converted layers, as the run found them before it was interrupted: a machine may round otherwise."""
        path = self.folder.out / COSTS
        if self.goes_on and path.is_file():
            return {int(layer): cost for layer, cost in read_object(path).items()}
        ranked = lambda: self._calibration(self._some())  # noqa: E731
        costs = converted_costs(self.config.conversion, self.teacher, kept, ranked, self.dtypes.compute, self.say)
        if costs:
            write_json(path, costs)
        return costs

    def _some(self) -> Iterator[Batch]:
        """`RANKING_TOKENS` from all over the text, the same each time: of several sources the first would not do."""
        context = min(self.context, CALIBRATION_CONTEXT)
        rows = max(1, min(RANKING_TOKENS, self.shards.num_tokens) // context)
        loader = PackedLoader(
            self.shards, batch_size=min(4, rows), context=context, seed=self.config.habits.seed
        )  # fmt: skip
        for _ in range(-(-rows // loader.batch_size)):
            yield loader.next_batch()

    def _calibration(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Text, and then half as much of texts whose end asks for what their beginning said."""
        ids: list[int] = []
        count = length = 0
        for batch in batches:
            yield batch
            ids += batch.labels[batch.labels != IGNORE].tolist()
            count, length = count + len(batch.input_ids), batch.input_ids.shape[1]
        if not any(self.student.config.exact):
            return
        seed = self.config.habits.seed
        rows = recall_rows(self.tokenizer, ids, rows=max(2, count // 2), length=length + 1, seed=seed)
        for row in torch.tensor(rows).split(1) if rows else ():
            yield Batch(input_ids=row[:, :-1], labels=row[:, 1:])

    def _settings(self) -> dict[str, Any]:
        """By flag, as config.yaml has them; never with `overwrite`: given back, it must not throw the run away."""
        return {
            "model": self.source.name, "data": self.data, "out": self.folder.out, "overwrite": False,
            "device": str(self.source.device), **flat_values(self.config),
        }  # fmt: skip

    def _validation_batches(self) -> Callable[[], Iterable[Batch]]:
        return held_out(
            self.val, batch_size=self.fitted.choice.micro_batch, context=self.context, max_tokens=self.val_tokens
        )

    def _train(self) -> dict[str, StageResult]:
        teacher, student, tokenizer = self.teacher, self.student, self.tokenizer
        saved = self.dtypes.saved
        return run_stages(
            self.recipe, teacher, student, self.folder.out / "stages", make_loader=self.loader,
            save_model=lambda model, folder: save_folder(merged_model(model, saved), tokenizer, folder),
            validate=validation(student, self._validation_batches(), tokenizer, self.dtypes.compute),
            identity={"teacher": weights_digest(teacher), "tokenizer": tokenizer.fingerprint,
                      "model": student.config.to_dict(), "calibrate": self.config.conversion.calibrate,
                      "validation": [self.val.meta.tokens, self.val_tokens],
                      **({"begin": self.shards.begin} if self.shards.begin else {})},
            say=self.say,
        )  # fmt: skip

    def _finish(self, stages: dict[str, StageResult]) -> LinearizeResult:
        """Leaves the model, then what it came to, in the run's folder."""
        out, scoring = self.folder.out, self.config.scoring
        finished = merged_model(self.student, self.dtypes.saved)
        remove(out / RECORD)  # figures of another model
        replace_folder(out / "model", lambda folder: save_folder(finished, self.tokenizer, folder))
        self.student = merged_model(finished, self.dtypes.held)  # what was saved, in the type that the teacher has
        kept = tuple(i for i, kind in enumerate(self.student.config.attention) if kind == "softmax")
        conversion = self._conversion(kept, self.context)
        evaluator = Evaluator(
            self.teacher, self.student, self.tokenizer, self._validation_batches(),
            runtime.resolve_dtype(self.config.habits.dtype, self.teacher.device), self.say,
        )  # fmt: skip
        found = Evaluation(
            scores=evaluator.scores(conversion),
            comparison=evaluator.comparison(conversion, stages, self.context, scoring.comparison(self.budget)),
            speeds=evaluator.speeds(scoring.contexts),
        )
        command = command_line("linearize", self.source.name, settings=self.config, data=self.data, out=out)
        record = {**record_of(stages, found), "machine": machine_facts(), "command": command}
        write_json(out / RECORD, json.loads(json.dumps(record, default=str)))
        return LinearizeResult(
            model=self.student, tokenizer=self.tokenizer, stages=stages, scores=found.scores,
            comparison=found.comparison, speeds=found.speeds, folder=out / "model",
        )  # fmt: skip


def learns_alone(student: Decoder) -> bool:
    """Whether alignment has anything to train; the scale of a head's features counts only beside a window."""
    train_only_maps(student)
    scales = {id(module.log_scale) for module in student.modules() if isinstance(module, FeatureMap)}
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return any("hybrid" in student.config.attention or id(parameter) not in scales for parameter in learned)
