"""What the tensors of a family are called and how they lie: published names and shapes <-> ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from yeoul.errors import UserError, shown
from yeoul.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]


class Cut(Protocol):
    """What is asked of a tensor to bring it under our names."""

    @property
    def shape(self) -> Any: ...
    @property
    def T(self) -> Self: ...
    def dim(self) -> int: ...
    def reshape(self, *shape: int) -> Self: ...
    def unbind(self, dim: int) -> Any: ...


T = TypeVar("T", bound=Cut)


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the tensors of a family are called.

    Attributes:
        prefix: before everything but `outer`; a published folder may lack it.
        layers: the list of blocks.
        top: their module -> ours, outside the blocks.
        inner: their module or parameter -> ours, inside a block.
        fused: module with queries, keys and values in one; "" has none.
        by_head: rows of the fused module lie as (head, q k v, head size); else as (q k v, head, head size).
        transposed: modules whose weight is (in, out).
        outer: top modules that stand outside the prefix.
        ignored: endings of tensors that are recomputed.
    """

    prefix: str = "model."
    layers: str = "layers"
    top: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, str] = field(default_factory=dict)
    fused: str = ""
    by_head: bool = False
    transposed: frozenset[str] = frozenset()
    outer: frozenset[str] = frozenset({"lm_head"})
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)


LLAMA_NAMES = Names()
GPT2_NAMES = Names(
    prefix="transformer.",
    layers="h",
    top={"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm"},
    inner={
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    },
    fused="attn.c_attn",
    transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
NEOX_NAMES = Names(
    prefix="gpt_neox.",
    top={"embed_in": "embed_tokens", "final_layer_norm": "norm", "embed_out": "lm_head"},
    inner={
        "input_layernorm": "input_layernorm",
        "post_attention_layernorm": "post_attention_layernorm",
        "attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
        **{f"attention.{part}": f"self_attn.{part}" for part in ("proj_matrix", "D1", "D2", "W_G", "group_norm")},
    },
    fused="attention.query_key_value",
    by_head=True,
    outer=frozenset({"embed_out"}),
    ignored=("masked_bias", "inv_freq", ".attention.bias"),
)

NAMES: dict[str, Names] = {"gpt2": GPT2_NAMES, "gpt_neox": NEOX_NAMES}
"""Families whose tensors are not called as Llama's."""


def names_of(family: str) -> Names:
    """What the tensors of a family are called; without a row of its own, as Llama's."""
    return NAMES.get(family, LLAMA_NAMES)


def count_layers(tensors: Iterable[str], family: str) -> int:
    """Number of different blocks that the names of a folder's tensors speak of."""
    block = re.compile(rf"(?:^|\.){names_of(family).layers}\.(\d{{1,9}})\.")
    return len({int(found[1]) for name in tensors if (found := block.search(name))})


def to_ours(name: str, tensor: T, config: ModelConfig, family: str) -> Iterator[tuple[str, T]]:
    """One published tensor -> ours: (name, tensor) pairs; none for tensors that are recomputed.

    Args:
        name: as published.
        tensor: any dtype, perhaps on the meta device; or a shape alone that is cut as a tensor is.
        config: of the model.
        family: a key of `FAMILIES`.

    Raises:
        UserError: a fused projection of another shape.
    """
    names = names_of(family)
    if name.endswith(names.ignored):
        return
    inside = name.removeprefix(names.prefix)
    block = re.fullmatch(rf"{names.layers}\.(\d+)\.(.+)", inside)
    if block is None:
        module, _, leaf = inside.rpartition(".")
        ours = names.top.get(module, module)
        if ours == "lm_head":
            if not config.tie_embeddings or leaf != "weight":
                yield f"lm_head.{leaf}", tensor
            return
        yield f"model.{ours}.{leaf}" if module else inside, tensor
        return
    prefix, rest = f"model.layers.{block[1]}.", block[2]
    module, _, leaf = rest.rpartition(".")
    if module in names.transposed and leaf == "weight":
        tensor = tensor.T if tensor.dim() == 2 else tensor
    if module == names.fused and names.fused:
        H, G, D = config.heads
        if tensor.dim() < 1 or tensor.shape[0] != 3 * H * D:
            shape = shown(tuple(tensor.shape))
            raise UserError(f"tensor {shown(name)} has shape {shape}, config.json asks for {3 * H * D} outputs")
        layout = (H, 3, D) if names.by_head else (3, H, D)
        parts = tensor.reshape(*layout, *tensor.shape[1:]).unbind(1 if names.by_head else 0)
        for letter, part in zip("qkv", parts, strict=True):
            yield f"{prefix}self_attn.{letter}_proj.{leaf}", part.reshape(H * D, *tensor.shape[1:])
        return
    yield prefix + _renamed(rest, names.inner), tensor


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def to_published(tensors: Mapping[str, Tensor], config: ModelConfig, family: str) -> Tensors:
    """Our tensors under the family's names and in its layout: the inverse of `to_ours`.

    Args:
        tensors: ours, by name, perhaps on the meta device; queries, keys and values of a fused family together.
        config: of the model.
        family: a key of `FAMILIES`.
    """
    import torch

    names = names_of(family)
    out: Tensors = {}
    for name, tensor in tensors.items():
        projection = re.fullmatch(r"(.+\.self_attn\.)([qkv])_proj\.(\w+)", name) if names.fused else None
        if projection:
            stem, letter, leaf = projection.groups()
            if letter != "q":
                continue
            parts = [tensors[f"{stem}{letter}_proj.{leaf}"] for letter in "qkv"]
            H, _, D = config.heads
            if names.by_head:
                split = [part.reshape(H, D, *part.shape[1:]) for part in parts]
                tensor = torch.stack(split, 1).reshape(3 * H * D, *tensor.shape[1:])
            else:
                tensor = torch.cat(parts)
        published = published_name(name, family)
        if any(published.endswith(f".{module}.weight") for module in names.transposed):
            tensor = tensor.T
        out[published] = tensor
    return out


def stored_name(stored: Iterable[str], name: str, family: str) -> str | None:
    """What our tensor is called among the names of a folder, which may lack the family's prefix; None if not there."""
    usual, prefix = published_name(name, family), names_of(family).prefix
    return next((one for one in (usual, usual.removeprefix(prefix), prefix + usual) if one in stored), None)


def published_name(name: str, family: str) -> str:
    """What a family calls our tensor, or the one that ours is a part of."""
    names = names_of(family)
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if block is None:
        top = {new: old for old, new in names.top.items()}
        module, _, leaf = name.removeprefix("model.").rpartition(".")
        module = top.get(module, module)
        return ("" if module in names.outer else names.prefix) + f"{module}.{leaf}"
    inner = {new: old for old, new in names.inner.items()}
    if names.fused:
        inner |= {f"self_attn.{letter}_proj": names.fused for letter in "qkv"}
    return f"{names.prefix}{names.layers}.{block[1]}.{_renamed(block[2], inner)}"
