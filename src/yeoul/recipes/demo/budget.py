"""How much training fits into the time that is left: the machine is measured, not guessed."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.units import duration

if TYPE_CHECKING:
    import torch

    from yeoul.data.batch import Batch
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.linearize.config import LinearizeConfig
    from yeoul.recipes.pretrain.config import PretrainConfig
    from yeoul.train.config import TrainConfig
    from yeoul.train.loss import Objective

PRETRAINING = 0.7
"""Share of the training time that makes the softmax model; linearizing needs less."""
MARGIN = 0.92
"""Share of the time that is planned; the rest is for a machine that becomes slower meanwhile."""
SHAPES = (("3m", 1, 2e-3), ("3m", 2, 2e-3), ("3m", 4, 2e-3), ("3m", 8, 2e-3), ("5m", 8, 2e-3))
"""Presets, batch sizes and learning rates to choose from, for growing budgets."""
MANY_STEPS = 1500
"""From so many steps on, the next shape is better."""
WRITING, REPORT = 10.0, 5.0
"""Seconds reserved for samples and questions, and for the report, on a slow machine."""


class Clock:
    """Time spent and time left of a job of several steps, in seconds.

    Args:
        budget: for everything.
        spent: of the steps that are finished, from an earlier session too.
        estimates: of the steps to come.
    """

    def __init__(self, budget: float, spent: dict[str, float], estimates: dict[str, float]) -> None:
        self.budget, self.spent, self.estimates = budget, spent, estimates
        self._step_start = time.monotonic()

    def elapsed(self) -> float:
        """Finished steps and the present one."""
        return sum(self.spent.values()) + time.monotonic() - self._step_start

    def remaining(self) -> float:
        """Of what is planned."""
        return self.budget * MARGIN - self.elapsed()

    def finish(self, step: str, seconds: float) -> float:
        """Note what a step took; the next one begins now."""
        self.spent[step] = round(seconds, 1)
        self.estimates.pop(step, None)
        self._step_start = time.monotonic()
        return self.spent[step]

    def left(self) -> str:
        """Estimated time to the end: the steps to come, or the budget while nothing is known."""
        running = time.monotonic() - self._step_start
        seconds = sum(self.estimates.values()) - running if self.estimates else self.budget - self.elapsed()
        return duration(max(0.0, seconds))

    def total(self) -> str:
        """Time spent in all steps."""
        return duration(sum(self.spent.values()))


def plan_pretraining(
    make: Callable[[dict[str, Any]], PretrainConfig], plan: dict[str, Any], clock: Clock, vocab_size: int
) -> dict[str, Any]:
    """Size, batch, tokens, validation and contexts that fit: `PRETRAINING` of the training time is for this.

    Few tokens are best read in small batches, because what counts then is the number of steps; where there is
    time for many steps, larger batches and a larger model make better use of it.
    """
    from yeoul.model.decoder import Decoder
    from yeoul.train.loss import language_model_objective

    chosen: dict[str, Any] = {}
    threads = 0
    for size, batch_size, lr in SHAPES:
        shape = {"preset": size, "batch_size": batch_size, "lr": lr}
        trial = make(shape)
        model = Decoder(trial.shape.model_config(trial.train.context, vocab_size=vocab_size))
        measure = partial(seconds_per_token, model, language_model_objective, trial.train)
        threads, seconds = (threads, measure()) if chosen else fastest_threads(measure)
        forward = seconds / 3
        contexts, speed_seconds = speed_contexts(forward, 0.1 * clock.budget)
        val_tokens = int(min(60_000, max(4_000, 0.01 * clock.budget / forward)))
        scoring = 6 * val_tokens * forward * 1.3 + speed_seconds
        validating = 3 * val_tokens * forward
        other = scoring + 2 * validating + WRITING + REPORT + 6
        training = max(0.1 * clock.budget, clock.remaining() - other)
        tokens = _whole_steps(PRETRAINING * training / seconds, trial.train, least=20)
        steps = tokens // trial.train.tokens_per_step
        chosen = {
            **shape,
            "threads": threads,
            "tokens_per_second": 1 / seconds,
            "pretrain_tokens": tokens,
            "val_tokens": val_tokens,
            "contexts": contexts,
            "log_every": max(1, steps // 150),
            "eval_every": max(1, -(-steps // 3)),
            "save_every": max(10, steps // 6),
        }
        clock.estimates = {
            "pretrain": time.monotonic() - clock._step_start + tokens * seconds + validating + 2,
            "linearize": (1 - PRETRAINING) * training + scoring + validating + 4,
            "write": WRITING,
            "report": REPORT,
        }
        if steps < MANY_STEPS:
            break
    return chosen


def plan_linearizing(teacher: Decoder, config: LinearizeConfig, plan: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """The token budget of all stages that fits into the time left before writing and the report."""
    from yeoul.adapt.linearize import Alignment, convert, train_everything, train_only_maps
    from yeoul.train.distill import alignment_objective, distillation_objective
    from yeoul.train.loss import language_model_objective

    batch_size = config.habits.common(plan["context"]).batch_size
    teacher.requires_grad_(False)
    student = convert(teacher, config.conversion.conversion(teacher.config, config.habits.seed))
    objectives: dict[str, Objective] = {
        "align": alignment_objective(Alignment(teacher)),
        "distil": distillation_objective(teacher),
        "finetune": language_model_objective,
    }
    shares, cost = config.training.shares, 0.0
    for stage, train_config in config.planned(10**9, plan["context"]).items():
        (train_only_maps if stage == "align" else train_everything)(student)
        cost += shares[stage] * seconds_per_token(student, objectives[stage], train_config)
    forward = 1 / plan["tokens_per_second"] / 3
    _, speed_seconds = speed_contexts(forward, 0.1 * clock.budget)
    other = (6 + 3) * plan["val_tokens"] * forward * 1.3 + speed_seconds + 4
    least = 40 * batch_size * plan["context"]
    tokens = max(least, int((clock.remaining() - other - WRITING - REPORT) / cost))
    clock.estimates["linearize"] = time.monotonic() - clock._step_start + tokens * cost + other
    steps = tokens // (batch_size * plan["context"])
    return {"linear_tokens": tokens, "linear_log_every": max(1, steps // 300)}


def fastest_threads(measure: Callable[[], float]) -> tuple[int, float]:
    """Sets the number of threads with which `measure` gives least; returns it and what it gives.

    Small models gain little from many threads, and lose much when another job holds one of the cores.
    """
    import torch

    most = torch.get_num_threads()
    results = []
    for threads in sorted({most, min(4, most), 1}, reverse=True):
        torch.set_num_threads(threads)
        results.append((measure(), threads))
    seconds, threads = min(results)
    torch.set_num_threads(threads)
    return threads, seconds


def speed_contexts(forward: float, limit: float) -> tuple[list[int], float]:
    """The longest series of contexts whose measurement takes at most `limit` seconds, and what it takes.

    Args:
        forward: seconds a token takes in a short context without gradient.
    """
    best: tuple[list[int], float] = ([256, 512, 1024], 0.0)
    for longest in (2048, 4096, 8192, 16384):
        contexts = [c for c in (512, 1024, 2048, 4096, 8192, 16384) if longest >= c >= longest // 16][::-1][::2][::-1]
        # Softmax attention doubles the cost of a token at about 4,600 tokens of context in models of this
        # size.
        prefill = sum(c * forward * (2.3 + c / 4600) for c in contexts)
        decode = len(contexts) * 2 * 72 * 0.008
        if best[1] and prefill + decode > limit:
            break
        best = contexts, prefill + decode
    return best


def seconds_per_token(model: Decoder, objective: Objective, config: TrainConfig, steps: int = 4) -> float:
    """Seconds that a token takes in training: the median of a few real steps, the first left out."""
    from yeoul.report.content import read_metrics
    from yeoul.train.log import Progress
    from yeoul.train.loop import train

    brief = replace(config, tokens=steps * config.tokens_per_step, log_every=1, eval_every=0, save_every=0)
    source = RandomTokens(model.config.vocab_size, config.batch_size, config.context)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory(prefix="yeoul-") as folder:
        silent = Progress("measuring", brief.steps, stream=io.StringIO())
        train(model, source, objective, brief, Path(folder), save_model=_save_nothing, progress=silent)
        lines = read_metrics(Path(folder) / "metrics.jsonl")
    model.load_state_dict(before)
    return 1 / statistics.median(line["tokens_per_second"] for line in lines[1:])


def _save_nothing(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


class RandomTokens:
    """An endless source of random batches, for measuring."""

    def __init__(self, vocab_size: int, batch_size: int, context: int) -> None:
        import torch

        self.generator = torch.Generator().manual_seed(0)
        self.vocab_size, self.shape = vocab_size, (batch_size, context + 1)

    def next_batch(self) -> Batch:
        """Uniform tokens and the next ones as labels."""
        import torch

        from yeoul.data.batch import Batch

        ids: torch.Tensor = torch.randint(0, self.vocab_size, self.shape, generator=self.generator)
        return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Nothing to restore."""


def _whole_steps(tokens: float, config: TrainConfig, least: int) -> int:
    return max(least, int(tokens) // config.tokens_per_step) * config.tokens_per_step
