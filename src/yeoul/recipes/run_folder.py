"""The folder of a training run: whether a run there goes on, what decided its losses, and which result is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.files import RUN_LOCK, delete, only_run, remove, write_json
from yeoul.recipes.options import Say
from yeoul.safe_json import read_object

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from yeoul.model.decoder import Decoder
    from yeoul.train.loop import TrainResult

LENGTHS = {"tokens", "epochs"}
"""Settings by which a finished run is lengthened."""
BEFORE = "before.json"
"""In the run's folder: validation of the model that it starts from."""
PREPARED = "prepared.json"
"""In the run's folder: what decides the losses of the run, by flag."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run lies, and what becomes of an earlier one there.

    Attributes:
        out: the folder.
        resume: go on with a run that is there; otherwise there must be none.
        overwrite: discard a run that is there.
    """

    out: Path
    resume: bool = True
    overwrite: bool = False

    def locked(self, dry_run: bool = False) -> AbstractContextManager[object]:
        """Keeps other processes from training there; a dry run needs no lock."""
        return nullcontext() if dry_run else only_run(self.out)

    @property
    def has_checkpoints(self) -> bool:
        """Whether a run has saved anything there."""
        from yeoul.train.progress import saved_steps

        return bool(saved_steps(self.out / "checkpoints"))

    @property
    def goes_on(self) -> bool:
        """Whether the run there is continued."""
        return not self.overwrite and self.has_checkpoints

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuse a run that must not go on or was made of something else; writes nothing.

        Args:
            identity: what decides the losses, by flag.
        """
        from yeoul.train.progress import standing

        out = self.out
        if not self.goes_on:
            return
        if not self.resume:
            fix = "continue it (--resume), discard it (--overwrite) or choose another --out"
            raise UserError("there is already a run", where=out, fix=fix)
        before = read_record(out / PREPARED)
        changed = sorted(k for k in before.keys() & identity.keys() if before[k] != identity[k])
        longer = [key for key in LENGTHS & set(changed) if identity[key] > before[key]]
        stands = standing(out)
        if longer and changed == longer:
            if stands is not None and stands.finished:
                return
            same = " ".join(f"--{key} {before[key]}" for key in longer)
            fix = f"finish it first ({same}), then extend it; or choose another --out"
            raise UserError("only a finished run can be extended", where=out, fix=fix)
        if changed:
            names = ", ".join("--" + name.replace("_", "-") for name in changed)
            fix = "give the same values, discard the run (--overwrite) or choose another --out"
            raise UserError(f"the run was started with different values of {names}", where=out, fix=fix)

    def begin(self, identity: Mapping[str, Any], record: str, settings: Mapping[str, Any]) -> None:
        """Note in the folder what the run is made of; forget an earlier run there when that is wanted.

        The earlier result stays until the new one takes its place.

        Args:
            identity: as in `check`.
            record: the file in the folder that is written behind the result, see `has_result`.
            settings: by flag, for config.yaml.
        """
        from yeoul.config import save_values
        from yeoul.train.runstate import forget_run

        if not self.goes_on:
            remove(self.out / record)  # first: it says of which run the result is
            remove(self.out / BEFORE)
        if self.overwrite:
            forget_run(self.out)
        write_json(self.out / PREPARED, dict(identity))
        save_values(settings, self.out / "config.yaml")

    def has_result(self, record: str, result: TrainResult) -> bool:
        """Whether the result of a finished run lies in the folder already, and is not that of an earlier run."""
        return result.resumed_from == result.step and read_record(self.out / record).get("steps") == result.step

    def validated_before(
        self, model: Decoder, validate: Callable[[], dict[str, float]] | None, say: Say
    ) -> dict[str, float]:
        """Validation of the model as it came, done once a run and kept in OUT/before.json."""
        import torch

        path = self.out / BEFORE
        if self.has_checkpoints and path.is_file():
            with suppress(UserError):
                return read_object(path, finite=False)
        if validate is None:
            return {}
        model.eval()
        with torch.no_grad():
            values = validate()
        write_json(path, values)
        listed = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items())
        say(f"Validation before training: {listed}.")
        return values

    @contextmanager
    def removed_on_user_error(self) -> Iterator[None]:
        """Leave no half-made folder behind when the data or the tokenizer turn out to be unusable."""
        is_new = not made_in(self.out)
        try:
            yield
        except UserError:
            if is_new:
                for entry in made_in(self.out):
                    delete(entry)
            raise


def made_in(out: Path) -> list[Path]:
    """What lies in a run's folder, beside the lock of the run itself."""
    return [entry for entry in out.iterdir() if entry.name != RUN_LOCK] if out.is_dir() else []


def read_record(path: Path) -> dict[str, Any]:
    """A record of a run; empty where it is lost: the tokenizer's and the shards' own fingerprints still guard it."""
    try:
        return read_object(path, finite=False)
    except UserError:
        return {}
