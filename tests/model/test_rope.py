"""Rotary positions that depend on how long a text is: each text by itself, however it is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models import rms_ratio
from yeoul.infer.engine import generate_ids
from yeoul.infer.generation import Generation, evaluating
from yeoul.infer.params import SamplingParams
from yeoul.model.checkpoint import load_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.rope import RopeScaling

SWITCH = 24
LONG: dict[str, Any] = dict(
    rope_type="longrope", original_max_position_embeddings=SWITCH, short_factor=[1.0] * 4,
    long_factor=[1.5, 3.0, 6.0, 9.0],
)  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "longrope": dict(rope_scaling=LONG, max_position_embeddings=128),
    "dynamic": dict(rope_scaling=dict(rope_type="dynamic", factor=4.0), max_position_embeddings=SWITCH),
}
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def model_of(way: str, attention: tuple[str, ...] = ("softmax",)) -> Decoder:
    torch.manual_seed(4)
    settings: dict[str, Any] = dict(
        vocab_size=90, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, initializer_range=0.4,
        attention=attention, window=6,
    )  # fmt: skip
    return Decoder(ModelConfig(**settings | WAYS[way])).eval()


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 90, (length,), generator=torch.Generator().manual_seed(seed + length)).tolist()


def alone(model: Decoder, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]))[0]


def padded(texts: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, texts))
    ids, mask = torch.zeros(len(texts), width, dtype=torch.int64), torch.zeros(len(texts), width, dtype=torch.int64)
    for row, own in enumerate(texts):
        place = slice(width - len(own), width) if left else slice(len(own))
        ids[row, place], mask[row, place] = torch.tensor(own), 1
    return ids, mask


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_neighbours_and_padding_change_nothing(way: str, left: bool) -> None:
    model, texts = model_of(way), [text(8), text(SWITCH), text(SWITCH + 1), text(50)]
    ids, mask = padded(texts, left)
    found = model(ids, mask)
    for row, own in enumerate(texts):
        assert rms_ratio(found[row][mask[row].bool()], alone(model, own)) < 1e-5
    if left:
        cache = model.new_cache(len(texts))
        assert rms_ratio(model(ids, mask, cache=cache)[0][mask[0].bool()], alone(model, texts[0])) < 1e-5


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_packed_sequences_are_texts_of_their_own(way: str) -> None:
    model, texts = model_of(way), [text(8), text(40), text(SWITCH)]
    ids = torch.tensor([[*texts[0], *texts[1], *texts[2], 0, 0]])
    numbers = torch.tensor([[0] * 8 + [1] * 40 + [2] * SWITCH + [-1, -1]])
    positions = torch.tensor([[*range(8), *range(40), *range(SWITCH), 0, 0]])
    found = model(ids, positions=positions, seq_ids=numbers)[0]
    for number, own in enumerate(texts):
        assert rms_ratio(found[numbers[0] == number], alone(model, own)) < 1e-5


@torch.no_grad()
def step_by_step(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """Each token by the model's answer to the whole text so far, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(alone(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("attention", [("softmax",), ("sliding", "softmax"), ("hybrid",)])
def test_answers_are_those_to_the_whole_text_whatever_is_read_beside_it_and_in_which_pieces(attention: Any) -> None:
    model = model_of("longrope", attention)
    prompts = [text(8), text(SWITCH - 5), text(SWITCH), text(SWITCH + 1), text(60), text(SWITCH - 5)]
    wanted = [step_by_step(model, prompt, GREEDY.max_tokens) for prompt in prompts]
    assert generate_ids(model, prompts, GREEDY) == wanted
    for prompt, answer in zip(prompts, wanted, strict=True):
        assert generate_ids(model, [prompt], GREEDY) == [answer]
    generation = Generation(model, prompts, GREEDY, prefill_chunk=7)
    with evaluating(model):
        while generation.step():
            pass
    assert [row.ids for row in generation.rows] == wanted


def test_an_answer_begins_alike_however_long_it_may_become() -> None:
    model, prompt = model_of("longrope"), text(SWITCH - 5)
    (longer,) = generate_ids(model, [prompt], SamplingParams(temperature=0, max_tokens=40))
    (shorter,) = generate_ids(model, [prompt], SamplingParams(temperature=0, max_tokens=10))
    assert longer[:10] == shorter


def test_the_switch_shows_in_the_answer() -> None:
    """Otherwise the tests above would hold for a model that is turned one way only."""
    model, prompt = model_of("longrope"), text(SWITCH - 2)
    answer = step_by_step(model, prompt, 12)
    short = Decoder(model.config.with_(rope_scaling=RopeScaling(**LONG | dict(long_factor=LONG["short_factor"]))))
    short.load_state_dict(model.state_dict())
    assert step_by_step(short.eval(), prompt, 12) != answer


@torch.no_grad()
def test_what_a_cache_holds_is_turned_one_way() -> None:
    """Read on its own, without a word of how long the text will be, the first columns decide."""
    model, ids = model_of("longrope"), torch.tensor([text(40)])
    whole = model(ids)
    told, untold = model.new_cache(), model.new_cache()
    told.expect(torch.tensor([40]))
    assert rms_ratio(torch.cat([model(part, cache=told) for part in ids.split(10, 1)], 1), whole) < 1e-5
    short = torch.cat([model(part, cache=untold) for part in ids.split(10, 1)], 1)
    scaling = LONG | dict(long_factor=LONG["short_factor"])
    always = Decoder(model.config.with_(rope_scaling=RopeScaling(**scaling)))
    always.load_state_dict(model.state_dict())
    assert rms_ratio(short, always.eval()(ids)) < 1e-5 and rms_ratio(short, whole) > 1e-3


def test_a_text_that_outgrows_its_first_length_goes_on_as_in_transformers(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.4, rope_parameters=dict(rope_theta=1e4, **LONG),
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    prompt = text(SWITCH - 5)
    ids = torch.tensor([prompt])
    wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                             use_cache=False)[0, len(prompt) :].tolist()  # fmt: skip
    assert generate_ids(load_model(tmp_path), [prompt, text(60)], GREEDY)[0] == wanted
