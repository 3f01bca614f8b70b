"""Rows of the embedding, and of an output layer of its own, that an adapter trains: PEFT's trainable tokens.

A low-rank part cannot teach a model a token that it has never met, such as those of a chat template: its row of the
output lies where training left all that never came, and the frozen states tell it from nothing. So an adapter may bring
whole rows for a few tokens, which take the place of the base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.adapt.lora_layers import OUTPUTS, LoraConfig
from yeoul.errors import UserError
from yeoul.model import tensor_names
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import QuantizedLinear, replace_module

TABLES = ("model.embed_tokens", "lm_head")
"""Paths of the modules that have a row for each token; the second only where the output is not tied."""
LEAF = "token_adapter.trainable_tokens_delta"


class Rows(nn.Module):
    """The rows of one adapter.

    Args:
        indices: ids of the tokens.
        rows: (len(indices), hidden).
        vocabulary: rows of the whole table.
    """

    indices: Tensor
    place: Tensor

    def __init__(self, indices: Sequence[int], rows: Tensor, vocabulary: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        index = torch.tensor(indices, dtype=torch.int64, device=rows.device)
        place = torch.full((vocabulary,), -1, dtype=torch.int64, device=rows.device)
        place[index] = torch.arange(len(index), device=rows.device)
        self.register_buffer("indices", index, persistent=False)
        self.register_buffer("place", place, persistent=False)  # (V,): which row an id has, or -1


class TokenTable(nn.Module):
    """An embedding or an output layer with adapters by name, of which one or none is active.

    Args:
        base: `nn.Embedding`, `nn.Linear`, or a quantized form of either.
    """

    original: Tensor | None

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.adapters = base, nn.ModuleDict()
        self.active: str | None = None
        self.register_buffer("original", None, persistent=False)  # the base's rows while others are in their place

    @property
    def _rows(self) -> Rows | None:
        """Those that count now and are not in the base."""
        if self.active is None or self.original is not None:
            return None
        return self.adapters[self.active]  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """(V, hidden): the whole table, with the rows of the active adapter in their places."""
        base: Tensor = whole(self.base)
        found = self._rows
        return base if found is None else base.index_copy(0, found.indices, found.rows.to(base.dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., hidden), of an embedding."""
        y: Tensor = self.base(ids)
        if (found := self._rows) is None:
            return y
        place = found.place[ids]
        return torch.where((place >= 0)[..., None], F.embedding(place.clamp_min(0), found.rows).to(y.dtype), y)

    def product(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., V), as an output layer; without a copy of the table."""
        y = self.base.product(x) if isinstance(self.base, QuantizedLinear) else x @ self.base.weight.to(x.dtype).T
        if (found := self._rows) is None:
            return y
        return y.index_copy(-1, found.indices, (x @ found.rows.to(x.dtype).T).to(y.dtype))

    def check_mergeable(self) -> None:
        """UserError where the base is quantized."""
        if isinstance(self.base, QuantizedLinear):
            what = "the base model's embeddings are quantized, so no adapter can be merged into them"
            raise UserError(what, fix="keep the adapter beside it, or give the model that it was made from")

    @torch.no_grad()
    def merge(self) -> None:
        """Puts the active adapter's rows into the base; the originals are kept until `unmerge`."""
        if (found := self._rows) is not None:
            weight = self.base.weight.data
            original = weight[found.indices].clone()
            weight[found.indices] = found.rows.to(weight.dtype)
            self.original = original

    @torch.no_grad()
    def unmerge(self) -> None:
        """The base's rows are those before `merge`, bit for bit."""
        if self.original is not None:
            assert self.active is not None
            self.base.weight.data[self.adapters[self.active].indices] = self.original
            self.original = None


def whole(base: Any) -> Tensor:
    """(V, hidden) of a table, quantized or not."""
    return base.dequantized() if isinstance(base, QuantizedLinear) else base.weight


def token_tables(model: Decoder) -> dict[str, TokenTable]:
    """The adapted ones by path."""
    found = {path: model.get_submodule(path) for path in table_paths(model)}
    return {path: module for path, module in found.items() if isinstance(module, TokenTable)}


