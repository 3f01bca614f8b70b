"""What stands on the hidden states of whole texts: pooling, and a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from yeoul.model.decoder import Decoder

Pooling = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def text_hidden(model: Decoder, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, T, hidden) of padded texts.

    Padding on the right needs no mask, for attention only looks back; that keeps attention on its fast path.

    Args:
        input_ids: (B, T) int64.
        mask: (B, T), 1 for tokens, 0 for padding on one side.
    """
    mask = mask.bool()
    on_the_left = bool((mask[:, 1:] & ~mask[:, :-1]).any())
    return model.hidden(input_ids, mask if on_the_left else None)


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
