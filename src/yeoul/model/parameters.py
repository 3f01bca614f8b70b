"""What modules say of their parameters: which stay fp32, which a conversion adds to a softmax model, and which are new.

A module lists in `keep_in_fp32` the names of its own parameters that stay fp32 whatever type the model has, "*" for all
(mlx-lm's `cast_predicate`, transformers' `_keep_in_fp32_modules`). What an attention has beside its projections is
added to a softmax model by linearizing it (`ProjectedAttention.added_parameters`). In `zero_if_absent` it lists what
folders of earlier versions lack: numbers that change nothing when they are zero.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from yeoul.model.attention import ProjectedAttention


def fp32_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that stay fp32: few numbers that stand in exponents."""
    return _listed(model, "keep_in_fp32")


def absent_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that a folder may lack."""
    return _listed(model, "zero_if_absent")


def fill_absent(tensors: MutableMapping[str, Tensor], model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Puts zeros for those of a model's parameters that its folder lacks and may lack."""
    shapes = dict(model.named_parameters())
    for name in absent_parameters(model) - tensors.keys():
        tensors[name] = torch.zeros(shapes[name].shape, device=device)


def _listed(model: nn.Module, attribute: str) -> frozenset[str]:
    """Names of the parameters that their own modules list under a name of theirs, or all of theirs by "*"."""
    found = set()
    for path, module in model.named_modules():
        listed = getattr(module, attribute, ())
        for name, _ in module.named_parameters(path, recurse=False):
            if "*" in listed or name.rpartition(".")[2] in listed:
                found.add(name)
    return frozenset(found)


def added_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that the attention layers of a model have beside the projections of softmax attention."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules() if isinstance(module, ProjectedAttention)
        for name in module.added_parameters()
    )  # fmt: skip
