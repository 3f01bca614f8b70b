"""States by name: kept, gone on from, forked, in files, of another server."""

from __future__ import annotations

from pathlib import Path

import pytest

httpx2 = pytest.importorskip("httpx2", reason="the client of these tests is not installed")

from serve.conftest import listening  # noqa: E402
from yeoul.recipes.serve import ServeConfig, server_app  # noqa: E402

TALK = [{"role": "user", "content": "내 이름은 여울이야."}, {"role": "assistant", "content": "반가워요, 여울님."}]
ASK = [{"role": "user", "content": "내 이름이 뭐라고 했지?"}]


def chat(url: str, messages: list[dict[str, str]], **more: object) -> dict[str, object]:
    body = {"model": "linear", "messages": messages, "max_tokens": 10, "temperature": 0, **more}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_state_is_kept_gone_on_from_and_forked(server):
    url = server.url
    made = httpx2.post(f"{url}/v1/states", json={"model": "linear", "messages": TALK}).json()
    assert made["tokens"] > 5 and made["bytes"] > 0 and made["milliseconds"] >= 0 and made["model"] == "linear"
    behind = chat(url, ASK, state=made["id"])
    whole = chat(url, TALK + ASK)
    assert behind["choices"][0]["message"] == whole["choices"][0]["message"]
    assert behind["usage"]["prompt_tokens_details"]["cached_tokens"] >= made["tokens"]
    fork = httpx2.post(f"{url}/v1/states/{made['id']}/fork").json()
    assert fork["id"] != made["id"] and fork["tokens"] == made["tokens"]
    httpx2.delete(f"{url}/v1/states/{made['id']}").raise_for_status()
    assert chat(url, ASK, state=fork["id"])["choices"] == behind["choices"]
    assert httpx2.get(f"{url}/v1/states/{made['id']}").status_code == 404
    listed = httpx2.get(f"{url}/v1/states").json()["data"]
    assert fork["id"] in [state["id"] for state in listed] and made["id"] not in [state["id"] for state in listed]
    again = httpx2.post(f"{url}/v1/states", json={"model": "linear", "messages": TALK}).json()
    assert again["cached_tokens"] == again["tokens"]  # nothing is read for it


def test_a_text_that_was_read_once_is_gone_on_from(server):
    book = "옛날 옛적에 강가에 여울이라는 아이가 살았습니다. " * 8
    for model in ("linear", "softmax"):
        made = httpx2.post(f"{server.url}/v1/states", json={"model": model, "prompt": book}).json()
        body = {"model": model, "prompt": "\n그래서", "max_tokens": 8, "temperature": 0}
        behind = httpx2.post(f"{server.url}/v1/completions", json={**body, "state": made["id"]}).json()
        ids = [
            token
            for text, special in ((book, True), ("\n그래서", False))
            for token in httpx2.post(
                f"{server.url}/tokenize", json={"model": model, "prompt": text, "add_special_tokens": special}
            ).json()["tokens"]
        ]
        whole = httpx2.post(f"{server.url}/v1/completions", json={**body, "prompt": ids}).json()
        assert behind["choices"][0]["text"] == whole["choices"][0]["text"]
        assert behind["usage"]["prompt_tokens_details"]["cached_tokens"] >= made["tokens"] - 1


def test_files_outlive_the_server_and_are_of_one_model(folders, tmp_path: Path):
    config = ServeConfig(state_dir=tmp_path / "states", max_tokens=10)
    models = [f"linear={folders['linear']}", f"softmax={folders['softmax']}"]
    with listening(server_app(models, config, dtype="float32")) as url:
        body = {"model": "linear", "messages": TALK, "name": "mine"}
        httpx2.post(f"{url}/v1/states", json=body).raise_for_status()
        assert httpx2.post(f"{url}/v1/states", json=body).status_code == 409
        expected = chat(url, ASK, state="mine")["choices"]
    assert (tmp_path / "states" / "mine.state").is_file()
    (tmp_path / "states" / "broken.state").write_bytes(b"nothing of the kind")
    with listening(server_app(models, config, dtype="float32")) as url:
        (state,) = httpx2.get(f"{url}/v1/states").json()["data"]
        assert state["id"] == "mine" and state["model"] == "linear"
        answer = chat(url, ASK, state="mine")
        assert answer["choices"] == expected
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= state["tokens"]
        refused = httpx2.post(f"{url}/v1/chat/completions", json={"model": "softmax", "messages": ASK, "state": "mine"})
        assert refused.status_code == 400 and "of the model" in refused.json()["error"]["message"]
        httpx2.delete(f"{url}/v1/states/mine").raise_for_status()
    assert not (tmp_path / "states" / "mine.state").exists()
    other = [f"linear={folders['tools']}"]  # another model under the same name
    with listening(server_app(models, config, dtype="float32")) as url:
        httpx2.post(f"{url}/v1/states", json={"model": "linear", "messages": TALK, "name": "mine"}).raise_for_status()
    with listening(server_app(other, config, dtype="float32")) as url:
        answer = httpx2.post(f"{url}/v1/chat/completions", json={"messages": ASK, "state": "mine"})
        assert answer.status_code == 400 and "another model" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["../mine", "a/b", "..", ".hidden", "a b", "x" * 65, "가", "", "a.state", "nul\x00"])
def test_a_name_never_is_a_path(server, tmp_path: Path, name: str):
    body = {"model": "linear", "messages": TALK, "name": name}
    answer = httpx2.post(f"{server.url}/v1/states", json=body)
    assert answer.status_code == 400
    body = {"model": "linear", "messages": ASK, "state": name}
    assert httpx2.post(f"{server.url}/v1/chat/completions", json=body).status_code in (400, 404)


def test_a_state_that_cannot_be_written_is_an_error_of_the_server(folders, tmp_path: Path, monkeypatch):
    config = ServeConfig(state_dir=tmp_path / "states", max_tokens=10)
    with listening(server_app([f"linear={folders['linear']}"], config, dtype="float32")) as url:

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("yeoul.serve.states.save_state", full)
        answer = httpx2.post(f"{url}/v1/states", json={"model": "linear", "messages": TALK, "name": "mine"})
        assert answer.status_code == 507 and "No space left" in answer.json()["error"]["message"]
        monkeypatch.undo()
        assert httpx2.get(f"{url}/v1/states/mine").status_code == 404
        httpx2.post(f"{url}/v1/states", json={"model": "linear", "messages": TALK, "name": "mine"}).raise_for_status()


def test_what_cannot_be_kept_is_refused(server):
    for body in (
        {"model": "linear"},
        {"model": "linear", "messages": TALK, "prompt": "x"},
        {"model": "none", "messages": TALK},
        {"model": "linear", "prompt": []},
        {"model": "linear", "prompt": [10**8]},
        {"model": "softmax", "prompt": [5] * 5000},
    ):
        answer = httpx2.post(f"{server.url}/v1/states", json=body)
        assert answer.status_code in (400, 404) and answer.json()["error"]["message"], body
