"""Flags of `yeoul finetune` that all of its tasks share: how it is trained, and the adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from yeoul.errors import UserError
from yeoul.train.config import (  # the first three, because cyclopts looks up here what inherited fields are
    DTypeName,  # noqa: F401
    OptimizerName,  # noqa: F401
    Schedule,  # noqa: F401
    TrainConfig,
    TrainHabits,
    require,
)

if TYPE_CHECKING:
    from yeoul.adapt.lora.layers import LoraConfig

RATE_TIMES_WIDTH, LARGEST_RATE = 0.1, 3e-4
"""Peak learning rate of all weights when none is given: 0.1 / width, at most 3e-4. Wider models want lower rates (Yang
and others 2022): that is 1e-4 at 1,024 and 2.4e-5 at 4,096, as they are commonly fine-tuned."""
LORA_RATES, LARGEST_LORA_RATE = {"chat": 10, "classify": 3, "embed": 3}, 2e-3
"""Adapters take so many times that, at most 2e-3: ten times to write (Schulman 2025, "LoRA Without Regret"), less to
judge texts, of which there are often few (measured with benchmarks/adapter_rates.py)."""
PREFERENCE_RATES = {"full": 5e-6, "lora": 5e-5, "qlora": 5e-5}
"""Those of --task dpo, which moves a model that can already answer."""
MOST_VALIDATIONS = 20
"""Of a run, because of short epochs: each keeps a checkpoint, too."""
TABLES = {"embed_tokens", "lm_head"}
"""What --target-modules calls the embedding and the output layer."""
BITS = 4
"""Of qlora's frozen weights when not given."""


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
class Training(TrainHabits, FinetuneBudget):
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
            lora = min(LARGEST_LORA_RATE, LORA_RATES[task] * whole)
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


@dataclass(frozen=True, kw_only=True)
class LoraFlags:
    """The adapter of --method lora and qlora."""

    rank: int = 8
    """Rank of the adapter."""
    alpha: float = 16.0
    """The low-rank part is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the low-rank part."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Layers that get the adapter, by the ends of their names (q_proj k_proj v_proj o_proj gate_proj up_proj
    down_proj), or all-linear; embed_tokens and lm_head are the embedding and the output layer. If the model ties the
    two, either name means both."""
    embedding_rank: int | None = None
    """Rank of the low-rank part of the embedding and the output layer, if --target-modules has them; --rank when not
    given. The part is scaled as the others, by alpha / rank; with --rslora by alpha / sqrt(embedding rank)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, for high ranks."""
    dora: bool = False
    """Also train the length of each row of the weights (DoRA)."""
    train_tokens: bool | None = None
    """Also train the embeddings of the chat template's special tokens, one row each; when not given, only if the
    vocabulary is Yeoul's, whose pretrained models have never seen these tokens."""
    bits: Literal[4, 8] | None = None
    """Bits of the frozen weights with --method qlora; 4 when not given."""
    group_size: int | None = None
    """Inputs that share a scale with --method qlora: 32, 64 or 128; when not given, 64 with 4 bits and all with 8."""

    def config(self, base_model: str | None, tokens: tuple[int, ...] | dict[str, tuple[int, ...]] = ()) -> LoraConfig:
        """The adapter that the flags describe.

        Args:
            base_model: what it says that it is for.
            tokens: as `LoraConfig.token_indices`.

        Raises:
            UserError: a value that cannot be; names the flag.
        """
        from yeoul.adapt.lora.layers import LoraConfig

        r = self.embedding_rank
        targets = "all-linear" if self.target_modules == ("all-linear",) else self.target_modules
        if r is not None and not TABLES & set(self.target_modules):
            raise UserError(
                "the embedding gets no adapter", f"--embedding-rank {r}",
                f"add --target-modules {' '.join(self.target_modules)} embed_tokens",
            )  # fmt: skip
        if r is not None and r < 1:
            raise UserError(f"--embedding-rank is {r}, but must be at least 1")
        if self.dora and TABLES & set(self.target_modules):
            raise UserError("DoRA of the embedding or the output layer is not supported", "--dora", "leave it out")
        ranks = {} if r is None else dict.fromkeys(sorted(TABLES), r)
        alphas = {} if self.rslora or self.rank < 1 else {name: self.alpha * n / self.rank for name, n in ranks.items()}
        try:
            return LoraConfig(
                r=self.rank, alpha=self.alpha, dropout=self.dropout, target_modules=targets,
                rank_pattern=ranks, alpha_pattern=alphas, rslora=self.rslora, dora=self.dora, token_indices=tokens,
                base_model=base_model,
            )  # fmt: skip
        except UserError as error:
            where = {"r": "--rank"}.get(str(error.where), f"--{error.where}")
            raise UserError(error.what, where, error.fix) from None

    def introduction(self) -> str:
        """What the adapter is, in a few words."""
        words = f"of rank {self.rank}" + (", DoRA" if self.dora else "")
        if TABLES & set(self.target_modules):
            words += f", of the embedding {self.embedding_rank or self.rank}"
        return words


def changed(flags: Any) -> list[str]:
    """Flags of a dataclass that have not their default values."""
    plain = type(flags)()
    names = (f.name for f in fields(flags) if getattr(flags, f.name) != getattr(plain, f.name))
    return [f"--{name.replace('_', '-')}" for name in names]
