"""What a model gains from long context, and how much of that gain a conversion retains.

Perplexity alone flatters a window: where a text can be predicted from its last few words, a window without any
training loses next to nothing, and a conversion that lost everything else shows no loss either. So the measure is the
long-context gain, G = loss of the teacher cut to a window and sinks (Xiao et al. 2023, StreamingLLM, arXiv 2309.17453)
minus loss of the teacher; a conversion retains (loss of the cut teacher - its own loss) / G of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from yeoul.data.batch import IGNORE, Batch
from yeoul.errors import UserError
from yeoul.evaluate.ablations import View
from yeoul.evaluate.perplexity import autocast, token_losses
from yeoul.model.decoder import Decoder, make_attention, skeleton

TEACHER, CUT = "teacher", "cut teacher"
"""Names of the two models that every other is measured against."""
EDGES = (512, 1024, 2048, 4096, 8192)
"""Positions at which a new bucket begins; one more begins where the training length ends."""
LONG_RANGE_NATS = 0.5
"""A long-range token is one whose loss rises by at least this much, in nats, when the teacher is cut."""
CLEAR = 4.0
"""A gain must be this many standard errors above 0; below, shares of it mean nothing: it is their denominator."""
DRAWS = 1000
"""Bootstrap samples."""


def cut_teacher(teacher: Decoder, window: int = 64, sinks: int = 4) -> Decoder:
    """The teacher seeing only the last `window` positions (itself included) and the first `sinks`; no training.

    The weights are shared with the teacher, not copied; gradients do not reach them from here. Where sliding layers
    rotate positions in their own way (Gemma 3), they stay as they are and the layers that see everything are cut, each
    with its own rotation.

    Raises:
        UserError: no layer has softmax attention.
    """
    config = teacher.config
    softmax = [kind for kind in config.attention if kind in ("softmax", "sliding")]
    if not softmax:
        raise UserError("the teacher has no softmax attention to cut", fix="give the softmax model")
    theta, narrow = config.rope_local_theta, window
    if "sliding" in softmax:
        narrow = min(window, config.sliding_window or config.window)
        if theta is not None and "softmax" in softmax:
            return _with_whole_layers_cut(teacher, window, sinks)
    else:
        theta = None  # only "sliding" layers have it, and those here are softmax layers that were cut
    kinds = tuple("sliding" if kind in ("softmax", "sliding") else kind for kind in config.attention)
    cut = skeleton(config.with_(attention=kinds, sliding_window=narrow, sinks=sinks, rope_local_theta=theta))
    cut.load_state_dict(teacher.state_dict(), assign=True)
    return cut.requires_grad_(False).train(teacher.training)


def _with_whole_layers_cut(teacher: Decoder, window: int, sinks: int) -> Decoder:
    """The teacher whose softmax layers, and no others, see a window and sinks, rotated as before."""
    config = teacher.config
    narrow = config.with_(attention=("sliding",) * config.num_layers, sliding_window=window, sinks=sinks)
    cut = skeleton(config)
    for layer, kind in enumerate(config.attention):
        if kind == "softmax":
            with torch.device("meta"):
                attention = make_attention(narrow, layer)
            attention.rope = config.rope_index(layer)
            cut.layers[layer].self_attn = attention
    cut.load_state_dict(teacher.state_dict(), assign=True)
    return cut.requires_grad_(False).train(teacher.training)


@dataclass(frozen=True, kw_only=True)
class AlignedLosses:
    """Losses of several models on the same tokens.

    Attributes:
        losses: (N,) float64 nats of each model, by name.
        labels: (N,) int64, the tokens.
        positions: (N,) int64, positions in their sequence.
        sequences: (N,) int64, number of the row that each token is in: rows are what a bootstrap draws.
    """

    losses: dict[str, Tensor]
    labels: Tensor
    positions: Tensor
    sequences: Tensor


def aligned_losses(
    models: Mapping[str, View],
    batches: Callable[[], Iterable[Batch]],
    *,
    dtype: torch.dtype | None = None,
    max_tokens: int | None = None,
) -> AlignedLosses:
    """Losses of each model on the same tokens, one model after the other.

    Args:
        models: by name; each is left in the mode (train or eval) in which it came.
        batches: makes the same batches each time it is called.
        dtype: run under autocast in this type; None or float32 runs as the weights are.
        max_tokens: stop behind the batch that reaches so many scored tokens.

    Raises:
        UserError: there is nothing to score.
    """
    losses: dict[str, Tensor] = {}
    columns: tuple[Tensor, Tensor, Tensor] | None = None
    for name, view in models.items():
        with view() as model:
            losses[name], *found = _losses(model, batches(), dtype, max_tokens)
        if columns is not None and not torch.equal(columns[0], found[0]):
            raise ValueError("batches() must give the same batches each time")
        columns = columns or (found[0], found[1], found[2])
    if columns is None or not columns[0].numel():
        raise UserError("there is no token to score", fix="give a text of at least two tokens")
    return AlignedLosses(losses=losses, labels=columns[0], positions=columns[1], sequences=columns[2])


def _losses(
    model: Decoder, batches: Iterable[Batch], dtype: torch.dtype | None, max_tokens: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, labels, positions and rows of the scored tokens, (N,) each."""
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    tokens = rows = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(model.device, dtype):
            for batch in batches:
                row = (batch.labels != IGNORE).nonzero()[:, 0].cpu() + rows
                columns.append((*token_losses(model, batch.to(model.device)), row))
                tokens, rows = tokens + row.numel(), rows + batch.labels.shape[0]
                if max_tokens is not None and tokens >= max_tokens:
                    break
    finally:
        model.train(was_training)
    if not columns:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty.double(), empty, empty, empty
    first, second, third, fourth = (torch.cat(column) for column in zip(*columns, strict=True))
    return first, second, third, fourth


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its standard error; None where it cannot be known."""

    value: float | None
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class PositionScore:
    """A model's score on the tokens at positions `first` to `last`; `beyond` the length that it was trained on."""

    first: int
    last: int
    beyond: bool
    tokens: int
    loss: float
    perplexity: float
    bits_per_byte: float | None


