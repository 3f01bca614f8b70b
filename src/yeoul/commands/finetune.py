"""`yeoul finetune`: a model taught by conversations, text or labels, whole or through low-rank adapters."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.commands.finetune_chat import ChatFlags
from yeoul.commands.finetune_classify import ClassifyFlags
from yeoul.commands.finetune_dpo import DpoFlags
from yeoul.commands.finetune_embed import EmbedFlags
from yeoul.commands.finetune_flags import BITS, LoraFlags, Training, changed
from yeoul.commands.finetune_start import Start, start_of
from yeoul.commands.finetune_texts import TextFlags
from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.lines import tell
from yeoul.train.config import CHANGEABLE, FITTED
from yeoul.train.criterion import BY_LOSS, Criterion
from yeoul.units import count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from yeoul.commands.finetune_tasks import Task
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.kept import Kept
    from yeoul.train.loop import TrainResult
    from yeoul.train.optim import Rates

RECORD = "finetune.json"
"""In the run's folder, written behind the result: what the run came to."""


@dataclass(frozen=True)
class Config:
    """Train a model further: on conversations, text, labels or preferences.

    Reads conversations in the common formats and plain text, and trains the whole model (full), a low-rank adapter
    on its frozen weights (lora), or an adapter on quantized weights (qlora). Writes OUT/model or OUT/adapter. Run the
    same command again to continue where it stopped.
    """

    model: Place
    """Model: a Hugging Face folder, a run's folder, or an id on the hub; softmax or linearized. With --method lora also
    an adapter, to be trained further."""
    _: KW_ONLY
    data: Place = ""
    """Conversations, instructions or text: a file, a folder or a hub data set "org/name"; several with commas."""
    task: Literal["chat", "classify", "embed", "dpo"] = "chat"
    """What is learned: chat (conversations, instructions, text), classify, embed, or dpo (preferences)."""
    method: Literal["full", "lora", "qlora"] = "full"
    """full trains all weights, lora an adapter, qlora an adapter on weights of 4 or 8 bits."""
    out: Path = Path("runs/finetune")
    """Folder of the run."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    resume: bool = True
    """Continue the run in --out, if there is one."""
    overwrite: bool = False
    """Discard the run in --out and start over."""
    dry_run: bool = False
    """Print the data, the memory and the time training would take, and stop without writing anything."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights that --method full saves; auto keeps that of the model's files."""

    text_column: str | None = None
    """Column of tables (key of JSON objects) with the text; with --task chat it is learned as plain text. When not
    given, it is looked up by its usual names."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    val_data: Place | None = None
    """Data for validation; when not given, a share of --data is held out."""
    val_fraction: float = 0.05
    """Share of the examples held out for validation, equal ones kept together; 0 for none."""
    val_max: int = 2000
    """Hold out at most this many examples with --val-fraction."""
    on_bad_record: Literal["error", "skip"] = "error"
    """What to do about an unusable record: stop with its file and line, or skip and count it."""

    chat: Annotated[ChatFlags, Parameter(name="*")] = field(default_factory=ChatFlags)
    """Of --task chat."""
    texts: Annotated[TextFlags, Parameter(name="*")] = field(default_factory=TextFlags)
    """Of --task classify and embed."""
    classify: Annotated[ClassifyFlags, Parameter(name="*")] = field(default_factory=ClassifyFlags)
    """Of --task classify."""
    embed: Annotated[EmbedFlags, Parameter(name="*")] = field(default_factory=EmbedFlags)
    """Of --task embed."""
    dpo: Annotated[DpoFlags, Parameter(name="*")] = field(default_factory=DpoFlags)
    """Of --task dpo."""
    lora: Annotated[LoraFlags, Parameter(name="*")] = field(default_factory=LoraFlags)
    """Of --method lora and qlora."""
    train: Annotated[Training, Parameter(name="*")] = field(default_factory=Training)
    """How it is trained."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("no data was given", "--data", "give a file or a folder, such as --data dialogs.jsonl")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"{self.val_fraction} is not a share from 0 to below 1", "--val-fraction")
        if self.val_max < 1:
            raise UserError(
                f"--val-max is {self.val_max}, but must be at least 1", fix="give --val-fraction 0 for no validation"
            )
        for tasks, flags in (
            (("chat",), self.chat), (("classify", "embed"), self.texts), (("classify",), self.classify),
            (("embed",), self.embed), (("dpo",), self.dpo),
        ):  # fmt: skip
            if self.task not in tasks and (others := changed(flags)):
                raise UserError(f"--task {self.task} does not use this flag", others[0], f"add --task {tasks[0]}")
        if self.chat.question_column and self.text_column:
            raise UserError("plain text has no question and no answer", "--text-column", "leave it out")
        given = changed(self.lora)
        quantized = {"--bits", "--group-size"} & set(given)
        if self.method == "full" and given:
            wanted = "qlora" if quantized else "lora"
            raise UserError("--method full trains all weights and has no adapter", given[0], f"add --method {wanted}")
        if self.method == "lora" and quantized:
            raise UserError("--method lora keeps the weights as they are", min(quantized), "add --method qlora")


