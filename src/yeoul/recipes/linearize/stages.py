"""The stages of a conversion: what each trains, which weights share memory, and whether its result is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from yeoul.adapt.linearize import (
    Alignment,
    HiddenAlignment,
    converted_layers,
    train_attention,
    train_everything,
    train_only_maps,
    unshare,
)
from yeoul.adapt.lora.api import add_lora, lora_layers, merge_and_unload
from yeoul.adapt.lora.config import LoraConfig
from yeoul.adapt.lora.layers import dense
from yeoul.errors import UserError
from yeoul.evaluate.energy import Energy, Meter, stretched, total
from yeoul.files import new_file, write_json
from yeoul.model.decoder import Decoder
from yeoul.model.parameters import added_parameters
from yeoul.recipes.linearize.config import Stage, Trained
from yeoul.recipes.options import Say, progress_line
from yeoul.recipes.saving import merged_model
from yeoul.safe_json import read
from yeoul.train.config import TrainConfig
from yeoul.train.distill import alignment_objective, distillation_objective
from yeoul.train.kept import put_weights
from yeoul.train.loop import Loader, TrainResult, train
from yeoul.train.loss import Objective, language_model_objective
from yeoul.train.optim import Rates, trainable_parameters
from yeoul.train.progress import standing
from yeoul.units import count

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the stages train.

    Attributes:
        settings: of each stage, in order.
        trains: what each trains: "maps" (feature maps, decays and gates), "attention" (the whole attention of the
            converted layers), "all" weights, or the maps and a low-rank update of the frozen weights, merged into
            them when the stage ends: "low-rank" of the converted layers' attention, "low-rank-all" of their MLPs too.
        align_on: "outputs" or "hidden": `Alignment` or `HiddenAlignment`.
        rank: of the low-rank updates.
        map_lr: peak learning rate of what linear attention adds to the model (feature maps, gates, convolutions) in the
            stages after alignment; None: as the rest. New parameters have further to go than the teacher's weights.
        kl_weight: of the distillation.
        temperature: of the distillation.
        positions: of the distillation: the share of the positions at which predictions are compared.
        recall_share: of the distillation: the share of its rows that are recall texts.

    Raises:
        UserError: the alignment loss does not depend on what the stage is to train.
    """

    settings: Mapping[Stage, TrainConfig]
    trains: Mapping[Stage, Trained] = field(
        default_factory=lambda: {"align": "maps", "distil": "all", "finetune": "all"}
    )
    align_on: Literal["outputs", "hidden"] = "outputs"
    rank: int = 8
    map_lr: float | None = None
    kl_weight: float = 1.0
    temperature: float = 1.0
    positions: float = 1.0
    recall_share: float = 0.0

    def __post_init__(self) -> None:
        if "align" in self.settings and self.align_on == "outputs" and self.trains["align"] in ("all", "low-rank-all"):
            raise UserError(
                "aligning attention outputs can only train the attention", "--train-align",
                "give --align-on hidden, or train the maps, the attention, or a low-rank update of it",
            )  # fmt: skip

    def objective(self, stage: Stage, teacher: Decoder) -> Objective:
        """The loss of a stage."""
        if stage == "align":
            return alignment_objective((Alignment if self.align_on == "outputs" else HiddenAlignment)(teacher))
        if stage == "distil":
            return distillation_objective(
                teacher, kl_weight=self.kl_weight, temperature=self.temperature, positions=self.positions
            )
        return language_model_objective

    def rates(self, stage: Stage, student: Decoder) -> Rates | None:
        """What a stage multiplies the learning rates by, by the names of the student's parameters."""
        if not self.has_map_lr(stage):
            return None
        assert self.map_lr is not None
        ratio, added = self.map_lr / self.settings[stage].lr, added_parameters(student)
        return lambda name: ratio if name in added else 1.0

    def has_map_lr(self, stage: Stage) -> bool:
        """Whether what linear attention adds has a learning rate of its own in a stage."""
        return self.map_lr is not None and stage != "align"

    def lines(self) -> list[str]:
        """What each stage does, as text."""
        result = []
        for stage, settings in self.settings.items():
            how = {
                "align": f"on {self.align_on}",
                "distil": f"KL weight {self.kl_weight:g}, temperature {self.temperature:g}"
                + ("" if self.positions == 1 else f", at {100 * self.positions:g} % of the positions")
                + ("" if not self.recall_share else f", {100 * self.recall_share:g} % recall texts"),
                "finetune": "cross-entropy",
            }[stage]
            what = self.trains[stage] + (f" (rank {self.rank})" if self.trains[stage].startswith("low-rank") else "")
            own = "" if not self.has_map_lr(stage) else f" ({self.map_lr:g} for the maps)"
            result.append(f"  {stage}: {how}; trains {what}, learning rate {settings.lr:g}{own}.")
        return result

    def identity(self, stage: Stage) -> dict[str, object]:
        """What must be the same when a stage is resumed, in addition to its settings."""
        own: dict[str, object] = {
            "train": self.trains[stage],
            "map_lr": self.map_lr if self.has_map_lr(stage) else None,
        }
        if self.trains[stage].startswith("low-rank"):
            own["rank"] = self.rank
        if stage == "align":
            own["align_on"] = self.align_on
        if stage == "distil":
            own |= {"kl_weight": self.kl_weight, "temperature": self.temperature}
            own |= {} if self.positions == 1 else {"positions": self.positions}
            own |= {"recall_share": self.recall_share} if self.recall_share else {}
        return own


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Result of a stage.

    Attributes:
        tokens: tokens it was trained on.
        seconds: training time.
        loss: its own loss at the end.
        before: validation loss before it.
        after: validation loss of its best state.
        kept: whether that is better than before; otherwise the stage changed nothing.
        ended_early: whether it ended because it stopped improving (`yeoul.train.plateau`).
        validation: all values for the model's current weights.
        energy: of its training, validations and checkpoints included, over all sessions that it took.
    """

    tokens: int
    seconds: float
    loss: float
    before: float
    after: float
    kept: bool
    ended_early: bool
    validation: dict[str, float]
    energy: Energy

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; "loss" and its like are those of the validation, "train_loss" is the stage's own."""
        values = asdict(self)
        validation = values.pop("validation")
        return {**values, "train_loss": values.pop("loss"), **validation}


