"""What a layer's attention comes to as weights: the coefficient of every past value in what each head puts out.

Every kind of attention here is linear in its values once queries, keys and gates are given, and so is what the window
and the state each contribute to it. So the weights are what the layer gives for unit values, value s being 1 in channel
s and 0 elsewhere: of softmax the attention weights, of an additive state phi(q).phi(k) times decay over its
denominator, of the delta rule the coefficients that its corrections leave, which may be negative. No formula is written
a second time here, and a new kind of attention needs nothing new.

Where a short convolution has mixed the values, the weights are those of the mixed values, which makes them exact for
every channel. Value s then holds v_s ... v_(s-K+1), each channel with coefficients of its own, `value_taps`: the
coefficient of the unmixed v_s in channel d is the sum over j of weight (t, s + j) times value_taps[d, j].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yeoul.errors import UserError
from yeoul.model.attention import AttentionContext, ProjectedAttention, SlidingAttention, SoftmaxAttention
from yeoul.model.decoder import Decoder
from yeoul.model.linear_attention import LinearAttention
from yeoul.ops.window import Terms

PARTS = ("none", "softmax", "window", "sinks", "exact", "state")
"""What pays a weight, by its number in `LayerWeights.part`: nothing (the future), softmax over everything, the last
tokens, the first, keys that stay exact when they leave the window, and the linear state."""
LEAST_FACTOR = 1e-20
"""Below it softmax's share of a query is nothing beside the state's, and no unit to count in."""
NONE, SOFTMAX, WINDOW, SINKS, EXACT, STATE = range(len(PARTS))


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The weights of one layer on one text.

    Attributes:
        layer: number of the layer, the first is 0.
        kind: as `ModelConfig.attention` calls it, "softmax", "sliding", "hybrid", "dijiang" ...
        state_update: of a layer with a state, "additive", "delta" ...; None of others.
        weights: (H, T, T) fp32, [h, t, s] of value s in the output of token t; 0 for s > t. Softmax's are positive and
            sum to 1; those of a state need not.
        part: (H, T, T) uint8, which of `PARTS` pays it.
        window: how many last tokens softmax sees, 0 where it sees all or there is none.
        sinks: how many first tokens it always sees beside them.
        exact: pairs that each key-value head keeps.
        value_taps: (H, D, K), what value channels hold of the last K tokens' values, newest first; None without a short
            convolution.
    """

    layer: int
    kind: str
    state_update: str | None
    weights: Tensor
    part: Tensor
    window: int = 0
    sinks: int = 0
    exact: int = 0
    value_taps: Tensor | None = None


class HeadSteps(NamedTuple):
    """How one head comes to its output, step by step, in fp32.

    Attributes:
        layer, head: whose.
        q: (T, D), norms and positions applied.
        k: (T, D), of its key-value head.
        v: (T, D).
        products: (T, T), q_t . k_s for all pairs, those of the future too.
        scores: (T, T), products times the scale, soft cap applied: what softmax is taken of.
        scale: factor of the products, usually 1 / sqrt(D).
        softcap: of the scores; None where there is none.
        weights: (T, T) as in `LayerWeights`.
        part: (T, T) likewise.
        total: (T,), by what a query divides: weights * total are what is summed up before. With softmax, alone or
            beside a state that does not outweigh it by 10^20, these are exp(score - largest score) of what it sees.
        output: (T, D), the sum of weights * v.
    """

    layer: int
    head: int
    q: Tensor
    k: Tensor
    v: Tensor
    products: Tensor
    scores: Tensor
    scale: float
    softcap: float | None
    weights: Tensor
    part: Tensor
    total: Tensor
    output: Tensor


@torch.no_grad()
def model_weights(
    model: Decoder, ids: Tensor, *, layers: set[int] | None = None, head: tuple[int, int] | None = None
) -> tuple[list[LayerWeights], HeadSteps | None]:
    """The weights of a model's layers on one text.

    Args:
        model: any decoder; in fp32 the weights are exact to about 1e-6.
        ids: (T,) int64.
        layers: numbers of those that are wanted; None means all.
        head: layer and head whose steps are wanted, too.

    Raises:
        UserError: one of them has no attention.
    """
    found, steps, kinds = [], None, model.config.attention
    walk = model.walk(ids.to(model.device)[None])
    for number, block in enumerate(walk):
        attention, looked_at = block.self_attn, head is not None and head[0] == number
        if layers is not None and number not in layers and not looked_at:
            continue
        if not isinstance(attention, ProjectedAttention):
            raise UserError(f"layer {number} has no attention that could be shown: it is of kind {kinds[number]}")
        x = block.attention_input(walk.hidden)
        if layers is None or number in layers:
            weights, part = layer_weights(attention, x, walk.context)
            taps = None
            if isinstance(attention, LinearAttention):
                taps = _value_taps(attention)
            has_state = kinds[number] in ("hybrid", "dijiang")
            found.append(
                LayerWeights(
                    layer=number, kind=kinds[number], weights=weights.cpu(), part=part.cpu(),
                    state_update=model.config.state_update if has_state else None,
                    window=getattr(attention, "window", 0), sinks=getattr(attention, "sinks", 0),
                    exact=getattr(attention, "exact", 0), value_taps=taps,
                )
            )  # fmt: skip
        if looked_at and head is not None:
            steps = head_steps(attention, x, walk.context, layer=number, head=head[1])
    return found, steps


