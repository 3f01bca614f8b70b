"""`yeoul linearize`: a softmax model in, the same model in linear time out, with what it cost and gained."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yeoul.errors import UserError

if TYPE_CHECKING:
    from yeoul.data.batch import Batch
    from yeoul.data.loader import PackedLoader
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.config import TrainConfig
    from yeoul.train.loss import Objective

Stage = Literal["align", "distil", "finetune"]


@dataclass(frozen=True)
class Config:
    """Turn the softmax attention of a trained model into DiJiang's linear attention.

    Three stages share the token budget: the new attention learns to give what each softmax layer gives (align), the
    whole model learns the teacher's predictions (distil), then the text (finetune). The same command again goes on
    where it was stopped.
    """

    model: str
    """Softmax model: a Hugging Face folder, a finished run, or a hub id."""
    _: KW_ONLY
    data: str = "builtin"
    """Text: a file, a folder, a hub data set "org/name", "builtin" or "builtin:5MB"; several with commas."""
    tokens: int = 2_000_000
    """Token budget of all stages together."""
    out: Path = Path("runs/linearize")
    """Folder of the run; the model is left in OUT/model."""
    config: Path | None = None
    """YAML file with any of these settings; flags beat it."""
    overwrite: bool = False
    """Throw away the run in --out and begin afresh."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the matrix products."""

    attention: Literal["hybrid", "dijiang"] = "hybrid"
    """hybrid: a softmax window and linear attention over what came before it; dijiang: linear attention alone."""
    window: int = 64
    """Positions of the hybrid's window."""
    keep_softmax: tuple[int, ...] = ()
    """Layers that stay softmax, counted from 0."""
    map: Literal["dijiang", "performer", "pff", "wpff", "dcf", "wdcf", "dijiang-code", "hedgehog", "elu"] = "dijiang"
    """Feature map; the settings below take what it has when not given."""
    features: int | None = None
    """Features of a head; twice the head size when not given, or once where the map has no pairs."""
    kernel: Literal["softmax", "exp"] | None = None
    """Feature kernel: softmax normalises the features of each vector, exp estimates the softmax kernel."""
    radii: Literal["chi", "normal"] | None = None
    """Distribution of the frequencies."""
    sequence: Literal["sobol", "stratified", "random"] | None = None
    """Points behind the frequencies: quasi-Monte Carlo (sobol, stratified) or random."""
    learn: tuple[Literal["weights", "frequencies", "directions"], ...] | None = None
    """What of the feature map is trained."""
    decay: Literal["none", "fixed", "learned"] = "none"
    """Decay of the linear state."""
    state_update: Literal["additive", "delta"] = "additive"
    """How the state takes in a token: additive sums, delta corrects (the gated delta rule, with its own decay)."""

    align_share: float = 0.3
    """Share of the budget for the first stage."""
    finetune_share: float = 0.2
    """Share of the budget for the last stage; the middle one takes what is left."""
    align_lr: float = 1e-2
    """Peak learning rate of the feature maps in the first stage."""
    lr: float = 3e-4
    """Peak learning rate of all weights in the second stage."""
    finetune_lr: float = 1e-4
    """Peak learning rate in the last stage."""
    batch_size: int = 8
    """Sequences in a step."""
    context: int | None = None
    """Tokens in a sequence; the model's own length, but at most 2,048, when not given."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    seed: int = 0
    """Seed of frequencies and of the order of the data."""
    eval_every: int = 0
    """Steps between two validations within a stage; 0 validates at its end."""
    save_every: int = 100
    """Steps between two checkpoints."""
    log_every: int = 5
    """Steps between two lines of metrics.jsonl."""

    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; found by its usual names when not given."""
    join_by: str | None = None
    """Column whose equal values make one document of several records."""
    val_data: str | None = None
    """Text for validation; without it a share of --data is put aside."""
    val_fraction: float = 0.01
    """Share of the documents put aside for validation."""
    val_tokens: int = 200_000
    """Largest number of tokens that one validation scores."""
    contexts: tuple[int, ...] = (512, 2048, 8192)
    """Contexts at which tokens per second and cache are measured at the end."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"the budget is {self.tokens} tokens", "--tokens", "give at least one step's tokens")
        for flag, share in (("--align-share", self.align_share), ("--finetune-share", self.finetune_share)):
            if not 0 <= share <= 1:
                raise UserError(f"{share} is not a share between 0 and 1", flag)
        if self.align_share + self.finetune_share > 1:
            raise UserError("the shares of the stages are more than 1 together", "--align-share, --finetune-share")
        if self.batch_size < 1 or (self.context is not None and self.context < 2):
            raise UserError("a step needs at least one sequence of two tokens", "--batch-size, --context")


def run(config: Config) -> int:
    """Linearize; the exit code is 0, or 130 or 143 where a signal stopped it with everything saved."""
    from yeoul import load, runtime
    from yeoul.adapt.linearize import convert
    from yeoul.commands.corpus import held_out, save_folder
    from yeoul.commands.preparation import removed_on_user_error, shards_of
    from yeoul.config import save_config
    from yeoul.data.loader import PackedLoader
    from yeoul.train.interrupt import Interrupted
    from yeoul.train.runstate import replace_folder

    if config.out.exists() and not config.out.is_dir():
        raise UserError("this is a file, not a folder", f"--out {config.out}")
    runtime.set_threads()
    teacher, tokenizer = load(config.model, device=config.device, dtype="float32")
    if tokenizer is None:
        raise UserError("the model's folder has no tokenizer", config.model)
    longest = teacher.config.max_position_embeddings
    context = config.context or min(longest, 2048)
    if context > longest:
        raise UserError(f"the context of {context:,} is longer than the model's {longest:,} positions", "--context")
    settings = plan(config, context)
    teacher.requires_grad_(False)
    student = convert(teacher, conversion(config))
    if "align" in settings and not _learns_alone(student):
        raise UserError(
            f"nothing of the feature map {config.map!r} is learned, so there is nothing to align",
            "--map", "give --align-share 0, or --learn where the map has parts to learn",
        )  # fmt: skip
    with removed_on_user_error(config.out):
        shards, val = shards_of(config, tokenizer)
        if val is None:
            raise UserError("there is no text to validate on", "--val-fraction", "put a share aside or give --val-data")
        make_loader = lambda stage: PackedLoader(  # noqa: E731
            shards, batch_size=config.batch_size, context=context, seed=config.seed + stage
        )
        make_loader(0)  # too little text is said before anything is written
    if config.overwrite:
        shutil.rmtree(config.out / "stages", ignore_errors=True)
    # Never saved as true: the file given back as --config must not throw the run away.
    save_config(replace(config, overwrite=False), config.out / "config.yaml")
    batches = held_out(val, batch_size=config.batch_size, context=context, max_tokens=config.val_tokens)
    try:
        stages = _train_stages(config, settings, teacher, student, tokenizer, make_loader, batches)
    except Interrupted as stop:
        return stop.exit_code
    replace_folder(config.out / "model", lambda folder: save_folder(student, tokenizer, folder))
    _conclude(config, teacher, student, tokenizer, batches, stages)
    return 0


def conversion(config: Config) -> Any:
    """The `Conversion` that the flags describe."""
    from yeoul.adapt.linearize import Conversion
    from yeoul.model.config import FeatureMapConfig

    feature_map = FeatureMapConfig(
        name=config.map, features=config.features, decay=config.decay, seed=config.seed,
        kernel=config.kernel, radii=config.radii, sequence=config.sequence, learn=config.learn,  # type: ignore[arg-type]
    )  # fmt: skip
    return Conversion(
        attention=config.attention, window=config.window, feature_map=feature_map, keep_softmax=config.keep_softmax,
        state_update=config.state_update,
    )  # fmt: skip


def _learns_alone(student: Decoder) -> bool:
    """Whether the alignment stage has anything to train; a head's mass counts only beside a window."""
    from yeoul.adapt.linearize import train_only_maps

    train_only_maps(student)
    learned = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    return any("hybrid" in student.config.attention or not name.endswith("log_mass") for name in learned)


