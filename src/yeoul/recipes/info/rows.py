"""What is known of a model in words: the rows of a table."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from yeoul.units import count, size


def model_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of a model, as names and values for a table.

    Args:
        report: as `ModelInfo.values` has it.
    """
    config, parameters = report["config"], dict(report["parameters"])
    total = parameters.pop("total")
    tied = "tied" if config["tie_embeddings"] else "not tied"
    names = report["architectures"]
    named = f" ({names[0]})" if isinstance(names, list) and names else ""
    stored = f"{report['stored_dtype']}, {size(report['stored_bytes'])} on disk"
    rows = [
        ("file" if report["format"] == "gguf" else "folder", report["folder"]),
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
    if any(config.get("exact", ())):
        pairs = dict.fromkeys(
            n for n, kind in zip(config["exact"], config["attention"], strict=True) if kind == "hybrid"
        )
        text += f", {', '.join(f'{n:,}' for n in pairs)} exact pairs"
    text += ", states by the delta rule" if delta else ""
    return text + (f", convolutions over {config['short_conv']}" if config["short_conv"] else "")


def _shape(config: dict[str, Any]) -> str:
    groups = count(config["num_kv_heads"], "KV head")
    heads = f"{count(config['num_heads'], 'query head')}, {groups} of {config['head_dim']}"
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
