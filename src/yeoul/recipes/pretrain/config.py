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
    """The tokenizer: one that is there, or one to train."""

    tokenizer: Path | None = None
    """Folder of a tokenizer; when not given, one is trained on the data."""
    vocab_size: int = 8000
    """Vocabulary size of the tokenizer to train."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Kind of the tokenizer to train."""
    character_coverage: float = 0.9995
    """Share of the text's characters that become pieces of that tokenizer; the rest are spelled as bytes."""


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """The model's shape: a preset, and what is different from it."""

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
    """Positions that sliding and hybrid attention see, including the current one."""
    positions: Literal["rotary", "sinusoidal", "learned", "none"] | None = None
    """Position encoding."""
    norm: Literal["rmsnorm", "layernorm"] | None = None
    """Normalisation."""
    mlp: Literal["swiglu", "gelu"] | None = None
    """MLP."""
    tie_embeddings: bool | None = None
    """Share the embedding with the output projection."""
    max_positions: int | None = None
    """Longest text that the model is made for, in tokens; the training context when not given."""

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
    """Everything that decides what `yeoul.pretrain` makes of a text.

    `PretrainConfig.of(preset="3m", tokens=1_000_000)` takes settings by the names of the flags.
    """

    text: Annotated[TextOptions, Parameter(name="*")] = field(default_factory=TextOptions)
    """The text."""
    val_tokens: int = 200_000
    """Score at most this many tokens in one validation."""
    isolate_documents: bool = False
    """Pack documents so that none sees another; otherwise they follow one another in a row."""
    init: Place | None = None
    """Model to start from, with its tokenizer and its shape: a folder, a run, or an id on the hub; a new one is made
    when not given. A model that is trained already usually wants a lower --lr, such as 1e-4."""
    vocabulary: Annotated[TokenizerOptions, Parameter(name="*")] = field(default_factory=TokenizerOptions)
    """The tokenizer."""
    shape: Annotated[ShapeOptions, Parameter(name="*")] = field(default_factory=ShapeOptions)
    """The model."""
    train: Annotated[TrainConfig, Parameter(name="*")] = field(default_factory=TrainConfig)
    """How it is trained."""
