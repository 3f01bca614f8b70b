"""What decides a model's texts, as one number: results of another model are not mixed with its own."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

SAMPLED = 1 << 22
"""Numbers of each tensor that a model's fingerprint looks at: all of small ones, some of the largest."""


def fingerprint(model: Decoder, tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides a model's texts: its configuration and tokenizer, numbers of every tensor, and which of
    its adapters is active."""
    import torch

    from yeoul.adapt.lora.api import active_adapter

    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    if (adapter := active_adapter(model)) is not None:
        digest.update(adapter.encode())
    digest.update(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // SAMPLED)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
