"""What each part of a converted model is worth: its score with parts of its attention taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from yeoul.data.batch import Batch
from yeoul.evaluate.perplexity import LMScore, score
from yeoul.model.decoder import Decoder
from yeoul.model.linear_attention import LinearAttention


@contextmanager
def parts(model: Decoder, *, linear: bool = True, window: bool = True, exact: bool = True) -> Iterator[Decoder]:
    """The model with the linear part, the softmax or the exact pairs of its linear layers switched off meanwhile.

    Without the softmax, neither window nor sinks nor exact pairs are read; with both off these layers give nothing,
    which is the model without attention (in the layers that were converted). Without exact pairs every key enters the
    state when it leaves the window.
    """
    layers = [block.self_attn for block in model.layers if isinstance(block.self_attn, LinearAttention)]
    before = [(layer.linear_enabled, layer.window_enabled, layer.exact) for layer in layers]
    try:
        for layer in layers:
            layer.linear_enabled, layer.window_enabled = linear, window
            layer.exact *= exact
        yield model
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.linear_enabled, layer.window_enabled, layer.exact = was


def ablations(
    model: Decoder,
    batches: Callable[[], Iterable[Batch]],
    byte_lengths: Sequence[int] | None,
    *,
    dtype: torch.dtype | None = None,
) -> dict[str, LMScore]:
    """Scores of a converted model, whole and with parts removed.

    Args:
        model: with linear attention.
        batches: makes the same batches each time it is called.
        byte_lengths: as for `score`.
        dtype: as for `score`.

    Returns:
        "converted", and where the model has a window "without the linear part" and "without the window", and where it
        keeps exact pairs "without exact pairs"; always "without attention".
    """
    layers = [block.self_attn for block in model.layers if isinstance(block.self_attn, LinearAttention)]
    wanted: dict[str, dict[str, bool]] = {"converted": {}}
    if any(layer.window for layer in layers):
        wanted |= {"without the linear part": {"linear": False}, "without the window": {"window": False}}
    if any(layer.exact for layer in layers):
        wanted["without exact pairs"] = {"exact": False}
    wanted["without attention"] = {"linear": False, "window": False}
    result = {}
    for name, off in wanted.items():
        with parts(model, **off):
            result[name] = score(model, batches(), byte_lengths, dtype=dtype)
    return result


View = Callable[[], AbstractContextManager[Decoder]]
"""Opens a model, or a model with parts of its attention switched off, for as long as it is measured."""


def views(converted: Decoder) -> dict[str, View]:
    """The converted model and what is left of it when parts of its attention are off, by the names of tables.

    Returns:
        "converted"; where layers are linear also "linear only" and "window only" (of a hybrid, with the exact pairs),
        "no pairs" and "no attention". Open one at a time.
    """
    layers = [b.self_attn for b in converted.layers if isinstance(b.self_attn, LinearAttention)]
    found: dict[str, View] = {"converted": lambda: nullcontext(converted)}
    if any(layer.window for layer in layers):
        found["linear only"] = lambda: parts(converted, window=False)
        found["window only"] = lambda: parts(converted, linear=False)
    if any(layer.exact for layer in layers):
        found["no pairs"] = lambda: parts(converted, exact=False)
    if layers:
        found["no attention"] = lambda: parts(converted, linear=False, window=False)
    return found
