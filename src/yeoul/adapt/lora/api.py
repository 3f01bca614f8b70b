"""Low-rank adapters (LoRA, Hu and others 2021; DoRA, Liu and others 2024) in the files of PEFT.

A linear layer W gets a low-rank part beside it: y = W x + scaling * B A x. `LoraLinear` keeps W as it was, frozen;
the part is added on the way (unmerged) or into W (merged). An adapter's folder is PEFT's: `adapter_config.json` and
`adapter_model.safetensors`, whose names are the module paths of the base model in transformers. The embedding and the
output layer may have parts, too (`yeoul.adapt.lora.embeddings`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from yeoul.adapt.lora.config import CONFIG, LoraConfig
from yeoul.adapt.lora.embeddings import TokenTable, attach_tables, new_parts, new_rows, token_tables
from yeoul.adapt.lora.layers import Adapter, LoraLinear
from yeoul.adapt.lora.peft_embeddings import tables_to_save, take_parts, take_rows
from yeoul.adapt.lora.peft_files import (
    LEAVES,
    PREFIX,
    WEIGHTS,
    adapter_name,
    found_adapter,
    read_lora_config,
    read_tensors,
)  # fmt: skip
from yeoul.adapt.lora.peft_names import (
    LINEARS,
    check_tensors,
    fuse,
    linears,
    place_of,
    row_norms,
    shortest,
    sites_of,
    spellings_of,
    split,
)  # fmt: skip
from yeoul.errors import UserError
from yeoul.files import new_file, write_json
from yeoul.model.decoder import Decoder
from yeoul.model.finite import check_to_save
from yeoul.model.quantized import replace_module


def lora_layers(model: Decoder) -> dict[str, LoraLinear]:
    """The adapted layers by path."""
    return {path: module for path, module in linears(model) if isinstance(module, LoraLinear)}


def adapted(model: Decoder) -> dict[str, LoraLinear | TokenTable]:
    """All modules that have adapters, by path: linear layers and tables of tokens."""
    return {**lora_layers(model), **token_tables(model)}


def adapter_names(model: Decoder) -> list[str]:
    """Names of the adapters that a model has."""
    return list(dict.fromkeys(name for layer in adapted(model).values() for name in layer.adapters))


def _check_new(model: Decoder, name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ModuleDict, name):
        raise UserError(f"an adapter cannot be called {name!r}", fix="use letters, digits, - and _")
    if name in adapter_names(model):
        raise UserError(f"the model already has an adapter {name!r}", fix="give the new one another name")


def _attach(model: Decoder, adapters: Mapping[str, Adapter], name: str, config: LoraConfig) -> None:
    """Puts adapters beside their layers, by path, and makes them the active ones."""
    for path, adapter in adapters.items():
        layer: Any = model.get_submodule(path)
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(layer).train(model.training)
            replace_module(model, path, layer)
        layer.adapters[name], layer.configs[name] = adapter.train(model.training), config
    set_adapter(model, name)


def add_lora(model: Decoder, config: LoraConfig, name: str = "default") -> None:
    """A new adapter that changes nothing yet: A is uniform as in `nn.Linear`, B is zero. It becomes the active one.
    For tables of tokens see `new_parts`.

    Paths of `config` are Yeoul's. From here on only the adapter is trained.

    Raises:
        UserError: no layer matches; the name is taken; DoRA of a table of tokens.
    """
    _check_new(model, name)
    unmerge(model)
    matched = [(path, module) for path, module in linears(model) if config.matches(path)]
    rows, made = new_rows(model, config), {}
    for path, module in matched:
        r = config.rank(path)
        A = torch.empty(r, module.in_features, **place_of(module))
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        B = torch.zeros(module.out_features, r, **place_of(module))
        magnitude = row_norms(module) if config.dora else None
        made[path] = Adapter(A, B, config.scaling(path), config.dropout, magnitude)
    parts = new_parts(model, config)
    if not made and not parts:
        there = {path.rpartition(".")[2] for path, _ in linears(model)}
        if not there:
            raise UserError(
                "the model's layers have no projections that a low-rank adapter could stand beside",
                fix="train all its weights (--method full), or its table of tokens alone (embed_tokens)",
            )
        raise UserError(
            f"no layer matches target_modules {config.target_modules!r}",
            fix=f"choose from {', '.join(x for x in LINEARS if x in there)}, embed_tokens, lm_head, or all-linear",
        )
    attach_tables(model, rows, parts, name, config)
    _attach(model, made, name, config)


def set_adapter(model: Decoder, name: str | None) -> None:
    """Makes one adapter the active one, unmerged and the only thing that is trained; None is the base model alone.

    Raises:
        UserError: no adapter has this name.
    """
    if name is not None and name not in (names := adapter_names(model)):
        raise UserError(f"the model has no adapter {name!r}", fix=f"it has {', '.join(names) or 'none'}")
    unmerge(model)
    for layer in adapted(model).values():
        layer.active = name if name is not None and name in layer.adapters else None
    train_only_adapter(model)


def active_adapter(model: Decoder) -> str | None:
    """Name of the active adapter; None where the base model is alone."""
    return next((layer.active for layer in adapted(model).values() if layer.active is not None), None)


def train_only_adapter(model: Decoder) -> None:
    """Only the active adapter's parameters get gradients."""
    model.requires_grad_(False)
    for layer in adapted(model).values():
        if layer.active is not None:
            layer.adapters[layer.active].requires_grad_(True)


