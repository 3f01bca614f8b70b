"""A server that says what it is told to: the endpoints that the page uses, without a model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from yeoul.serve import page_files

DEFAULTS = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": 512}
MODELS = {
    "linear": {
        "attention": "hybrid", "linear": True, "parameters": 10_153_344, "context": None, "trained_context": 1024,
        "state_bytes": 407_000, "bytes_per_token": 0, "chat_template": True, "defaults": DEFAULTS,
    },
    "softmax": {
        "attention": "softmax", "linear": False, "parameters": 10_100_000, "context": 2048, "trained_context": 2048,
        "state_bytes": 12_582_912, "bytes_per_token": 6144, "chat_template": True,
        "defaults": {**DEFAULTS, "top_p": 0.9},
    },
}  # fmt: skip

Messages = list[dict[str, str]]


def echo(model: str, messages: Messages) -> list[str]:
    """An answer that names model and question, a syllable at a time."""
    return list(f"{model}: {messages[-1]['content']}에 대한 {len(messages)}번째 말의 답입니다.")


class Stub:
    """What it answers, how slowly, and what it has seen; reset by `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """As it is before each test."""
        self.answer: Callable[[str, Messages], Sequence[str]] = echo
        self.delay = 0.0  # seconds before each piece
        self.key: str | None = None
        self.refuse: tuple[int, str] | None = None  # of chat completions
        self.break_after: int | None = None  # pieces, then an error in the stream
        self.drop_after: int | None = None  # pieces, then the connection ends
        self.models = dict(MODELS)
        self.chats: list[dict[str, Any]] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.freed: list[str] = []
        self.left = 0  # streams whose client went away
        self._read: set[str] = set()

    def tokens(self, model: str, messages: Messages) -> tuple[int, int]:
        """How many the messages have, one a character, and how many of them are known: the longest known front."""
        fronts = [json.dumps([model, messages[:n]]) for n in range(len(messages) + 1)]
        total = sum(len(message["content"]) for message in messages)
        known = max((n for n, front in enumerate(fronts) if front in self._read), default=0)
        self._read.update(fronts)
        return total, sum(len(message["content"]) for message in messages[:known])

    def state_bytes(self, model: str, tokens: int) -> int:
        """Constant for the linear model."""
        meta = self.models[model]
        return meta["state_bytes"] if meta["linear"] else tokens * meta["bytes_per_token"]

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """The events of one answer."""
        model, messages = body["model"], body["messages"]
        prompt, cached = self.tokens(model, messages)
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model}

        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return f"data: {json.dumps({**head, 'choices': choices, **more}, ensure_ascii=False)}\n\n"

        pieces = self.answer(model, messages)
        ended = False
        try:
            yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            yield ": ping\n\n"
            for number, piece in enumerate(pieces):
                await asyncio.sleep(self.delay)
                if number == self.break_after:
                    ended = True
                    yield 'data: {"error": {"message": "the model is gone", "type": "server_error", "code": null}}\n\n'
                    yield "data: [DONE]\n\n"
                    return
                if number == self.drop_after:
                    ended = True
                    return
                yield event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
            cut = len(pieces) > body.get("max_tokens", 10**9)
            yield event([{"index": 0, "delta": {}, "finish_reason": "length" if cut else "stop"}])
            new = len(pieces)
            self.tokens(model, [*messages, {"role": "assistant", "content": "".join(pieces)}])
            yield event(
                [],
                usage={
                    "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
                    "prompt_tokens_details": {"cached_tokens": cached},
                },
                timings={
                    "prompt_n": prompt - cached, "prompt_ms": 2.5, "predicted_n": new, "predicted_ms": 10.0 * new,
                    "predicted_per_second": 100.0, "cache_n": cached, "queue_ms": 0.1,
                    "state_bytes": self.state_bytes(model, prompt + new),
                },
            )  # fmt: skip
            ended = True
            yield "data: [DONE]\n\n"
        finally:
            self.left += not ended

    def app(self) -> FastAPI:
        """The application."""
        app = FastAPI()
        page_files.install(app)

        def error(status: int, message: str) -> JSONResponse:
            return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": None}}, status)

        @app.middleware("http")
        async def guard(request: Request, call_next: Any) -> Response:
            if self.key and request.url.path.startswith("/v1/"):
                if request.headers.get("authorization") != f"Bearer {self.key}":
                    return error(401, "the API key is missing or wrong")
            return await call_next(request)

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            listed = [
                {"id": name, "object": "model", "owned_by": "yeoul", "meta": m} for name, m in self.models.items()
            ]
            return {"object": "list", "data": listed}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.chats.append(body)
            if self.refuse:
                return error(*self.refuse)
            return StreamingResponse(self.stream(body), media_type="text/event-stream; charset=utf-8")

        @app.post("/v1/states")
        async def states(request: Request) -> dict[str, Any]:
            body = await request.json()
            tokens, cached = self.tokens(body["model"], body["messages"])
            found = {
                "id": f"state-{len(self.states)}", "model": body["model"], "tokens": tokens, "cached_tokens": cached,
                "bytes": self.state_bytes(body["model"], tokens), "milliseconds": 0.5,
            }  # fmt: skip
            self.states[found["id"]] = body
            return found

        @app.delete("/v1/states/{name}")
        def free(name: str) -> dict[str, Any]:
            self.freed.append(name)
            return {"id": name, "deleted": True}

        return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a free port of this machine; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
