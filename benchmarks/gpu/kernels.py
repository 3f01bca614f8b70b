"""Attention forms on the shapes of flash-linear-attention's own benchmark: ours, FlashAttention, and its kernels.

Shapes and calls are those of `benchmarks/ops/registry.py` there, inputs in bfloat16 and in its layout (B, T, H, D), of
which ours are views. Kinds of work that are the same in both libraries:

- `sum`: features, no decay, with a denominator (`chunk_linear_attn`);
- `retention`: RetNet's fixed decays, no denominator (`chunk_retention`);
- `gated`: a log-decay for each token, no denominator (`chunk_simple_gla`);
- `delta`: the gated delta rule over unit vectors (`chunk_gated_delta_rule`).

Where both ran, `difference` is the RMS distance of the outputs, relative. Operations are counted as for chunks of 64:
2 C (M + D) + 4 M D a token and head, three times that with the backward pass; of softmax 2 T D, 3.5 times. Bytes are
those of inputs, outputs and their gradients, each once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.setting import Setting
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from yeoul.ops import triton_chunked
from yeoul.ops.delta_rule import delta_rule
from yeoul.ops.linear_attention import linear_attention

SHAPES = [
    (4, 2048, 16, 128), (2, 16_384, 16, 128), (8, 1024, 8, 64), (1, 8192, 96, 128), (4, 4096, 64, 128),
    (8, 2048, 32, 256),
]  # fmt: skip
"""B, T, H, D; those of which figures are published first."""
CHUNK = 64
PASSES = ("forward", "forward+backward")
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One kind of work on one shape.

    Attributes:
        kind: of work.
        shape: B, T, H, D.
        features: M, D unless it is given.
    """

    kind: str
    shape: tuple[int, int, int, int]
    features: int

    def inputs(self, bench: Setting) -> Inputs:
        """(B, T, H, M) queries and keys, (B, T, H, D) values, (B, T, H) gates, which want gradients; and that of the
        output."""
        torch.manual_seed(0)
        (B, T, H, D), M = self.shape, self.features
        place: dict[str, Any] = dict(device=bench.device)
        q, k, v, grad = (torch.randn(B, T, H, n, **place) for n in (M, M, D, D))
        if self.kind in ("sum", "retention", "gated"):
            q, k = q.abs() * M**-0.5, k.abs()
        if self.kind == "delta":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        given = {name: x.to(bench.dtype) for name, x in dict(q=q, k=k, v=v, grad=grad).items()}
        if self.kind in ("gated", "delta"):
            given["g"] = F.logsigmoid(torch.randn(B, T, H, **place))
        if self.kind == "delta":
            given["beta"] = torch.rand(B, T, H, **place)
        return {name: x if name == "grad" else x.requires_grad_() for name, x in given.items()}

    def work(self, which: str) -> tuple[float, float]:
        """Operations and bytes of a pass."""
        (B, T, H, D), M = self.shape, self.features
        backward = which != "forward"
        if self.kind == "softmax":
            flops = 2.0 * B * H * T * T * D * (3.5 if backward else 1.0)
        else:
            flops = B * T * H * (2.0 * CHUNK * (M + D) + 4.0 * M * D) * (3 if backward else 1)
        tensors = (2 * M + 2 * D) + (2 * (2 * M + D) + D if backward else 0)
        return flops, 2.0 * B * T * H * tensors


def ours(kind: str) -> Callable[[Inputs], Tensor]:
    """Our form of a kind of work: (B, T, H, D)."""

    def call(x: Inputs) -> Tensor:
        q, k, v = (x[name].transpose(1, 2) for name in "qkv")
        if kind == "sum":
            y = linear_attention(q, k, v)
        elif kind == "retention":
            y = linear_attention(q, k, v, _retention(q.shape[1], q.device), normalize=False)
        elif kind == "gated":
            y = linear_attention(q, k, v, x["g"].transpose(1, 2), normalize=False)
        else:
            with torch.autocast(q.device.type, torch.bfloat16, enabled=q.is_cuda):  # as in training
                y = delta_rule(q, k, v, x["beta"].transpose(1, 2), x["g"].transpose(1, 2))
        return y.transpose(1, 2)

    return call


