"""What the tasks classify and embed have in common: whole texts as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from yeoul.errors import UserError
from yeoul.files import write_json
from yeoul.recipes.finetune.data import check_share, chosen_context
from yeoul.recipes.finetune.task import Task, TaskSetup, refuse_train_tokens
from yeoul.safe_json import read_object
from yeoul.units import count

if TYPE_CHECKING:
    import numpy as np
    import torch

    from yeoul.data.text_batches import Item, TextLoader
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

LONGEST = 512
"""Tokens of a text when no context is given and the model reads more."""


@dataclass(frozen=True, kw_only=True)
class WholeTextOptions:
    """Of --task classify and embed."""

    pooling: Literal["last", "mean"] | None = None
    """Pooling over tokens: the last one (classify, when not given) or the mean of all (embed). For classifiers,
    transformers supports only the last token."""
    word_dropout: float = 0.0
    """Drop each token with this probability in training."""
    piece_length: int | None = None
    """Limit tokens to this many characters, the space included; the saved tokenizer keeps the limit. No limit when not
    given."""
    head_lr: float | None = None
    """Peak learning rate of what is trained on top of the model: the classification head, or the layer of --whiten; the
    same as the model's when not given."""

    def __post_init__(self) -> None:
        check_share(self.word_dropout, "--word-dropout")
        if self.head_lr is not None and not 0 < self.head_lr < 100:
            raise UserError(f"--head-lr is {self.head_lr}, but must be above 0", fix="give a number such as 1e-3")
        if self.piece_length is not None and self.piece_length < 1:
            raise UserError(f"--piece-length is {self.piece_length}, but must be at least 1")


class TextTask(Task):
    """The common part of tasks over whole texts; `prepare` of theirs calls `set_items`.

    Attributes:
        bucket_by_length: texts of a batch are of similar length, as `TextLoader` means it; set before `set_items`.
    """

    bucket_by_length = True

    def __init__(self, setup: TaskSetup, texts: WholeTextOptions) -> None:
        refuse_train_tokens(setup, self.name, "leave it out")
        super().__init__(setup)
        self.whole_texts, self.head_rate = texts, texts.head_lr
        self.items: list[Item] = []
        self.val: list[Item] = []
        self.targets: np.ndarray | None = None
        self.val_targets: np.ndarray | None = None
        self.cut = 0

    def set_items(self, model: Decoder, tokenizer: Tokenizer, train: Sequence[Sequence[str]],
                  val: Sequence[Sequence[str]]) -> None:  # fmt: skip
        """Tokens of the examples, each one or several texts, within the context."""
        from yeoul.infer.texts import padding_id

        longest_piece = self.whole_texts.piece_length
        tokenizer = tokenizer if longest_piece is None else tokenizer.with_short_pieces(longest_piece)
        self.model, self.tokenizer = model, tokenizer
        self.pad_id = padding_id(tokenizer, model.config)
        limit = self._limit(model.config)
        self.items, self.cut = self._encoded(train, limit)
        self.val = self._encoded(val, limit)[0] if val else []
        longest = max(len(text) for item in self.items for text in item)
        self.context = self.training.context or max(2, longest)
        self.epoch_batches = self.loader().epoch_batches

    def _limit(self, model: ModelConfig) -> int:
        longest = min(model.max_position_embeddings, LONGEST)
        return chosen_context(self.training.context, model, longest)

    def _encoded(self, examples: Sequence[Sequence[str]], limit: int) -> tuple[list[Item], int]:
        import numpy as np

        from yeoul.infer.texts import encode_texts

        plain = [text for texts in examples for text in texts]
        rows, cut = encode_texts(self.tokenizer, plain, limit, unread=self.unread)
        arrays = iter([np.asarray(row, dtype=np.int32) for row in rows])
        return [tuple(next(arrays) for _ in texts) for texts in examples], cut

    def loader(self) -> TextLoader:
        """From the beginning of the first epoch."""
        from yeoul.data.text_batches import TextLoader

        train = self.training
        return TextLoader(
            self.items, self.targets, batch_size=train.batch_size, seed=train.seed, pad_id=self.pad_id,
            drop=self.whole_texts.word_dropout, bucket_by_length=self.bucket_by_length, ends=self._ends,
        )  # fmt: skip

    @property
    def unread(self) -> int | None:
        """With which token no text ends; see `encode_texts`."""
        return None

    @property
    def _ends(self) -> tuple[int, int]:
        """How many tokens of a text stand before and behind what it says."""
        framing = self.tokenizer.framing
        return len(framing.begin), len(framing.end)

    def identity(self) -> dict[str, object]:
        """What the flags do not say: the tokens and targets themselves."""
        from yeoul.data.text_batches import digest

        return {"texts": digest(self.items, self.targets), "validation": digest(self.val, self.val_targets)}

    def compute_dtype(self) -> torch.dtype:
        """In which validation multiplies."""
        from yeoul import runtime

        return runtime.resolve_dtype(self.training.dtype, self.model.device)

    def data_lines(self, what: str, skipped: int, complaint: str) -> list[str]:
        """Sizes, and what was left out or cut."""
        tokens = sum(len(text) for item in self.items for text in item)
        held_out = f"{len(self.val):,} for validation" if self.val else "none for validation"
        lines = [f"Data: {what}, {held_out}; {tokens:,} tokens."]
        if skipped:
            lines.append(f"Left out: {count(skipped, 'unusable record')}. The first: {complaint}")
        if self.cut:
            lines.append(f"Truncated to {self.context:,} tokens: {count(self.cut, 'text')}.")
        framing, spelled = self.tokenizer.framing, self.tokenizer.spelled
        around = [("begins", framing.begin), ("ends", framing.end)]
        if shown := [f"{verb} with {spelled(ids)}" for verb, ids in around if ids]:
            lines.append(f"Each text {' and '.join(shown)}.")
        return lines


def save_tokenizer(tokenizer: Tokenizer, folder: Path, pad_id: int) -> None:
    """The tokenizer's files; where it names no token for padding, they do so now, which transformers needs."""
    tokenizer.save(folder)
    file = folder / "tokenizer_config.json"
    if tokenizer.pad_id == pad_id or not file.is_file():
        return
    values = read_object(file)
    values["pad_token"] = tokenizer.piece(pad_id)
    write_json(file, values, indent=2)
