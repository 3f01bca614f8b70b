"""The one training loop: draw, accumulate, normalise once, step, log, save, validate."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from yeoul import runtime
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.files import disk_error, disk_full, only_run
from yeoul.train.compute import autocast_dtype, compile_model
from yeoul.train.config import CHANGEABLE, TrainConfig
from yeoul.train.criterion import BY_LOSS, Criterion
from yeoul.train.interrupt import Interrupted, StopRequests
from yeoul.train.log import MetricsLog, Progress, TensorBoard, memory_in_use
from yeoul.train.loss import Objective
from yeoul.train.optim import Optimizer, Rates, trainable_parameters
from yeoul.train.plateau import Plateau
from yeoul.train.progress import is_finished
from yeoul.train.runstate import (
    Checkpoints,
    DamagedCheckpoint,
    RunState,
    random_state,
    restore_random_state,
)
from yeoul.units import count, duration


class Loader(Protocol):
    """An endless source of batches whose position can be saved as JSON values."""

    def next_batch(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


Validate = Callable[[], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a finished run.

    Attributes:
        step: optimizer steps done; tokens: positions seen (padding not counted).
        loss: training loss per token over the last logged interval.
        validation: values of the last validation, empty without one.
        best: {"step", "loss"} of the best checkpoint, and the criterion's value; or None.
        seconds: time spent in steps, over all sessions of the run.
        checkpoint: folder of the last checkpoint.
        resumed_from: step at which this call found the run, or None when it began afresh.
        unspent: tokens of the budget left over where the run ended early (`TrainConfig.patience`).
    """

    step: int
    tokens: int
    loss: float
    validation: dict[str, float]
    best: dict[str, Any] | None
    seconds: float
    checkpoint: Path
    resumed_from: int | None
    unspent: int = 0


