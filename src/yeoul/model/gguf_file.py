"""Writing a GGUF file: tensor by tensor, beside its place, renamed when it is whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from yeoul.errors import UserError
from yeoul.files import new_file
from yeoul.model.decoder import Decoder
from yeoul.model.finite import is_finite
from yeoul.model.gguf import Entry, entries
from yeoul.model.gguf_plan import Plan, plan

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""Types of matrices, and `general.file_type` of the GGUF specification."""


LARGEST_Q8_0 = 127 * 65504.0
"""Its scales are f16."""


def write_gguf(
    model: Decoder, path: Path, *, dtype: str, name: str, vocabulary: Mapping[str, Any] | None = None
) -> Plan:
    """Write a GGUF file, tensor by tensor, beside its place, and rename it when it is whole.

    Args:
        model: on any device; weights of any floating-point type.
        path: the file; replaced when it is there.
        dtype: "f32", "f16", "bf16" or "q8_0", of the matrices; vectors and position tables are f32, and rows that
            q8_0's blocks of 32 do not divide are f16.
        name: of the model, for people.
        vocabulary: `tokenizer.*` metadata; None makes a file that takes and gives ids only.

    Raises:
        UserError: llama.cpp cannot say this model, a weight is NaN or infinite, or `dtype` cannot hold one.
    """
    from gguf import GGUFWriter

    how = plan(model.config)
    writer = GGUFWriter(None, how.architecture)
    general = {"general.name": name, "general.file_type": FILE_TYPES[dtype]}
    general |= {"general.quantization_version": 2} if dtype == "q8_0" else {}
    for key, value in (general | how.metadata | dict(vocabulary or {"tokenizer.ggml.model": "none"})).items():
        _add(writer, key, value)
    todo = [(entry, _tensor_type(entry, dtype)) for entry in entries(model, how.architecture)]
    for entry, kind in todo:
        _announce(writer, entry, kind)
    with new_file(path) as beside, closing(writer):
        writer.write_header_to_file(beside)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, kind in todo:
            writer.write_tensor_data(_encoded(entry, kind))
    return how


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensor_type(entry: Entry, dtype: str) -> GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[dtype.upper() if entry.matrix else "F32"]
    return kind if entry.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _announce(writer: GGUFWriter, entry: Entry, kind: GGMLQuantizationType) -> None:
    import numpy as np
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), math.prod(entry.shape) // block * size, kind)


def _encoded(entry: Entry, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    from gguf import quants

    values = entry.make().cpu().contiguous()
    if not is_finite(values):
        raise UserError(f"tensor {entry.name} has numbers that are not finite, so it is not written")
    if kind.name in ("F16", "BF16"):
        narrow = values.to(torch.float16 if kind.name == "F16" else torch.bfloat16)
        if not is_finite(narrow):
            raise _too_large(entry, kind)
        return narrow.view(torch.int16).numpy() if kind.name == "BF16" else narrow.numpy()  # numpy has no bfloat16
    if kind.name == "Q8_0" and values.numel() and float(values.abs().max()) > LARGEST_Q8_0:
        raise _too_large(entry, kind)
    return quants.quantize(values.numpy(), kind)


def _too_large(entry: Entry, kind: GGMLQuantizationType) -> UserError:
    name = kind.name.lower()
    fix = "use bf16 or f32" if kind.name != "BF16" else "use f32"
    return UserError(f"tensor {entry.name} has numbers that {name} cannot hold", "--dtype", fix)
