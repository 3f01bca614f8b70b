"""`yeoul pretrain`: text -> tokenizer -> shards -> model -> training -> a Hugging Face folder."""

from __future__ import annotations

import shlex
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.lines import tell
from yeoul.train.config import TrainConfig
from yeoul.units import count

if TYPE_CHECKING:
    import torch

    from yeoul.commands.fitting import Fitted
    from yeoul.data.batch import Batch
    from yeoul.data.loader import PackedLoader
    from yeoul.data.shards import TokenShards
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.kept import Kept
    from yeoul.train.loop import TrainResult

RECORD = "pretrain.json"
"""In the run's folder, written behind the model: what the run came to."""


@dataclass(frozen=True)
class Config:
    """Pretrain a language model from text.

    Trains a tokenizer unless one is given, stores the text as tokens, trains the model and writes it to OUT/model
    as a Hugging Face folder. Run the same command again to continue where it stopped.
    """

    data: Place = "builtin"
    """Text: a file, a folder, a hub data set "org/name", "builtin" or "builtin:5MB"; several with commas."""
    _: KW_ONLY
    out: Path = Path("runs/pretrain")
    """Folder of the run."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    resume: bool = True
    """Continue the run in --out, if there is one."""
    overwrite: bool = False
    """Discard the run in --out and start over."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dry_run: bool = False
    """Print the model, the memory and the time training would take, and stop without reading or writing anything."""

    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    join_by: str | None = None
    """Column by which records are joined: equal values make one document."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    val_data: Place | None = None
    """Text for validation; when not given, a share of --data is held out."""
    val_fraction: float = 0.01
    """Share of the documents held out for validation; 0 for none."""
    val_tokens: int = 200_000
    """Score at most this many tokens in one validation."""
    isolate_documents: bool = False
    """Pack documents so that none sees another; otherwise they follow one another in a row."""

    init: Place | None = None
    """Model to start from, with its tokenizer and its shape: a folder, a run, or an id on the hub; a new one is made
    when not given. A model that is trained already usually wants a lower --lr, such as 1e-4."""
    tokenizer: Path | None = None
    """Folder of a tokenizer; when not given, one is trained on the data."""
    vocab_size: int = 8000
    """Vocabulary size of the tokenizer to train."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Kind of the tokenizer to train."""
    character_coverage: float = 0.9995
    """Share of the text's characters that become pieces of that tokenizer; the rest are spelled as bytes."""

    preset: str = "10m"
    """Size of the model by name: 1m, 3m, 5m, 10m, 15m, 30m, 125m, 350m, 1b or gpt-classic."""
    hidden_size: int | None = None
    """Hidden size, instead of the preset's."""
    layers: int | None = None
    """Number of layers, instead of the preset's."""
    heads: int | None = None
    """Query heads, instead of the preset's."""
    kv_heads: int | None = None
    """Key-value heads; must divide the query heads."""
    intermediate_size: int | None = None
    """Hidden size of the MLP."""
    attention: tuple[str, ...] | None = None
    """Attention of all layers, or one kind per layer: softmax, sliding, dijiang or hybrid."""
    window: int | None = None
    """Positions that sliding and hybrid attention see, including the current one."""
    positions: Literal["rotary", "sinusoidal", "learned", "none"] | None = None
    """Position encoding."""
    norm: Literal["rmsnorm", "layernorm"] | None = None
    """Normalisation."""
    mlp: Literal["swiglu", "gelu"] | None = None
    """MLP."""
    tie_embeddings: bool | None = None
    """Share the embedding with the output projection."""
    max_positions: int | None = None
    """Longest text that the model is made for, in tokens; the training context when not given."""

    train: Annotated[TrainConfig, Parameter(name="*")] = field(default_factory=TrainConfig)
    """How it is trained."""


SMALLER = "a smaller model (--preset, --vocab-size)"


def run(config: Config) -> int:
    """Pretrain, and return the exit code: 0 done, 130 or 143 stopped by a signal with everything saved."""
    from yeoul.files import only_run

    if config.dry_run:
        return _run(config)
    with only_run(config.out):
        return _run(config)


