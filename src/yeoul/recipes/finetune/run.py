"""`yeoul.finetune`: a model and data -> a task -> training, of all weights or of an adapter -> a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yeoul import runtime
from yeoul.adapt.linearize import train_everything
from yeoul.adapt.lora.api import add_lora, load_adapter, save_adapter
from yeoul.adapt.quantize import QuantizationConfig, quantize_model
from yeoul.config import flat_values
from yeoul.data.sources import source_key
from yeoul.errors import UserError
from yeoul.files import remove, replace_folder, write_json
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import quantized_modules
from yeoul.recipes import dry_run, fitting
from yeoul.recipes.finetune.config import FinetuneConfig
from yeoul.recipes.finetune.start import check_out, open_start
from yeoul.recipes.finetune.task import Outcome
from yeoul.recipes.machine import machine_facts
from yeoul.recipes.options import Say, given_or_temporary, progress_line, silent
from yeoul.recipes.run_folder import RunFolder
from yeoul.recipes.saving import weights_digest
from yeoul.recipes.verdict import verdict
from yeoul.text.tokenizer import Tokenizer
from yeoul.train.config import CHANGEABLE, FITTED, TrainConfig
from yeoul.train.kept import Kept, keep_best
from yeoul.train.loop import TrainResult, train
from yeoul.train.memory import Choice, Need
from yeoul.train.optim import trainable_parameters
from yeoul.units import count

if TYPE_CHECKING:
    from yeoul.evaluate.classification import ClassificationScores
    from yeoul.infer.texts import TextClassifier, TextEmbedder
    from yeoul.train.optim import Rates

RECORD = "finetune.json"
"""In the run's folder, written behind the result: what the run came to."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a fine-tuning came to.

    Attributes:
        model: in the state with the best validation, the adapter unmerged in it.
        tokenizer: of it, with its chat template.
        classifier, embedder: with --task classify and embed, what does the work: `classifier(texts)`,
            `embedder(texts)`; None elsewhere.
        parameters: numbers of the model, adapter and head included; trained: how many of them were trained.
        steps, tokens, seconds: of the training, over all sessions.
        loss: training loss at the end.
        before: validation of the model as it came; empty where nothing was held out.
        validation: that of the result.
        scores: of a classifier on the held-out texts; None elsewhere.
        outcome: what the validations say, in sentences.
        notes: what should be known of the training first; nothing where it went well.
        verb: the command that uses the result: chat, generate, classify or embed.
        continued: whether the result is an adapter that was trained further.
        mergeable: whether the result is an adapter that can be merged into its model.
        folder: of the model or the adapter; None where the run was to leave nothing.
    """

    model: Decoder
    tokenizer: Tokenizer
    classifier: TextClassifier | None
    embedder: TextEmbedder | None
    parameters: int
    trained: int
    steps: int
    tokens: int
    seconds: float
    loss: float
    before: dict[str, float]
    validation: dict[str, float]
    scores: ClassificationScores | None
    outcome: tuple[str, ...]
    notes: tuple[str, ...]
    verb: str
    continued: bool
    mergeable: bool
    folder: Path | None


def finetune(
    model: str | Path,
    data: str | Path,
    config: FinetuneConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> FinetuneResult:
    """Train a model further; called again with the same `out`, it goes on where it stopped.

    Args:
        model: a Hugging Face folder, a run's folder, or an id on the hub; with the methods lora and qlora also an
            adapter, to be trained further.
        data: conversations, instructions, text, labels, pairs or preferences, as the task needs them: a file, a folder
            or a Hub dataset "org/name"; several with commas.
        config: what is learned and how; None for the defaults.
        out: folder of the run, the result in its `model/` or `adapter/`; None keeps nothing but what is returned.
        resume: continue the run in `out`, if there is one.
        overwrite: discard the run in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        say: called with progress messages; None for no output.

    Raises:
        UserError: the settings, the data or the model cannot be used.
        yeoul.train.interrupt.Interrupted: Ctrl-C or SIGTERM, with everything saved.
    """
    with given_or_temporary(out) as folder:
        run_folder = RunFolder(folder, resume, overwrite)
        with run_folder.locked():
            run = _Finetuning(str(model), str(data), config or FinetuneConfig(), run_folder, device, say or silent)
            result = run.go()
    return result if out is not None else replace(result, folder=None)


def plan_finetune(
    model: str | Path, data: str | Path, config: FinetuneConfig | None = None, *, out: str | Path, resume: bool = True,
    overwrite: bool = False, device: str = "auto",
) -> list[str]:  # fmt: skip
    """What `finetune` would do, its memory and its time, in lines for people; writes nothing."""
    folder, lines = RunFolder(Path(out).expanduser(), resume, overwrite), list[str]()
    run = _Finetuning(str(model), str(data), config or FinetuneConfig(), folder, device, lines.append)
    lines += run.plan()
    return lines


class _Finetuning:
    """One run: a model, its task, and what is trained of it. Made, it has read and checked everything that it needs,
    chosen what fits into memory, and written nothing."""

    def __init__(self, model: str, data: str, config: FinetuneConfig, folder: RunFolder, device: str, say: Say) -> None:
        self.name, self.data, self.config, self.folder, self.say = model, data, config, folder, say
        self.asked_device, self.device = device, runtime.resolve_device(device)
        if config.adapter is not None:
            config.adapter.config(None)  # its errors come before anything is read
        self.task = config.make_task(data, say)
        self.start = open_start(model, config.task, self.task.continues, config.adapter)
        self.asked_identity = self._asked_identity()
        folder.check(self.asked_identity)
        check_out(folder.out, self.start, folder.overwrite or folder.has_checkpoints)
        runtime.set_threads()
        before = fitting.resident()
        self.task.check_data()
        self._load()
        self._prepare()
        self._fit(before)

    @property
    def with_adapter(self) -> bool:
        """Whether an adapter is trained, and not the model's own weights."""
        return self.config.adapter is not None

    def _asked_identity(self) -> dict[str, Any]:
        """What decides the losses, by flag; the model itself is compared by the digest of its weights."""
        free = CHANGEABLE | FITTED | {"save_dtype", "record_mib"}
        values = {key: value for key, value in flat_values(self.config).items() if key not in free}
        # What the paths hold counts, not how they are written.
        examples = self.config.examples
        for name, spec in (("data", self.data), ("val_data", examples.val_data)):
            if spec is not None:
                values[name] = source_key(spec, reading=examples.reading)
        return values

    def _settings(self) -> dict[str, Any]:
        """By flag, as config.yaml has them; never with `overwrite`: given back, it must not throw the run away."""
        return {
            "model": self.name, "data": self.data, "out": self.folder.out, "resume": self.folder.resume,
            "overwrite": False, "dry_run": False, "device": self.asked_device, **flat_values(self.config),
        }  # fmt: skip

    # -- before the training

    def _load(self) -> None:
        """The model, in the type of its training, with all weights frozen."""
        stored = self.start.stored_dtype
        compute = runtime.resolve_dtype(self.config.train.dtype, self.device)
        held = torch.bfloat16 if self.with_adapter and compute == stored == torch.bfloat16 else torch.float32
        asked = self.config.save_dtype
        self.saved: torch.dtype = stored if asked == "auto" else getattr(torch, asked)
        if self.start.quantization is None:
            each = held.itemsize if self.with_adapter else fitting.TRAINED
            fix = "give a smaller model" if self.with_adapter else "add --method lora"
            fitting.check_weights(self.start.config, self.device, each, where=self.name, fix=fix)
        self.model = self.start.load(self.device, held)
        self.given_tokenizer = self.start.needed_tokenizer()
        runtime.seed_everything(self.config.train.seed)
        self.model.requires_grad_(False)

    def _prepare(self) -> None:
        """The data in the task, the adapter in the model, and what the run is made of."""
        config, model, task = self.config, self.model, self.task
        self.low_bit = any(True for _ in quantized_modules(model))
        if self.low_bit and config.method != "lora":
            what = "the model is quantized already" if self.with_adapter else "quantized weights cannot be trained"
            raise UserError(what, self.name, "add --method lora, which trains an adapter on them")
        if not self.with_adapter:
            train_everything(model)
        task.prepare(model, self.given_tokenizer)
        self.extra = 0 if task.extra is None else sum(p.numel() for p in task.extra.parameters())
        total = model.num_parameters() + self.extra
        self.identity: dict[str, object] = {
            **model.config.to_dict(), "weights": weights_digest(model), "tokenizer": self.given_tokenizer.fingerprint,
            "task": config.task, "method": config.method, **task.identity(),
        }  # fmt: skip
        if config.method == "qlora":
            self._quantize()
        if self.start.adapter is not None:
            load_adapter(model, self.start.adapter)
            self.identity["adapter"] = weights_digest(model)
        elif config.adapter is not None:
            add_lora(model, config.adapter.config(self._base_name(), self._tokens()))
        self.trained = sum(p.numel() for p in trainable_parameters(model).values()) + self.extra
        self.total = total + (self.trained - self.extra if self.with_adapter else 0)
        self.settings = self._train_config()
        rate = task.head_rate
        self.extra_rate = task.extra_rate(self.settings.lr) if rate is None else rate
        self.identity["extra_rate"] = self.extra_rate

    def _train_config(self) -> TrainConfig:
        config, task = self.config, self.task
        width = self.model.config.hidden_size
        settings = config.train.settings(config.task, config.method, width, task.context, task.epoch_batches)
        return replace(settings, lr=task.rate) if config.train.lr is None and task.rate is not None else settings

    def _base_name(self) -> str:
        """What a new adapter calls its model: the hub's id, or the folder from anywhere on this machine."""
        return str(self.start.path.resolve()) if Path(self.name).expanduser().exists() else self.name

    def _tokens(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Tokens whose rows are trained, of the embedding and of an output layer of its own."""
        found = self.task.tokens
        return found if self.model.config.tie_embeddings or not found else {"embed_tokens": found, "lm_head": found}

    def _quantize(self) -> None:
        options = self.config.lora
        try:
            quantize_model(
                self.model, QuantizationConfig.rounded(bits=options.frozen_bits, group_size=options.group_size)
            )
        except UserError as error:
            raise UserError(error.what, error.where or self.name, error.fix) from None

    def _fit(self, before: int) -> None:
        """Chooses what fits into memory; `before` is what `fitting.resident` gave before the model was loaded."""
        model, task, settings = self.model, self.task, self.settings
        sizes = fitting.sizes_of([model], model, settings, extra=self.extra)
        copies = 0 if self.with_adapter or self.saved == model.dtype else self.saved.itemsize * model.num_parameters()
        phases = fitting.Phases(
            "training", model, sizes, settings, batch=settings.batch_size, loss=task.loss, packed=task.packed,
            ways=task.ways, copies=copies,
        )  # fmt: skip

        def needs(choice: Choice) -> list[Need]:
            found = phases(choice)
            if self.config.method == "qlora":  # the weights are there whole before they have few bits
                found.append(Need(phase="quantization", parts={"weights": 4 * model.num_parameters()}))
            return found

        others = [] if self.with_adapter else ["--method lora"]
        others += ["a shorter --context"] if task.context > 64 else []
        others += ["leave --micro-batch out"] if settings.micro_batch else []
        others += [] if task.splits else ["a smaller --batch-size"]
        self.fitted = fitting.fit(
            needs, fitting.asked_of(settings), fitting.place_of(model.device, sizes.weights, before),
            batch=settings.batch_size, settings=settings, out=self.folder.out, may_split=task.splits,
            goes_on=self.folder.goes_on, flags=", ".join(others) or "a smaller model",
        )  # fmt: skip
        self.settings = fitting.settled(settings, self.fitted.choice)
        rows = self.settings.micro_batch
        if rows is not None and rows < settings.batch_size:  # what fits in training fits in validation
            task.training = replace(task.training, micro_batch=rows)

    def _introduce(self) -> None:
        """Say what is about to happen."""
        settings = self.settings
        kinds = "/".join(dict.fromkeys(self.model.config.attention))
        share = f"{self.trained:,} of them trained ({self.trained / self.total:.2%})"
        self.say(f"Model: {self.total:,} parameters ({kinds}), {share}: {self._learned()}.")
        beside = "" if self.extra_rate is None else f" ({self.extra_rate:.3g} of what is trained on top)"
        self.say(
            f"Training: epochs {self.config.train.epochs:g}, {count(settings.steps, 'step')} of {settings.batch_size} "
            f"x {settings.accumulate} examples of at most {settings.context:,} tokens, learning rate {settings.lr:.3g}"
            f"{beside}, on {self.model.device}."
        )
        self.say("\n".join(self.fitted.lines()))
        self.say("\n".join(self.task.introduce()))

    def _learned(self) -> str:
        """What is trained, in words."""
        options = self.config.lora
        how = {"full": "all weights", "lora": "LoRA", "qlora": f"LoRA on {options.frozen_bits}-bit weights"}
        what = self.task.learned or how[self.config.method]
        if self.start.adapter is not None:
            return f"{what}, the adapter in {self.start.adapter} trained further"
        if not self.with_adapter:
            return what
        rows = len(self.task.tokens)
        return f"{what} {options.described()}" + (f" and the embeddings of {count(rows, 'token')}" if rows else "")

    def plan(self) -> list[str]:
        """What would happen, and how long it would take."""
        self._introduce()
        batch, objective = self.task.loader().next_batch(), self.task.objective()
        together = trained_together(self.model, self.task.extra)
        each, measured = dry_run.seconds_a_token(together, objective, batch, self.settings)
        # Most rows are shorter than the longest, so that a step has fewer positions than it might.
        tokens = round(self.settings.steps * self.settings.accumulate * batch.input_ids.numel())
        return [*dry_run.time_lines([("training", tokens, each, measured)]), dry_run.NOTHING_WRITTEN]

    # -- the training

    def go(self) -> FinetuneResult:
        """Validates, trains, validates, and leaves the result in the run's folder."""
        folder, task = self.folder, self.task
        folder.begin(self.asked_identity, RECORD, self._settings())
        if not self.fitted.recorded:
            fitting.record(self.fitted, folder.out)
        self.fitted.prepare()
        self._introduce()
        validate = task.validate()
        before = folder.validated_before(self.model, validate, self.say)
        together = trained_together(self.model, task.extra)
        start = self._starting_weights(together)
        result = train(
            together, task.loader(), task.objective(), self.settings, folder.out, save_model=self._save,
            validate=validate, name="finetune", resume=folder.resume, identity=self.identity, rates=self._rates(),
            criterion=task.criterion, progress=progress_line("finetune", self.settings.steps, self.say),
        )  # fmt: skip
        # A new head knows nothing: then the state before the training is no result.
        kept = keep_best(together, result, before if task.guess is None else None, start, task.criterion)
        return self._finish(result, before, kept)

    def _starting_weights(self, trained: nn.Module) -> Callable[[], dict[str, Tensor]]:
        """Gives the trained parameters as they are now: small ones copied, those of a whole model in its files."""
        names = trainable_parameters(trained)
        small = {n: p.detach().clone() for n, p in names.items() if self.with_adapter or n.startswith("extra.")}

        def start() -> dict[str, Tensor]:
            if len(small) == len(names):
                return small
            return dict(self.start.load("cpu", self.model.dtype).named_parameters()) | small

        return start

    def _rates(self) -> Rates | None:
        """What is trained beside the model may have a learning rate of its own."""
        if self.extra_rate is None:
            return None
        rate = self.extra_rate / self.settings.lr
        return lambda name: rate if name.startswith("extra.") else 1.0

    def _save(self, folder: Path) -> None:
        """The model's folder, or the adapter's, in place."""
        if self.with_adapter:
            save_adapter(self.model, folder)
            self.task.save_beside(folder)
        else:
            self.task.save(folder, self.saved)

    def _finish(self, result: TrainResult, before: dict[str, float], kept: Kept) -> FinetuneResult:
        """Leave the result, the state with the best validation, in OUT/model or OUT/adapter."""
        out, task = self.folder.out, self.task
        names = ("adapter", "model") if self.with_adapter else ("model", "adapter")
        folder, other = (out / name for name in names)
        if not (self.folder.has_result(RECORD, result) and folder.is_dir()):
            replace_folder(folder, self._save)
        remove(other)  # what a run that was overwritten left: `yeoul.load` must not find it beside the new one
        write_json(out / RECORD, {
            "task": self.config.task, "method": self.config.method, "parameters": self.total, "trained": self.trained,
            "steps": result.step, "tokens": result.tokens, "seconds": round(result.seconds, 3),
            "loss": result.loss, "before": before, "after": kept.validation, "last": result.validation,
            "best": result.best, "kept": kept.step, "machine": machine_facts(),
        })  # fmt: skip
        came = "the adapter is as it came" if self.start.adapter is not None else "the adapter changes nothing"
        notes = verdict(
            result, kept, before, rate=self.settings.lr, head_rate=task.head_rate, guess=task.guess,
            unchanged=came if self.with_adapter else "the result is the model as it came", criterion=task.criterion,
        )  # fmt: skip
        return self._result(result, before, kept, task.outcome(before, kept.validation), tuple(notes), folder)

    def _result(
        self, result: TrainResult, before: dict[str, float], kept: Kept, outcome: Outcome, notes: tuple[str, ...],
        folder: Path,
    ) -> FinetuneResult:  # fmt: skip
        task = self.task
        if outcome.scores is not None:
            write_json(self.folder.out / "classification.json", outcome.scores.to_dict())
        return FinetuneResult(
            model=self.model.eval(), tokenizer=task.tokenizer, classifier=task.classifier(), embedder=task.embedder(),
            parameters=self.total, trained=self.trained, steps=result.step, tokens=result.tokens,
            seconds=result.seconds, loss=result.loss, before=before, validation=kept.validation,
            scores=outcome.scores, outcome=outcome.lines, notes=notes, verb=task.verb,
            continued=self.start.adapter is not None, mergeable=self.with_adapter and not self.low_bit, folder=folder,
        )  # fmt: skip


def trained_together(model: Decoder, extra: nn.Module | None) -> Decoder:
    """A model and what is trained beside it, as one module for the training loop.

    The parts are shared: the parameters have the model's names, and "extra." stands before those of `extra`. The model
    itself stays as it is, without `extra`, so that it can be saved at any time.
    """
    if extra is None:
        return model
    together = copy.copy(model)
    together._modules = {**model._modules, "extra": extra}
    return together
