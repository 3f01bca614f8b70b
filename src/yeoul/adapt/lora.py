"""Low-rank adapters (LoRA, Hu and others 2021; DoRA, Liu and others 2024) in the files of PEFT.

A linear layer W gets a low-rank part beside it: y = W x + scaling * B A x. `LoraLinear` keeps W as it was, frozen;
the part is added on the way (unmerged) or into W (merged). An adapter's folder is PEFT's: `adapter_config.json` and
`adapter_model.safetensors`, whose names are the module paths of the base model in transformers. A family that fuses
projections there (GPT-2, GPT-NeoX) has one adapter where Yeoul has three.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from yeoul.adapt.lora_files import (
    LEAVES,
    PREFIX,
    WEIGHTS,
    adapter_name,
    found_adapter,
    full_name,
    read_lora_config,
    read_tensors,
)  # fmt: skip
from yeoul.adapt.lora_layers import CONFIG, Adapter, LoraConfig, LoraLinear, dense, named
from yeoul.adapt.lora_tokens import TokenTable, attach_rows, new_rows, rows_to_save, take_rows, token_tables
from yeoul.errors import UserError
from yeoul.model import families, tensor_names
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import replace_module

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The modules of a layer that take an adapter."""


def _linears(model: Decoder) -> Iterator[tuple[str, Any]]:
    """(path, module) of all that may take an adapter, a linear layer or a `LoraLinear` around it."""
    for path, module in model.named_modules():
        if path.startswith("model.layers.") and path.rpartition(".")[2] in LINEARS:
            yield path, module


def lora_layers(model: Decoder) -> dict[str, LoraLinear]:
    """The adapted layers by path."""
    return {path: module for path, module in _linears(model) if isinstance(module, LoraLinear)}


def adapted(model: Decoder) -> dict[str, LoraLinear | TokenTable]:
    """All modules that have adapters, by path: linear layers and tables of tokens."""
    return {**lora_layers(model), **token_tables(model)}


def adapter_names(model: Decoder) -> list[str]:
    """Names of the adapters that a model has."""
    return list(dict.fromkeys(name for layer in lora_layers(model).values() for name in layer.adapters))


def _check_new(model: Decoder, name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ModuleDict, name):
        raise UserError(f"an adapter cannot be called {name!r}", fix="use letters, digits, - and _")
    if name in adapter_names(model):
        raise UserError(f"the model has an adapter {name!r} already", fix="give the other one another name")


def _attach(model: Decoder, adapters: Mapping[str, Adapter], name: str, config: LoraConfig) -> None:
    """Puts adapters beside their layers, by path, and makes them the active ones."""
    for path, adapter in adapters.items():
        layer: Any = model.get_submodule(path)
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(layer).train(model.training)
            replace_module(model, path, layer)
        layer.adapters[name], layer.configs[name] = adapter.train(model.training), config
    set_adapter(model, name)


def _base(module: Any) -> Any:
    return module.base if isinstance(module, LoraLinear) else module


def _place(module: Any) -> dict[str, Any]:
    """Device and dtype of an adapter for this module: fp32, or fp64 over fp64."""
    tensor = next(itertools.chain(_base(module).parameters(), _base(module).buffers()))
    return {"device": tensor.device, "dtype": torch.float64 if tensor.dtype == torch.float64 else torch.float32}


def _row_norms(module: Any) -> Tensor:
    """(out,) lengths of the rows of a layer's own weight."""
    merged = isinstance(module, LoraLinear) and module.original is not None
    weight = module.original if merged else dense(_base(module)).detach()
    return torch.linalg.norm(weight.to(_place(module)["dtype"]), dim=1)


def add_lora(model: Decoder, config: LoraConfig, name: str = "default") -> None:
    """A new adapter that changes nothing yet: A is uniform as in `nn.Linear`, B is zero. It becomes the active one.

    Paths of `config` are Yeoul's. From here on only the adapter is trained.

    Raises:
        UserError: no layer matches; the name is taken.
    """
    _check_new(model, name)
    unmerge(model)
    matched = [(path, module) for path, module in _linears(model) if config.matches(path)]
    if not matched:
        raise UserError(
            f"no layer matches target_modules {config.target_modules!r}",
            fix=f"choose from {', '.join(LINEARS)}, or all-linear",
        )
    made = {}
    for path, module in matched:
        r = config.rank(path)
        A = torch.empty(r, module.in_features, **_place(module))
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        B = torch.zeros(module.out_features, r, **_place(module))
        magnitude = _row_norms(module) if config.dora else None
        made[path] = Adapter(A, B, config.scaling(path), config.dropout, magnitude)
    attach_rows(model, new_rows(model, config), name)
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
    return next((layer.active for layer in lora_layers(model).values() if layer.active is not None), None)


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


