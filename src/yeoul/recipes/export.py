"""`yeoul.export`: a model for other programs, as one GGUF file or as a folder of plain safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from yeoul.config import Place, Settings
from yeoul.errors import UserError
from yeoul.files import only_writer
from yeoul.recipes.model_folder import model_name

if TYPE_CHECKING:
    import torch

    from yeoul.model.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """What a model is written as."""

    format: Literal["gguf", "hf"] = "gguf"
    """gguf: one file for llama.cpp; hf: a folder for transformers and Yeoul."""
    dtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """Dtype of the weights; when not given, f16 for gguf and unchanged for hf. q8_0 (gguf only) is 8 bits with a
    scale for every 32 numbers. Norms and biases stay f32 in gguf."""
    adapter: Place | None = None
    """LoRA adapter to merge into the weights: a folder or hub id."""
    unsafe_pickle: bool = False
    """Read weights stored as a pickle (.bin, .pt), with torch's loader for tensors only. Only for sources you trust."""

    @property
    def gguf_dtype(self) -> str:
        """Dtype of the weights in a GGUF file."""
        return self.dtype or "f16"


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the file or folder.
        format: "gguf" or "hf".
        architecture: llama.cpp's name of it, or `model_type` of config.json.
        dtype: of the weights: "f16", "q8_0" and so on, or "float32" and so on.
        nbytes: of the file, or of the folder's weights.
        tokenizer: llama.cpp's name of the tokenizer's kind; None for "hf".
        notes: what could not be brought along.
    """

    path: Path
    format: str
    architecture: str
    dtype: str
    nbytes: int
    tokenizer: str | None
    notes: tuple[str, ...]


def export_name(model: str | Path, config: ExportConfig) -> str:
    """What the file or folder is called where it is given no name."""
    name = model_name(model)
    return f"{name}-hf" if config.format == "hf" else f"{name}-{config.gguf_dtype.upper()}.gguf"


def export(
    model: str | Path, out: str | Path, config: ExportConfig | None = None, *, overwrite: bool = False
) -> ExportResult:
    """Write a model with its tokenizer for other programs.

    Args:
        model: a folder, a run, or an id on the hub; or an adapter, which is merged into its model.
        out: the file (gguf) or folder (hf).
        config: format and dtype; None for the defaults.
        overwrite: replace what is there.

    Raises:
        UserError: a model that the format cannot say, weights that are not finite, an `out` that is there.
    """
    config, out = config or ExportConfig(), Path(out).expanduser()
    source = _Source.of(model, config)
    with only_writer(out):
        return _to_hf(source, config, out, overwrite) if config.format == "hf" else _to_gguf(
            source, config, out, overwrite
        )  # fmt: skip


@dataclass(frozen=True)
class _Source:
    """What is exported.

    Attributes:
        name: of the model.
        folder: with its config.json.
        adapter: folder or hub id of the adapter that is merged into it.
    """

    name: str
    folder: Path
    adapter: str | Path | None

    @classmethod
    def of(cls, model: str | Path, config: ExportConfig) -> _Source:
        """An adapter alone, or the run that made it, stands for its model with it merged."""
        from yeoul.adapt.lora.peft_files import adapter_folder, base_folder
        from yeoul.hub import local_folder
        from yeoul.model.checkpoint import model_folder

        top = local_folder(model, pickles=config.unsafe_pickle)
        adapter = config.adapter or adapter_folder(top)
        if config.adapter is None and adapter is not None:
            top = local_folder(base_folder(Path(adapter)), pickles=config.unsafe_pickle)
        return cls(model_name(model), model_folder(top), adapter)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is taken from: the adapter's folder where it has one, because of its chat template."""
        from yeoul.adapt.lora.peft_files import tokenizer_beside

        return self.folder if self.adapter is None else tokenizer_beside(self.adapter) or self.folder


