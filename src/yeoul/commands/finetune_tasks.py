"""What `yeoul finetune` asks of each `--task`, and which module has it."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import shlex
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from yeoul.errors import UserError
from yeoul.units import count

if TYPE_CHECKING:
    import torch
    from torch import nn

    from yeoul.commands.finetune import Config
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loop import Loader
    from yeoul.train.loss import Objective

TASKS = {
    "chat": "yeoul.commands.finetune_chat",
    "classify": "yeoul.commands.finetune_classify",
    "embed": "yeoul.commands.finetune_embed",
    "dpo": "yeoul.commands.finetune_dpo",
}
"""Name of a task -> its module, which has `make(config) -> Task`."""

SHOWN = 60
"""Tokens of the first example that are printed."""

T = TypeVar("T")
Validate = Callable[[], dict[str, float]]


class Task(Protocol):
    """One kind of fine-tuning, called in the order in which its members stand here.

    Attributes:
        extra: what is trained beside the model and saved with it, such as a head; None for nothing. On the model's
            device after `prepare`.
        context: tokens of the longest row that is trained on; known after `prepare`.
        epoch_batches: batches of one pass over the data; known after `prepare`.
        config: the flags, with what was chosen so that the run fits into memory.

    A task may have these, too, known after `prepare`: `tokens`, ids of special tokens whose embeddings are trained with
    an adapter; `rate`, the peak learning rate where none is given; `learned`, what is trained, in words. And for the
    memory that it takes: `loss`, as `yeoul.train.memory.Work` has it; `masked`, whether rows are packed or padded under
    a mask; `ways`, rows of an example; `splits`, whether the loss of a batch is the sum over its examples.
    """

    config: Config
    extra: nn.Module | None
    context: int
    epoch_batches: int

    def check_data(self) -> None:
        """Reads the data once, before a model is loaded, which takes its time.

        Raises:
            UserError: it cannot be used, whatever the model.
        """

    def prepare(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Reads the data and makes what is trained beside the model; nothing of the run is written before.

        Args:
            model: on its device, without adapters; those of `--method lora` come into this same object later.
            tokenizer: the model's.

        Raises:
            UserError: the data, or the model, cannot be used for this.
        """

    def identity(self) -> dict[str, object]:
        """JSON values that a resumed run must have in common with its beginning, beside flags, model and tokenizer."""

    def introduce(self) -> list[str]:
        """Lines for people before the training: sizes, and the first example with its trained tokens marked."""

    def loader(self) -> Loader:
        """A new one, at its beginning."""

    def objective(self) -> Objective:
        """The loss of a micro-batch, given the model of `prepare` (with its adapters)."""

    def validate(self) -> Validate | None:
        """What gives the values of the held-out data, "loss" among them; None where nothing is held out."""

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """The whole model with all that belongs to it, as a folder, weights in `dtype`; for `--method full`."""

    def save_beside(self, folder: Path) -> None:
        """What belongs to an adapter beside its two files: tokenizer, template, head; for `--method lora|qlora`."""

    def finish(self, out: Path, before: dict[str, float], after: dict[str, float]) -> list[str]:
        """Lines for people after the training.

        Args:
            out: the run's folder.
            before: what `validate` gave before the training, empty without one.
            after: what it gives now.
        """


def make_task(config: Config) -> Task:
    """The task that `--task` names."""
    return cast(Task, importlib.import_module(TASKS[config.task]).make(config))


def divide(records: Sequence[T], fraction: float, most: int, key: Callable[[T], Hashable]) -> tuple[list[T], list[T]]:
    """Records to train on, and to validate on, each in their order.

    Which are which depends on the records alone and on no seed of the training. Records of one key stay on one side:
    what is held out has not been seen.

    Args:
        records: all.
        fraction: share of the validation; 0 is none, else it gets at least one key.
        most: largest number of keys for it.
        key: what makes two records equal.

    Raises:
        UserError: nothing would be left to train on.
    """
    keys = [key(record) for record in records]
    distinct = list(dict.fromkeys(keys))
    held_out = min(most, max(1, round(fraction * len(distinct)))) if fraction else 0
    if held_out >= len(distinct):
        what = f"{count(len(distinct), 'example')} cannot be divided between training and validation"
        raise UserError(what, "--val-fraction", "give more, or --val-fraction 0")
    # Sorted by a digest: as good as drawn, and the same after the data has been put into another order.
    chosen = set(
        sorted(distinct, key=lambda k: hashlib.blake2b(repr(k).encode("utf-8", "surrogatepass")).digest())[:held_out]
    )
    train = [record for record, k in zip(records, keys, strict=True) if k not in chosen]
    return train, [record for record, k in zip(records, keys, strict=True) if k in chosen]


class Talking:
    """Of tasks whose result is talked with: what they leave is a model, or an adapter, and its tokenizer."""

    model: Decoder
    tokenizer: Tokenizer

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Model, tokenizer and template."""
        from yeoul.recipes.saving import merged_model, save_folder

        save_folder(merged_model(self.model, dtype), self.tokenizer, folder)

    def save_beside(self, folder: Path) -> None:
        """Tokenizer and template."""
        self.tokenizer.save(folder)


def to_open(config: Config, out: Path) -> str:
    """What `yeoul chat` opens of a run's result: the run, or the model that was given and the adapter made for it."""
    from yeoul.adapt.lora.peft_files import adapter_folder

    name = shlex.quote(str(out))
    if config.method == "full" or adapter_folder(Path(config.model).expanduser()) is not None:
        return name
    return f"{shlex.quote(config.model)} --adapter {shlex.quote(str(out / 'adapter'))}"


def marked(tokenizer: Tokenizer, ids: Sequence[int], trained: Sequence[bool]) -> str:
    """The beginning of an example for people: tokens between bars, those that are not trained in brackets."""
    parts = []
    for is_trained, run in itertools.groupby(
        list(zip(ids, trained, strict=True))[:SHOWN], key=lambda pair: bool(pair[1])
    ):
        text = "│".join(tokenizer.decode([int(token)], skip_special=False) for token, _ in run).replace("\n", "⏎")
        parts.append(text if is_trained else f"[{text}]")
    more = " …" if len(ids) > SHOWN else ""
    return f"First example, tokens separated by bars, untrained ones in brackets:\n  {'│'.join(parts)}{more}"
