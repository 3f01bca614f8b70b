"""What stands on the states of whole texts: pooling, a classification head, and linear layers that make vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from yeoul.model.decoder import Decoder

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last"]
"""The first token's state, the largest of each number, the mean, the sum divided by the root of the count, the mean
weighted by the tokens' places from 1 on, the last token's state: the ways of sentence-transformers, in its order."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
HEAD_POOLINGS: tuple[Pooling, ...] = ("last", "mean")
"""What a classification head may stand on."""
States = Literal["last", "embeddings", "both"]
"""Last hidden states, what enters the first block, or the two side by side."""
STATES: tuple[States, ...] = get_args(States)
Activation = Literal["identity", "tanh", "relu", "gelu", "silu", "sigmoid", "leaky_relu", "elu", "softplus", "mish"]
_ACTIVATE: dict[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x, "tanh": torch.tanh, "relu": functional.relu, "gelu": functional.gelu,
    "silu": functional.silu, "sigmoid": torch.sigmoid, "leaky_relu": functional.leaky_relu, "elu": functional.elu,
    "softplus": functional.softplus, "mish": functional.mish,
}  # fmt: skip

NOWHERE = -1e9
"""What sentence-transformers' "max" takes for a token that does not count."""
RIDGE = 0.1
"""Part of the mean variance that a whitening adds to each, so that directions of hardly any are not blown up."""


def text_hidden(model: Decoder, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, T, hidden) of padded texts.

    Padding on the right needs no mask, for attention only looks back; that keeps attention on its fast path.

    Args:
        input_ids: (B, T) int64.
        mask: (B, T), 1 for tokens, 0 for padding on one side.
    """
    mask = mask.bool()
    return model.hidden(input_ids, mask if _on_the_left(mask) else None)


def _on_the_left(mask: Tensor) -> bool:
    """Whether a row's padding (mask: bool) stands before its tokens."""
    return bool((mask[:, 1:] & ~mask[:, :-1]).any())


def text_states(model: Decoder, input_ids: Tensor, mask: Tensor, states: States = "last") -> Tensor:
    """States of padded texts, (B, T, hidden), with "both" (B, T, 2 hidden): embeddings first; as `text_hidden`."""
    if states == "last":
        return text_hidden(model, input_ids, mask)
    mask = mask.bool()
    positions = (mask.long().cumsum(1) - 1).clamp_min(0) if _on_the_left(mask) else None
    entering = model.embed(input_ids, positions)
    return entering if states == "embeddings" else torch.cat((entering, text_hidden(model, input_ids, mask)), -1)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling, skip: int = 0) -> Tensor:
    """One vector for each text, (B, hidden) fp32.

    Args:
        hidden: (B, T, hidden), any float type.
        mask: (B, T), 1 for tokens, 0 for padding on either side; each row has a token.
        pooling: see `Pooling`.
        skip: tokens at the beginning that do not count (a prompt's); "cls" takes the first one all the same. A text
            that has no others becomes zeros, with "max" very negative numbers.
    """
    mask = mask.bool()
    rows = torch.arange(len(hidden), device=hidden.device)
    if pooling == "cls":
        return hidden[rows, mask.long().argmax(1)].float()
    places = mask.long().cumsum(1)  # from 1 on
    mask = mask & (places > skip)
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)  # (B,)
        return torch.where(mask.any(1, keepdim=True), hidden[rows, last].float(), 0.0)
    chosen = torch.where(mask[..., None], hidden.float(), NOWHERE if pooling == "max" else 0.0)
    if pooling == "max":
        return chosen.amax(1)
    count = mask.sum(1, keepdim=True)
    if pooling == "weightedmean":
        weights = torch.where(mask, places, 0)
        return (chosen * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
    return chosen.sum(1) / (count.sqrt() if pooling == "mean_sqrt_len" else count).clamp_min(1)


class ClassificationHead(nn.Module):
    """Pooling and a linear layer without bias, as transformers' `score`.

    Args:
        hidden_size: width of the hidden states.
        labels: names of the classes, in order.
        pooling: see `pool`.
        dropout: of the pooled vector, in training.
    """

    def __init__(
        self, hidden_size: int, labels: Sequence[str], pooling: Pooling = "last", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.labels, self.pooling, self.dropout = list(labels), pooling, dropout
        self.score = nn.Linear(hidden_size, len(self.labels), bias=False)
        if not self.score.weight.is_meta:
            nn.init.normal_(self.score.weight, std=0.02)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, labels) fp32; arguments as `pool`."""
        pooled = pool(hidden, mask, self.pooling)
        if self.training and self.dropout:
            pooled = nn.functional.dropout(pooled, self.dropout)
        return self.score(pooled.to(self.score.weight.dtype)).float()


Meaning = Literal["one", "several", "values"]
"""What the logits of a classifier say: which one of the classes it is (their softmax is the probability), of each label
whether it holds (the sigmoid of its own logit), or the values themselves, of a regression."""


class SequenceClassifier(nn.Module):
    """A decoder with a classification head: texts to logits over their classes.

    Args:
        meaning: of the logits.
    """

    def __init__(self, decoder: Decoder, head: ClassificationHead, meaning: Meaning = "one") -> None:
        super().__init__()
        self.decoder, self.head, self.meaning = decoder, head, meaning

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return self.head.labels

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, labels) fp32.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 for tokens, 0 for padding on either side; None: no padding.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.head(text_hidden(self.decoder, input_ids, mask), mask)


class Dense(nn.Module):
    """A linear layer and what is done to its result: the module `Dense` of sentence-transformers.

    Args:
        in_features, out_features: widths.
        bias: whether something is added.
        activation: done to the result, as torch's modules of these names do it without arguments.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, activation: Activation = "identity"
    ) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(in_features, out_features, bias=bias), activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), both fp32."""
        return _ACTIVATE[self.activation](self.linear(x.to(self.linear.weight.dtype)).float())

    @property
    def width(self) -> int:
        """Numbers of the result."""
        return self.linear.out_features


class VectorNorm(nn.Module):
    """The module `LayerNorm` of sentence-transformers: mean 0, variance 1, then a scale and a shift of each number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.width = nn.LayerNorm(width), width

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) fp32 -> the same."""
        return self.norm(x.to(self.norm.weight.dtype)).float()


class UnitLength(nn.Module):
    """The module `Normalize` of sentence-transformers, where further layers follow."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) fp32 -> the same, of length 1."""
        return functional.normalize(x, dim=-1)


