"""What blocks keep for their gradients: against autograd's own word, and against a count by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models import KINDS, make
from yeoul.adapt.linearize import train_only_maps
from yeoul.adapt.lora.api import add_lora
from yeoul.adapt.lora.config import LoraConfig
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.train.activations import LiveBytes, block_costs

T = 32


def kept_by_autograd(model: Decoder, number: int, packed: bool) -> int:
    """Bytes of the tensors that autograd saves in one block, those of the model and the block's input left out, and of
    what the block gives."""
    ids = torch.zeros(1, T, dtype=torch.int64)
    layout = model.attention_context(ids, seq_ids=ids if packed else None)
    x = torch.randn(1, T, model.config.hidden_size, requires_grad=True)
    known = [*model.parameters(), *model.buffers(), x, ids, *(t for pair in layout.rotary for t in pair)]
    if packed:
        known.append(layout.causal_mask)
    seen = {tensor.untyped_storage().data_ptr() for tensor in known}
    held: list[Tensor] = []
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held.append(tensor)  # so that no other tensor comes to lie there
            sizes.append(storage.nbytes())
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = model.layers[number](x, layout)
    count(y)
    return sum(sizes)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_kept_is_what_autograd_saves(kind: str, packed: bool) -> None:
    model = make(kind)
    costs = block_costs(model, T, packed=packed)
    assert len(costs) == model.config.num_layers and not model.training
    for number, cost in enumerate(costs):
        wanted = kept_by_autograd(model, number, packed)
        # Tables that are made once for all calls and small numbers beside tensors may differ.
        assert cost.kept == pytest.approx(wanted, rel=0.06, abs=600)
        assert cost.backward >= 0 and cost.forward > 0


def llama(**changes: Any) -> Decoder:
    shape = dict(hidden_size=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=40, intermediate_size=200)
    return Decoder(ModelConfig(vocab_size=50, **(shape | changes)))  # type: ignore[arg-type]


def test_a_llama_block_by_hand() -> None:
    """Norms keep their input, what they normalised and what they gave; attention q, k, v, its result and a sum for each
    head; the MLP its gate before and after the activation, what is multiplied with it, and the product."""
    (cost, *others) = block_costs(llama(), 64)
    d, HD, GD, H, inner = 96, 160, 80, 4, 200
    numbers = 6 * d + 2 + 3 * HD + 2 * GD + H + 4 * inner
    assert cost.kept == 4 * 64 * numbers
    assert all(other is cost for other in others)  # alike, so that one was run


def test_what_is_not_trained_is_not_kept() -> None:
    model = llama()
    (whole, *_) = block_costs(model, 64)
    model.requires_grad_(False)
    add_lora(model, LoraConfig(r=2))
    (adapter, *_) = block_costs(model, 64)
    assert 0.5 * whole.kept < adapter.kept < whole.kept * 1.1
    hybrid = make("hybrid")
    train_only_maps(hybrid)
    alone = block_costs(hybrid, T, attention_alone=True)[0]
    hybrid.requires_grad_(True)
    assert 0 < alone.kept < block_costs(hybrid, T)[0].kept
    hybrid.requires_grad_(False)
    assert block_costs(hybrid, T, attention_alone=True)[0].kept == 0


def test_counting_leaves_no_trace() -> None:
    model, before = llama().eval(), torch.get_rng_state()
    block_costs(model, 16)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters()) and not model.training


def test_trained_weights_in_bfloat16_are_counted_as_the_fp32_that_training_makes_of_them() -> None:
    model = llama().to(torch.bfloat16)
    (wide,) = {cost.kept for cost in block_costs(model, 64)}
    (cost, *_) = block_costs(llama(), 64)
    assert wide == cost.kept
    assert next(model.parameters()).dtype == torch.bfloat16


def test_live_bytes_come_and_go() -> None:
    given = torch.zeros(100)
    with LiveBytes([given]) as live:
        a = given + 1
        view = a[:50]
        assert live.now == 400
        b = a * 2
        del a
        assert live.now == 800  # the view holds it
        del view, b
        given.add_(1)
    assert live.now == 0 and live.peak == 800
