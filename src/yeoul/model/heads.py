"""What stands on the states of whole texts: pooling, a classification head, and linear layers that make vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from yeoul.model.decoder import Decoder

Pooling = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
States = Literal["last", "embeddings", "both"]
"""Last hidden states, what enters the first block, or the two side by side."""
STATES: tuple[States, ...] = get_args(States)
Activation = Literal["identity", "tanh"]

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


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector for each text, (B, hidden) fp32.

    Args:
        hidden: (B, T, hidden), any float type.
        mask: (B, T), 1 for tokens, 0 for padding on either side; each row has a token.
        pooling: "last" takes the last token's state, "mean" the mean of all tokens' states.
    """
    mask = mask.bool()
    if pooling == "mean":
        chosen = torch.where(mask[..., None], hidden.float(), 0.0)
        return chosen.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
    last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last].float()


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


class SequenceClassifier(nn.Module):
    """A decoder with a classification head: texts to logits over their classes."""

    def __init__(self, decoder: Decoder, head: ClassificationHead) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head

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
        activation: "identity" or "tanh".
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, activation: Activation = "identity"
    ) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(in_features, out_features, bias=bias), activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), both fp32."""
        x = self.linear(x.to(self.linear.weight.dtype)).float()
        return x.tanh() if self.activation == "tanh" else x


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

    @torch.no_grad()
    def fused(self) -> Dense:
        """The same as one layer."""
        weight = self.linear.weight.double() @ self.matrix.double().T
        dense = Dense(len(self.mean), len(self.mean))
        dense.linear.weight.copy_(weight)
        dense.linear.bias.copy_(self.linear.bias.double() - weight @ self.mean.double())
        return dense


class TextVectors(nn.Module):
    """What makes a vector of a text's states.

    Args:
        states: which states; see `States`.
        pooling: how they become one vector; see `pool`.
        layers: what that goes through: `Dense` or `Whitening`, in this order.
    """

    def __init__(
        self, pooling: Pooling = "mean", states: States = "last", layers: Sequence[Dense | Whitening] = ()
    ) -> None:
        super().__init__()
        self.pooling, self.states, self.layers = pooling, states, nn.ModuleList(layers)

    def pooled(self, model: Decoder, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, `pooled_width`) fp32; arguments as `text_hidden`."""
        return pool(text_states(model, input_ids, mask, self.states), mask, self.pooling)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, `width`) fp32, not yet of length 1."""
        for layer in self.layers:
            pooled = layer(pooled)
        return pooled

    def pooled_width(self, hidden_size: int) -> int:
        """Numbers of a pooled vector, for states of so many."""
        return hidden_size * (2 if self.states == "both" else 1)

    def width(self, hidden_size: int) -> int:
        """Numbers of a vector."""
        if not len(self.layers):
            return self.pooled_width(hidden_size)
        return int(self.layers[-1].linear.out_features)  # type: ignore[union-attr,arg-type]
