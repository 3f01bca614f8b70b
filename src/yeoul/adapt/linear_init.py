"""A start in closed form: what the teacher's own queries and keys say about the features, before any training.

Softmax attention weighs key k for query q by exp(q'.k'), x' = x sqrt(scale). With the means a of the queries and b of
the keys of a head,

    q'.k' = (q' - a).(k' - b) + a.k' + b.q' - a.b

so that what the means contribute is exact as a weight of each key (a.k') and of each query (b.q' - a.b), and features
have to estimate only the first term. It stays the same for T (q' - a) and T^-1 (k' - b) with any invertible T; the
symmetric T that gives both the same covariance makes the random features' error smallest among all that leave the
product alone (the variance of exp(w.x) grows with the norms of both sides, and the geometric mean of the two
covariances balances them). With C_q and C_k the covariances, T^2 = C_q^-1 # C_k, the geometric mean of C_q^-1 and C_k.

What a feature map makes of these is its own affair (`FeatureMap.init_from`); what a state update can be told, too
(`LinearAttention.set_decay` and `tunables`).

The weights of window and linear part are made to agree by one constant for each head: the mean of the logarithm of
what softmax gives to the positions behind the window, less that of the features.

Source: the decomposition is elementary; choosing the start of linear attention from statistics of the teacher follows
Taylor-Calibrate (2026) in spirit, which fits other parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from yeoul.adapt.codebook_init import fit_codebook
from yeoul.adapt.exact_init import MOST_SCORES, LayerInputs, entry_times, fit_recency, fit_scores
from yeoul.data.batch import Batch
from yeoul.model.attention import AttentionContext, ProjectedAttention, SoftmaxAttention
from yeoul.model.decoder import Decoder
from yeoul.model.feature_maps.base import SeparateFeatureMaps, VectorStatistics
from yeoul.model.feature_maps.codebook import CodebookFeatureMap
from yeoul.model.linear_attention import LinearAttention, Tunable
from yeoul.ops.window import Terms

RIDGE = 0.01
"""Added to each covariance, times its mean variance: directions that the sample hardly shows stay as they are."""
OFFSETS, ALONE, NEAR = (-12.0, -6.0, -3.0, -1.0, 1.0), (-2.0, 0.0, 1.0, 2.0, 4.0), (-1.5, 0.0, 1.5)
"""Logarithms of what a hit weighs: over the largest score, for a layer without a window, and then around what was
found."""
MOST_TOKENS = 24_576
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


@torch.no_grad()
def layer_inputs(teacher: Decoder, batches: Iterable[Batch]) -> Iterator[LayerInputs]:
    """One layer after the other, of all batches (of one length) together: only one layer's are in memory."""
    walks = [teacher.walk(b.input_ids, positions=b.positions, seq_ids=b.seq_ids) for b in batches]
    for blocks in zip(*walks, strict=True):
        block, parts = blocks[0], []
        attention = block.self_attn
        assert isinstance(attention, ProjectedAttention)
        for walk in walks:
            x = block.attention_input(walk.hidden)
            q, k, v = attention.project(x, walk.context)
            given = attention.attend(q, k, v, attention.gates(x, walk.context, k, v), walk.context)
            parts.append(LayerInputs(x, q, k, v, given))
            walk.advance(block.after_attention(walk.hidden, attention.output(given)))
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
    """Sets maps, weights and decays of the student's converted layers from the teacher's attention; nothing is trained.

    What is set: with separate maps, what they make of the formulas at the top of this module (with one map for both
    the balance and the centres would have to be one, so that nothing is changed there); a learned decay gets the
    half-life of a geometric weight with the head's mean distance; what a state update lets one try is what comes
    nearest to the teacher; beside a window, of other state updates, the constant of the weights.
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
    wanted = [isinstance(new.self_attn, LinearAttention) and isinstance(old.self_attn, SoftmaxAttention)
              for old, new in zip(teacher.layers, student.layers, strict=True)]  # fmt: skip
    for number, (new, inputs) in enumerate(zip(student.layers, layer_inputs(teacher, chosen), strict=True)):
        if wanted[number] and isinstance(new.self_attn, LinearAttention):
            if progress is not None:
                progress(f"Calibrating layer {number}, {len(found) + 1} of {sum(wanted)}, on {seen:,} tokens ...")
            found.append(_calibrate_layer(new.self_attn, inputs))
    return found


def _calibrate_layer(layer: LinearAttention, inputs: LayerInputs) -> HeadStatistics:
    q, k = inputs.q, inputs.k
    rows = max(1, min(4, MOST_SCORES // q.shape[2] ** 2))
    statistics = head_statistics(q[:rows], k[:rows], layer.scale, layer.window)
    maps = layer.feature_map
    if isinstance(maps, SeparateFeatureMaps):
        _separate(maps, _grouped(q, layer.num_kv_heads), _grouped(k, layer.num_kv_heads))
    distance = statistics.distance.view(layer.num_kv_heads, -1).mean(1).clamp_min(1e-3)
    layer.set_decay(torch.log1p(1 / distance))  # a geometric weight r^n has the mean r / (1 - r)
    if layer.exact:
        fit_scores(layer, inputs)
    _fit_state(layer, inputs, rows)
    if layer.exact and fit_recency(layer, inputs):
        _fit_state(layer, inputs, rows)
    return statistics


def _fit_state(layer: LinearAttention, inputs: LayerInputs, rows: int) -> None:
    """What state and feature map are told of all texts, or of the first `rows`."""
    maps = layer.feature_map
    if isinstance(maps, CodebookFeatureMap):
        fit_codebook(layer, inputs)
    elif layer.tunables():
        _search(layer, LayerInputs(*(tensor[: min(2, rows)] for tensor in inputs)))
    elif layer.window:
        _match_scales(layer, LayerInputs(*(tensor[:rows] for tensor in inputs)))


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(N, H, T, D) to (G, samples, D) fp64."""
    N, _, T, D = x.shape
    return x.double().view(N, groups, -1, T, D).transpose(0, 1).reshape(groups, -1, D)


