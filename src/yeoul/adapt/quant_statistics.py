"""What a text says about the inputs of a model's linear layers, block by block.

Rounding a weight W by D changes what it gives on inputs X (tokens, K) by tr(D H D^T) in squares, with H = X^T X: all
that calibrated quantization asks of a text. A block is looked at with all that comes before it already quantized, so
that it makes good what went wrong before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.model.attention import ProjectedAttention
from yeoul.model.decoder import Block, Decoder
from yeoul.model.layers import GatedMLP

LOGITS = 2**25
"""That are computed with gradients at once where a few predictions speak for all: 128 positions of 262,144 words."""


class Site(NamedTuple):
    """Linear layers of a block that are given the same input.

    Attributes:
        linears: their paths in the block.
        source: path of the module whose channels are that input and may be scaled: a norm, or a linear layer whose
            outputs pass on as they are; "" where there is none.
    """

    linears: tuple[str, ...]
    source: str = ""


def sites(block: Block) -> list[Site]:
    """The linear layers of a block in the order of the computation."""
    before = block.placement != "post"
    second = "pre_feedforward_layernorm" if block.placement == "sandwich" else "post_attention_layernorm"
    attention = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
    found = []
    if isinstance(block.self_attn, ProjectedAttention):
        found = [Site(attention, "input_layernorm" if before else ""), Site(("self_attn.o_proj",))]
    if block.mlp is None:
        return found
    if isinstance(block.mlp, GatedMLP):
        found.append(Site(("mlp.gate_proj", "mlp.up_proj"), second if before else ""))
        return [*found, Site(("mlp.down_proj",), "mlp.up_proj")]
    return [*found, Site(("mlp.up_proj",), second if before else ""), Site(("mlp.down_proj",))]


class TextStatistics:
    """A text on its way through a model, block by block: an iterable of the blocks.

    Args:
        model: is run as it is at each moment; under autocast in its type.
        batches: (B, T) int64 ids.

    Raises:
        UserError: there is no text.
    """

    def __init__(self, model: Decoder, batches: Iterable[Tensor]) -> None:
        self.model = model
        self.walks = [model.walk(ids.to(model.device)) for ids in batches]
        if not self.walks:
            raise UserError("there is no text to calibrate with", fix="give --data, or use --method rtn")

    def __iter__(self) -> Iterator[Block]:
        """The blocks; the text goes through each when the next is asked for."""
        return (blocks[0] for blocks in zip(*self.walks, strict=True))

    def moments(self, block: Block, paths: Sequence[str]) -> dict[str, Tensor]:
        """X^T X (K, K) fp32 of the inputs of some linear layers of the block that comes next."""
        found: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for path in paths:
                module: Any = block.get_submodule(path)
                found[path] = torch.zeros(module.in_features, module.in_features, device=self.model.device)
                handle = module.register_forward_pre_hook(_adding(found[path]))
                hooks.callback(handle.remove)
            for walk in self.walks:
                block(walk.hidden, walk.context)
        for path, sums in found.items():
            _check_finite(sums, path)
        return found

    def output_moments(self) -> Tensor:
        """X^T X (hidden, hidden) fp32 of what is multiplied by the output projection, behind the last block."""
        found = torch.zeros(self.model.config.hidden_size, self.model.config.hidden_size, device=self.model.device)
        for walk in self.walks:
            _add(found, self.model.model.norm(walk.hidden))
        _check_finite(found, "the output projection")
        return found


def _check_finite(moments: Tensor, path: str) -> None:
    """A UserError where the text made numbers that are not finite: nothing can be calibrated by them."""
    if not bool(torch.isfinite(moments).all()):
        raise UserError(
            f"on the calibration text the model computes numbers that are not finite before {path}",
            fix="use --method rtn, or give another --data",
        )  # fmt: skip


def output_moments(model: Decoder, batches: Iterable[Tensor]) -> Tensor:
    """The same of a model as it is, without looking at its blocks."""
    found = torch.zeros(model.config.hidden_size, model.config.hidden_size, device=model.device)
    for ids in batches:
        _add(found, model.hidden(ids.to(model.device)))
    _check_finite(found, "the output projection")
    return found


def predicted(vocabulary: int, context: int) -> int:
    """Positions of a row of `context` that `input_moments` predicts."""
    return min(context, max(1, LOGITS // vocabulary))


@torch.enable_grad()
def input_moments(model: Decoder, batches: Sequence[Tensor]) -> Tensor:
    """What the model's answers ask of its embeddings: G^T G (hidden, hidden) fp32, G (tokens, hidden).

    G is the gradient, at what the first block is given, of the logarithm of the probability of next tokens drawn from
    the model's own predictions: its second moments are the Fisher information, which says how much the predictions
    change with each direction. It is in the same units as `output_moments`, which is the Fisher information of the
    output's rows up to the probability of their tokens.

    Of a large vocabulary only some positions of each row are predicted, drawn without preference, and count for the
    rest: the tokens are drawn independently, so each position's gradient has a mean of zero, and the moments of their
    sum stay right on average.
    """
    found = torch.zeros(model.config.hidden_size, model.config.hidden_size, device=model.device)
    draw = torch.Generator(model.device).manual_seed(0)
    for ids in itertools.chain.from_iterable(batch.split(1) for batch in batches):  # a row at a time: memory
        walk = model.walk(ids.to(model.device))
        walk.hidden = first = walk.hidden.detach().requires_grad_(True)
        for _ in walk:
            pass
        last = walk.hidden[0]  # (T, hidden)
        T, few = len(last), predicted(model.config.vocab_size, len(last))
        if few < T:
            last = last[torch.randperm(T, generator=draw, device=last.device)[:few]]
        logits = model.unembed(model.model.norm(last))  # (few, V)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, drawn, reduction="sum"), first)
        _add(found, gradient * (T / few) ** 0.5)
    _check_finite(found, "the embeddings")
    return found


def _adding(moments: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: _add(moments, inputs[0])


def _add(moments: Tensor, x: Tensor) -> None:
    rows = x.reshape(-1, x.shape[-1]).float()
    with torch.autocast(rows.device.type, enabled=False):  # rounded sums would not be positive definite
        moments.addmm_(rows.T, rows)
