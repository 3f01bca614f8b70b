"""Small models behind a real server, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the server's packages are not installed")

from fastapi import FastAPI  # noqa: E402

from folders import write_small_folder  # noqa: E402
from yeoul.data.builtin import generate_documents  # noqa: E402
from yeoul.recipes.serve import ServeConfig, server_app  # noqa: E402

TOOL_TEMPLATE = (
    "{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<tool_call>\n{json}\n</tool_call><|end|>{% endif -%}"
    "{%- for m in messages -%}{%- if m.tool_calls %}<|assistant|>{% for call in m.tool_calls %}<tool_call>\n"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}\n</tool_call>{% endfor %}<|end|>"
    "{%- else %}{{ '<|' + ('user' if m.role == 'tool' else m.role) + '|>' + m.content + '<|end|>' }}{% endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
"""In the manner of Qwen and Hermes."""


@dataclass(frozen=True)
class Server:
    """A server that listens.

    Attributes:
        url: without a path.
        app: behind it, `app.state.models` are its models.
        folders: of its models, by name.
    """

    url: str
    app: FastAPI
    folders: dict[str, Path]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A linear model, one of softmax, and one whose template takes tools."""
    texts = list(generate_documents(seed=3, target_bytes=60_000))
    top = tmp_path_factory.mktemp("served")
    common = dict(vocab_size=1200, max_position_embeddings=1024, initializer_range=0.3, tie_embeddings=False)
    made = {
        "linear": write_small_folder(top / "linear", texts, attention=("hybrid", "dijiang"), exact=(4, 0), **common),
        "softmax": write_small_folder(top / "softmax", texts, **common),
        "tools": write_small_folder(top / "tools", texts, attention=("hybrid", "hybrid"), **common),
    }
    (made["tools"] / "chat_template.jinja").write_text(TOOL_TEMPLATE, encoding="utf-8")
    return made


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of a server for an application, while it runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    """All three models behind one server."""
    app = server_app(
        [f"{name}={folder}" for name, folder in folders.items()], ServeConfig(max_tokens=24), dtype="float32"
    )
    with listening(app) as url:
        yield Server(url, app, folders)
