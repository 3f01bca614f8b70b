"""The cut teacher against brute force; gains and retained shares against figures made by hand."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from models import make, rms_ratio
from yeoul.data.batch import IGNORE, Batch
from yeoul.errors import UserError
from yeoul.evaluate.long_context import CUT, TEACHER, AlignedLosses, aligned_losses, cut_teacher, long_context_score
from yeoul.evaluate.perplexity import score
from yeoul.model.attention import SoftmaxAttention
from yeoul.ops.softmax import softmax_attention


def batches(rows: int = 3, length: int = 40):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 101, (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, :5] = IGNORE
    return lambda: iter(
        [Batch(input_ids=ids[:1, :-1], labels=labels[:1]), Batch(input_ids=ids[1:, :-1], labels=labels[1:])]
    )


@pytest.mark.parametrize("kind", ["softmax", "learned", "classic", "no-positions", "gemma-like"])
@pytest.mark.parametrize(("window", "sinks"), [(5, 3), (4, 0), (1, 2)])
def test_the_cut_teacher_is_the_teacher_under_a_mask(kind, window, sinks, monkeypatch):
    teacher = make(kind)
    ids = torch.randint(0, 101, (2, 30))
    cut = cut_teacher(teacher, window, sinks)
    with torch.inference_mode():
        given, whole = cut(ids), teacher(ids)

        def masked(self, q, k, v, gates, context, cache):
            place = torch.arange(q.shape[2])
            back = place[:, None] - place[None]
            seen = (back >= 0) & ((back < window) | (place[None] < sinks))
            return softmax_attention(q, k, v, seen[None, None], scale=self.scale, softcap=self.softcap)

        monkeypatch.setattr(SoftmaxAttention, "attend", masked)
        wanted = teacher(ids)
    assert rms_ratio(given, wanted) < 1e-5
    assert rms_ratio(given, whole) > 1e-3


def test_the_cut_teacher_shares_the_weights_and_stops_gradients():
    teacher = make("softmax")
    cut = cut_teacher(teacher)
    own = dict(teacher.named_parameters())
    assert all(p.data_ptr() == own[name].data_ptr() for name, p in cut.named_parameters())
    assert not any(p.requires_grad for p in cut.parameters()) and all(p.requires_grad for p in own.values())


def test_what_cannot_be_cut_is_said():
    with pytest.raises(UserError, match="no softmax attention"):
        cut_teacher(make("dijiang"))


def test_losses_of_several_models_are_on_the_same_tokens():
    one, two = make("softmax"), make("hybrid").train()
    found = aligned_losses({"one": lambda: nullcontext(one), "two": lambda: nullcontext(two)}, batches())
    for name, model in (("one", one), ("two", two)):
        assert float(found.losses[name].mean()) == pytest.approx(score(model, batches()(), None).loss, rel=1e-9)
    assert found.sequences.bincount().tolist() == [35, 40, 40] and found.positions[:2].tolist() == [5, 6]
    assert two.training
    fewer = aligned_losses({"one": lambda: nullcontext(one)}, batches(), max_tokens=20)
    assert fewer.labels.tolist() == found.labels[:35].tolist()


def test_batches_that_change_are_found_out():
    calls = iter([batches(), batches(rows=2)])
    with pytest.raises(ValueError, match="the same batches"):
        model = make("softmax")
        aligned_losses(dict.fromkeys("ab", lambda: nullcontext(model)), lambda: next(calls)())


def made(*, sequences: int = 50, length: int = 20, gain: float = 0.8, noise: float = 0.2) -> AlignedLosses:
    """A teacher with loss 2, a cut that loses `gain` on every second token, models that keep all, half and none."""
    generator = torch.Generator().manual_seed(0)
    n = sequences * length
    teacher = torch.full((n,), 2.0, dtype=torch.float64)
    far = (torch.arange(n) % 2 == 0).double()
    cut = teacher + gain * far + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    losses = {TEACHER: teacher, CUT: cut, "half": (teacher + cut) / 2, "worse": 2 * cut - teacher}
    return AlignedLosses(
        losses=losses, labels=torch.zeros(n, dtype=torch.int64), positions=torch.arange(n) % length,
        sequences=torch.arange(n) // length,
    )  # fmt: skip


def scored(losses: AlignedLosses, **more):
    return long_context_score(losses, window=64, sinks=4, training_length=more.pop("training_length", 1024), **more)


def test_the_teacher_keeps_all_the_cut_nothing_and_a_half_one_half():
    found = scored(made(), byte_lengths=[3])
    assert found.measurable and found.gain.value == pytest.approx(0.4, abs=0.02)
    assert found.long_range_tokens == pytest.approx(500, abs=60) and found.sequences == 50
    for name, share in ((TEACHER, 1), (CUT, 0), ("half", 0.5), ("worse", -1)):
        row = found.row(name)
        assert row.retained.value == pytest.approx(share, abs=1e-9)
        assert row.retained_long_range.value == pytest.approx(share, abs=1e-9)
        assert row.retained.stderr == pytest.approx(0, abs=1e-9)  # the same share in every sequence
    half = found.row("half")
    assert half.ratio == pytest.approx(math.exp(half.loss - 2)) and half.bits_per_byte == pytest.approx(
        half.loss / math.log(2) / 3
    )


def test_the_standard_error_is_that_of_sequences():
    losses = made(noise=0)
    per_sequence = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    losses.losses[CUT] = losses.losses[TEACHER] + 1 + per_sequence[losses.sequences]  # tokens of a sequence move alike
    found = scored(losses)
    assert found.gain.stderr == pytest.approx(float(per_sequence.std()) / math.sqrt(50), rel=0.1)
    assert scored(losses) == scored(losses) != scored(losses, seed=1)


def test_a_gain_within_its_noise_is_worth_nothing():
    losses = made(gain=0.0, noise=0.3)
    found = scored(losses)
    assert not found.measurable and found.row("half").retained.value is None
    same = made()
    same.losses[CUT] = same.losses[TEACHER]
    found = scored(same)
    assert found.gain.value == 0 and not found.measurable and found.long_range_tokens == 0
    assert found.row("half").retained.value is None and found.row("half").retained_long_range.value is None


def test_without_a_cut_teacher_there_are_losses_and_no_shares():
    losses = made()
    del losses.losses[CUT]
    found = scored(losses)
    assert found.gain.value is None and not found.measurable and found.row("half").retained.value is None
    assert found.row("half").ratio > 1


def test_positions_end_at_the_edges_and_at_the_training_length():
    losses = made(sequences=2, length=1200)
    places = [(b.first, b.last, b.beyond, b.tokens) for b in scored(losses).row("half").by_position]
    assert places == [(0, 511, False, 1024), (512, 1023, False, 1024), (1024, 1199, True, 352)]
    places = [(b.first, b.beyond) for b in scored(losses, training_length=600).row("half").by_position]
    assert places == [(0, False), (512, False), (600, True)]
    inside = losses.positions < 512
    bucket = scored(losses).row("half").by_position[0]
    assert bucket.loss == pytest.approx(float(losses.losses["half"][inside].mean()))


def test_a_teacher_that_is_right_by_looking_far_gains_from_distance():
    """Not by hand: labels are what the teacher itself finds likeliest, which the cut teacher cannot know."""
    teacher = make("softmax")
    ids = torch.randint(0, 101, (4, 60))
    with torch.inference_mode():
        labels = teacher(ids).argmax(-1)
    models = {TEACHER: lambda: nullcontext(teacher), CUT: lambda: nullcontext(cut_teacher(teacher, 4, 1))}
    found = scored(aligned_losses(models, lambda: [Batch(input_ids=ids, labels=labels)]))
    assert found.measurable and found.row(TEACHER).retained.value == 1 and found.row(CUT).retained.value == 0
