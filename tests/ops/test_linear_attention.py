"""The forms of linear attention against the definition and one another, and the pitfalls of the method."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ops.definition import definition, difference
from yeoul.ops import blocks
from yeoul.ops.linear_attention import MODES, LinearState, linear_attention, linear_sums, recurrent_step

AGREE = 1e-6  # the promise is 1e-5
IDS = torch.tensor([[-1, -1, 7, 7, 7, 2, 2, -1, 2, 9, 9, 9, 9], [4, 4, 4, 4, 4, 4, 4, 4, 1, 1, -1, -1, -1]])


def tensors(
    b: int = 2,
    h: int = 4,
    g: int = 2,
    t: int = 13,
    m: int = 5,
    d: int = 3,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.rand(b, h, t, m, dtype=dtype),
        torch.rand(b, g, t, m, dtype=dtype),
        torch.randn(b, g, t, d, dtype=dtype),
    )


def decays(kind: str, b: int = 2, g: int = 2, t: int = 13) -> Tensor | None:
    return {"none": None, "head": -torch.rand(g), "position": -2 * torch.rand(b, g, t)}[kind]


def past(b: int = 2, g: int = 2, m: int = 5, d: int = 3, dtype: torch.dtype = torch.float32) -> LinearState:
    return LinearState(torch.randn(b, g, m, d, dtype=dtype), torch.rand(b, g, m, dtype=dtype))


FORMS: list[dict[str, Any]] = [
    {"mode": "quadratic"},
    {"mode": "recurrent"},
    *({"mode": "chunked", "chunk_size": c} for c in (1, 2, 3, 4, 8, 13, 64)),
]


@pytest.fixture(params=["one block", "a block a chunk"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short inputs fit one block: the way from block to block needs blocks of one chunk."""
    if request.param == "a block a chunk":
        monkeypatch.setattr(blocks, "NUMBERS_ON_CPU", 1)


@pytest.mark.parametrize("kind", ["none", "head", "position"])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_every_form_is_the_definition(kind: str, heads: tuple[int, int], block_size: None) -> None:
    h, g = heads
    q, k, v = tensors(h=h, g=g)
    log_decay = decays(kind, g=g)
    for ids, state, normalize in product((None, IDS), (None, past(g=g)), (True, False)):
        expected = definition(q, k, v, log_decay, ids=ids, state=state, normalize=normalize)
        for form in FORMS:
            for mask_only in (False, True):
                where: dict[str, Any] = {} if ids is None else {"seq_ids": ids}
                if mask_only and ids is not None:
                    where = {"seq_ids": ids.masked_fill(ids < 0, 99), "mask": ids >= 0}
                    where["seq_ids"][ids < 0] = ids.max()  # what stands at padding does not matter
                out, new = linear_attention(
                    q, k, v, log_decay, normalize=normalize, initial_state=state, return_state=True,
                    **where, **form,
                )  # fmt: skip
                for ours, reference in zip((out, *new), expected, strict=True):
                    assert difference(ours, reference) <= AGREE, (form, ids is None, state is None)


