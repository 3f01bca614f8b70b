"""Preferences: the loss by its definition and by transformers' logits, its gradients, and the batches of pairs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import VOCAB, make
from yeoul.data.batch import IGNORE
from yeoul.data.conversations import Preference
from yeoul.data.examples import Example
from yeoul.data.preferences import Pair, PairLoader, fit_pairs, make_pairs, pair_batch, pair_batches
from yeoul.errors import UserError
from yeoul.model.checkpoint import save_model
from yeoul.model.decoder import Decoder
from yeoul.train.preference import (
    answer_log_probs,
    log_probs_of_pairs,
    preference_objective,
    preference_scores,
    preference_terms,
    token_log_probs,
)

BETA = 0.3


def example(prompt: int, answer: int, draw: np.random.Generator) -> Example:
    ids = draw.integers(3, VOCAB, prompt + answer).astype(np.int32)
    return Example(ids, np.arange(prompt + answer) >= prompt)


def random_pairs(count: int = 5) -> list[Pair]:
    draw = np.random.default_rng(0)
    lengths = [(3 + n, 2 + 3 * n % 7, 1 + 5 * n % 9) for n in range(count)]
    return [Pair(str(n), example(p, c, draw), example(p, r, draw)) for n, (p, c, r) in enumerate(lengths)]


def another(model: Decoder, scale: float = 0.05) -> Decoder:
    """The model with other weights, so that it is not its own reference."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean())
    return model


def plain_log_prob(logits: Tensor, row: Example) -> Tensor:
    """Sum over the answer's tokens, from the logits (T, V) of the row alone."""
    log_probs = logits.double().log_softmax(-1)
    return sum((log_probs[t - 1, row.ids[t]] for t in range(1, len(row.ids)) if row.trained[t]), torch.zeros(()))


def test_the_loss_by_transformers_logits_and_the_papers_formula(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pairs = random_pairs()
    policy, reference = another(make("softmax")), make("softmax")
    theirs = []
    for name, model in (("policy", policy), ("reference", reference)):
        save_model(model, tmp_path / name)
        llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64)
        assert type(llama).__name__ == "LlamaForCausalLM"
        with torch.no_grad():
            theirs.append([
                [float(plain_log_prob(llama(torch.from_numpy(row.ids[None].astype(np.int64))).logits[0], row))
                 for row in pair[1:]] for pair in pairs
            ])  # fmt: skip
    pi, ref = (np.array(values) for values in theirs)
    ratios = (pi[:, 0] - pi[:, 1]) - (ref[:, 0] - ref[:, 1])
    assert np.abs(ratios).min() > 1e-3
    right, wrong = (np.log1p(np.exp(sign * BETA * ratios)) for sign in (-1, 1))  # -log sigmoid
    for noise in (0.0, 0.2):
        losses = (1 - noise) * right + noise * wrong
        known = log_probs_of_pairs(reference, pairs, batch_size=2, pad_id=0)
        assert known == pytest.approx(ref, rel=1e-5)
        loss = preference_objective(beta=BETA, noise=noise)(policy, pair_batch(pairs, known, 0))
        assert loss.count == len(pairs) and float(loss.total.detach()) == pytest.approx(losses.sum(), rel=1e-4)
        assert loss.parts["margin"] == pytest.approx((BETA * ratios).sum(), rel=1e-3)
        assert loss.parts["accuracy"] == (ratios > 0).sum()
        rewards = BETA * (pi - ref).sum(0)
        assert [loss.parts["chosen_reward"], loss.parts["rejected_reward"]] == pytest.approx(rewards, rel=1e-3)
        scores = preference_scores(pi, ref, beta=BETA, noise=noise)
        assert scores["loss"] == pytest.approx(losses.mean(), rel=1e-9)
        assert scores["margin"] == pytest.approx(BETA * ratios.mean(), rel=1e-9)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [None, 3])
