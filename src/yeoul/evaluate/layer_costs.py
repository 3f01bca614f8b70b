"""Which layers need distance: what it costs to cut each softmax layer alone to a window, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from yeoul.data.batch import Batch
from yeoul.evaluate.long_context import cut_teacher
from yeoul.evaluate.perplexity import score
from yeoul.model.decoder import Decoder

LEAST_COST = 0.005
"""Nats per token: if all layers together cost less than this, none is worth more than another."""
MOST_KEPT = 0.25
"""Share of the layers that `layers_to_keep` keeps at most, rounded up."""


def layer_costs(
    teacher: Decoder,
    batches: Callable[[], Iterable[Batch]],
    *,
    window: int = 64,
    sinks: int = 4,
    dtype: torch.dtype | None = None,
) -> dict[int, float]:
    """Nats per token that the teacher loses when one softmax layer sees only a window and sinks, by layer.

    Nothing is trained; every other layer stays whole. It costs one scoring of the text for each layer.

    Args:
        teacher: softmax model; unchanged afterwards.
        batches: makes the same batches of text each time it is called.
        window: positions that the cut layer sees.
        sinks: first positions that it sees too.
        dtype: as for `score`.
    """
    cut = cut_teacher(teacher, window, sinks)
    whole = score(teacher, batches(), None, dtype=dtype).loss
    costs = {}
    for layer, kind in enumerate(teacher.config.attention):
        if kind != "softmax":
            continue
        block, before = teacher.layers[layer], teacher.layers[layer].self_attn
        try:
            block.self_attn = cut.layers[layer].self_attn
            costs[layer] = score(teacher, batches(), None, dtype=dtype).loss - whole
        finally:
            block.self_attn = before
    return costs


def layers_to_keep(costs: Mapping[int, float], count: int | None = None) -> tuple[int, ...]:
    """The layers to leave as softmax, in order.

    Args:
        costs: from `layer_costs`.
        count: how many, the costliest; None keeps the fewest that make up half of all costs, but at most `MOST_KEPT`
            of the layers, and none where all costs together are below `LEAST_COST`.
    """
    ranked = sorted(costs, key=lambda layer: (-costs[layer], layer))
    if count is not None:
        return tuple(sorted(ranked[:count]))
    total = sum(max(0.0, cost) for cost in costs.values())
    if total < LEAST_COST:
        return ()
    most = -(-len(costs) * MOST_KEPT // 1)
    kept: list[int] = []
    while len(kept) < most and sum(max(0.0, costs[layer]) for layer in kept) < total / 2:
        kept.append(ranked[len(kept)])
    return tuple(sorted(kept))


def shared_out(costs: Mapping[int, float], total: int, most: int) -> dict[int, int]:
    """Divides exact pairs among layers by the square root of what cutting each of them costs.

    If L pairs leave c / L of a layer's cost c, which is about how a cost falls that few keys are to blame for, all
    layers together lose least so.

    Args:
        costs: from `layer_costs`.
        total: of all layers.
        most: of one layer: more would find no key to keep.

    Returns:
        The number of each layer, in the order of `costs`; all alike where they cost next to nothing.
    """
    roots = {layer: max(0.0, cost) ** 0.5 for layer, cost in costs.items()}
    if sum(max(0.0, cost) for cost in costs.values()) < LEAST_COST:
        roots = dict.fromkeys(costs, 1.0)
    shares, left = {}, min(total, most * len(costs))
    for rank, layer in enumerate(sorted(roots, key=lambda layer: (-roots[layer], layer))):
        rest = sum(sorted(roots.values(), reverse=True)[rank:])
        wanted = left * roots[layer] / rest if rest else left / (len(roots) - rank)
        shares[layer] = min(most, round(wanted))
        left -= shares[layer]
    return {layer: shares[layer] for layer in costs}