@torch.no_grad()
def layer_weights(
    attention: ProjectedAttention, x: Tensor, context: AttentionContext | None = None
) -> tuple[Tensor, Tensor]:
    """The weights of one layer on one text, and what pays each.

    Args:
        attention: of any kind that sees the past only.
        x: (1, T, hidden), what the layer is given.
        context: of the call: one text without padding.

    Returns:
        (H, T, T) fp32 and (H, T, T) uint8, see `LayerWeights`.
    """
    context = context or AttentionContext()
    q, k, gates = _projected(attention, x, context)[:3]
    unit = _unit_values(k)
    T = q.shape[2]
    part = _parts_by_place(attention, T, x.device).expand(q.shape[1], T, T)
    if isinstance(attention, LinearAttention) and attention.window and not attention.all_in_window(q):
        window, read = attention.parts(q, k, unit, gates, context)
        assert window is not None
        soft = attention.combine(_without_values(read), window)[0].float()
        state = attention.combine(read, _without_values(window))[0].float()
        left = part == STATE
        part = torch.where(left & (soft != 0), EXACT, part)
        return soft + state, part.contiguous()
    weights = attention.attend(q, k, unit, gates, context)[0].float()
    if isinstance(attention, LinearAttention) and attention.window:  # the text is so short that no key gives way
        part = torch.where(part == STATE, EXACT, part)
    return weights, part.contiguous()


@torch.no_grad()
def head_steps(
    attention: ProjectedAttention, x: Tensor, context: AttentionContext | None = None, *, layer: int, head: int
) -> HeadSteps:
    """How one head comes to its output; arguments as `layer_weights`."""
    context = context or AttentionContext()
    q, k, gates, v = _projected(attention, x, context)
    weights, part = layer_weights(attention, x, context)
    mine = head // (attention.num_heads // attention.num_kv_heads)
    own, keys, values = q[0, head].float(), k[0, mine].float(), v[0, mine].float()
    products = own @ keys.T
    scores = products * attention.scale
    if attention.softcap is not None:
        scores = torch.tanh(scores / attention.softcap) * attention.softcap
    total = _totals(attention, q, k, gates, context, scores, part[head] != NONE, head)
    return HeadSteps(
        layer=layer, head=head, q=own.cpu(), k=keys.cpu(), v=values.cpu(), products=products.cpu(),
        scores=scores.cpu(), scale=attention.scale, softcap=attention.softcap, weights=weights[head].cpu(),
        part=part[head].cpu(), total=total.cpu(), output=(weights[head] @ values).cpu(),
    )  # fmt: skip