def merge_adapters(model: Decoder) -> None:
    """Adds the active adapter to the weights, so that it costs nothing; the originals are kept beside meanwhile.

    Raises:
        UserError: the base is quantized; then nothing is merged.
    """
    layers = [layer for layer in adapted(model).values() if layer.active is not None]
    for layer in layers:
        layer.check_mergeable()
    for layer in layers:
        layer.merge()


def unmerge(model: Decoder) -> None:
    """Undoes `merge_adapters` bit for bit."""
    for layer in adapted(model).values():
        layer.unmerge()


def merge_and_unload(model: Decoder) -> Decoder:
    """The same model with plain linear layers again, the active adapter in their weights and all adapters gone.

    The parameters stay frozen.
    """
    merge_adapters(model)
    for path, layer in adapted(model).items():
        replace_module(model, path, layer.base)
    return model


# -- folders


def load_adapter(model: Decoder, path: Path | str, name: str = "default") -> None:
    """Reads an adapter of PEFT's format beside the base model's weights, and makes it the active one.

    Args:
        model: the base; its linearized form does as well, for the paths are the same.
        path: folder with `adapter_config.json` and `adapter_model.safetensors`, a run that made one, or the id of one
            on the hub.
        name: what it is called from here on.

    Raises:
        UserError: damaged or unsupported files; tensors that are missing, superfluous or do not fit the model.
    """
    folder = found_adapter(path)
    config = read_lora_config(folder)
    tensors = read_tensors(folder)
    _check_new(model, name)
    unmerge(model)
    rows = take_rows(tensors, model, config, spellings_of(model), folder / WEIGHTS)
    parts = take_parts(tensors, model, config, spellings_of(model), folder / WEIGHTS)
    spellings = [sites_of(model, family) for family in spellings_of(model)]
    sites = next((sites for sites in spellings if tensors.keys() & sites.keys()), spellings[0])
    wanted = {path: site for path, site in sites.items() if config.matches(path)}
    check_tensors(tensors, wanted, sites, model, config, folder)
    if not wanted and not parts:
        raise UserError("no layer of this model matches the target modules", f"{folder / CONFIG}, target_modules")
    made: dict[str, Adapter] = {}
    for published, site in wanted.items():
        made |= split(model, site, tensors[published], config)
    attach_tables(model, rows, parts, name, config)
    _attach(model, made, name, config)


def load_adapters(model: Decoder, paths: Sequence[Path | str]) -> None:
    """Reads adapters: a single one as "default", several by the names of their folders, or of the runs that these lie
    in. The first becomes active."""
    names = ["default"] if len(paths) == 1 else [adapter_name(path) for path in paths]
    for path, name in zip(paths, names, strict=True):
        load_adapter(model, path, name)
    set_adapter(model, names[0])


@torch.no_grad()
def save_adapter(model: Decoder, folder: Path | str, name: str = "default") -> None:
    """Writes an adapter as PEFT does, under the names of the family that the model is published in.

    Where the family fuses projections and their A are not one, the fused A is all of them below one another and the
    fused B holds theirs in blocks: the same function at a higher rank. The files are written in place.

    Raises:
        UserError: no adapter has this name, or a number of it is NaN or infinite; then nothing is written.
    """
    modules = {path: module for path, module in adapted(model).items() if name in module.adapters}
    if not modules:
        raise UserError(f"the model has no adapter {name!r}", fix=f"it has {', '.join(adapter_names(model)) or 'none'}")
    config = next(iter(modules.values())).configs[name]
    layers = {path: module for path, module in modules.items() if isinstance(module, LoraLinear)}
    family = spellings_of(model)[0]
    sites = sites_of(model, family)
    tensors, ranks, scalings = dict[str, Tensor](), dict[str, int](), dict[str, float]()
    for path, site in sites.items():
        adapters = {ours: layers[ours].adapter(name) for ours in site.rows if ours in layers}
        if not adapters:
            continue
        found, scalings[path] = fuse(model, site, adapters)
        for leaf, short in LEAVES.items():
            if short in found:
                tensors[f"{PREFIX}{path}.{leaf}"] = found[short]
        ranks[path] = len(found["A"])
    tables = tables_to_save(model, family, name)
    tensors, ranks, scalings = tensors | tables.tensors, ranks | tables.ranks, scalings | tables.scalings
    check_to_save(tensors.items(), folder)
    roots = {path: math.sqrt(rank) if config.rslora else rank for path, rank in ranks.items()}
    alphas = {path: _alpha(scalings[path] * roots[path], config) for path in ranks}
    r, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    values = config.to_dict() | {
        "r": r, "lora_alpha": alpha, "target_modules": shortest(ranks, sites), "exclude_modules": None,
        "trainable_token_indices": tables.indices, "ensure_weight_tying": tables.tied,
        "layers_to_transform": None, "layers_pattern": None, "fan_in_fan_out": family == "gpt2",
        "rank_pattern": {path: value for path, value in ranks.items() if value != r},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    with new_file(folder / WEIGHTS) as weights:
        save_file(tensors, weights, metadata={"format": "pt"})
        write_json(folder / CONFIG, values, indent=2)


def _alpha(alpha: float, config: LoraConfig) -> float:
    """The number of the configuration, or the whole number, that this is but for rounding."""
    near = (config.alpha, *config.alpha_pattern.values(), round(alpha))
    return next((number for number in near if math.isclose(number, alpha, rel_tol=1e-14)), alpha)
