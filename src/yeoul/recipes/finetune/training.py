"""How a fine-tuning is trained: its length in epochs, and learning rates for a model that is trained already."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from yeoul.train.config import (  # the first three, because cyclopts looks up here what inherited fields are
    DTypeName,  # noqa: F401
    OptimizerName,  # noqa: F401
    Schedule,  # noqa: F401
    TrainConfig,
    TrainHabits,
    require,
)

RATE_TIMES_WIDTH, LARGEST_RATE = 0.1, 3e-4
"""Peak learning rate of all weights when none is given: 0.1 / width, at most 3e-4. Wider models want lower rates (Yang
and others 2022): that is 1e-4 at 1,024 and 2.4e-5 at 4,096, as they are commonly fine-tuned."""
LORA_RATES, OTHER_LORA_RATE, LARGEST_LORA_RATE = {"chat": 10}, 3, 2e-3
"""Adapters take so many times that, at most 2e-3: ten times to write (Schulman 2025, "LoRA Without Regret"), less to
judge texts, of which there are often few (measured with benchmarks/adapter_rates.py)."""
PREFERENCE_RATES = {"full": 5e-6, "lora": 5e-5, "qlora": 5e-5}
"""Those of --task dpo, which moves a model that can already answer."""
MOST_VALIDATIONS = 20
"""Of a run, because of short epochs: each keeps a checkpoint, too."""


@dataclass(frozen=True, kw_only=True)
class FinetuneBudget:
    """How much, how long and how fast."""

    epochs: float = 3.0
    """Passes over the data. A finished run goes on with more of them."""
    context: int | None = None
    """Longest example in tokens; when not given, the model's own length, but at most 1,024."""
    lr: float | None = None
    """Peak learning rate; when not given, 0.1 / hidden size (at most 3e-4) with --method full; with lora and qlora ten
    times that, or three times with --task classify and embed (at most 2e-3); with --task dpo 5e-6 and 5e-5."""


@dataclass(frozen=True, kw_only=True)
class FinetuneTraining(TrainHabits, FinetuneBudget):
    """How it is trained: `TrainConfig` with a length in epochs, and defaults for a model that is trained already."""

    batch_size: int = 16
    """Examples per batch (packed rows with --packing)."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; embeddings, norms and biases have none."""
    eval_every: int = 200
    """At most this many steps between validations; up to twenty epochs are validated at their ends, too. 0 validates
    only at the end. The state with the lowest validation loss is the result."""
    save_every: int = 200
    """Steps between checkpoints; 0 saves only at validations and at the end."""

    def __post_init__(self) -> None:
        require(0 < self.epochs < math.inf, "epochs", self.epochs, "give a number above 0")
        require(self.context is None or self.context >= 2, "context", self.context, "give 2 tokens or more")
        require(self.lr is None or 0 < self.lr < 100, "lr", self.lr, "give a number above 0, such as 1e-4")
        super().__post_init__()

    @property
    def rows(self) -> int:
        """Examples that are computed at once."""
        return min(self.micro_batch or self.batch_size, self.batch_size)

    def settings(self, task: str, method: str, width: int, context: int, epoch_batches: int) -> TrainConfig:
        """For the loop.

        Args:
            task, method, width: decide the learning rate when none is given; width of the model's hidden states.
            context: tokens of the longest row.
            epoch_batches: batches of one pass.
        """
        steps = max(1, math.ceil(self.epochs * epoch_batches / self.accumulate))
        whole = RATE_TIMES_WIDTH / width
        rates = PREFERENCE_RATES
        if task != "dpo":
            lora = min(LARGEST_LORA_RATE, LORA_RATES.get(task, OTHER_LORA_RATE) * whole)
            rates = {"full": min(LARGEST_RATE, whole), "lora": lora, "qlora": lora}
        epoch = max(1, epoch_batches // self.accumulate)
        habits = {f.name: getattr(self, f.name) for f in fields(TrainHabits)}
        habits["eval_every"] = min(self.eval_every, max(epoch, math.ceil(steps / MOST_VALIDATIONS)))
        return TrainConfig(
            tokens=steps * self.batch_size * context * self.accumulate,
            context=context,
            lr=rates[method] if self.lr is None else self.lr,
            **habits,
        )