def table_paths(model: Decoder) -> tuple[str, ...]:
    """Paths of the tables that a model has."""
    return TABLES[:1] if model.config.tie_embeddings else TABLES


def attach_rows(model: Decoder, given: Mapping[str, tuple[Sequence[int], Tensor]], name: str) -> None:
    """Puts rows beside their tables: path -> ids and rows (n, hidden)."""
    for path, (indices, rows) in given.items():
        module = model.get_submodule(path)
        if not isinstance(module, TokenTable):
            module = TokenTable(module).train(model.training)
            replace_module(model, path, module)
        table = whole(module.base)
        exact = torch.float64 if table.dtype == torch.float64 else torch.float32
        module.adapters[name] = Rows(indices, rows.to(device=table.device, dtype=exact).clone(), len(table))


def new_rows(model: Decoder, config: LoraConfig) -> dict[str, tuple[Sequence[int], Tensor]]:
    """What `attach_rows` takes for a new adapter: the base's own rows.

    Raises:
        UserError: an id that the model does not have.
    """
    made: dict[str, tuple[Sequence[int], Tensor]] = {}
    for path in table_paths(model):
        module: Any = model.get_submodule(path)
        table = whole(module.base if isinstance(module, TokenTable) else module).detach()
        indices = config.tokens_of(path.rpartition(".")[2])
        if indices and max(indices) >= len(table):
            raise UserError(f"the model has no token {max(indices)}, only {len(table):,}", "token_indices")
        if indices:
            made[path] = (indices, table[list(indices)])
    return made


# -- files


def _published(model: Decoder, family: str) -> dict[str, str]:
    """Path in transformers' model -> ours."""
    shape = model.config.vocab_size, model.config.hidden_size
    embedding, *output = table_paths(model)
    names = tensor_names.to_published({f"{embedding}.weight": torch.empty(shape, device="meta")}, model.config, family)
    return {next(iter(names)).removesuffix(".weight"): embedding} | {path: path for path in output}


def take_rows(
    tensors: dict[str, dict[str, Tensor]], model: Decoder, config: LoraConfig, families: Sequence[str], file: object
) -> dict[str, tuple[Sequence[int], Tensor]]:
    """Takes the rows out of an adapter's tensors (by published path and part), as `attach_rows` wants them.

    Raises:
        UserError: rows that are missing, superfluous or of another shape.
    """
    trained = [path for path, parts in tensors.items() if "tokens" in parts]
    given = {TABLES[1] if path in OUTPUTS else path: tensors.pop(path)["tokens"] for path in trained}
    spellings = [_published(model, family) for family in families]
    names = next((names for names in spellings if given.keys() & names.keys()), spellings[0])
    made: dict[str, tuple[Sequence[int], Tensor]] = {}
    for path, rows in given.items():
        indices = config.tokens_of(path.rpartition(".")[2])
        if path not in names or not indices:
            raise UserError(f"the rows of {path!r} belong to no tokens of this model that the adapter names", file)
        wanted = (len(indices), model.config.hidden_size)
        if rows.shape != wanted or max(indices) >= model.config.vocab_size:
            raise UserError(f"the rows of {path!r} have shape {tuple(rows.shape)}, but {wanted} are asked for", file)
        made[names[path]] = (indices, rows)
    missing = [path for path in names if config.tokens_of(path.rpartition(".")[2]) and path not in given]
    if missing:
        raise UserError(f"the rows of {missing[0]!r} are missing", file)
    return made


def rows_to_save(model: Decoder, family: str, name: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors by published name, and the value of `trainable_token_indices`: a list for a tied model, else by table."""
    tables, tensors, indices = token_tables(model), dict[str, Tensor](), dict[str, list[int]]()
    for published, path in _published(model, family).items():
        if path in tables and name in tables[path].adapters:
            rows: Any = tables[path].adapters[name]
            tensors[f"{published}.{LEAF}"] = rows.rows.detach()
            indices[published.rpartition(".")[2]] = rows.indices.tolist()
    if not indices:
        return tensors, None
    return tensors, next(iter(indices.values())) if model.config.tie_embeddings else indices
