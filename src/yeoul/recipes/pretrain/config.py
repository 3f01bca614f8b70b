"""Settings of `yeoul.pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.config import Place, Settings
from yeoul.recipes.options import TextOptions
from yeoul.train.config import TrainConfig

if TYPE_CHECKING:
    from yeoul.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """An existing tokenizer, or the settings of one to train."""

    tokenizer: Path | None = None
    """Folder of a tokenizer; by default, one is trained on the data."""
    vocab_size: int = 8000
    """Vocabulary size of the tokenizer to train."""
    model_type: Literal["bpe", "unigram", "char", "byte-level"] = "bpe"
    """Algorithm of the tokenizer to train."""
    character_coverage: float = 0.9995
    """Share of the text's characters that the vocabulary covers; the rest are encoded as bytes."""


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """Architecture of the model: a preset, and changes to it."""

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
    """Window of sliding and hybrid attention in tokens, including the current one."""
    positions: Literal["rotary", "sinusoidal", "learned", "none"] | None = None
    """Position encoding."""
    norm: Literal["rmsnorm", "layernorm"] | None = None
    """Normalisation."""
    mlp: Literal["swiglu", "gelu"] | None = None
    """MLP."""
    tie_embeddings: bool | None = None
    """Share the embedding with the output projection."""
    max_positions: int | None = None
    """Maximum sequence length of the model, in tokens; by default the training context."""

    def model_config(self, context: int, **tokenizer: Any) -> ModelConfig:
        """The preset, changed by what is given.

        Args:
            context: tokens of a training sequence.
            tokenizer: size of the vocabulary and ids of special tokens.

        Raises:
            UserError: the shape is impossible, or the training context is longer than --max-positions.
        """
        from yeoul.model.config import preset

        longest = context if self.max_positions is None else self.max_positions
        given: dict[str, Any] = {
            "hidden_size": self.hidden_size, "num_layers": self.layers, "num_heads": self.heads,
            "num_kv_heads": self.kv_heads, "intermediate_size": self.intermediate_size, "attention": self.attention,
            "window": self.window, "positions": self.positions, "norm": self.norm, "mlp": self.mlp,
            "tie_embeddings": self.tie_embeddings,
        }  # fmt: skip
        changes = {key: value for key, value in given.items() if value is not None}
        # What a preset derives from its width or its heads does not fit another width or other heads.
        if self.hidden_size is not None or self.mlp is not None:
            changes.setdefault("intermediate_size", 0)
        if self.heads is not None:
            changes.setdefault("num_kv_heads", None)
        shape = preset(self.preset, max_position_embeddings=longest, **changes, **tokenizer)
        shape.check_context(context, fix="shorten it or raise --max-positions", training=True)
        return shape


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """Settings of `yeoul.pretrain`.

    `PretrainConfig.of(preset="3m", tokens=1_000_000)` takes settings by flag name.
    """

    text: Annotated[TextOptions, Parameter(name="*")] = field(default_factory=TextOptions)
    """The text."""
    val_tokens: int = 200_000
    """Score at most this many tokens in one validation."""
    isolate_documents: bool = False
    """Pack whole documents that cannot attend to each other; otherwise documents are concatenated and split."""
    init: Place | None = None
    """Model to continue training, with its architecture and tokenizer: a folder, a run, or a Hub id; by default,
    training starts from scratch. A pretrained model usually needs a lower --lr, such as 1e-4."""
    vocabulary: Annotated[TokenizerOptions, Parameter(name="*")] = field(default_factory=TokenizerOptions)
    """The tokenizer."""
    shape: Annotated[ShapeOptions, Parameter(name="*")] = field(default_factory=ShapeOptions)
    """The model."""
    train: Annotated[TrainConfig, Parameter(name="*")] = field(default_factory=TrainConfig)
    """How it is trained."""
