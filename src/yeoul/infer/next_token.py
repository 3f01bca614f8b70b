"""Who decodes the next token: a native library, a recorded CUDA graph, or PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from yeoul.infer.cuda_graph import GraphDecoder, graph_decoder_of
from yeoul.infer.native.decoder import MOST_ROWS, NativeDecoder, decoder_of
from yeoul.infer.static_step import Unsupported
from yeoul.model.cache import Cache
from yeoul.model.decoder import Decoder

FEW = 32
"""Tokens of one text at a time that there is room for in the native library once there are several."""


class NextToken:
    """Logits behind further tokens of a text, or of each row of a batch: on the CPU by the native library and on a GPU
    by a CUDA graph where they can, else by PyTorch.

    Args:
        model: whose weights stay as they are meanwhile.
        native: False leaves all to PyTorch.

    Attributes:
        graph: of a model on a GPU; None where there is none.
        why_not: why a graph that there was is no longer used.
    """

    def __init__(self, model: Decoder, *, native: bool = True) -> None:
        self.model, self.native = model, native
        self.graph: GraphDecoder | None = graph_decoder_of(model) if native else None
        self.why_not: str | None = None
        self._asked_for = 0  # rows
        self._decoder: NativeDecoder | None = None

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One token of each row, (B,) int64, to (B, V) fp32; `cache` has then taken them in."""
        decoder = self._for(cache, len(tokens), len(tokens))
        if decoder is not None:
            return decoder.step(tokens, cache)
        logits = self._by_graph(tokens, cache)
        return self.model(tokens[:, None], cache=cache, logits_to_keep=1)[:, -1] if logits is None else logits

    def after_each(self, tokens: Tensor, cache: Cache, last: int) -> Tensor:
        """Logits (last, V) fp32 behind each of the `last` of several tokens (T,) of a batch of one."""
        decoder = self._for(cache, 1, len(tokens))
        if decoder is not None:
            return decoder.read(tokens, cache)[-last:]
        logits = self._by_graph(tokens, cache) if len(tokens) == 1 else None
        return self.model(tokens[None], cache=cache, logits_to_keep=last)[0] if logits is None else logits

    def _for(self, cache: Cache, rows: int, tokens: int) -> NativeDecoder | None:
        if not self.native or tokens > MOST_ROWS or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return None
        if tokens > self._asked_for:
            self._asked_for = tokens if tokens == rows else max(tokens, FEW)
            self._decoder = decoder_of(self.model, self._asked_for)
        return self._decoder if self._decoder is not None and self._decoder.takes(cache, rows) else None

    def _by_graph(self, tokens: Tensor, cache: Cache) -> Tensor | None:
        device = self.model.device.type
        if self.graph is None or torch.is_grad_enabled() or torch.is_autocast_enabled(device):
            return None
        if not self.graph.takes(cache):
            return None
        try:
            return self.graph.step(tokens, cache)
        except Unsupported as error:
            self.graph, self.why_not = None, str(error)
            return None
