"""The forms of the gated delta rule against its definition, one another and transformers' own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ops.definition import difference
from yeoul.ops.delta_rule import MODES, delta_rule, delta_step

IDS = torch.tensor([[-1, -1, 7, 7, 7, 2, 2, -1, 2, 9, 9, 9, 9], [4, 4, 4, 4, 4, 4, 4, 4, 1, 1, -1, -1, -1]])
FORMS: list[dict[str, Any]] = [
    {"mode": "quadratic"},
    {"mode": "recurrent"},
    *({"mode": "chunked", "chunk_size": c} for c in (1, 3, 4, 8, 64)),
]
DECAYS = ("none", "head", "position", "strong")


def tensors(
    b: int = 2, h: int = 4, g: int = 2, t: int = 13, m: int = 5, d: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Non-negative features of length 1, as the frequency features are; write strengths with 0 and 1 among them."""
    q, k = F.normalize(torch.rand(b, h, t, m), dim=-1), F.normalize(torch.rand(b, g, t, m), dim=-1)
    beta = torch.rand(b, g, t)
    beta[:, 0, ::4], beta[:, -1, 1::4] = 0.0, 1.0
    return q.to(dtype), k.to(dtype), torch.randn(b, g, t, d).to(dtype), beta.to(dtype)


def decays(kind: str, b: int = 2, g: int = 2, t: int = 13) -> Tensor | None:
    strong = -torch.rand(b, g, t)
    strong[:, :, ::3] = -20.0
    return {"none": None, "head": -torch.rand(g), "position": -2 * torch.rand(b, g, t), "strong": strong}[kind]


def past(b: int = 2, g: int = 2, m: int = 5, d: int = 3) -> Tensor:
    return torch.randn(b, g, m, d)


