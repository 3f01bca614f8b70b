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
def parts(model: Decoder, *, linear: bool = True, window: bool = True) -> Iterator[Decoder]:
    """The model with the linear part or the softmax window of its linear layers switched off meanwhile.

    With both off these layers give nothing, which is the model without attention (in the layers that were converted).
    """
    layers = [block.self_attn for block in model.layers if isinstance(block.self_attn, LinearAttention)]
    before = [(layer.linear_enabled, layer.window_enabled) for layer in layers]
    try:
        for layer in layers:
            layer.linear_enabled, layer.window_enabled = linear, window
        yield model
    finally:
        for layer, (was_linear, was_window) in zip(layers, before, strict=True):
            layer.linear_enabled, layer.window_enabled = was_linear, was_window


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
        "converted", and where the model has a window "without the linear part" and "without the window"; always
        "without attention".
    """
    has_window = any(isinstance(b.self_attn, LinearAttention) and b.self_attn.window for b in model.layers)
    wanted = {"converted": (True, True)}
    if has_window:
        wanted |= {"without the linear part": (False, True), "without the window": (True, False)}
    wanted["without attention"] = (False, False)
    result = {}
    for name, (linear, window) in wanted.items():
        with parts(model, linear=linear, window=window):
            result[name] = score(model, batches(), byte_lengths, dtype=dtype)
    return result


View = Callable[[], AbstractContextManager[Decoder]]
"""Opens a model, or a model with parts of its attention switched off, for as long as it is measured."""


def views(converted: Decoder) -> dict[str, View]:
    """The converted model and what is left of it when parts of its attention are off, by the names of tables.

    Returns:
        "converted"; where layers are linear also "linear only" and "window only" (of a hybrid) and "no attention".
        Open one at a time.
    """
    layers = [b.self_attn for b in converted.layers if isinstance(b.self_attn, LinearAttention)]
    found: dict[str, View] = {"converted": lambda: nullcontext(converted)}
    if any(layer.window for layer in layers):
        found["linear only"] = lambda: parts(converted, window=False)
        found["window only"] = lambda: parts(converted, linear=False)
    if layers:
        found["no attention"] = lambda: parts(converted, linear=False, window=False)
    return found
