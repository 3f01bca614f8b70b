"""`yeoul linearize`: a softmax model in, the same model in linear time out, with what it cost and gained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import Parameter

from yeoul.commands.linearize_choice import conversion, kept_layers, linear_part
from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.lines import tell
from yeoul.recipes.fitting import RECORD, settled

if TYPE_CHECKING:
    import torch

    from yeoul.data.batch import Batch
    from yeoul.data.loader import PackedLoader
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.linearize.stages import Recipe, StageResult
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.config import TrainConfig

Stage = Literal["align", "distil", "finetune"]
Trained = Literal["maps", "attention", "all", "low-rank", "low-rank-all"]
CALIBRATION_CONTEXT = 1024
"""Longest sequence that is looked at before training."""
RANKING_TOKENS = 16_384
"""Tokens of the text to train on by which layers are compared; the first of them set the start too."""
LEAST_PATIENCE = 10
"""Steps of the shortest window in which a stage's loss is averaged."""
LARGEST_VALIDATION, LEAST_VALIDATION = 200_000, 4096
"""Tokens of a validation when none are given."""
LARGEST_BUDGET, MOST_PASSES = 2_000_000, 4
"""Budget when none is given: so many tokens, but at most so many passes over the text; further ones teach little
(Muennighoff and others 2023)."""


