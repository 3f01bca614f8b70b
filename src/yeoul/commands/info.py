"""`yeoul info`: architecture, parameters, memory, tokenizer and card of a model, read without loading its weights."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.config import Place
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.units import count, size

if TYPE_CHECKING:
    import torch

    from yeoul.model.config import ModelConfig
    from yeoul.text.tokenizer import Tokenizer

PARTS = (
    ("embed", "embeddings"),
    ("lm_head", "output"),
    ("feature_map", "feature maps"),
    ("self_attn", "attention"),
    ("mlp", "MLP"),
    ("norm", "norms"),
)
"""What a parameter's name contains -> the part it belongs to; the first that fits."""
FLOATS = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCKS = {"8-bit": 34, "4-bit": 18}
"""Bytes of 32 numbers of a matrix with their float16 scale, as GGUF's Q8_0 and Q4_0; the rest stays float32."""


@dataclass(frozen=True)
class Config:
    """Show a model's architecture, parameters, memory, tokenizer and card, and what can be done with it.

    Of a run that was stopped it shows how far it is, its newest checkpoint, and the command that goes on.
    """

    model: Place
    """Model: a Hugging Face folder, a run's folder, or an id on the hub, also as id@revision."""
    _: KW_ONLY
    context: int | None = None
    """Context length for which the cache is computed; the model's own when not given."""
    json: bool = False
    """Print JSON instead of text."""

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise UserError(f"--context is {self.context}, but must be at least 1")


def run(config: Config) -> int:
    """Print what is known about the model, and about the run that made it."""
    from yeoul.hub import local_folder
    from yeoul.recipes.standing import find_run, run_rows

    found = find_run(local_folder(config.model))
    unfinished = found is not None and found.state != "finished"
    if found is not None and unfinished and found.checkpoint is None:
        report: dict[str, Any] = {"model": config.model}  # there is none yet
    else:
        model = found.checkpoint if found is not None and unfinished and found.checkpoint else config.model
        report = examine(model, context=config.context)
    report["run"] = None if found is None else asdict(found)
    if config.json:
        say(json.dumps(report, indent=2, ensure_ascii=False, default=str))
        return 0
    rows = [] if found is None else run_rows(found)
    say(_table(rows + (_rows(report) if "config" in report else [])))
    return 0


def examine(model: str | Path, *, context: int | None = None) -> dict[str, Any]:
    """Everything that `yeoul info --json` prints; sizes in bytes.

    Raises:
        UserError: no such model, damaged, or of an unknown architecture.
    """
    import torch

    from yeoul.adapt.lora.peft_files import adapter_folder, base_folder, tokenizer_beside
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import load_config, load_quantization, model_folder, weight_files
    from yeoul.recipes.quantize.record import read_record
    from yeoul.safe_json import read_object
    from yeoul.text.model_card import read_card
    from yeoul.text.tokenizer import Tokenizer

    top = local_folder(model)
    adapter = adapter_folder(top)
    folder = model_folder(top if adapter is None else base_folder(adapter))
    config, quantization = load_config(folder), load_quantization(folder)
    published = read_object(folder / "config.json")
    context = context or config.max_position_embeddings
    parameters = count_parameters(config)
    memory: dict[str, dict[str, int]] = {kind: {"weights": size} for kind, size in weight_bytes(config).items()}
    for name in FLOATS:
        fixed, growing = cache_bytes(config, getattr(torch, name))
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
        "format": published.get("model_type"),
        "architectures": published.get("architectures"),
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
        "tokenizer": None if tokenizer is None else _tokenizer(tokenizer, config),
        "card": read_card(folder) or read_card(top),
        "adapter": None if adapter is None else _adapter(adapter),
        "commands": commands(
            str(model), config, tokenizer, is_adapter=adapter is not None, is_quantized=quantization is not None
        ),
    }