def run_stages(
    recipe: Recipe,
    teacher: Decoder,
    student: Decoder,
    folder: Path,
    *,
    make_loader: Callable[[int], Loader],
    save_model: Callable[[Decoder, Path], None],
    validate: Callable[[], dict[str, float]],
    identity: Mapping[str, object],
    say: Say = print,
) -> dict[str, StageResult]:
    """Run each stage, or skip it if it is finished; called again after any interruption, it resumes.

    A finished conversion whose budget has grown continues with its last stage. The tokens that a stage leaves unspent,
    because it no longer improves, are added to the next one. A stage whose best validation is worse than the one before
    is rolled back.

    Args:
        recipe: what to do.
        teacher: frozen.
        student: from `convert`, perhaps sharing the teacher's memory; ends in the best state found, all weights frozen.
        folder: gets one run's folder for each stage.
        make_loader: text for the stage of this number, from 1.
        save_model: writes a whole model into a folder.
        validate: values of `student` on held-out text; needs "loss".
        identity: JSON values that must be the same when resuming, beside those of the recipe.
        say: prints a line.

    Raises:
        Interrupted: a signal stopped it, with everything saved.
        UserError: see `yeoul.train.loop.train`.
    """
    results: dict[str, StageResult] = {}
    values, unspent, spare = _start(folder, student, validate, dict(identity)), 0, 0
    for number, (stage, planned) in enumerate(recipe.settings.items(), start=1):
        what, last = recipe.trains[stage], number == len(recipe.settings)
        run_dir, settings = folder / f"{number}-{stage}", replace(planned, tokens=planned.tokens + unspent)
        settings, spare = _as_long_as_it_was(settings, spare, last, run_dir)
        begin_stage(student, teacher, what, rank=recipe.rank, seed=planned.seed + number)
        say(
            f"Stage {number}, {stage}: {count(settings.tokens, 'token')} in {count(settings.steps, 'step')}, "
            f"training {what}."
        )
        before = _write_before(student, run_dir)
        with _EnergyNotes(run_dir, student.device) as notes:
            result = notes.result = train(
                student, make_loader(number), recipe.objective(stage, teacher), settings, run_dir,
                save_model=lambda target: save_model(merged_model(student), target), validate=validate, name=stage,
                progress=progress_line(stage, settings.steps, say),
                identity={**identity, **recipe.identity(stage)}, rates=recipe.rates(stage, student),
            )  # fmt: skip
        kept, best = _take_best(student, result, values["loss"], before)
        merge_low_rank(student)
        before.unlink()
        results[stage] = StageResult(
            tokens=result.tokens, seconds=result.seconds, loss=result.loss, before=values["loss"],
            after=best.get("loss", math.nan), kept=kept, ended_early=result.unspent > 0,
            validation=best if kept else values, energy=stretched(total(notes.sessions), result.seconds),
        )  # fmt: skip
        unspent = result.unspent
        say(_verdict(number, stage, results[stage], unspent, last=last))
        values = results[stage].validation
    return results


def _as_long_as_it_was(settings: TrainConfig, spare: int, last: bool, run_dir: Path) -> tuple[TrainConfig, int]:
    """Settings of a stage where a finished conversion is lengthened: the added tokens go to the last stage.

    Args:
        spare: tokens that earlier stages would have got of the longer budget.

    Returns:
        settings, and tokens for the stages to come.
    """
    if last:
        return replace(settings, tokens=settings.tokens + spare), 0
    stands = standing(run_dir)
    if stands is None or not stands.finished or stands.budget >= settings.tokens:
        return settings, spare
    before = replace(settings, tokens=stands.budget, patience=stands.settings["patience"])
    return before, spare + settings.tokens - stands.budget