@dataclass(frozen=True)
class Config:
    """Turn the softmax attention of a trained model into DiJiang's linear attention.

    The stages share the token budget: the new attention learns to give what each softmax layer gives (align), the whole
    model learns the teacher's predictions (distil) and, if --finetune-share is above 0, the text (finetune). Run the
    same command again to continue where it stopped.
    """

    model: Place
    """Softmax model: a Hugging Face folder, a finished run, or a hub id."""
    _: KW_ONLY
    data: Place = "builtin"
    """Text: a file, a folder, a hub data set "org/name", "builtin" or "builtin:5MB"; several with commas."""
    tokens: int | None = None
    """Token budget of all stages together; when not given, 2,000,000, but at most four passes over the text."""
    out: Path = Path("runs/linearize")
    """Folder of the run; the model is written to OUT/model."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    overwrite: bool = False
    """Discard the run in --out and start over."""
    dry_run: bool = False
    """Print what would be converted, the memory and the time it would take, and stop without writing anything."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of matrix products."""
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the teacher's weights and of the student's frozen ones; auto: bfloat16 if both the products and
    the model's files are bfloat16, else float32."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the saved weights; auto keeps that of the model's files."""

    attention: Literal["hybrid", "dijiang"] = "hybrid"
    """hybrid: a softmax window and linear attention over what came before it; dijiang: linear attention alone."""
    window: int = 64
    """Positions of the hybrid's window."""
    sinks: int = 4
    """Number of first positions that the hybrid's softmax always sees (attention sinks; none where the model has
    sliding layers, which would see them too)."""
    keep_softmax: str = "0"
    """Number of layers that stay softmax, those that need distant text most; auto: as few as account for half of what
    distance is worth, at most a quarter of the layers. Their caches keep growing."""
    softmax_layers: tuple[int, ...] = ()
    """Layers that stay softmax, by number, counted from 0; instead of --keep-softmax."""
    map: (
        Literal["dijiang", "performer", "pff", "wpff", "dcf", "wdcf", "dijiang-code", "hedgehog", "elu", "fourier"]
        | None
    ) = None
    """Feature map; when not given, fourier with the delta rule, else dijiang. The settings below default to what the
    map uses."""
    features: int | None = None
    """Features per head; when not given, twice the head size, once where the map has no pairs, eight times with
    fourier."""
    kernel: Literal["softmax", "exp"] | None = None
    """Feature kernel: softmax normalises the features of each vector, exp estimates the softmax kernel."""
    radii: Literal["chi", "normal"] | None = None
    """Distribution of the frequencies."""
    sequence: Literal["sobol", "stratified", "random"] | None = None
    """Points behind the frequencies: quasi-Monte Carlo (sobol, stratified) or random."""
    learn: tuple[Literal["weights", "frequencies", "directions"], ...] | None = None
    """Which parts of the feature map are trained."""
    decay: Literal["none", "fixed", "learned", "gated"] = "none"
    """Decay of the linear state: fixed or learned per head, or per token by a learned gate."""
    separate_maps: bool | None = None
    """Give queries and keys separate maps; when not given, only with fourier."""
    mass: Literal["constant", "learned"] = "constant"
    """Overall weight of a key or query: the same for the whole head, or learned from the vector."""
    calibrate: bool = True
    """Set maps, masses and decays in closed form from the teacher's queries and keys before training."""
    state_update: Literal["additive", "delta"] | None = None
    """How the state takes in a token: additive sums, delta corrects (the gated delta rule, with its own decay). When
    not given, delta if neither a map nor a decay is given, else additive."""
    short_conv: int | None = None
    """Width in positions of a convolution over queries, keys and values, 0 for none; when not given, 4 in purely linear
    attention and with the delta rule, none for sums beside a window."""

    stages: tuple[Literal["align", "distil", "finetune"], ...] = ("align", "distil", "finetune")
    """Stages to run; they divide the whole budget in proportion to their shares."""
    align_share: float = 0.1
    """Share of the budget for the first stage."""
    finetune_share: float = 0.0
    """Share of the budget for the last stage, cross-entropy on the text; distillation takes the rest."""
    align_lr: float = 5e-3
    """Peak learning rate of the feature maps in the first stage."""
    lr: float = 1e-4
    """Peak learning rate of the weights in the second stage."""
    finetune_lr: float = 1e-4
    """Peak learning rate in the last stage."""
    map_lr: float = 5e-3
    """Peak learning rate of feature maps, gates and convolutions in the second and third stage: new parts have further
    to go than those taken over from the teacher."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon (orthogonalised momentum) for the matrices of linear layers where they are trained."""
    train_align: Literal["maps", "attention", "all", "low-rank", "low-rank-all"] = "maps"
    """What alignment trains: feature maps and gates (maps); the whole attention; all weights; or the maps and a
    low-rank part of the attention (low-rank), or of attention and MLPs (low-rank-all)."""
    train_distil: Literal["maps", "attention", "all", "low-rank", "low-rank-all"] = "all"
    """What distillation trains, likewise; all holds the weights in memory twice, for teacher and student."""
    train_finetune: Literal["maps", "attention", "all", "low-rank", "low-rank-all"] = "all"
    """What the last stage trains, likewise."""
    rank: int = 8
    """Rank of the low-rank parts."""
    align_on: Literal["outputs", "hidden"] = "outputs"
    """Align each layer's attention on the teacher's inputs (outputs), or the whole model's hidden states (hidden)."""
    temperature: float = 1.0
    """Temperature of the distillation."""
    kl_weight: float = 1.0
    """Weight of the divergence from the teacher in distillation; the rest is cross-entropy on the text."""
    patience: int | None = None
    """Steps between checks whether a stage still improves; a fifth of the stage when not given, 0 for no checks."""
    batch_size: int = 8
    """Sequences per batch."""
    accumulate: int = 1
    """Batches per step."""
    context: int | None = None
    """Tokens per sequence; when not given, the model's own length, but at most 2,048, or less if nothing else fits into
    memory."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third slower; when not given, only if the run
    would not fit into memory otherwise."""
    micro_batch: int | None = None
    """Sequences of a batch computed at once: less memory for the same steps; when not given, the whole batch, or as
    many as fit into memory."""
    seed: int = 0
    """Seed of frequencies and of the order of the data."""
    eval_every: int = 0
    """Steps between validations within a stage; 0 validates only at its end."""
    save_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 5
    """Steps between lines of metrics.jsonl."""

    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    join_by: str | None = None
    """Column by which records are joined: equal values make one document."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    val_data: Place | None = None
    """Text for validation; when not given, a share of --data is held out."""
    val_fraction: float = 0.01
    """Share of the documents held out for validation."""
    val_tokens: int | None = None
    """Score at most this many tokens in one validation; when not given, a tenth of the budget, but at least 4,096 and
    at most 200,000."""
    contexts: tuple[int, ...] = (512, 2048, 8192)
    """Contexts at which tokens per second and cache are measured at the end."""
    judge_tokens: int | None = None
    """Held-out tokens on which the result is judged against the teacher and against the teacher cut to the window
    (value of distant text, recall, free generation); 0 for no judgement, a quarter of a validation's when not given."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"--tokens is {self.tokens}, but must be at least one step's tokens")
        for flag, share in (("--align-share", self.align_share), ("--finetune-share", self.finetune_share)):
            if not 0 <= share <= 1:
                raise UserError(f"{share} is not a share between 0 and 1", flag)
        if self.align_share + self.finetune_share > 1:
            raise UserError("the shares of the stages add up to more than 1", "--align-share, --finetune-share")
        if not self.stages:
            raise UserError("there is no stage to run", "--stages", f"choose from {', '.join(get_args(Stage))}")
        for flag, value, ok in (
            ("--rank", self.rank, self.rank >= 1), ("--temperature", self.temperature, 0 < self.temperature < 1000),
            ("--kl-weight", self.kl_weight, 0 <= self.kl_weight <= 1),
            ("--accumulate", self.accumulate, self.accumulate >= 1), ("--sinks", self.sinks, self.sinks >= 0),
            ("--judge-tokens", self.judge_tokens, (self.judge_tokens or 0) >= 0),
            ("--val-tokens", self.val_tokens, self.val_tokens is None or self.val_tokens >= 1),
            ("--micro-batch", self.micro_batch, self.micro_batch is None or self.micro_batch >= 1),
            ("--patience", self.patience, (self.patience or 0) >= 0),
            ("--map-lr", self.map_lr, 0 < self.map_lr < 100),
        ):  # fmt: skip
            if not ok:
                raise UserError(f"{value} is out of range", flag)
        if self.keep_softmax != "auto" and not self.keep_softmax.isdecimal():
            raise UserError(f"{self.keep_softmax!r} is neither a number of layers nor auto", "--keep-softmax")
        if self.keep_softmax != "0" and self.softmax_layers:
            raise UserError("both --keep-softmax and --softmax-layers are given", fix="leave one of them out")
        if self.batch_size < 1 or (self.context is not None and self.context < 2):
            raise UserError("a step needs at least one sequence of two tokens", "--batch-size, --context")


