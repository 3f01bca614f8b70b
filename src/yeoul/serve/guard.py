"""Who may ask, from where, and how much: before any request reaches its endpoint."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yeoul.serve.errors import ApiError

OPEN = ("/", "/health", "/page.js", "/page.css", "/favicon.ico")
"""What needs no key: the page asks for it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is let in.

    Attributes:
        keys: one of them has to come with each request; none lets everybody in.
        origins: of other sites whose pages may ask; "*" is any.
        body_bytes: of a request at most.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 16 * 2**20


class Guard:
    """ASGI middleware that answers what may not pass.

    A page of another site can make a browser send requests to a server on the same machine; browsers name the site in
    `Origin`, so that such requests are refused here whether their answers could be read or not.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self._keys = [key.encode() for key in limits.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        error = self._foreign(scope, headers) or self._keyless(scope, headers) or self._too_large(headers)
        if error is not None:
            await error.response()(scope, receive, send)
            return
        await self.app(scope, _bounded(receive, self.limits.body_bytes), send)

    def _foreign(self, scope: Scope, headers: dict[str, str]) -> ApiError | None:
        origin = headers.get("origin")
        if origin is None or "*" in self.limits.origins or origin in self.limits.origins:
            return None
        if urlsplit(origin).netloc == headers.get("host"):
            return None
        return ApiError(403, "this origin may not ask; the server allows it by --allow-origin", code="origin")

    def _keyless(self, scope: Scope, headers: dict[str, str]) -> ApiError | None:
        if not self._keys or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        found = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        matches = [hmac.compare_digest(found.encode("latin-1", "replace"), key) for key in self._keys]
        return None if any(matches) else ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _too_large(self, headers: dict[str, str]) -> ApiError | None:
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) <= self.limits.body_bytes:
            return None
        return _too_long(self.limits.body_bytes)


def _too_long(limit: int) -> ApiError:
    return ApiError(413, f"the request is longer than {limit:,} bytes", code="request_too_large")


def _bounded(receive: Receive, limit: int) -> Receive:
    """The same, for bodies that do not say how long they are."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_long(limit)
        return message

    return bounded


def keys_in(lines: Sequence[str]) -> tuple[str, ...]:
    """Keys of a file, one a line; empty lines and those that begin with # are none."""
    return tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
