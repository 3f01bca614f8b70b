"""Many clients at once, other endpoints, and the process itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

httpx2 = pytest.importorskip("httpx2", reason="the client of these tests is not installed")

import yeoul  # noqa: E402
from serve.conftest import listening  # noqa: E402
from yeoul.infer.engine import end_ids, generate_ids  # noqa: E402
from yeoul.infer.params import SamplingParams  # noqa: E402
from yeoul.recipes.serve import ServeConfig, server_app  # noqa: E402
from yeoul.serve.logprobs import token_text  # noqa: E402


def test_thirty_two_clients_that_come_at_random_get_what_each_would_get_alone(server):
    dice = random.Random(0)
    loaded = {name: yeoul.load(folder, dtype="float32") for name, folder in server.folders.items()}
    asked = []
    for _ in range(32):
        name = dice.choice(("linear", "softmax"))
        tokenizer = loaded[name][1]
        length = dice.choice((1, 3, 20, 70, 300))
        ids = [dice.randrange(4, tokenizer.vocab_size) for _ in range(length)]
        asked.append((name, ids, dice.randrange(1, 40), dice.random()))

    async def one(client, name, ids, tokens, delay) -> list[str]:
        await asyncio.sleep(delay)
        body = {"model": name, "prompt": ids, "max_tokens": tokens, "temperature": 0, "logprobs": 0}
        answer = await client.post(f"{server.url}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["logprobs"]["tokens"]

    async def all_of_them() -> list[list[str]]:
        async with httpx2.AsyncClient(timeout=120) as client:
            return await asyncio.gather(*(one(client, *request) for request in asked))

    answers = asyncio.run(all_of_them())
    for (name, ids, tokens, _), found in zip(asked, answers, strict=True):
        model, tokenizer = loaded[name]
        params = SamplingParams(max_tokens=tokens, temperature=0)
        (alone,) = generate_ids(
            model, [ids], params, eos_ids=end_ids(model, tokenizer), vocab_size=tokenizer.vocab_size
        )
        assert found[: len(alone)] == [token_text(tokenizer, token) for token in alone]
        assert len(found) - len(alone) in (0, 1)  # the end token is told, too


def test_tokens_and_back(server):
    text = "옛날 옛적에 <|end|> 여울"
    for special in (True, False):
        answer = httpx2.post(f"{server.url}/tokenize", json={"prompt": text, "parse_special": special}).json()
        tokenizer = yeoul.Tokenizer.load(server.folders["linear"])
        assert answer["count"] == len(answer["tokens"])
        assert (tokenizer.token_id("<|end|>") in answer["tokens"]) == special
        back = httpx2.post(f"{server.url}/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]
        assert back.replace(" ", "") == text.replace(" ", "")
    talk = {"messages": [{"role": "user", "content": "<|end|>"}]}
    ids = httpx2.post(f"{server.url}/tokenize", json=talk).json()["tokens"]
    assert ids.count(tokenizer.token_id("<|end|>")) == 1  # the template's own; the user's is text
    info = httpx2.get(f"{server.url}/tokenizer_info").json()
    assert info["vocab_size"] == tokenizer.vocab_size and info["chat_template"]


def test_ollamas_clients(server):
    tags = httpx2.get(f"{server.url}/api/tags").json()["models"]
    assert [tag["name"] for tag in tags] == list(server.folders)
    body = {"model": "linear:latest", "messages": [{"role": "user", "content": "안녕?"}],
            "options": {"temperature": 0, "num_predict": 8}}  # fmt: skip
    whole = httpx2.post(f"{server.url}/api/chat", json={**body, "stream": False}).json()
    lines = [json.loads(line) for line in httpx2.post(f"{server.url}/api/chat", json=body).text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["eval_count"] == whole["eval_count"] and whole["done_reason"] in ("length", "stop")
    shaped = httpx2.post(f"{server.url}/api/chat", json={
        **body, "stream": False,
        "format": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                   "additionalProperties": False},
        "options": {"num_predict": 60},
    })  # fmt: skip
    assert json.loads(shaped.json()["message"]["content"])["a"] in (True, False)
    assert httpx2.post(f"{server.url}/api/chat", json={**body, "options": {"temperature": -1}}).status_code == 400


def test_metrics_are_what_prometheus_reads(server):
    parser = pytest.importorskip("prometheus_client.parser")
    httpx2.post(f"{server.url}/v1/completions", json={"prompt": "옛날", "max_tokens": 2})
    families = {f.name: f for f in parser.text_string_to_metric_families(httpx2.get(f"{server.url}/metrics").text)}
    assert {"yeoul_requests", "yeoul_decoding", "yeoul_snapshot_bytes", "yeoul_completion_tokens"} <= set(families)
    drawn = {sample.labels["model"]: sample.value for sample in families["yeoul_completion_tokens"].samples}
    assert drawn["linear"] >= 2 and set(drawn) == set(server.folders)
    routes = {sample.labels["route"] for sample in families["yeoul_request_seconds"].samples}
    assert "/v1/completions" in routes and not any("nowhere" in route for route in routes)


def test_a_full_queue_is_refused(folders):
    config = ServeConfig(max_rows=1, max_waiting=1, max_tokens=400)
    app = server_app([f"linear={folders['linear']}"], config, dtype="float32")
    with listening(app) as url:

        async def ask(client) -> int:
            body = {"prompt": "옛날", "max_tokens": 200, "ignore_eos": True}
            return (await client.post(f"{url}/v1/completions", json=body)).status_code

        async def many() -> list[int]:
            async with httpx2.AsyncClient(timeout=60) as client:
                return await asyncio.gather(*(ask(client) for _ in range(8)))

        statuses = asyncio.run(many())
        assert statuses.count(429) >= 1 and statuses.count(200) >= 1 and set(statuses) == {200, 429}


def test_a_screen_refuses_questions_and_answers(folders):
    class NoWater:
        """Refuses what tells of water."""

        def __call__(self, messages, answer):
            text = messages[-1]["content"] if answer is None else answer
            return "it tells of water" if "물" in text or answer == "" else None

    app = server_app([f"linear={folders['linear']}"], ServeConfig(max_tokens=4), dtype="float32")
    for model in app.state.models:
        model.screen = NoWater()
    with listening(app) as url:
        for stream in (False, True):
            body = {"messages": [{"role": "user", "content": "물?"}], "stream": stream}
            answer = httpx2.post(f"{url}/v1/chat/completions", json=body)
            assert "content_filter" in answer.text and "it tells of water" in answer.text
            body["messages"][0]["content"] = "산?"
            assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        for stream in (False, True):  # no way around it
            answer = httpx2.post(f"{url}/v1/completions", json={"prompt": "물", "stream": stream})
            assert answer.status_code == 403 and answer.json()["error"]["code"] == "screened"


@pytest.mark.slow
def test_its_own_description_allows_nothing_that_fails(server):
    schemathesis = pytest.importorskip("schemathesis", reason="the package schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    limits = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
                      suppress_health_check=list(HealthCheck))  # fmt: skip
    checked, beyond_schema = set(), schemathesis.checks.CHECKS.get_one("positive_data_acceptance")

    def check(case) -> None:
        if isinstance(case.body, dict):  # long answers are another test
            for key in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
                if isinstance(case.body.get(key), int) and case.body[key] > 2:
                    case.body[key] = 2
        checked.add(case.operation.label)
        case.call_and_validate(excluded_checks=[beyond_schema])

    for result in schema.get_all_operations():
        limits(given(case=result.ok().as_strategy())(check))()
    assert len(checked) >= 12


def serve_process(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "yeoul.cli", "serve", *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Ready: "):
            return line.split()[1]
    raise AssertionError("the server ended before it was ready")


def test_the_command_answers_drains_and_ends(folders, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("# one\nsecret\n")
    process = serve_process(f"m={folders['linear']}", "--port", "0", "--api-key-file", str(keys), "--dtype", "float32")
    try:
        url = wait_until_ready(process)
        body = {"prompt": "옛날", "max_tokens": 600, "ignore_eos": True, "stream": True}
        assert httpx2.post(f"{url}/v1/completions", json=body).status_code == 401
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
            process.send_signal(signal.SIGTERM)
            assert b"[DONE]" in answer.read()  # it was let end
        assert process.wait(30) in (143, -signal.SIGTERM)
    finally:
        process.kill()
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_a_port_in_use_a_missing_model_and_a_bad_key_file_are_one_sentence(server, folders, tmp_path: Path):
    port = server.url.rsplit(":", 1)[1]
    for arguments, said in (
        ((str(folders["linear"]), "--port", port), "cannot listen"),
        ((str(tmp_path / "nothing"), "--port", "0"), "nothing"),
        ((str(folders["linear"]), "--port", "0", "--api-key-file", str(tmp_path / "none")), "keys cannot be read"),
        ((f"a={folders['linear']}", f"a={folders['softmax']}", "--port", "0"), "the same name"),
        ((), "MODELS is missing"),
        ((str(folders["linear"]), "--port", "0", "--state-dir", "/proc/none"), "folder for states cannot be made"),
    ):
        process = serve_process(*arguments)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2 and said in errors and "Traceback" not in errors, errors
        assert len([line for line in errors.splitlines() if line.startswith("yeoul:")]) == 1


def test_health_tells_whether_it_can_answer(server):
    assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}
