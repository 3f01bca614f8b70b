"""Continuations behind snapshots, against every text read alone; what is read, counted."""

from __future__ import annotations

import random

import pytest
import torch

from models import KINDS, VOCAB, make
from yeoul.errors import UserError
from yeoul.evaluate.continuations import Likelihood, score_continuations
from yeoul.model.decoder import Decoder

Pair = tuple[list[int], list[int]]


def few_shot(seed: int = 0, examples: int = 30, questions: int = 5, choices: int = 3) -> list[Pair]:
    """Questions behind the same examples, each with choices that begin alike, and one that stands alone."""
    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(VOCAB) for _ in range(count)]

    shown, pairs = tokens(examples), list[Pair]()
    for _ in range(questions):
        asked, same = tokens(draw.randint(18, 24)), tokens(2)
        pairs += [([*shown, *asked], [*same, *tokens(draw.randint(1, 4))]) for _ in range(choices)]
    one_token = tokens(20)
    pairs += [(one_token, [token]) for token in (3, 4, 5)]
    pairs.append((tokens(1), tokens(9)))
    return [pairs[i] for i in draw.sample(range(len(pairs)), len(pairs))]


@torch.inference_mode()
def alone(model: Decoder, pair: Pair) -> Likelihood:
    """One text through the model, without a cache."""
    before, continuation = pair
    logits = model(torch.tensor([[*before, *continuation][:-1]]))[0, len(before) - 1 :].log_softmax(-1)
    goals = torch.tensor(continuation)
    return Likelihood(float(logits.gather(1, goals[:, None]).sum()), bool((logits.argmax(1) == goals).all()))


def assert_same(found: list[Likelihood], expected: list[Likelihood]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=2e-4)
        assert one.greedy == other.greedy


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_goes_on_from_its_snapshot(kind: str) -> None:
    model, pairs = make(kind), few_shot()
    expected = [alone(model, pair) for pair in pairs]
    assert_same(score_continuations(model, pairs, batch_size=4), expected)
    assert_same(score_continuations(model, pairs, batch_size=3, share=False), expected)


@pytest.mark.parametrize("kind", ["softmax", "hybrid"])
def test_what_is_shared_is_read_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt with four answers costs its tokens once; few-shot examples cost theirs once for all questions."""
    model, draw, read = make(kind), random.Random(3), list[int]()
    hidden = model.hidden

    def counted(ids: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        read.append(ids.numel())
        return hidden(ids, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "hidden", counted)
    prompt = [draw.randrange(VOCAB) for _ in range(100)]
    pairs = [(prompt, [answer, answer + 1]) for answer in range(4)]
    score_continuations(model, pairs)
    assert sum(read) == 99 + 4 * 2
    read.clear()
    score_continuations(model, pairs, share=False)
    assert sum(read) == 4 * 101
    read.clear()
    score_continuations(model, [(prompt, [answer]) for answer in range(4)])
    assert sum(read) == 100  # one text, of whose last prediction four tokens are asked
    read.clear()
    questions = [[draw.randrange(VOCAB) for _ in range(20)] for _ in range(3)]
    score_continuations(model, [([*prompt, *asked], [answer, 1]) for asked in questions for answer in range(2)])
    assert sum(read) == 100 + 3 * (19 + 2 * 2)


def test_rotations_that_go_by_the_length_of_the_text() -> None:
    """Texts on both sides of the length at which all of a text is turned otherwise share nothing across it."""
    from yeoul.model.config import ModelConfig

    torch.manual_seed(2)
    factors = dict(short_factor=[1.0] * 4, long_factor=[1.0, 2.0, 4.0, 8.0])
    scaling = dict(rope_type="longrope", original_max_position_embeddings=40, **factors)
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_heads=4, num_layers=2, max_position_embeddings=128,
        initializer_range=0.3, rope_scaling=scaling,
    )  # fmt: skip
    model = Decoder(config).eval()
    prompt = list(range(36))
    pairs = [(prompt, list(range(50, 50 + length))) for length in (2, 3, 9, 12)]
    assert_same(score_continuations(model, pairs), [alone(model, pair) for pair in pairs])


def test_padding_does_not_go_beyond_the_positions_there_are() -> None:
    """Beside a long text with a short rest, a short text with a long rest must not be padded past the last position."""
    model, draw = make("learned"), random.Random(4)
    long, short = ([draw.randrange(VOCAB) for _ in range(length)] for length in (124, 96))
    pairs = [(long, [1, 2]), (long, [3, 4]), (short, [*range(30)]), (short, [*range(1, 31)])]
    assert_same(score_continuations(model, pairs), [alone(model, pair) for pair in pairs])


def test_long_texts_lose_their_beginning_and_long_continuations_are_refused() -> None:
    model = make("softmax")
    ids = [i * 7 % VOCAB for i in range(60)]
    cut = score_continuations(model, [(ids[:50], ids[50:])], longest=20)
    assert_same(cut, [alone(model, (ids[39:50], ids[50:]))])
    with pytest.raises(UserError, match="60 tokens"):
        score_continuations(model, [([1], ids)], longest=20)
    with pytest.raises(UserError, match="needs a token"):
        score_continuations(model, [([1], [])])
    assert score_continuations(model, []) == []
