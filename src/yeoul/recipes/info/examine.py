"""`yeoul.info`: architecture, parameters, memory, tokenizer and card of a model, read without loading its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.recipes.standing import Run, find_run, run_rows

if TYPE_CHECKING:
    from yeoul.model.config import ModelConfig
    from yeoul.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a model and of the run that made it.

    Attributes:
        values: JSON-able, sizes in bytes: `config`, `parameters` by part, `memory` by dtype, `tokenizer`,
            `card`, `adapter`, `quantization`, `commands` that can be given next, and more; of a run that has saved
            nothing yet only `model`, its name.
        run: the run; None of a model alone.
    """

    values: dict[str, Any]
    run: Run | None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a table; a row without a name belongs to the one before."""
        from yeoul.recipes.info.rows import model_rows

        rows = [] if self.run is None else run_rows(self.run)
        return rows + (model_rows(self.values) if "config" in self.values else [])

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON, paths as they are."""
        return {**self.values, "run": None if self.run is None else asdict(self.run)}

    def __str__(self) -> str:
        return "\n".join(f"{name:<11} {value}" for name, value in self.rows())


def info(model: str | Path, *, context: int | None = None) -> ModelInfo:
    """What is known of a model, read from headers alone; of a run that was stopped, how far it is.

    Args:
        model: a folder, a run, or an id on the hub, also as id@revision; or an adapter.
        context: tokens for which the cache is computed; None takes the model's own length.

    Raises:
        UserError: no such model, damaged, or of an unknown architecture.
    """
    from yeoul.hub import local_folder

    found = find_run(local_folder(model))
    unfinished = found is not None and found.state != "finished"
    if found is not None and unfinished and found.checkpoint is None:
        return ModelInfo(values={"model": str(model)}, run=found)  # there is none yet
    examined = found.checkpoint if found is not None and unfinished and found.checkpoint else model
    return ModelInfo(values=_examined(examined, context), run=found)


def _examined(model: str | Path, context: int | None) -> dict[str, Any]:
    """What stands in `ModelInfo.values`."""
    from yeoul.adapt.lora.peft_files import tokenizer_beside
    from yeoul.model.folder import describe, read_description
    from yeoul.model.tensor_files import weight_files
    from yeoul.recipes.caches import cache_bytes
    from yeoul.recipes.info.next import next_commands
    from yeoul.recipes.info.sizes import FLOATS, count_parameters, skeleton_shapes, weight_bytes
    from yeoul.recipes.model_folder import ModelFolder
    from yeoul.recipes.quantize.record import read_record
    from yeoul.text.model_card import read_card
    from yeoul.text.tokenizer import Tokenizer

    opened = ModelFolder.open(model)
    folder, adapter = opened.path, opened.adapter
    described = describe(folder)
    config = opened.config if described is None else described.config  # which says what does not agree
    quantization = opened.quantization
    shapes = skeleton_shapes(config) if described is None else described.shapes
    published = read_description(folder)
    file = folder if folder.is_file() else None
    context = context or config.max_position_embeddings
    parameters = count_parameters(shapes)
    memory: dict[str, dict[str, int]] = {kind: {"weights": size} for kind, size in weight_bytes(shapes).items()}
    for name, width in FLOATS.items():
        fixed, growing = cache_bytes(config, width)
        memory[name] |= {
            "cache_fixed": fixed,
            "cache_per_token": growing,
            "cache_at_context": fixed + growing * context,
        }
    own = folder if adapter is None else tokenizer_beside(adapter) or folder
    tokenizer = Tokenizer.load(own) if Tokenizer.exists(own) else None
    return {
        "model": str(model),
        "folder": str(folder),
        "format": published.get("model_type") if file is None else "gguf",
        "architectures": published.get("architectures") if file is None else [config.family],
        "family": config.family,
        "stored_dtype": published.get("dtype", published.get("torch_dtype")),
        "stored_bytes": sum(file.stat().st_size for file in weight_files(folder)),
        "quantization": None if quantization is None else [asdict(scheme) for scheme in quantization.schemes],
        "quantized_from": None if quantization is None else read_record(folder),
        "config": config.to_dict(),
        "parameters": {"total": sum(parameters.values()), **parameters},
        "context_length": config.max_position_embeddings,
        "context": context,
        "memory": memory,
        "tokenizer": None if tokenizer is None else _tokenizer(tokenizer, config, own),
        "card": read_card(folder) or read_card(opened.top),
        "adapter": None if adapter is None else _adapter(adapter),
        "commands": next_commands(
            str(model), config, tokenizer, is_adapter=adapter is not None, is_quantized=quantization is not None
        ),
    }


def _tokenizer(tokenizer: Tokenizer, config: ModelConfig, own: Path) -> dict[str, Any]:
    return {
        "file": own.name if own.is_file() else tokenizer.source,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "fits_the_model": tokenizer.fits(config.vocab_size),
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "unk_id": tokenizer.unk_id,
        "stop_ids": list(tokenizer.stop_ids),
        "special_tokens": len(tokenizer.special_tokens),
        "add_bos": tokenizer.add_bos,
        "begins_with": tokenizer.spelled(tokenizer.framing.begin) or None,
        "ends_with": tokenizer.spelled(tokenizer.framing.end) or None,
        "chat_template": tokenizer.chat_template is not None,
    }


def _adapter(folder: Path) -> dict[str, Any]:
    from yeoul.adapt.lora.peft_files import read_lora_config

    config = read_lora_config(folder)
    return {
        "folder": str(folder), "rank": config.r, "alpha": config.alpha, "dora": config.dora,
        "modules": config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules),
    }  # fmt: skip
