"""Which layers stay softmax, and what distance is worth in the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from yeoul.errors import UserError
from yeoul.evaluate.layer_costs import layer_costs, layers_to_keep
from yeoul.recipes.options import Say

if TYPE_CHECKING:
    import torch

    from yeoul.data.batch import Batch
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.linearize.config import ConversionOptions


def kept_layers(
    options: ConversionOptions, teacher: Decoder, batches: Callable[[], Iterable[Batch]], dtype: torch.dtype, say: Say
) -> tuple[int, ...]:
    """The layers that stay softmax by `--softmax-layers`, or by what cutting each of them costs."""
    if options.keep_softmax == "0":
        return options.softmax_layers
    count = None if options.keep_softmax == "auto" else int(options.keep_softmax)
    costs = layer_costs(teacher, batches, window=options.window_of(teacher.config), sinks=options.sinks, dtype=dtype)
    kept = layers_to_keep(costs, count)
    say("Cost of a window instead of full softmax in each layer alone, nats per token:")
    say("\n".join(f"  layer {i}: {cost:+.4f}{'  stays softmax' if i in kept else ''}" for i, cost in costs.items()))
    return kept


def converted_costs(
    options: ConversionOptions,
    teacher: Decoder,
    kept: tuple[int, ...],
    batches: Callable[[], Iterable[Batch]],
    dtype: torch.dtype,
    say: Say,
) -> dict[int, float]:
    """By what `--exact-total` is divided, the cost of cutting each converted layer; empty where nothing is divided."""
    layers = [i for i, kind in enumerate(teacher.config.attention) if kind == "softmax" and i not in kept]
    if not options.exact_total or options.attention != "hybrid" or len(layers) < 2:
        return {}
    say("Ranking the layers by what distant text is worth in each ...")
    costs = layer_costs(teacher, batches, window=options.window_of(teacher.config), sinks=options.sinks, dtype=dtype)
    return {layer: costs[layer] for layer in layers}


def check_layers(options: ConversionOptions, teacher: Decoder) -> None:
    """Refuse to keep as many softmax layers as there are."""
    layers = teacher.config.attention.count("softmax")
    if options.keep_softmax.isdecimal() and int(options.keep_softmax) >= max(1, layers):
        raise UserError(f"none of the {layers} softmax layers would be linearized", "--keep-softmax", "keep fewer")