def definition(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, ids: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T and o_t = S_t^T q_t with whole matrices, in float64."""
    q, k, v, beta = (x.detach().double() for x in (q, k, v, beta))
    (b, h, t, m), (g, d) = q.shape, (k.shape[1], v.shape[3])
    out, states = torch.zeros(b, h, t, d).double(), torch.zeros(b, g, m, d).double()
    for row in range(b):
        for group in range(g):
            s = torch.zeros(m, d).double() if state is None else state[row, group].double()
            last = None
            for i in range(t):
                own = 0 if ids is None else int(ids[row, i])
                if own < 0:
                    continue
                if last is not None and own != last:
                    s = torch.zeros(m, d).double()
                last = own
                gate = torch.tensor(1.0).double()
                if log_decay is not None:
                    rate = log_decay[group] if log_decay.dim() == 1 else log_decay[row, group, i]
                    gate = rate.double().exp()
                key, strength = k[row, group, i], beta[row, group, i]
                erase = torch.eye(m).double() - strength * key[:, None] * key[None]
                s = gate * (erase @ s) + strength * key[:, None] * v[row, group, i][None]
                for r in range(h // g):
                    out[row, group * (h // g) + r, i] = s.T @ q[row, group * (h // g) + r, i]
            states[row, group] = s
    return out, states


@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_every_form_is_the_definition(kind: str, heads: tuple[int, int]) -> None:
    q, k, v, beta = tensors(h=heads[0], g=heads[1])
    log_decay = decays(kind, g=heads[1])
    for ids in (None, IDS):
        for state in (None, past(g=heads[1])):
            expected = definition(q, k, v, beta, log_decay, ids, state)
            for form in FORMS:
                for dtype, agree in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
                    given = [x.to(dtype) for x in (q, k, v, beta)]
                    decay = None if log_decay is None else log_decay.to(dtype)
                    memory = None if state is None else state.to(dtype)
                    ours = delta_rule(
                        *given, decay, seq_ids=ids, initial_state=memory, return_state=True, **form
                    )  # type: ignore[call-overload]  # fmt: skip
                    for one, reference in zip(ours, expected, strict=True):
                        assert difference(one, reference) <= agree, (form, ids is None, state is None, dtype)


@pytest.mark.parametrize("kind", DECAYS)
def test_gradients_agree(kind: str) -> None:
    inputs, log_decay, state = tensors(), decays(kind), past()
    weights, state_weights = torch.randn(2, 4, 13, 3), torch.randn(2, 2, 5, 3)

    def gradients(dtype: torch.dtype, ids: Tensor | None, **form: Any) -> list[Tensor]:
        given = [x.to(dtype, copy=True).requires_grad_() for x in (*inputs, state)]
        if log_decay is not None:
            given.append(log_decay.to(dtype, copy=True).requires_grad_())
        decay = given[5] if log_decay is not None else None
        q, k, v, beta, memory = given[:5]
        out, new = delta_rule(q, k, v, beta, decay, seq_ids=ids, initial_state=memory, return_state=True, **form)
        ((out * weights).sum() + (new * state_weights).sum()).backward()
        return [x.grad for x in given if x.grad is not None]

    for ids in (None, IDS):
        expected = gradients(torch.float64, ids, mode="recurrent")
        assert len(expected) == 5 + (log_decay is not None)
        for dtype, agree in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            for form in FORMS:
                for ours, reference in zip(gradients(dtype, ids, **form), expected, strict=True):
                    assert difference(ours, reference) <= agree, (form, dtype)


@pytest.mark.parametrize("kind", ["none", "head", "position"])
def test_blocks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk after another, two at once, and all at once."""
    inputs = [x.double() for x in (*tensors(), past())]
    decay = decays(kind)
    inputs += [] if decay is None else [decay.double()]
    found = []
    for numbers in (1, 2 * (2 * 2 * 3 * 4 * 5), 1 << 21):  # B G (1 + R) C M
        monkeypatch.setattr("yeoul.ops.delta_chunked.NUMBERS_ON_CPU", numbers)
        q, k, v, beta, state, *rest = (x.clone().requires_grad_() for x in inputs)
        out, new = delta_rule(
            q, k, v, beta, *rest, chunk_size=4, seq_ids=IDS, initial_state=state, return_state=True
        )  # type: ignore[call-overload]  # fmt: skip
        (out.square().sum() + new.square().sum()).backward()
        found.append([out, new, *(x.grad for x in (q, k, v, beta, state, *rest))])
    for other in found[:2]:
        assert all(difference(a, b) <= 1e-14 for a, b in zip(other, found[2], strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["none", "head", "position"])
def test_gradcheck(mode: str, kind: str) -> None:
    q, k, v, beta = tensors(b=1, t=7, m=2, d=2, dtype=torch.float64)
    decay = decays(kind, b=1, t=7)
    given = [q, k, v, beta, past(b=1, m=2, d=2).double()] + ([] if decay is None else [decay.double()])
    mask = torch.tensor([[False, True, True, True, False, True, True]])
    ids = torch.tensor([[5, 5, 5, 5, 2, 2, 2]])

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, s: Tensor, decay: Any = None) -> tuple[Tensor, Tensor]:
        return delta_rule(
            q, k, v, beta, decay, mode=mode, chunk_size=3, mask=mask, seq_ids=ids, initial_state=s, return_state=True
        )

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in given])


