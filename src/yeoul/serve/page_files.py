"""The web page: files of the package, and what a browser may do with them."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

SCRIPTS = ("words", "prose", "tree", "storage", "api", "list", "controls", "models", "turns", "main")
"""Files of `page/`, as they are joined to one script; the last begins."""
KINDS = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""Nothing from elsewhere, and in no frame."""


@lru_cache
def content(name: str) -> bytes:
    """What is served under a name of `KINDS`."""
    folder = files("yeoul.serve").joinpath("page")
    if name != "page.js":
        return folder.joinpath(name).read_bytes()
    parts = [folder.joinpath(f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS]
    return "\n".join(["(function () {", '"use strict";', *parts, "})();", ""]).encode()


def install(app: FastAPI) -> None:
    """The page at `/`, and its parts."""

    def route(path: str, name: str) -> None:
        def file() -> Response:
            return Response(content(name), media_type=f"{KINDS[name]}; charset=utf-8", headers=HEADERS)

        app.add_api_route(path, file, methods=["GET"], response_class=Response, include_in_schema=False)

    route("/", "index.html")
    for name in ("page.js", "page.css"):
        route(f"/{name}", name)
