"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from yeoul.errors import UserError
from yeoul.infer.requests import Closed

log = logging.getLogger("yeoul.serve")

KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error", 507: "server_error",
}  # fmt: skip
"""Types of errors by status; others are the request's fault."""


class ApiError(Exception):
    """An answer other than the one that was asked for.

    Attributes:
        status: of HTTP.
        param: the field at fault.
        code: for programs.
        wait: seconds after which the same request may succeed; None if it never will.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.wait = status, message, param, code, wait

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """As the answer to a request."""
        headers = {"Retry-After": str(self.wait)} if self.wait is not None else None
        return JSONResponse(self.body(), self.status, headers)


def install(app: FastAPI) -> None:
    """Every error of the application in this form; those that are bugs are logged with their traceback, not told."""

    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(Closed)
    async def closed(_: Request, error: Closed) -> JSONResponse:
        return ApiError(503, "the server is about to end", code="closing", wait=10).response()

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return ApiError(400, str(error)).response()

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)  # of a body that an endpoint makes of another's
    async def invalid(_: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or None
        what = str(first["msg"])
        return ApiError(400, f"{place}: {what}" if place else what, param=place, code=str(first["type"])).response()

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        response = ApiError(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return ApiError(500, "the server failed on this request; its log says why").response()
