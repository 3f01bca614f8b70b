"""From what a user calls a model to a folder on this machine: a path, or an id on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from yeoul.errors import UserError

MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.jinja")
"""What is downloaded: never pickles, never code."""


def local_folder(name: str | Path) -> Path:
    """The local folder of a model: `name` itself when it is a folder, else a download of the hub id `name`.

    Raises:
        UserError: no such folder, a file instead of a folder, no such model on the hub, no connection.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError("the model is a file, not a folder", path, "give the folder that holds config.json")
    if not _may_be_hub_id(name):
        raise UserError("there is no such model folder", path, "check the path")
    return _download(str(name))


def _may_be_hub_id(name: str | Path) -> bool:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        return False
    # "runs/demo" is a misspelled path when runs/ exists here.
    return not Path(name.partition("/")[0]).exists()


def _download(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except errors.GatedRepoError:
        fix = f"visit https://huggingface.co/{name}"
        raise UserError("the model's owner wants its terms accepted first", name, fix) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError("no folder and no model on the hub has this name", name, "check the name") from None
    except Exception as error:
        if not _is_unreachable(error):
            raise
        fix = "check the path or the network"
        raise UserError("there is no such folder, and the hub cannot be reached", name, fix) from None


def _is_unreachable(error: Exception) -> bool:
    """Whether the network failed, and nothing of ours, such as a full disk (an OSError with a number)."""
    remote = isinstance(error, OSError) and error.errno is None
    return remote or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore2")
