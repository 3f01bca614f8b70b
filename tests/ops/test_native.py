"""torch's kernels of few bits: what they are given, and that nothing else calls one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yeoul.model.quantized import QuantizedLinear
from yeoul.ops import low_bit, native
from yeoul.ops.low_bit import dequantize, product

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src" / "yeoul"


@pytest.mark.skipif(sys.platform != "linux", reason="guards memory with mprotect")
@pytest.mark.parametrize("capability", ["", "default", "avx2"])
def test_odd_shapes_from_odd_addresses_compute_the_same(capability: str) -> None:
    more = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    paths = os.pathsep.join([str(HERE.parent), str(SOURCE.parent)])
    environment = {**os.environ, **more, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(HERE / "native_shapes.py")], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, (signal.Signals(-run.returncode).name if run.returncode < 0 else "", run.stderr[-2000:])
    assert re.match(r"\d{4,} products agree", run.stdout), run.stdout


def _from(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """The same numbers, so many bytes behind a multiple of 64."""
    room = torch.empty(tensor.nbytes + 128, dtype=torch.uint8)
    start = -room.data_ptr() % 64 + offset
    place = room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return place.copy_(tensor)


@pytest.mark.parametrize("offset,fits", [(0, True), (2, False), (8, False), (16, False), (32, False)])
def test_a_weight_of_a_file_is_taken_only_where_it_is_aligned(offset: int, fits: bool) -> None:
    """Asked of the condition, as only some processors fault: AVX-512 where outputs are no multiple of 4."""
    weight, scale, x = torch.ones(5, 32, dtype=torch.int8), torch.ones(5, 1).bfloat16(), torch.ones(1, 32).bfloat16()
    weight = _from(weight, offset)
    assert native.takes_int8(x, weight, scale) is fits
    assert native.takes_int8(x, native.aligned(weight), scale)
    assert product(x, weight, scale).tolist() == [[32.0] * 5]


@pytest.mark.parametrize(
    "M,N,K,fits",
    [(1, 5, 16, True), (1, 5, 24, False), (1, 2**27, 32, False), (2**26, 2**6, 16, False), (0, 5, 16, False)],
)
def test_shapes_that_the_8_bit_kernel_would_read_beyond_are_not_given_to_it(M: int, N: int, K: int, fits: bool) -> None:
    """Places are counted in 32 bits, so that a vocabulary of 262,144 by 8,192 is too much; nothing is allocated."""
    x = torch.empty(1, dtype=torch.bfloat16).expand(M, K)
    weight = torch.empty(1, dtype=torch.int8).expand(N, K) if N > 100 else torch.empty(N, K, dtype=torch.int8)
    assert native._small(M, N, K) is (fits or K == 24)
    assert native.takes_int8(x, weight, torch.empty(1, dtype=torch.bfloat16).expand(N, 1)) is fits


def test_other_types_places_and_layouts_are_not_given_to_the_kernels() -> None:
    x, weight = torch.ones(2, 32).bfloat16(), torch.ones(16, 32, dtype=torch.int8)
    scale = torch.ones(16, 1).bfloat16()
    assert native.takes_int8(x, weight, scale)
    assert not native.takes_int8(x.float(), weight, scale)
    assert not native.takes_int8(x.to("meta"), weight, scale)
    assert not native.takes_int8(x, torch.ones(32, 16, dtype=torch.int8).T, scale)
    assert not native.takes_int8(x, weight, torch.ones(16, 2).bfloat16())
    tiles = native.int4_tiles(weight, scale)
    assert tiles is not None and native.takes_int4(x, tiles, 32)
    assert not native.takes_int4(x.half(), tiles, 32)
    assert not native.takes_int4(x, tiles, 64)
    assert not native.takes_int4(x[:, :16], tiles, 32)
    assert native.int4_tiles(torch.ones(16, 48, dtype=torch.int8), scale) is None, "a group of 48"


def test_a_strided_input_is_computed() -> None:
    wide = torch.randn(8, 64).bfloat16()
    weight, scale = torch.randint(-127, 128, (5, 32), dtype=torch.int8), torch.rand(5, 1).bfloat16()
    for x in (wide[:, 1:33], wide[::2, ::2], wide.T[:8, :].repeat(1, 4)):
        torch.testing.assert_close(
            product(x, weight, scale).float(), x.float() @ dequantize(weight, scale, torch.float32).T, rtol=0.02,
            atol=0.5,
        )  # fmt: skip


def test_private_kernels_are_called_in_two_files() -> None:
    private = re.compile(r"torch\.ops\.aten|torch\._\w*mm\b|torch\.ops\.aten\._")
    found = {path.name for path in SOURCE.rglob("*.py") if private.search(path.read_text(encoding="utf-8"))}
    assert found == {"native.py", "fused.py"}


def test_a_layer_out_of_a_file_uses_the_kernel_from_its_first_product_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(low_bit, "int8_product", lambda x, packed, scale: given.append(native.is_aligned(packed)))
    layer = QuantizedLinear(32, 5, bits=8)
    layer.weight_packed = _from(layer.weight_packed, 2)
    with torch.inference_mode():
        layer(torch.ones(1, 32).bfloat16())
    assert given == [True] and not layer.weight_packed.is_inference()