def _to_gguf(source: _Source, config: ExportConfig, out: Path, overwrite: bool) -> ExportResult:
    if out.is_dir():
        raise UserError("this is a folder, not a file", f"--out {out}", f"give {out / f'{source.name}.gguf'}")
    _check_free(out, overwrite)
    import gguf  # noqa: F401 - says early what is not installed

    from yeoul.model.checkpoint import load_config, load_quantization
    from yeoul.model.gguf_file import write_gguf
    from yeoul.model.gguf_plan import plan
    from yeoul.text.gguf_vocabulary import Vocabulary, gguf_vocabulary
    from yeoul.text.tokenizer import Tokenizer

    dtype = config.gguf_dtype
    with _readable(source, config, out) as folder:
        described = load_config(folder)
        plan(described)  # refused before the weights are read
        if load_quantization(folder) is not None:
            what = "the model is quantized, so it cannot be written as GGUF"
            raise UserError(what, folder, "give the model that it was made from")
        vocabulary = Vocabulary(
            metadata={"tokenizer.ggml.model": "none"},
            notes=("the model has no tokenizer: llama.cpp can only read and write token ids with it",),
        )
        own = source.tokenizer_folder
        if Tokenizer.exists(own):
            ids = {"bos_id": described.bos_id, "eos_id": described.eos_id, "pad_id": described.pad_id}
            vocabulary = gguf_vocabulary(own, described.vocab_size, end_ids=described.end_ids, **ids)
        model = _model(source, config, folder)
        done = write_gguf(model, out, dtype=dtype, name=source.name, vocabulary=vocabulary.metadata)
    return ExportResult(
        path=out, format="gguf", architecture=done.architecture, dtype=dtype, nbytes=out.stat().st_size,
        tokenizer=str(vocabulary.metadata["tokenizer.ggml.model"]), notes=(*done.notes, *vocabulary.notes),
    )  # fmt: skip


def _to_hf(source: _Source, config: ExportConfig, out: Path, overwrite: bool) -> ExportResult:
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
    _check_free(out, overwrite)
    notes: list[str] = []
    with _readable(source, config, out) as folder:
        if out.exists() and out.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UserError("the model itself is in this folder", f"--out {out}", "choose another --out")
        model = _model(source, config, folder, dtypes[config.dtype] if config.dtype else None)
        own = source.tokenizer_folder
        tokenizer = Tokenizer.load(own) if Tokenizer.exists(own) else None

        def write(target: Path) -> None:
            save_folder(model, tokenizer, target)
            notes.extend(_copy_vectors(source, folder, model, target))
            if (folder / "README.md").is_file():
                (target / "README.md").write_bytes((folder / "README.md").read_bytes())

        replace_folder(out, write)
    return ExportResult(
        path=out, format="hf", architecture=str(read_object(out / "config.json")["model_type"]),
        dtype=str(model.dtype).removeprefix("torch."),
        nbytes=sum(file.stat().st_size for file in out.glob("*.safetensors")), tokenizer=None, notes=tuple(notes),
    )  # fmt: skip


def _copy_vectors(source: _Source, folder: Path, model: Decoder, target: Path) -> Iterator[str]:
    """How the model makes sentence vectors, where its folder or the adapter's says so; gives what should be noted."""
    from yeoul.adapt.lora.peft_files import found_adapter
    from yeoul.model.pooling_folder import save_vectors, vectors_of
    from yeoul.safe_json import read_object

    try:
        places = (folder,) if source.adapter is None else (found_adapter(source.adapter), folder)
        found = vectors_of(places, model.config.hidden_size)
    except UserError as error:
        yield f"how the model makes sentence vectors is left out: {error}"
        return
    if found is not None:
        known = read_object(target / "config.json")["model_type"] != "yeoul"
        save_vectors(target, model.config, found[0], modules=known, reading=found[1])


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UserError("the output exists already", out, "replace it (--overwrite) or choose another --out")


@contextmanager
def _readable(source: _Source, config: ExportConfig, out: Path) -> Iterator[Path]:
    """The folder of the model; with `unsafe_pickle` a temporary one, with its weights as safetensors."""
    if not config.unsafe_pickle:
        yield source.folder
        return
    from yeoul.files import disk_errors, scratch_folder
    from yeoul.model.pickles import to_safetensors

    with scratch_folder(out.absolute()) as temporary:
        with disk_errors(out):
            to_safetensors(source.folder, temporary)
        yield temporary


def _model(source: _Source, config: ExportConfig, folder: Path, dtype: torch.dtype | None = None) -> Decoder:
    from yeoul.model.checkpoint import load_model
    from yeoul.model.finite import check_finite

    model = load_model(folder, dtype=dtype)
    if source.adapter is not None:
        from yeoul.adapt.lora.api import load_adapter, merge_and_unload

        check_finite(model, folder, "merged")
        load_adapter(model, source.adapter)
        model = merge_and_unload(model)
    if config.dtype == "f16" and config.format == "hf":
        _check_half(model, folder)
    check_finite(model, folder if source.adapter is None else source.adapter, "exported")
    return model


def _check_half(model: Decoder, folder: Path) -> None:
    """A UserError where weights became infinite in float16, which holds numbers up to 65,504."""
    import torch

    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float16 and bool(torch.isinf(tensor).any()):
            raise UserError(f"tensor {name} has numbers that f16 cannot hold", folder, "use --dtype bf16 or f32")
