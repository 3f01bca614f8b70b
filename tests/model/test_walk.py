"""One walk over the blocks of a model."""

from __future__ import annotations

import pytest
import torch

from models import VOCAB, make


@pytest.mark.parametrize("kind", ["softmax", "classic", "gemma-like", "fourier-hybrid", "mixed"])
@torch.no_grad()
def test_it_is_the_model_between_embedding_and_norm(kind: str) -> None:
    model = make(kind)
    ids = torch.randint(0, VOCAB, (2, 17))
    seq_ids = (torch.arange(17) >= 9).long()[None].expand(2, -1)
    positions = torch.cat((torch.arange(9), torch.arange(8)))[None].expand(2, -1)
    walk, blocks = model.walk(ids, positions=positions, seq_ids=seq_ids), []
    for number, block in enumerate(walk):
        blocks.append(block)
        if number == 0:  # what the caller has computed is not computed again
            attention = block.self_attn
            x = block.attention_input(walk.hidden)
            q, k, v = attention.project(x, walk.context)
            given = attention.attend(q, k, v, attention.gates(x, walk.context, k, v), walk.context)
            output = block.after_attention(walk.hidden, attention.output(given))
            assert walk.advance(output) is output is walk.hidden
    assert blocks == model.layers
    wanted = model(ids, positions=positions, seq_ids=seq_ids)
    assert torch.equal(model.unembed(model.model.norm(walk.hidden)), wanted)


@torch.no_grad()
def test_several_go_in_step_and_a_block_may_change_meanwhile() -> None:
    model = make("softmax")
    batches = [torch.randint(0, VOCAB, (1, length)) for length in (5, 8)]
    walks = [model.walk(ids) for ids in batches]
    for block, other in zip(*walks, strict=True):
        assert block is other
        block.mlp.down_proj.weight.mul_(2)
    for walk, ids in zip(walks, batches, strict=True):
        assert torch.equal(model.unembed(model.model.norm(walk.hidden)), model(ids))
    with pytest.raises(ValueError, match="no block"):
        walks[0].advance()
