"""Models from the hub: a small server that speaks its protocol, a cache, and all that can go wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import yeoul
from yeoul import hub
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.model.checkpoint import save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder

Repository = dict[str, dict[str, bytes]]
"""Revision to the files of its commit, by path."""


class Hub(ThreadingHTTPServer):
    """Models by id, and what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: dict[str, Repository] = {}
        self.refusals: dict[str, tuple[int, str]] = {}  # id -> status and the hub's error code
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        name = "/".join(parts[:2])
        if name in self.server.refusals:
            return self.refuse(*self.server.refusals[name])
        if name not in self.server.models:
            return self.refuse(404, "RepoNotFound")
        repository = self.server.models[name]
        verb, revision, rest = (*parts[2:4], "/".join(parts[4:])) if len(parts) > 3 else ("", "main", "")
        commits = {commit_of(name, known): known for known in repository}
        known = commits.get(revision, revision.replace("%2F", "/"))
        if known not in repository:
            return self.refuse(404, "RevisionNotFound")
        files, commit = repository[known], commit_of(name, known)
        if verb == "resolve":
            if rest not in files:
                return self.refuse(404, "EntryNotFound")
            return self.send(files[rest], {"ETag": f'"{oid(files[rest])}"', "X-Repo-Commit": commit})
        if verb == "tree":
            listing: Any = [
                {"type": "file", "path": path, "size": len(data), "oid": oid(data)} for path, data in files.items()
            ]
        else:
            listing = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        self.send(json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.send(b"{}", {"X-Error-Code": code, "Content-Type": "application/json"}, status)

    def send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def commit_of(name: str, revision: str) -> str:
    return oid(f"{name} {revision}".encode())


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig(vocab_size=50, hidden_size=32, num_layers=1, num_heads=2, max_position_embeddings=64)
    save_model(Decoder(config), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def use_endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What HF_ENDPOINT does in a new process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def server(model_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    extra = {
        "README.md": b"---\nlicense: mit\n---\n# Small\n", "pytorch_model.bin": b"pickle", "modeling.py": b"code",
        "original/model.safetensors": b"twice", "consolidated.safetensors": b"thrice", "merges.txt": b"a b\n",
        "additional_chat_templates/tool_use.jinja": b"{{ 1 }}",
    }  # fmt: skip
    server.models["some-org/small"] = {
        "main": {**model_files, **extra},
        "refs/pr/1": {**model_files, "README.md": b"another"},
    }
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.chdir(tmp_path)
    use_endpoint(monkeypatch, server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_downloaded_once(server: Hub) -> None:
    folder = hub.local_folder("some-org/small")
    wanted = {"config.json", "generation_config.json", "model.safetensors", "README.md", "merges.txt"}
    assert names_in(folder) == wanted | {"additional_chat_templates/tool_use.jinja"}
    model, tokenizer = yeoul.load("some-org/small", device="cpu")
    assert tokenizer is None and model.config.vocab_size == 50
    assert len(server.downloads()) == len(set(server.downloads())) == 6
    assert main(["info", "some-org/small"]) == 0


def test_revisions(server: Hub) -> None:
    folder = hub.local_folder("some-org/small@refs/pr/1")
    assert (folder / "README.md").read_bytes() == b"another"
    whole = commit_of("some-org/small", "refs/pr/1")
    assert hub.local_folder(f"some-org/small@{whole}") == folder
    assert hub.local_folder("some-org/small") != folder
    with pytest.raises(UserError, match="no revision 'v9'"):
        hub.local_folder("some-org/small@v9")


def test_a_path_may_have_an_at_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name@v2").mkdir(parents=True)
    assert hub.local_folder("org/name@v2") == Path("org/name@v2")
    for wrong in ("org/name@", "name@v2", "org/na me@v2", "org/name@v 2", "other/name@../x"):
        with pytest.raises(UserError, match="no such model folder"):
            hub.local_folder(wrong)


def test_what_is_in_the_cache_needs_no_hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = hub.local_folder("some-org/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.asked)
    assert hub.local_folder("some-org/small") == folder
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub.local_folder("some-org/other")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not complete in the cache"):
        hub.local_folder("some-org/small")
    assert len(server.asked) == asked


def test_a_hub_that_is_away(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.local_folder("some-org/small")
    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # nobody listens there
    assert hub.local_folder("some-org/small") == folder
    with pytest.raises(UserError, match="hub cannot be reached"):
        hub.local_folder("some-org/other")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", "accept its terms first"),
        (401, "GatedRepo", "hf auth login"),
        (401, "RepoNotFound", "nor a model on the hub"),
        (404, "RepoNotFound", "check the name"),
        (403, "", "error 403"),
        (500, "", "error 500"),
    ],
)
def test_refusals(server: Hub, status: int, code: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.refusals["some-org/closed"] = (status, code)
    assert main(["info", "some-org/closed"]) == 2
    text = capsys.readouterr().err
    assert words in text and text.count("\n") == 1


def test_only_pickles(server: Hub, model_files: dict[str, bytes]) -> None:
    config = {"config.json": model_files["config.json"]}
    server.models["some-org/old"] = {"main": {**config, "pytorch_model.bin": b"pickle"}}
    server.models["some-org/none"] = {"main": config}
    with pytest.raises(UserError, match=r"no safetensors, only pickles.*unsafe-pickle"):
        hub.local_folder("some-org/old")
    server.models["some-org/gguf"] = {"main": {**config, "m-Q4_K_M.gguf": b"GGUF"}}
    with pytest.raises(UserError, match=r"but GGUF files .*hf download some-org/gguf m-Q4_K_M\.gguf"):
        hub.local_folder("some-org/gguf")
    with pytest.raises(UserError, match="the repository has no safetensors"):
        hub.local_folder("some-org/none")
    assert set(server.downloads()) == {"config.json"}


def test_a_full_disk(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match="not enough disk space for the model.*HF_HOME"):
        hub.local_folder("some-org/small")
