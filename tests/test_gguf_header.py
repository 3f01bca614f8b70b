"""Headers of GGUF files: which file is meant, what a header says, and damage in one sentence each."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.gguf_header import KINDS, Values, gguf_file, read_header, short
from yeoul.hub import local_folder
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.folder import describe, model_folder
from yeoul.model.gguf_file import write_gguf

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported Llama of this house."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=64)
    write_gguf(Decoder(config), folder / "x.gguf", dtype="f16", name="tiny")
    return folder / "x.gguf"


def test_a_header_says_what_the_package_reads(small: Path, tmp_path: Path) -> None:
    """Every type of value, and every tensor, against the package's own reader."""
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, value in (("uint8", 200), ("int8", -5), ("uint16", 60_000), ("int16", -300), ("uint32", 4 * 10**9),
                        ("int32", -7), ("uint64", 2**63), ("int64", -(2**40)), ("float64", 0.1), ("bool", True),
                        ("string", "한국어")):  # fmt: skip
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_array("a.texts", ["x", "", "토끼"])
    writer.add_array("a.numbers", [1.5, -2.0])
    writer.add_array("a.truths", [True, False])
    writer.add_tensor("w", np.arange(12, dtype=np.float16).reshape(3, 4))
    writer.add_tensor("v", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for file in (tmp_path / "x.gguf", small):
        theirs, ours = gguf.GGUFReader(file), read_header(file)
        for key, field in theirs.fields.items():
            if not key.startswith("GGUF."):
                value = ours.metadata[key]
                value = value.read() if isinstance(value, Values) else value
                assert value == pytest.approx(field.contents(), rel=1e-6) if isinstance(value, float) else (
                    value == field.contents()
                )  # fmt: skip
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            found = ours.tensors[tensor.name]
            assert (found.shape, found.kind) == (tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type.name)
            assert (found.start, found.nbytes) == (tensor.data_offset, tensor.n_bytes)


@pytest.mark.parametrize("number", [1e-6, 1e-5, 10_000.0, 0.1, 30.0, 1 / 3, 5e5, 1e-45])
def test_numbers_of_32_bits_have_few_digits(number: float) -> None:
    (stored,) = struct.unpack("<f", struct.pack("<f", number))
    assert struct.pack("<f", short(stored)) == struct.pack("<f", stored)
    assert len(repr(short(stored))) <= len(repr(float(np.float32(number)))) and (
        number == 1 / 3 or short(stored) == number
    )


def test_types_that_are_plain_numbers_have_their_sizes() -> None:
    for number, kind in KINDS.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == kind[1:]


def test_a_folder_with_one_file_is_a_model(small: Path, tmp_path: Path) -> None:
    shutil.copy(small, tmp_path / "model-Q8_0.gguf")
    shutil.copy(small, tmp_path / "mmproj-model.gguf")
    assert model_folder(tmp_path) == gguf_file(tmp_path) == tmp_path / "model-Q8_0.gguf"
    shutil.copy(small, tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"the folder holds 2 GGUF models .*give one of them"):
        model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path


def header_of(*parts: bytes, tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + b"".join(parts)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not begin as one"),
        (b"PK\3\4" + bytes(100), "does not begin as one"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (header_of(version=1), "version 1 is not read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header_of()[:10], "ends within its header"),
        (header_of(values=2**40), "values in its metadata"),
        (header_of(struct.pack("<Q", 2**60), values=1), "a text of"),
        (header_of(text("a"), struct.pack("<I", 77), values=1), "'a' of its metadata is of type 77"),
        (header_of(text("a"), struct.pack("<IIQ", 9, 9, 1), values=1), "a list of 1 values of type 9"),
        (header_of(text("a"), struct.pack("<IIQ", 9, 8, 2**25), values=1), "ends within its header|beyond its end"),
        (header_of(text("a"), struct.pack("<IIQ", 9, 4, 2**25), values=1), "beyond its end"),
        (header_of(text("a"), struct.pack("<IIfI", 6, 0, 0, 0)[:4], values=1), "ends within"),
        (header_of(text("a"), struct.pack("<If", 6, float("nan")), values=1), "'a' of its metadata is nan"),
        (header_of(*(text("a"), struct.pack("<IB", 0, 1)) * 2, values=2), "'a' twice"),
        (header_of(entry("w", (32,), 4), bytes(64), tensors=1), "not known .number 4.*another quantization"),
        (header_of(entry("w", (33,), 8), bytes(64), tensors=1), "cannot be of type Q8_0"),
        (header_of(entry("w", (64,), 0), bytes(64), tensors=1), "tensor 'w' ends at byte"),
        (header_of(entry("w", (2**40, 2**40), 0), bytes(64), tensors=1), "has the shape"),
        (header_of(text("w"), struct.pack("<I", 9), tensors=1), "has 9 dimensions"),
        (header_of(entry("v", (8,), 0), entry("w", (8,), 0, 16), bytes(99), tensors=2), "overlaps"),
        (header_of(entry("w", (8,), 0), entry("w", (8,), 0, 32), bytes(99), tensors=2), "there twice"),
    ],
)
def test_damage_is_one_sentence(data: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(data)
    with pytest.raises(UserError, match=said) as raised:
        read_header(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)
    assert main(["info", str(file)]) == 2


def test_a_file_cut_anywhere_is_one_sentence(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    for size in [*range(0, 1400, 37), *np.linspace(1400, len(data) - 1, 40, dtype=int)]:
        (tmp_path / "x.gguf").write_bytes(data[:size])
        with pytest.raises(UserError, match="truncated|does not begin"):
            describe(tmp_path / "x.gguf")


def test_changed_bytes_of_the_header_are_a_sentence_or_a_model(small: Path, tmp_path: Path) -> None:
    """Whatever changes, the reader ends, with a model or with one sentence."""
    data, random = small.read_bytes(), np.random.default_rng(0)
    file = tmp_path / "x.gguf"
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in random.integers(0, 2000, random.integers(1, 4)):
            changed[place] = random.integers(0, 256)
        file.write_bytes(changed)
        try:
            describe(file)
        except UserError as error:
            refused += 1
            assert str(file) in str(error) or "config" not in str(error)
    assert refused > 100


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"anything")
    assert gguf_file(tmp_path / "x.bin") is None
    with pytest.raises(UserError, match=r"a file, not a folder .*or a \.gguf file"):
        local_folder(tmp_path / "x.bin")