@dataclass(frozen=True)
class _Site:
    """One linear module of the published model, and where its rows lie in ours.

    Attributes:
        path: in transformers' model.
        rows: our path -> the published rows that it has, in its order.
    """

    path: str
    rows: dict[str, Tensor]

    @property
    def size(self) -> int:
        return sum(len(rows) for rows in self.rows.values())


def _spellings(model: Decoder) -> list[str]:
    """Families whose names an adapter of this model may have: that of its folder, that of its origin, our own."""
    written = families.write_config(model.config, model.dtype)["model_type"]
    return [f for f in dict.fromkeys((written, model.config.family, "yeoul")) if f in families.FAMILIES]


def _sites(model: Decoder, family: str) -> dict[str, _Site]:
    """By path. The family's own map of tensors is asked what becomes of a bias that counts its rows."""
    config, linears = model.config, dict(_linears(model))
    weights = {
        f"{path}.weight": torch.empty(module.out_features, module.in_features, device="meta")
        for path, module in linears.items()
    }
    sites = {}
    for published, tensor in tensor_names.to_published(weights, config, family).items():
        path = published.removesuffix(".weight")
        parts = [ours.removesuffix(".weight") for ours, _ in tensor_names.to_ours(published, tensor, config, family)]
        count = torch.arange(sum(linears[part].out_features for part in parts))
        rows = tensor_names.to_ours(f"{path}.bias", count, config, family)
        sites[path] = _Site(path, {ours.removesuffix(".bias"): index for ours, index in rows})
    return sites


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
    rows = take_rows(tensors, model, config, _spellings(model), folder / WEIGHTS)
    spellings = [_sites(model, family) for family in _spellings(model)]
    sites = next((sites for sites in spellings if tensors.keys() & sites.keys()), spellings[0])
    wanted = {path: site for path, site in sites.items() if config.matches(path)}
    _check_tensors(tensors, wanted, sites, model, config, folder)
    made: dict[str, Adapter] = {}
    for published, site in wanted.items():
        made |= _split(model, site, tensors[published], config)
    attach_rows(model, rows, name)
    _attach(model, made, name, config)


def load_adapters(model: Decoder, paths: Sequence[Path | str]) -> None:
    """Reads adapters: a single one as "default", several by the names of their folders, or of the runs that these lie
    in. The first becomes active."""
    names = ["default"] if len(paths) == 1 else [adapter_name(path) for path in paths]
    for path, name in zip(paths, names, strict=True):
        load_adapter(model, path, name)
    set_adapter(model, names[0])


def _check_tensors(
    tensors: Mapping[str, Mapping[str, Tensor]],
    wanted: Mapping[str, _Site],
    sites: Mapping[str, _Site],
    model: Decoder,
    config: LoraConfig,
    folder: Path,
) -> None:
    """Every tensor that the configuration asks for is there with its shape, and no other."""
    file = folder / WEIGHTS
    for path, parts in tensors.items():
        part = next(iter(parts))
        if path not in sites:
            raise UserError(
                f"tensor {full_name(path, part)} belongs to no layer of this model that can be adapted", file
            )
        if path not in wanted:
            raise UserError(f"tensor {full_name(path, part)} is not among the target modules", file)
    if not wanted:
        raise UserError("no layer of this model matches the target modules", f"{folder / CONFIG}, target_modules")
    made_for = f" (the adapter was made for {config.base_model})" if config.base_model else ""
    for path, site in wanted.items():
        module: Any = model.get_submodule(next(iter(site.rows)))
        r = config.rank(path)
        shapes: dict[str, tuple[int, ...]] = {"A": (r, module.in_features), "B": (site.size, r)}
        if config.dora:
            shapes["magnitude"] = (site.size,)
        given = tensors.get(path, {})
        for part in (*shapes, *given):
            if part not in given:
                raise UserError(f"tensor {full_name(path, part)} is missing", file)
            if part not in shapes:
                raise UserError(f"tensor {full_name(path, part)} is there, but use_dora is false", file)
            if given[part].shape != shapes[part]:
                shape = tuple(given[part].shape)
                asked = f"rank {r} and this model ask for {shapes[part]}{made_for}"
                raise UserError(f"tensor {full_name(path, part)} has shape {shape}, but {asked}", file)