def _separate(maps: SeparateFeatureMaps, q: Tensor, k: Tensor) -> None:
    """The formulas of this module for (G, samples, D) queries and keys."""
    shrink = maps.query_map.shrink
    a, b = q.mean(1) * shrink, k.mean(1) * shrink  # (G, D)
    of_q, of_k = _covariance(q * shrink), _covariance(k * shrink)
    balance = _balance(of_q, of_k)  # (G, D, D), symmetric
    length = (balance @ of_q @ balance).diagonal(dim1=1, dim2=2).sum(1).sqrt()  # root mean square, (G,)
    product = (a * b).sum(-1)
    maps.query_map.init_from(VectorStatistics(balance, a, b, length, product))
    maps.key_map.init_from(VectorStatistics(torch.linalg.inv(balance), b, a, length, product))


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


def _match_scales(layer: LinearAttention, inputs: LayerInputs) -> None:
    """One constant for each key-value head, so that what the state holds weighs on average what softmax gives it."""
    maps, q, k = layer.feature_map, inputs.q, inputs.k
    scales = [m.log_scale for m in layer.maps() if m.log_scale is not None]
    (N, H, T, _), G = q.shape, layer.num_kv_heads
    first = layer.window + layer.sinks + layer.exact
    if not scales or T <= first + 1:
        return
    entered = entry_times(layer, inputs)  # (N, G, T)
    queries = torch.arange(T, device=q.device)[:, None]
    held = (entered[:, :, None] <= queries).repeat_interleave(H // G, 1)  # (N, H, T, T)
    wanted = _scores(q, k, layer.scale).masked_fill(~held, -torch.inf).logsumexp(-1)  # (N, H, T)
    query_logs, key_logs = maps(q), maps.of_keys(k)
    summed = _entered(key_logs, entered).logcumsumexp(2)  # (N, G, T, M)
    given = (query_logs.view(N, G, H // G, T, -1) + summed[:, :, None]).logsumexp(-1).view(N, H, T)
    gap = (wanted - given)[:, :, first + 1 :].mean((0, 2)).view(G, -1).mean(1)
    gap = torch.where(gap.isfinite(), gap, torch.zeros_like(gap))
    for scale in scales:  # both sides of a shared map carry it, so that each takes half
        scale.add_(gap / 2)


def _search(layer: LinearAttention, inputs: LayerInputs) -> None:
    """Of each head what a hit weighs, and of its state what the feature map (the bandwidth) and the state update let
    one try, that comes nearest to the teacher: one after the other, each together with the weight of a hit.

    Beside a window a full hit should weigh what a query's best match weighs in softmax, its largest score; features
    that take others for hits want less, down to nothing for heads that look everywhere. So several are tried: only the
    sum of window and state is new for each of them, and the window is the same throughout.
    """
    best = _scores(inputs.q, inputs.k, layer.scale).amax(-1).mean((0, 2))  # (H,)
    groups, context = layer.num_kv_heads, AttentionContext()
    window: Terms | None = None  # the same for all that is tried

    def errors(log_scales: list[Tensor]) -> list[Tensor]:
        """(H,) squared errors with each of these weights of a hit, (H,)."""
        nonlocal window
        gates = layer.gates(inputs.x, context, inputs.k, inputs.v)
        if layer.all_in_window(inputs.q):
            given = layer.attend(inputs.q, inputs.k, inputs.v, gates, context)
            return [(given - inputs.given).float().square().sum((0, 2, 3))] * len(log_scales)
        window, read = layer.parts(inputs.q, inputs.k, inputs.v, gates, context, window=window)
        found = []
        for log_scale in log_scales:
            layer.set_read_scale(log_scale)
            scaled = read._replace(log_scale=layer.read_log_scale(inputs.q, read.numerator.dtype))
            given = layer.combine(scaled, window).to(inputs.q.dtype)
            found.append((given - inputs.given).float().square().sum((0, 2, 3)))
        return found

    offsets: tuple[float, ...] = OFFSETS if layer.window else ALONE
    log_scales = best if layer.window else torch.zeros_like(best)
    for candidates, put in (*_bandwidths(layer), *layer.tunables()):
        lowest, chosen, kept = best.new_full((groups,), torch.inf), best.new_zeros(groups), log_scales.clone()
        for candidate in candidates:
            put(torch.full_like(chosen, candidate))
            least, place = torch.stack(errors([log_scales + offset for offset in offsets])).min(0)  # (H,)
            of_state = least.view(groups, -1).sum(1)
            better = of_state < lowest
            lowest, chosen = torch.where(better, of_state, lowest), chosen.masked_fill(better, candidate)
            shifted = log_scales + torch.tensor(offsets).to(best)[place]
            kept = torch.where(better.repeat_interleave(len(best) // groups), shifted, kept)
        put(chosen)
        log_scales, offsets = kept, NEAR
    layer.set_read_scale(log_scales)


def _bandwidths(layer: LinearAttention) -> list[Tunable]:
    """The bandwidth of a layer's feature maps, from what it is now, where they have one."""
    maps = [part for part in layer.maps() if part.bandwidths]
    first = [[parameter.clone() for parameter in part.parameters()] for part in maps]

    def put(factors: Tensor) -> None:
        for part, values in zip(maps, first, strict=True):
            for parameter, value in zip(part.parameters(), values, strict=True):
                parameter.copy_(value)
            part.scale_bandwidth(factors)

    return [Tunable(maps[0].bandwidths, put)] if maps else []


def _entered(logs: Tensor, entered: Tensor) -> Tensor:
    """Logarithms of the features of the key that enters at each query, (N, G, T, M), -inf where none does."""
    T = logs.shape[2]
    found = logs.new_full((*logs.shape[:2], T + 1, logs.shape[3]), -torch.inf)
    place = entered.clamp_max(T)[..., None].expand_as(logs)
    return found.scatter(2, place, logs)[:, :, :T]