def plan(config: Config, context: int) -> dict[Stage, TrainConfig]:
    """Settings of the stages that get at least one step, in order."""
    from yeoul.train.config import TrainConfig

    common = TrainConfig(
        batch_size=config.batch_size, context=context, weight_decay=0.0, warmup=0.05, seed=config.seed,
        dtype=config.dtype, gradient_checkpointing=config.gradient_checkpointing, log_every=config.log_every,
        eval_every=config.eval_every, save_every=config.save_every, keep_last=1,
    )  # fmt: skip
    distil_share = 1 - config.align_share - config.finetune_share
    budgets: list[tuple[Stage, float, float]] = [
        ("align", config.align_share, config.align_lr),
        ("distil", distil_share, config.lr),
        ("finetune", config.finetune_share, config.finetune_lr),
    ]
    stages: dict[Stage, TrainConfig] = {}
    for stage, share, lr in budgets:
        tokens = int(config.tokens * share)
        if tokens >= common.tokens_per_step:
            whole = tokens // common.tokens_per_step * common.tokens_per_step  # a budget is not overspent
            stages[stage] = replace(common, tokens=whole, lr=lr)
    if not stages:
        raise UserError(
            f"a budget of {config.tokens:,} tokens is less than one step of {common.tokens_per_step:,} in any stage",
            "--tokens", "give more, or a smaller --batch-size or --context",
        )  # fmt: skip
    return stages


