"""GGUF files where a model's folder may stand: written by the package gguf and by Yeoul's export, read by Yeoul."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from folders import write_small_folder
from model.test_gguf import IDS, LLAMA3, PUBLISHED, published, written
from models import rms_ratio
from yeoul.cli import main
from yeoul.errors import UserError
from yeoul.gguf_header import KINDS, read_header
from yeoul.model.checkpoint import load_config, load_model, stored_dtype, weight_files
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.folder import describe, model_folder
from yeoul.model.gguf_file import write_gguf
from yeoul.model.gguf_folder import gguf_pooling
from yeoul.model.stored import Encoding, Stored
from yeoul.model.tensor_files import read_tensors
from yeoul.recipes.embed import load_embedder

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

STORIES = ["옛날 옛적에 토끼가 살았다. 토끼는 숲에서 노래했다.\n" * 20, "미나는 시장에 갔다. 사과를 샀다.\n" * 20]
QUANTIZED = ("Q8_0", "Q5_0", "Q4_0")
"""Types that the package can also write; rows of 64 numbers fit into their blocks."""


@torch.no_grad()
def logits(model: Decoder, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model(ids)
    return found


def rewritten(source: Path, target: Path, change: Callable[[Any, str, Any], bool] | None = None, **more: Any) -> Path:
    """A file with the same metadata and tensors, written by the package; `change` adds a tensor itself or leaves it.

    `more` are values of the metadata, without the architecture and with "__" for a dot; None takes one out.
    """
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    more = {f"{architecture}.{key.replace('__', '.')}": value for key, value in more.items()}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in more:
            continue
        kind = field.types[0]
        sub = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for key, value in more.items():
        if value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(key, value)
    for tensor in reader.tensors:
        if change is None or not change(writer, tensor.name, tensor):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def quantized(source: Path, target: Path) -> Path:
    """The same model with its matrices in several types of few bits."""
    kinds = [gguf.GGMLQuantizationType[name] for name in QUANTIZED]

    def change(writer: Any, name: str, tensor: Any) -> bool:
        if len(tensor.shape) < 2 or tensor.shape[0] % 32:
            return False
        kind = kinds[len(writer.tensors[-1]) % len(kinds)]
        data = gguf.quants.quantize(gguf.quants.dequantize(tensor.data, tensor.tensor_type), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        return True

    return rewritten(source, target, change)


def comparable(config: ModelConfig) -> ModelConfig:
    """Without what a GGUF file does not say, or says by weights."""
    return dataclasses.replace(
        config, initializer_range=0.02, bos_id=None, eos_id=None, pad_id=None, attention_scale=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_exported_model_comes_back(name: str, tmp_path: Path) -> None:
    changes = dict(hidden_act="gelu") if name == "gpt_neox" else {}
    published(name, tmp_path / "hf", **changes)
    model = written(tmp_path / "hf", tmp_path / "x.gguf", "f32")
    back = load_model(tmp_path / "x.gguf")
    assert back.dtype == torch.float32
    assert rms_ratio(logits(back), logits(model)) < 1e-5
    ours, theirs = comparable(back.config), comparable(model.config)
    if name == "mistral":  # llama.cpp has no windows there
        theirs = theirs.with_(attention=("softmax",), sliding_window=None, max_position_embeddings=64)
    if name in ("llama-llama3", "exaone4"):  # the factors themselves
        ours, theirs = (config.with_(rope_scaling=None) for config in (ours, theirs))
    assert ours == theirs
    assert back.config.family == {"llama-biased": "llama", "mistral": "llama"}.get(name, model.config.family)
    described = describe(tmp_path / "x.gguf")
    assert described is not None and described.config == back.config
    assert described.shapes == {n: tuple(p.shape) for n, p in back.named_parameters()}


@pytest.mark.parametrize(
    ("dtype", "stored", "bound"),
    [("f32", torch.float32, 0), ("f16", torch.float16, 0), ("bf16", torch.bfloat16, 0), ("q8_0", torch.bfloat16, 0.02)],
)
def test_weights_keep_their_type_or_come_to_bf16(dtype: str, stored: torch.dtype, bound: float, tmp_path: Path) -> None:
    published("gemma2", tmp_path / "hf", query_pre_attn_scalar=16)  # llama.cpp's own scale: queries stay as they are
    model = written(tmp_path / "hf", tmp_path / "x.gguf", dtype)
    assert stored_dtype(tmp_path / "x.gguf") == stored
    back = load_model(tmp_path / "x.gguf")
    assert {p.dtype for p in back.parameters()} == {stored}
    for name, parameter in model.named_parameters():
        found = back.get_parameter(name).float()
        assert rms_ratio(found, parameter.to(stored).float()) <= max(bound, 1e-4 if "norm" in name else 0), name
    wide = load_model(tmp_path / "x.gguf", dtype=torch.float32)
    exact = gguf.quants.dequantize(*_data(tmp_path / "x.gguf", "blk.1.ffn_up.weight"))
    found = wide.get_parameter("model.layers.1.mlp.up_proj.weight").detach().numpy()
    np.testing.assert_array_equal(found, exact)  # not by way of bf16


def _data(file: Path, name: str) -> tuple[Any, Any]:
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == name)
    return tensor.data, tensor.tensor_type


READ_BY_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": dict(head_dim=128), "gemma2": dict(head_dim=256, query_pre_attn_scalar=256),
    "gemma3": dict(head_dim=256, query_pre_attn_scalar=256, rope_parameters=None),
}  # fmt: skip


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    published(name, tmp_path / "hf", **READ_BY_TRANSFORMERS[name])
    written(tmp_path / "hf", tmp_path / "wide.gguf", "f32")
    file = quantized(tmp_path / "wide.gguf", tmp_path / "x.gguf")
    assert {t.kind for t in read_header(file).tensors.values()} > {"F32", "Q8_0"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    ours = load_model(file, dtype=torch.float32)
    with torch.no_grad():
        assert rms_ratio(logits(ours), theirs(IDS).logits) < 1e-5
    assert load_model(file).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.numbers > 1], ids=lambda kind: kind.name)
def test_every_type_is_decoded_as_the_package_does(kind: Any, tmp_path: Path) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]] == (kind.numbers, kind.nbytes)
    rows, columns = 5, 2 * kind.numbers
    octets = np.random.default_rng(0).integers(0, 60, (rows, 2 * kind.nbytes), dtype=np.uint8)
    (tmp_path / "x").write_bytes(b"??" + octets.tobytes())
    place = Stored(tmp_path / "x", (rows, columns), "bfloat16", 2, octets.size, Encoding(kind.name))
    wanted = gguf.quants.dequantize(octets, gguf.GGMLQuantizationType[kind.name])
    ((_, found),) = read_tensors({"w": place}, torch.float32)
    np.testing.assert_array_equal(found.numpy(), wanted)
    ((_, narrow),) = read_tensors({"w": place})
    assert torch.equal(narrow, torch.from_numpy(wanted).bfloat16())


def test_an_output_that_is_the_embeddings_once_more_is_tied(tmp_path: Path) -> None:
    published("llama-biased", tmp_path / "hf")
    model = written(tmp_path / "hf", tmp_path / "tied.gguf", "f16")

    def twice(writer: Any, name: str, tensor: Any) -> bool:
        if name == "token_embd.weight":
            writer.add_tensor("output.weight", tensor.data, raw_dtype=tensor.tensor_type)
        return False

    def other(writer: Any, name: str, tensor: Any) -> bool:
        if name == "token_embd.weight":
            writer.add_tensor("output.weight", tensor.data * np.float16(2), raw_dtype=tensor.tensor_type)
        return False

    same = load_model(rewritten(tmp_path / "tied.gguf", tmp_path / "twice.gguf", twice))
    assert same.config.tie_embeddings and same.config == load_config(tmp_path / "tied.gguf")
    own = load_model(rewritten(tmp_path / "tied.gguf", tmp_path / "own.gguf", other), dtype=torch.float32)
    assert not own.config.tie_embeddings
    assert rms_ratio(logits(own), 2 * logits(load_model(tmp_path / "tied.gguf", dtype=torch.float32))) < 1e-5
    assert rms_ratio(logits(same.float()), logits(model)) < 2e-2


def test_fused_projections_are_taken_apart(tmp_path: Path) -> None:
    """As newer converters write them: queries, keys and values of grouped heads in one tensor."""
    published("llama", tmp_path / "hf")
    model = written(tmp_path / "hf", tmp_path / "x.gguf", "f32")
    kept: dict[str, Any] = {}

    def fuse(writer: Any, name: str, tensor: Any) -> bool:
        if ".attn_" not in name or name.split(".")[2] not in ("attn_q", "attn_k", "attn_v"):
            return False
        kept[name] = tensor.data
        block = name.rsplit(".", 2)[0]
        if all(f"{block}.attn_{letter}.weight" in kept for letter in "qkv"):
            rows = [kept[f"{block}.attn_{letter}.weight"] for letter in "qkv"]
            writer.add_tensor(f"{block}.attn_qkv.weight", np.concatenate(rows))
        return True

    back = load_model(rewritten(tmp_path / "x.gguf", tmp_path / "fused.gguf", fuse))
    for name, parameter in model.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name


def test_llama3_is_told_from_its_factors(tmp_path: Path) -> None:
    rope = LLAMA3 | dict(rope_theta=5e5, factor=32.0, original_max_position_embeddings=8192)
    published("llama", tmp_path / "hf", rope_parameters=rope, max_position_embeddings=131072, head_dim=64)
    model = written(tmp_path / "hf", tmp_path / "x.gguf", "f32")
    found = load_config(tmp_path / "x.gguf")
    assert found.rope_scaling == model.config.rope_scaling
    assert found == comparable(found).with_(**_ids(found)) and comparable(found) == comparable(model.config)


def _ids(config: ModelConfig) -> dict[str, Any]:
    return dict(bos_id=config.bos_id, eos_id=config.eos_id, pad_id=config.pad_id)


def test_a_split_model_is_read_from_any_part(tmp_path: Path) -> None:
    published("qwen3", tmp_path / "hf")
    model = written(tmp_path / "hf", tmp_path / "x.gguf", "f32")
    parts = split(tmp_path / "x.gguf", tmp_path / "parts", 3)
    for start in (parts[0], parts[2], tmp_path / "parts"):
        place = model_folder(start)
        assert place == parts[0] and weight_files(place) == parts
        back = load_model(place)
        assert all(torch.equal(back.get_parameter(name), p) for name, p in model.named_parameters())
    parts[1].rename(tmp_path / "away.gguf")
    with pytest.raises(UserError, match=r"part 2 of 3 is missing: x-00002-of-00003\.gguf"):
        load_model(parts[0])
    shutil.copy(parts[2], parts[1])
    with pytest.raises(UserError, match="this is not part 2 of 3"):
        load_model(parts[0])
    shutil.copy(parts[0], tmp_path / "alone.gguf")
    with pytest.raises(UserError, match="one of 3 parts"):
        load_model(tmp_path / "alone.gguf")


def split(source: Path, folder: Path, count: int) -> list[Path]:
    """As llama.cpp's gguf-split: the metadata in the first part, tensors in turn."""
    folder.mkdir()
    reader = gguf.GGUFReader(source)
    names = [tensor.name for tensor in reader.tensors]
    parts = [folder / f"x-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, "qwen3")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    writer.add_key_value(key, field.contents(), field.types[0])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(names))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported Llama of this house."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    shape = dict(vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=64)
    write_gguf(Decoder(ModelConfig(**shape)), folder / "x.gguf", dtype="f16", name="tiny")  # type: ignore[arg-type]
    return folder / "x.gguf"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(expert_count=8), r"llama\.expert_count = 8, which is not known here"),
        (dict(attention__scale=0.5), r"llama\.attention\.scale = 0\.5"),
        (dict(rope__scaling__type="longrope", rope__scaling__factor=2.0), "scaled by 'longrope'"),
        (dict(block_count=None), "the metadata has no llama.block_count"),
        (dict(block_count=3), "its metadata asks for 3 layers, the weights have 2"),
        (dict(block_count=100_000), "asks for 100,000 layers"),
        (dict(embedding_length="wide"), "embedding_length of the metadata must be a whole number, not 'wide'"),
        (dict(embedding_length=32, attention__key_length=16), r"shape \(96, 64\), its metadata asks for \(96, 32\)"),
        (dict(attention__value_length=8), "keys of 16 and values of 8"),
        (dict(attention__head_count=[4, 2]), "differs between the layers"),
        (dict(attention__causal=False), "no decoder"),
        (dict(attention__head_count=3), "num_heads 3 is not a multiple of num_kv_heads 4"),
    ],
)
def test_what_a_model_cannot_be_is_refused(more: dict[str, Any], said: str, small: Path, tmp_path: Path) -> None:
    file = rewritten(small, tmp_path / "x.gguf", **more)
    with pytest.raises(UserError, match=said) as raised:
        load_config(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("more", "field", "value"),
    [
        (dict(attention__head_count=[4, 4]), "num_heads", 4),
        (dict(rope__freq_base=1e6), "rope_theta", 1e6),
        (dict(attention__layer_norm_rms_epsilon=1e-6), "norm_eps", 1e-6),  # not as its 32 bits are
        (dict(expert_count=0), "num_layers", 2),
        (dict(rope__freq_base=None), "rope_theta", 10_000.0),
        (dict(attention__head_count_kv=None), "num_kv_heads", 4),
    ],
)
def test_metadata_say_what_the_model_is(
    more: dict[str, Any], field: str, value: object, small: Path, tmp_path: Path
) -> None:
    assert getattr(load_config(rewritten(small, tmp_path / "x.gguf", **more)), field) == value


