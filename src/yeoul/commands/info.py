"""`yeoul info`: architecture, parameters and memory of a model, read without loading its weights."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError

if TYPE_CHECKING:
    import torch

    from yeoul.model.config import ModelConfig

PARTS = (
    ("embed", "embeddings"),
    ("lm_head", "output"),
    ("feature_map", "feature maps"),
    ("self_attn", "attention"),
    ("mlp", "MLP"),
    ("norm", "norms"),
)
"""What a parameter's name contains -> the part it belongs to; the first that fits."""
BOUNDED = {"sliding", "hybrid"}
"""Kinds of attention with a window."""


@dataclass(frozen=True)
class Config:
    """Show a model's architecture, parameters and memory."""

    model: str
    """Model: a Hugging Face folder, a run's folder, or an id on the hub."""
    _: KW_ONLY
    context: int | None = None
    """Context length at which the cache is counted; the model's own when not given."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise UserError(f"a context of {self.context} tokens holds nothing", "--context", "use 1 or more")


def run(config: Config) -> int:
    """Print what is known about the model."""
    report = examine(config.model, context=config.context)
    if config.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(describe(report))
    return 0


def examine(model: str | Path, *, context: int | None = None) -> dict[str, Any]:
    """Everything that `yeoul info --json` prints; sizes in bytes.

    Raises:
        UserError: no such model, damaged, or of an unknown architecture.
    """
    import torch

    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import load_config, model_folder, read_json, weight_files

    folder = model_folder(local_folder(model))
    config = load_config(folder)
    published = read_json(folder / "config.json")
    context = context or config.max_position_embeddings
    parameters = count_parameters(config)
    total = sum(parameters.values())
    memory = {}
    for dtype in (torch.float32, torch.bfloat16):
        fixed, growing = cache_bytes(config, dtype)
        memory[str(dtype).removeprefix("torch.")] = {
            "weights": total * dtype.itemsize,
            "cache_fixed": fixed,
            "cache_per_token": growing,
            "cache_at_context": fixed + growing * context,
        }
    return {
        "folder": str(folder),
        "format": published.get("model_type"),
        "stored_dtype": published.get("dtype", published.get("torch_dtype")),
        "stored_bytes": sum(file.stat().st_size for file in weight_files(folder)),
        "config": config.to_dict(),
        "parameters": {"total": total, **parameters},
        "context": context,
        "memory": memory,
        "tokenizer": _tokenizer(folder),
    }


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part, tied ones once; parts that a model lacks are left out."""
    import torch

    from yeoul.model.decoder import Decoder

    with torch.device("meta"):
        model = Decoder(config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[next((part for word, part in PARTS if word in name), "other")] += parameter.numel()
    return {part: counts[part] for part in (*(part for _, part in PARTS), "other") if part in counts}


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the cache of one sequence: what stands from the first token on, and what each token adds.

    Asked of the model's own caches when its windows are full, on a decoder with the same layers and heads and
    next to nothing else.
    """
    import torch

    from yeoul.model.decoder import Decoder

    _, groups, size = config.heads
    small = config.with_(
        vocab_size=2,
        hidden_size=2 * size,
        num_heads=groups,
        num_kv_heads=groups,
        head_dim=size,
        intermediate_size=2,
        positions="none",
    )
    model = Decoder(small).to(dtype).eval()
    full = config.window + 1 if BOUNDED & set(config.attention) else 1
    sizes = []
    with torch.inference_mode():
        cache = model.new_cache(1)
        for columns in (full, 1):
            model(torch.zeros(1, columns, dtype=torch.int64), cache=cache, logits_to_keep=1)
            sizes.append(cache.nbytes())
    growing = sizes[1] - sizes[0]
    return sizes[0] - full * growing, growing


def _tokenizer(folder: Path) -> dict[str, Any] | None:
    from yeoul.text.tokenizer import Tokenizer

    if not Tokenizer.exists(folder):
        return None
    tokenizer = Tokenizer.load(folder)
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "unk_id": tokenizer.unk_id,
        "chat_template": tokenizer.chat_template is not None,
    }


def describe(report: dict[str, Any]) -> str:
    """The report as text."""
    config, parameters, context = report["config"], dict(report["parameters"]), report["context"]
    total = parameters.pop("total")
    kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(config["attention"]).items())
    window = f", window {config['window']}" if BOUNDED & set(config["attention"]) else ""
    tied = "tied" if config["tie_embeddings"] else "not tied"
    heads = f"{config['num_heads']} query heads, {config['num_kv_heads']} KV heads of {config['head_dim']}"
    mlp = f"{config['mlp']} of {config['intermediate_size']}"
    rows = [
        ("folder", report["folder"]),
        ("format", f"{report['format']}, {report['stored_dtype']}, {_size(report['stored_bytes'])} on disk"),
        ("layers", f"{config['num_layers']}: {kinds}{window}"),
        ("shape", f"hidden {config['hidden_size']}, {heads}, {mlp}, {config['norm']}"),
        ("positions", f"{config['positions']}, up to {config['max_position_embeddings']:,}"),
        ("vocabulary", f"{config['vocab_size']:,}, output {tied} to the embeddings"),
        ("parameters", f"{total:,}"),
    ]
    rows += [("", f"{count:>{len(f'{total:,}')},}  {part}") for part, count in parameters.items()]
    for dtype, sizes in report["memory"].items():
        growth = f"{sizes['cache_per_token']:,} bytes a token" if sizes["cache_per_token"] else "at any length"
        if sizes["cache_per_token"] and sizes["cache_fixed"]:
            growth += f" and {_size(sizes['cache_fixed'])} always"
        rows.append((dtype, f"weights {_size(sizes['weights'])}"))
        rows.append(("", f"cache {_size(sizes['cache_at_context'])} at {context:,} tokens ({growth})"))
    rows.append(("tokenizer", _describe_tokenizer(report["tokenizer"])))
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


def _describe_tokenizer(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none in this folder"
    special = ", ".join(f"{name} {tokenizer[f'{name}_id']}" for name in ("bos", "eos", "pad", "unk"))
    template = "with" if tokenizer["chat_template"] else "without"
    return f"{tokenizer['vocab_size']:,} pieces ({special}), {template} a chat template"


def _size(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"
