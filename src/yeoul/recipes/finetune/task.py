"""What every task of a fine-tuning has: its data, its loss, its validation, and how its result is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from yeoul.errors import UserError
from yeoul.recipes.options import Say
from yeoul.train.criterion import BY_LOSS, Criterion

if TYPE_CHECKING:
    import torch
    from torch import nn

    from yeoul.evaluate.classification import ClassificationScores
    from yeoul.infer.texts import TextClassifier, TextEmbedder
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.finetune.adapter import LoraOptions
    from yeoul.recipes.finetune.data import ExampleOptions
    from yeoul.recipes.finetune.training import FinetuneTraining
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loop import Loader
    from yeoul.train.loss import Objective

Validate = Callable[[], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TaskSetup:
    """What every task is made with, beside its own settings.

    Attributes:
        data: what is learned from, as `finetune` is given it.
        examples: how it is read.
        training: how it is trained.
        adapter: what is trained of the model; None for all of its weights.
        say: is told what takes time.
    """

    data: str
    examples: ExampleOptions
    training: FinetuneTraining
    adapter: LoraOptions | None
    say: Say


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to, in the words of its task.

    Attributes:
        lines: for people.
        scores: of a classifier, on the texts held out; None elsewhere, and where nothing was.
    """

    lines: tuple[str, ...] = ()
    scores: ClassificationScores | None = None


class Task(ABC):
    """One kind of fine-tuning. Its methods are called in the order in which they stand here.

    A task is registered in `yeoul.recipes.finetune.config.TASKS` with the groups of settings that it is made with.

    Attributes:
        training: how it is trained; `micro_batch` in it becomes what fits into memory.
        model, tokenizer: what is trained, and the tokenizer that is saved with it; known after `prepare`.
        context: tokens of the longest row that is trained on; known after `prepare`.
        epoch_batches: batches of one pass over the data; known after `prepare`.
        extra: what is trained beside the model and saved with it, such as a head; None for nothing. On the model's
            device after `prepare`.
        tokens: ids of special tokens whose embeddings are trained with an adapter; known after `prepare`.
        learned: what is trained, in words, where that is neither all of the weights nor an adapter.
        rate: the peak learning rate where none is given; None takes that of `FinetuneTraining`.
        head_rate: the peak learning rate of `extra` that is asked for; None where nothing is.
        criterion: by which validation the kept state is chosen.
        guess: validation loss of guessing, of a task whose `extra` knows nothing at first: then the state before the
            training is no result. None elsewhere, and without validation.
    """

    name: ClassVar[str]
    """What --task calls it."""
    continues: ClassVar[bool] = False
    """Whether an adapter can be trained further with this task."""

    # What the memory depends on.
    loss: str = "cross-entropy"
    """As `yeoul.train.memory.Work` has it."""
    packed: bool = False
    """Whether rows are packed, or padded under a mask."""
    ways: int = 1
    """Rows of an example."""
    splits: bool = True
    """Whether the loss of a batch is the sum over its examples."""

    model: Decoder
    tokenizer: Tokenizer
    context: int = 0
    epoch_batches: int = 0
    extra: nn.Module | None = None
    tokens: tuple[int, ...] = ()
    learned: str | None = None
    rate: float | None = None
    head_rate: float | None = None
    criterion: Criterion = BY_LOSS
    guess: float | None = None

    def __init__(self, setup: TaskSetup) -> None:
        self.data, self.examples, self.training = setup.data, setup.examples, setup.training
        self.adapter, self.say = setup.adapter, setup.say

    @abstractmethod
    def check_data(self) -> None:
        """Reads the data once, before a model is loaded, which takes its time.

        Raises:
            UserError: it cannot be used, whatever the model.
        """

    @abstractmethod
    def prepare(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Reads the data and makes what is trained beside the model; nothing of the run is written before.

        Args:
            model: on its device, without adapters; those of `--method lora` come into this same object later.
            tokenizer: the model's.

        Raises:
            UserError: the data, or the model, cannot be used for this.
        """

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """JSON values that a resumed run must have in common with its beginning, beside flags, model and tokenizer."""

    def extra_rate(self, rate: float) -> float | None:
        """Peak learning rate of `extra` where none is asked for and the model's is `rate`; None takes the same."""
        return None

    @abstractmethod
    def introduce(self) -> list[str]:
        """Lines for people before the training: sizes, and the first example with its trained tokens marked."""

    @abstractmethod
    def validate(self) -> Validate | None:
        """What gives the values of the held-out data, "loss" among them; None where nothing is held out."""

    @abstractmethod
    def loader(self) -> Loader:
        """A new one, at its beginning."""

    @abstractmethod
    def objective(self) -> Objective:
        """The loss of a micro-batch, given the model of `prepare` (with its adapters)."""

    @abstractmethod
    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """The whole model with all that belongs to it, as a folder, weights in `dtype`; for `--method full`."""

    @abstractmethod
    def save_beside(self, folder: Path) -> None:
        """What belongs to an adapter beside its two files: tokenizer, template, head; for `--method lora|qlora`."""

    @property
    @abstractmethod
    def verb(self) -> str:
        """The command that uses the result; known after `prepare`."""

    def classifier(self) -> TextClassifier | None:
        """The trained classifier, of a task that makes one."""
        return None

    def embedder(self) -> TextEmbedder | None:
        """What makes vectors of texts, of a task that trains it."""
        return None

    @abstractmethod
    def outcome(self, before: dict[str, float], after: dict[str, float]) -> Outcome:
        """What the training came to.

        Args:
            before: what `validate` gave before the training, empty without one.
            after: what it gives now.
        """


class GeneratingTask(Task):
    """Of tasks whose result writes text: what they leave is a model, or an adapter, and its tokenizer."""

    continues = True

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Model, tokenizer and template."""
        from yeoul.recipes.saving import merged_model, save_folder

        save_folder(merged_model(self.model, dtype), self.tokenizer, folder)

    def save_beside(self, folder: Path) -> None:
        """Tokenizer and template."""
        self.tokenizer.save(folder)


def refuse_train_tokens(setup: TaskSetup, task: str, fix: str) -> None:
    """UserError where the embeddings of tokens are to be trained."""
    if setup.adapter is not None and setup.adapter.train_tokens:
        raise UserError(f"--task {task} cannot train embeddings of tokens", "--train-tokens", fix)