def test_log_probs_and_gradients_in_float64(chunk: int | None, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 5, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(11, 5, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(11, (8,), generator=generator)
    reference = torch.randn(4, dtype=torch.float64, generator=generator)

    def loss(found: Tensor) -> Tensor:
        return preference_terms(found.view(4, 2).sum(1), reference, beta=BETA).loss.sum()

    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted = logits.log_softmax(1)[torch.arange(8), labels]
    found = token_log_probs(hidden, weight, labels, chunk=chunk, softcap=softcap)
    assert torch.allclose(found, wanted, rtol=1e-12)
    expected = torch.autograd.grad(loss(wanted), (hidden, weight))
    for ours, theirs in zip(torch.autograd.grad(loss(found), (hidden, weight)), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["softmax", "learned", "gemma-like", "dijiang-decay", "hybrid", "delta-convolution"])
def test_every_kind_padded_as_alone_and_the_better_answer_gains(kind: str) -> None:
    pairs, model = random_pairs(), make(kind)
    batch = pair_batch(pairs, None, 0)
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    with torch.no_grad():
        before = answer_log_probs(model, batch)
        alone = [float(plain_log_prob(model(torch.from_numpy(row.ids[None].astype(np.int64)))[0], row)) for row in rows]
    assert before.tolist() == pytest.approx(alone, rel=1e-4)
    known = log_probs_of_pairs(model, pairs, batch_size=3, pad_id=5)
    assert known.T.reshape(-1).tolist() == pytest.approx(alone, rel=1e-4)

    model.train()
    loss = preference_objective(beta=BETA)(model, pair_batch(pairs, known, 0))
    assert float(loss.total.detach()) == pytest.approx(len(pairs) * np.log(2), abs=1e-3)
    loss.total.backward()
    with torch.no_grad():
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        size = float(sum(g.square().sum() for g in gradients)) ** 0.5
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad * (0.03 / size))
        gained = answer_log_probs(model, batch) - before
    chosen, rejected = gained.chunk(2)
    assert float(chosen.mean()) > 0 > float(rejected.mean()) and float((chosen - rejected).min()) > 0


# -- pairs


def render(messages: Any, *, add_generation_prompt: bool = False) -> tuple[list[int], list[bool]]:
    """A message is its role, its characters and an end; of the assistant's the last two are trained."""
    ids: list[int] = []
    trained: list[bool] = []
    for message in messages:
        if message["content"] == "bad":
            raise UserError("refused", "message 1")
        text = [3 + ord(char) % 80 for char in message["content"]] + [2]
        ids += [0 if message["role"] == "user" else 1, *text]
        trained += [False, *[message["role"] == "assistant" and message.get("weight", 1) == 1] * len(text)]
    return (ids + [1], trained + [False]) if add_generation_prompt else (ids, trained)


def turns(*texts: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts))


def preference(prompt: tuple[dict[str, str], ...], chosen: str, rejected: str) -> Preference:
    ends = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return Preference(prompt, *((end,) for end in ends), "here:1")


def test_only_the_answers_are_marked() -> None:
    (pair,) = make_pairs([preference(turns("ab", "cd", "e"), "xyz", "xw")], render)
    assert [int(pair.chosen.trained.sum()), int(pair.rejected.trained.sum())] == [4, 3]
    prompt = len(render(turns("ab", "cd", "e"), add_generation_prompt=True)[0])
    assert not pair.chosen.trained[:prompt].any() and pair.chosen.trained[prompt:].all()
    with pytest.raises(UserError, match="refused .*here:1, message 1"):
        make_pairs([preference(turns("bad"), "x", "y")], render)
    with pytest.raises(UserError, match="same tokens .*here:1"):
        make_pairs([preference(turns("a"), "x", chr(ord("x") + 80))], render)


def test_pairs_are_cut_together_or_dropped() -> None:
    pairs = make_pairs([preference(turns("a"), "xyz", "xw"), preference(turns("a"), "xyzw", "xyz!")], render)
    fitted = fit_pairs(pairs, 6)
    assert (len(fitted.pairs), fitted.cut, fitted.dropped) == (1, 2, 1)  # the first seven tokens of the second are one
    assert len(fitted.pairs[0].chosen.ids) == 7
    assert fit_pairs(pairs, 3) == ([], 2, 2)


def test_a_batch_holds_both_answers_of_each_pair() -> None:
    pairs = random_pairs(7)
    reference = np.arange(14, dtype=np.float32).reshape(7, 2)
    make_loader = partial(PairLoader, pairs, reference, batch_size=3, seed=1, pad_id=0)
    loader, seen = make_loader(), []
    for _ in range(loader.epoch_batches):
        state = loader.state_dict()
        batch = loader.next_batch()
        assert batch.reference is not None and batch.seq_ids is not None
        for chosen, rejected in zip(*batch.reference.chunk(2), strict=True):
            assert rejected == chosen + 1
            seen.append(int(chosen) // 2)
        rows = [pairs[int(value) // 2][1 + int(value) % 2] for value in batch.reference]
        for row, ids, labels, tokens in zip(rows, batch.input_ids, batch.labels, batch.seq_ids >= 0, strict=True):
            assert ids[tokens].tolist() == row.ids[:-1].tolist()
            assert labels[labels != IGNORE].tolist() == row.ids[row.trained].tolist()
    assert sorted(seen) == list(range(7))
    resumed = make_loader()
    resumed.load_state_dict(state)
    assert torch.equal(resumed.next_batch().input_ids, batch.input_ids)
    other = PairLoader(pairs[:6], None, batch_size=3, seed=1, pad_id=0)
    with pytest.raises(UserError, match="examples = 7, now it is 6"):
        other.load_state_dict(state)
    assert sorted(n for drawn, _ in pair_batches(pairs, batch_size=2, pad_id=0) for n in drawn) == list(range(7))
