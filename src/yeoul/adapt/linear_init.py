"""A start in closed form: what the teacher's own queries and keys say about the features, before any training.

Softmax attention weighs key k for query q by exp(q'.k'), x' = x sqrt(scale). With the means a of the queries and b of
the keys of a head,

    q'.k' = (q' - a).(k' - b) + a.k' + b.q' - a.b

so that what the means contribute is exact as a mass of each key (a.k') and of each query (b.q' - a.b), and features
have to estimate only the first term. It stays the same for T (q' - a) and T^-1 (k' - b) with any invertible T; the
symmetric T that gives both the same covariance makes the random features' error smallest among all that leave the
product alone (the variance of exp(w.x) grows with the norms of both sides, and the geometric mean of the two
covariances balances them). With C_q and C_k the covariances, T^2 = C_q^-1 # C_k, the geometric mean of C_q^-1 and C_k.

"fourier" features are narrowed so that two unrelated vectors have `BANDWIDTH`'s product whatever their lengths are.

The masses of window and linear part are made to agree by one constant for each head: the mean of the logarithm of
what softmax gives to the positions behind the window, less that of the features.

Source: the decomposition is elementary; choosing the start of linear attention from statistics of the teacher follows
Taylor-Calibrate (2026) in spirit, which fits other parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from yeoul.data.batch import Batch
from yeoul.model.attention import Layout, ProjectedAttention, SoftmaxAttention
from yeoul.model.decoder import Decoder
from yeoul.model.delta import DeltaDiJiangAttention
from yeoul.model.dijiang import DiJiangAttention
from yeoul.model.feature_maps import FourierFeatureMap, FrequencyFeatureMap, SeparateFeatureMaps

RIDGE = 0.01
"""Added to each covariance, times its mean variance: directions that the sample hardly shows stay as they are."""
BANDWIDTHS, HALF_LIVES, STRENGTHS = (0.7, 1.0, 1.4), (4.0, 16.0, 64.0, 512.0, 16384.0), (0.03, 0.1, 0.3, 0.8)
"""What is tried of the delta rule: factors of the bandwidth, half-lives in positions, write strengths."""
OFFSETS, ALONE, NEAR = (-12.0, -6.0, -3.0, -1.0, 1.0), (-2.0, 0.0, 1.0, 2.0, 4.0), (-1.5, 0.0, 1.5)
"""Masses of a hit: over the largest score, for a layer without a window, and then around what was found."""
MOST_TOKENS = 8192
"""Tokens of each layer whose queries and keys are looked at."""


@dataclass(frozen=True, kw_only=True)
class HeadStatistics:
    """What a layer's attention looks like, for each query head (H,), fp32.

    Attributes:
        distance: mean distance in positions to what a query attends to.
        sharpness: mean of the largest attention weight of a query.
        far_share: mean attention weight on positions behind the window.
        query_norm: root mean square of |q|.
        key_norm: root mean square of |k| of the key-value head that the query head reads.
    """

    distance: Tensor
    sharpness: Tensor
    far_share: Tensor
    query_norm: Tensor
    key_norm: Tensor


class LayerInputs(NamedTuple):
    """What a softmax layer is given and gives.

    Attributes:
        x: (B, T, hidden), what enters the layer.
        q: (B, H, T, D), rotated and normalised.
        k: (B, G, T, D).
        v: (B, G, T, D).
        given: (B, H, T, D), what its attention gives.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    given: Tensor