def _split(model: Decoder, site: _Site, given: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Adapter]:
    """Adapters of our layers, by path, from that of a published module.

    A is one parameter for all parts of a fused module, so that training goes on as in the fused one.
    """
    made: dict[str, Adapter] = {}
    for ours, rows in site.rows.items():
        module = model.get_submodule(ours)
        if config.dora:
            dense(_base(module))
        split = {part: given[part][rows].to(**_place(module)) for part in given if part != "A"}
        A = next(iter(made.values())).A if made else given["A"].to(**_place(module))
        made[ours] = Adapter(A, split["B"], config.scaling(site.path), config.dropout, split.get("magnitude"))
    return made


@torch.no_grad()
def save_adapter(model: Decoder, folder: Path | str, name: str = "default") -> None:
    """Writes an adapter as PEFT does, under the names of the family that the model is published in.

    Where the family fuses projections and their A are not one, the fused A is all of them below one another and the
    fused B holds theirs in blocks: the same function at a higher rank. The files are written in place.

    Raises:
        UserError: no adapter has this name.
    """
    layers = {path: layer for path, layer in lora_layers(model).items() if name in layer.adapters}
    if not layers:
        raise UserError(f"the model has no adapter {name!r}", fix=f"it has {', '.join(adapter_names(model)) or 'none'}")
    config = next(iter(layers.values())).configs[name]
    family = _spellings(model)[0]
    sites = _sites(model, family)
    tensors, ranks, alphas = dict[str, Tensor](), dict[str, int](), dict[str, float]()
    for path, site in sites.items():
        adapters = {ours: layers[ours].adapter(name) for ours in site.rows if ours in layers}
        if not adapters:
            continue
        found, scaling = _fuse(model, site, adapters)
        for leaf, short in LEAVES.items():
            if short in found:
                tensors[f"{PREFIX}{path}.{leaf}"] = found[short].contiguous().cpu()
        ranks[path] = len(found["A"])
        alphas[path] = _alpha(scaling * (math.sqrt(ranks[path]) if config.rslora else ranks[path]), config)
    rows, indices = rows_to_save(model, family, name)
    tensors |= {f"{PREFIX}{published}": tensor.contiguous().cpu() for published, tensor in rows.items()}
    r, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    values = config.to_dict() | {
        "r": r, "lora_alpha": alpha, "target_modules": _shortest(ranks, sites), "exclude_modules": None,
        "trainable_token_indices": indices,
        "layers_to_transform": None, "layers_pattern": None, "fan_in_fan_out": family == "gpt2",
        "rank_pattern": {path: value for path, value in ranks.items() if value != r},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _alpha(alpha: float, config: LoraConfig) -> float:
    """The number of the configuration, or the whole number, that this is but for rounding."""
    near = (config.alpha, *config.alpha_pattern.values(), round(alpha))
    return next((number for number in near if math.isclose(number, alpha, rel_tol=1e-14)), alpha)


def _shortest(adapted: Mapping[str, int], sites: Mapping[str, _Site]) -> list[str]:
    """Names of the adapted modules: their last words where these name no other module, else whole paths."""
    words = tuple(dict.fromkeys(path.rpartition(".")[2] for path in adapted))
    return list(words if all(path in adapted or not named(words, path) for path in sites) else adapted)


def _fuse(model: Decoder, site: _Site, adapters: Mapping[str, Adapter]) -> tuple[dict[str, Tensor], float]:
    """A, B and magnitude of a published module from the adapters of its parts, and their scaling."""
    first = next(iter(adapters.values()))
    different: list[Tensor] = []
    for adapter in adapters.values():
        if not any(torch.equal(adapter.A, A) for A in different):
            different.append(adapter.A)
    B = first.B.new_zeros(site.size, sum(len(A) for A in different))
    magnitude = first.B.new_zeros(site.size)
    for ours, rows in site.rows.items():
        part = adapters.get(ours)
        if part is None:  # nothing is added to its rows, and they keep their lengths
            if first.magnitude is not None:
                magnitude[rows] = _row_norms(model.get_submodule(ours))
            continue
        column = 0
        for A in different:
            if torch.equal(part.A, A):
                B[rows, column : column + len(A)] = part.B * (part.scaling / first.scaling)
            column += len(A)
        if part.magnitude is not None:
            magnitude[rows] = part.magnitude
    found = {"A": torch.cat(different), "B": B}
    return found | ({"magnitude": magnitude} if first.magnitude is not None else {}), first.scaling
