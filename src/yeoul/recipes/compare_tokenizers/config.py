"""Settings of `yeoul.compare_tokenizers`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from yeoul.config import Place, Settings
from yeoul.errors import UserError
from yeoul.recipes.tokenizer import DocumentOptions
from yeoul.train.config import DTypeName, TrainConfig

if TYPE_CHECKING:
    from yeoul.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class CompareTokenizersConfig(Settings):
    """On how much text tokenizers are compared, and which small model is trained with each."""

    text: Annotated[DocumentOptions, Parameter(name="*")] = field(default_factory=DocumentOptions)
    """How the text is read."""
    val_data: Place | None = None
    """Text that is held out; by default, every tenth document of --data until there are --val-bytes."""
    val_bytes: int = 200_000
    """UTF-8 bytes of held-out text: everything is counted and scored on it."""
    train_bytes: int = 1_000_000
    """UTF-8 bytes of text that the small model reads, once, with each tokenizer; 0 trains none."""
    segment_bytes: int = 512
    """Bytes of one sequence, the same text for each tokenizer, however many tokens it is."""
    batch_size: int = 4
    """Sequences of one step."""
    preset: str = "1m"
    """The small model, by the name of a preset of `yeoul pretrain`; its vocabulary is the tokenizer's."""
    hidden_size: int | None = None
    """Hidden size of the small model, instead of the preset's."""
    layers: int | None = None
    """Its number of layers, instead of the preset's."""
    lr: float = 2e-3
    """Peak learning rate."""
    most_rows: int = 32_768
    """Of a larger vocabulary, the small model gets only the tokens that occur in the text."""
    serve: str = "125m"
    """Model by which the cost of serving is computed: a preset."""
    seed: int = 0
    """Seed of the small model and of the order of sequences."""
    dtype: DTypeName = "auto"
    """Type of the matrix products: auto, float32 or bfloat16."""

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("val-bytes", self.val_bytes, 1), ("train-bytes", self.train_bytes, 0),
            ("segment-bytes", self.segment_bytes, 16), ("batch-size", self.batch_size, 1),
            ("most-rows", self.most_rows, 1),
        ):  # fmt: skip
            if value < least:
                raise UserError(f"--{flag} is {value}, but must be at least {least}")
        self.training(1)

    def training(self, segments: int) -> TrainConfig:
        """How the small model is trained; a "token" of its budget is one sequence."""
        return TrainConfig(
            tokens=segments, context=1, batch_size=self.batch_size, lr=self.lr, warmup=0.05, seed=self.seed,
            dtype=self.dtype, eval_every=0, save_every=200, keep_last=1,
        )  # fmt: skip

    def small_shape(self, vocab_size: int, longest: int) -> ModelConfig:
        """The small model's.

        Args:
            vocab_size: rows of the embedding, which is the output projection too.
            longest: tokens of a sequence.

        Raises:
            UserError: the shape is impossible.
        """
        from yeoul.recipes.pretrain.config import ShapeOptions

        options = ShapeOptions(preset=self.preset, hidden_size=self.hidden_size, layers=self.layers)
        return options.model_config(longest, vocab_size=vocab_size)

    def served_shape(self, vocab_size: int) -> ModelConfig:
        """That of the model by which the cost of serving is computed.

        Raises:
            UserError: there is no such preset.
        """
        from yeoul.model.config import preset

        return preset(self.serve, vocab_size=vocab_size)