@pytest.mark.parametrize("length", [1, 63, 64, 130, 200])
def test_equals_transformers(length: int) -> None:
    """Both forms of the library's gated delta rule; it scales queries by 1 / sqrt(M), and its keys have every head."""
    published = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    q, k, v, beta = tensors(h=4, g=2, t=length, m=16, d=8)
    log_decay, state = -torch.rand(2, 2, length), past(m=16, d=8)
    ours, after = delta_rule(q, k, v, beta, log_decay, initial_state=state, return_state=True)
    wide = [x.repeat_interleave(2, dim=1).transpose(1, 2) for x in (k, v, beta, log_decay)]
    keys, values, strength, decay = wide
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        theirs, last = getattr(published, name)(
            q.transpose(1, 2) * 4.0, keys, values, g=decay, beta=strength,
            initial_state=state.repeat_interleave(2, dim=1), output_final_state=True,
        )  # fmt: skip
        assert difference(ours, theirs.transpose(1, 2)) <= 1e-6, name
        assert difference(after, last[:, ::2]) <= 1e-6, name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_row_may_be_split_anywhere(form: dict[str, Any]) -> None:
    q, k, v, beta = tensors(t=21)
    decay = decays("strong", t=21)
    assert decay is not None
    whole, last = delta_rule(q, k, v, beta, decay, return_state=True, mode="quadratic")
    for cut in (1, 4, 8, 20):
        first, state = delta_rule(
            q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], beta[..., :cut], decay[..., :cut], return_state=True, **form
        )
        second, state = delta_rule(
            q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], beta[..., cut:], decay[..., cut:],
            initial_state=state, return_state=True, **form,
        )  # fmt: skip
        assert difference(torch.cat((first, second), 2), whole) <= 1e-6
        assert difference(state, last) <= 1e-6


@pytest.mark.parametrize("inplace", [False, True])
@torch.no_grad()
def test_steps_are_the_rule(inplace: bool) -> None:
    q, k, v, beta = tensors()
    for kind in DECAYS:
        decay = decays(kind)
        whole, last = delta_rule(q, k, v, beta, decay, return_state=True)
        state: Tensor | None = torch.zeros(2, 2, 5, 3) if inplace else None
        kept, outputs = state, []
        for i in range(13):
            now = decay if decay is None or decay.dim() == 1 else decay[..., i]
            out, state = delta_step(q[:, :, i], k[:, :, i], v[:, :, i], beta[..., i], state, now, inplace=inplace)
            outputs.append(out)
        assert difference(torch.stack(outputs, 2), whole) <= 1e-6
        assert state is not None and difference(state, last) <= 1e-6
        assert (state is kept) == inplace


@torch.no_grad()
def test_a_full_write_is_read_back_and_replaces_the_last_one() -> None:
    q, k, v, _ = tensors(h=2, g=2)
    k[:, :, 7] = k[:, :, 2]
    beta = torch.ones(2, 2, 13)
    for form in FORMS:
        out = delta_rule(k, k, v, beta, **form)  # a query that is the key just written
        torch.testing.assert_close(out, v, rtol=0, atol=1e-5)
        nothing = delta_rule(q, k, v, torch.zeros(2, 2, 13), **form)
        assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("mode", MODES)
def test_padding_is_inert(mode: str) -> None:
    """What stands at padding, NaN included, reaches no output, no state and no gradient."""
    q, k, v, beta = tensors()
    decay = decays("position")
    assert decay is not None
    mask, state = IDS >= 0, past()
    expected = delta_rule(q, k, v, beta, decay, mode=mode, mask=mask, initial_state=state, return_state=True)
    hidden = ~mask[:, None]
    given = [x.masked_fill(hidden[..., None] if x.dim() == 4 else hidden, torch.nan) for x in (q, k, v, beta, decay)]
    given = [x.requires_grad_() for x in given]
    out, new = delta_rule(*given, mode=mode, chunk_size=4, mask=mask, initial_state=state, return_state=True)
    assert difference(out, expected[0]) <= 1e-6 and difference(new, expected[1]) <= 1e-6
    assert torch.equal(out.masked_fill(mask[:, None, :, None], 0), torch.zeros_like(out))
    (out.square().sum() + new.square().sum()).backward()
    for x in given:
        assert x.grad is not None and x.grad.isfinite().all()
        at_padding = x.grad.masked_select(hidden[..., None] if x.dim() == 4 else hidden)
        assert torch.equal(at_padding, torch.zeros_like(at_padding))


