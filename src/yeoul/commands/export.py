"""`yeoul export`: a model for other programs: one GGUF file, or a folder of plain safetensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.files import only_writer
from yeoul.units import size

if TYPE_CHECKING:
    import torch

    from yeoul.model.decoder import Decoder


@dataclass(frozen=True)
class Config:
    """Write a model with its tokenizer for other programs.

    gguf: one file for llama.cpp and programs built on it. Works for softmax models of the Llama, Mistral, Qwen 2 and
    3, Gemma 1 to 3, EXAONE 4, GPT-2 and GPT-NeoX families, whoever made them; a model that llama.cpp would compute
    differently is refused with the reason. hf: a Hugging Face folder of safetensors, with an adapter merged, in
    another number type, or made from a pickle.
    """

    model: Place
    """Model: a Hugging Face folder, a run's folder, or an id on the hub; or an adapter, merged into its model."""
    _: KW_ONLY
    format: Literal["gguf", "hf"] = "gguf"
    """gguf: one file for llama.cpp; hf: a folder for transformers and Yeoul."""
    dtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """Number type of the weights; when not given, f16 for gguf and unchanged for hf. q8_0 (gguf only) is 8 bits with a
    scale for every 32 numbers. Norms and biases stay f32 in gguf."""
    out: Path | None = None
    """The file or folder; when not given, MODEL-F16.gguf or MODEL-hf in the current folder, after the model's name."""
    adapter: Place | None = None
    """LoRA adapter to merge into the weights: a folder or hub id."""
    unsafe_pickle: bool = False
    """Read weights stored as a pickle (.bin, .pt), with torch's loader for tensors only. Only for sources you trust."""
    overwrite: bool = False
    """Replace the output if it exists."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Write the file or folder and say what is in it."""
    name = model_name(config.model)
    config = _with_its_adapter(config)
    dtype = config.dtype or "f16"
    kind = f"{name}-hf" if config.format == "hf" else f"{name}-{dtype.upper()}.gguf"
    out = config.out or Path(kind)
    with only_writer(out):
        return _run_hf(config, out) if config.format == "hf" else _run_gguf(config, out, name, dtype)


def _run_gguf(config: Config, out: Path, name: str, dtype: str) -> int:
    if out.is_dir():
        raise UserError("this is a folder, not a file", f"--out {out}", f"give {out / f'{name}.gguf'}")
    _check_free(out, config.overwrite)
    import gguf  # noqa: F401 - says early what is not installed

    from yeoul.model.checkpoint import load_config, load_quantization
    from yeoul.model.gguf import plan
    from yeoul.model.gguf_file import write_gguf
    from yeoul.text.gguf_vocabulary import Vocabulary, gguf_vocabulary
    from yeoul.text.tokenizer import Tokenizer

    with _source(config, out) as folder:
        described = load_config(folder)
        plan(described)  # refused before the weights are read
        if load_quantization(folder) is not None:
            what = "the model is quantized, so it cannot be written as GGUF"
            raise UserError(what, folder, "give the model that it was made from")
        vocabulary = Vocabulary(
            metadata={"tokenizer.ggml.model": "none"},
            notes=("the model has no tokenizer: llama.cpp can only read and write token ids with it",),
        )
        if Tokenizer.exists(own := _tokenizer_folder(config, folder)):
            ids = {"bos_id": described.bos_id, "eos_id": described.eos_id, "pad_id": described.pad_id}
            vocabulary = gguf_vocabulary(own, described.vocab_size, end_ids=described.end_ids, **ids)
        done = write_gguf(_model(config, folder), out, dtype=dtype, name=name, vocabulary=vocabulary.metadata)
    kind = vocabulary.metadata["tokenizer.ggml.model"]
    print(f"{out}: {done.architecture}, {dtype}, {size(out.stat().st_size)}, tokenizer {kind}")
    for note in (*done.notes, *vocabulary.notes):
        print(f"note: {note}")
    return 0


