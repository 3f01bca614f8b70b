"""Run as a program, so that a crash is one of this process alone: low-bit products of odd shapes, from odd addresses.

Every tensor ends where memory begins that nobody may read, at whichever address that makes: what reads beyond its
numbers, or by aligned loads, ends the process. Prints how many products were compared.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap

import torch
from torch import Tensor

from yeoul.adapt.rounding import round_to_nearest
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear
from yeoul.ops.low_bit import dequantize, make_tiles, product

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept: list[mmap.mmap] = []


def guarded(tensor: Tensor, behind: int = 0) -> Tensor:
    """The tensor's numbers, so many bytes before a page that cannot be read."""
    data, page = tensor.contiguous().view(-1).view(torch.uint8), mmap.PAGESIZE
    room = -(-(data.numel() + behind) // page) * page
    memory = mmap.mmap(-1, room + page)
    kept.append(memory)
    everything = torch.frombuffer(memory, dtype=torch.uint8)
    if libc.mprotect(everything.data_ptr() + room, page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    start = room - behind - data.numel()
    everything[start : start + data.numel()] = data
    part = torch.frombuffer(memory, dtype=torch.uint8, count=data.numel(), offset=start)
    return part.view(tensor.dtype).view(tensor.shape)


def check(found: Tensor, x: Tensor, weight: Tensor, what: object) -> None:
    wanted = x.float() @ weight.T
    error = (found.float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert found.shape == wanted.shape and error < 0.01, (what, float(error))


@torch.inference_mode()
def main() -> None:
    compared = 0
    outputs = (1, 2, 3, 4, 5, 17, 33, 95)
    inputs = (8, 16, 24, 40, 64, 96)
    for N, K, M, behind in itertools.product(outputs, inputs, (1, 3, 5), (0, 10)):
        x = guarded(torch.randn(M, K).bfloat16(), behind)
        for bits, group in ((8, 0), (8, 32), (6, 0), (4, 32), (4, 64), (4, 128)):
            if group and K % group:
                continue
            q, scale = round_to_nearest(torch.randn(N, K), bits, group)
            layer = QuantizedLinear.of(q, scale, bits)
            packed, scale = guarded(layer.weight_packed, behind), guarded(layer.weight_scale, behind)
            exact = dequantize(packed, scale, torch.float32)
            tiles = make_tiles(packed, scale) if bits == 4 else None
            for way in (x, x.clone()):
                check(product(way, packed, scale, tiles), x, exact, (M, N, K, bits, group, behind))
            layer.weight_packed, layer.weight_scale = packed, scale  # as they come out of a file
            table = QuantizedEmbedding.of(q, scale, bits)
            table.weight_packed, table.weight_scale = packed, scale
            check(layer(x), x, exact, (M, N, K, bits, group, behind, "layer"))
            check(table.product(x), x, exact, (M, N, K, bits, group, behind, "table"))
            compared += 4
        kept.clear()
    print(f"{compared} products agree, {torch.backends.cpu.get_cpu_capability()}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
