"""`/v1/states`: what a model remembers of a conversation or a text, kept, forked, saved and gone on from.

A state is named by its client, or gets a name here. With a folder for them, states are files there and outlive the
server; another server over the same folder finds them. A name never is a path: it has no other characters than those
of `NAME`.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool

from yeoul.errors import UserError
from yeoul.files import remove
from yeoul.infer.engine import prompt_ids
from yeoul.infer.params import SamplingParams
from yeoul.infer.state_file import KeptState, load_state, read_about, save_state
from yeoul.serve.answers import start, unless_gone, whole
from yeoul.serve.errors import ApiError
from yeoul.serve.prompts import Prompt, plain_message
from yeoul.serve.schema import Message, StateRequest
from yeoul.serve.served import Models, ServedModel
from yeoul.text.chat import render_ids

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}")
MOST = 10_000
"""States of a server at most."""


@dataclass(kw_only=True)
class Record:
    """One state.

    Attributes:
        name: of it.
        model: that it is of.
        tokens: of the text behind which it is.
        bytes: that it holds, or that its file has.
        created: seconds since 1970.
        messages: of the conversation; None of a text.
        state: in memory; None where it is only a file so far.
    """

    name: str
    model: str
    tokens: int
    bytes: int
    created: int
    messages: list[dict[str, Any]] | None = None
    state: KeptState | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.name, "object": "state", "model": self.model, "tokens": self.tokens, "bytes": self.bytes,
            "created": self.created,
        }  # fmt: skip


@dataclass
class States:
    """The states of a server.

    Args:
        models: of the server.
        folder: for files; None keeps them in memory only.
        fingerprint: of a model and its tokenizer, for files.
    """

    models: Models
    folder: Path | None = None
    fingerprint: Callable[[ServedModel], str] = lambda served: served.name
    records: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob("*.state")) if self.folder is not None else ():
            self._note(path)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.state"

    def _note(self, path: Path) -> Record | None:
        """Takes note of a file, without reading its tensors; what is no state is passed over."""
        if NAME.fullmatch(path.stem) is None:
            return None
        try:
            about, tokens = read_about(path)
        except UserError:
            return None
        messages = about.get("messages")
        record = Record(
            name=path.stem, model=str(about.get("model", "")), tokens=tokens, bytes=path.stat().st_size,
            created=int(path.stat().st_mtime), messages=messages if isinstance(messages, list) else None,
        )  # fmt: skip
        self.records[path.stem] = record
        return record

    def named(self, name: str) -> Record:
        """The state of this name, also one that another server has written since.

        Raises:
            ApiError: there is none.
        """
        found = self.records.get(name)
        if found is None and NAME.fullmatch(name) and (path := self._path(name)) is not None and path.is_file():
            found = self._note(path)
        if found is None:
            raise ApiError(404, f'there is no state "{name[:64]}" here', param="state", code="state_not_found")
        return found

    def opened(self, name: str, served: ServedModel) -> KeptState:
        """What a model remembers, from memory or from its file; the engine has it from now on.

        Raises:
            ApiError: there is none, or it is of another model.
        """
        record = self.named(name)
        if record.model != served.name:
            what = f'the state "{record.name}" is of the model "{record.model}", not of "{served.name}"'
            raise ApiError(400, what, param="state")
        if record.state is None:
            path = self._path(record.name)
            assert path is not None  # else it would be in memory
            record.state = load_state(path, served.model, self.fingerprint(served))
        served.engine.keep(record.state.ids, record.state.cache)
        return record.state

    def add(self, record: Record, served: ServedModel) -> None:
        """Keeps a state, and writes its file where there is a folder."""
        if len(self.records) >= MOST:
            raise ApiError(429, f"there are {MOST:,} states already; delete some", code="too_many_states")
        path, state = self._path(record.name), record.state
        assert state is not None
        if path is not None:
            about = {"model": record.model, "messages": record.messages}
            try:
                record.bytes = save_state(path, state.cache, state.ids, self.fingerprint(served), about)
            except (OSError, UserError) as error:  # no room, no permission
                raise ApiError(507, f"the state could not be written: {error}", code="not_written") from error
        self.records[record.name] = record

    def delete(self, name: str) -> None:
        """Forgets one, and its file."""
        record = self.named(name)
        if (path := self._path(record.name)) is not None:
            remove(path)
        self.records.pop(record.name, None)

    def new_name(self, wanted: str | None) -> str:
        """The name of a new state.

        Raises:
            ApiError: it is taken, or has characters that a name has not.
        """
        if wanted is None:
            return f"state-{uuid.uuid4().hex[:16]}"
        if NAME.fullmatch(wanted) is None:
            raise ApiError(400, "a name has letters, digits, - and _, 64 at most", param="name")
        try:
            self.named(wanted)
        except ApiError:
            return wanted
        raise ApiError(409, f'there is a state "{wanted}" already', param="name", code="state_exists")


def _ids(body: StateRequest, served: ServedModel) -> tuple[list[int], list[dict[str, Any]] | None]:
    """What is read, and the messages of it."""
    if (body.messages is None) == (body.prompt is None):
        raise ApiError(400, "give either messages or a prompt", param="messages")
    if body.messages is not None:
        plain = [plain_message(message, number) for number, message in enumerate(body.messages)]
        return render_ids(served.tokenizer, plain), plain
    if isinstance(body.prompt, str):
        return prompt_ids(served.tokenizer, body.prompt), None
    return list(body.prompt or ()), None


def continued(states: States, name: str, messages: list[Message], served: ServedModel) -> list[Message]:
    """The conversation of a state with more messages behind it; the engine knows its beginning.

    Raises:
        ApiError: there is no such state, or it is of a text.
    """
    record = states.named(name)
    if record.messages is None:
        raise ApiError(400, f'the state "{record.name}" is of a text, not of a conversation', param="state")
    states.opened(name, served)
    return [*(Message.model_validate(message) for message in record.messages), *messages]


def install(app: FastAPI, models: Models, states: States) -> None:
    """The routes."""
    writing = asyncio.Lock()

    @app.post("/v1/states", tags=["states"])
    async def create_state(body: StateRequest, http: HttpRequest) -> dict[str, Any]:
        """Reads a conversation or a text as far as it is not known, and keeps what the model remembers of it."""
        began, served = time.perf_counter(), models.named(body.model)
        name = states.new_name(body.name)
        ids, messages = await run_in_threadpool(_ids, body, served)
        cache, known = await run_in_threadpool(served.engine.known, ids), len(ids)
        if cache is None:
            once = SamplingParams(max_tokens=1, temperature=0)
            running = start(served, Prompt(ids=tuple(ids), marks=(len(ids),)), [once])
            (answer,) = await unless_gone(http, running, whole(running))
            known = answer.usage.cached_tokens if answer.usage is not None else 0
            cache = await run_in_threadpool(served.engine.known, ids)
        if cache is None:  # so many others came that it was dropped at once
            raise ApiError(429, "there is no room for the state", code="no_room", wait=5)
        record = Record(
            name=name, model=served.name, tokens=len(ids), bytes=served.state_bytes(len(ids)),
            created=int(time.time()), messages=messages,
            state=KeptState(ids=tuple(ids), cache=cache, about={}),
        )  # fmt: skip
        async with writing:
            await run_in_threadpool(states.add, record, served)
        elapsed = round(1000 * (time.perf_counter() - began), 3)
        return {**record.as_dict(), "cached_tokens": known, "milliseconds": elapsed}

    @app.get("/v1/states", tags=["states"])
    def list_states() -> dict[str, Any]:
        """All states."""
        return {"object": "list", "data": [record.as_dict() for record in list(states.records.values())]}

    @app.get("/v1/states/{name}", tags=["states"])
    def one_state(name: str) -> dict[str, Any]:
        """One state, with the messages of its conversation."""
        record = states.named(name)
        return {**record.as_dict(), "messages": record.messages}

    @app.post("/v1/states/{name}/fork", tags=["states"])
    async def fork_state(name: str, new_name: str | None = None) -> dict[str, Any]:
        """A second one that begins where the first stands."""
        began, record = time.perf_counter(), states.named(name)
        served = models.named(record.model)
        state = await run_in_threadpool(states.opened, name, served)
        fork = Record(
            name=states.new_name(new_name), model=record.model, tokens=record.tokens, bytes=record.bytes,
            created=int(time.time()), messages=record.messages,
            state=KeptState(ids=state.ids, cache=state.cache.snapshot(), about={}),
        )  # fmt: skip
        async with writing:
            await run_in_threadpool(states.add, fork, served)
        elapsed = round(1000 * (time.perf_counter() - began), 3)
        return {**fork.as_dict(), "cached_tokens": record.tokens, "milliseconds": elapsed}

    @app.delete("/v1/states/{name}", tags=["states"])
    async def delete_state(name: str) -> dict[str, Any]:
        """Forgets one."""
        async with writing:
            await run_in_threadpool(states.delete, name)
        return {"id": name, "object": "state.deleted", "deleted": True}