def _parts(config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    from yeoul.model.decoder import skeleton

    for name, parameter in skeleton(config).named_parameters():
        yield next((part for word, part in PARTS if word in name), "other"), parameter


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part, tied ones once; parts that a model lacks are left out."""
    counts: Counter[str] = Counter()
    for part, parameter in _parts(config):
        counts[part] += parameter.numel()
    return {part: counts[part] for part in (*(part for _, part in PARTS), "other") if part in counts}


def weight_bytes(config: ModelConfig) -> dict[str, int]:
    """Bytes of the weights in each number type of `FLOATS` and `BLOCKS`; feature maps are always float32."""
    sizes: Counter[str] = Counter()
    for part, parameter in _parts(config):
        count = parameter.numel()
        for name, width in FLOATS.items():
            sizes[name] += count * (4 if part == "feature maps" else width)
        for name, block in BLOCKS.items():
            packed = parameter.dim() == 2 and part != "feature maps"
            sizes[name] += -(-count // 32) * block if packed else 4 * count
    return dict(sizes)


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the cache of one sequence: what stands from the first token on, and what each token adds.

    Asked of the caches of one small layer of each kind, with windows of one and of two positions: what a window
    holds grows evenly with its length. Windows count as full.
    """
    fixed = growing = 0
    for kind, layers in Counter(config.attention).items():
        window = (config.sliding_window or config.window) if kind == "sliding" else config.window
        one, growth = _layer_cache(config, kind, 1, dtype)
        two, _ = _layer_cache(config, kind, 2, dtype)
        fixed += layers * (one + (window - 1) * (two - one))
        growing += layers * growth
    return fixed, growing


def _layer_cache(config: ModelConfig, kind: str, window: int, dtype: torch.dtype) -> tuple[int, int]:
    """The same for one layer of a kind, with the model's key-value heads and next to nothing else."""
    import torch

    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder

    _, groups, size = config.heads
    small = ModelConfig(
        vocab_size=2, hidden_size=2 * size, num_layers=1, num_heads=groups, num_kv_heads=groups, head_dim=size,
        intermediate_size=2, attention=(kind,), window=window, feature_map=config.feature_map, positions="none",
        state_update=config.state_update, max_position_embeddings=config.max_position_embeddings,
        sinks=config.sinks,
    )  # fmt: skip
    model = Decoder(small).to(dtype).eval()
    sizes = []
    with torch.inference_mode():
        cache = model.new_cache(1)
        for columns in (window + config.sinks + 1, 1):
            model(torch.zeros(1, columns, dtype=torch.int64), cache=cache, logits_to_keep=1)
            sizes.append(cache.nbytes())
    growing = sizes[1] - sizes[0]
    return sizes[0] - (window + config.sinks + 1) * growing, growing


def _tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    return {
        "file": tokenizer.source,
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


def commands(
    model: str,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    *,
    is_adapter: bool = False,
    is_quantized: bool = False,
) -> list[dict[str, str]]:
    """What Yeoul does with this model: {"verb", "command"}, in the order of work."""
    from yeoul.text.chat import CHAT_TOKENS

    name = shlex.quote(model)
    found = []
    if tokenizer is not None and tokenizer.fits(config.vocab_size):
        found.append(("generate", f'yeoul generate {name} "옛날 옛적에"'))
        if tokenizer.chat_template is not None or all(t in tokenizer.special_tokens for t in CHAT_TOKENS):
            found.append(("chat", f"yeoul chat {name}"))
        out = Path(model.partition("@")[0]).expanduser().name or "model"
        if not is_adapter:
            target = shlex.quote(f"runs/{out}-chat")
            method = " --method lora" if is_quantized else ""
            found.append(("finetune", f"yeoul finetune {name} --data my-dialogs{method} --out {target}"))
        if "softmax" in config.attention and not is_adapter and not is_quantized:
            target = shlex.quote(f"runs/{out}-linear")
            found.append(("linearize", f"yeoul linearize {name} --data builtin:5MB --out {target}"))
        found.append(("evaluate", f"yeoul evaluate {name} --data builtin:1MB"))
    found.append(("bench", f"yeoul bench {name}"))
    if _can_export(config) and not is_quantized:
        found.append(("export", f"yeoul export {name}"))
    return [{"verb": verb, "command": command} for verb, command in found]


def _can_export(config: ModelConfig) -> bool:
    from yeoul.model.gguf import plan

    try:
        plan(config)
    except UserError:
        return False
    return True


def describe(report: dict[str, Any]) -> str:
    """The report on a model as text."""
    return _table(_rows(report))


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    config, parameters = report["config"], dict(report["parameters"])
    total = parameters.pop("total")
    tied = "tied" if config["tie_embeddings"] else "not tied"
    names = report["architectures"]
    named = f" ({names[0]})" if isinstance(names, list) and names else ""
    stored = f"{report['stored_dtype']}, {size(report['stored_bytes'])} on disk"
    rows = [
        ("folder", report["folder"]),
        ("format", f"{report['format']}{named}, {stored}"),
        *_quantization_rows(report["quantization"]),
        *_score_rows(report["quantized_from"], report["model"]),
        *_adapter_rows(report["adapter"]),
        *_card_rows(report["card"]),
        ("layers", _layers(config)),
        ("shape", _shape(config)),
        ("positions", _positions(config)),
        ("vocabulary", f"{config['vocab_size']:,}, output {tied} to the embeddings"),
        ("parameters", f"{total:,}"),
    ]
    rows += [("", f"{count:>{len(f'{total:,}')},}  {part}") for part, count in parameters.items()]
    rows += _memory_rows(report["memory"], report["context"])
    rows += _tokenizer_rows(report["tokenizer"])
    rows += [("next" if n == 0 else "", row["command"]) for n, row in enumerate(report["commands"])]
    return rows


def _layers(config: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(config["attention"]).items())
    windows = {"hybrid": config["window"], "sliding": config["sliding_window"] or config["window"]}
    used = dict.fromkeys(windows[kind] for kind in windows if kind in config["attention"])
    delta = {"dijiang", "hybrid"} & set(config["attention"]) and config["state_update"] == "delta"
    text = f"{config['num_layers']}: {kinds}" + "".join(f", window {window:,}" for window in used)
    text += ", states by the delta rule" if delta else ""
    return text + (f", convolutions over {config['short_conv']}" if config["short_conv"] else "")


def _shape(config: dict[str, Any]) -> str:
    heads = f"{config['num_heads']} query heads, {config['num_kv_heads']} KV heads of {config['head_dim']}"
    norm = (
        config["norm"]
        + {"pre": "", "post": " after each part", "sandwich": " before and after each part"}[config["norm_placement"]]
    )
    parts = [f"hidden {config['hidden_size']}", heads, f"{config['mlp']} of {config['intermediate_size']}", norm]
    parts += ["norms of queries and keys"] if config["qk_norm"] else []
    caps = [f"{key.partition('_')[0]} capped at {config[key]:g}" for key in ("attention_softcap", "logit_softcap")
            if config[key] is not None]  # fmt: skip
    return ", ".join(parts + caps)


def _positions(config: dict[str, Any]) -> str:
    text = f"{config['positions']}, up to {config['max_position_embeddings']:,}"
    if config["positions"] != "rotary":
        return text
    text += f", base {config['rope_theta']:g}"
    if config["rope_local_theta"] is not None:
        text += f" ({config['rope_local_theta']:g} in sliding layers)"
    if config["rotary_dim"] != config["head_dim"]:
        text += f", {config['rotary_dim']} of {config['head_dim']} dimensions"
    if scaling := config["rope_scaling"]:
        factor = f" by {scaling['factor']:g}" if scaling.get("factor") else ""
        text += f", stretched{factor} ({scaling['rope_type']})"
    if config["no_rope_layers"]:
        text += f", none in {count(len(config['no_rope_layers']), 'layer')}"
    return text


def _quantization_rows(schemes: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for scheme in schemes or []:
        scales = f"groups of {scheme['group_size']}" if scheme["group_size"] else "a scale for each output"
        words = ["embeddings" if "embed" in word else word for word in scheme["targets"]]
        names = ", ".join({"Linear": "linear layers", "lm_head": "head"}.get(word, word) for word in words[:4])
        more = f" and {len(words) - 4} more" if len(words) > 4 else ""
        rows.append(("" if rows else "quantized", f"{scheme['bits']} bits, {scales}: {names}{more}"))
    return rows


def _score_rows(record: dict[str, Any] | None, model: str) -> list[tuple[str, str]]:
    if record is None:
        return []
    if not record["scored"]:
        return [("", f"from {record['model']}; not scored yet: yeoul evaluate {shlex.quote(model)}")]
    return [("", f"from {record['model']}; perplexity {record['before']:,.3f} before, {record['after']:,.3f} after")]


def _adapter_rows(adapter: dict[str, Any] | None) -> list[tuple[str, str]]:
    if adapter is None:
        return []
    modules = adapter["modules"] if isinstance(adapter["modules"], str) else ", ".join(adapter["modules"])
    kind = "DoRA" if adapter["dora"] else "LoRA"
    return [("adapter", adapter["folder"]), ("", f"{kind} of rank {adapter['rank']} at {modules}")]


def _card_rows(card: dict[str, Any] | None) -> list[tuple[str, str]]:
    if card is None:
        return [("card", "none in this folder")]
    shown = (("license", "licence"), ("language", "language"), ("base_model", "made from"), ("tags", "tags"))
    rows = []
    for key, name in shown:
        value = card.get("license_name", card.get(key)) if key == "license" else card.get(key)
        if value:
            rows.append((name, value if isinstance(value, str) else ", ".join(value[:8])))
    rows += [("card", card["summary"])] if "summary" in card else []
    return rows or [("card", "does not state a licence, language or origin")]


def _memory_rows(memory: dict[str, dict[str, int]], context: int) -> list[tuple[str, str]]:
    rows = [("weights" if n == 0 else "", f"{size(sizes['weights'])} in {name}")
            for n, (name, sizes) in enumerate(memory.items())]  # fmt: skip
    for n, name in enumerate(("float32", "bfloat16")):  # float16 is as large
        sizes = memory[name]
        growth = f"{size(sizes['cache_per_token'])} per token" if sizes["cache_per_token"] else "at any length"
        if sizes["cache_per_token"] and sizes["cache_fixed"]:
            growth += f" and {size(sizes['cache_fixed'])} at any length"
        text = f"{size(sizes['cache_at_context'])} in {name} at {context:,} tokens ({growth})"
        rows.append(("cache" if n == 0 else "", text))
    return rows


def _tokenizer_rows(tokenizer: dict[str, Any] | None) -> list[tuple[str, str]]:
    if tokenizer is None:
        return [("tokenizer", "none in this folder")]
    special = ", ".join(f"{name} {tokenizer[f'{name}_id']}" for name in ("bos", "eos", "pad", "unk"))
    begin = f"texts begin with {tokenizer['begins_with']}" if tokenizer["begins_with"] else "texts have no begin token"
    if tokenizer["ends_with"]:
        begin += f", those to embed or classify end with {tokenizer['ends_with']}"
    ends = ", ".join(map(str, tokenizer["stop_ids"])) or "none"
    template = "with" if tokenizer["chat_template"] else "without"
    rows = [
        ("tokenizer", f"{tokenizer['kind']} ({tokenizer['file']}), {tokenizer['vocab_size']:,} pieces ({special})"),
        ("", f"{begin}, answers end with {ends}, {template} a chat template"),
    ]
    return rows if tokenizer["fits_the_model"] else [*rows, ("", "made for a larger vocabulary than the model's")]
