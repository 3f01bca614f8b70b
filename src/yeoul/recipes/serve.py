"""A server's models, opened by their names, and the application over them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.infer.params import SamplingParams
from yeoul.recipes.options import Say, silent
from yeoul.recipes.screen import ScreenOptions
from yeoul.units import count, size

if TYPE_CHECKING:
    from fastapi import FastAPI

    from yeoul.infer.screen import Screen
    from yeoul.model.decoder import Decoder
    from yeoul.serve.served import Models, ServedModel
    from yeoul.serve.states import States
    from yeoul.text.tokenizer import Tokenizer

MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What a server gives and to whom.

    Raises:
        UserError: a value outside its range.
    """

    adapter: Annotated[tuple[Place, ...], Parameter(consume_multiple=False)] = ()
    """LoRA adapter for the first model: a folder, or an id on the hub. It answers under its own name, or NAME of
    NAME=FOLDER; the flag can be repeated."""
    embedder: Annotated[tuple[Place, ...], Parameter(consume_multiple=False)] = ()
    """Model that turns texts into vectors, for /v1/embeddings; the flag can be repeated."""
    max_rows: int = 32
    """Answers of one model that are written at the same time."""
    max_waiting: int = 256
    """Requests to one model that may wait; more are refused with 429."""
    prefill_tokens: int = 512
    """Tokens of prompts that are read between two steps of answers; fewer let answers stall less."""
    snapshot_mb: int = 512
    """Megabytes of states that are kept of each model, so that a conversation that goes on is not read again."""
    state_dir: Path | None = None
    """Folder in which named states are kept, also beyond the end of the server; without it they are in memory."""
    max_tokens: int = 1024
    """New tokens of an answer, where a request does not say how many."""
    api_key: str | None = None
    """Key that requests must bring. Others on this machine can see command lines."""
    api_key_file: Path | None = None
    """File with such keys, one a line."""
    allow_origin: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    """Site whose pages may ask, such as https://example.org, or "*"; the flag can be repeated."""
    max_request_mb: int = 16
    """Megabytes of a request at most."""

    def __post_init__(self) -> None:
        for flag in ("max_rows", "prefill_tokens", "max_tokens", "max_request_mb"):
            if getattr(self, flag) < 1:
                raise UserError(f"--{flag.replace('_', '-')} is {getattr(self, flag)}, but must be at least 1")
        for flag in ("max_waiting", "snapshot_mb"):
            if getattr(self, flag) < 0:
                raise UserError(f"--{flag.replace('_', '-')} is {getattr(self, flag)}, but must be 0 or more")

    def keys(self) -> tuple[str, ...]:
        """The keys of both flags.

        Raises:
            UserError: the file cannot be read, or has none.
        """
        from yeoul.plain_text import decode_marked
        from yeoul.serve.guard import keys_in

        found = () if self.api_key is None else (self.api_key,)
        if self.api_key_file is None:
            return found
        where = f"--api-key-file {self.api_key_file}"
        try:
            in_file = keys_in(decode_marked(self.api_key_file.read_bytes()).splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the keys cannot be read ({getattr(error, 'strerror', 'no UTF-8')})", where) from None
        if not in_file:
            raise UserError("there is no key in the file", where)
        return found + in_file


def server_app(
    models: Sequence[str | Path],
    config: ServeConfig | None = None,
    *,
    sampling: SamplingParams | None = None,
    safety: ScreenOptions | None = None,
    device: str = "auto",
    dtype: str = "auto",
    say: Say | None = None,
) -> FastAPI:
    """The application of a server, for any ASGI server: `uvicorn.run(yeoul.server_app(["runs/demo/linear"]))`.

    Args:
        models: folders, GGUF files, runs or ids on the hub, or NAME=FOLDER; each is called by its last parts.
        config: whom it serves, and how much at a time; None for the defaults.
        sampling: how answers are drawn where a request does not say; `max_tokens` is the config's.
        safety: a classifier that screens questions and answers.
        device, dtype: as for `yeoul.load`.
        say: is told what is opened; None for no output.

    Raises:
        UserError: no model, or one that cannot be loaded or has no tokenizer.
    """
    from yeoul import runtime
    from yeoul.recipes.embed import load_embedder
    from yeoul.recipes.loading import load
    from yeoul.serve.app import create_app
    from yeoul.serve.guard import Limits
    from yeoul.serve.served import Models

    config, say = config or ServeConfig(), say or silent
    if not models:
        raise UserError("no model was given", fix="give one or more model folders")
    keys = config.keys()
    if config.state_dir is not None:  # before models are loaded, which takes longer
        try:
            config.state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"the folder for states cannot be made ({error.strerror})"
            raise UserError(what, f"--state-dir {config.state_dir}", "choose another one") from None
    runtime.set_threads()
    opened = _Opener(config, sampling or SamplingParams(), (safety or ScreenOptions()).open(device), say)
    served: list[ServedModel] = []
    for number, (name, path) in enumerate(_named([str(model) for model in models])):
        model, tokenizer = load(path, device=device, dtype=dtype)
        if tokenizer is None:
            raise UserError("the model has no tokenizer, so it cannot be served", path)
        served.append(opened.model(name, model, tokenizer))
        for own, adapter in _named(config.adapter) if number == 0 else ():
            served.append(opened.adapted(own, path, adapter, model, device=device, dtype=dtype))
    embedders = {name: load_embedder(path, device=device) for name, path in _named(config.embedder)}
    limits = Limits(keys=keys, origins=config.allow_origin, body_bytes=config.max_request_mb * MEGABYTE)
    held = Models(served)
    return create_app(held, limits=limits, embedders=embedders, kept=_states(held, config.state_dir))


def _states(models: Models, folder: Path | None) -> States:
    """The states of a folder, or those in memory."""
    from functools import lru_cache

    from yeoul.recipes.fingerprint import fingerprint
    from yeoul.serve.states import States

    prints = lru_cache(maxsize=None)(lambda name: fingerprint(models.named(name).model, models.named(name).tokenizer))
    return States(models, folder, lambda served: prints(served.name))


@dataclass(frozen=True)
class _Opener:
    """What all models of a server have in common."""

    config: ServeConfig
    sampling: SamplingParams
    screen: Screen | None
    say: Say

    def model(self, name: str, model: Decoder, tokenizer: Tokenizer) -> ServedModel:
        """A model with its engine."""
        from yeoul.infer.serving import Engine
        from yeoul.recipes.caches import cache_bytes
        from yeoul.serve.served import ServedModel

        config = self.config
        engine = Engine(
            model, tokenizer, max_rows=config.max_rows, max_waiting=config.max_waiting,
            prefill_tokens=config.prefill_tokens, snapshot_bytes=config.snapshot_mb * MEGABYTE,
        )  # fmt: skip
        held = cache_bytes(model.config, model.dtype.itemsize)
        served = ServedModel(
            name=name, model=model, tokenizer=tokenizer, engine=engine, screen=self.screen, cache_bytes=held,
            defaults=replace(self.sampling, max_tokens=config.max_tokens),
        )  # fmt: skip
        memory = f"{size(held[0])} a conversation, constant" if not held[1] else (
            f"{size(served.state_bytes(model.config.max_position_embeddings))} a conversation of "
            f"{count(model.config.max_position_embeddings, 'token')}, growing"
        )  # fmt: skip
        self.say(f"{name}: {count(model.num_parameters(), 'parameter')}, {memory}")
        return served

    def adapted(self, name: str, path: str, adapter: str, base: Decoder, *, device: str, dtype: str) -> ServedModel:
        """The first model with an adapter merged; weights that it does not change are the first one's."""
        from yeoul.recipes.loading import load
        from yeoul.recipes.saving import merged_model

        model, tokenizer = load(path, device=device, dtype=dtype, adapter=adapter)
        merged = _sharing(merged_model(model), base)
        assert tokenizer is not None  # its base has one
        return self.model(name, merged, tokenizer)


def _sharing(model: Decoder, base: Decoder) -> Decoder:
    """The model, whose weights are the other's memory where they are equal."""
    import torch

    theirs = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        other = theirs.get(name)
        if other is not None and other.shape == parameter.shape and torch.equal(other, parameter):
            parameter.data = other.data
    return model


def _named(given: Sequence[str]) -> list[tuple[str, str]]:
    """Names and places of `NAME=PLACE` and of places alone, which are called by their last parts.

    Raises:
        UserError: two of one name.
    """
    from yeoul.recipes.bench import short_names

    parts = [re.fullmatch(r"([\w.\-]+)=(.+)", item) for item in given]
    places = [match[2] if match else item for match, item in zip(parts, given, strict=True)]
    short = short_names(tuple(places)) if places else []
    names = [match[1] if match else name for match, name in zip(parts, short, strict=True)]
    if len(set(names)) < len(names):
        raise UserError("two models have the same name", fix="give them others: NAME=FOLDER")
    return list(zip(names, places, strict=True))