class _EnergyNotes:
    """Measures a stage's training, and keeps in RUN_DIR/energy.json what each session of it took."""

    def __init__(self, run_dir: Path, device: torch.device) -> None:
        self.path, self.meter = run_dir / "energy.json", Meter(device)
        self.result: TrainResult | None = None
        try:
            found = read(self.path, finite=False)
            self.sessions = [Energy(**session) for session in found]
        except (UserError, TypeError):
            self.sessions = []

    def __enter__(self) -> _EnergyNotes:
        self.meter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.meter.__exit__(*error)
        result = self.result
        if result is not None and result.resumed_from == result.step:  # it was finished, and only looked at
            self.sessions = self.sessions or [self.meter.result]
            return
        self.sessions.append(self.meter.result)
        with suppress(OSError):  # a full disk is said by the training
            write_json(self.path, [session.as_dict() for session in self.sessions])


def _verdict(number: int, stage: str, result: StageResult, unspent: int, *, last: bool) -> str:
    text = f"Stage {number}, {stage}: validation loss {result.before:.4f} before, {result.after:.4f} after"
    text += "." if result.kept else "; that is not better, so the earlier state is kept."
    if result.ended_early:
        where = "remain unspent" if last else "are passed to the next stage"
        text += f" It stopped improving; {unspent:,} tokens {where}."
    return text


def _start(
    folder: Path, student: Decoder, validate: Callable[[], dict[str, float]], identity: dict[str, object]
) -> dict[str, float]:
    """Validation of the untrained student, from `start.json` where it has been done for this student."""
    path, identity = folder / "start.json", json.loads(json.dumps(identity, default=str))
    try:
        found = read(path, finite=False)
        if found["identity"] == identity:
            return dict(found["validation"])
    except (UserError, ValueError, KeyError, TypeError):
        pass
    student.eval()
    with torch.no_grad():
        values = validate()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"identity": identity, "validation": values})
    return values


# -- what is trained


def begin_stage(student: Decoder, teacher: Decoder, what: Trained, *, rank: int = 8, seed: int = 0) -> None:
    """Marks what is trained, adds low-rank parts, and gives memory of their own to those weights alone.

    Args:
        student: plain, from `convert`.
        teacher: whose memory the student's other weights may go on sharing.
        what: see `Recipe`.
        rank: of low-rank parts.
        seed: of their initial values.
    """
    set_trainable(student, what, rank=rank, seed=seed)
    unshare(student, teacher)


def set_trainable(student: Decoder, what: Trained, *, rank: int = 8, seed: int = 0) -> None:
    """`begin_stage` without the memory: marks what is trained and adds low-rank parts."""
    if what.startswith("low-rank"):
        torch.manual_seed(seed)
        targets = ATTENTION + (MLP if what == "low-rank-all" else ())
        layers = tuple(converted_layers(student))
        add_lora(student, LoraConfig(r=rank, alpha=rank, target_modules=targets, layers_to_transform=layers), "stage")
        train_only_maps(student)
        for layer in lora_layers(student).values():
            layer.adapter("stage").requires_grad_(True)
    else:
        {"maps": train_only_maps, "attention": train_attention, "all": train_everything}[what](student)


@torch.no_grad()
def merge_low_rank(student: Decoder) -> None:
    """Puts low-rank parts into the weights, which are fp32 at least then, and freezes everything."""
    for layer in lora_layers(student).values():
        weight = dense(layer.base)
        weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
    merge_and_unload(student).requires_grad_(False)


# -- which state is kept


def _write_before(student: Decoder, run_dir: Path) -> Path:
    """The trained weights before the stage, on disk because a stage may train all of them."""
    path = run_dir / "before.safetensors"
    weights = {name: p.detach().contiguous() for name, p in trainable_parameters(student).items()}
    with new_file(path) as beside:
        save_file(weights, beside)
    return path


def _take_best(
    student: Decoder, result: TrainResult, loss_before: float, before: Path
) -> tuple[bool, dict[str, float]]:
    """Puts the best of the validated states into the student, that before the stage (taken at its word) included.

    Returns:
        whether the stage is kept, and the validation of its best state.
    """
    best = result.best
    if best is None:  # no validation of it was finite
        put_weights(student, load_file(before))
        return False, result.validation
    values = result.validation if best["step"] == result.step else {"loss": best["loss"]}
    if math.isfinite(loss_before) and best["loss"] > loss_before:
        put_weights(student, load_file(before))
        return False, values
    if best["step"] != result.step:
        folder = result.checkpoint.with_name(f"step-{best['step']:08d}")
        put_weights(student, load_file(folder / "state" / "weights.safetensors"))
    return True, values