@pytest.mark.parametrize("log_decay", [-20.0, -1e4, -torch.inf])
def test_strong_decay_over_long_rows(log_decay: float) -> None:
    """Decays whose inverse has no float: values and gradients stay finite and those of the definition."""
    q, k, v, beta = (x.requires_grad_() for x in tensors(b=1, t=300))
    decay = torch.full((1, 2, 300), log_decay)
    decay[..., 150:] = -1e-3
    out = delta_rule(q, k, v, beta, decay)
    assert difference(out, delta_rule(q, k, v, beta, decay, mode="recurrent")) <= 1e-5
    out.square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v, beta))


def test_keys_that_are_all_alike() -> None:
    """The hardest system: full writes to one and the same key, where powers of A would be huge."""
    q, k, v, _ = tensors(b=1, t=256, m=32)
    k = F.normalize(k * 1e-3 + 1.0, dim=-1)
    beta = torch.ones(1, 2, 256)
    exact = delta_rule(q.double(), k.double(), v.double(), beta.double(), mode="recurrent")
    assert difference(delta_rule(q, k, v, beta), exact) <= 1e-5


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


def test_memory_is_linear_in_length() -> None:
    largest = []
    for t in (256, 512, 1024):
        given = [x.requires_grad_() for x in tensors(b=1, h=2, g=1, t=t)]
        with Largest() as seen:
            q, k, v, beta = given
            delta_rule(q, k, v, beta, decays("position", b=1, g=1, t=t), chunk_size=16).sum().backward()
        largest.append(seen.numbers)
    assert largest[1] == 2 * largest[0] and largest[2] == 4 * largest[0]
    assert largest[2] < 1024 * 1024 / 8


def test_dtypes() -> None:
    q, k, v, beta = tensors()
    out, state = delta_rule(q.bfloat16(), k.bfloat16(), v.bfloat16(), beta.bfloat16(), return_state=True)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    empty, state = delta_rule(q[:, :, :0], k[:, :, :0], v[:, :, :0], beta[..., :0], return_state=True)
    assert empty.shape == (2, 4, 0, 3) and torch.equal(state, torch.zeros(2, 2, 5, 3))


@pytest.mark.parametrize("native", [False, True])
def test_autocast(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 products where the hardware has them, with a state that rounding does not add up in; else nothing."""
    monkeypatch.setattr("yeoul.ops.inputs._multiplies_bf16", lambda device: native)
    given, decay, state = tensors(t=300, m=24, d=8), decays("position", t=300), past(m=24, d=8)
    assert decay is not None
    weights = torch.randn(2, 4, 300, 8)

    def run(autocast: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (*given, decay, state)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out, new = delta_rule(*leaves[:5], initial_state=leaves[5], return_state=True)
        ((out * weights).sum() + new.square().sum()).backward()
        return [out, new, *(x.grad for x in leaves if x.grad is not None)]

    exact, ours = run(False), run(True)
    assert len(ours) == 8 and all(x.dtype == torch.float32 for x in ours)
    for one, reference in zip(ours, exact, strict=True):
        assert difference(one, reference) <= (1e-2 if native else 1e-7)
    assert (difference(ours[0], exact[0]) > 1e-5) == native
    with torch.autocast("cpu", torch.bfloat16):
        wide = delta_rule(*(x.double() for x in given))
    assert wide.dtype == torch.float64
    assert difference(wide, delta_rule(*(x.double() for x in given), mode="recurrent")) <= 1e-12


def test_what_does_not_fit_is_refused() -> None:
    q, k, v, beta = tensors()
    with pytest.raises(ValueError, match="mode"):
        delta_rule(q, k, v, beta, mode="fast")
    with pytest.raises(ValueError, match="beta"):
        delta_rule(q, k, v, beta[:, :1])
    with pytest.raises(ValueError, match="state"):
        delta_rule(q, k, v, beta, initial_state=torch.zeros(2, 2, 3, 5))
    with pytest.raises(ValueError, match="log_decay"):
        delta_rule(q, k, v, beta, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="beta_t"):
        delta_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], beta[:, 0], None)
    with pytest.raises(ValueError, match="inplace"):
        delta_step(q[:, :, 0].requires_grad_(), k[:, :, 0], v[:, :, 0], beta[..., 0], past(), inplace=True)
