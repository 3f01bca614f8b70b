"""What a fine-tuning starts from: a model, or an adapter that is trained further."""

from __future__ import annotations

import shlex
from pathlib import Path

from yeoul.errors import UserError
from yeoul.recipes.finetune.adapter import LoraOptions
from yeoul.recipes.model_folder import ModelFolder
from yeoul.recipes.options import changed


def open_start(model: str, task: str, continues: bool, adapter: LoraOptions | None) -> ModelFolder:
    """The folder that is named as the model.

    Args:
        model: a folder, a run's folder, or an id on the hub.
        task: its name.
        continues: whether an adapter can be trained further with the task.
        adapter: what is trained of the model; None for all of its weights.

    Raises:
        UserError: there is no such folder; it is an adapter, and the run cannot go on with one.
    """
    if adapter is None:
        return ModelFolder.open_whole(model, otherwise="--method lora trains it further" if continues else "")
    found = ModelFolder.open(model)
    if found.adapter is None:
        return found
    if not continues:
        merge = f"merge it first (yeoul export {shlex.quote(model)} --format hf --out FOLDER) and give FOLDER"
        raise UserError(f"--task {task} cannot train an adapter further", model, merge)
    if given := [flag for flag in changed(adapter) if flag not in ("--bits", "--group-size")]:
        raise UserError("an adapter that is trained further keeps its settings", given[0], "leave this flag out")
    return found


def check_out(out: Path, start: ModelFolder, goes_on: bool) -> None:
    """Refuse a folder that holds the model itself, or models and adapters that no run there has made.

    Args:
        out: of the run.
        start: the model.
        goes_on: a run there is continued or discarded.

    Raises:
        UserError: another folder is needed.
    """
    resolved = out.resolve()
    for what, folder in (("model", start.path), ("adapter", start.adapter)):
        if folder is not None and (resolved == folder.resolve() or resolved in folder.resolve().parents):
            raise UserError(f"the {what} itself is in this folder", f"--out {out}", "choose another --out")
    if goes_on:
        return
    for name in ("config.json", "adapter_config.json", "model", "adapter"):
        if (out / name).exists():
            what = "an adapter" if "adapter" in name else "a model"
            fix = "choose another --out, or discard it (--overwrite)"
            raise UserError(f"there is already {what} in this folder", out / name, fix)
