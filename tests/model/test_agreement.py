"""One meaning, however it is computed: whole, in chunks, token by token, padded, packed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import KINDS, VOCAB, make, rms_ratio
from yeoul.model.decoder import Decoder

LIMIT = 1e-5


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(2))


def in_pieces(model: Decoder, ids: Tensor, cuts: list[int], mask: Tensor | None = None) -> Tensor:
    cache, outputs, start = model.new_cache(ids.shape[0]), [], 0
    for end in [*cuts, ids.shape[1]]:
        part = slice(start, end)
        padded = mask is not None and not bool(mask[:, part].all())
        outputs.append(model(ids[:, part], mask[:, part] if padded and mask is not None else None, cache=cache))
        start = end
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_model_equals_whole_model(kind: str) -> None:
    model, ids = make(kind), tokens(2, 29)
    whole = model(ids)
    assert rms_ratio(in_pieces(model, ids, list(range(1, 29))), whole) < LIMIT, "token by token"
    for cuts in ([1], [4, 5], [5, 6, 7], [17], [3, 4, 20, 21], [28]):
        assert rms_ratio(in_pieces(model, ids, cuts), whole) < LIMIT, f"prefill split at {cuts}"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_changes_no_token(kind: str) -> None:
    model, ids = make(kind), tokens(1, 23)
    alone, filler = model(ids), torch.full((1, 6), 7)
    mask = torch.ones(1, 29)
    left, right = mask.clone(), mask.clone()
    left[:, :6], right[:, -6:] = 0, 0
    assert rms_ratio(model(torch.cat((filler, ids), 1), left)[:, 6:], alone) < LIMIT
    assert rms_ratio(model(torch.cat((ids, filler), 1), right)[:, :23], alone) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_left_padded_rows_decode_like_each_alone(kind: str) -> None:
    model, a = make(kind), tokens(1, 27)
    b = (tokens(1, 21) + 5) % VOCAB
    batch = torch.cat((a, torch.cat((torch.zeros(1, 6, dtype=torch.long), b), 1)))
    mask = torch.ones(2, 27)
    mask[1, :6] = 0
    for cuts in ([7, *range(8, 27)], [9, 14], [20, 21, 22]):
        out = in_pieces(model, batch, cuts, mask)
        assert rms_ratio(out[:1], model(a)) < LIMIT
        assert rms_ratio(out[1:, 6:], model(b)) < LIMIT


@torch.no_grad()
def test_a_cached_chunk_that_ends_in_padding_is_refused() -> None:
    model, mask = make("hybrid"), torch.ones(1, 4)
    mask[:, -1] = 0
    with pytest.raises(ValueError, match="left"):
        model(tokens(1, 4), mask, cache=model.new_cache(1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_packed_sequences_do_not_see_one_another(kind: str) -> None:
    model, ids = make(kind), tokens(1, 30)
    lengths = [9, 14, 3]
    seq_ids = torch.full((1, 30), -1)
    positions, start, alone = torch.zeros(1, 30, dtype=torch.long), 0, []
    for number, length in enumerate(lengths):
        part = slice(start, start + length)
        seq_ids[:, part], positions[:, part] = number, torch.arange(length)
        alone.append(model(ids[:, part]))
        start += length
    packed = model(ids, seq_ids=seq_ids, positions=positions)[:, :start]
    assert rms_ratio(packed, torch.cat(alone, 1)) < LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_gets_exactly_zero_gradient(kind: str, side: str) -> None:
    model = make(kind).train()
    ids = tokens(1, 20) % 90
    columns = slice(0, 7) if side == "left" else slice(13, 20)
    ids[:, columns] = 95  # an id that occurs nowhere else
    mask = torch.ones(1, 20)
    mask[:, columns] = 0
    # tied unembeddings touch every row of the embedding, so the loss reads hidden states
    hidden = model.hidden(ids, mask)[mask.bool()]
    (hidden * torch.randn(hidden.shape)).sum().backward()
    grad = model.model.embed_tokens.weight.grad
    assert grad is not None
    assert torch.equal(grad[95], torch.zeros_like(grad[95]))
    assert grad.isfinite().all() and grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["softmax", "hybrid", "dijiang-decay", "delta-hybrid", "hybrid-sinks"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    model, ids = make(kind).train(), tokens(2, 20)
    grads = []
    for use in (False, True):
        model.gradient_checkpointing = use
        model.zero_grad()
        model(ids).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_reorder_keeps_the_chosen_rows() -> None:
    for kind in ("softmax", "sliding", "hybrid", "dijiang", "delta", "delta-hybrid", "hybrid-sinks"):
        model, ids = make(kind), tokens(3, 18)
        cache = model.new_cache(3)
        model(ids[:, :12], cache=cache)
        cache.reorder(torch.tensor([2, 0]))
        rest = torch.cat([model(ids[[2, 0], i : i + 1], cache=cache) for i in range(12, 18)], 1)
        assert rms_ratio(rest, model(ids)[[2, 0], 12:]) < LIMIT


@torch.no_grad()
def test_linear_and_window_caches_stop_growing() -> None:
    for kind in ("sliding", "dijiang", "hybrid", "delta", "delta-hybrid", "sliding-sinks", "hybrid-sinks"):
        model = make(kind)
        cache, sizes = model.new_cache(1), []
        for _ in range(4):
            model(tokens(1, 20), cache=cache)
            sizes.append(cache.nbytes())
        assert len(set(sizes)) == 1, kind
    model = make("softmax")
    cache = model.new_cache(1)
    model(tokens(1, 20), cache=cache)
    first = cache.nbytes()
    model(tokens(1, 20), cache=cache)
    assert cache.nbytes() == 2 * first


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind: str) -> None:
    """No row at all: whole, with a mask, from a cache."""
    model, nothing = make(kind), torch.zeros(0, 9, dtype=torch.int64)
    logits = model(nothing)
    assert logits.shape == (0, 9, VOCAB)
    logits.sum().backward()
    assert model(nothing, attention_mask=nothing == 0).shape == logits.shape
    with torch.no_grad():
        cache = model.new_cache(0)
        model(nothing, cache=cache)
        assert model(nothing[:, :1], cache=cache).shape == (0, 1, VOCAB)
