"""Chunked linear attention as Triton kernels, for NVIDIA GPUs: the formulas and numbers of `chunked`.

Two passes: the state before each chunk, then every chunk for itself (see `chunked` for the formulas). With
dN = d_out / max(n, eps), dn the gradient of the denominator n, A, K, V the rows of a chunk, L its decays and S,
dS the state before the chunk and the gradient of the state after it, the gradients are

    dS <- e^(beta_C) dS + A^T diag(e^beta) dN                   dP = (dN V^T + dn 1^T) * L
    dA = dP K + diag(e^beta) (dN S^T + dn z^T)                  dK = dP^T A + diag(e^(beta_C - beta)) (V dS^T + 1 dz^T)
    dV = ((A K^T) * L)^T dN + diag(e^(beta_C - beta)) K dS

and dz as dS with dn in place of dN. States are computed again for the gradient: training keeps the inputs, the
output in float32, the denominator and the factors of decay.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from yeoul.ops.decay import state_gradient
from yeoul.ops.first_order import first_order
from yeoul.ops.inputs import Inputs, LinearState

# Kinds of devices whose tensors go to the kernels. Triton's interpreter takes those of the CPU as well.
DEVICES: tuple[str, ...] = ("cuda",)

# The smallest side that tl.dot multiplies, and the largest tiles: what a program computes and what it sums over.
SMALLEST = 16
LARGEST = 64
LARGEST_SUMMED = 32


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, as a clause; None when they can. Compiles one to find out."""
    if device.type not in DEVICES:
        return "the kernels are for NVIDIA GPUs"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "the kernels are for NVIDIA GPUs"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "the GPU has a compute capability below 8.0"
    try:
        from yeoul.ops import triton_kernels as kernels

        done = torch.zeros(1, device=device)
        with torch.cuda.device_of(done):
            kernels.ready[(1,)](done)
        return None if float(done) == 1.0 else "a kernel wrote nothing"
    except Exception as error:  # whatever a compiler, a linker or a driver says
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        return f"Triton cannot compile here: {first}"


def takes(x: Inputs) -> bool:
    """Whether the kernels compute these inputs: float32 arithmetic, on a device that has them, not compiled."""
    if x.dtype != torch.float32 or torch.compiler.is_compiling() or min(x.q.numel(), x.v.numel()) == 0:
        return False
    known = (torch.float32, torch.bfloat16, torch.float16)
    return all(y.dtype in known for y in (x.q, x.k, x.v)) and why_not(x.q.device) is None


def chunked(x: Inputs, *, chunk_size: int, normalize: bool, eps: float) -> tuple[Tensor, LinearState]:
    """Causal linear attention in time and memory linear in T; `takes(x)` must be true.

    Args:
        x: the inputs. The factors of products are float32 or TensorFloat32 where v is float32, as torch is set
            (`torch.set_float32_matmul_precision`), TensorFloat32 where v is bfloat16, and split in two of these
            where v is float16, which has as many digits. Sums are float32.
        chunk_size: the kernels take the power of two from 16 to 64 that is at most this.
        normalize: see `linear_attention`, as `eps`.

    Returns:
        Output (B, G, R, T, D) in v's dtype, and the final state in float32.
    """
    b, g, t, d = x.v.shape
    state = x.state or LinearState.zeros(b, g, x.k.shape[-1], d, device=x.k.device)
    c = min(LARGEST, max(SMALLEST, 1 << (chunk_size.bit_length() - 1)))
    precision = {torch.bfloat16: "tf32", torch.float16: "tf32x3"}.get(x.v.dtype, "ieee")
    if x.v.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        precision = "tf32"
    options = (c, eps if normalize else None, precision)
    q = x.q.flatten(1, 2)
    out, s, z = _Chunked.apply(q, x.k, x.v, x.log_decay, state.s, state.z, x.segment, x.valid, *options)
    return out.unflatten(1, (g, -1)), LinearState(s, z)


class Tables(NamedTuple):
    """What the kernels know of masks, sequences and decay; see `triton_kernels`. P = NC * C positions."""

    valid: Tensor  # (B, P) int8
    ids: Tensor  # (B, P) int32
    high: Tensor  # (B, G, P), as all that follow
    low: Tensor
    read: Tensor
    write: Tensor
    chain: Tensor  # (B, G, NC)