def fla(kind: str) -> Callable[[Inputs], Tensor]:
    """The kernel of flash-linear-attention for a kind of work.

    Raises:
        ImportError: it is not installed.
    """
    if kind == "sum":
        from fla.ops.linear_attn import chunk_linear_attn

        return lambda x: chunk_linear_attn(x["q"], x["k"], x["v"], scale=1.0, normalize=True)[0]
    if kind == "retention":
        from fla.ops.retention import chunk_retention

        return lambda x: chunk_retention(x["q"], x["k"], x["v"], scale=1.0)[0]
    if kind == "gated":
        from fla.ops.simple_gla import chunk_simple_gla

        return lambda x: chunk_simple_gla(x["q"], x["k"], x["v"], g=x["g"], scale=1.0)[0]
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return lambda x: chunk_gated_delta_rule(x["q"], x["k"], x["v"], x["g"], x["beta"], scale=1.0)[0]


def softmax(backend: SDPBackend) -> Callable[[Inputs], Tensor]:
    """torch's attention by one of its libraries; on a CPU by what there is."""

    def call(x: Inputs) -> Tensor:
        q, k, v = (x[name].transpose(1, 2) for name in "qkv")
        with sdpa_kernel(backend if q.is_cuda else SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return call


def _retention(heads: int, device: torch.device) -> Tensor:
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(heads, device=device, dtype=torch.float32)))


def run(bench: Setting, book: Report) -> None:
    """Ours and FlashAttention on all shapes, then flash-linear-attention on all shapes: it tunes itself for long."""
    why = None if bench.tiny else triton_chunked.why_not(bench.device)
    book.note("kernels", our_kernels=why or "run")
    with bench.kernels():
        _all(bench, book)


def _all(bench: Setting, book: Report) -> None:
    shapes = [(1, 20, 2, 16)] if bench.tiny else SHAPES
    kinds = ("sum", "retention", "gated", "delta")
    flash, cudnn = softmax(SDPBackend.FLASH_ATTENTION), softmax(SDPBackend.CUDNN_ATTENTION)
    for shape in shapes:
        for kind in kinds:
            _rows(bench, book, "yeoul", Case(kind, shape, shape[3]), lambda kind=kind: ours(kind))
        _rows(bench, book, "torch flash", Case("softmax", shape, shape[3]), lambda: flash)
    for shape in shapes:
        for kind in kinds:
            _rows(bench, book, "fla", Case(kind, shape, shape[3]), lambda kind=kind: fla(kind), ours(kind))
    many = 32 if bench.tiny else 512
    for kind in ("sum", "delta"):
        _rows(bench, book, "yeoul", Case(kind, shapes[0], many), lambda kind=kind: ours(kind))
    for shape in shapes:
        _rows(bench, book, "torch cudnn", Case("softmax", shape, shape[3]), lambda: cudnn)
    book.finish(
        "kernels",
        {
            "kind": "work", "method": "by", "pass": "pass", "shape": "B,T,H,D", "features": "M",
            "seconds": "time", "tflops": "TFLOP/s", "share_of_product": "of product", "gbytes": "GB/s",
            "share_of_copy": "of copy", "difference": "distance",
        },
    )  # fmt: skip


def _rows(
    bench: Setting,
    book: Report,
    method: str,
    case: Case,
    make: Callable[[], Callable[[Inputs], Tensor]],
    reference: Callable[[Inputs], Tensor] | None = None,
) -> None:
    shared = {"kind": case.kind, "shape": list(case.shape), "features": case.features}
    for which in PASSES:
        book.measure(
            "kernels", {"method": method, "pass": which, **shared}, bench.deadline,
            lambda which=which: _measure(bench, case, which, make(), reference),
        )  # fmt: skip


def _measure(
    bench: Setting,
    case: Case,
    which: str,
    form: Callable[[Inputs], Tensor],
    reference: Callable[[Inputs], Tensor] | None,
) -> Row:
    x = case.inputs(bench)
    wanted = [value for name, value in x.items() if name != "grad"]

    def forward() -> None:
        with torch.no_grad():
            form(x)

    def both() -> None:
        torch.autograd.grad(form(x), wanted, x["grad"], allow_unused=True)

    call = forward if which == "forward" else both
    times = bench.time(call)
    flops, moved = case.work(which)
    row = times.row() | {"peak_bytes": bench.peak_bytes(call)} | bench.shares(times.median, flops=flops, moved=moved)
    if reference is not None and which == "forward":
        with torch.no_grad():
            found, other = form(x).double(), reference(x).double()
        row["difference"] = ((found - other).norm() / other.norm()).item()
    return row
