"""The convolution before linear attention: its definition, its beginning, and where it stops."""

from __future__ import annotations

import pytest
import torch

from models import bare_conversion, make, rms_ratio
from yeoul.adapt.linearize import Alignment, convert, train_only_maps
from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.cache import StateCache
from yeoul.model.short_conv import ShortConvolution
from yeoul.model.state_updates.additive import DiJiangAttention


def random_convolution(channels: int = 6, size: int = 4) -> ShortConvolution:
    layer = ShortConvolution(channels, size)
    torch.nn.init.normal_(layer.weight)
    return layer


@torch.no_grad()
def test_it_is_a_causal_depthwise_convolution() -> None:
    layer, x = random_convolution(), torch.randn(2, 9, 6)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    wanted = torch.nn.functional.conv1d(padded, layer.weight.flip(1)[:, None], groups=6).transpose(1, 2)
    torch.testing.assert_close(layer(x), wanted)


@torch.no_grad()
def test_it_begins_as_the_identity() -> None:
    x = torch.randn(2, 9, 6)
    assert torch.equal(ShortConvolution(6, 4)(x), x)


@torch.no_grad()
def test_texts_in_a_row_do_not_reach_into_one_another() -> None:
    layer, x = random_convolution(), torch.randn(1, 9, 6)
    packed = layer(x, seq_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1]]))
    torch.testing.assert_close(packed[:, :4], layer(x[:, :4]))
    torch.testing.assert_close(packed[:, 4:7], layer(x[:, 4:7]))
    mask = torch.tensor([[False, False, True, True, True, True, True, True, True]])
    torch.testing.assert_close(layer(x, mask)[:, 2:], layer(x[:, 2:]))


@torch.no_grad()
def test_its_memory_is_the_last_columns() -> None:
    layer, x, memory = random_convolution(), torch.randn(2, 9, 6), StateCache()
    pieces = [layer(x[:, a:b], cache=memory) for a, b in ((0, 2), (2, 3), (3, 8), (8, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x))
    assert memory.recent is not None and torch.equal(memory.recent, x[:, -3:])
    assert memory.nbytes() == 2 * 3 * 6 * 4


@torch.no_grad()
def test_a_layer_begins_as_one_without_and_learns_it_in_alignment() -> None:
    teacher = make("softmax")
    with_it, without = (
        convert(teacher, bare_conversion(attention="dijiang", state_update="delta", short_conv=n)) for n in (4, 0)
    )
    ids = torch.randint(0, 101, (2, 20))
    assert torch.equal(with_it(ids), without(ids))
    train_only_maps(with_it)
    trained = {name for name, parameter in with_it.named_parameters() if parameter.requires_grad}
    assert {f"model.layers.{n}.self_attn.short_conv.weight" for n in (0, 1)} <= trained
    with torch.enable_grad():
        Alignment(teacher)(with_it, Batch(input_ids=ids, labels=ids)).sum().backward()
    weight = with_it.layers[0].self_attn.short_conv.weight  # type: ignore[union-attr]
    assert weight.grad is not None and weight.grad[:, 1:].abs().max() > 0  # type: ignore[union-attr]
    assert rms_ratio(with_it(ids), teacher(ids)) > 0.01


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="convolution"):
        DiJiangAttention(32, 4, causal=False, short_conv=4)
    for value in (-1, 65, 1.5, True, "4"):
        with pytest.raises(UserError, match="short_conv"):
            make("softmax").config.with_(short_conv=value)