@pytest.mark.parametrize("kind", ["none", "head", "position"])
def test_gradients_agree_in_float32(kind: str, block_size: None) -> None:
    q, k, v = tensors(t=13)
    log_decay, state, weights = decays(kind), past(), torch.randn(2, 4, 13, 3)
    state_weights = torch.randn(2, 2, 5, 3)

    def gradients(dtype: torch.dtype, **form: Any) -> list[Tensor]:
        given_ = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v, *state)]
        if log_decay is not None:
            given_.append(log_decay.to(dtype, copy=True).requires_grad_())
        decay = given_[5] if log_decay is not None else None
        out, new = linear_attention(
            *given_[:3],
            decay,
            seq_ids=IDS,
            initial_state=LinearState(given_[3], given_[4]),
            return_state=True,
            **form,
        )
        ((out * weights).sum() + (new.s * state_weights).sum() + new.z.pow(2).sum()).backward()
        return [x.grad for x in given_ if x.grad is not None]

    expected = gradients(torch.float64, mode="quadratic")
    assert len(expected) == 5 + (log_decay is not None)
    for form in FORMS:
        for ours, reference in zip(gradients(torch.float32, **form), expected, strict=True):
            assert difference(ours, reference) <= 1e-5, form


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["none", "head", "position"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(mode: str, kind: str, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "head":
        monkeypatch.setattr(blocks, "NUMBERS_ON_CPU", 1)
    q, k, v = (x.requires_grad_() for x in tensors(b=1, h=4, g=2, t=7, m=2, d=2, dtype=torch.float64))
    state = [x.requires_grad_() for x in past(b=1, m=2, d=2, dtype=torch.float64)]
    decay = decays(kind, b=1, t=7)
    given_ = [q, k, v, *state] + ([] if decay is None else [decay.double().requires_grad_()])
    mask = torch.tensor([[False, True, True, True, False, True, True]])
    ids = torch.tensor([[5, 5, 5, 5, 2, 2, 2]])

    def run(q: Tensor, k: Tensor, v: Tensor, s: Tensor, z: Tensor, decay: Any = None) -> tuple[Tensor, ...]:
        out, new = linear_attention(
            q, k, v, decay, mode=mode, chunk_size=3, normalize=normalize, mask=mask, seq_ids=ids,
            initial_state=LinearState(s, z), return_state=True,
        )  # fmt: skip
        return out, new.s, new.z

    assert torch.autograd.gradcheck(run, given_)

    def without_sequences(*given: Tensor) -> tuple[Tensor, ...]:
        decay = given[5] if len(given) > 5 else None
        out, new = linear_attention(
            *given[:3], decay, mode=mode, chunk_size=3, normalize=normalize,
            initial_state=LinearState(given[3], given[4]), return_state=True,
        )  # fmt: skip
        return out, new.s, new.z

    assert torch.autograd.gradcheck(without_sequences, given_, fast_mode=True)


@pytest.mark.parametrize("mode", ["chunked", "quadratic"])
def test_gradcheck_not_causal(mode: str) -> None:
    given_ = [x.requires_grad_() for x in tensors(b=2, t=13, m=2, d=2, dtype=torch.float64)]
    for ids in (None, IDS):
        assert torch.autograd.gradcheck(
            lambda q, k, v, ids=ids: linear_attention(q, k, v, mode=mode, causal=False, seq_ids=ids),
            given_,
            fast_mode=True,
        )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    b=st.integers(1, 3),
    g=st.integers(1, 3),
    r=st.integers(1, 3),
    t=st.integers(1, 40),
    chunk_size=st.integers(1, 50),
    kind=st.sampled_from(["none", "head", "position"]),
    share=st.floats(0, 1),
    packed=st.booleans(),
    normalize=st.booleans(),
    numbers=st.sampled_from([1, 3000, 1 << 20]),
)
def test_forms_agree_whatever_the_input(
    seed: int, b: int, g: int, r: int, t: int, chunk_size: int, kind: str, share: float, packed: bool,
    normalize: bool, numbers: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    q, k, v = tensors(b, g * r, g, t)
    where: dict[str, Any] = {"mask": torch.rand(b, t) < share}
    if packed:
        where["seq_ids"] = (torch.rand(b, t) < 0.2).long().cumsum(1)
    where |= {"initial_state": past(b, g), "return_state": True, "normalize": normalize}
    decay = decays(kind, b, g, t)
    expected, state = linear_attention(q.double(), k.double(), v.double(), decay, mode="quadratic", **where)
    before = blocks.NUMBERS_ON_CPU
    try:
        blocks.NUMBERS_ON_CPU = numbers
        for form in ({"mode": "chunked", "chunk_size": chunk_size}, {"mode": "recurrent"}):
            out, new = linear_attention(q, k, v, decay, **form, **where)
            assert difference(out, expected) <= 1e-5
            assert difference(new.s, state.s) <= 1e-5 and difference(new.z, state.z) <= 1e-5
    finally:
        blocks.NUMBERS_ON_CPU = before


@pytest.mark.parametrize("kind", ["none", "head", "position"])
def test_a_prefill_split_anywhere_is_the_whole(kind: str) -> None:
    q, k, v = tensors(t=13)
    decay = decays(kind)
    whole, end = linear_attention(q, k, v, decay, chunk_size=4, return_state=True)
    for cut in range(14):
        parts, state = [], None
        for first, last, mode in ((0, cut, "chunked"), (cut, 13, "chunked"), (13, 13, "recurrent")):
            there = decay if decay is None or decay.dim() == 1 else decay[:, :, first:last]
            piece = (x[:, :, first:last] for x in (q, k, v))
            out, state = linear_attention(
                *piece, there, mode=mode, chunk_size=4, initial_state=state, return_state=True
            )
            parts.append(out)
        assert difference(torch.cat(parts, dim=2), whole) <= AGREE
        assert difference(state.s, end.s) <= AGREE and difference(state.z, end.z) <= AGREE


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_padded_and_packed_rows_are_each_sequence_alone(mode: str, causal: bool) -> None:
    lengths = (5, 1, 7)
    decay = decays("position", b=1) if causal else None
    q, k, v = tensors(b=1)
    options: dict[str, Any] = {"mode": mode, "causal": causal, "chunk_size": 4, "return_state": True}
    packed_ids = torch.repeat_interleave(torch.tensor([3, 0, 5]), torch.tensor(lengths))[None]
    packed, packed_state = linear_attention(q, k, v, decay, seq_ids=packed_ids, **options)
    start = 0
    for length in lengths:
        stop = start + length
        piece = [x[:, :, start:stop] for x in (q, k, v)]
        there = None if decay is None else decay[:, :, start:stop]
        alone, state = linear_attention(*piece, there, **options)
        assert difference(packed[:, :, start:stop], alone) <= AGREE
        for left in (0, 4, 9):
            pad = (0, 0, left, 9 - left)
            padded = [torch.nn.functional.pad(x, pad, value=7.0) for x in piece]
            padded_decay = None if there is None else torch.nn.functional.pad(there, pad[2:], value=-3.0)
            mask = torch.nn.functional.pad(torch.ones(1, length, dtype=torch.bool), pad[2:])
            for where in ({"mask": mask}, {"seq_ids": mask.long() - 1}):
                out, padded_state = linear_attention(*padded, padded_decay, **where, **options)
                assert difference(out[:, :, left : left + length], alone) <= AGREE
                assert difference(padded_state.s, state.s) <= AGREE
        start = stop
    assert difference(packed_state.s, state.s) <= AGREE and difference(packed_state.z, state.z) <= AGREE


@pytest.mark.parametrize("mode", MODES)
def test_not_causal_is_the_definition(mode: str) -> None:
    q, k, v = tensors()
    for ids, normalize in product((None, IDS), (True, False)):
        expected = definition(q, k, v, causal=False, ids=ids, normalize=normalize)
        out, state = linear_attention(
            q, k, v, mode=mode, causal=False, seq_ids=ids, normalize=normalize, return_state=True
        )
        for ours, reference in zip((out, *state), expected, strict=True):
            assert difference(ours, reference) <= AGREE


@pytest.mark.parametrize("kind", ["none", "head", "position"])
@pytest.mark.parametrize("inplace", [True, False])
def test_recurrent_step_continues_a_prefill(kind: str, inplace: bool) -> None:
    q, k, v = tensors()
    decay = decays(kind)
    whole, end = linear_attention(q, k, v, decay, mode="quadratic", return_state=True)
    start = None if decay is None or decay.dim() == 1 else decay[:, :, :6]
    _, state = linear_attention(
        q[:, :, :6], k[:, :, :6], v[:, :, :6], decay if start is None else start, return_state=True
    )
    kept = state
    for t in range(6, 13):
        at = decay if decay is None or decay.dim() == 1 else decay[:, :, t]
        out, state = recurrent_step(q[:, :, t], k[:, :, t], v[:, :, t], state, at, inplace=inplace)
        assert out.shape == (2, 4, 3) and difference(out, whole[:, :, t]) <= AGREE
        assert (state.s.data_ptr() == kept.s.data_ptr()) is inplace
    assert difference(state.s, end.s) <= AGREE and difference(state.z, end.z) <= AGREE


def test_recurrent_step_from_nothing_and_its_errors() -> None:
    q, k, v = (x[:, :, 0] for x in tensors())
    out, state = recurrent_step(q, k, v, None)
    assert difference(out, v.repeat_interleave(2, dim=1)) <= AGREE  # one token sees itself alone
    numerator, _ = recurrent_step(q, k, v, None, normalize=False)
    assert difference(numerator, (q * k.repeat_interleave(2, 1)).sum(-1, keepdim=True) * out) <= AGREE
    with pytest.raises(ValueError, match="inplace"):
        recurrent_step(q.requires_grad_(), k, v, state, inplace=True)
    with pytest.raises(ValueError, match="do not fit"):
        recurrent_step(q[:, :3], k, v, None)
    with pytest.raises(ValueError, match="state must have shapes"):
        recurrent_step(q, k, v, LinearState(state.s[:1], state.z))
    with pytest.raises(ValueError, match="log_decay_t"):
        recurrent_step(q, k, v, state, torch.zeros(4))


# The pitfalls, by their number in the notes on the method.


def long_recurrence(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    """One head, token by token in numpy float64."""
    qs, ks, vs = (x[0, 0].double().numpy() for x in (q, k, v))
    s, z, rows = np.zeros((qs.shape[1], vs.shape[1])), np.zeros(qs.shape[1]), []
    for a, b, c in zip(qs, ks, vs, strict=True):
        s, z = factor * s + np.outer(b, c), factor * z + b
        rows.append(a @ s / (a @ z))
    return torch.from_numpy(np.stack(rows))[None, None]


@pytest.mark.parametrize("mode", ["chunked", "recurrent"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pitfall_1_decay_is_never_factored(mode: str, dtype: torch.dtype) -> None:
    """(31 / 32)^-n is beyond float16 from n = 349 and beyond float32 from n = 2794."""
    q, k, v = (x.to(dtype) for x in tensors(b=1, h=1, g=1, t=3200, m=4, d=4))
    expected = long_recurrence(q, k, v, 31 / 32)
    for decay in (torch.full((1,), 31 / 32).log(), torch.full((1, 1, 3200), 31 / 32).log()):
        for chunk_size in (64, 3200) if dtype == torch.float32 and decay.dim() == 1 else (64,):
            out = linear_attention(q, k, v, decay, mode=mode, chunk_size=chunk_size)
            assert out.dtype == dtype and bool(out.isfinite().all())
            assert difference(out, expected) <= (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strength", [-12.0, -500.0, -torch.inf])
def test_pitfall_2_a_masked_exponent_gives_no_nan(mode: str, strength: float) -> None:
    """exp(-beta_j + beta_i) for j > i is infinite here: neither value nor gradient may notice."""
    q, k, v = (x.requires_grad_() for x in tensors(t=100))
    decay = torch.where(torch.rand(2, 2, 100) < 0.7, strength, -0.01).requires_grad_()
    out = linear_attention(q, k, v, decay, mode=mode)
    out.square().sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v, decay)]
    expected = linear_attention(*exact, mode="recurrent")
    expected.square().sum().backward()
    assert difference(out, expected) <= AGREE
    for ours, reference in zip((q, k, v, decay), exact, strict=True):
        assert ours.grad is not None and reference.grad is not None
        assert bool(ours.grad.isfinite().all())
        assert difference(ours.grad, reference.grad) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_pitfall_3_a_factor_of_a_query_cancels_and_that_of_a_key_does_not(mode: str) -> None:
    q, k, v = tensors()
    factor = torch.rand(2, 1, 13, 1) + 0.5
    plain = linear_attention(q, k, v, mode=mode)
    assert difference(linear_attention(q * factor, k, v, mode=mode), plain) <= AGREE
    assert difference(linear_attention(q, k * factor, v, mode=mode), plain) > 1e-2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("autocast", [False, True])
def test_pitfall_4_state_and_denominator_are_float32(mode: str, autocast: bool) -> None:
    """In a bfloat16 state the sum of ones stops at 256; 1e-10 is 0 in float16."""
    ones = torch.ones(1, 1, 1000, 1, dtype=torch.bfloat16)
    values = torch.full_like(ones, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out, state = linear_attention(ones, ones, values, mode=mode, return_state=True)
        step, after = recurrent_step(ones[:, :, 0], ones[:, :, 0], values[:, :, 0], state)
    assert out.dtype == step.dtype == torch.bfloat16 and state.s.dtype == state.z.dtype == torch.float32
    assert float(state.z) == 1000.0 and float(state.s) == 2000.0
    assert float(after.z) == 1001.0 and float(after.s) == 2002.0
    assert bool((out == 2.0).all()) and bool((step == 2.0).all())
    small = torch.full((1, 1, 20, 2), 1e-5)
    q, k, v = small, small, torch.randn(1, 1, 20, 3).half()
    out = linear_attention(q, k, v, mode=mode)
    assert out.dtype == torch.float16
    assert difference(out, v.double().cumsum(2) / torch.arange(1, 21)[:, None]) <= 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["none", "head", "position"])
def test_pitfall_5_padding_writes_nothing_and_freezes_the_decay(mode: str, kind: str) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(b=1, t=9))
    decay = decays(kind, b=1, t=9)
    mask = torch.tensor([[False, False, True, True, False, True, True, False, False]])
    kept = mask[0].nonzero()[:, 0]
    if decay is not None:
        decay.requires_grad_()
    out, state = linear_attention(q, k, v, decay, mode=mode, chunk_size=4, mask=mask, return_state=True)
    short_decay = decay if decay is None or decay.dim() == 1 else decay[:, :, kept]
    alone, short = linear_attention(
        q[:, :, kept], k[:, :, kept], v[:, :, kept], short_decay, mode=mode, return_state=True
    )
    assert difference(out[:, :, kept], alone) <= AGREE
    assert difference(state.z, short.z) <= AGREE and difference(state.s, short.s) <= AGREE
    assert bool((out[:, :, ~mask[0]] == 0).all())
    (out.square().sum() + state.s.sum() + (out.sum() * 1e20)).backward()
    for x in (q, k, v) if kind != "position" else (q, k, v, decay):
        assert x.grad is not None and bool((x.grad[:, :, ~mask[0]] == 0).all())
        assert bool((x.grad[:, :, mask[0]] != 0).any())
    with torch.no_grad():
        for x in (q, k, v):
            x[:, :, ~mask[0]] = torch.nan
        again = linear_attention(q, k, v, decay, mode=mode, chunk_size=4, mask=mask)
    assert difference(again, out) <= AGREE and bool((again[:, :, ~mask[0]] == 0).all())


@pytest.mark.parametrize("mode", MODES)
def test_pitfall_8_a_positive_factor_of_a_head_cancels_in_the_denominator(mode: str) -> None:
    """So the denominator and a norm of each head are alternatives: without either, the factor stays."""
    q, k, v = tensors()
    factor = torch.tensor([3.0, 0.2])[None, :, None, None]
    plain = linear_attention(q, k, v, mode=mode)
    assert difference(linear_attention(q, k * factor, v, mode=mode), plain) <= AGREE
    bare = linear_attention(q, k, v, mode=mode, normalize=False)
    scaled = linear_attention(q, k * factor, v, mode=mode, normalize=False)
    assert difference(scaled, bare * factor.repeat_interleave(2, dim=1)) <= AGREE


class Copies(TorchDispatchMode):
    """Follows tensors made of one tensor alone, and notes the largest memory that one of them takes."""

    def __init__(self, origin: Tensor) -> None:
        super().__init__()
        self.kept, self.known = [origin], {origin.untyped_storage().data_ptr()}
        self.largest = origin.untyped_storage().nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flat = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
        inputs = [x for x in flat if isinstance(x, Tensor)]
        if str(func).startswith("aten.copy_"):
            inputs = inputs[1:]
        if inputs and all(x.untyped_storage().data_ptr() in self.known for x in inputs):
            for x in result if isinstance(result, (list, tuple)) else [result]:
                self.kept.append(x)  # kept alive, so that its address is not given to another
                self.known.add(x.untyped_storage().data_ptr())
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", [1, 2])
def test_pitfall_9_keys_and_values_are_not_repeated_over_query_heads(mode: str, which: int) -> None:
    inputs = tensors(b=2, h=8, g=2, t=16, m=8, d=8)
    one = inputs[which].untyped_storage().nbytes()
    repeated = [x.repeat_interleave(4, dim=1) if x.shape[1] == 2 else x for x in inputs]
    expected = linear_attention(*repeated, mode=mode)
    with Copies(inputs[which]) as copies:
        assert difference(linear_attention(*inputs, mode=mode, chunk_size=8), expected) <= AGREE
    assert len(copies.known) > 1 or mode != "chunked"
    assert copies.largest <= 1.5 * one
    _, state = linear_attention(*inputs, mode=mode, return_state=True)
    assert state.s.shape == (2, 2, 8, 8)  # one state a key-value head
    with Copies(inputs[which]) as copies:
        repeated_here = inputs[which][:, :, None].expand(-1, -1, 4, -1, -1).flatten(1, 2)
        assert copies.largest == 4 * one and repeated_here.shape[1] == 8  # the detector sees what it should


class Largest(TorchDispatchMode):
    """Notes the largest tensor made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return result


def test_chunked_memory_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "NUMBERS_ON_CPU", 1 << 14)
    largest, kept = {}, {}
    for t in (256, 2048):
        q, k, v = (x.requires_grad_() for x in tensors(b=1, h=2, g=2, t=t, m=4, d=4))
        decay = decays("position", b=1, t=t)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):  # noqa: B023
            with Largest() as seen:
                linear_attention(q, k, v, decay, chunk_size=16).sum().backward()
        largest[t], kept[t] = seen.numbers, sum(saved)
    assert largest[2048] <= 8 * largest[256] and largest[2048] < 2048 * 2048 / 4
    assert kept[2048] <= 8.5 * kept[256]


@pytest.mark.parametrize("kind", ["none", "head", "position"])
@pytest.mark.parametrize("ids", [None, IDS])
def test_sums_are_numerator_and_denominator(kind: str, ids: Tensor | None, block_size: None) -> None:
    """With the gradients of both, and from empty and other forms alike."""
    given, decay, state = tensors(dtype=torch.float64), decays(kind), past(dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (*given, *state)]
    q, k, v = leaves[:3]
    found, after = linear_sums(q, k, v, decay, chunk_size=4, seq_ids=ids, initial_state=LinearState(*leaves[3:]))
    ones = LinearState(torch.cat((leaves[3], leaves[4][..., None]), -1), leaves[4])
    wanted, last = linear_attention(
        q, k, torch.cat((v, torch.ones_like(v[..., :1])), -1), decay, mode="quadratic", normalize=False, seq_ids=ids,
        initial_state=ones, return_state=True,
    )  # fmt: skip
    assert difference(found, wanted) <= 1e-12
    assert difference(after.s, last.s[..., :-1]) <= 1e-12 and difference(after.z, last.z) <= 1e-12
    along, of_s, of_z = torch.randn_like(wanted), torch.randn_like(after.s), torch.randn_like(after.z)
    ours = torch.autograd.grad((found * along).sum() + (after.s * of_s).sum() + (after.z * of_z).sum(), leaves)
    theirs = torch.autograd.grad(
        (wanted * along).sum() + (last.s[..., :-1] * of_s).sum() + (last.z * of_z).sum(), leaves
    )
    for x, y in zip(ours, theirs, strict=True):
        assert difference(x, y) <= 1e-10
    nothing, same = linear_sums(q[:, :, :0], k[:, :, :0], v[:, :, :0], initial_state=LinearState(*leaves[3:]))
    assert nothing.shape == (2, 4, 0, 4) and torch.equal(same.s, leaves[3])


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("how", ["autocast", "values"])
@pytest.mark.parametrize("kind", ["none", "position"])
def test_narrow_products(hardware: bool, how: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 where the hardware has them, and what is summed from chunk to chunk in float32; else nothing."""
    monkeypatch.setattr("yeoul.ops.inputs._multiplies_bf16", lambda device: hardware)
    (q, k, v), decay, state = tensors(t=300, m=24, d=8), decays(kind, t=300), past(m=24, d=8)
    v = v.bfloat16().float()  # which is exact, so that only products differ
    along = torch.randn(2, 4, 300, 9)

    def run(narrow: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (q, k, v, *state)]
        given = [*leaves[:2], leaves[2].bfloat16() if narrow and how == "values" else leaves[2]]
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow and how == "autocast"):
            sums, after = linear_sums(*given, decay, initial_state=LinearState(*leaves[3:]))
            out = linear_attention(*given, decay, initial_state=LinearState(*leaves[3:]))
        ((sums * along).sum() + after.s.square().sum() + (out.float() * along[..., :-1]).sum()).backward()
        return [sums, after.s, after.z, *(x.grad for x in leaves if x.grad is not None)]

    exact, ours = run(False), run(True)
    assert len(ours) == 8 and all(x.dtype == torch.float32 for x in ours)
    for one, reference in zip(ours, exact, strict=True):
        assert difference(one, reference) <= (2e-2 if hardware or how == "values" else 1e-6)
    assert (difference(ours[0], exact[0]) > 1e-5) == hardware


def test_float64_and_layouts_and_dtypes() -> None:
    q, k, v = tensors(dtype=torch.float64)
    out, state = linear_attention(q, k, v, return_state=True)
    assert out.dtype == state.s.dtype == torch.float64
    # As a model has them: heads behind positions in memory.
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    for mode in MODES:
        assert difference(linear_attention(*turned, mode=mode), out) <= 1e-12
    mixed = linear_attention(q.float(), k.float(), v.bfloat16())
    assert mixed.dtype == torch.bfloat16 and difference(mixed, out) <= 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_a_growing_state_is_taken_as_it_is(mode: str) -> None:
    """Decay tables that were trained apart need not fall: without a denominator signs are free too."""
    q, k, v = tensors()
    q, k = q - 0.5, k - 0.5
    decay = 0.3 * torch.randn(2, 2, 13)
    out = linear_attention(q, k, v, decay, mode=mode, chunk_size=4, normalize=False)
    assert difference(out, definition(q, k, v, decay, normalize=False)[0]) <= AGREE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("causal", [True, False])
def test_no_position_and_nothing_but_padding(mode: str, causal: bool) -> None:
    state = past() if causal else None
    options: dict[str, Any] = {"mode": mode, "causal": causal, "initial_state": state, "return_state": True}
    out, new = linear_attention(*tensors(t=0), **options)
    assert out.shape == (2, 4, 0, 3) and new.s.shape == (2, 2, 5, 3)
    for where in ({"mask": torch.zeros(2, 13, dtype=torch.bool)}, {"seq_ids": torch.full((2, 13), -1)}):
        out, new = linear_attention(*tensors(), **where, **options)
        assert bool((out == 0).all())
        assert torch.equal(new.s, state.s if state is not None else torch.zeros_like(new.s))


def test_an_id_used_again_is_a_new_sequence() -> None:
    q, k, v = tensors(b=1, t=6)
    again, apart = torch.tensor([[1, 1, 2, 2, 1, 1]]), torch.tensor([[1, 1, 2, 2, 3, 3]])
    for mode in MODES:
        expected = linear_attention(q, k, v, mode=mode, seq_ids=apart)
        assert torch.equal(linear_attention(q, k, v, mode=mode, seq_ids=again), expected)


def test_errors_say_what_does_not_fit() -> None:
    q, k, v = tensors()
    state = past()
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("mode must be one of", (q, k, v), {"mode": "fast"}),
        ("4 dimensions", (q[0], k, v), {}),
        ("floating point", (q.long(), k, v), {}),
        ("k and v must agree", (q, k, v[:, :, :-1]), {}),
        ("q and k must agree", (q[..., :-1], k, v), {}),
        ("multiple", (q[:, :3], k, v), {}),
        ("log_decay must have shape", (q, k, v, torch.zeros(4)), {}),
        ("log_decay must be floating", (q, k, v, torch.zeros(2, dtype=torch.long)), {}),
        ("mask must have shape", (q, k, v), {"mask": torch.ones(2, 12, dtype=torch.bool)}),
        ("mask must be bool", (q, k, v), {"mask": torch.ones(2, 13)}),
        ("seq_ids must have shape", (q, k, v), {"seq_ids": torch.zeros(13, dtype=torch.long)}),
        ("seq_ids must be integers", (q, k, v), {"seq_ids": torch.zeros(2, 13)}),
        ("initial_state must have shapes", (q, k, v), {"initial_state": LinearState(state.s[:1], state.z)}),
        ("chunk_size", (q, k, v), {"chunk_size": 0}),
        ("eps", (q, k, v), {"eps": 0.0}),
        ("log_decay has no meaning", (q, k, v, torch.zeros(2)), {"causal": False}),
        ("initial_state has no meaning", (q, k, v), {"causal": False, "initial_state": state}),
    ]
    for message, args, options in cases:
        with pytest.raises(ValueError, match=message):
            linear_attention(*args, **options)
