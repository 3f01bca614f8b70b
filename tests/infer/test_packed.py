"""Memory in one piece is the same memory."""

from __future__ import annotations

import pytest
import torch

from models import KINDS, VOCAB, make
from yeoul.infer.packed import ALIGNED, packed


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_follows_is_the_same_and_the_first_memory_stays(kind: str) -> None:
    model = make(kind)
    text, more = torch.randint(2, VOCAB, (1, 37)), torch.randint(2, VOCAB, (1, 5))
    with torch.inference_mode():
        cache = model.new_cache(1)
        model.hidden(text, cache=cache)
        kept = packed(cache)
        assert kept.nbytes() == cache.nbytes()
        expected = model(more, cache=cache.resumed(42))
        for _ in range(2):
            assert torch.equal(model(more, cache=kept.resumed(42)), expected)
        assert torch.equal(model(more, cache=cache), expected)


def test_all_tensors_lie_in_one_mapping() -> None:
    model = make("exact-delta")
    with torch.inference_mode():
        cache = model.new_cache(1)
        model.hidden(torch.randint(2, VOCAB, (1, 37)), cache=cache)
        kept = packed(cache)
    tensors = [
        tensor
        for layer in kept.layers
        for part in layer.parts()
        for tensor in (*part.tensors().values(), *getattr(part, "gates", {}).values())
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert tensors[0].untyped_storage().nbytes() <= kept.nbytes() + ALIGNED * len(tensors)
