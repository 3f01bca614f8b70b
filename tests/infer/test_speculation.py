"""Speculative decoding: the text is the same whatever is guessed, with caches of every kind, and sooner."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import yeoul
from models import KINDS, VOCAB, make
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.infer.engine import Session, run
from yeoul.infer.generation import Generation
from yeoul.infer.params import SamplingParams
from yeoul.infer.speculation import DraftModel, Pace, PromptLookup, Speculation
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.recipes import loading

PROMPT = [5, 9, 9, 31, 7, 5, 9, 9, 40, 2, 77, 60]
SETTINGS = {
    "greedy": SamplingParams(max_tokens=40, temperature=0),
    "drawn": SamplingParams(max_tokens=40, temperature=0.9, top_p=0.9, seed=3),
    "penalised": SamplingParams(max_tokens=40, temperature=0.7, seed=4, repetition_penalty=1.3),
}


class Oracle:
    """Knows the text, and errs in a share of its guesses."""

    def __init__(self, text: Sequence[int], errors: float, seed: int = 0) -> None:
        self.text, self.errors, self.dice = list(text), errors, random.Random(seed)

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """The next tokens, or others."""
        assert list(text) == self.text[: len(text)]
        told = self.text[len(text) : len(text) + self.dice.randint(0, most)]
        return [self.dice.randrange(VOCAB) if self.dice.random() < self.errors else token for token in told]


def generated(model: Decoder, params: SamplingParams, drafter: Any = None, eos: Sequence[int] = ()) -> Generation:
    generation = Generation(model.eval(), [PROMPT], params, eos_ids=eos, drafter=drafter, draft_tokens=8)
    steps = 0
    while generation.step():
        steps += 1
        assert len(generation.rows[0].ids) <= steps
    return generation


CASES = [(kind, "greedy") for kind in KINDS] + [
    (kind, name) for kind in ("softmax", "exact-beside-sliding", "delta-convolution") for name in SETTINGS
]


@pytest.mark.parametrize(("kind", "settings"), dict.fromkeys(CASES))
def test_guesses_do_not_change_the_text(kind: str, settings: str) -> None:
    """Right ones, wrong ones, and some of both; the cache holds what it says, so that a text may go on from it."""
    model, params = make(kind).double(), SETTINGS[settings]
    plain = generated(model, params)
    ids = plain.rows[0].ids
    for errors in (0.0, 0.4, 1.0):
        found = generated(model, params, Oracle(PROMPT + ids, errors))
        assert found.rows[0].ids == ids
        known = found.cached_ids
        assert known == (PROMPT + ids)[: len(known)]
        rest = (PROMPT + ids)[len(known) :] + [1]
        with torch.inference_mode():
            went_on = model(torch.tensor([rest]), cache=found.cache)[0, -1]
            whole = model(torch.tensor([PROMPT + ids + [1]]))[0, -1]
        torch.testing.assert_close(went_on, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "hybrid-sinks", "delta"])
def test_a_text_may_end_among_guesses(kind: str) -> None:
    """By an end token, and by whoever reads it (a stop string, a cancelled stream)."""
    model = make(kind).double()
    params = SamplingParams(max_tokens=40, temperature=1.2, seed=1)
    ids = generated(model, params).rows[0].ids
    end = next(token for place, token in enumerate(ids) if place > 8 and token not in ids[:place])
    first = ids.index(end)
    found = generated(model, params, Oracle(PROMPT + ids, 0.0), eos=[end])
    assert found.rows[0].ids == ids[:first] and found.rows[0].finish_reason == "eos"
    for count in range(5, 20):
        generation = Generation(model, [PROMPT], params, drafter=Oracle(PROMPT + ids, 0.2, count), draft_tokens=8)
        for _ in range(count):
            generation.step()
        generation.finish(generation.rows[0], "stop")
        assert generation.rows[0].ids == ids[:count] and generation.step() == []
        known = generation.cached_ids
        assert known == (PROMPT + ids[:count])[: len(known)]
        with torch.inference_mode():
            rest = (PROMPT + ids[:count])[len(known) :] + [1]
            went_on = model(torch.tensor([rest]), cache=generation.cache)[0, -1]
            whole = model(torch.tensor([PROMPT + ids[:count] + [1]]))[0, -1]
        torch.testing.assert_close(went_on, whole, atol=1e-5, rtol=1e-5)


def test_right_guesses_save_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("hybrid").double()
    ids = generated(model, SETTINGS["greedy"]).rows[0].ids
    passes = []
    forward = Decoder.forward

    def counted(*arguments: Any, **settings: Any) -> Any:
        passes.append(1)
        return forward(*arguments, **settings)

    monkeypatch.setattr(Decoder, "forward", counted)
    generated(model, SETTINGS["greedy"])
    plain = len(passes)
    for errors, most in ((0.0, plain / 3), (1.0, plain)):  # wrong guesses cost no further passes
        passes.clear()
        oracle = Oracle(PROMPT + ids, errors)
        monkeypatch.setattr(oracle.dice, "randint", lambda low, high: high)
        found = generated(model, SETTINGS["greedy"], oracle)
        assert len(passes) <= most and found.guessed > 0 and (found.right == found.guessed) == (errors == 0)


def test_guesses_are_for_one_text() -> None:
    with pytest.raises(ValueError, match="one text"):
        Generation(make("softmax"), [PROMPT, PROMPT], SETTINGS["greedy"], drafter=PromptLookup(), draft_tokens=4)


def test_prompt_lookup_finds_the_latest_and_longest() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 4, 50, 9, 2, 3, 60, 8, 8, 1, 2, 3]
    assert lookup.guess(text, 3) == [4, 50, 9]  # 1 2 3 stands once before, 2 3 twice
    assert lookup.guess([*text, 60], 9) == [8, 8, 1, 2, 3, 60]  # 3 60
    assert lookup.guess([*text, 60, 99], 3) == []
    assert PromptLookup().guess([7], 3) == PromptLookup().guess([7, 7], 3) == []
    assert PromptLookup().guess([7, 7, 7], 4) == [7]


def test_prompt_lookup_in_pieces_is_prompt_lookup() -> None:
    dice = random.Random(1)
    text = [dice.randrange(4) for _ in range(200)]
    pieces, place = PromptLookup(), 0
    while place < len(text):
        place += dice.randint(1, 9)
        assert pieces.guess(text[:place], 5) == PromptLookup().guess(text[:place], 5)


@pytest.mark.parametrize("kind", ["softmax", "hybrid-sinks", "delta"])
def test_a_model_guesses_itself_right(kind: str) -> None:
    model = make(kind).double()
    found = generated(model, SETTINGS["greedy"], DraftModel(model, model))
    assert found.guessed == found.right > 20
    assert found.rows[0].ids == generated(model, SETTINGS["greedy"]).rows[0].ids
    drawn = generated(model, SETTINGS["drawn"], DraftModel(make("softmax").double(), model))
    assert drawn.rows[0].ids == generated(model, SETTINGS["drawn"]).rows[0].ids and drawn.guessed > 0


def test_a_draft_model_has_the_same_vocabulary() -> None:
    with pytest.raises(UserError, match="102 tokens in its vocabulary, the model 101"):
        DraftModel(Decoder(ModelConfig(vocab_size=102, hidden_size=16, num_layers=1, num_heads=2)), make("softmax"))


def test_the_pace_follows_what_is_right() -> None:
    pace = Pace(6)
    assert pace.now == 4
    for guessed, right, now in ((4, 4, 6), (6, 6, 6), (6, 2, 5), (1, 0, 4), (4, 0, 3), (3, 0, 2), (2, 0, 1), (1, 0, 1)):
        pace.told(guessed, right)
        assert pace.now == now
    assert Pace(2).now == 2


@pytest.mark.parametrize("kind", ["softmax", "hybrid"])
def test_conversations_and_texts_are_the_same(tiny: Any, byte_tokenizer: Any, kind: str) -> None:
    """A session whose turns stop at a string, and several prompts; in both a text repeats itself."""
    model = tiny(kind, vocab_size=259).double()
    params = SamplingParams(temperature=0.6, top_p=0.9, max_tokens=30, seed=5)
    turns = []
    for speculation in (None, Speculation(tokens=6)):
        session, said = Session(model, byte_tokenizer, speculation), list(b"to be or not to be")
        texts = []
        for _ in range(3):
            pieces = session.stream(said, replace(params, stop=("e", "\x07")))
            list(pieces)
            assert pieces.result is not None
            texts.append(pieces.result.ids)
            said = [*said, *pieces.result.ids, *b" to be or not"]
        turns.append((texts, run(model, byte_tokenizer, ["abcabcab", "xyxyxy", "a"], params, speculation=speculation)))
    (plain, alone), (guessed, together) = turns
    assert guessed == plain
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert sum(result.guessed for result in together) > 0 == sum(result.guessed for result in alone)


def test_the_flags_guess(
    tiny: Any, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(yeoul, "load", lambda path, **_: (tiny("hybrid", vocab_size=259), byte_tokenizer))
    monkeypatch.setattr(loading, "load", lambda path, **_: (tiny("hybrid", vocab_size=259), byte_tokenizer))
    monkeypatch.setattr(byte_tokenizer, "fingerprint", "bytes", raising=False)
    command = ["generate", "m", "abcabcabc", "--temperature", "0", "--max-tokens", "30", "--stats"]
    assert main(command) == 0
    plain = capsys.readouterr()
    for flags in ([], ["--draft-model", "m"]):
        assert main([*command, "--draft-tokens", "6", *flags]) == 0
        shown = capsys.readouterr()
        assert shown.out == plain.out and "guesses right" in shown.err
    assert main([*command, "--draft-model", "m"]) == 2
    assert "--draft-tokens" in capsys.readouterr().err
    monkeypatch.setattr(loading, "load", lambda path, **_: (tiny(), SimpleNamespace(fingerprint="other")))
    assert main([*command, "--draft-tokens", "6", "--draft-model", "m"]) == 2
    assert "another tokenizer" in capsys.readouterr().err