def _run(config: Config) -> int:
    from yeoul import runtime
    from yeoul.commands import fitting
    from yeoul.commands.preparation import (
        begin,
        check_run,
        preparation_of,
        removed_on_user_error,
        shards_of,
        tokenizer_of,
    )
    from yeoul.commands.pretrain_init import init_model, init_shape
    from yeoul.model.decoder import Decoder
    from yeoul.train.interrupt import Interrupted
    from yeoul.train.kept import keep_best
    from yeoul.train.optim import trainable_parameters

    # Errors of the shape come before anything is written.
    shape = model_config(config, vocab_size=config.vocab_size) if config.init is None else init_shape(config)
    device = runtime.resolve_device(config.device)
    preparation = preparation_of(config)
    check_run(config, preparation)
    runtime.set_threads()
    base = fitting.resident()
    fitting.check_weights(shape, device, fitting.TRAINED, where=config.init, fix=f"give {SMALLER}")
    if config.dry_run:
        return _dry_run(config, shape, device, base)
    with removed_on_user_error(config.out):
        tokenizer = tokenizer_of(config, preparation)
        shards, val_shards = shards_of(config, tokenizer)
        loader = _loader(config, shards)
        runtime.seed_everything(config.train.seed)
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        if config.init is None:
            model = Decoder(model_config(config, vocab_size=tokenizer.vocab_size, **ids)).to(device)
        else:
            model = init_model(config, device)
        fitted = _fit(config, model, base)
    begin(config, preparation, RECORD)
    fitting.record(fitted, config.out)
    fitted.prepare()
    config = replace(config, train=fitting.settled(config.train, fitted.choice))
    dtype = runtime.resolve_dtype(config.train.dtype, device)
    first = _loader(config, shards).next_batch()
    _introduce(config, model, shards, val_shards, first, tokenizer, f"{device}, {dtype}", fitted)
    try:
        result, before = _train(config, model, loader, val_shards, tokenizer, dtype)
    except Interrupted as stop:
        return stop.exit_code
    kept = keep_best(model, result, before, lambda: trainable_parameters(init_model(config, device)))
    _finish(config, model, tokenizer, result, kept, before)
    return 0


def model_config(config: Config, **tokenizer: Any) -> ModelConfig:
    """The model's shape: the preset, changed by the flags that are given.

    Raises:
        UserError: the shape is impossible, or the training context is longer than --max-positions.
    """
    from yeoul.model.config import preset

    context = config.train.context
    longest = context if config.max_positions is None else config.max_positions
    if context > longest:
        raise UserError(
            f"the training context of {context:,} is longer than the model's {longest:,} positions",
            where="--context",
            fix="shorten it or raise --max-positions",
        )
    given: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "num_kv_heads": config.kv_heads,
        "intermediate_size": config.intermediate_size,
        "attention": config.attention,
        "window": config.window,
        "positions": config.positions,
        "norm": config.norm,
        "mlp": config.mlp,
        "tie_embeddings": config.tie_embeddings,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    # What a preset derives from its width or its heads does not fit another width or other heads.
    if config.hidden_size is not None or config.mlp is not None:
        changes.setdefault("intermediate_size", 0)
    if config.heads is not None:
        changes.setdefault("num_kv_heads", None)
    return preset(config.preset, max_position_embeddings=longest, **changes, **tokenizer)


def _fit(config: Config, model: Decoder, base: int) -> Fitted:
    """What is chosen so that the training of `model` fits; `base` is what was taken before it was made."""
    from yeoul.commands import fitting
    from yeoul.train.runstate import Checkpoints

    train = config.train
    sizes = fitting.sizes_of([model], model, train)
    phases = fitting.Phases("training", model, sizes, train, batch=train.batch_size, packed=config.isolate_documents)
    return fitting.fit(
        phases, fitting.asked_of(train), fitting.place_of(model.device, sizes.weights, base), batch=train.batch_size,
        settings=train, out=config.out,
        goes_on=not config.overwrite and bool(Checkpoints(config.out / "checkpoints", 1).steps()),
        flags=f"{SMALLER} or a shorter --context"
        + (" or leave --micro-batch out" if train.micro_batch else ""),
    )  # fmt: skip


def _dry_run(config: Config, shape: ModelConfig, device: torch.device, base: int) -> int:
    """Model, memory and time, measured on random tokens."""
    import torch

    from yeoul import runtime
    from yeoul.commands import fitting
    from yeoul.data.batch import Batch
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loss import language_model_objective

    runtime.seed_everything(config.train.seed)
    if config.tokenizer is not None:
        shape = shape.with_(vocab_size=Tokenizer.load(config.tokenizer).vocab_size)
    model = Decoder(shape).to(device)
    fitted = _fit(config, model, base)
    train = fitting.settled(config.train, fitted.choice)
    ids = torch.randint(shape.vocab_size, (1, train.context + 1))
    batch = Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])
    each, measured = fitting.seconds_a_token(model, language_model_objective, batch, train)
    tell(f"Model: {model.num_parameters():,} parameters ({config.init or config.preset}), on {device}.")
    tell(f"Training: {train.tokens:,} tokens in {count(train.steps, 'step')} of {train.tokens_per_step:,} tokens.")
    print("\n".join([*fitted.lines(), *fitting.time_lines([("training", train.tokens, each, measured)])]))
    print(fitting.NOTHING_WRITTEN, flush=True)
    return 0


def _loader(config: Config, shards: TokenShards) -> PackedLoader:
    from yeoul.data.loader import PackedLoader

    return PackedLoader(
        shards,
        batch_size=config.train.batch_size,
        context=config.train.context,
        seed=config.train.seed,
        isolate_documents=config.isolate_documents,
    )


