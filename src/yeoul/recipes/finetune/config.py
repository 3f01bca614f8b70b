"""Settings of `yeoul.finetune`, and the tasks that there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from yeoul.config import Settings
from yeoul.errors import UserError
from yeoul.recipes.finetune.adapter import LoraOptions
from yeoul.recipes.finetune.chat import ChatOptions, ChatTask
from yeoul.recipes.finetune.classify import ClassifyOptions, ClassifyTask
from yeoul.recipes.finetune.data import ExampleOptions
from yeoul.recipes.finetune.dpo import DpoOptions, DpoTask
from yeoul.recipes.finetune.embed import EmbedOptions, EmbedTask
from yeoul.recipes.finetune.task import Task, TaskSetup
from yeoul.recipes.finetune.texts import WholeTextOptions
from yeoul.recipes.finetune.training import FinetuneTraining
from yeoul.recipes.options import Say, changed, silent

TaskName = Literal["chat", "classify", "embed", "dpo"]
Method = Literal["full", "lora", "qlora"]

TASKS: dict[str, tuple[type[Task], tuple[str, ...]]] = {
    "chat": (ChatTask, ("chat",)),
    "classify": (ClassifyTask, ("texts", "classify")),
    "embed": (EmbedTask, ("texts", "embed")),
    "dpo": (DpoTask, ("dpo",)),
}
"""Of each task its class, and the groups of `FinetuneConfig` that it is made with."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """Everything that decides what `yeoul.finetune` makes of a model and data.

    `FinetuneConfig.of(task="classify", method="lora", epochs=2)` takes settings by the names of the flags.

    Raises:
        UserError: settings that do not go together.
    """

    task: TaskName = "chat"
    """What is learned: chat (conversations, instructions, text), classify, embed, or dpo (preferences)."""
    method: Method = "full"
    """full trains all weights, lora an adapter, qlora an adapter on weights of 4 or 8 bits."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights that --method full saves; auto keeps that of the model's files."""
    examples: Annotated[ExampleOptions, Parameter(name="*")] = field(default_factory=ExampleOptions)
    """The data."""
    chat: Annotated[ChatOptions, Parameter(name="*")] = field(default_factory=ChatOptions)
    """Of --task chat."""
    texts: Annotated[WholeTextOptions, Parameter(name="*")] = field(default_factory=WholeTextOptions)
    """Of --task classify and embed."""
    classify: Annotated[ClassifyOptions, Parameter(name="*")] = field(default_factory=ClassifyOptions)
    """Of --task classify."""
    embed: Annotated[EmbedOptions, Parameter(name="*")] = field(default_factory=EmbedOptions)
    """Of --task embed."""
    dpo: Annotated[DpoOptions, Parameter(name="*")] = field(default_factory=DpoOptions)
    """Of --task dpo."""
    lora: Annotated[LoraOptions, Parameter(name="*")] = field(default_factory=LoraOptions)
    """Of --method lora and qlora."""
    train: Annotated[FinetuneTraining, Parameter(name="*")] = field(default_factory=FinetuneTraining)
    """How it is trained."""

    def __post_init__(self) -> None:
        for group in dict.fromkeys(group for _, groups in TASKS.values() for group in groups):
            users = [name for name, (_, groups) in TASKS.items() if group in groups]
            if self.task not in users and (others := changed(getattr(self, group))):
                raise UserError(f"--task {self.task} does not use this flag", others[0], f"add --task {users[0]}")
        if self.chat.question_column and self.examples.text_column:
            raise UserError("plain text has no question and no answer", "--text-column", "leave it out")
        given = changed(self.lora)
        quantized = {"--bits", "--group-size"} & set(given)
        if self.method == "full" and given:
            wanted = "qlora" if quantized else "lora"
            raise UserError("--method full trains all weights and has no adapter", given[0], f"add --method {wanted}")
        if self.method == "lora" and quantized:
            raise UserError("--method lora keeps the weights as they are", min(quantized), "add --method qlora")

    @property
    def adapter(self) -> LoraOptions | None:
        """What is trained of the model; None for all of its weights."""
        return None if self.method == "full" else self.lora

    def make_task(self, data: str, say: Say = silent) -> Task:
        """The task, with what it uses of these settings.

        Args:
            data: what is learned from: a file, a folder or a Hub dataset; several with commas.
            say: is told what takes time.

        Raises:
            UserError: settings that this task does not have.
        """
        kind, groups = TASKS[self.task]
        setup = TaskSetup(data=data, examples=self.examples, training=self.train, adapter=self.adapter, say=say)
        return kind(setup, *(getattr(self, group) for group in groups))