def run(config: Config) -> int:
    """Linearize; the exit code is 0, or 130 or 143 where a signal stopped it with everything saved."""
    from yeoul.files import only_run

    if config.dry_run:
        return _run(config)
    with only_run(config.out):
        return _run(config)


def _run(config: Config) -> int:
    from yeoul import load, runtime
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import load_config
    from yeoul.model.finite import check_finite
    from yeoul.recipes import fitting
    from yeoul.recipes.run_folder import RunFolder

    runtime.set_threads()
    _check_data(config)
    before = fitting.resident()
    dtypes = _dtypes(config)
    fitting.check_weights(
        load_config(local_folder(config.model)), runtime.resolve_device(config.device),
        dtypes.held.itemsize + (fitting.TRAINED if _trains_all(config) else 0), where=config.model,
        fix="give a smaller model" + (", or --train-distil maps or low-rank" if _trains_all(config) else ""),
    )  # fmt: skip
    teacher, tokenizer = load(config.model, device=config.device, dtype=dtypes.held)
    if tokenizer is None:
        raise UserError("the model's folder has no tokenizer", config.model)
    context = _context(config, teacher)
    teacher.requires_grad_(False)
    check_finite(teacher, config.model, "linearized")
    run = _Linearization(config, teacher, tokenizer, dtypes)
    recipe_of(config, context, run.student)  # what cannot be is said before the text is read
    if config.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return run.dry(context, before, Path(folder))
    with RunFolder(config.out).removed_on_user_error():
        run.prepare(context, before, config.out)
    return run.go()


def _trains_all(config: Config) -> bool:
    """Whether a stage trains all weights, so that they are in memory five times."""
    return any(what == "all" and stage in config.stages for stage, what in trained_parts(config).items())


