"""Linear layers under the names of the family that a model is published in: where an adapter's tensors belong.

A family that fuses projections (GPT-2, GPT-NeoX) has one adapter where Yeoul has three.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yeoul.adapt.lora.config import LoraConfig, named
from yeoul.adapt.lora.layers import Adapter, LoraLinear, dense
from yeoul.adapt.lora.peft_files import WEIGHTS, full_name
from yeoul.errors import UserError
from yeoul.model import families, tensor_names
from yeoul.model.decoder import Decoder

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The modules of a layer that take an adapter."""


def linears(model: Decoder) -> Iterator[tuple[str, Any]]:
    """(path, module) of all that may take an adapter, a linear layer or a `LoraLinear` around it."""
    for path, module in model.named_modules():
        if path.startswith("model.layers.") and path.rpartition(".")[2] in LINEARS:
            yield path, module


def base_of(module: Any) -> Any:
    return module.base if isinstance(module, LoraLinear) else module


def place_of(module: Any) -> dict[str, Any]:
    """Device and dtype of an adapter for this module: fp32, or fp64 over fp64."""
    tensor = next(itertools.chain(base_of(module).parameters(), base_of(module).buffers()))
    return {"device": tensor.device, "dtype": torch.float64 if tensor.dtype == torch.float64 else torch.float32}


def row_norms(module: Any) -> Tensor:
    """(out,) lengths of the rows of a layer's own weight."""
    merged = isinstance(module, LoraLinear) and module.original is not None
    weight = module.original if merged else dense(base_of(module)).detach()
    return torch.linalg.norm(weight.to(place_of(module)["dtype"]), dim=1)


@dataclass(frozen=True)
class Site:
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


def spellings_of(model: Decoder) -> list[str]:
    """Families whose names an adapter of this model may have: that of its folder, that of its origin, our own."""
    written = families.write_config(model.config, model.dtype)["model_type"]
    return [f for f in dict.fromkeys((written, model.config.family, "yeoul")) if f in families.FAMILIES]


def sites_of(model: Decoder, family: str) -> dict[str, Site]:
    """By path. The family's own map of tensors is asked what becomes of a bias that counts its rows."""
    config, modules = model.config, dict(linears(model))
    weights = {
        f"{path}.weight": torch.empty(module.out_features, module.in_features, device="meta")
        for path, module in modules.items()
    }
    sites = {}
    for published, tensor in tensor_names.to_published(weights, config, family).items():
        path = published.removesuffix(".weight")
        parts = [ours.removesuffix(".weight") for ours, _ in tensor_names.to_ours(published, tensor, config, family)]
        count = torch.arange(sum(modules[part].out_features for part in parts))
        rows = tensor_names.to_ours(f"{path}.bias", count, config, family)
        sites[path] = Site(path, {ours.removesuffix(".bias"): index for ours, index in rows})
    return sites


def check_tensors(
    tensors: Mapping[str, Mapping[str, Tensor]],
    wanted: Mapping[str, Site],
    sites: Mapping[str, Site],
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
                f"tensor {full_name(path, part)} does not belong to any layer of this model that can be adapted", file
            )
        if path not in wanted:
            raise UserError(f"tensor {full_name(path, part)} is not among the target modules", file)
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
                why = "is there, but use_dora is false" if part == "magnitude" else "does not belong to a linear layer"
                raise UserError(f"tensor {full_name(path, part)} {why}", file)
            if given[part].shape != shapes[part]:
                shape = tuple(given[part].shape)
                asked = f"rank {r} and this model need {shapes[part]}{made_for}"
                raise UserError(f"tensor {full_name(path, part)} has shape {shape}, but {asked}", file)


def split(model: Decoder, site: Site, given: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Adapter]:
    """Adapters of our layers, by path, from that of a published module.

    A is one parameter for all parts of a fused module, so that training goes on as in the fused one.
    """
    made: dict[str, Adapter] = {}
    for ours, rows in site.rows.items():
        module = model.get_submodule(ours)
        if config.dora:
            dense(base_of(module))
        split = {part: given[part][rows].to(**place_of(module)) for part in given if part != "A"}
        A = next(iter(made.values())).A if made else given["A"].to(**place_of(module))
        made[ours] = Adapter(A, split["B"], config.scaling(site.path), config.dropout, split.get("magnitude"))
    return made


def shortest(adapted: Mapping[str, int], sites: Mapping[str, Site]) -> list[str]:
    """Names of the adapted modules: their last words where these name no other module, else whole paths."""
    words = tuple(dict.fromkeys(path.rpartition(".")[2] for path in adapted))
    return list(words if all(path in adapted or not named(words, path) for path in sites) else adapted)


def fuse(model: Decoder, site: Site, adapters: Mapping[str, Adapter]) -> tuple[dict[str, Tensor], float]:
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
                magnitude[rows] = row_norms(model.get_submodule(ours))
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