def _introduce(
    config: Config,
    model: Decoder,
    shards: TokenShards,
    val_shards: TokenShards | None,
    batch: Batch,
    tokenizer: Tokenizer,
    place: str,
    fitted: Fitted,
) -> None:
    """Say what is about to happen, and show the first example as the model will see it."""
    validation = f", {val_shards.num_tokens:,} for validation" if val_shards else ", none for validation"
    train = config.train
    epochs = train.tokens / max(1, shards.num_tokens)
    tell(f"Data: {count(shards.num_documents, 'document')}, {count(shards.num_tokens, 'token')}{validation}.")
    tell(f"Model: {model.num_parameters():,} parameters ({config.init or config.preset}), on {place}.")
    tell(
        f"Training: {train.tokens:,} tokens ({epochs:.2f} epochs) in {count(train.steps, 'step')} of "
        f"{train.tokens_per_step:,} tokens, context {train.context:,}."
    )
    tell("\n".join(fitted.lines()))
    tell(tokenizer.begins)
    say(
        f"First example, tokens separated by bars, untrained ones in brackets:\n  {_example(batch, tokenizer)}",
        flush=True,
    )


def _example(batch: Batch, tokenizer: Tokenizer, length: int = 40) -> str:
    """The first `length` labels of a batch, piece by piece; what is not trained stands in brackets."""
    from yeoul.data.batch import IGNORE

    inputs, labels = batch.input_ids[0].tolist(), batch.labels[0, :length].tolist()
    shown = lambda token: tokenizer.decode([token], skip_special=False)  # noqa: E731
    pieces = [f"[{shown(token)}]" for token in inputs[:1] if token in tokenizer.framing.begin]
    for place, label in enumerate(labels):
        if label != IGNORE:
            pieces.append(shown(label))
        elif batch.seq_ids is None and place + 1 < len(inputs):
            pieces.append(f"[{shown(inputs[place + 1])}]")
        else:  # padding
            pieces.append(f"[{tokenizer.decode([inputs[place]])}]")
    return "│".join(piece.replace("\n", "⏎") for piece in pieces) + " …"


def _train(
    config: Config,
    model: Decoder,
    loader: PackedLoader,
    val_shards: TokenShards | None,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
) -> tuple[TrainResult, dict[str, float]]:
    """The run's result, and the validation of the model that --init names before it."""
    from yeoul.commands.corpus import held_out, save_folder, validation
    from yeoul.commands.preparation import validated_before
    from yeoul.commands.pretrain_init import as_saved
    from yeoul.commands.recipe import weights_digest
    from yeoul.train.loop import train
    from yeoul.train.loss import language_model_objective

    settings, validate = config.train, None
    if val_shards is not None:
        batches = held_out(
            val_shards,
            batch_size=settings.micro_batch or settings.batch_size,
            context=settings.context,
            max_tokens=config.val_tokens,
            isolate_documents=config.isolate_documents,
        )
        validate = validation(model, batches, tokenizer, dtype)
    identity = {**model.config.to_dict(), "tokenizer": tokenizer.fingerprint}
    if config.init is not None:
        identity["init"] = weights_digest(model)
    before = {} if config.init is None else validated_before(config.out, model, validate)
    result = train(
        model,
        loader,
        language_model_objective,
        settings,
        config.out,
        save_model=lambda folder: save_folder(as_saved(config, model), tokenizer, folder),
        validate=validate,
        name="pretrain",
        resume=config.resume,
        identity=identity,
    )
    return result, before


def _finish(
    config: Config, model: Decoder, tokenizer: Tokenizer, result: TrainResult, kept: Kept, before: dict[str, float]
) -> None:
    """Leave the model, in the state with the lowest validation loss, in OUT/model and say what can be done with it."""
    from yeoul.commands.corpus import save_folder
    from yeoul.commands.preparation import is_left
    from yeoul.commands.pretrain_init import as_saved
    from yeoul.commands.verdict import verdict
    from yeoul.files import replace_folder, write_json

    folder = config.out / "model"
    if not (is_left(config.out, RECORD, result) and (folder / "config.json").exists()):
        saved = as_saved(config, model)
        replace_folder(folder, lambda target: save_folder(saved, tokenizer, target))
        write_json(config.out / RECORD, {
            "steps": result.step, "tokens": result.tokens, "seconds": round(result.seconds, 3), "loss": result.loss,
            "before": before, "after": kept.validation, "last": result.validation, "best": result.best,
            "kept": kept.step,
        })  # fmt: skip
    lines = verdict(result, kept, before, rate=config.train.lr)
    tell("\n".join(["", *lines, f"Training loss {result.loss:.4f} after {result.tokens:,} tokens."]))
    if kept.validation:
        tell("Validation: " + ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in kept.validation.items()) + ".")
    print(f"The model is in {folder}. Next:")
    run = shlex.quote(str(config.out))
    print(f'  yeoul generate {run} "옛날 옛적에"')
    if "softmax" not in model.config.attention:
        return
    words = ["yeoul", "linearize", str(config.out), "--data", config.data]
    words += ["--text-column", config.text_column] if config.text_column else []
    words += ["--join-by", config.join_by] if config.join_by else []
    words += ["--encoding", config.reading.encoding] if config.reading != Reading() else []
    print("  " + shlex.join([*words, "--out", f"{config.out}-dijiang"]), flush=True)
