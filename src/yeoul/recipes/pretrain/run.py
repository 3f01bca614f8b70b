"""`yeoul.pretrain`: text -> tokenizer -> shards -> model -> training -> a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.config import flat_values
from yeoul.data.batch import IGNORE, Batch
from yeoul.data.loader import PackedLoader
from yeoul.data.sources import source_key
from yeoul.files import replace_folder, write_json
from yeoul.model.decoder import Decoder
from yeoul.recipes import dry_run, fitting
from yeoul.recipes.machine import machine_facts
from yeoul.recipes.options import Say, given_or_temporary, progress_line, silent
from yeoul.recipes.pretrain.config import PretrainConfig
from yeoul.recipes.pretrain.start import init_weights, open_init, tokenizer_of
from yeoul.recipes.run_folder import RunFolder
from yeoul.recipes.saving import merged_model, save_folder, weights_digest
from yeoul.recipes.token_data import held_out, train_and_val_shards, validation
from yeoul.recipes.verdict import verdict
from yeoul.text.tokenizer import Tokenizer
from yeoul.train.config import CHANGEABLE, FITTED
from yeoul.train.kept import Kept, keep_best
from yeoul.train.loop import TrainResult, train
from yeoul.train.loss import language_model_objective
from yeoul.train.optim import trainable_parameters
from yeoul.units import count

if TYPE_CHECKING:
    from yeoul.data.shards import TokenShards
    from yeoul.model.config import ModelConfig

RECORD = "pretrain.json"
"""In the run folder, written after the model: results of the run."""
SMALLER = "a smaller model (--preset, --vocab-size)"
LOWER_RATE = 5e-4
"""Above it, a pretrained model soon forgets; a notice is printed."""


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """Result of a pretraining run.

    Attributes:
        model: with the weights of the lowest validation loss.
        tokenizer: of the model.
        tokens: number of training tokens.
        seconds: of training, over all sessions.
        loss: training loss at the end, nats per token.
        validation: loss, perplexity and bits per byte of the model; empty where nothing was held out.
        before: the same for the model given by `init`; empty when trained from scratch.
        notes: warnings about the training; empty if it went well.
        folder: of the saved model; None without `out`.
    """

    model: Decoder
    tokenizer: Tokenizer
    tokens: int
    seconds: float
    loss: float
    validation: dict[str, float]
    before: dict[str, float]
    notes: tuple[str, ...]
    folder: Path | None


def pretrain(
    data: str = "builtin",
    config: PretrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> PretrainResult:
    """Pretrain a language model on text; called again with the same `out`, it resumes where it stopped.

    Args:
        data: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas.
        config: settings; None for the defaults.
        out: run folder; the model is written to its `model/`. None: nothing is kept but the result.
        resume: continue the run in `out`, if there is one.
        overwrite: discard the run in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        say: called with progress messages; None for no output.

    Raises:
        UserError: the settings, the data or the model cannot be used.
        yeoul.train.interrupt.Interrupted: Ctrl-C or SIGTERM, with everything saved.
    """
    with given_or_temporary(out) as folder:
        run = _Pretraining(
            data, config or PretrainConfig(), RunFolder(folder, resume, overwrite), device, say or silent
        )
        with run.folder.locked():
            result = run.go()
    return result if out is not None else replace(result, folder=None)


def plan_pretrain(
    data: str = "builtin", config: PretrainConfig | None = None, *, out: str | Path, resume: bool = True,
    overwrite: bool = False, device: str = "auto",
) -> list[str]:  # fmt: skip
    """What `pretrain` would do, its memory and its time, in lines for people; reads no data and writes nothing."""
    folder = RunFolder(Path(out).expanduser(), resume, overwrite)
    return _Pretraining(data, config or PretrainConfig(), folder, device, silent).plan()


class _Pretraining:
    """One run."""

    def __init__(self, data: str, config: PretrainConfig, folder: RunFolder, device: str, say: Say) -> None:
        self.data, self.config, self.folder, self.say = data, config, folder, say
        self.asked_device = device
        # Errors of the shape come before anything is written.
        self.init = open_init(config, folder.out)
        self.shape = self._shape(config.vocabulary.vocab_size) if self.init is None else self.init.config
        self.device = runtime.resolve_device(device)
        self.name = config.init or config.shape.preset

    def _shape(self, vocab_size: int, **ids: Any) -> ModelConfig:
        return self.config.shape.model_config(self.config.train.context, vocab_size=vocab_size, **ids)

    def _check_memory(self) -> int:
        """Refuses a model of which not even the weights have room; gives the bytes that are taken before it."""
        runtime.set_threads()
        before = fitting.resident()
        fitting.check_weights(self.shape, self.device, fitting.TRAINED, where=self.config.init, fix=f"give {SMALLER}")
        return before

    def _fit(self, model: Decoder, before: int) -> fitting.Fitted:
        """What is chosen so that the training fits; `before` is what was taken before the model was made."""
        train = self.config.train
        sizes = fitting.sizes_of([model], model, train)
        phases = fitting.Phases(
            "training", model, sizes, train, batch=train.batch_size, packed=self.config.isolate_documents
        )
        return fitting.fit(
            phases, fitting.asked_of(train), fitting.place_of(model.device, sizes.weights, before),
            batch=train.batch_size, settings=train, out=self.folder.out, goes_on=self.folder.goes_on,
            flags=f"{SMALLER} or a shorter --context" + (" or leave --micro-batch out" if train.micro_batch else ""),
        )  # fmt: skip

    def plan(self) -> list[str]:
        """Model, memory and time, measured on random tokens."""
        import torch

        config = self.config
        self.folder.check(self._identity())
        before = self._check_memory()
        runtime.seed_everything(config.train.seed)
        shape = self.shape
        if config.vocabulary.tokenizer is not None:
            shape = shape.with_(vocab_size=Tokenizer.load(config.vocabulary.tokenizer).vocab_size)
        model = Decoder(shape).to(self.device)
        fitted = self._fit(model, before)
        train = fitting.settled(config.train, fitted.choice)
        ids = torch.randint(shape.vocab_size, (1, train.context + 1))
        batch = Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])
        each, measured = dry_run.seconds_a_token(model, language_model_objective, batch, train)
        return [
            f"Model: {model.num_parameters():,} parameters ({self.name}), on {self.device}.",
            f"Training: {count(train.tokens, 'token')} in {count(train.steps, 'step')} of "
            f"{train.tokens_per_step:,} tokens.",
            *fitted.lines(), *dry_run.time_lines([("training", train.tokens, each, measured)]),
            dry_run.NOTHING_WRITTEN,
        ]  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        """What decides the losses of the run, by flag; it goes on only while all of it is the same."""
        config, text = self.config, self.config.text
        free = CHANGEABLE | FITTED | {"val_tokens", "record_mib"}
        values = {key: value for key, value in flat_values(config).items() if key not in free}
        # What the paths hold counts, not how they are written.
        for name, spec in (("data", self.data), ("val_data", text.val_data)):
            if spec is not None:
                columns: dict[str, Any] = {"text_column": text.text_column, "join_by": text.join_by}
                values[name] = source_key(spec, **columns, reading=text.reading)
        values["init"] = self.init is not None  # its weights are compared by their digest
        if self.init is not None:
            values["tokenizer"] = self.init.needed_tokenizer().fingerprint
        elif config.vocabulary.tokenizer is not None:
            values["tokenizer"] = Tokenizer.load(config.vocabulary.tokenizer).fingerprint
        return values

    def _settings(self) -> dict[str, Any]:
        """By flag, as config.yaml has them; never with `overwrite`: given back, it must not throw the run away."""
        return {
            "data": self.data, "out": self.folder.out, "resume": self.folder.resume, "overwrite": False,
            "device": self.asked_device, **flat_values(self.config),
        }  # fmt: skip

    def go(self) -> PretrainResult:
        """Text, tokenizer, model, training, result."""
        config, identity = self.config, self._identity()
        self.folder.check(identity)
        before = self._check_memory()
        with self.folder.removed_on_user_error():
            if self.init is not None:
                tokenizer = self.init.needed_tokenizer()
            else:
                tokenizer = tokenizer_of(
                    config.vocabulary, self.data, config.text, self.folder.out, identity["data"], self.say
                )
            shards, val_shards = train_and_val_shards(self.data, config.text, self.folder.out, tokenizer, self.say)
            loader = self._loader(shards, config.train.context)
            runtime.seed_everything(config.train.seed)
            model = self._model(tokenizer)
            fitted = self._fit(model, before)
        self.folder.begin(identity, RECORD, self._settings())
        fitting.record(fitted, self.folder.out)
        fitted.prepare()
        settings = fitting.settled(config.train, fitted.choice)
        dtype = runtime.resolve_dtype(settings.dtype, self.device)
        first = self._loader(shards, settings.context).next_batch()
        self._introduce(model, shards, val_shards, settings.tokens, f"{self.device}, {dtype}")
        self.say("\n".join([*fitted.lines(), tokenizer.begins, example_line(first, tokenizer)]))
        validate = None
        if val_shards is not None:
            batches = held_out(
                val_shards, batch_size=settings.micro_batch or settings.batch_size, context=settings.context,
                max_tokens=config.val_tokens, isolate_documents=config.isolate_documents,
            )  # fmt: skip
            validate = validation(model, batches, tokenizer, dtype)
        identity = {**model.config.to_dict(), "tokenizer": tokenizer.fingerprint}
        if self.init is not None:
            identity["init"] = weights_digest(model)
        scored = {} if self.init is None else self.folder.validated_before(model, validate, self.say)
        result = train(
            model, loader, language_model_objective, settings, self.folder.out,
            save_model=lambda folder: save_folder(self._as_saved(model), tokenizer, folder), validate=validate,
            name="pretrain", resume=self.folder.resume, identity=identity,
            progress=progress_line("pretrain", settings.steps, self.say),
        )  # fmt: skip
        kept = keep_best(model, result, scored, lambda: trainable_parameters(self._model(tokenizer)))
        return self._finish(model, tokenizer, result, kept, scored)

    def _loader(self, shards: TokenShards, context: int) -> PackedLoader:
        train = self.config.train
        return PackedLoader(
            shards, batch_size=train.batch_size, context=context, seed=train.seed,
            isolate_documents=self.config.isolate_documents,
        )  # fmt: skip

    def _model(self, tokenizer: Tokenizer) -> Decoder:
        """What is trained, as it is before."""
        if self.init is not None:
            return init_weights(self.init, self.device)
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        return Decoder(self._shape(tokenizer.vocab_size, **ids)).to(self.device)

    def _as_saved(self, model: Decoder) -> Decoder:
        """The model in the dtype of the checkpoint that --init names; unchanged without --init."""
        return model if self.init is None else merged_model(model, self.init.stored_dtype)

    def _introduce(
        self, model: Decoder, shards: TokenShards, val_shards: TokenShards | None, tokens: int, place: str
    ) -> None:
        """Say what is about to happen."""
        train, say = self.config.train, self.say
        validation = f", {val_shards.num_tokens:,} for validation" if val_shards else ", none for validation"
        say(f"Data: {count(shards.num_documents, 'document')}, {count(shards.num_tokens, 'token')}{validation}.")
        say(f"Model: {model.num_parameters():,} parameters ({self.name}), on {place}.")
        if self.init is not None and train.lr > LOWER_RATE:
            say(f"A pretrained model usually needs a lower learning rate than {train.lr:g}, such as --lr 1e-4.")
        say(
            f"Training: {tokens:,} tokens ({tokens / max(1, shards.num_tokens):.2f} epochs) in "
            f"{count(train.steps, 'step')} of {train.tokens_per_step:,} tokens, context {train.context:,}."
        )

    def _finish(
        self, model: Decoder, tokenizer: Tokenizer, result: TrainResult, kept: Kept, before: dict[str, float]
    ) -> PretrainResult:
        """Leave the model, in the state with the lowest validation loss, in OUT/model."""
        folder = self.folder.out / "model"
        if not (self.folder.has_result(RECORD, result) and (folder / "config.json").exists()):
            saved = self._as_saved(model)
            replace_folder(folder, lambda target: save_folder(saved, tokenizer, target))
            write_json(self.folder.out / RECORD, {
                "steps": result.step, "tokens": result.tokens, "seconds": round(result.seconds, 3),
                "loss": result.loss, "before": before, "after": kept.validation, "last": result.validation,
                "best": result.best, "kept": kept.step, "machine": machine_facts(),
            })  # fmt: skip
        return PretrainResult(
            model=model.eval(), tokenizer=tokenizer, tokens=result.tokens, seconds=result.seconds, loss=result.loss,
            validation=kept.validation, before=before, folder=folder,
            notes=tuple(verdict(result, kept, before, rate=self.config.train.lr)),
        )  # fmt: skip


def example_line(batch: Batch, tokenizer: Tokenizer, length: int = 40) -> str:
    """The first `length` labels of a batch, token by token; tokens without a loss are in brackets."""
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
    line = "│".join(piece.replace("\n", "⏎") for piece in pieces)
    return f"First example (tokens in brackets are not trained on):\n  {line} …"
