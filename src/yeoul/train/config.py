"""What a training run is told: budget, batch, schedule, optimizer, habits of saving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yeoul.errors import UserError

Schedule = Literal["cosine", "wsd", "constant"]
OptimizerName = Literal["adamw", "muon"]
DTypeName = Literal["auto", "float32", "bfloat16"]

CHANGEABLE = frozenset({"log_every", "eval_every", "save_every", "keep_last", "tensorboard"})
"""Fields that a resumed run may change, because no loss depends on them."""
FITTED = frozenset({"micro_batch", "gradient_checkpointing"})
"""Fields that a run may choose so that it fits into memory; its state holds what was chosen."""


@dataclass(frozen=True, kw_only=True)
class TrainBudget:
    """How much, how long and how fast a run learns."""

    tokens: int = 10_000_000
    """Token budget; the number of steps follows from it. A finished run continues with a larger one."""
    context: int = 512
    """Tokens in one sequence."""
    lr: float = 1e-3
    """Peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class TrainHabits:
    """What a run can be told before its length, its context and its learning rate are known.

    Raises:
        UserError: a value is out of range; names the flag.
    """

    batch_size: int = 8
    """Sequences in one batch."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    min_lr_ratio: float = 0.1
    """Last learning rate as a share of the peak."""
    schedule: Schedule = "cosine"
    """Learning rate after warm-up: cosine, wsd (stable, linear decay in the last fifth) or constant."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; embeddings, norms and biases have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two averages."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    optimizer: OptimizerName = "adamw"
    """adamw, or muon (orthogonalised momentum for hidden matrices, AdamW for the rest)."""
    dtype: DTypeName = "auto"
    """Type of the matrix products; auto takes bfloat16 where the machine has it in hardware."""
    patience: int = 0
    """Steps between two checks that the loss still falls; the run ends early where it does not; 0 never checks."""
    compile: bool = False
    """Compile the model with torch.compile; the first step then takes a minute longer."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third slower; when not given, only if the run
    would not fit into memory otherwise."""
    micro_batch: int | None = None
    """Sequences of a batch computed at once: less memory for the same steps; when not given, the whole batch, or as
    many as fit into memory."""
    seed: int = 0
    """Seed of initial weights, data order and dropout."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: int = 500
    """Steps between two validations; 0 validates only at the end."""
    save_every: int = 500
    """Steps between two checkpoints; 0 saves only at validations and at the end."""
    keep_last: int = 2
    """Newest checkpoints to keep; the best by validation loss is kept beside them."""
    tensorboard: bool = False
    """Also write TensorBoard events."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every", "keep_last"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "give a whole number of at least 1")
        part = self.micro_batch
        require(part is None or part >= 1, "micro_batch", part, "give a whole number of at least 1")
        for name in ("eval_every", "save_every", "patience"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "give 0 or more steps")
        for name in ("min_lr_ratio", "warmup"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "give a share between 0 and 1")
        for name in ("weight_decay", "grad_clip"):
            require(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "give 0 or more")
        if not isinstance(self.betas, tuple):  # YAML and JSON have only lists
            object.__setattr__(self, "betas", tuple(self.betas))
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(ok, "betas", self.betas, "give two numbers from 0 to below 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "give a whole number from 0")
        choices: dict[str, tuple[str, ...]] = {
            "schedule": ("cosine", "wsd", "constant"),
            "optimizer": ("adamw", "muon"),
            "dtype": ("auto", "float32", "bfloat16"),
        }
        for name, known in choices.items():
            require(getattr(self, name) in known, name, getattr(self, name), f"choose from {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainHabits, TrainBudget):
    """Settings of one training run; everything that decides its losses, and how it is watched and saved.

    Raises:
        UserError: a value is out of range; names the flag.
    """

    def __post_init__(self) -> None:
        for name in ("tokens", "context"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "give a whole number of at least 1")
        require(0 < self.lr < 100, "lr", self.lr, "give a number above 0, such as 1e-3")
        super().__post_init__()

    @property
    def tokens_per_step(self) -> int:
        """Positions that one optimizer step sees."""
        return self.batch_size * self.context * self.accumulate

    @property
    def steps(self) -> int:
        """Optimizer steps that spend the budget, the last one rounded up."""
        return -(-self.tokens // self.tokens_per_step)


def require(ok: bool, field: str, value: object, fix: str) -> None:
    """UserError that names the flag of a field, unless its value is `ok`."""
    if not ok:
        raise UserError(f"{value!r} is out of range", where="--" + field.replace("_", "-"), fix=fix)
