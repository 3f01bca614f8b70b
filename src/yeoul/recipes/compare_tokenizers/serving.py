"""What serving a text costs with a vocabulary, computed for one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from yeoul.recipes.caches import cache_bytes
from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig
from yeoul.recipes.info.sizes import count_parameters, skeleton_shapes

HALF = 2
"""Bytes of a number in the cache: bfloat16 or float16."""
TEXT = 1000
"""Characters of the text that costs are given for."""


@dataclass(frozen=True, kw_only=True)
class ServingCost:
    """What a text of `TEXT` characters costs a model of a preset's shape with this vocabulary.

    Attributes:
        tokens: steps of decoding.
        gigaflops: of its products with weights, output projection included; those of attention, which depend on the
            context, are not counted.
        cache_bytes: keys and values in 16 bits.
        parameters: of the model, embedding included.
        embedding: parameters of the embedding.
    """

    tokens: float
    gigaflops: float
    cache_bytes: float
    parameters: int
    embedding: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def serving_cost(config: CompareTokenizersConfig, vocab_size: int, tokens_per_character: float) -> ServingCost:
    """The cost with a vocabulary that needs so many tokens for a character.

    Raises:
        UserError: there is no such preset.
    """
    shape = config.served_shape(vocab_size)
    counts = count_parameters(skeleton_shapes(shape))
    parameters, embedding = sum(counts.values()), counts["embeddings"]
    # A lookup in the embedding costs nothing; where it is the output projection too, that is multiplied with.
    multiplied = parameters - (0 if shape.tie_embeddings else embedding)
    tokens = TEXT * tokens_per_character
    return ServingCost(
        tokens=tokens, gigaflops=2 * multiplied * tokens / 1e9, cache_bytes=tokens * cache_bytes(shape, HALF)[1],
        parameters=parameters, embedding=embedding,
    )  # fmt: skip
