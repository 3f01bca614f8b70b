"""The whole comparison of tiny models, what it prints, and what it leaves out."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import pytest
import torch

from models import bare_conversion
from yeoul.adapt.linearize import convert
from yeoul.data.batch import Batch
from yeoul.evaluate import compare as comparing
from yeoul.evaluate.ablations import views
from yeoul.evaluate.compare import Budget, TrainingCost, compare
from yeoul.evaluate.compare_table import comparison_table
from yeoul.evaluate.energy import Energy
from yeoul.evaluate.long_context import CUT, TEACHER
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.state_updates.additive import DiJiangAttention
from yeoul.text.tokenizer import Tokenizer

WORDS = "강가 마을 아이 물가 하늘 구름 바람 나무 사과 노래 시장 학교 친구 겨울 여름 가을 아침 저녁 바다 이야기".split()
SMALL = Budget(questions=16, needles=4, prompts=4, new_tokens=8, prompt_tokens=40, pairs=(4,), distances=(0, 40),
               lengths=(60,), positions=(32, 4096))  # fmt: skip
NAMES = [TEACHER, CUT, "converted", "linear only", "window only"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [" ".join(rng.choices(WORDS, k=9)) + ".\n" for _ in range(400)]
    train_tokenizer(lines, TokenizerConfig(vocab_size=350), folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def teacher(tokenizer) -> Decoder:
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=128, initializer_range=0.15)
    return Decoder(ModelConfig(vocab_size=tokenizer.vocab_size, **shape)).eval()


def held_out(teacher: Decoder):
    """Labels are what the teacher finds likeliest: it must gain from distance."""
    ids = torch.randint(270, 350, (5, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        labels = teacher(ids).argmax(-1)
    return lambda: [Batch(input_ids=ids[:3], labels=labels[:3]), Batch(input_ids=ids[3:], labels=labels[3:])]


def compared(teacher, converted, tokenizer, **more):
    settings = dict(context=100, window=8, sinks=2, budget=SMALL) | more
    return compare(teacher, converted, tokenizer, held_out(teacher), **settings)


def test_everything_about_a_hybrid(teacher, tokenizer):
    student = convert(teacher, bare_conversion(window=8))
    said: list[str] = []
    energy = Energy(seconds=60, joules=None, source="", estimated_joules=1200.0, assumed_watts=20.0, assumption="20 W")
    cost = TrainingCost(tokens=1000, seconds=60, teacher_tokens=16_000, energy=energy)
    found = compared(teacher, student, tokenizer, cost=cost, progress=said.append)
    assert not found.not_measured and len(said) == 5
    assert set(found.seconds) == {"long_context", "mqar", "needle", "agreement", "speed"}
    assert [row.name for row in found.long_context.rows] == [*NAMES, "no attention"]
    retained = {row.name: row.retained.value for row in found.long_context.rows}
    assert found.long_context.measurable and retained[TEACHER] == 1 and retained[CUT] == 0 and retained["converted"] < 1
    assert list(found.mqar) == list(found.needle) == NAMES
    assert [(c.pairs, c.distance, c.beyond_window) for c in found.mqar[TEACHER].cells] == [(4, 0, False), (4, 40, True)]
    assert found.agreement.prompts == 4
    layers = [block.self_attn for block in student.layers if isinstance(block.self_attn, DiJiangAttention)]
    assert layers and all(layer.linear_enabled and layer.window_enabled for layer in layers)

    values = json.loads(json.dumps(found.as_dict()))
    assert values["long_context"]["rows"][0]["retained"]["value"] == 1
    assert values["cost"]["energy"]["assumed_watts"] == 20
    assert "of_teacher" in values["mqar"]["converted"] and "of_teacher_beyond_window" in values["needle"][CUT]
    near, far = (found.speed.at(TEACHER, position).cache_bytes for position in (32, 4096))
    assert far == 128 * near == values["speed"]["records"][2]["cache_bytes"]
    assert found.speed.at("converted", 4096).cache_bytes == found.speed.at("converted", 32).cache_bytes < far
    table = comparison_table(found)
    assert max(map(len, table.split("\n"))) <= 100
    for text in (
        "1/16 of the teacher's",
        "Long-context gain: ",
        "retained",
        "4 pairs, 40 apart *",
        "chrF",
        "20 W",
        "decoding at position",
        "Caches were filled by repeating",
    ):
        assert text in table


def test_the_teacher_against_itself_retains_everything(teacher, tokenizer):
    found = compared(teacher, teacher, tokenizer)
    assert found.long_context.row("converted").retained.value == 1 and found.long_context.row("converted").ratio == 1
    assert found.agreement.equal == 1 and found.mqar["converted"] == found.mqar[TEACHER]
    assert list(found.mqar) == [TEACHER, CUT, "converted"]  # nothing of it is linear


def test_columns_stand_apart_in_the_widest_table(teacher, tokenizer):
    student = convert(teacher, bare_conversion(window=8))
    found = compared(teacher, student, tokenizer, budget=replace(SMALL, prompts=0), training_length=50)
    lines = comparison_table(found).split("\n")
    head = next(line for line in lines if line.startswith("perplexity at position"))
    assert re.fullmatch(" +".join(["perplexity at position", *NAMES, "no attention"]), head)
    assert any(line.startswith("50-99 untrained") for line in lines)


def test_views_of_a_model_without_a_window(teacher):
    assert list(views(convert(teacher, bare_conversion(attention="dijiang")))) == ["converted", "no attention"]


def test_a_window_as_long_as_the_text_has_no_long_context_gain(teacher, tokenizer):
    found = compared(
        teacher, convert(teacher, bare_conversion()), tokenizer, window=100, budget=replace(SMALL, prompts=0)
    )
    assert not found.long_context.measurable and found.agreement is None
    assert "long-context gain is not measurable" in comparison_table(found)


def test_parts_that_are_not_wanted_are_not_made(teacher, tokenizer):
    found = compared(teacher, teacher, tokenizer, budget=replace(SMALL, questions=0, needles=0, prompts=0, tokens=100))
    assert found.mqar == {} and found.needle == {} and found.agreement is None and not found.not_measured
    assert found.long_context.tokens == 300  # whole batches
    assert json.dumps(found.as_dict())


def test_what_cannot_be_measured_is_said(teacher, tokenizer, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: [[0] for _ in texts])
    found = compared(teacher, teacher, tokenizer)
    assert set(found.not_measured) == {"mqar", "needle"} and "whole words" in found.not_measured["mqar"]
    assert "Not measured, needle: only 0 pieces" in comparison_table(found) and found.long_context is not None

    monkeypatch.undo()
    linear = convert(teacher, bare_conversion(attention="dijiang"))
    found = compared(linear, linear, tokenizer)
    assert CUT in found.not_measured and found.long_context.gain.value is None
    assert "could not be cut" in comparison_table(found) and max(map(len, comparison_table(found).split("\n"))) <= 100

    found = compare(teacher, teacher, tokenizer, lambda: [], context=100, budget=SMALL)
    assert set(found.not_measured) == {"long_context", "mqar", "needle", "agreement"} and found.long_context is None
    assert comparison_table(found).count("Not measured") == 4

    found = compared(teacher, teacher, tokenizer, budget=replace(SMALL, lengths=(5000,), pairs=(99,)))
    assert all(found.not_measured[part].startswith("nothing fits") for part in ("needle", "mqar"))


def test_a_bug_is_not_taken_for_something_that_cannot_be_measured(teacher, tokenizer, monkeypatch):
    monkeypatch.setattr(comparing, "aligned_losses", lambda *args, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compared(teacher, teacher, tokenizer)