class Whitening(nn.Module):
    """Vectors whose numbers are uncorrelated and of variance 1, and a linear layer on them, begun as the identity.

    The whitening of Su and others 2021 ("Whitening Sentence Representations for Better Semantics and Faster
    Retrieval") with a ridge, of numbers that are divided by their deviations first, so that the ridge means the same to
    all, and rotated back (ZCA-cor; Kessy and others 2018, "Optimal Whitening and Decorrelation"): unlike a choice of
    eigenvectors that does not jump when the vectors change by a rounding. It stays fixed. Only the layer on it is
    trained: between numbers of one size, one learning rate fits all. `fused` is the one layer that does both.

    Args:
        vectors: (N, d), any float type, N >= 2.
        ridge: see `RIDGE`.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, vectors: Tensor, ridge: float = RIDGE) -> None:
        super().__init__()
        exact = vectors.detach().double()
        mean, deviations = exact.mean(0), exact.std(0)
        deviations = deviations.clamp_min(1e-6 * float(deviations.max()) + 1e-12)
        variances, directions = torch.linalg.eigh(((exact - mean) / deviations).T.cov())
        scales = (variances.clamp_min(0) + ridge * variances.mean().clamp_min(1e-12)).rsqrt()
        matrix = (directions * scales) @ directions.T / deviations[:, None]
        width = len(mean)
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("matrix", matrix.float(), persistent=False)
        self.linear = nn.Linear(width, width, device=vectors.device)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) fp32 -> (..., d) fp32."""
        return self.linear((x - self.mean) @ self.matrix)

    @property
    def width(self) -> int:
        """Numbers of the result."""
        return self.linear.out_features

    @torch.no_grad()
    def fused(self) -> Dense:
        """The same as one layer."""
        weight = self.linear.weight.double() @ self.matrix.double().T
        dense = Dense(len(self.mean), len(self.mean))
        dense.linear.weight.copy_(weight)
        dense.linear.bias.copy_(self.linear.bias.double() - weight @ self.mean.double())
        return dense


VectorLayer = Dense | Whitening | VectorNorm | UnitLength


class TextVectors(nn.Module):
    """What makes a vector of a text's states.

    Args:
        states: which states; see `States`.
        pooling: how they become one vector; see `pool`. Of several ways the vectors stand side by side.
        layers: what that goes through, in this order.
    """

    def __init__(
        self,
        pooling: Pooling | Sequence[Pooling] = "mean",
        states: States = "last",
        layers: Sequence[VectorLayer] = (),
    ) -> None:
        super().__init__()
        self.pooling: tuple[Pooling, ...] = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        self.states, self.layers = states, nn.ModuleList(layers)

    def pooled(self, model: Decoder, input_ids: Tensor, mask: Tensor, skip: int = 0) -> Tensor:
        """(B, `pooled_width`) fp32; arguments as `text_hidden` and `pool`."""
        states = text_states(model, input_ids, mask, self.states)
        return torch.cat([pool(states, mask, pooling, skip) for pooling in self.pooling], -1)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, `width`) fp32, not yet of length 1."""
        for layer in self.layers:
            pooled = layer(pooled)
        return pooled

    def pooled_width(self, hidden_size: int) -> int:
        """Numbers of a pooled vector, for states of so many."""
        return hidden_size * (2 if self.states == "both" else 1) * len(self.pooling)

    def width(self, hidden_size: int) -> int:
        """Numbers of a vector."""
        widths = (layer.width for layer in reversed(self.layers) if not isinstance(layer, UnitLength))
        return int(next(widths, self.pooled_width(hidden_size)))  # type: ignore[arg-type]
