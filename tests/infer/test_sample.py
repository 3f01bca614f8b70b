"""Sampling functions against transformers' logits processors, by their definitions, and by counting draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yeoul.errors import UserError
from yeoul.infer import sample as s
from yeoul.infer.sample import SamplingParams

hf = pytest.importorskip("transformers.generation.logits_process")


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return torch.isfinite(logits[0]).nonzero().flatten().tolist()


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(5, 301, generator=torch.Generator().manual_seed(1)) * 4


@pytest.mark.parametrize("k", [1, 2, 50, 300, 301, 1000])
def test_top_k_is_transformers(logits: torch.Tensor, k: int) -> None:
    torch.testing.assert_close(s.top_k(logits, k), hf.TopKLogitsWarper(k)(None, logits), rtol=0, atol=0)


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_transformers(logits: torch.Tensor, p: float) -> None:
    torch.testing.assert_close(s.top_p(logits, p), hf.TopPLogitsWarper(p)(None, logits), rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1.0])
def test_min_p_is_transformers(logits: torch.Tensor, share: float) -> None:
    torch.testing.assert_close(s.min_p(logits, share), hf.MinPLogitsWarper(share)(None, logits), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.1, 0.7, 1.0, 3.0])
def test_temperature_is_transformers(logits: torch.Tensor, value: float) -> None:
    torch.testing.assert_close(s.temperature(logits, value), hf.TemperatureLogitsWarper(value)(None, logits))


@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.3])
def test_repetition_penalty_is_transformers(logits: torch.Tensor, penalty: float) -> None:
    ids = torch.randint(0, 301, (5, 40))  # with repeats, which count once
    expected = hf.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    seen = s.seen_tokens(ids.tolist(), 301)
    torch.testing.assert_close(s.repetition_penalty(logits, seen, penalty), expected)


def test_all_together_is_transformers(logits: torch.Tensor) -> None:
    ids = torch.randint(0, 301, (5, 40))
    params = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2)
    expected = hf.RepetitionPenaltyLogitsProcessor(1.2)(ids, logits.clone())
    for warper in (hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(40), hf.TopPLogitsWarper(0.9)):
        expected = warper(ids, expected)
    expected = hf.MinPLogitsWarper(0.02)(ids, expected)
    ours = s.shape_logits(logits, params, s.seen_tokens(ids.tolist(), 301))
    torch.testing.assert_close(ours.softmax(-1), expected.softmax(-1))


def test_functions_leave_their_input_alone(logits: torch.Tensor) -> None:
    before = logits.clone()
    seen = torch.ones_like(logits, dtype=torch.bool)
    params = SamplingParams(temperature=0.5, top_k=5, top_p=0.5, min_p=0.5, repetition_penalty=2.0, seed=0)
    s.sample(logits, params, s.row_generators(0, range(5)), seen)
    assert torch.equal(logits, before)


def test_top_k_takes_lowest_ids_of_equals() -> None:
    assert kept(s.top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), 2)) == [1, 2]
    assert kept(s.top_k(torch.tensor([[5.0, 2.0, 2.0, 2.0, 9.0]]), 3)) == [0, 1, 4]


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.01, [1]), (0.5, [1]), (0.51, [1, 2]), (0.8, [1, 2]), (0.81, [0, 1, 2]), (1.0, [0, 1, 2])],
)
def test_top_p_is_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    assert kept(s.top_p(logits_of(0.2, 0.5, 0.3), p)) == expected


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30),
    st.floats(0.01, 1.0),
)
@settings(max_examples=100, deadline=None)
def test_top_p_properties(values: list[float], p: float) -> None:
    logits = torch.tensor([values])
    probability = logits.double().softmax(-1)[0]
    out = s.top_p(logits, p)
    ids = kept(out)
    assert ids and int(logits.argmax()) in ids
    mass = float(probability[ids].sum())
    assert mass >= min(p, 1.0) - 2e-7
    if p < 1 and len(ids) > 1:  # without its least likely member the set no longer reaches p
        assert mass - float(probability[ids].min()) < p
    assert torch.equal(out[0, ids], logits[0, ids])


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=30), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_top_k_keeps_exactly_k(values: list[float], k: int) -> None:
    logits = torch.tensor([values])
    ids = kept(s.top_k(logits, k))
    assert len(ids) == min(k, len(values))
    dropped = [v for i, v in enumerate(values) if i not in ids]
    assert not dropped or max(dropped) <= min(values[i] for i in ids)


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.0, 0.15, 0.0999, 0.0001])
    rows = 2000
    generators = s.row_generators(0, range(rows))
    counts = torch.zeros(6)
    for _ in range(5):
        counts += torch.bincount(s.draw(probabilities.log().expand(rows, -1), generators), minlength=6)
    assert counts[2] == 0
    expected = probabilities * counts.sum()
    chi_square = float(((counts - expected) ** 2 / expected)[expected > 0].sum())
    assert chi_square < 23.5  # 4 degrees of freedom, p = 1e-4


def test_the_edges_of_the_uniform_number_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf, -math.inf]])
    for uniform, token in ((0.0, 1), (1.0, 2), (1.0 - 2**-53, 2)):
        value = torch.tensor(uniform, dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *a, value=value, **k: value)
        assert s.draw(logits, [torch.Generator()]).item() == token


def test_a_row_does_not_depend_on_its_neighbours(logits: torch.Tensor) -> None:
    params = SamplingParams(temperature=1.3, top_p=0.95, seed=7)
    together = s.sample(logits, params, s.row_generators(7, range(5)))
    alone = [s.sample(logits[i : i + 1], params, s.row_generators(7, [i])).item() for i in range(5)]
    assert together.tolist() == alone
    assert s.sample(logits[3:4], params, s.row_generators(10, [0])).item() == alone[3]  # seed + row


def test_temperature_zero_is_greedy_after_the_penalty(logits: torch.Tensor) -> None:
    params = SamplingParams(temperature=0, top_k=3, top_p=0.1, min_p=0.9)
    assert torch.equal(s.sample(logits, params, []), logits.argmax(-1))
    best = logits.argmax(-1)
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best[:, None], True)
    after = s.sample(logits, SamplingParams(temperature=0, repetition_penalty=1e6), [], seen)
    assert not (after == best).any()


def test_tiny_temperature_is_greedy(logits: torch.Tensor) -> None:
    params = SamplingParams(temperature=1e-30)
    assert torch.equal(s.sample(logits * 1e4, params, s.row_generators(0, range(5))), logits.argmax(-1))


def test_half_precision_logits(logits: torch.Tensor) -> None:
    tokens = s.sample(logits.bfloat16(), SamplingParams(top_p=0.9, seed=1), s.row_generators(1, range(5)))
    assert tokens.dtype == torch.int64 and tokens.shape == (5,)


def test_without_a_seed_two_runs_differ() -> None:
    first, second = (torch.stack([torch.rand(4, generator=g) for g in s.row_generators(None, range(2))]) for _ in "ab")
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("temperature", -0.1), ("temperature", math.nan),
        ("temperature", math.inf), ("top_k", -1), ("top_k", 2.5), ("top_p", 0), ("top_p", 1.01),
        ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0),
        ("repetition_penalty", -1), ("seed", -1), ("seed", 0.5), ("stop", ("",)), ("stop", (3,)),
    ],
)  # fmt: skip
def test_bad_values_name_the_flag(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')}"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_one_stop_string_may_be_given_bare() -> None:
    assert SamplingParams(stop="끝").stop == ("끝",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [0.3, 0.9, 0.9999])
def test_top_p_of_a_large_vocabulary_is_transformers(p: float) -> None:
    flat, steep = torch.randn(2, 1, 5000, generator=torch.Generator().manual_seed(2))
    logits = torch.cat((flat * 0.1, steep * 9))  # a nucleus wider and one narrower than the first look
    theirs = hf.TopPLogitsWarper(p)(None, logits)
    ours = s.top_p(logits, p)
    assert int((ours != theirs).sum()) <= (2 if p > 0.99 else 0)  # theirs sums in fp32
    assert kept(s.top_p(torch.zeros(1, 5000), p)) == list(range(math.ceil(5000 * p - 1e-3)))


def test_top_p_takes_lowest_ids_of_equals() -> None:
    assert kept(s.top_p(logits_of(0.1, 0.2, 0.2, 0.2, 0.3), 0.6)) == [1, 2, 4]


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("vocab_size", [7, 3000])
def test_looking_at_few_tokens_draws_what_looking_at_all_does(spread: float, vocab_size: int) -> None:
    """Rounded logits, so that many are equal; one row has tokens that are ruled out."""
    dice = torch.Generator().manual_seed(3)
    logits = (spread * torch.randn(3, vocab_size, generator=dice)).mul(8).round().div(8)
    logits[1, ::3] = -math.inf
    for top_k, p, share, heat in itertools.product(
        (0, 1, 5, 10**6), (1e-9, 0.5, 0.95, 1.0), (0.0, 0.1, 1.0), (0.3, 1.5)
    ):
        params = SamplingParams(top_k=top_k, top_p=p, min_p=share, temperature=heat)
        for seed in range(3):
            drawn = s.sample(logits, params, s.row_generators(seed, range(3)))
            assert torch.equal(drawn, s.draw(s.shape_logits(logits, params), s.row_generators(seed, range(3))))


def test_penalties_of_what_the_answer_has_are_openais() -> None:
    logits, counts = torch.tensor([[1.0, 2.0, 3.0, -1.0]]), torch.tensor([[0, 1, 3, 2]])
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    wanted = torch.tensor([[1.0, 2 - 0.5 - 0.25, 3 - 0.5 - 0.75, -1 - 0.5 - 0.5]])
    assert torch.allclose(s.shape_logits(logits, params, counts=counts), wanted)
    with pytest.raises(ValueError, match="counts"):
        s.shape_logits(logits, params)


def test_a_bias_moves_the_logits_of_its_tokens() -> None:
    params = SamplingParams(temperature=0, logit_bias={2: -100, 0: 1.5})  # type: ignore[arg-type]
    assert params.logit_bias == ((0, 1.5), (2, -100.0))
    assert s.shape_logits(torch.tensor([[1.0, 2.0, 3.0]]), params).tolist() == [[2.5, 2.0, -97.0]]
    for wrong in ({-1: 1}, {1: 101}, {1: float("nan")}, {True: 1}):
        with pytest.raises(UserError, match="logit-bias"):
            SamplingParams(logit_bias=wrong)  # type: ignore[arg-type]


def test_rows_with_other_penalties_are_drawn_as_alone() -> None:
    torch.manual_seed(0)
    logits, counts = torch.randn(4, 30), torch.randint(3, (4, 30))
    params = [
        SamplingParams(temperature=0, presence_penalty=1.5), SamplingParams(temperature=0, frequency_penalty=2),
        SamplingParams(temperature=0), SamplingParams(temperature=0, logit_bias={7: 50}),  # type: ignore[arg-type]
    ]  # fmt: skip
    together = s.sample_rows(logits, params, s.own_generators(params), counts=counts)
    alone = [s.sample(logits[i : i + 1], p, [], counts=counts[i : i + 1]) for i, p in enumerate(params)]
    assert together.tolist() == torch.cat(alone).tolist() and together[3] == 7