def _train_stages(
    config: Config,
    settings_of: dict[Stage, TrainConfig],
    teacher: Decoder,
    student: Decoder,
    tokenizer: Tokenizer,
    make_loader: Callable[[int], PackedLoader],
    batches: Callable[[], Iterable[Batch]],
) -> dict[str, Any]:
    """Runs each stage, or passes it where it is finished; returns what each took."""
    from yeoul import runtime
    from yeoul.adapt.linearize import Alignment, train_everything, train_only_maps
    from yeoul.commands.corpus import save_folder, validation
    from yeoul.train.distill import alignment_objective, distillation_objective
    from yeoul.train.loop import train
    from yeoul.train.loss import language_model_objective

    objectives: dict[Stage, Objective] = {
        "align": alignment_objective(Alignment(teacher)),
        "distil": distillation_objective(teacher),
        "finetune": language_model_objective,
    }
    dtype = runtime.resolve_dtype(config.dtype, teacher.device)
    results: dict[str, Any] = {}
    for number, (stage, settings) in enumerate(settings_of.items(), start=1):
        (train_only_maps if stage == "align" else train_everything)(student)
        print(f"Stage {number}, {stage}: {settings.tokens:,} tokens in {settings.steps:,} steps.", flush=True)
        result = train(
            student, make_loader(number), objectives[stage], settings, config.out / "stages" / f"{number}-{stage}",
            save_model=lambda folder: save_folder(student, tokenizer, folder),
            validate=validation(student, batches, tokenizer, dtype), name=stage,
            identity={"teacher": _weights_digest(teacher), "tokenizer": tokenizer.fingerprint,
                      "model": student.config.to_dict()},
        )  # fmt: skip
        results[stage] = {"tokens": result.tokens, "seconds": result.seconds, "loss": result.loss, **result.validation}
    return results


def _weights_digest(model: Decoder) -> str:
    """A fingerprint of a model's weights: a resumed run must have the same teacher."""
    import hashlib

    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _conclude(
    config: Config,
    teacher: Decoder,
    student: Decoder,
    tokenizer: Tokenizer,
    batches: Callable[[], Iterable[Batch]],
    stages: dict[str, Any],
) -> None:
    """Scores, speeds and cache of teacher and student; printed, and written to OUT/linearize.json."""
    from yeoul import runtime
    from yeoul.adapt.linearize import convert
    from yeoul.commands.results import machine_facts
    from yeoul.evaluate import speed
    from yeoul.evaluate.ablations import ablations, parts
    from yeoul.evaluate.perplexity import score
    from yeoul.train.runstate import write_json

    dtype = runtime.resolve_dtype(config.dtype, teacher.device)
    lengths = tokenizer.byte_lengths()
    print("Scoring teacher, converted model and its parts ...", flush=True)
    scores = {"teacher": score(teacher, batches(), lengths, dtype=dtype)}
    scores |= ablations(student, batches, lengths, dtype=dtype)
    if config.attention == "hybrid":
        with parts(convert(teacher, conversion(config)), linear=False) as untrained:
            scores["teacher's weights, window only"] = score(untrained, batches(), lengths, dtype=dtype)
    longest = max(config.contexts) + 128
    models = {"teacher": speed.lengthened(teacher, longest), "converted": speed.lengthened(student, longest)}
    records = speed.compare(models, config.contexts, dtype=dtype, progress=lambda what: print(f"  {what}", flush=True))
    print("\n" + score_table({name: value.as_dict() for name, value in scores.items()}))
    print("\n" + speed.table(records, "teacher"))
    spent = sum(stage["tokens"] for stage in stages.values())
    result = {
        "tokens": spent,
        "stages": stages,
        "scores": {name: value.as_dict() for name, value in scores.items()},
        "speed": [record.as_dict() for record in records],
        "machine": machine_facts(),
        "command": " ".join(["yeoul", *sys.argv[1:]]),
    }
    write_json(config.out / "linearize.json", json.loads(json.dumps(result, default=str)))
    print(f"\nThe model is in {config.out / 'model'}, these figures in {config.out / 'linearize.json'}. Next:")
    print(f'  yeoul generate {config.out} "옛날 옛적에"\n  yeoul chat {config.out}', flush=True)


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