def run(config: Config) -> int:
    """Fine-tune, and return the exit code: 0 done, 130 or 143 stopped by a signal with everything saved."""
    from yeoul.files import only_run

    if config.dry_run:
        return _run(config)
    with only_run(config.out):
        return _run(config)


def _run(config: Config) -> int:
    from yeoul import load, runtime
    from yeoul.commands.finetune_tasks import make_task
    from yeoul.config import flat_values
    from yeoul.model.checkpoint import load_config, load_quantization
    from yeoul.recipes import fitting
    from yeoul.recipes.run_folder import RunFolder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.interrupt import Interrupted

    config.lora.config(None)  # its errors come before anything is read
    start = start_of(config)
    preparation = _preparation(config)
    folder = RunFolder(config.out, config.resume, config.overwrite)
    folder.check(preparation)
    _check_results(config, start)
    runtime.set_threads()
    before = fitting.resident()
    held, saved = _dtypes(config, start.model)
    task = make_task(config)
    task.check_data()
    if load_quantization(start.model) is None:
        full = config.method == "full"
        fitting.check_weights(
            load_config(start.model), runtime.resolve_device(config.device),
            fitting.TRAINED if full else held.itemsize, where=config.model,
            fix="add --method lora" if full else "give a smaller model",
        )  # fmt: skip
    model, tokenizer = load(start.model, device=config.device, dtype=held)
    if start.adapter is not None and Tokenizer.exists(start.adapter):
        tokenizer = Tokenizer.load(start.adapter)  # with the chat template that the adapter was trained with
    if tokenizer is None:
        raise UserError("the model's folder has no tokenizer", config.model, "copy the tokenizer files into it")
    runtime.seed_everything(config.train.seed)
    model.requires_grad_(False)
    run = _Finetuning(config, model, task, saved, start)
    run.prepare(tokenizer)
    run.fit(before)
    if config.dry_run:
        return run.dry()
    folder.begin(preparation, RECORD, flat_values(replace(config, overwrite=False)))
    run.record()
    try:
        run.train()
    except Interrupted as stop:
        return stop.exit_code
    return 0


def _preparation(config: Config) -> dict[str, Any]:
    """What decides the losses, by flag; the model itself is compared by the digest of its weights."""
    from yeoul.config import flat_values
    from yeoul.data.sources import source_key

    free = (
        CHANGEABLE | FITTED | {"dry_run", "model", "out", "resume", "overwrite", "device", "save_dtype", "record_mib"}
    )
    values = {key: value for key, value in flat_values(config).items() if key not in free}
    # What the paths hold counts, not how they are written.
    for name, spec in (("data", config.data), ("val_data", config.val_data)):
        if spec is not None:
            values[name] = source_key(spec, reading=config.reading)
    return values


def _result_folder(config: Config) -> Path:
    return config.out / ("model" if config.method == "full" else "adapter")


def _check_results(config: Config, start: Start) -> None:
    """Refuse an --out that holds the model itself, or models and adapters that no run here has made."""
    from yeoul.train.runstate import Checkpoints

    out = config.out.resolve()
    for what, folder in (("model", start.model), ("adapter", start.adapter)):
        if folder is not None and (out == folder.resolve() or out in folder.resolve().parents):
            raise UserError(f"the {what} itself is in this folder", f"--out {config.out}", "choose another --out")
    if config.overwrite or Checkpoints(config.out / "checkpoints", 1).steps():
        return
    for name in ("config.json", "adapter_config.json", "model", "adapter"):
        if (config.out / name).exists():
            what = "an adapter" if "adapter" in name else "a model"
            fix = "choose another --out, or discard it (--overwrite)"
            raise UserError(f"there is already {what} in this folder", config.out / name, fix)


