"""OpenAI's own client against the server, and what it gets against what the library gives."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

openai = pytest.importorskip("openai", reason="the package openai is not installed")

import yeoul  # noqa: E402
from yeoul.infer.engine import end_ids, generate_ids  # noqa: E402
from yeoul.infer.params import SamplingParams  # noqa: E402
from yeoul.text.chat import render_ids  # noqa: E402

MESSAGES = [{"role": "system", "content": "짧게 답해."}, {"role": "user", "content": "오늘 날씨는 어때?"}]
NAMES = ("linear", "softmax")


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def models(server):
    return {name: yeoul.load(folder, dtype="float32") for name, folder in server.folders.items()}


def greedy(models, name: str, prompt: list[int], tokens: int) -> list[int]:
    model, tokenizer = models[name]
    params = SamplingParams(max_tokens=tokens, temperature=0)
    (ids,) = generate_ids(model, [prompt], params, eos_ids=end_ids(model, tokenizer), vocab_size=tokenizer.vocab_size)
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_is_answered_as_the_library_answers_it(client, models, name):
    answer = client.chat.completions.create(model=name, messages=MESSAGES, temperature=0, max_tokens=12)
    _, tokenizer = models[name]
    prompt = render_ids(tokenizer, MESSAGES, add_generation_prompt=True)
    ids = greedy(models, name, prompt, 12)
    assert answer.choices[0].message.content == tokenizer.decode(ids)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.prompt_tokens == len(prompt) and answer.usage.completion_tokens >= len(ids)
    assert answer.model == name and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_the_same_answer_in_pieces(client, name):
    settings = dict(model=name, messages=MESSAGES, temperature=0, max_tokens=12)
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content and len([piece for piece in pieces if piece]) > 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and set(reasons[:-1]) == {None}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0  # the first request has read it


def test_the_next_turn_reads_only_what_is_new_and_is_answered_alike(client, models):
    for name in NAMES:
        _, tokenizer = models[name]
        talk = [{"role": "user", "content": f"이름은 {name}이야. 기억해 둬."}]
        cached = []
        for turn in range(3):
            answer = client.chat.completions.create(model=name, messages=talk, temperature=0, max_tokens=10)
            prompt = render_ids(tokenizer, talk, add_generation_prompt=True)
            said = answer.choices[0].message.content
            assert said == tokenizer.decode(greedy(models, name, prompt, 10)), f"turn {turn} of {name}"
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
            talk += [{"role": "assistant", "content": said}, {"role": "user", "content": f"{turn}번째 질문이야."}]
        assert cached[1] > 0 and cached[2] > cached[1], f"{name}: {cached}"


def test_choices_with_a_seed_differ_and_come_again(client):
    settings = dict(model="linear", messages=MESSAGES, n=3, seed=7, temperature=1.5, max_tokens=10)
    first, second = (client.chat.completions.create(**settings) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices] and len(set(texts)) > 1
    alone = client.chat.completions.create(**settings | {"n": 1, "seed": 8})
    assert alone.choices[0].message.content == texts[1]  # choice i draws with seed + i
    assert [choice.index for choice in first.choices] == [0, 1, 2]


def test_a_stop_string_ends_the_answer_before_it(client):
    settings = dict(model="linear", messages=MESSAGES, temperature=0, max_tokens=20)
    whole = client.chat.completions.create(**settings).choices[0].message.content
    stop = whole[5:8]
    cut = client.chat.completions.create(**settings, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**settings, stop=stop, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
    assert "".join(pieces) == whole[: whole.index(stop)]


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_of_the_prompt_are_the_models(client, models, name):
    model, tokenizer = models[name]
    ids = tokenizer.encode("옛날 옛적에 어느 마을에 나무꾼이 살았습니다.")
    answer = client.completions.create(model=name, prompt=ids, echo=True, logprobs=2, max_tokens=1, temperature=0)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0, :, : tokenizer.vocab_size].float().log_softmax(-1)
    told = answer.choices[0].logprobs
    assert (
        len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == len(ids) + 1
    )
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    for place in range(1, len(ids)):
        assert told.token_logprobs[place] == pytest.approx(float(expected[place - 1, ids[place]]), abs=1e-4)
        assert max(told.top_logprobs[place].values()) == pytest.approx(float(expected[place - 1].max()), abs=1e-4)
    assert told.token_logprobs[-1] == max(told.top_logprobs[-1].values())  # greedy
    assert answer.choices[0].text.startswith(tokenizer.decode(ids))


def test_log_probabilities_of_a_chat(client, models):
    answer = client.chat.completions.create(
        model="linear", messages=MESSAGES, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob <= 0
        assert math.exp(token.logprob) <= 1
    data = b"".join(bytes(token.bytes) for token in content)
    assert data.decode(errors="replace").strip("\ufffd").strip() in answer.choices[0].message.content


def test_several_prompts_are_several_choices(client, models):
    _, tokenizer = models["linear"]
    prompts = ["옛날에", "어느 날", "바다가"]
    together = client.completions.create(model="linear", prompt=prompts, temperature=0, max_tokens=6)
    for number, prompt in enumerate(prompts):
        alone = client.completions.create(model="linear", prompt=prompt, temperature=0, max_tokens=6)
        assert together.choices[number].text == alone.choices[0].text
        assert yeoul.generate(*models["linear"], prompt, max_tokens=6, temperature=0) == alone.choices[0].text
    assert together.usage.completion_tokens == sum(1 for _ in range(18))


def test_a_bias_rules_tokens_out_and_in(client, models):
    _, tokenizer = models["linear"]
    token = tokenizer.encode("나무")[0]
    answer = client.completions.create(
        model="linear", prompt="옛날에", temperature=0, max_tokens=3, logit_bias={str(token): 100}, logprobs=0
    )
    assert answer.choices[0].text == tokenizer.decode([token] * 3)


@pytest.mark.parametrize("stream", [False, True])
def test_json_by_a_schema(client, stream):
    schema = {
        "type": "object",
        "properties": {"맛": {"enum": ["달다", "짜다"]}},
        "required": ["맛"],
        "additionalProperties": False,
    }
    settings = dict(
        model="linear", messages=MESSAGES, max_tokens=60, seed=1, stream=stream,
        response_format={"type": "json_schema", "json_schema": {"name": "taste", "schema": schema}},
    )  # fmt: skip
    answer = client.chat.completions.create(**settings)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
    assert json.loads(text)["맛"] in ("달다", "짜다")


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "날씨를 알려 준다 <|end|>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["서울", "부산"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_must_be_called_is_called(client, choice):
    settings = dict(model="tools", messages=MESSAGES, tools=[WEATHER], tool_choice=choice, max_tokens=80, seed=3)
    answer = client.chat.completions.create(**settings).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("서울", "부산")
    chunks = list(client.chat.completions.create(**settings, stream=True))
    calls = [call for chunk in chunks for call in (chunk.choices[0].delta.tool_calls or ())]
    assert json.loads("".join(call.function.arguments for call in calls)) == json.loads(call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    talk = [
        *MESSAGES,
        answer.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "맑음"},
    ]
    assert client.chat.completions.create(model="tools", messages=talk, tools=[WEATHER], max_tokens=4).choices


def test_tools_are_refused_where_the_template_takes_none(client):
    with pytest.raises(openai.BadRequestError, match="takes no tools"):
        client.chat.completions.create(model="linear", messages=MESSAGES, tools=[WEATHER])


def test_responses(client, models):
    answer = client.responses.create(
        model="linear", input="안녕?", instructions="짧게.", temperature=0, max_output_tokens=8
    )
    chat = client.chat.completions.create(
        model="linear", temperature=0, max_tokens=8,
        messages=[{"role": "system", "content": "짧게."}, {"role": "user", "content": "안녕?"}],
    )  # fmt: skip
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens and answer.status in ("completed", "incomplete")
    events = list(
        client.responses.create(
            model="linear",
            input=[{"role": "user", "content": [{"type": "input_text", "text": "안녕?"}]}],
            instructions="짧게.",
            temperature=0,
            max_output_tokens=8,
            stream=True,
        )  # fmt: skip
    )
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.output_text
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].response.output_text == answer.output_text


def test_a_tool_by_responses(client):
    answer = client.responses.create(
        model="tools", input="날씨?", tools=[{"type": "function", **WEATHER["function"]}], tool_choice="required",
        max_output_tokens=80,
    )  # fmt: skip
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather" and json.loads(call.arguments)["city"] in ("서울", "부산")


def test_models_are_listed(client, server):
    assert [model.id for model in client.models.list()] == list(server.folders)
    linear, softmax = client.models.retrieve("linear"), client.models.retrieve("softmax")
    assert linear.meta["linear"] and not softmax.meta["linear"]
    assert linear.meta["bytes_per_token"] == 0 < softmax.meta["bytes_per_token"]


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"model": "none"}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
        ({"messages": [{"role": "nobody", "content": "x"}]}, openai.BadRequestError),
        ({"messages": [{"role": "user"}]}, openai.BadRequestError),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            openai.BadRequestError,
        ),
        ({"temperature": -1}, openai.BadRequestError),
        ({"temperature": float("1e999")}, openai.BadRequestError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"max_tokens": "many"}, openai.BadRequestError),
        ({"n": 10**9}, openai.BadRequestError),
        ({"stop": [""]}, openai.BadRequestError),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError),
        ({"logit_bias": {"99999999": 1}}, openai.BadRequestError),
        ({"top_logprobs": 3}, openai.BadRequestError),
        ({"tool_choice": "required"}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "아주 긴 글 " * 2000}], "model": "softmax"}, openai.BadRequestError),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(client, changes, error):
    settings = {"model": "linear", "messages": MESSAGES, "max_tokens": 4, **changes}
    with pytest.raises((error, ValueError)) as raised:
        client.chat.completions.create(**settings)
    if isinstance(raised.value, openai.APIStatusError):
        body = raised.value.body
        assert body["message"] and "Traceback" not in body["message"] and body["type"]


def test_a_client_that_goes_away_frees_its_row(client, server):
    engine = next(model for model in server.app.state.models if model.name == "linear").engine
    stream = client.chat.completions.create(model="linear", messages=MESSAGES, max_tokens=900, stream=True,
                                            extra_body={"ignore_eos": True})  # fmt: skip
    next(iter(stream))
    assert engine.stats().decoding + engine.stats().reading >= 1
    stream.close()
    end = time.monotonic() + 10
    while engine.stats().decoding + engine.stats().reading and time.monotonic() < end:
        time.sleep(0.02)
    assert engine.stats().decoding == engine.stats().reading == 0
    assert engine.stats().finished["cancelled"] >= 1