@torch.no_grad()
def layer_inputs(teacher: Decoder, batches: Iterable[Batch]) -> Iterator[LayerInputs]:
    """One layer after the other, of all batches (of one length) together: only one layer's are in memory."""
    layouts, states = [], []
    for batch in batches:
        layouts.append(teacher.layout(batch.input_ids, None, batch.positions, batch.seq_ids, None))
        states.append(teacher.embed(batch.input_ids, layouts[-1].positions))
    for block in teacher.layers:
        attention, parts = block.self_attn, []
        assert isinstance(attention, ProjectedAttention)
        for i, (layout, state) in enumerate(zip(layouts, states, strict=True)):
            entered = block.enter(state)
            q, k, v = attention.project(entered, layout)
            given = attention.mix(q, k, v, layout, None)
            parts.append(LayerInputs(entered, q, k, v[..., : attention.head_dim], given))
            states[i] = block.finish(state, attention.o_proj(given.transpose(1, 2).flatten(2)))
        yield LayerInputs(*map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def head_statistics(q: Tensor, k: Tensor, scale: float, window: int = 0) -> HeadStatistics:
    """Statistics of causal softmax attention of (B, H, T, D) queries on (B, G, T, D) keys; O(T^2), for short T."""
    B, H, T, _ = q.shape
    weights = _scores(q, k, scale).softmax(-1)
    place = torch.arange(T, device=q.device)
    away = (place[:, None] - place[None]).clamp_min(0)
    grouped = k.repeat_interleave(H // k.shape[1], dim=1)
    norm = lambda x: x.float().square().sum(-1).mean((0, 2)).sqrt()  # noqa: E731
    return HeadStatistics(
        distance=(weights * away).sum(-1).mean((0, 2)),
        sharpness=weights.amax(-1).mean((0, 2)),
        far_share=(weights * (away >= max(1, window))).sum(-1).mean((0, 2)),
        query_norm=norm(q),
        key_norm=norm(grouped),
    )


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """(B, H, T, T) fp32 scores, -inf above the diagonal."""
    (B, H, T, D), G = q.shape, k.shape[1]
    scores = torch.matmul(q.float().reshape(B, G, -1, D), k.float().transpose(-1, -2)).view(B, H, T, T) * scale
    return scores.masked_fill(~torch.ones(T, T, dtype=torch.bool, device=q.device).tril(), -torch.inf)


@torch.no_grad()
def calibrate(
    teacher: Decoder, student: Decoder, batches: Iterable[Batch], progress: Callable[[str], None] | None = None
) -> list[HeadStatistics]:
    """Sets maps, masses and decays of the student's converted layers from the teacher's attention; nothing is trained.

    What is set: with separate maps, directions and weights by the formulas at the top of this module (with one map for
    both the balance and the centres would have to be one, so that nothing is changed there); a learned decay gets the
    half-life of a geometric weight with the head's mean distance; beside a window the constant of the masses.
    Padding and packing are not told apart: give whole rows of text.

    Args:
        teacher: softmax model.
        student: from `convert`, still untrained.
        batches: text; the first `MOST_TOKENS` tokens are used.
        progress: is told which layer is next.

    Returns:
        The statistics of each converted layer, in order.
    """
    chosen, seen = [], 0
    for batch in batches:
        chosen.append(batch.to(teacher.device))
        seen += batch.input_ids.numel()
        if seen >= MOST_TOKENS:
            break
    found: list[HeadStatistics] = []
    wanted = [isinstance(new.self_attn, DiJiangAttention) and isinstance(old.self_attn, SoftmaxAttention)
              for old, new in zip(teacher.layers, student.layers, strict=True)]  # fmt: skip
    for number, (new, inputs) in enumerate(zip(student.layers, layer_inputs(teacher, chosen), strict=True)):
        if wanted[number] and isinstance(new.self_attn, DiJiangAttention):
            if progress is not None:
                progress(f"Calibrating layer {number}, {len(found) + 1} of {sum(wanted)}, on {seen:,} tokens ...")
            found.append(_calibrate_layer(new.self_attn, inputs))
    return found


def _calibrate_layer(layer: DiJiangAttention, inputs: LayerInputs) -> HeadStatistics:
    q, k = inputs.q, inputs.k
    statistics = head_statistics(q[:4], k[:4], layer.scale, layer.window)
    maps = layer.feature_map
    if isinstance(maps, SeparateFeatureMaps) and isinstance(maps.query_map, FrequencyFeatureMap | FourierFeatureMap):
        _separate(maps, _grouped(q, layer.num_kv_heads), _grouped(k, layer.num_kv_heads))
    distance = statistics.distance.view(layer.num_kv_heads, -1).mean(1).clamp_min(1e-3)
    rate = torch.log1p(1 / distance)  # a geometric weight r^n has the mean r / (1 - r)
    if hasattr(layer, "decay_logit") and layer.decay_logit.requires_grad:
        layer.decay_logit.copy_(rate.log())
    if layer.gate:
        layer.decay_proj.bias.copy_(torch.log(torch.expm1(rate)))
    if isinstance(layer, DeltaDiJiangAttention):
        _search(layer, LayerInputs(*(tensor[:2] for tensor in inputs)))
    elif layer.window:
        _match_masses(layer, q[:4], k[:4])
    return statistics


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(N, H, T, D) to (G, samples, D) fp64."""
    N, _, T, D = x.shape
    return x.double().view(N, groups, -1, T, D).transpose(0, 1).reshape(groups, -1, D)


def _separate(maps: SeparateFeatureMaps, q: Tensor, k: Tensor) -> None:
    """The formulas of this module for (G, samples, D) queries and keys."""
    query_map, key_map = maps.query_map, maps.key_map
    if not hasattr(query_map, "directions"):
        return
    shrink = query_map.shrink
    a, b = q.mean(1) * shrink, k.mean(1) * shrink  # (G, D)
    of_q, of_k = _covariance(q * shrink), _covariance(k * shrink)
    balance = _balance(of_q, of_k)  # (G, D, D), symmetric
    length = (balance @ of_q @ balance).diagonal(dim1=1, dim2=2).sum(1).sqrt()  # root mean square, (G,)
    for feature_map, turn, centre, other in (
        (query_map, balance, a, b),
        (key_map, torch.linalg.inv(balance), b, a),
    ):
        assert isinstance(feature_map, FrequencyFeatureMap | FourierFeatureMap)
        directions = turn.to(feature_map.directions) @ feature_map.directions
        feature_map.directions.copy_(directions)
        if isinstance(feature_map, FourierFeatureMap):
            before = (feature_map.head_dim**0.5 * shrink) / length
            feature_map.frequencies.mul_(before.to(directions)[:, None])
        shift = (centre.to(directions)[:, None] @ directions)[:, 0] * feature_map.frequencies  # (G, F)
        if isinstance(feature_map, FourierFeatureMap):
            feature_map.phases.sub_(shift)
            continue
        feature_map.log_weights.sub_(torch.cat((shift, -shift), -1) if feature_map.config.pairs else shift)
        if feature_map.config.mass == "learned":
            feature_map.mass_direction.copy_(other)
            feature_map.log_mass.sub_((a * b).sum(-1).to(feature_map.log_mass) / 2)


def _covariance(x: Tensor) -> Tensor:
    """(G, samples, D) to (G, D, D), with the ridge."""
    x = x - x.mean(1, keepdim=True)
    covariance = x.transpose(1, 2) @ x / x.shape[1]
    variance = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    return covariance + RIDGE * variance[:, None, None] * torch.eye(x.shape[2]).to(x)


def _balance(of_q: Tensor, of_k: Tensor) -> Tensor:
    """The symmetric T for which T C_q T = T^-1 C_k T^-1, each (G, D, D) and positive definite."""
    root = _root(of_q)
    inverse = torch.linalg.inv(root)
    return _root(inverse @ _root(root @ of_k @ root) @ inverse)


def _root(matrix: Tensor) -> Tensor:
    """Square root of symmetric positive matrices."""
    values, vectors = torch.linalg.eigh((matrix + matrix.transpose(-1, -2)) / 2)
    return (vectors * values.clamp_min(1e-20).sqrt()[..., None, :]) @ vectors.transpose(-1, -2)


def _match_masses(layer: DiJiangAttention, q: Tensor, k: Tensor) -> None:
    """One constant for each key-value head, so that the far positions weigh on average what softmax gives them."""
    maps = layer.feature_map
    masses = [p for name, p in maps.named_parameters() if name.endswith("log_mass")]
    T, first = q.shape[2], layer.window + layer.sinks
    if not masses or T <= first + 1:
        return
    G = layer.num_kv_heads
    place = torch.arange(T, device=q.device)
    far = (place[:, None] - place[None] >= layer.window) & (place[None] >= layer.sinks)
    wanted = _scores(q, k, layer.scale).masked_fill(~far, -torch.inf).logsumexp(-1)  # (N, H, T)
    query_logs, key_logs = maps(q), maps.of_keys(k)
    summed = _far_sums(key_logs, layer.window, layer.sinks)  # (N, G, T, M), logarithms
    N, H = q.shape[:2]
    given = (query_logs.view(N, G, H // G, T, -1) + summed[:, :, None]).logsumexp(-1).view(N, H, T)
    gap = (wanted - given)[:, :, first + 1 :].mean((0, 2)).view(G, -1).mean(1)
    gap = torch.where(gap.isfinite(), gap, torch.zeros_like(gap))
    for mass in masses:  # both sides of a shared map carry it, so that each takes half
        mass.add_(gap / 2)


def _search(layer: DeltaDiJiangAttention, inputs: LayerInputs) -> None:
    """Of each head the mass of a hit, and of its state the bandwidth of "fourier" features, the half-life and the write
    strength, that come nearest to the teacher: one after the other, each together with the mass.

    Beside a window a full hit should weigh what a query's best match weighs in softmax, its largest score; features
    that take others for hits want less, down to nothing for heads that look everywhere. So several are tried.
    """
    best = _scores(inputs.q, inputs.k, layer.scale).amax(-1).mean((0, 2))  # (H,)
    maps = [part for part in layer.feature_map.modules() if isinstance(part, FourierFeatureMap)]
    first = [(part.frequencies.clone(), part.phases.clone()) for part in maps]
    groups = layer.num_kv_heads

    def widen(factors: Tensor) -> None:
        for part, (frequencies, phases) in zip(maps, first, strict=True):
            part.frequencies.copy_(frequencies * factors[:, None])
            part.phases.copy_(phases * factors[:, None])

    def error() -> Tensor:
        """(H,) squared errors."""
        given = layer.mix(inputs.q, inputs.k, layer.gated(inputs.v, inputs.x), Layout(), None)
        return (given - inputs.given).float().square().sum((0, 2, 3))

    offsets: tuple[float, ...] = OFFSETS if layer.window else ALONE
    masses = best if layer.window else torch.zeros_like(best)
    tried = [(BANDWIDTHS, widen)] if maps else []
    for candidates, put in (*tried, (HALF_LIVES, layer.forget), (STRENGTHS, layer.write)):
        lowest, chosen, found = best.new_full((groups,), torch.inf), best.new_zeros(groups), masses.clone()
        for candidate in candidates:
            put(torch.full_like(chosen, candidate))
            errors = []
            for offset in offsets:
                layer.read_mass.copy_(masses + offset)
                errors.append(error())
            least, place = torch.stack(errors).min(0)  # (H,)
            of_state = least.view(groups, -1).sum(1)
            better = of_state < lowest
            lowest, chosen = torch.where(better, of_state, lowest), chosen.masked_fill(better, candidate)
            shifted = masses + torch.tensor(offsets).to(best)[place]
            found = torch.where(better.repeat_interleave(len(best) // groups), shifted, found)
        put(chosen)
        masses, offsets = found, NEAR
    layer.read_mass.copy_(masses)


def _far_sums(logs: Tensor, window: int, sinks: int) -> Tensor:
    """Logarithms of the keys' features summed over what lies behind the window: (N, G, T, M) to the same."""
    past = logs.clone()
    past[:, :, :sinks] = -math.inf
    shifted = torch.full_like(past, -math.inf)
    shifted[:, :, window:] = past[:, :, : logs.shape[2] - window]
    return shifted.logcumsumexp(2)
