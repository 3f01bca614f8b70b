"""Exact pairs and codebooks in closed form, against what they stand for: softmax attention over all keys."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from models import VOCAB, bare_conversion, make, rms_ratio
from yeoul.adapt.codebook_init import fit_codebook
from yeoul.adapt.exact_init import NEVER, LayerInputs, entry_times, fit_recency, fit_scores
from yeoul.adapt.linear_init import calibrate, layer_inputs
from yeoul.adapt.linearize import Alignment, convert
from yeoul.data.batch import Batch
from yeoul.evaluate.ablations import parts
from yeoul.model.cache import SCORE
from yeoul.model.config import FeatureMapConfig
from yeoul.model.decoder import Decoder
from yeoul.model.feature_maps.codebook import CodebookFeatureMap
from yeoul.model.linear_attention import LinearAttention

WINDOW, SINKS = 6, 2


def batch(rows: int, length: int, seed: int = 3) -> Batch:
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])


def converted(teacher: Decoder, exact: int, features: int = 16, **changes: Any) -> Decoder:
    plain: dict[str, Any] = dict(
        window=WINDOW, sinks=SINKS, exact=(exact,), feature_map=FeatureMapConfig(name="codebook", features=features)
    )
    return convert(teacher, bare_conversion(**(plain | changes)))


def first_layer(teacher: Decoder, student: Decoder, texts: Batch) -> tuple[LinearAttention, LayerInputs]:
    layer = student.layers[0].self_attn
    assert isinstance(layer, LinearAttention)
    return layer, next(layer_inputs(teacher, [texts]))


@pytest.mark.parametrize("exact", [0, 1, 5, 100])
def test_entry_times_are_what_the_layer_does(exact: int) -> None:
    teacher = make("softmax")
    layer, inputs = first_layer(teacher, converted(teacher, exact), batch(2, 31))
    if layer.exact_score is not None:
        torch.nn.init.normal_(layer.exact_score.weight)
        torch.nn.init.uniform_(layer.exact_score.recency, 0, 0.3)
    found = entry_times(layer, inputs)
    place = torch.arange(31)[None]
    scores = None if layer.exact_score is None else layer.exact_score(inputs.x, inputs.k, inputs.v, place)
    for row in range(2):
        for group in range(2):
            kept: list[int] = []
            wanted = [NEVER] * 31
            for t in range(WINDOW + SINKS, 31):
                kept.append(t - WINDOW)
                if len(kept) > exact:
                    gone = kept[0] if scores is None else min(kept, key=lambda j: float(scores[row, group, j]))
                    kept.remove(gone)
                    wanted[gone] = t
            assert found[row, group].tolist() == wanted


def test_with_a_code_for_every_key_nothing_is_lost() -> None:
    """Each key is its own code then, of which r is the key itself: window, pairs and state are the softmax."""
    teacher, texts = make("softmax"), batch(1, 40)
    student = converted(teacher, 4, features=64)
    calibrate(teacher, student, [texts])
    for layer in student.layers:
        assert isinstance(layer.self_attn, LinearAttention)
        assert layer.self_attn.exact_score is not None and bool(layer.self_attn.exact_score.weight.any())
    assert rms_ratio(student(texts.input_ids), teacher(texts.input_ids)) < 1e-3
    with parts(student, linear=False):
        assert rms_ratio(student(texts.input_ids), teacher(texts.input_ids)) > 0.02


def test_scores_follow_what_later_queries_pay() -> None:
    """On texts that it was not fitted on, the score keeps more of the far attention than chance and than the newest."""
    teacher = make("softmax")
    student = converted(teacher, 8)
    layer, inputs = first_layer(teacher, student, batch(16, 96))
    found = fit_scores(layer, inputs)
    assert len(found) == 2 and all(0.3 < correlation <= 1 for correlation in found)
    layer, unseen = first_layer(teacher, student, batch(4, 96, seed=9))

    def kept_share(score: torch.Tensor | None) -> float:
        """Of the far attention, that on what does not enter the state."""
        assert layer.exact_score is not None
        old = layer.exact_score.forward
        if score is not None:
            layer.exact_score.forward = lambda *_: score  # type: ignore[method-assign]
        entered = entry_times(layer, unseen).repeat_interleave(2, 1)[:, :, None]  # (B, H, 1, T)
        layer.exact_score.forward = old  # type: ignore[method-assign]
        place = torch.arange(96)
        scores = unseen.q @ unseen.k.repeat_interleave(2, 1).transpose(-1, -2) * layer.scale
        paid = scores.masked_fill(place[None] > place[:, None], -math.inf).softmax(-1)
        far = (place[:, None] - place[None] >= WINDOW) & (place[None] >= SINKS)
        return float((paid * far * (entered > place[:, None])).sum() / (paid * far).sum())

    dice = torch.rand(4, 2, 96, generator=torch.Generator().manual_seed(0))
    newest = torch.arange(96.0).expand(4, 2, -1)
    assert kept_share(None) > 1.15 * max(kept_share(dice), kept_share(newest))


@pytest.mark.parametrize("slopes", [(0.2, 0.2), (-0.2, -0.2), (0.2, -0.2)])
def test_recency_is_what_distance_costs(slopes: tuple[float, float]) -> None:
    """Keys that queries prefer the younger they are: then the youngest are worth a place, and otherwise the oldest; and
    where one of the texts wants the oldest, no other gains at its expense."""
    teacher = make("softmax")
    layer, inputs = first_layer(teacher, converted(teacher, 6), batch(2, 64))
    q, k = torch.zeros_like(inputs.q), torch.zeros_like(inputs.k)
    q[..., 0], k[..., 0] = 1, torch.tensor(slopes)[:, None, None] * torch.arange(64) / layer.scale
    far = torch.ones(64, 64, dtype=torch.bool).tril()
    weights = (q @ k.repeat_interleave(2, 1).mT * layer.scale).masked_fill(~far, -math.inf).softmax(-1)
    inputs = inputs._replace(q=q, k=k, given=weights @ inputs.v.repeat_interleave(2, 1))
    layer.linear_enabled = False
    assert layer.exact_score is not None
    assert fit_recency(layer, inputs) == (min(slopes) > 0)
    assert bool((layer.exact_score.recency > 0).all()) == (min(slopes) > 0)


def test_texts_within_the_window_change_nothing() -> None:
    teacher = make("softmax")
    student = converted(teacher, 3)
    layer, inputs = first_layer(teacher, student, batch(2, WINDOW + 1))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert all(math.isnan(value) for value in fit_scores(layer, inputs)) and not fit_recency(layer, inputs)
    fit_codebook(layer, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("name", ["codebook", "dijiang"])
def test_a_calibrated_student_begins_closer(name: str) -> None:
    teacher, texts = make("softmax"), batch(8, 96)
    feature_map = FeatureMapConfig(name=name, features=32)
    untouched, student = (converted(teacher, 8, feature_map=feature_map) for _ in range(2))
    calibrate(teacher, student, [texts])
    errors = [Alignment(teacher)(one, batch(4, 96, seed=5)).mean() for one in (untouched, student)]
    assert errors[1] < 0.9 * errors[0]


def test_only_what_has_a_gradient_is_trained() -> None:
    teacher = make("softmax")
    student = converted(teacher, 3).train()
    calibrate(teacher, student, [batch(4, 60)])
    Alignment(teacher)(student, batch(2, 60)).mean().backward()
    for block in student.layers:
        layer = block.self_attn
        assert isinstance(layer, LinearAttention) and isinstance(layer.feature_map, CodebookFeatureMap)
        book = layer.feature_map
        for parameter in (book.directions, book.read_bias, book.key_direction, book.key_bias):
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
        assert book.assign.grad is None and layer.exact_score is not None and layer.exact_score.weight.grad is None


def test_a_score_travels_in_fp32() -> None:
    layer = make("exact").bfloat16().layers[0].self_attn
    x = torch.randn(1, 7, 64).bfloat16()
    assert isinstance(layer, LinearAttention)
    from yeoul.model.attention import AttentionContext

    _, k, v = layer.project(x, AttentionContext())
    assert layer.gates(x, AttentionContext(), k, v)[SCORE].dtype == torch.float32


@torch.no_grad()
def test_a_layer_by_itself_counts_positions_across_calls() -> None:
    """Without a model that counts them, what is worth more by its position is the same in pieces and as a whole."""
    layer = make("exact").layers[0].self_attn
    assert isinstance(layer, LinearAttention)
    x, cache = torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(0)), layer.new_cache()
    pieces = [layer(part, cache=cache) for part in (x[:, :23], x[:, 23:24], x[:, 24:51], *x[:, 51:].split(1, 1))]
    assert rms_ratio(torch.cat(pieces, 1), layer(x)) < 1e-5