def _run_hf(config: Config, out: Path) -> int:
    import torch

    from yeoul.files import replace_folder
    from yeoul.recipes.saving import save_folder
    from yeoul.safe_json import read_object
    from yeoul.text.tokenizer import Tokenizer

    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    if config.dtype == "q8_0":
        raise UserError("q8_0 exists only in GGUF files", "--dtype", "give f32, f16 or bf16, or --format gguf")
    if out.is_file():
        raise UserError("this is a file, not a folder", f"--out {out}")
    _check_free(out, config.overwrite)
    with _source(config, out) as folder:
        if out.exists() and out.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UserError("the model itself is in this folder", f"--out {out}", "choose another --out")
        model = _model(config, folder, dtypes[config.dtype] if config.dtype else None)
        own = _tokenizer_folder(config, folder)
        tokenizer = Tokenizer.load(own) if Tokenizer.exists(own) else None

        def write(target: Path) -> None:
            save_folder(model, tokenizer, target)
            _copy_vectors(config, folder, model, target)
            if (folder / "README.md").is_file():
                (target / "README.md").write_bytes((folder / "README.md").read_bytes())

        replace_folder(out, write)
    total = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    kind = read_object(out / "config.json")["model_type"]
    print(f"{out}: {kind}, {str(model.dtype).removeprefix('torch.')}, {size(total)}")
    return 0


def _with_its_adapter(config: Config) -> Config:
    """An adapter alone, or the run that made it, stands for its model with it merged."""
    from yeoul.adapt.lora.peft_files import adapter_folder, base_folder
    from yeoul.hub import local_folder

    if config.adapter is not None:
        return config
    adapter = adapter_folder(local_folder(config.model, pickles=config.unsafe_pickle))
    return config if adapter is None else replace(config, model=str(base_folder(adapter)), adapter=str(adapter))


def _tokenizer_folder(config: Config, folder: Path) -> Path:
    """Where the tokenizer is taken from: the adapter's folder where it has one, because of its chat template."""
    from yeoul.adapt.lora.peft_files import tokenizer_beside

    return folder if config.adapter is None else tokenizer_beside(config.adapter) or folder


def _copy_vectors(config: Config, folder: Path, model: Decoder, target: Path) -> None:
    """How the model makes sentence vectors, where its folder or the adapter's says so."""
    from yeoul.adapt.lora.peft_files import found_adapter
    from yeoul.model.pooling_folder import save_vectors, vectors_of
    from yeoul.safe_json import read_object

    try:
        places = (folder,) if config.adapter is None else (found_adapter(config.adapter), folder)
        found = vectors_of(places, model.config.hidden_size)
    except UserError as error:
        print(f"note: how the model makes sentence vectors is left out: {error}")
        return
    if found is not None:
        known = read_object(target / "config.json")["model_type"] != "yeoul"
        save_vectors(target, model.config, found[0], modules=known, reading=found[1])


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UserError("the output exists already", out, "replace it (--overwrite) or choose another --out")


@contextmanager
def _source(config: Config, out: Path) -> Iterator[Path]:
    """The folder of the model; with --unsafe-pickle a temporary one, with its weights as safetensors."""
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import model_folder

    folder = model_folder(local_folder(config.model, pickles=config.unsafe_pickle))
    if not config.unsafe_pickle:
        yield folder
        return
    from yeoul.files import disk_errors, scratch_folder
    from yeoul.model.pickles import to_safetensors

    with scratch_folder(out.absolute()) as temporary:
        with disk_errors(out):
            to_safetensors(folder, temporary)
        yield temporary


def _model(config: Config, folder: Path, dtype: torch.dtype | None = None) -> Decoder:
    from yeoul.model.checkpoint import load_model
    from yeoul.model.finite import check_finite

    model = load_model(folder, dtype=dtype)
    if config.adapter is not None:
        from yeoul.adapt.lora.api import load_adapter, merge_and_unload

        check_finite(model, folder, "merged")
        load_adapter(model, config.adapter)
        model = merge_and_unload(model)
    if config.dtype == "f16" and config.format == "hf":
        _check_half(model, folder)
    check_finite(model, folder if config.adapter is None else config.adapter, "exported")
    return model


def _check_half(model: Decoder, folder: Path) -> None:
    """A UserError where weights became infinite in float16, which holds numbers up to 65,504."""
    import torch

    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float16 and bool(torch.isinf(tensor).any()):
            raise UserError(f"tensor {name} has numbers that f16 cannot hold", folder, "use --dtype bf16 or f32")


def model_name(model: str) -> str:
    """What a model is called: the last part of its path or hub id, the run's where it is a run's `model` folder."""
    path = Path(model.partition("@")[0]).expanduser()
    parts = [part for part in (path.resolve() if path.is_dir() else path).parts if part not in ("/", "model")]
    return re.sub(r"[^\w.-]+", "-", parts[-1]) if parts else "model"