def train(
    model: nn.Module,
    loader: Loader,
    objective: Objective,
    config: TrainConfig,
    run_dir: Path,
    *,
    save_model: Callable[[Path], None],
    validate: Validate | None = None,
    name: str = "train",
    resume: bool = True,
    identity: Mapping[str, object] | None = None,
    rates: Rates | None = None,
    criterion: Criterion = BY_LOSS,
    progress: Progress | None = None,
) -> TrainResult:
    """Train those parameters of `model` that require gradients, until the token budget is spent.

    Killed at any moment and called again, it gives the same losses and weights as if it had never stopped.
    Buffers and frozen parameters are not saved in the run's state: the caller builds them the same each time.
    They go into `save_model`'s folder.

    Args:
        model: on its device, in the type its weights are kept in.
        loader: endless; drawn from `config.accumulate` times a step, each batch computed in parts of
            `config.micro_batch`.
        objective: loss of one micro-batch as a sum, see `yeoul.train.loss`.
        run_dir: gets `metrics.jsonl` and `checkpoints/`.
        save_model: writes the model into the folder it is given; called for each checkpoint, and once before the first
            step, so that what cannot be saved is known before anything is trained.
        validate: called without gradients and with the model in eval mode; needs what `criterion` asks for to find
            the best.
        name: first word of the progress line.
        resume: go on from the newest checkpoint in `run_dir`; otherwise there must be none.
        identity: further JSON values (model shape, data fingerprint) that must be the same when resuming.
        rates: what the learning rate of a parameter is multiplied by, see `Optimizer`; what it does belongs into
            `identity`.
        criterion: which validation is the best.
        progress: where to show the progress line; standard error by default.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, when the state is saved.
        UserError: the loss is not finite, the disk is full, the run in `run_dir` has other settings, its
            checkpoints are damaged, or another process trains there.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    shown = progress or Progress(name, config.steps)
    with only_run(run_dir):
        run = _Run(
            model,
            loader,
            objective,
            config,
            run_dir,
            save_model,
            validate,
            dict(identity or {}),
            rates,
            criterion,
            shown,
        )
        was_training = model.training
        try:
            run.start(resume)
            return run.finish() if run.step >= run.plateau.end else run.go()
        except Interrupted:
            run.say_how_to_go_on()
            raise
        except OSError as error:
            if not disk_full(error):
                raise
            raise disk_error(error, run_dir) or error from error
        finally:
            run.close()
            model.train(was_training)


class _Run:
    """A run in progress; `start`, then `go`."""

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        objective: Objective,
        config: TrainConfig,
        run_dir: Path,
        save_model: Callable[[Path], None],
        validate: Validate | None,
        identity: dict[str, object],
        rates: Rates | None,
        criterion: Criterion,
        progress: Progress,
    ) -> None:
        config = replace(
            config, micro_batch=min(config.micro_batch or config.batch_size, config.batch_size),
            gradient_checkpointing=bool(config.gradient_checkpointing),
        )  # fmt: skip
        self.model, self.loader, self.objective, self.config = model, loader, objective, config
        self.run_dir, self.save_model, self.validate, self.identity = run_dir, save_model, validate, identity
        self.progress, self.criterion = progress, criterion
        self.device = next(model.parameters()).device
        self.autocast_to = autocast_dtype(config, self.device)
        self.optimizer = Optimizer(model, config, rates)
        self.plateau = Plateau(config)
        self.checkpoints = Checkpoints(run_dir / "checkpoints", config.keep_last)
        self.metrics = MetricsLog(run_dir / "metrics.jsonl")
        self.board: TensorBoard | None = None
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.pending: dict[str, float] = {"count": 0.0, "loss": 0.0}  # sums since the last line of metrics
        self.pending_time, self.pending_tokens = 0.0, 0  # not saved: timings may differ
        self.loss, self.rate = float("nan"), 0.0
        self.best: dict[str, Any] | None = None
        self.validation: dict[str, float] = {}
        self.resumed_from: int | None = None
        if hasattr(model, "gradient_checkpointing"):
            model.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
        self.uncompile: Callable[[], None] = lambda: None
        if config.compile:
            self.uncompile = compile_model(model)

    def start(self, resume: bool) -> None:
        """Begin afresh or from the newest whole checkpoint."""
        self.checkpoints.clean()
        if not resume and self.checkpoints.steps():
            raise UserError("there is already a run", self.run_dir, "resume it, choose another folder, or overwrite it")
        state = self.checkpoints.load_newest(self.progress.say, self._check)
        if state is None:
            self.checkpoints.rehearse(self.save_model)
            torch.manual_seed(self.config.seed)
            self.metrics.truncate(0)
        else:
            self._restore(state)
        if self.config.tensorboard:
            self.board = TensorBoard(self.run_dir / "tensorboard", self.step)

    def _check(self, state: RunState) -> None:
        """DamagedCheckpoint where the optimizer's state does not fit the weights beside it."""
        if shapes_of(trainable_parameters(self.model)) == shapes_of(state.weights):
            try:
                self.optimizer.check_state_tensors(state.optimizer)
            except ValueError as error:
                raise DamagedCheckpoint(f"optimizer.safetensors: {error}") from None

    def _restore(self, state: RunState) -> None:
        values, now = state.values, _plain(asdict(self.config))
        longer = is_finished(values) and now["tokens"] > values["config"]["tokens"]
        lengthened = longer and self.config.steps > values["step"]
        if longer:  # what is added has a schedule, and looks at plateaus, of its own
            now |= {name: values["config"].get(name) for name in ("tokens", "patience")}
        self._require_same("different settings", values["config"], now)
        self._require_same("different contents", values["identity"], _plain(self.identity))
        parameters = trainable_parameters(self.model)
        if shapes_of(parameters) != shapes_of(state.weights):
            raise UserError("the run trains other parameters", where=self.run_dir, fix="choose another folder")
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(state.weights[key])
        self.optimizer.load_state_tensors(state.optimizer)
        self.loader.load_state_dict(values["loader"])
        restore_random_state(state.rng, state.plain_rng)
        self.step, self.tokens, self.seconds = values["step"], values["tokens"], values["seconds"]
        self.pending, self.best = values["pending"], values["best"]
        self.resumed_from = self.step
        self.plateau = Plateau(self.config, self.step if lengthened else values.get("start", 0))
        if "plateau" in values and not lengthened:
            self.plateau.load_state_dict(values["plateau"])
        if self.best and self.best["step"] not in self.checkpoints.steps():
            self.best = None  # its checkpoint was lost with the damaged ones
        lines = self.metrics.truncate(self.step)
        self.loss = next((line["loss"] for line in reversed(lines) if line["kind"] == "train"), self.loss)
        done = [line for line in lines if line["kind"] == "val" and line["step"] == self.step]
        if done:
            self._note_validation({k: v for k, v in done[-1].items() if k not in ("kind", "step", "tokens")})
        if lengthened:
            self.progress.say(
                f"The finished run in {self.run_dir} is lengthened from step {self.step:,} to {self.config.steps:,}"
                + ("." if self.config.schedule == "constant" else ": the learning rate rises and falls once more.")
            )
        elif self.step < self.plateau.end:
            self.progress.say(f"Resuming {self.run_dir} at step {self.step:,} of {self.config.steps:,}.")
        if not done and self._validates_at(self.step):  # killed between saving and validating
            self._validate()

    def _require_same(self, what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [k for k in before.keys() & now.keys() if k not in CHANGEABLE and before[k] != now[k]]
        if changed:
            names = ", ".join(f"{k.replace('_', '-')} ({before[k]} before, {now[k]} now)" for k in sorted(changed))
            fix = "give the same values again, or choose another folder"
            raise UserError(f"the run cannot continue with {what}: {names}", where=self.run_dir, fix=fix)

    def go(self) -> TrainResult:
        """Step until the budget is spent."""
        with StopRequests() as stop:
            self.model.train()
            while self.step < self.plateau.end:
                lr, norm = self._one_step()
                if self.step % self.config.log_every == 0 or self.step == self.plateau.end:
                    self._log(lr, norm)
                if stop.requested or self._saves_at(self.step):
                    self._save()
                    if stop.requested:  # perhaps only while it was saving
                        raise Interrupted(stop.requested)
                if self._validates_at(self.step):
                    stop.at_once = True
                    self._validate()
                    stop.at_once = False
                if self.progress.due() or self.step == self.plateau.end:
                    # Rows of one example are shorter than the context, so what a step holds is counted.
                    left = (self.plateau.end - self.step) * self.tokens / self.step / max(self.rate, 1e-9)
                    if self.device.type == "cpu":
                        runtime.return_freed_memory()
                    memory = memory_in_use(self.device)
                    self.progress.show(self.step, self.loss, lr, self.rate, left, memory)
        return self.finish()

    def _one_step(self) -> tuple[float, float]:
        """One optimizer step; returns its learning rate and the norm of its gradient before clipping."""
        began = time.perf_counter()
        lr = self.plateau.learning_rate(self.step)
        total = torch.zeros((), device=self.device)
        count, seen = 0, 0
        parts: dict[str, float] = {}
        for batch in self._micro_batches():
            with torch.autocast(self.device.type, self.autocast_to, enabled=self.autocast_to is not None):
                loss = self.objective(self.model, batch)
            loss.total.backward()
            total += loss.total.detach()
            count += loss.count
            seen += batch.input_ids.numel() if batch.seq_ids is None else int((batch.seq_ids >= 0).sum())
            for key, value in loss.parts.items():
                parts[key] = parts.get(key, 0.0) + value
        norm = float(self.optimizer.finish_gradients(count, self.config.grad_clip))
        summed = float(total)
        if not (math.isfinite(summed) and math.isfinite(norm)):
            self._stop_not_finite(summed / max(1, count))
        self.optimizer.step(lr)
        self.step += 1
        self.tokens += seen
        for key, value in {"count": count, "loss": summed, **parts}.items():
            self.pending[key] = self.pending.get(key, 0.0) + value
        mean = summed / max(1, count)
        self._time(time.perf_counter() - began, seen, mean)
        if self.plateau.note(self.step, mean, lr):
            self.progress.say(
                f"The loss stopped falling at step {self.step:,}; training ends at step {self.plateau.end:,}."
            )
        return lr, norm

    def _micro_batches(self) -> Iterator[Batch]:
        """What a step computes one after the other, on the model's device."""
        for _ in range(self.config.accumulate):
            batch = self.loader.next_batch()
            for part in batch.split(self.config.micro_batch or batch.examples):
                yield part.to(self.device)

    def _time(self, spent: float, tokens: int, loss: float) -> None:
        self.seconds += spent
        self.pending_time += spent
        self.pending_tokens += tokens
        now = tokens / max(spent, 1e-9)
        self.rate = now if self.rate == 0 else 0.9 * self.rate + 0.1 * now
        self.loss = loss if math.isnan(self.loss) else 0.9 * self.loss + 0.1 * loss

    def _stop_not_finite(self, loss: float) -> None:
        steps = self.checkpoints.steps()
        kept = f"the checkpoint of step {steps[-1]} is untouched" if steps else "no checkpoint was written yet"
        fix = f"start again in another folder with a lower --lr or with --dtype float32 ({kept})"
        what = f"loss or gradient stopped being finite in step {self.step + 1} (loss {loss})"
        raise UserError(what, where=self.run_dir, fix=fix)

    def _log(self, lr: float, norm: float) -> None:
        count = max(1.0, self.pending.pop("count"))
        means = {key: value / count for key, value in self.pending.items()}
        self.pending = {"count": 0.0, "loss": 0.0}
        rate = self.pending_tokens / max(self.pending_time, 1e-9)
        self.pending_time, self.pending_tokens = 0.0, 0
        line = {"kind": "train", "step": self.step, "tokens": self.tokens, **means, "lr": lr, "grad_norm": norm}
        self._append({**line, "tokens_per_second": round(rate, 1), "seconds": round(self.seconds, 3)})

    def _append(self, line: dict[str, Any]) -> None:
        self.metrics.append(line)
        if self.board is not None:
            self.board.append(line)

    def _saves_at(self, step: int) -> bool:
        every = self.config.save_every
        return self._validates_at(step) or step == self.plateau.end or (every > 0 and step % every == 0)

    def _validates_at(self, step: int) -> bool:
        if self.validate is None or step == 0:
            return False
        every = self.config.eval_every
        return step == self.plateau.end or (every > 0 and step % every == 0)

    def _save(self) -> None:
        self.metrics.sync()
        rng, plain_rng = random_state()
        values = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "pending": self.pending,
            "best": self.best,
            "plateau": self.plateau.state_dict(),
            "config": _plain(asdict(self.config)),
            "identity": _plain(self.identity),
            "loader": self.loader.state_dict(),
            "optimizer": self.optimizer.layout(),
        }
        if self.plateau.start:
            values["start"] = self.plateau.start
        state = RunState(
            values=values,
            weights={key: p.data for key, p in trainable_parameters(self.model).items()},
            optimizer=self.optimizer.state_tensors(),
            rng=rng,
            plain_rng=plain_rng,
        )
        self.checkpoints.save(state, self.save_model)
        # save_model is foreign code: whatever it drew must not change what comes next.
        restore_random_state(rng, plain_rng)
        self.checkpoints.prune(self.best["step"] if self.best else None)

    def _validate(self) -> None:
        assert self.validate is not None
        rng, plain_rng = random_state()
        self.model.eval()
        with torch.no_grad():
            values = self.validate()
        self.model.train()
        # Validating more or less often must not change the training.
        restore_random_state(rng, plain_rng)
        self._append({"kind": "val", "step": self.step, "tokens": self.tokens, **values})
        self._note_validation(values)
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items())
        self.progress.say(f"Validation at step {self.step:,}: {shown}.")

    def _note_validation(self, values: dict[str, float]) -> None:
        self.validation = values
        rank = self.criterion.rank(values)
        if math.isfinite(rank[0]) and (self.best is None or rank < self.criterion.rank(self.best)):
            kept = {key: values[key] for key in ("loss", self.criterion.key) if key in values}
            self.best = {"step": self.step, **kept}
        self.checkpoints.mark_best(self.best)
        self.checkpoints.prune(self.best["step"] if self.best else None)

    def say_how_to_go_on(self) -> None:
        """One line after an interruption."""
        saved = self.checkpoints.steps()
        where = f"step {saved[-1]:,} is saved in {self.checkpoints.path(saved[-1])}" if saved else "nothing is saved"
        how = "go on" if saved else "begin anew"
        steps = f"{self.step:,} of {self.config.steps:,}"
        self.progress.say(f"Stopped at step {steps}; {where}. Run the same command again to {how}.")

    def finish(self) -> TrainResult:
        """The result, said in a line."""
        if self.resumed_from == self.plateau.end:
            self.progress.say(f"The run in {self.run_dir} is already finished ({count(self.step, 'step')}).")
        else:
            self.progress.say(f"Trained on {count(self.tokens, 'token')} in {duration(self.seconds)}.")
        lines = [line for line in self.metrics.read() if line["kind"] == "train"]
        return TrainResult(
            step=self.step,
            tokens=self.tokens,
            loss=lines[-1]["loss"] if lines else self.loss,
            validation=self.validation,
            best=self.best,
            seconds=self.seconds,
            checkpoint=self.checkpoints.path(self.step),
            resumed_from=self.resumed_from,
            unspent=(self.config.steps - self.step) * self.config.tokens_per_step,
        )

    def close(self) -> None:
        """Give back files, and forget gradients and the compiled form."""
        self.progress.end()
        self.metrics.close()
        if self.board is not None:
            self.board.close()
        self.optimizer.zero_grad()
        self.uncompile()


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from JSON (tuples become lists), so that equal things compare equal."""
    return cast(dict[str, Any], json.loads(json.dumps(values, default=str)))