def _dtypes(config: Config, folder: Path) -> tuple[torch.dtype, torch.dtype]:
    """Types of the weights in memory and of those that are saved."""
    import torch

    from yeoul import runtime
    from yeoul.model.checkpoint import stored_dtype

    stored = stored_dtype(folder)
    compute = runtime.resolve_dtype(config.train.dtype, runtime.resolve_device(config.device))
    frozen = config.method != "full" and compute == stored == torch.bfloat16
    saved = stored if config.save_dtype == "auto" else getattr(torch, config.save_dtype)
    return torch.bfloat16 if frozen else torch.float32, saved


class _Finetuning:
    """One run: a model, its task, and what is trained of it."""

    def __init__(self, config: Config, model: Decoder, task: Task, saved: torch.dtype, start: Start) -> None:
        self.config, self.model, self.task, self.saved, self.start = config, model, task, saved, start
        self.with_adapter = config.method != "full"
        self.identity: dict[str, object] = {}

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Reads the data, sets the adapter up, and says what is about to happen; writes nothing."""
        from yeoul.adapt.linearize import train_everything
        from yeoul.adapt.lora.api import add_lora, load_adapter
        from yeoul.model.quantized import quantized_modules
        from yeoul.recipes.saving import weights_digest
        from yeoul.train.optim import trainable_parameters

        config, model, task = self.config, self.model, self.task
        self.low_bit = any(True for _ in quantized_modules(model))
        if self.low_bit and config.method != "lora":
            what = "the model is quantized already" if self.with_adapter else "quantized weights cannot be trained"
            raise UserError(what, config.model, "add --method lora, which trains an adapter on them")
        if not self.with_adapter:
            train_everything(model)
        task.prepare(model, tokenizer)
        extra = 0 if task.extra is None else sum(p.numel() for p in task.extra.parameters())
        total = model.num_parameters() + extra
        self.identity = {
            **model.config.to_dict(), "weights": weights_digest(model), "tokenizer": tokenizer.fingerprint,
            "task": config.task, "method": config.method, **task.identity(),
        }  # fmt: skip
        if config.method == "qlora":
            self._quantize()
        if self.start.adapter is not None:
            load_adapter(model, self.start.adapter)
            self.identity["adapter"] = weights_digest(model)
        elif self.with_adapter:
            add_lora(model, config.lora.config(self.start.name, self._tokens()))
        self.trained = sum(p.numel() for p in trainable_parameters(model).values()) + extra
        self.total = total + (self.trained - extra if self.with_adapter else 0)
        width = model.config.hidden_size
        self.settings = config.train.settings(config.task, config.method, width, task.context, task.epoch_batches)
        if config.train.lr is None and (rate := getattr(task, "rate", None)) is not None:
            self.settings = replace(self.settings, lr=rate)
        self.extra_rate = config.texts.head_lr
        if self.extra_rate is None and hasattr(task, "extra_rate"):
            self.extra_rate = task.extra_rate(self.settings.lr)
        self.identity["extra_rate"] = self.extra_rate

    def _tokens(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Tokens whose rows are trained, of the embedding and of an output layer of its own."""
        found = tuple(getattr(self.task, "tokens", ()))
        return found if self.model.config.tie_embeddings or not found else {"embed_tokens": found, "lm_head": found}

    def _quantize(self) -> None:
        from yeoul.adapt.quantize import QuantizationConfig, quantize_model

        flags = self.config.lora
        try:
            quantize_model(self.model, QuantizationConfig.rounded(bits=flags.bits or BITS, group_size=flags.group_size))
        except UserError as error:
            raise UserError(error.what, error.where or self.config.model, error.fix) from None

    def fit(self, before: int) -> None:
        """Chooses what fits into memory; `before` is what `fitting.resident` gave before the model was loaded."""
        from yeoul.recipes import fitting
        from yeoul.train.memory import Choice, Need
        from yeoul.train.runstate import Checkpoints

        config, model, task, settings = self.config, self.model, self.task, self.settings
        extra = 0 if task.extra is None else sum(p.numel() for p in task.extra.parameters())
        sizes = fitting.sizes_of([model], model, settings, extra=extra)
        copies = 0 if self.with_adapter or self.saved == model.dtype else self.saved.itemsize * model.num_parameters()
        phases = fitting.Phases(
            "training", model, sizes, settings, batch=settings.batch_size, loss=getattr(task, "loss", "cross-entropy"),
            packed=getattr(task, "masked", False), ways=getattr(task, "ways", 1), copies=copies,
        )  # fmt: skip

        def needs(choice: Choice) -> list[Need]:
            found = phases(choice)
            if config.method == "qlora":  # the weights are there whole before they have few bits
                found.append(Need(phase="quantization", parts={"weights": 4 * model.num_parameters()}))
            return found

        others = [] if self.with_adapter else ["--method lora"]
        others += ["a shorter --context"] if task.context > 64 else []
        others += ["leave --micro-batch out"] if settings.micro_batch else []
        others += [] if getattr(task, "splits", True) else ["a smaller --batch-size"]
        self.fitted = fitting.fit(
            needs, fitting.asked_of(settings), fitting.place_of(model.device, sizes.weights, before),
            batch=settings.batch_size, settings=settings, out=config.out, may_split=getattr(task, "splits", True),
            goes_on=not config.overwrite and bool(Checkpoints(config.out / "checkpoints", 1).steps()),
            flags=", ".join(others) or "a smaller model",
        )  # fmt: skip
        self.settings = fitting.settled(settings, self.fitted.choice)
        rows = self.settings.micro_batch
        if rows is not None and rows < settings.batch_size:  # what fits in training fits in validation
            task.config = self.config = replace(config, train=replace(config.train, micro_batch=rows))

    def record(self) -> None:
        """Notes in the run's folder what was chosen, and makes ready for it."""
        from yeoul.recipes import fitting

        if not self.fitted.recorded:
            fitting.record(self.fitted, self.config.out)
        self.fitted.prepare()

    def dry(self) -> int:
        """Says what would happen, and how long it would take."""
        from yeoul.recipes import dry_run

        self._introduce()
        with self._extra(True):
            batch = self.task.loader().next_batch()
            each, measured = dry_run.seconds_a_token(self.model, self.task.objective(), batch, self.settings)
        # Most rows are shorter than the longest, so that a step has fewer positions than it might.
        tokens = round(self.settings.steps * self.settings.accumulate * batch.input_ids.numel())
        print("\n".join(dry_run.time_lines([("training", tokens, each, measured)])))
        print(dry_run.NOTHING_WRITTEN, flush=True)
        return 0

    def train(self) -> None:
        """Validates, trains, validates, and leaves the result in the run's folder."""
        from yeoul.recipes.run_folder import RunFolder
        from yeoul.train.kept import keep_best
        from yeoul.train.loop import train

        config, task = self.config, self.task
        self._introduce()
        validate = task.validate()
        before = RunFolder(config.out).validated_before(self.model, validate, tell)
        with self._extra(True):
            start = self._starting_weights()
            result = train(
                self.model, task.loader(), task.objective(), self.settings, config.out, save_model=self.save,
                validate=validate, name="finetune", resume=config.resume, identity=self.identity, rates=self._rates(),
                criterion=self.criterion,
            )  # fmt: skip
            # A new head knows nothing: then the state before the training is no result.
            kept = keep_best(self.model, result, before if self.guess is None else None, start, self.criterion)
        self._finish(result, before, kept)

    @property
    def criterion(self) -> Criterion:
        """By what the kept state is chosen."""
        return getattr(self.task, "criterion", BY_LOSS)

    @property
    def guess(self) -> float | None:
        """Validation loss of guessing, of a task that begins with nothing."""
        return getattr(self.task, "guess", None)

    def _starting_weights(self) -> Callable[[], dict[str, Tensor]]:
        """Gives the trained parameters as they are now: small ones copied, those of a whole model in its files."""
        from yeoul import load
        from yeoul.train.optim import trainable_parameters

        names = trainable_parameters(self.model)
        small = {n: p.detach().clone() for n, p in names.items() if self.with_adapter or n.startswith("extra.")}

        def start() -> dict[str, Tensor]:
            if len(small) == len(names):
                return small
            model, _ = load(self.start.model, device="cpu", dtype=self.model.dtype)
            return dict(model.named_parameters()) | small

        return start

    def _rates(self) -> Rates | None:
        """What is trained beside the model may have a learning rate of its own."""
        if self.extra_rate is None:
            return None
        rate = self.extra_rate / self.settings.lr
        return lambda name: rate if name.startswith("extra.") else 1.0

    def _introduce(self) -> None:
        config, settings = self.config, self.settings
        how = {"full": "all weights", "lora": "LoRA", "qlora": f"LoRA on {config.lora.bits or BITS}-bit weights"}
        what = getattr(self.task, "learned", how[config.method])
        if self.start.adapter is not None:
            what += f", the adapter in {self.start.adapter} trained further"
        elif self.with_adapter:
            rows = len(getattr(self.task, "tokens", ()))
            what += f" {config.lora.introduction()}" + (
                f" and the embeddings of {count(rows, 'token')}" if rows else ""
            )
        kinds = "/".join(dict.fromkeys(self.model.config.attention))
        share = f"{self.trained:,} of them trained ({self.trained / self.total:.2%})"
        tell(f"Model: {self.total:,} parameters ({kinds}), {share}: {what}.")
        beside = "" if self.extra_rate is None else f" ({self.extra_rate:.3g} of what is trained on top)"
        tell(
            f"Training: epochs {config.train.epochs:g}, {count(settings.steps, 'step')} of {settings.batch_size} x "
            f"{settings.accumulate} examples of at most {settings.context:,} tokens, learning rate {settings.lr:.3g}"
            f"{beside}, on {self.model.device}."
        )
        tell("\n".join(self.fitted.lines()))
        tell("\n".join(self.task.introduce()))

    @contextmanager
    def _extra(self, there: bool) -> Iterator[None]:
        """What is trained beside the model as a part of it, for the loop trains one module; or not, for saving."""
        before = hasattr(self.model, "extra")
        self._put_extra(there)
        try:
            yield
        finally:
            self._put_extra(before)

    def _put_extra(self, there: bool) -> None:
        if there and self.task.extra is not None:
            self.model.add_module("extra", self.task.extra)
        elif hasattr(self.model, "extra"):
            del self.model.extra

    def save(self, folder: Path) -> None:
        """The model's folder, or the adapter's, in place."""
        from yeoul.adapt.lora.api import save_adapter

        with self._extra(False):
            if self.with_adapter:
                save_adapter(self.model, folder)
                self.task.save_beside(folder)
            else:
                self.task.save(folder, self.saved)

    def _finish(self, result: TrainResult, before: dict[str, float], kept: Kept) -> None:
        from yeoul.files import remove, replace_folder, write_json
        from yeoul.recipes.run_folder import RunFolder
        from yeoul.recipes.verdict import verdict

        config, folder = self.config, _result_folder(self.config)
        if not (RunFolder(config.out).has_result(RECORD, result) and folder.is_dir()):
            replace_folder(folder, self.save)
        # What a run that was overwritten left: `yeoul.load` must not find it beside the new one.
        remove(config.out / ("adapter" if folder.name == "model" else "model"))
        write_json(config.out / RECORD, {
            "task": config.task, "method": config.method, "parameters": self.total, "trained": self.trained,
            "steps": result.step, "tokens": result.tokens, "seconds": round(result.seconds, 3),
            "loss": result.loss, "before": before, "after": kept.validation, "last": result.validation,
            "best": result.best, "kept": kept.step,
        })  # fmt: skip
        came = "the adapter is as it came" if self.start.adapter is not None else "the adapter changes nothing"
        unchanged = came if self.with_adapter else "the result is the model as it came"
        lines = verdict(
            result, kept, before, rate=self.settings.lr, head_rate=config.texts.head_lr, guess=self.guess,
            unchanged=unchanged, criterion=self.criterion,
        )  # fmt: skip
        tell("\n".join(["", *lines, f"Training loss {result.loss:.4f} after {result.tokens:,} tokens."]))
        print("\n".join([*self.task.finish(config.out, before, kept.validation), *self._next()]), flush=True)

    def _next(self) -> list[str]:
        """Where the result is, and how it is merged."""
        folder = _result_folder(self.config)
        if not self.with_adapter:
            return [f"The model is in {folder}."]
        if self.low_bit:  # nothing can be merged into it
            return [f"The adapter is in {folder}."]
        name, out = shlex.quote(str(self.config.out)), shlex.quote(f"{self.config.out}-merged")
        return [f"The adapter is in {folder}. To merge it: yeoul export {name} --format hf --out {out}"]