@pytest.mark.parametrize(
    ("period", "attention"),
    [(None, "lllllgl"), (3, "llgllgl"), ([True, False, True, False, True, False, False], "lglglgg")],
)
def test_gemmas_windows_follow_the_pattern(period: Any, attention: str, tmp_path: Path) -> None:
    published("gemma3", tmp_path / "hf")
    written(tmp_path / "hf", tmp_path / "wide.gguf", "f32")
    more: dict[str, Any] = dict(attention__sliding_window_pattern=period, rope__freq_base_swa=None)
    found = load_config(rewritten(tmp_path / "wide.gguf", tmp_path / "x.gguf", **more))
    assert found.attention == tuple({"l": "sliding", "g": "softmax"}[letter] for letter in attention)
    assert (found.sliding_window, found.rope_local_theta, found.rope_theta) == (8, 10_000.0, 1e5)
    full = load_config(rewritten(tmp_path / "wide.gguf", tmp_path / "y.gguf", attention__sliding_window=None))
    assert set(full.attention) == {"softmax"}


def test_unknown_architectures_and_tensors_are_named(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    (tmp_path / "x.gguf").write_bytes(data.replace(b"llama", b"mamba"))
    with pytest.raises(UserError, match=r"architecture 'mamba' of the GGUF file is not known .*known are llama, qwen2"):
        load_model(tmp_path / "x.gguf")

    def extra(writer: Any, name: str, tensor: Any) -> bool:
        if name == "output_norm.weight":
            writer.add_tensor("v.patch_embd.weight", tensor.data)
        return False

    with pytest.raises(UserError, match=r"a tensor 'v\.patch_embd\.weight' that is not known for 'llama'"):
        load_model(rewritten(small, tmp_path / "y.gguf", extra))
    missing = rewritten(small, tmp_path / "z.gguf", lambda writer, name, tensor: name == "blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' of the model that its metadata"):
        load_model(missing)
    assert describe(missing) is None


def test_a_model_for_vectors_says_how_it_pools(small: Path, tmp_path: Path) -> None:
    kinds: list[tuple[int | None, str | None]] = [(None, None), (0, None), (1, "mean"), (3, "last")]
    for kind, pooling in kinds:
        assert gguf_pooling(rewritten(small, tmp_path / "x.gguf", pooling_type=kind)) == pooling
    with pytest.raises(UserError, match="pools states in a way that is not known here .type 2."):
        gguf_pooling(rewritten(small, tmp_path / "x.gguf", pooling_type=2))
    write_small_folder(tmp_path / "hf", STORIES)
    assert main(["export", str(tmp_path / "hf"), "--dtype", "f32", "--out", str(tmp_path / "m.gguf")]) == 0
    file = rewritten(tmp_path / "m.gguf", tmp_path / "v.gguf", pooling_type=3)
    wanted = load_embedder(tmp_path / "hf", pooling="last")(["토끼가 살았다."])
    assert torch.allclose(load_embedder(file)(["토끼가 살았다."]), wanted, atol=1e-5)
    assert not torch.allclose(load_embedder(tmp_path / "m.gguf")(["토끼가 살았다."]), wanted, atol=1e-2)


def test_info_reads_the_header_alone(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys; from yeoul.cli import main; "
        f"code = main(['info', {str(small)!r}]); "
        "print([name for name in ('torch', 'numpy', 'gguf') if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr
    assert "format      gguf (llama), float16" in done.stdout and "parameters" in done.stdout


def test_the_verbs_take_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Info, generate, evaluate, export, quantize, finetune --method lora and linearize, each with the file."""
    monkeypatch.chdir(tmp_path)
    write_small_folder(tmp_path / "hf", STORIES)
    (tmp_path / "data.txt").write_text("".join(STORIES) * 20)
    assert main(["export", "hf", "--dtype", "f32", "--out", "m.gguf"]) == 0
    capsys.readouterr()
    assert main(["info", "m.gguf", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["stored_dtype"], report["tokenizer"]["file"]) == ("gguf", "float32", "m.gguf")
    outputs = []
    for model in ("hf", "m.gguf"):
        assert main(["generate", model, "옛날 옛적에", "--max-tokens", "12", "--seed", "0"]) == 0
        outputs.append(capsys.readouterr().out)
        assert main(["evaluate", model, "--data", "data.txt", "--context", "32", "--json"]) == 0
        outputs.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert outputs[0] == outputs[2] and outputs[1] == pytest.approx(outputs[3], rel=1e-4)
    assert main(["export", "m.gguf", "--format", "hf"]) == 0
    ours, back = load_model("hf"), load_model("m-hf")
    assert all(torch.equal(p, back.get_parameter(name)) for name, p in ours.named_parameters())
    scored = ["--data", "data.txt", "--calibration-tokens", "500", "--eval-data", "data.txt", "--eval-tokens", "500"]
    assert main(["quantize", "m.gguf", "--bits", "8", "--method", "rtn", "--no-speed", *scored, "--out", "m8"]) == 0
    common = [
        "--data",
        "data.txt",
        "--tokens",
        "2000",
        "--context",
        "32",
        "--batch-size",
        "4",
        "--val-data",
        "data.txt",
    ]
    assert main(["linearize", "m.gguf", *common, "--out", "lin", "--dry-run"]) == 0
    assert main(["linearize", "m.gguf", *common, "--out", "lin"]) == 0, capsys.readouterr().err
    assert (tmp_path / "lin/model/config.json").is_file() and (tmp_path / "lin/model/tokenizer.json").is_file()
    assert main(["linearize", "m.gguf", *common, "--out", "lin"]) == 0  # the finished run is recognised
