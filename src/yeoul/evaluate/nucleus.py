"""What top-p does, shown on a model's own distribution: a lower p keeps fewer tokens.

p is the probability that the kept tokens must reach together (Holtzman and others 2020), so 1 keeps all of them and a
small p only the likeliest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from yeoul.infer.engine import prompt_ids
from yeoul.infer.generation import evaluating
from yeoul.infer.sample import top_p

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

SHARES = (0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 1.0)
"""Values of p that are compared."""
SHOWN = 12
"""Tokens that are listed."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A token that may come next: its text, its probability, and that of all tokens up to it together."""

    text: str
    probability: float
    cumulated: float


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """The distribution of the next token behind a prompt, and what each p keeps of it.

    Attributes:
        prompt: the text before it.
        vocab_size: how many tokens there are.
        candidates: the likeliest ones, at temperature 1.
        kept: (p, tokens that top-p keeps, the probability that they have together), by rising p.
    """

    prompt: str
    vocab_size: int
    candidates: tuple[Candidate, ...]
    kept: tuple[tuple[float, int, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@torch.inference_mode()
def nucleus(model: Decoder, tokenizer: Tokenizer, prompt: str, shares: Sequence[float] = SHARES) -> Nucleus:
    """Ask a model for the next token behind a prompt.

    Raises:
        UserError: an empty prompt, and the tokenizer has no token that begins a text.
    """
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
    with evaluating(model):
        logits = model(ids, logits_to_keep=1)[:, -1, : tokenizer.vocab_size].float()  # (1, V)
    probability = logits.double().softmax(-1)[0]
    ordered, places = probability.sort(descending=True, stable=True)
    cumulated = ordered.cumsum(0)
    candidates = tuple(
        Candidate(text=shown(tokenizer, int(token)), probability=float(own), cumulated=float(together))
        for token, own, together in zip(places[:SHOWN], ordered[:SHOWN], cumulated[:SHOWN], strict=True)
    )
    kept = []
    for share in sorted(shares):
        left = torch.isfinite(top_p(logits, share))[0]
        kept.append((share, int(left.sum()), float(probability[left].sum())))
    return Nucleus(prompt=prompt, vocab_size=logits.shape[1], candidates=candidates, kept=tuple(kept))


def shown(tokenizer: Tokenizer, token: int) -> str:
    """A token as a reader understands it: its text, a part of a character in bytes, a special token by its name."""
    own = tokenizer.token_bytes(token)
    if not own:
        return tokenizer.spelled([token]) or f"#{token}"
    try:
        text = own.decode("utf-8")
    except UnicodeDecodeError:
        return "<" + " ".join(f"{byte:02X}" for byte in own) + ">"
    return text.replace(" ", "␣").replace("\n", "↵")