def _projected(
    attention: ProjectedAttention, x: Tensor, context: AttentionContext
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    q, k, v = attention.project(x, context)
    return q, k, attention.gates(x, context, k, v), v


def _unit_values(k: Tensor) -> Tensor:
    """(1, G, T, T): value s is 1 in channel s."""
    T = k.shape[2]
    return torch.eye(T, dtype=k.dtype, device=k.device).expand(*k.shape[:2], T, T)


def _without_values(terms: Terms) -> Terms:
    """What a part weighs, and nothing of what it holds."""
    return terms._replace(numerator=torch.zeros_like(terms.numerator))


def _parts_by_place(attention: ProjectedAttention, T: int, device: torch.device) -> Tensor:
    """(T, T) uint8: which part would pay each weight by where query and key stand; of what has left a hybrid's window
    the state."""
    row = torch.arange(T, device=device)[:, None]
    column = torch.arange(T, device=device)[None]
    window, sinks = getattr(attention, "window", 0), getattr(attention, "sinks", 0)
    part = torch.full((T, T), NONE, dtype=torch.uint8, device=device)
    if isinstance(attention, SoftmaxAttention):
        part[column.expand(T, T) <= row] = SOFTMAX
        return part
    beyond = NONE if isinstance(attention, SlidingAttention) else STATE
    part[column.expand(T, T) <= row] = beyond
    if window:
        part[(column <= row) & (row - column < window)] = WINDOW
        part[(column <= row) & (column.expand(T, T) < sinks)] = SINKS
    return part


def _value_taps(attention: LinearAttention) -> Tensor | None:
    """(H, D, K) of a layer with a short convolution: see `LayerWeights.value_taps`."""
    if attention.short_conv is None:
        return None
    weight = attention.short_conv.weight.float()
    values = weight[-attention.num_kv_heads * attention.head_dim :].unflatten(0, (attention.num_kv_heads, -1))
    return values.repeat_interleave(attention.num_heads // attention.num_kv_heads, 0).cpu()


def _totals(
    attention: ProjectedAttention, q: Tensor, k: Tensor, gates: dict[str, Tensor], context: AttentionContext,
    scores: Tensor, seen: Tensor, head: int,
) -> Tensor:  # fmt: skip
    """(T,): `HeadSteps.total`."""
    hybrid = isinstance(attention, LinearAttention) and attention.window and not attention.all_in_window(q)
    if isinstance(attention, LinearAttention) and (hybrid or not attention.window):
        window, read = attention.parts(q, k, _unit_values(k), gates, context)
        factor = attention.combine(_ones(read), None if window is None else _without_values(window))
        if window is not None:
            soft = attention.combine(_without_values(read), _ones(window))
            factor = torch.where(soft > LEAST_FACTOR, soft, factor)
        return 1 / factor[0, head, :, 0].float().clamp_min(torch.finfo(torch.float32).tiny)
    if not isinstance(attention, LinearAttention | SoftmaxAttention | SlidingAttention):
        return torch.ones(q.shape[2], device=q.device)  # no denominator: what is summed up is what is given
    allowed = scores.masked_fill(~seen, -torch.inf)
    return torch.exp(allowed - allowed.amax(-1, keepdim=True)).sum(-1)


def _ones(terms: Terms) -> Terms:
    return terms._replace(numerator=torch.ones_like(terms.numerator))


@dataclass(frozen=True, kw_only=True)
class HeadStatistics:
    """Where one head looks, over all tokens of a text but the first, which has no choice.

    Shares and means are over the absolute weights of each token, divided by their sum.

    Attributes:
        layer, head: whose.
        distance: tokens between a query and what it looks at, 0 for itself, in the mean.
        entropy: bits; 2^entropy is over how many tokens a query spreads as if evenly.
        itself: share of the query's own value.
        first: share of the text's first token.
        shares: by the parts of `PARTS` that the layer has.
        negative: share of negative weights.
        total: sum of the weights with their signs, in the mean: 1 for softmax.
    """

    layer: int
    head: int
    distance: float
    entropy: float
    itself: float
    first: float
    shares: dict[str, float]
    negative: float
    total: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "shares": dict(self.shares)}


def statistics(layer: LayerWeights) -> list[HeadStatistics]:
    """Of every head of a layer."""
    weights, part = layer.weights[:, 1:], layer.part[:, 1:]
    H, queries, T = weights.shape
    if not queries:
        weights, part = layer.weights, layer.part
        H, queries, T = weights.shape
    row = torch.arange(T - queries, T)[:, None]
    column = torch.arange(T)[None]
    size = weights.abs()
    share = size / size.sum(-1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
    there = (size.sum(-1) > 0).sum(-1).clamp_min(1)  # (H,): queries that look at anything
    mean = lambda x: (x.sum((-1, -2)) / there).tolist()  # noqa: E731
    distance = mean(share * (row - column))
    entropy = mean(torch.special.entr(share) / torch.log(torch.tensor(2.0)))
    itself, first, negative = mean(share * (row == column)), mean(share[..., :1]), mean(share * (weights < 0))
    shares = {name: mean(share * (part == number)) for number, name in enumerate(PARTS) if (part == number).any()}
    shares.pop("none", None)
    total = (weights.sum(-1).sum(-1) / queries).tolist()
    return [
        HeadStatistics(
            layer=layer.layer, head=h, distance=distance[h], entropy=entropy[h], itself=itself[h], first=first[h],
            shares={name: values[h] for name, values in shares.items()}, negative=negative[h], total=total[h],
        )
        for h in range(H)
    ]  # fmt: skip


def shares_by_place(weights: Tensor, window: int, sinks: int) -> dict[str, list[float]]:
    """How much of each head's weights (H, T, T) lies where another layer has its window, its sinks, or neither.

    A teacher's softmax is measured so by what a conversion can see of it exactly. Means as in `HeadStatistics`.
    """
    T = weights.shape[-1]
    row, column = torch.arange(T)[:, None], torch.arange(T)[None]
    sink = column.expand(T, T) < sinks
    near = (row - column < window) & ~sink
    size = weights.abs()[:, 1:] if T > 1 else weights.abs()
    share = size / size.sum(-1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
    there = (size.sum(-1) > 0).sum(-1).clamp_min(1)
    places = {"window": near, "sinks": sink, "beyond": ~near & ~sink}
    return {name: ((share * place[-share.shape[1] :]).sum((-1, -2)) / there).tolist() for name, place in places.items()}


def overlap(first: Tensor, second: Tensor) -> list[float]:
    """How alike two maps (H, T, T) of the same text are, for each head: 1 for the same, 0 for nothing in common.

    1 - sum |a - b| / 2 of each token, in the mean over all but the first; below 0 where signs differ.
    """
    between = (first - second).abs().sum(-1)[:, 1:] if first.shape[-1] > 1 else (first - second).abs().sum(-1)
    return (1 - between.mean(-1) / 2).tolist()
