"""Who is let in, with what, and how much."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")

from fastapi import FastAPI, Request  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from yeoul.serve import errors  # noqa: E402
from yeoul.serve.guard import Guard, Limits, keys_in  # noqa: E402


def client(**limits: object) -> TestClient:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(Guard, limits=Limits(**limits))  # type: ignore[arg-type]

    @app.post("/v1/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.get("/fails")
    def fails() -> str:
        raise ZeroDivisionError("a secret")

    return TestClient(app, base_url="http://here:8000", raise_server_exceptions=False)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Authorization": "Bearer right"}, 200),
        ({"Authorization": "bearer also"}, 200),
        ({"x-api-key": "right"}, 200),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic right"}, 401),
        ({"Authorization": "Bearer 키".encode()}, 401),
        ({}, 401),
    ],
)
def test_keys(headers, status):
    answer = client(keys=("right", "also")).post("/v1/echo", content=b"x", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_health_needs_no_key():
    assert client(keys=("k",)).get("/health").status_code == 200


@pytest.mark.parametrize(
    "origin, allowed, status",
    [
        ("http://here:8000", (), 200),
        ("http://evil.example", (), 403),
        ("http://evil.example", ("http://good.example",), 403),
        ("http://good.example", ("http://good.example",), 200),
        ("http://any.example", ("*",), 200),
        ("null", (), 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(origin, allowed, status):
    answer = client(origins=allowed).post("/v1/echo", content=b"x", headers={"Origin": origin})
    assert answer.status_code == status


def test_bodies_are_bounded_whether_they_say_their_length_or_not():
    small = client(body_bytes=100)
    assert small.post("/v1/echo", content=b"x" * 100).json() == 100
    assert small.post("/v1/echo", content=b"x" * 101).status_code == 413
    assert small.post("/v1/echo", content=(b"x" * 10 for _ in range(11))).status_code == 413
    assert small.post("/v1/echo", content=b"x", headers={"content-length": "many"}).status_code == 413


def test_errors_have_openais_form_and_tell_no_secrets():
    answer = client().get("/nowhere")
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
    answer = client().get("/fails")
    assert (
        answer.status_code == 500 and "secret" not in answer.text and answer.json()["error"]["type"] == "server_error"
    )


def test_keys_of_a_file():
    assert keys_in(["# ours", "", " one ", "two"]) == ("one", "two")
