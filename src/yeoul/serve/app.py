"""The application: which path is answered by what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response

from yeoul.infer.texts import TextEmbedder
from yeoul.serve import errors, metrics, ollama, page_files, responses, states, texts
from yeoul.serve.chat import complete_chat
from yeoul.serve.completions import complete
from yeoul.serve.errors import ApiError
from yeoul.serve.guard import Guard, Limits
from yeoul.serve.schema import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from yeoul.serve.served import Models
from yeoul.serve.states import States, continued
from yeoul.version import VERSION

log = logging.getLogger("yeoul.serve")
FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be answered as it is"},
    401: {"description": "No key, or a wrong one"},
    404: {"description": "There is no such model"},
    413: {"description": "The request is too long"},
    429: {"description": "The server is full"},
    501: {"description": "Something is not installed"},
}
"""What every endpoint may answer beside what was asked for."""


def create_app(
    models: Models,
    *,
    limits: Limits | None = None,
    embedders: Mapping[str, TextEmbedder] | None = None,
    kept: States | None = None,
) -> FastAPI:
    """A server's application. Engines are started and closed with it.

    Args:
        models: what answers.
        limits: who may ask; None lets everybody on this machine in.
        embedders: models that make vectors, by name.
        kept: states that clients name; None keeps them in memory.
    """
    limits, embedders, kept = limits or Limits(), dict(embedders or {}), kept or States(models)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for model in models:
            model.engine.start()
        yield
        await asyncio.gather(*(run_in_threadpool(model.engine.close, drain=True) for model in models))

    app = FastAPI(
        title="Yeoul", version=VERSION, summary="Language models in linear time, by OpenAI's endpoints",
        lifespan=lifespan, docs_url=None, redoc_url=None, responses=FAULTS,
    )  # fmt: skip
    errors.install(app)
    metrics.install(app, models)
    page_files.install(app)
    _install_texts(app, models, embedders, kept)
    states.install(app, models, kept)
    responses.install(app, models)
    ollama.install(app, models)
    app.state.models = models
    app.add_middleware(Guard, limits=limits)
    if limits.origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(limits.origins), allow_methods=["*"], allow_headers=["*"])
    return app


def _install_texts(app: FastAPI, models: Models, embedders: dict[str, TextEmbedder], kept: States) -> None:
    known: set[str] = set()
    embedding = asyncio.Lock()

    def note_unknown(body: Body) -> None:
        new = [name for name in body.unknown() if name not in known][: max(0, 100 - len(known))]
        if new:
            known.update(new)
            log.info("fields that are not known were ignored: %s", ", ".join(name[:40] for name in new))

    @app.post("/v1/chat/completions", tags=["openai"])
    async def chat_completions(body: ChatRequest, http: HttpRequest) -> Response:
        """The answer to a conversation."""
        note_unknown(body)
        served = models.named(body.model)
        if body.state is not None:
            whole = await run_in_threadpool(continued, kept, body.state, body.messages, served)
            body = body.model_copy(update={"messages": whole})
        return await complete_chat(body, served, http)

    @app.post("/v1/completions", tags=["openai"])
    async def completions(body: CompletionRequest, http: HttpRequest) -> Response:
        """How texts go on."""
        note_unknown(body)
        served = models.named(body.model)
        state = None if body.state is None else await run_in_threadpool(kept.opened, body.state, served)
        return await complete(body, served, http, () if state is None else state.ids)

    @app.post("/v1/embeddings", tags=["openai"])
    async def embeddings(body: EmbeddingRequest) -> dict[str, Any]:
        """Vectors of texts."""
        name = body.model if body.model is not None else next(iter(embedders), "")
        if name not in embedders:
            there = ", ".join(embedders) or "none; give one with --embedder"
            raise ApiError(404, f'there is no model "{name[:200]}" for vectors here; there is {there}', param="model")
        async with embedding:  # one at a time: they share the cores with the engines
            return await run_in_threadpool(texts.embeddings, body, name, embedders[name])

    @app.get("/v1/models", tags=["openai"])
    def list_models() -> dict[str, Any]:
        """The models that are here."""
        listed = [model.described() for model in models]
        for name in embedders:
            listed.append({"id": name, "object": "model", "created": 0, "owned_by": "yeoul", "meta": {"task": "embed"}})
        return {"object": "list", "data": listed}

    @app.get("/v1/models/{name:path}", tags=["openai"])
    def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return models.named(name).described()

    @app.get("/health", tags=["operation"])
    def health() -> JSONResponse:
        """Whether all models can answer."""
        dead = [model.name for model in models if not model.engine.alive]
        if dead:
            return JSONResponse({"status": "error", "failed": dead}, 503)
        return JSONResponse({"status": "ok"})

    @app.post("/tokenize", tags=["tokens"])
    def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Ids of a text, or of a conversation as the model reads it."""
        return texts.tokenize(body, models.named(body.model))

    @app.post("/detokenize", tags=["tokens"])
    def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """The text of ids."""
        return texts.detokenize(body, models.named(body.model))

    @app.get("/tokenizer_info", tags=["tokens"])
    def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        """What a client must know to cut texts as the model does."""
        return texts.tokenizer_info(models.named(model))
