"""From what a user calls a model to a folder on this machine: a path, or an id on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from yeoul.errors import UserError
from yeoul.files import disk_full
from yeoul.gguf_header import gguf_file

MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "README.md")
"""What is downloaded: never pickles, never code."""
OTHER_FILES = ("[!0-9]*/*.safetensors", "[!0-9]*/*.json", "[!0-9]*/*.model", "consolidated*.safetensors")
"""What is not, although its name fits: other forms of the same weights. Folders with a number in front are modules of
sentence-transformers, such as 1_Pooling."""
PICKLED_WEIGHTS = ("pytorch_model*.bin",)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def local_folder(name: str | Path, *, pickles: bool = False) -> Path:
    """The local folder of a model: `name` itself when it is a folder or a GGUF file, else a download of the hub id.

    Args:
        name: a path, "org/name", or "org/name@revision" with a branch, tag or commit. What was downloaded before is
            not downloaded again, and is enough without a connection or with HF_HUB_OFFLINE.
        pickles: download pickled weights too; nothing here opens them.

    Raises:
        UserError: no such folder, a file instead of a folder; no such model or revision on the hub, one whose terms
            nobody accepted, one without safetensors; no connection, no room.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        if path.is_file() and (file := gguf_file(path)) is not None:
            if not file.is_file():
                raise UserError(f"the first part of the model is missing: {file.name}", path, "put all parts together")
            return file
        fix = "give the folder that holds config.json, or a .gguf file"
        raise UserError("the model is a file, not a folder", path, fix)
    if not _may_be_hub_id(name):
        raise UserError("there is no such model folder", path, "check the path")
    return _download(str(name), pickles)


def _may_be_hub_id(name: str | Path) -> bool:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?", name, re.ASCII):
        return False
    # "runs/demo" is a misspelled path when runs/ exists here.
    return not Path(name.partition("/")[0]).exists()


def _download(name: str, pickles: bool) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    repository, _, revision = name.partition("@")
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=[*MODEL_FILES, *(PICKLED_WEIGHTS if pickles else ())],
                ignore_patterns=list(OTHER_FILES),
            )
        )
    except errors.GatedRepoError:
        fix = f"accept them at {constants.ENDPOINT}/{repository}, then run `hf auth login`"
        raise UserError("the model's owner requires you to accept its terms first", repository, fix) from None
    except errors.RevisionNotFoundError:
        fix = "give a branch, a tag or a full commit hash"
        raise UserError(f"the model has no revision {revision or 'main'!r}", repository, fix) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        fix = "check the name; a private model needs `hf auth login`"
        raise UserError("there is neither a folder nor a model on the hub with this name", name, fix) from None
    except Exception as error:
        raise _explained(error, name) from None
    if not pickles:
        _check_weights(folder, repository, revision or None)
    return folder


def _explained(error: Exception, name: str) -> Exception:
    """The sentence for what the network and the disk did; the error itself when it is neither."""
    from huggingface_hub import constants, errors

    if disk_full(error):
        fix = "free some space, or set HF_HOME to a folder with more room, and run the same command again"
        return UserError(f"there is not enough disk space for the model in {constants.HF_HUB_CACHE}", name, fix)
    if isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        fix = "unset HF_HUB_OFFLINE, or give a folder"
        return UserError("the model is not complete in the cache, and HF_HUB_OFFLINE forbids downloading it", name, fix)
    if not _is_unreachable(error):
        return error
    answer = getattr(error.__cause__, "response", None)
    if answer is not None:
        fix = "try again later; a private model needs `hf auth login`"
        return UserError(f"the hub answered with error {answer.status_code}", name, fix)
    fix = "check the path or the network"
    return UserError("there is no such folder, and the hub cannot be reached", name, fix)


def _is_unreachable(error: Exception) -> bool:
    """Whether the network failed, and nothing of ours."""
    remote = isinstance(error, OSError) and error.errno is None
    return remote or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore2")


def _check_weights(folder: Path, repository: str, revision: str | None) -> None:
    """Say what the hub has instead of safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:  # without a connection it is unknown what else there is
        if not _is_unreachable(error):
            raise
        names = []
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        what = f"the repository has no safetensors, only pickles, which can run code when read, such as {pickles[0]}"
        fix = f"if you trust its author: yeoul export {repository} --format hf --unsafe-pickle --out FOLDER"
        raise UserError(what, repository, fix)
    if files := [name for name in names if name.endswith(".gguf")]:
        fix = f"download one of them and give it: hf download {repository} {files[0]} --local-dir FOLDER"
        raise UserError("the repository has no safetensors, but GGUF files", repository, fix)
    if names and not any(name.endswith(".safetensors") for name in names):
        raise UserError("the repository has no safetensors", repository, "choose a repository with weights")
