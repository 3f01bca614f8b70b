"""lm-eval asks the server as it would ask any other, and finds what our own class finds."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="standard tasks need the extra [eval]")

from yeoul.recipes.tasks.run import TasksConfig, evaluate_tasks  # noqa: E402


def likelihoods(result: Any) -> list[tuple[str, int, list[float], list[bool]]]:
    """Of every question, by task."""
    return [
        (task, sample["doc_id"], [float(r[0][0]) for r in sample["resps"]], [bool(r[0][1]) for r in sample["resps"]])
        for task, samples in result.samples.items()
        for sample in sorted(samples, key=lambda sample: sample["doc_id"])
    ]


def completions(server: Any, name: str) -> Any:
    """lm-eval's `local-completions`."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model=name, base_url=f"{server.url}/v1/completions", tokenizer_backend="remote", num_concurrent=2,
        max_retries=1, max_length=1024, batch_size=2,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_local_completions_finds_the_same(server, name):
    config = TasksConfig(limit=4)
    expected = evaluate_tasks(server.folders[name], "yeoul_korean", config, device="cpu", dtype="float32")
    found = evaluate_tasks(completions(server, name), "yeoul_korean", config)
    for mine, other in zip(likelihoods(found), likelihoods(expected), strict=True):
        assert mine[:2] == other[:2] and mine[3] == other[3]
        assert mine[2] == pytest.approx(other[2], abs=1e-4, rel=0)
    assert found.tasks == expected.tasks and found.groups == expected.groups


def test_local_chat_completions_writes_the_same(server):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    import yeoul

    lm = LocalChatCompletion(model="linear", base_url=f"{server.url}/v1/chat/completions", max_retries=1)
    asked = [[{"role": "user", "content": text}] for text in ("안녕?", "오늘 뭐 했어?")]
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    requests = [Instance("generate_until", {}, (lm.apply_chat_template(talk), settings), 0) for talk in asked]
    answers = lm.generate_until(requests, disable_tqdm=True)
    params = yeoul.SamplingParams(temperature=0, max_tokens=8, stop=("\n",))
    model, tokenizer = yeoul.load(server.folders["linear"], dtype="float32")
    assert answers == [yeoul.Chat(model, tokenizer, params)(talk[0]["content"]) for talk in asked]