@dataclass(frozen=True, kw_only=True)
class LongContextRow:
    """One model's part of a `LongContextScore`; the two retained shares are of the long-context gain.

    Attributes:
        ratio: perplexity over the teacher's.
        long_range_loss: mean loss on the long-range tokens; None where there are none.
        retained: over all tokens. 1 is the teacher, 0 the cut teacher, less is worse than cutting without training.
        retained_long_range: over the long-range tokens alone.
    """

    name: str
    loss: float
    perplexity: float
    ratio: float
    bits_per_byte: float | None
    long_range_loss: float | None
    retained: Estimate
    retained_long_range: Estimate
    by_position: tuple[PositionScore, ...]


@dataclass(frozen=True, kw_only=True)
class LongContextScore:
    """The long-context gain, and what each model retains of it.

    Attributes:
        window, sinks: of the cut teacher.
        gain: nats per token, over all tokens; no value without a cut teacher.
        gain_long_range: the same over the long-range tokens.
        measurable: whether `gain` is above `CLEAR` standard errors; where not, no share is given.
    """

    window: int
    sinks: int
    training_length: int
    tokens: int
    sequences: int
    long_range_tokens: int
    gain: Estimate
    gain_long_range: Estimate
    measurable: bool
    rows: tuple[LongContextRow, ...]

    def row(self, name: str) -> LongContextRow:
        """The row of one model."""
        return next(row for row in self.rows if row.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def long_context_score(
    losses: AlignedLosses,
    *,
    window: int,
    sinks: int,
    training_length: int,
    byte_lengths: Sequence[int] | None = None,
    seed: int = 0,
) -> LongContextScore:
    """Gains, retained shares and losses by position from the losses of "teacher", "cut teacher" and others.

    Without a cut teacher there are no gains and no shares. Standard errors are a bootstrap over sequences, `DRAWS`
    seeded draws; with one sequence there are none.

    Args:
        losses: of `aligned_losses`; must have `TEACHER`.
        window, sinks: of the cut teacher, for the record.
        training_length: positions that the teacher was trained on.
        byte_lengths: UTF-8 bytes that each token id stands for; None leaves bits per byte out.
    """
    cut = losses.losses.get(CUT, losses.losses[TEACHER])
    gap = cut - losses.losses[TEACHER]  # (N,)
    distant = gap >= LONG_RANGE_NATS
    draw = _Bootstrap(losses.sequences, seed)
    ones = torch.ones_like(gap)
    gain = draw.ratio(gap, ones) if CUT in losses.losses else Estimate(value=None)
    gain_long_range = draw.ratio(gap * distant, ones * distant)
    sizes = None if byte_lengths is None else torch.tensor(byte_lengths, dtype=torch.int64)[losses.labels]
    base = float(losses.losses[TEACHER].mean())
    rows = []
    for name, own in losses.losses.items():
        won = cut - own
        loss = float(own.mean())
        rows.append(
            LongContextRow(
                name=name, loss=loss, perplexity=_exp(loss), ratio=_exp(loss - base), bits_per_byte=_bits(own, sizes),
                long_range_loss=float(own[distant].mean()) if bool(distant.any()) else None,
                retained=_share(draw.ratio(won, gap), gain),
                retained_long_range=_share(draw.ratio(won * distant, gap * distant), gain_long_range),
                by_position=_by_position(own, losses.positions, sizes, training_length),
            )
        )  # fmt: skip
    return LongContextScore(
        window=window, sinks=sinks, training_length=training_length, tokens=gap.numel(), sequences=draw.sequences,
        long_range_tokens=int(distant.sum()), gain=gain, gain_long_range=gain_long_range,
        measurable=_above_noise(gain), rows=tuple(rows),
    )  # fmt: skip


class _Bootstrap:
    """Draws whole sequences with replacement: tokens of one text are not independent of each other."""

    def __init__(self, sequences: Tensor, seed: int) -> None:
        _, self._place = sequences.unique(return_inverse=True)  # (N,)
        self.sequences = int(self._place.max()) + 1
        generator = torch.Generator().manual_seed(seed)
        self._counts = torch.stack([
            torch.bincount(torch.randint(self.sequences, (self.sequences,), generator=generator),
                           minlength=self.sequences)
            for _ in range(DRAWS)
        ]).double()  # (DRAWS, S)  # fmt: skip

    def ratio(self, above: Tensor, below: Tensor) -> Estimate:
        """Sum of `above` over sum of `below`, (N,) each; None where nothing is below."""
        bottom = float(below.sum())
        if bottom == 0:
            return Estimate(value=None)
        value = float(above.sum()) / bottom
        if self.sequences < 2:
            return Estimate(value=value)
        tops, bottoms = (self._counts @ self._sums(values) for values in (above, below))  # (DRAWS,)
        drawn = (tops / bottoms)[bottoms != 0]
        return Estimate(value=value, stderr=float(drawn.std()) if drawn.numel() > 1 else None)

    def _sums(self, values: Tensor) -> Tensor:
        return torch.bincount(self._place, weights=values.double(), minlength=self.sequences)


def _above_noise(gain: Estimate) -> bool:
    return gain.value is not None and gain.value > CLEAR * (gain.stderr or 0.0)


def _share(estimate: Estimate, gain: Estimate) -> Estimate:
    """A share of a gain, which means nothing where the gain is within the noise."""
    return estimate if _above_noise(gain) else Estimate(value=None)


def _by_position(
    losses: Tensor, positions: Tensor, sizes: Tensor | None, training_length: int
) -> tuple[PositionScore, ...]:
    """Scores in buckets that begin at 0, at the `EDGES` within the training length, and at its end."""
    edges = [0, *(edge for edge in EDGES if edge < training_length), training_length]
    bucket = torch.bucketize(positions, torch.tensor(edges), right=True) - 1
    scores = []
    for number in bucket.unique().tolist():
        inside = bucket == number
        beyond = edges[number] >= training_length
        loss = float(losses[inside].mean())
        scores.append(
            PositionScore(
                first=edges[number], last=int(positions.max()) if beyond else edges[number + 1] - 1, beyond=beyond,
                tokens=int(inside.sum()), loss=loss, perplexity=_exp(loss),
                bits_per_byte=_bits(losses[inside], None if sizes is None else sizes[inside]),
            )
        )  # fmt: skip
    return tuple(scores)


def _bits(losses: Tensor, sizes: Tensor | None) -> float | None:
    total = 0 if sizes is None else int(sizes.sum())
    return float(losses.sum()) / math.log(2) / total if total else None


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
