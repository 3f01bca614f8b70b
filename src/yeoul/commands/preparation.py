"""What a training run stands on: its tokenizer, its tokens, and the record of what decides its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.files import RUN_LOCK, delete, remove, write_json
from yeoul.safe_json import read_object
from yeoul.train.config import CHANGEABLE, FITTED

if TYPE_CHECKING:
    from yeoul.commands.finetune import Config as FinetuneConfig
    from yeoul.commands.linearize import Config as LinearizeConfig
    from yeoul.commands.pretrain import Config
    from yeoul.data.shards import TokenShards
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.train.loop import TrainResult

LENGTHS = {"tokens", "epochs"}
"""Flags by which a finished run is lengthened."""

BEFORE = "before.json"
"""In the run's folder: validation of the model that it starts from."""


def preparation_of(config: Config) -> dict[str, Any]:
    """What decides the losses of a run, by flag; a run goes on only while all of it is the same.

    Raises:
        UserError: data or tokenizer are not there.
    """
    from yeoul.commands.pretrain_init import init_tokenizer
    from yeoul.config import flat_values
    from yeoul.data.sources import source_key
    from yeoul.text.tokenizer import Tokenizer

    free = CHANGEABLE | FITTED | {"out", "resume", "overwrite", "device", "val_tokens", "record_mib", "dry_run"}
    values = {key: value for key, value in flat_values(config).items() if key not in free}
    # What the paths hold counts, not how they are written.
    for name, spec in (("data", config.data), ("val_data", config.val_data)):
        if spec is not None:
            values[name] = source_key(
                spec, text_column=config.text_column, join_by=config.join_by, reading=config.reading
            )
    values["init"] = config.init is not None  # its weights are compared by their digest
    if config.init is not None:
        values["tokenizer"] = init_tokenizer(config).fingerprint
    if config.tokenizer is not None:
        values["tokenizer"] = Tokenizer.load(config.tokenizer).fingerprint
    return values


def check_run(config: Config | FinetuneConfig, preparation: dict[str, Any]) -> None:
    """Refuse a run in --out that must not go on or was made of something else; writes nothing."""
    from yeoul.train.runstate import Checkpoints, standing

    out = config.out
    if config.overwrite or not Checkpoints(out / "checkpoints", 1).steps():
        return
    if not config.resume:
        fix = "continue it (--resume), discard it (--overwrite) or choose another --out"
        raise UserError("there is already a run", where=out, fix=fix)
    before = _read_record(out / "prepared.json")
    changed = sorted(k for k in before.keys() & preparation.keys() if before[k] != preparation[k])
    longer = [key for key in LENGTHS & set(changed) if preparation[key] > before[key]]
    stands = standing(out)
    if longer and changed == longer:
        if stands is not None and stands.finished:
            return
        same = " ".join(f"--{key} {before[key]}" for key in longer)
        fix = f"finish it first ({same}), then lengthen it; or choose another --out"
        raise UserError("only a finished run can be lengthened", where=out, fix=fix)
    if changed:
        names = ", ".join("--" + name.replace("_", "-") for name in changed)
        fix = "give the same values, discard the run (--overwrite) or choose another --out"
        raise UserError(f"the run was started with different values of {names}", where=out, fix=fix)


def begin(config: Config | FinetuneConfig, preparation: dict[str, Any], record: str) -> None:
    """Note in the run's folder what it is made of; forget an earlier run there when that is wanted.

    The earlier result stays until the new one takes its place.

    Args:
        record: the file in the run's folder that is written behind the result, see `is_left`.
    """
    from yeoul.config import save_config
    from yeoul.train.runstate import Checkpoints, forget_run

    if config.overwrite or not Checkpoints(config.out / "checkpoints", 1).steps():
        remove(config.out / record)  # first: it says of which run the result is
        remove(config.out / BEFORE)
    if config.overwrite:
        forget_run(config.out)
    write_json(config.out / "prepared.json", preparation)
    # Never saved as true: the file given back as --config must not throw the run away.
    save_config(replace(config, overwrite=False), config.out / "config.yaml")


def is_left(out: Path, record: str, result: TrainResult) -> bool:
    """Whether the result of a finished run lies in its folder already, and is not that of an earlier run."""
    return result.resumed_from == result.step and _read_record(out / record).get("steps") == result.step


def validated_before(out: Path, model: Decoder, validate: Callable[[], dict[str, float]] | None) -> dict[str, float]:
    """Validation of the model as it came, done once a run and kept in OUT/before.json."""
    import torch

    from yeoul.train.runstate import Checkpoints

    path = out / BEFORE
    if Checkpoints(out / "checkpoints", 1).steps() and path.is_file():
        with suppress(UserError):
            return read_object(path, finite=False)
    if validate is None:
        return {}
    model.eval()
    with torch.no_grad():
        values = validate()
    write_json(path, values)
    listed = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items())
    print(f"Validation before: {listed}.", flush=True)
    return values


@contextmanager
def removed_on_user_error(out: Path) -> Iterator[None]:
    """Leave no half-made folder behind when the data or the tokenizer turn out to be unusable."""
    is_new = not made_in(out)
    try:
        yield
    except UserError:
        if is_new:
            for entry in made_in(out):
                delete(entry)
        raise


def made_in(out: Path) -> list[Path]:
    """What lies in a run's folder, beside the lock of the run itself."""
    return [entry for entry in out.iterdir() if entry.name != RUN_LOCK] if out.is_dir() else []


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, finite=False)
    except UserError:
        return {}  # lost: the tokenizer's and the shards' own fingerprints still guard the run


def tokenizer_of(config: Config, preparation: dict[str, Any]) -> Tokenizer:
    """The tokenizer named, the one trained for this run before, or a new one trained on the data."""
    from yeoul.commands.pretrain_init import init_tokenizer
    from yeoul.data.records import read_documents
    from yeoul.files import replace_folder
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    if config.init is not None:
        return init_tokenizer(config)
    if config.tokenizer is not None:
        return Tokenizer.load(config.tokenizer)
    folder = config.out / "tokenizer"
    origin = {key: preparation[key] for key in ("data", "vocab_size", "model_type", "character_coverage")}
    if _read_record(folder / "made_from.json") == origin and Tokenizer.exists(folder):
        return Tokenizer.load(folder)
    wanted = TokenizerConfig(
        vocab_size=config.vocab_size,
        model_type=config.model_type,
        character_coverage=config.character_coverage,
    )
    print(f"Training a tokenizer of {config.vocab_size:,} pieces ...", flush=True)
    texts = read_documents(config.data, text_column=config.text_column, join_by=config.join_by, reading=config.reading)

    def write(target: Path) -> None:
        train_tokenizer(texts, wanted, target)
        write_json(target / "made_from.json", origin)

    replace_folder(folder, write)
    return Tokenizer.load(folder)


def shards_of(config: Config | LinearizeConfig, tokenizer: Tokenizer) -> tuple[TokenShards, TokenShards | None]:
    """Training and validation tokens, from OUT/data when they are there already."""
    from yeoul.commands.corpus import token_shards

    columns: dict[str, Any] = {"text_column": config.text_column, "join_by": config.join_by, "reading": config.reading}
    if config.val_data is None:
        return token_shards(config.data, config.out / "data", tokenizer, **columns, val_fraction=config.val_fraction)
    train, _ = token_shards(config.data, config.out / "data", tokenizer, **columns)
    val, _ = token_shards(config.val_data, config.out / "val_data", tokenizer, **columns)
    return train, val
