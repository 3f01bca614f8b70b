"""Generation on token ids with real, random decoders of every kind of attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from yeoul.errors import UserError
from yeoul.infer.engine import generate_ids
from yeoul.infer.generation import Generation
from yeoul.infer.sample import SamplingParams
from yeoul.model.decoder import Decoder

Tiny = Callable[..., Decoder]
KINDS = ("softmax", "sliding", "dijiang", "hybrid")
PROMPTS = [[1, 2, 3], [250] * 30, [9], list(range(40, 57))]
GREEDY = SamplingParams(max_tokens=16, temperature=0)


def whole_greedy(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """The definition: the whole sequence again for every token, no cache."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def chunked(model: Decoder, prompts: list[list[int]], params: SamplingParams, chunk: int) -> list[list[int]]:
    generation = Generation(model, prompts, params, prefill_chunk=chunk)
    while generation.step():
        pass
    return [row.ids for row in generation.rows]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_with_cache_is_greedy_without(tiny: Tiny, kind: str) -> None:
    model = tiny(kind)
    for prompt in PROMPTS:
        assert generate_ids(model, [prompt], GREEDY) == [whole_greedy(model, prompt, 16)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_tokens=16, top_p=0.95, top_k=50, seed=5)])
def test_a_batch_is_its_rows_one_by_one(tiny: Tiny, kind: str, params: SamplingParams) -> None:
    model = tiny(kind)
    together = generate_ids(model, PROMPTS, params)
    seeds = [None if params.temperature == 0 else 5 + i for i in range(len(PROMPTS))]
    alone = [generate_ids(model, [p], replace(params, seed=s))[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert together == alone


OWN = [
    SamplingParams(max_tokens=16, temperature=1.2, top_k=5, seed=3),
    GREEDY,
    SamplingParams(max_tokens=9, temperature=0.7, top_p=0.6, seed=3, repetition_penalty=1.5),
    SamplingParams(max_tokens=12, temperature=1.2, min_p=0.2, seed=11, ignore_eos=True),
]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_settings_of_their_own_are_as_if_alone(tiny: Tiny, kind: str) -> None:
    """One batch of different settings, one prompt of them twice: each row as with its settings alone, seed included."""
    model = tiny(kind)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[3]]
    alone = [generate_ids(model, [p], own, eos_ids={7})[0] for p, own in zip(prompts, OWN, strict=True)]
    generation = Generation(model, prompts, OWN, eos_ids={7})
    while generation.step():
        pass
    assert [row.ids for row in generation.rows] == alone
    assert len(alone[3]) == 12 and len(alone[2]) <= 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_of_the_prefill_do_not_matter(tiny: Tiny, kind: str, chunk: int) -> None:
    model = tiny(kind)
    assert chunked(model, PROMPTS, GREEDY, chunk) == generate_ids(model, PROMPTS, GREEDY)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_leave_at_their_end_and_the_rest_goes_on(tiny: Tiny, kind: str) -> None:
    model = tiny(kind)
    free = generate_ids(model, PROMPTS, GREEDY)
    ends = {free[0][5], free[2][2]}  # each row stops at the first of these
    expected = [ids[: next((i for i, t in enumerate(ids) if t in ends), 16)] for ids in free]
    seen: list[tuple[int, int]] = []
    got = generate_ids(model, PROMPTS, GREEDY, eos_ids=ends, on_token=lambda row, token: seen.append((row, token)))
    assert got == expected and len({len(ids) for ids in got}) > 1
    for row, ids in enumerate(free):
        assert [t for r, t in seen if r == row] == ids[: len(expected[row]) + 1]


def test_ignore_eos_goes_on(tiny: Tiny) -> None:
    model = tiny()
    free = generate_ids(model, PROMPTS, GREEDY)
    assert generate_ids(model, PROMPTS, replace(GREEDY, ignore_eos=True), eos_ids=[free[0][3]]) == free


def test_same_seed_same_text_other_seed_other_text(tiny: Tiny) -> None:
    model, params = tiny(), SamplingParams(max_tokens=16, temperature=1.5, seed=1)
    first = generate_ids(model, [[1, 2]] * 3, params)
    assert first == generate_ids(model, [[1, 2]] * 3, params)
    assert len({tuple(ids) for ids in first}) == 3
    assert first[1:] == generate_ids(model, [[1, 2]] * 2, replace(params, seed=2))
    assert first != generate_ids(model, [[1, 2]] * 3, replace(params, seed=100))


def test_repetition_penalty_reads_prompt_and_answer(tiny: Tiny) -> None:
    model = tiny()
    ids = generate_ids(model, [[1, 2, 3], [4]], replace(GREEDY, repetition_penalty=1e9))
    for prompt, answer in zip([[1, 2, 3], [4]], ids, strict=True):
        assert len(set(prompt + answer)) == len(prompt) + len(answer)


def test_ids_beyond_the_tokenizer_are_never_drawn(tiny: Tiny) -> None:
    params = SamplingParams(max_tokens=64, temperature=5.0, seed=0)
    ids = generate_ids(tiny(), [[1], [2, 3]], params, vocab_size=40)
    assert max(map(max, ids)) < 40 and max(map(max, generate_ids(tiny(), [[1], [2, 3]], params))) >= 40


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal"])
def test_softmax_models_stop_where_their_context_ends(tiny: Tiny, positions: str) -> None:
    model = tiny("softmax", positions=positions, max_position_embeddings=16)
    generation = Generation(model, [[1] * 10, [1]], replace(GREEDY, max_tokens=50))
    while generation.step():
        pass
    assert [len(row.ids) for row in generation.rows] == [6, 15]
    assert {row.finish_reason for row in generation.rows} == {"length"}
    with pytest.raises(UserError, match="context longer than the model's.*17 tokens.*16"):
        generate_ids(model, [[1], [1] * 17], GREEDY)
    with pytest.raises(UserError, match="prompt 2"):
        generate_ids(model, [[1], [1] * 16], GREEDY)


@pytest.mark.parametrize("kind", ["sliding", "dijiang", "hybrid"])
def test_linear_models_run_on_past_their_context(tiny: Tiny, kind: str) -> None:
    model = tiny(kind, max_position_embeddings=16)
    (ids,) = generate_ids(model, [list(range(20))], GREEDY)
    assert ids == whole_greedy(model, list(range(20)), 16)


def test_linear_models_with_a_table_of_positions_stop(tiny: Tiny) -> None:
    model = tiny("dijiang", positions="learned", max_position_embeddings=16)
    assert len(generate_ids(model, [[1] * 10], GREEDY)[0]) == 6


def test_prompts_that_cannot_be_read(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="empty.*prompt 2"):
        generate_ids(tiny(), [[1], []], GREEDY)
    with pytest.raises(UserError, match="beyond the model's 300"):
        generate_ids(tiny(), [[300]], GREEDY)
    assert generate_ids(tiny(), [], GREEDY) == []


def test_numbers_that_are_not_finite_are_reported(tiny: Tiny) -> None:
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        generate_ids(model, [[1]], GREEDY)


def test_half_precision(tiny: Tiny) -> None:
    ids = generate_ids(tiny("hybrid").bfloat16(), PROMPTS, replace(GREEDY, max_tokens=4))
    assert [len(i) for i in ids] == [4] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_after_generating(tiny: Tiny, kind: str) -> None:
    """Tables that generation left behind must be usable under autograd, and the mode comes back."""
    model = tiny(kind, rope_theta=1234.0).train()
    generate_ids(model, [[1, 2, 3]], replace(GREEDY, max_tokens=2))
    assert model.training
    model(torch.arange(1, 31)[None]).sum().backward()  # more than a window, behind which the state is read
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_penalties_count_what_the_answer_has(tiny: Callable[..., Decoder]) -> None:
    model = tiny("softmax")
    prompts = [[5, 6, 7], [9]]
    plain = generate_ids(model, prompts, SamplingParams(max_tokens=30, temperature=0))
    assert any(len(set(ids)) < 25 for ids in plain)
    params = SamplingParams(max_tokens=30, temperature=0, presence_penalty=2, frequency_penalty=2)
    varied = generate_ids(model, prompts, params)
    assert varied == [generate_ids(model, [prompt], params)[0] for prompt in prompts]
    assert sum(map(len, map(set, varied))) > sum(map(len, map(set, plain)))
    with pytest.raises(UserError, match="--logit-bias"):
        generate_ids(model, prompts, SamplingParams(logit_bias={300: 1}))  # type: ignore[arg-type]
