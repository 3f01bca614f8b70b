"""Checks of the Triton kernels. `test_triton` runs this file in Triton's interpreter, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ops.definition import definition, difference
from yeoul.ops import chunked, inputs, linear_attention, triton_chunked

AGREE = 1e-5
DEVICE = "cpu"

IDS = torch.tensor(
    [[-1, -1, *[3] * 7, -1, *[3] * 4, *[1] * 6, -1], [*[0] * 16, 1, 1, 1, -1, -1]]
)  # one border inside a chunk of 16, one between chunks, padding at every kind of place


@pytest.fixture(autouse=True)
def _kernels_take_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_chunked, "DEVICES", (DEVICE,))


def case(
    *, b: int = 1, h: int = 2, g: int = 1, t: int = 21, m: int = 5, d: int = 3, kind: str = "position"
) -> dict[str, Tensor]:
    """Float32 inputs on the CPU by their name; the gradients of the outputs are d_out, d_s and d_z."""
    tensors = {
        "q": torch.rand(b, h, t, m),
        "k": torch.rand(b, g, t, m),
        "v": torch.randn(b, g, t, d),
        "s": torch.randn(b, g, m, d),
        "z": torch.rand(b, g, m),
        "d_out": torch.randn(b, h, t, d),
        "d_s": torch.randn(b, g, m, d),
        "d_z": torch.randn(b, g, m),
    }
    if kind != "none":
        tensors["log_decay"] = -torch.rand(g) if kind == "head" else -2 * torch.rand(b, g, t)
    return tensors


def results(form: Any, given: dict[str, Tensor], ids: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """Output, final state and all gradients of one form of linear attention over a `case`."""
    device = given["q"].device
    leaves = {name: x.detach().requires_grad_() for name, x in given.items() if not name.startswith("d_")}
    q, k, v, s, z = (leaves[name] for name in "qkvsz")
    mask = None if ids is None else (ids >= 0).to(device)
    sequences = None if ids is None else ids.to(device)
    x = inputs.prepare(q, k, v, leaves.get("log_decay"), mask, sequences, inputs.LinearState(s, z))
    if form is triton_chunked.chunked:
        assert triton_chunked.takes(x), triton_chunked.why_not(device)
    out, state = form(x, **{"normalize": True, "eps": 1e-12} | options)
    out = out.flatten(1, 2).to(v.dtype)
    loss = (out * given["d_out"]).sum() + (state.s * given["d_s"]).sum() + (state.z * given["d_z"]).sum()
    loss.backward()
    found = {"out": out, "final s": state.s, "final z": state.z}
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype, name
        found[f"d_{name}"] = leaf.grad
    return {name: x.detach().cpu() for name, x in found.items()}


def exact(given: dict[str, Tensor], ids: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """What `results` should be: values from the definition, gradients through it, in float64."""
    from yeoul.ops.quadratic import quadratic

    given = {name: x.detach().cpu().double() for name, x in given.items()}
    found = results(quadratic, given, ids, **options)
    state = (given["s"], given["z"])
    q, k, v = given["q"], given["k"], given["v"]
    values = definition(q, k, v, given.get("log_decay"), ids=ids, state=state, **options)
    return found | dict(zip(("out", "final s", "final z"), values, strict=True))


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == expected.keys()
    return {name: difference(found[name], expected[name]) for name in expected}


def kernels(given: dict[str, Tensor], ids: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    return results(triton_chunked.chunked, given, ids, **{"chunk_size": 16} | options)


CASES = [
    ("none", False, True), ("head", False, True), ("position", False, True),
    ("none", True, True), ("head", True, False), ("position", True, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "packed", "normalize"), CASES)
def test_values_and_gradients_are_those_of_the_definition(kind: str, packed: bool, normalize: bool) -> None:
    rows = 2 if packed and kind == "position" else 1
    ids = IDS[:rows] if packed else None
    given = case(b=rows, kind=kind)
    found = errors(kernels(given, ids, normalize=normalize), exact(given, ids, normalize=normalize))
    assert max(found.values()) <= AGREE, found


@pytest.mark.parametrize("sizes", [dict(h=4, g=2, m=20, d=18, t=5), dict(h=1, m=70, d=66, t=17), dict(m=1, d=1, t=1)])
def test_every_size(sizes: dict[str, int]) -> None:
    """Several key-value heads, several blocks of features and values, one number of each."""
    given = case(**sizes)
    if sizes["t"] == 1:
        given["z"] += 1.0  # so that no gradient is 0 but for rounding
    found = errors(kernels(given), exact(given))
    found = {name: error for name, error in found.items() if sizes["m"] > 1 or name != "d_q"}  # a factor cancels
    assert max(found.values()) <= AGREE, found


def test_any_chunk_size_is_the_same() -> None:
    given = case(t=37, h=1)
    expected = exact(given)
    for chunk_size in (1, 100):
        found = errors(kernels(given, chunk_size=chunk_size), expected)
        assert max(found.values()) <= AGREE, (chunk_size, found)


@pytest.mark.parametrize("strength", [-12.0, -500.0, -torch.inf])
def test_strong_decay_gives_no_nan_and_loses_no_digits(strength: float) -> None:
    given = case(t=40, h=1)
    given["log_decay"] = torch.where(torch.rand(1, 1, 40) < 0.5, strength, -0.001)
    found = kernels(given, chunk_size=64)
    assert all(bool(x.isfinite().all()) for x in found.values())
    # The gradient of -inf is 0 or not defined; see the other forms.
    wrong = errors(found, exact(given))
    assert max(error for name, error in wrong.items() if name != "d_log_decay" or strength > -100) <= AGREE, wrong


def test_nothing_leaks_from_padding() -> None:
    given, ids = case(), IDS[:1]
    hidden = (ids < 0)[:, None, :, None]
    expected = kernels(given, ids)
    for name in "qkv":
        given[name] = given[name].masked_fill(hidden, torch.nan)
        assert bool((expected[f"d_{name}"].masked_select(hidden) == 0).all())
    assert bool((expected["out"].masked_select(hidden) == 0).all())
    found = kernels(given, ids)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def halves(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """A case in a short dtype, what it should give, and the errors of the form without kernels."""
    given = case(t=20, h=1, m=20, d=18)
    for name in ("q", "k", "v", "d_out"):
        given[name] = given[name].to(dtype)
    expected = exact(given)
    return given, expected, errors(results(chunked.chunked, given, chunk_size=16), expected)


def test_float16_is_as_exact_as_the_other_form() -> None:
    given, expected, theirs = halves(torch.float16)
    ours = errors(kernels(given), expected)
    for name in expected:
        assert ours[name] <= 1.1 * theirs[name] + 1e-6, (name, ours, theirs)


@pytest.fixture
def short_factors() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def test_bfloat16_is_as_exact_as_the_other_form(short_factors: None) -> None:
    given, expected, theirs = halves(torch.bfloat16)
    # The interpreter cuts bfloat16 off where a GPU rounds, which is twice the error.
    ours = errors(kernels(given), expected)
    assert all(ours[name] <= 3 * theirs[name] for name in ("out", "d_q", "d_k", "d_v")), (ours, theirs)
    # The same factors, and results that torch rounds.
    rounded = kernels({name: x.float() for name, x in given.items()})
    for name in ("out", "d_q", "d_k", "d_v"):
        rounded[name] = rounded[name].bfloat16()
    ours = errors(rounded, expected)
    for name in expected:
        more = 0.0 if name in ("out", "d_q", "d_k", "d_v") else 2**-10  # float32 results of shorter factors
        assert ours[name] <= 1.15 * theirs[name] + more, (name, ours, theirs)


def test_float32_factors_of_a_bfloat16_value_are_rounded_and_not_cut_off() -> None:
    """As in a model: features float32, values bfloat16. Ones must average to one: cut off, they are less."""
    given = case(t=33, m=20)
    given["v"] = torch.ones(1, 1, 33, 3, dtype=torch.bfloat16)
    given["s"], given["z"] = torch.zeros_like(given["s"]), torch.zeros_like(given["z"])
    x = inputs.prepare(*(given[name] for name in "qkv"), given["log_decay"], None, None, None)
    call: Any = triton_chunked._Chunked.apply
    values = x.v.float()  # kept in float32, so that rounding the output does not hide the error
    options = (16, 1e-12, "tf32")
    out, _, _ = call(x.q.flatten(1, 2), x.k, values, x.log_decay, given["s"], given["z"], None, None, *options)
    assert abs(float(out.mean()) - 1) <= 1e-4 and difference(out, torch.ones_like(out)) <= 2**-11


def test_heads_behind_positions_and_views() -> None:
    given = case(g=2, t=5)
    expected = kernels(given)
    for name in "qkv":
        given[name] = given[name].transpose(1, 2).contiguous().transpose(1, 2)
    found = kernels(given)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in "qkv":  # the last axis apart in memory
        given[name] = given[name].transpose(2, 3).contiguous().transpose(2, 3)
    found = kernels(given)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_linear_attention_takes_the_kernels_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    real = triton_chunked.chunked

    def spy(x: inputs.Inputs, **options: Any) -> Any:
        called.append(options)
        return real(x, **options)

    monkeypatch.setattr(triton_chunked, "chunked", spy)
    q, k, v = (x[:, :1] for x in (case(t=18)[name] for name in "qkv"))
    expected = linear_attention.linear_attention(q, k, v, mode="quadratic")
    assert difference(linear_attention.linear_attention(q, k, v), expected) <= AGREE and len(called) == 1
    assert linear_attention.linear_attention(q, k, v.bfloat16()).dtype == torch.bfloat16 and len(called) == 2
    linear_attention.linear_attention(q.double(), k, v)
    linear_attention.linear_attention(q, k, v, mode="recurrent")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    linear_attention.linear_attention(q, k, v)
    assert len(called) == 2