def _context(config: Config, teacher: Decoder) -> int:
    """Tokens of a sequence, by the flag or the model's length."""
    longest = teacher.config.max_position_embeddings
    context = config.context or min(longest, 2048)
    if context > longest:
        raise UserError(f"the context of {context:,} is longer than the model's {longest:,} positions", "--context")
    layers = teacher.config.attention.count("softmax")
    if config.keep_softmax.isdecimal() and int(config.keep_softmax) >= max(1, layers):
        raise UserError(f"none of the {layers} softmax layers would be linearized", "--keep-softmax", "keep fewer")
    return context


class _Linearization:
    """One run: a teacher, its student, the text, and the stages."""

    def __init__(self, config: Config, teacher: Decoder, tokenizer: Tokenizer, dtypes: Dtypes) -> None:
        self.config, self.teacher, self.tokenizer, self.dtypes = config, teacher, tokenizer, dtypes
        self.student = self._convert()

    def _convert(self, kept: tuple[int, ...] = (), context: int | None = None) -> Decoder:
        from yeoul.adapt.linearize import convert

        return convert(self.teacher, conversion(self.config, kept, context), share=True)

    def prepare(self, context: int, before: int, folder: Path) -> None:
        """Reads the text and chooses what fits; writes nothing but the tokens, into a folder."""
        from yeoul.commands import linearize_fit
        from yeoul.recipes.options import TextOptions
        from yeoul.recipes.token_data import train_and_val_shards
        from yeoul.train.memory import Choice

        config = self.config
        text = TextOptions(
            text_column=config.text_column, join_by=config.join_by, reading=config.reading, val_data=config.val_data,
            val_fraction=config.val_fraction,
        )  # fmt: skip
        self.shards, val = train_and_val_shards(config.data, text, folder, self.tokenizer, tell)
        if val is None:
            raise UserError("there is no text to validate on", "--val-fraction", "hold out a share or give --val-data")
        self.val = val
        self.budget = config.tokens or min(LARGEST_BUDGET, MOST_PASSES * self.shards.meta.tokens)
        recipe = recipe_of(replace(config, tokens=self.budget), context, self.student)
        goes_on = not config.overwrite and any((config.out / "stages").glob("*/checkpoints/step-*"))
        self.fitted = linearize_fit.fit(
            config, recipe, self.teacher, context, self.dtypes.saved, before, goes_on=goes_on
        )
        choice: Choice = self.fitted.choice
        self.context = choice.context
        recipe = recipe_of(replace(config, tokens=self.budget), self.context, self.student)
        self.recipe = replace(
            recipe, settings={name: settled(settings, choice) for name, settings in recipe.settings.items()}
        )
        self.val_tokens = config.val_tokens or scored_tokens(self.budget)
        if goes_on and config.val_tokens is None and not (config.out / RECORD).is_file():
            self.val_tokens = LARGEST_VALIDATION  # as runs had it that recorded nothing
        self.loader(0)  # too little text is said before anything is written

    def loader(self, stage: int) -> PackedLoader:
        """Text for the stage of this number."""
        from yeoul.data.loader import PackedLoader

        config = self.config
        return PackedLoader(self.shards, batch_size=config.batch_size, context=self.context, seed=config.seed + stage)

    def introduce(self) -> None:
        """Says what decides the result, what fits, and where the budget is too small."""
        from yeoul.commands import linearize_fit

        lines = linearize_fit.choices(
            self.config, self.student, self.recipe, self.budget, self.shards.meta.tokens, self.context,
            self.dtypes.compute,
        )  # fmt: skip
        lines += self.fitted.lines()
        lines += [linearize_fit.cache_line(self.teacher, self.student), self.tokenizer.begins]
        lines += linearize_fit.warnings(self.config, self.recipe, self.budget)
        tell("\n".join(lines))

    def dry(self, context: int, before: int, folder: Path) -> int:
        """Says all that and how long it would take; the folder is for the tokens, which are thrown away."""
        from yeoul.commands import linearize_fit
        from yeoul.recipes import dry_run

        self.prepare(context, before, folder)
        self.introduce()
        batch = self.loader(1).next_batch()
        validation = min(self.val_tokens, self.val.meta.tokens)
        print("\n".join(linearize_fit.time_lines(self.recipe, self.teacher, self._convert, batch, validation)))
        print(dry_run.NOTHING_WRITTEN, flush=True)
        return 0

    def go(self) -> int:
        """Chooses layers, calibrates, trains, judges."""
        from yeoul.adapt.linear_init import calibrate
        from yeoul.config import save_config
        from yeoul.files import remove
        from yeoul.recipes import fitting
        from yeoul.recipes.token_data import held_out
        from yeoul.train.interrupt import Interrupted

        config = self.config
        if config.overwrite:
            remove(config.out / "stages")
        # Never saved as true: the file given back as --config must not throw the run away.
        save_config(replace(config, overwrite=False), config.out / "config.yaml")
        if not self.fitted.recorded:
            fitting.record(self.fitted, config.out)
        self.fitted.prepare()
        some = held_out(
            self.shards, batch_size=4, context=min(self.context, CALIBRATION_CONTEXT), max_tokens=RANKING_TOKENS
        )
        kept = kept_layers(config, self.teacher, some, self.dtypes.compute)
        self.student = self._convert(kept, self.context)
        self.introduce()
        if config.calibrate:
            calibrate(self.teacher, self.student, some(), progress=lambda what: print(what, flush=True))
        try:
            stages = self._train()
        except Interrupted as stop:
            return stop.exit_code
        self._finish({name: stage.as_dict() for name, stage in stages.items()})
        return 0

    def _held_out(self) -> Callable[[], Iterable[Batch]]:
        from yeoul.recipes.token_data import held_out

        return held_out(
            self.val, batch_size=self.fitted.choice.micro_batch, context=self.context, max_tokens=self.val_tokens
        )

    def _train(self) -> dict[str, StageResult]:
        from yeoul.recipes.linearize.stages import run_stages
        from yeoul.recipes.saving import merged_model, save_folder, weights_digest
        from yeoul.recipes.token_data import validation

        config, teacher, student, tokenizer = self.config, self.teacher, self.student, self.tokenizer
        saved = self.dtypes.saved
        return run_stages(
            self.recipe, teacher, student, config.out / "stages", make_loader=self.loader,
            save_model=lambda model, folder: save_folder(merged_model(model, saved), tokenizer, folder),
            validate=validation(student, self._held_out(), tokenizer, self.dtypes.compute),
            identity={"teacher": weights_digest(teacher), "tokenizer": tokenizer.fingerprint,
                      "model": student.config.to_dict(), "calibrate": config.calibrate,
                      "validation": [self.val.meta.tokens, self.val_tokens],
                      **({"begin": self.shards.begin} if self.shards.begin else {})},
        )  # fmt: skip

    def _finish(self, stages: dict[str, dict[str, Any]]) -> None:
        from yeoul.commands.conclusion import conclude
        from yeoul.files import remove, replace_folder
        from yeoul.recipes.saving import merged_model, save_folder

        config = self.config
        finished = merged_model(self.student, self.dtypes.saved)
        remove(config.out / "linearize.json")  # figures of another model
        replace_folder(config.out / "model", lambda folder: save_folder(finished, self.tokenizer, folder))
        self.student = merged_model(finished, self.dtypes.held)  # what was saved, in the type that the teacher has
        judged = scored_tokens(self.budget) // 4 if config.judge_tokens is None else config.judge_tokens
        conclude(config, self.teacher, self.student, self.tokenizer, self._held_out(), stages, self.context, judged)