def make_tables(k: Tensor, log_decay: Tensor | None, segment: Tensor | None, valid: Tensor | None, c: int) -> Tables:
    """Factors of decay from float64 sums, 0 where a border between sequences is crossed."""
    b, g, t, _ = k.shape
    chunks = -(-t // c)
    missing = chunks * c - t
    valid = k.new_ones(b, t, dtype=torch.int8) if valid is None else valid.to(torch.int8)
    ids = k.new_zeros(b, t, dtype=torch.int32) if segment is None else segment.to(torch.int32)
    ids = torch.cat([ids, ids[:, -1:].expand(b, missing)], dim=1).view(b, 1, chunks, c)
    before = pad(ids[..., :-1, -1], (1, 0))  # the state before position 0 belongs to sequence 0
    decay = k.new_zeros(g, dtype=torch.float64) if log_decay is None else log_decay.double()
    if decay.dim() == 1:
        decay = decay[None, :, None].expand(1, g, t)
    sums = pad(decay, (0, missing)).unflatten(2, (chunks, c)).cumsum(-1)

    def factor(exponent: Tensor, seen: Tensor) -> Tensor:
        return torch.where(seen, exponent.float(), -torch.inf).exp().expand(b, g, *exponent.shape[2:]).contiguous()

    high = sums.float()
    low = (sums - high.double()).float()
    return Tables(
        valid=pad(valid, (0, missing)),
        ids=ids.contiguous(),
        high=high.expand(b, g, chunks, c).contiguous(),
        low=low.expand(b, g, chunks, c).contiguous(),
        read=factor(sums, ids == before[..., None]),
        write=factor(sums[..., -1:] - sums, ids == ids[..., -1:]),
        chain=factor(sums[..., -1], before == ids[..., -1]),
    )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        s: Tensor,
        z: Tensor,
        segment: Tensor | None,
        valid: Tensor | None,
        c: int,
        eps: float | None,
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        tables = make_tables(k, log_decay, segment, valid, c)
        call = _Call(q, k, v, tables, c, eps, precision)
        all_s, all_z = call.states(s, z)
        # The gradient of the denominator needs the output before it is rounded.
        keep = any(ctx.needs_input_grad)
        out, under = call.outputs(all_s, all_z, torch.float32 if keep else v.dtype)
        ctx.options = (c, eps, precision)
        ctx.decay = None if log_decay is None else (log_decay.dim(), log_decay.dtype)
        if keep:
            ctx.save_for_backward(q, k, v, s, z, out, under, *tables)
        return out.to(v.dtype), all_s[:, :, -1].clone(), all_z[:, :, -1].clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor, d_s: Tensor, d_z: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, s, z, out, under, *tables = ctx.saved_tensors
        with torch.autocast(d_out.device.type, enabled=False):
            call = _Call(q, k, v, Tables(*tables), *ctx.options)
            all_s, all_z = call.states(s, z)
            d_out = d_out.contiguous()
            scale, d_under = call.d_denominators(d_out, out, under)
            all_d_s, all_d_z = call.d_states(d_out, scale, d_under, d_s, d_z)
            rates = ctx.needs_input_grad[3]
            d_q, later = call.d_queries(d_out, scale, d_under, all_s, all_z, rates)
            d_k, written = call.d_keys(d_out, scale, d_under, all_d_s, all_d_z, rates)
            d_v = call.d_values(d_out, scale, all_d_s)
            d_decay = None
            if rates:
                kept = torch.linalg.vecdot(all_s[:, :, :-1].flatten(3), all_d_s[:, :, 1:].flatten(3))
                kept = kept + torch.linalg.vecdot(all_z[:, :, :-1], all_d_z[:, :, 1:])
                d_decay = _d_decay(later, written, kept * call.tables.chain)[..., : k.shape[2]]
                dim, dtype = ctx.decay
                d_decay = (d_decay if dim == 3 else d_decay.sum((0, 2))).to(dtype)
        return d_q, d_k, d_v, d_decay, all_d_s[:, :, 0], all_d_z[:, :, 0], None, None, None, None, None


def _d_decay(later: Tensor, written: Tensor, kept: Tensor) -> Tensor:
    """Gradient of the log-decay at each position, (B, G, P): `yeoul.ops.decay`, whose sums over pairs and reads the
    kernel has made by head (B, H, P); written (B, G, P), kept (B, G, NC)."""
    b, g, chunks = kept.shape
    rows = later.view(b, g, -1, later.shape[-1]).sum(2).unflatten(-1, (chunks, -1))
    return state_gradient(rows, written.unflatten(-1, (chunks, -1)), kept).flatten(-2)


class _Call:
    """Launches the kernels over one set of inputs; q (B, H, T, M), k (B, G, T, M), v (B, G, T, D)."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, tables: Tables, c: int, eps: float | None, precision: str
    ) -> None:
        from yeoul.ops import triton_kernels

        self.kernels = triton_kernels
        self.q, self.k, self.v, self.tables, self.eps = q, k, v, tables, eps
        (self.b, self.h, self.t, self.m), self.g, self.d = q.shape, k.shape[1], v.shape[-1]
        self.chunks = tables.chain.shape[-1]
        self.strides = {name: x.stride()[:3] for name, x in (("q", q), ("k", k), ("v", v))}
        self.sizes = dict(M=self.m, D=self.d, C=c)
        # Without tensor cores the products take twice the registers: more threads share them.
        self.precision = dict(PRECISION=precision, num_warps=8 if precision == "ieee" else 4, num_stages=2)

    def states(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The state before each chunk and after the last: (B, G, NC + 1, M, D) and (B, G, NC + 1, M)."""
        all_s, all_z = self._empty_states()
        all_s[:, :, 0], all_z[:, :, 0] = s, z
        x, bm, bd = self.tables, _block(self.m), _block(self.d)
        with torch.cuda.device_of(self.q):
            self.kernels.states[self.b * self.g, -(-self.m // bm), -(-self.d // bd)](
                self.k, self.v, x.valid, x.write, x.chain, all_s, all_z, *self.strides["k"], *self.strides["v"],
                self.chunks, G=self.g, BM=bm, BD=bd, **self.sizes, **self.precision,
            )  # fmt: skip
        return all_s, all_z

    def outputs(self, s: Tensor, z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Output (B, H, T, D) in a dtype, and denominator (B, H, T); the latter is not filled without eps."""
        out = torch.empty(self.b, self.h, self.t, self.d, dtype=dtype, device=self.q.device)
        under = s.new_empty(self.b, self.h, self.t)
        x, bd = self.tables, _block(self.d)
        with torch.cuda.device_of(self.q):
            self.kernels.outputs[self.b * self.h * self.chunks, -(-self.d // bd)](
                self.q, self.k, self.v, x.valid, x.ids, x.high, x.low, x.read, s, z, out, under, *self._all_strides(),
                self.t, self.chunks, self.eps or 0.0, H=self.h, R=self.h // self.g, BD=bd, IM=_block(self.m, True),
                NORMALIZE=self.eps is not None, **self.sizes, **self.precision,
            )  # fmt: skip
        return out, under

    def d_denominators(self, d_out: Tensor, out: Tensor, under: Tensor) -> tuple[Tensor, Tensor]:
        """1 / max(n, eps) and the gradient of n, both (B, H, T)."""
        if self.eps is None:
            return torch.ones_like(under), torch.zeros_like(under)
        scale, d_under, rows = torch.empty_like(under), torch.empty_like(under), under.numel()
        with torch.cuda.device_of(self.q):
            self.kernels.d_denominators[(-(-rows // LARGEST),)](
                d_out, out, under, scale, d_under, rows, self.eps, D=self.d, C=LARGEST, ID=_block(self.d)
            )
        return scale, d_under

    def d_states(
        self, d_out: Tensor, scale: Tensor, d_under: Tensor, d_s: Tensor, d_z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of what `states` returns, from those of its last entries."""
        all_d_s, all_d_z = self._empty_states()
        all_d_s[:, :, -1], all_d_z[:, :, -1] = d_s, d_z
        x, bm, bd = self.tables, _block(self.m), _block(self.d)
        with torch.cuda.device_of(self.q):
            self.kernels.d_states[self.b * self.g, -(-self.m // bm), -(-self.d // bd)](
                self.q, d_out, x.valid, x.read, x.chain, scale, d_under, all_d_s, all_d_z, *self.strides["q"],
                self.t, self.chunks, G=self.g, R=self.h // self.g, BM=bm, BD=bd, **self.sizes, **self.precision,
            )  # fmt: skip
        return all_d_s, all_d_z

    def d_queries(
        self, d_out: Tensor, scale: Tensor, d_under: Tensor, s: Tensor, z: Tensor, rates: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradient of q, contiguous in q's dtype; with `rates` also what the log-decay at each position weighs in its
        chunk and of the state before it, (B, H, P) in float32."""
        x, bm = self.tables, _block(self.m)
        blocks = -(-self.m // bm)
        d_q = torch.empty(self.q.shape, dtype=self.q.dtype, device=self.q.device)
        products = s.new_empty(blocks, self.b, self.h, x.valid.shape[-1])
        with torch.cuda.device_of(self.q):
            self.kernels.d_queries[self.b * self.h * self.chunks, blocks](
                self.q, self.k, self.v, d_out, x.valid, x.ids, x.high, x.low, x.read, s, z, scale, d_under, d_q,
                products, *self._all_strides(), self.t, self.chunks, H=self.h, R=self.h // self.g, BM=bm,
                ID=_block(self.d, True), RATES=rates, **self.sizes, **self.precision,
            )  # fmt: skip
        return d_q, products.sum(0)

    def d_keys(
        self, d_out: Tensor, scale: Tensor, d_under: Tensor, d_s: Tensor, d_z: Tensor, rates: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradient of k, contiguous in k's dtype; with `rates` also what each position writes into the state after its
        chunk, times its gradient, (B, G, P) in float32."""
        x, bm = self.tables, _block(self.m)
        blocks = -(-self.m // bm)
        d_k = torch.empty(self.k.shape, dtype=self.k.dtype, device=self.k.device)
        products = d_s.new_empty(blocks, self.b, self.g, x.valid.shape[-1])
        with torch.cuda.device_of(self.q):
            self.kernels.d_keys[self.b * self.g * self.chunks, blocks](
                self.q, self.k, self.v, d_out, x.valid, x.ids, x.high, x.low, x.write, d_s, d_z, scale, d_under, d_k,
                products, *self._all_strides(), self.t, self.chunks, G=self.g, R=self.h // self.g, BM=bm,
                ID=_block(self.d, True), RATES=rates, **self.sizes, **self.precision,
            )  # fmt: skip
        return d_k, products.sum(0)

    def d_values(self, d_out: Tensor, scale: Tensor, d_s: Tensor) -> Tensor:
        """Gradient of v, contiguous in v's dtype."""
        x, bd = self.tables, _block(self.d)
        d_v = torch.empty(self.v.shape, dtype=self.v.dtype, device=self.v.device)
        with torch.cuda.device_of(self.q):
            self.kernels.d_values[self.b * self.g * self.chunks, -(-self.d // bd)](
                self.q, self.k, d_out, x.valid, x.ids, x.high, x.low, x.write, d_s, scale, d_v, *self.strides["q"],
                *self.strides["k"], self.t, self.chunks, G=self.g, R=self.h // self.g, BD=bd, IM=_block(self.m, True),
                **self.sizes, **self.precision,
            )  # fmt: skip
        return d_v

    def _empty_states(self) -> tuple[Tensor, Tensor]:
        s = torch.empty(self.b, self.g, self.chunks + 1, self.m, self.d, dtype=torch.float32, device=self.q.device)
        return s, s.new_empty(s.shape[:-1])

    def _all_strides(self) -> tuple[int, ...]:
        return (*self.strides["q"], *self.strides["k"], *self.strides["v"])


def _block(width: int, summed: bool = False) -> int:
    """Side of the tiles that cover a width: a power of two."""
    return max(SMALLEST, min(1 << (width - 1).bit_length(), LARGEST_SUMMED if summed else LARGEST))
