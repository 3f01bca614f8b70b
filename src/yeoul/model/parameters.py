"""What modules say of their parameters: which stay fp32, and which a conversion adds to a softmax model.

A module lists in `keep_in_fp32` the names of its own parameters that stay fp32 whatever type the model has, "*" for all
(mlx-lm's `cast_predicate`, transformers' `_keep_in_fp32_modules`). What an attention has beside its projections is
added to a softmax model by linearizing it (`ProjectedAttention.added_parameters`).
"""

from __future__ import annotations

from torch import nn

from yeoul.model.attention import ProjectedAttention


def fp32_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that stay fp32: few numbers that stand in exponents."""
    found = set()
    for path, module in model.named_modules():
        kept = getattr(module, "keep_in_fp32", ())
        for name, _ in module.named_parameters(path, recurse=False):
            if "*" in kept or name.rpartition(".")[2] in kept:
                found.add(name)
    return frozenset(found)


def added_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that the attention layers of a model have beside the projections of softmax attention."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules() if isinstance(module, ProjectedAttention)
        for name in module.added_parameters()
    )  # fmt: skip