def _check_data(config: Config) -> None:
    """What is wrong with the texts from their first lines on is said before the model is loaded."""
    from yeoul.data.records import check_documents

    for data in (config.data, config.val_data):
        if data is not None:
            check_documents(data, text_column=config.text_column, join_by=config.join_by, reading=config.reading)


def scored_tokens(budget: int) -> int:
    """Tokens of a validation when none are given: it should take no longer than the training that it judges."""
    return min(LARGEST_VALIDATION, max(LEAST_VALIDATION, budget // 10))


@dataclass(frozen=True, kw_only=True)
class Dtypes:
    """Types of the products, of weights that are not trained, and of saved weights."""

    compute: torch.dtype
    held: torch.dtype
    saved: torch.dtype


def _dtypes(config: Config) -> Dtypes:
    """By the flags, the machine, and the model's files."""
    import torch

    from yeoul import runtime
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import model_folder, stored_dtype

    compute = runtime.resolve_dtype(config.dtype, runtime.resolve_device(config.device))
    stored = stored_dtype(model_folder(local_folder(config.model)))
    if config.teacher_dtype == "auto":
        held = torch.bfloat16 if compute == stored == torch.bfloat16 else torch.float32
    else:
        held = getattr(torch, config.teacher_dtype)
    if held == torch.bfloat16 != compute:
        raise UserError(
            f"matrix products in {str(compute).removeprefix('torch.')} cannot use bfloat16 weights",
            "--teacher-dtype", "give --dtype bfloat16 too, or --teacher-dtype float32",
        )  # fmt: skip
    saved = stored if config.save_dtype == "auto" else getattr(torch, config.save_dtype)
    return Dtypes(compute=compute, held=held, saved=saved)


def _learns_alone(student: Decoder) -> bool:
    """Whether the alignment stage has anything to train; a head's mass counts only beside a window."""
    from yeoul.adapt.linearize import train_only_maps

    train_only_maps(student)
    learned = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    return any("hybrid" in student.config.attention or not name.endswith("log_mass") for name in learned)


def trained_parts(config: Config) -> dict[Stage, Trained]:
    """What each stage trains."""
    return {"align": config.train_align, "distil": config.train_distil, "finetune": config.train_finetune}


def recipe_of(config: Config, context: int, student: Decoder) -> Recipe:
    """The stages that the flags describe.

    Raises:
        UserError: a stage has nothing to train, or no stage gets a step.
    """
    from yeoul.recipes.linearize.stages import Recipe

    recipe = Recipe(
        settings=plan(config, context), trains=trained_parts(config), align_on=config.align_on, rank=config.rank,
        map_lr=config.map_lr, kl_weight=config.kl_weight, temperature=config.temperature,
    )  # fmt: skip
    for stage in recipe.settings:
        if recipe.trains[stage] == "maps" and not _learns_alone(student):
            fix = "give --align-share 0" if stage == "align" else f"choose another --train-{stage}"
            raise UserError(
                f"nothing of the feature map {linear_part(config)[0]!r} is trained, so there is nothing to {stage}",
                "--map", f"{fix}, or give --learn if the map has parts to train",
            )  # fmt: skip
    return recipe


def plan(config: Config, context: int) -> dict[Stage, TrainConfig]:
    """Settings of the stages that get at least one step, in order; without a budget, those of the largest default."""
    from yeoul.train.config import TrainConfig

    common = TrainConfig(
        batch_size=config.batch_size, context=context, accumulate=config.accumulate, weight_decay=0.0, warmup=0.05,
        seed=config.seed, dtype=config.dtype, gradient_checkpointing=config.gradient_checkpointing,
        micro_batch=config.micro_batch,
        log_every=config.log_every, eval_every=config.eval_every, save_every=config.save_every, keep_last=1,
        optimizer=config.optimizer,
    )  # fmt: skip
    distil_share = 1 - config.align_share - config.finetune_share
    budgets: list[tuple[Stage, float, float]] = [
        ("align", config.align_share, config.align_lr),
        ("distil", distil_share, config.lr),
        ("finetune", config.finetune_share, config.finetune_lr),
    ]
    budgets = [(stage, share, lr) for stage, share, lr in budgets if stage in config.stages]
    if not any(share for _, share, _ in budgets):
        raise UserError(
            "the chosen stages have no share of the budget", "--stages", "give --finetune-share or --align-share"
        )
    total = sum(share for _, share, _ in budgets)
    budget = config.tokens or LARGEST_BUDGET
    stages: dict[Stage, TrainConfig] = {}
    for stage, share, lr in budgets:
        # A budget is not overspent.
        steps = int(budget * share / total) // common.tokens_per_step if share > 0 else 0
        if steps:
            patience = max(LEAST_PATIENCE, steps // 5) if config.patience is None else config.patience
            stages[stage] = replace(common, tokens=steps * common.tokens_per_step, lr=lr, patience=patience)
    if not stages:
        raise UserError(
            f"a budget of {budget:,} tokens is less than one step of {common.tokens_per_step:,} in any stage",
            "--tokens", "give more, or a smaller --batch-size or --context",
        )  # fmt: skip
    return stages
