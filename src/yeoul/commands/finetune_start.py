"""What a fine-tuning starts from: a model, or an adapter that is trained further."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.commands.finetune_flags import changed
from yeoul.errors import UserError

if TYPE_CHECKING:
    from yeoul.commands.finetune import Config


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where everything lies before a run.

    Attributes:
        model: folder of the model.
        adapter: folder of the adapter on it that goes on learning; None for a new one, or none.
        name: what a new adapter calls its model: the hub's id, or the folder from anywhere on this machine.
    """

    model: Path
    adapter: Path | None
    name: str


def start_of(config: Config) -> Start:
    """What the flags name as the model.

    Raises:
        UserError: there is no such folder; it is an adapter, and the run cannot go on with one.
    """
    from yeoul.adapt.lora.peft_files import adapter_folder, base_folder
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import model_folder

    folder = local_folder(config.model)
    adapter = adapter_folder(folder)
    if adapter is None:
        model = model_folder(folder)
        name = str(model.resolve()) if Path(config.model).expanduser().is_dir() else config.model
        return Start(model=model, adapter=None, name=name)
    merge = f"merge it first (yeoul export {shlex.quote(config.model)} --format hf --out FOLDER) and give FOLDER"
    if config.method == "full":
        further = "; --method lora trains it further" if config.task in ("chat", "dpo") else ""
        raise UserError("this is an adapter, not a model", config.model, merge + further)
    if config.task not in ("chat", "dpo"):
        raise UserError(f"--task {config.task} cannot train an adapter further", config.model, merge)
    if given := [flag for flag in changed(config.lora) if flag not in ("--bits", "--group-size")]:
        raise UserError("an adapter that is trained further keeps its settings", given[0], "leave this flag out")
    return Start(model=model_folder(base_folder(adapter)), adapter=adapter, name=config.model)
