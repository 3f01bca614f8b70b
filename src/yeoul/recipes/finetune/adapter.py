"""The adapter of a fine-tuning: low-rank parts beside frozen weights, which may have few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yeoul.adapt.lora.config import LoraConfig
from yeoul.errors import UserError

TABLES = {"embed_tokens", "lm_head"}
"""What --target-modules calls the embedding and the output layer."""
BITS = 4
"""Of qlora's frozen weights when not given."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The adapter of --method lora and qlora."""

    rank: int = LoraConfig.r
    """Rank of the adapter."""
    alpha: float = LoraConfig.alpha
    """The low-rank part is multiplied by alpha / rank."""
    dropout: float = LoraConfig.dropout
    """Dropout before the low-rank part."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Layers that get the adapter, by the ends of their names (q_proj k_proj v_proj o_proj gate_proj up_proj
    down_proj), or all-linear; embed_tokens and lm_head are the embedding and the output layer. If the model ties the
    two, either name means both."""
    embedding_rank: int | None = None
    """Rank of the low-rank part of the embedding and the output layer, if --target-modules has them; --rank when not
    given. The part is scaled as the others, by alpha / rank; with --rslora by alpha / sqrt(embedding rank)."""
    rslora: bool = LoraConfig.rslora
    """Scale by alpha / sqrt(rank) instead, for high ranks."""
    dora: bool = LoraConfig.dora
    """Also train the length of each row of the weights (DoRA)."""
    train_tokens: bool | None = None
    """Also train the embeddings of the chat template's special tokens, one row each; when not given, only if the
    vocabulary is Yeoul's, whose pretrained models have never seen these tokens."""
    bits: Literal[4, 8] | None = None
    """Bits of the frozen weights with --method qlora; 4 when not given."""
    group_size: int | None = None
    """Inputs that share a scale with --method qlora: 32, 64 or 128; when not given, 64 with 4 bits and all with 8."""

    @property
    def frozen_bits(self) -> int:
        """Bits of the frozen weights with --method qlora."""
        return self.bits or BITS

    def config(self, base_model: str | None, tokens: tuple[int, ...] | dict[str, tuple[int, ...]] = ()) -> LoraConfig:
        """The adapter that the flags describe.

        Args:
            base_model: what it says that it is for.
            tokens: as `LoraConfig.token_indices`.

        Raises:
            UserError: a value that cannot be; names the flag.
        """
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

    def described(self) -> str:
        """What the adapter is, in a few words."""
        words = f"of rank {self.rank}" + (", DoRA" if self.dora else "")
        if TABLES & set(self.target_modules):
            words += f", of the embedding {self.embedding_rank or self.rank}"
        return words
