"""Adapters of the embedding and the output layer, the tables with a row for each token.

An adapter may have a low-rank part beside a table, rows of its own for a few tokens (PEFT's trainable tokens), or both;
the rows take precedence. Where output and embedding are one table, one low-rank part is looked up and multiplied with,
as one weight is.

A low-rank part cannot teach a model a token that it has never met, such as those of a chat template: its row of the
output lies where training left all that never came, and the frozen states cannot tell it from them. Hence the rows.

Shapes: V vocabulary, M width, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.adapt.lora.config import LoraConfig
from yeoul.adapt.lora.layers import Adapter
from yeoul.errors import UserError
from yeoul.model import tensor_names
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import QuantizedLinear, replace_module

TABLES = ("model.embed_tokens", "lm_head")
"""Paths of the modules that have a row for each token; the second only where the output is not tied."""
Use = Literal["input", "output"]
"""What a table is for: it is looked up, or multiplied with. A tied one has both uses."""
TokenRows = tuple[Sequence[int], Tensor]
"""Ids of n tokens, and their rows (n, M)."""
Parts = dict[str, dict[Use, Adapter]]
"""Low-rank parts by the path of their table and their use."""


class TableAdapter(nn.Module):
    """What one adapter does to one table.

    Args:
        parts: low-rank parts (A (r, M), B (V, r)) by use; of a tied table usually the same for both.
        rows: of the tokens that have rows of their own.
        vocabulary: V.
    """

    rows: nn.Parameter | None
    indices: Tensor
    place: Tensor

    def __init__(self, parts: Mapping[Use, Adapter], rows: TokenRows | None, vocabulary: int) -> None:
        super().__init__()
        self.input, self.output = parts.get("input"), parts.get("output")
        self.register_parameter("rows", None if rows is None else nn.Parameter(rows[1]))
        if rows is not None:
            index = torch.tensor(rows[0], dtype=torch.int64, device=rows[1].device)
            place = torch.full((vocabulary,), -1, dtype=torch.int64, device=rows[1].device)
            place[index] = torch.arange(len(index), device=index.device)
            self.register_buffer("indices", index, persistent=False)
            self.register_buffer("place", place, persistent=False)  # (V,): which row an id has, or -1

    def part(self, use: Use) -> Adapter | None:
        """The low-rank part for a use, if there is one."""
        return self.input if use == "input" else self.output

    @property
    def tied(self) -> bool:
        """Whether both uses have one function of the table, as a tied table must to be merged."""
        one, other = self.input, self.output
        if one is None or other is None:
            return one is other
        return one.A is other.A and one.B is other.B and one.scaling == other.scaling

    def factors(self, table: Tensor, use: Use) -> tuple[Tensor, Tensor, float] | None:
        """A (r, M), B (V, r) and a scaling: `table` + scaling * B A is the table with this adapter in it. Rows of
        tokens are a rank more for each. None where nothing is done."""
        part, rows = self.part(use), self.rows
        if rows is None:
            return None if part is None else (part.A, part.B, part.scaling)
        scaling = 1.0 if part is None else part.scaling
        difference = rows - table[self.indices].to(rows.dtype)
        unit = rows.new_zeros(len(table), len(rows))
        unit[self.indices, torch.arange(len(rows), device=rows.device)] = 1
        if part is None:
            return difference, unit, scaling
        others = part.B.index_fill(0, self.indices, 0)
        return torch.cat([part.A, difference / scaling]), torch.cat([others, unit], 1), scaling

    def changed(self, table: Tensor, use: Use) -> Tensor:
        """The whole table (V, M) with this adapter in it, in the table's type."""
        if (part := self.part(use)) is not None:
            table = part.merged_weight(table).to(table.dtype)
        return table if self.rows is None else table.index_copy(0, self.indices, self.rows.to(table.dtype))


class TokenTable(nn.Module):
    """An embedding or an output layer with adapters by name, of which one or none is active.

    Args:
        base: `nn.Embedding`, `nn.Linear`, or a quantized form of either.
        uses: of this table.
    """

    original: Tensor | None

    def __init__(self, base: Any, uses: tuple[Use, ...]) -> None:
        super().__init__()
        self.base, self.uses, self.adapters = base, uses, nn.ModuleDict()
        self.configs: dict[str, LoraConfig] = {}
        self.active: str | None = None
        self.register_buffer("original", None, persistent=False)  # the base's weight while another is in its place

    @property
    def _beside(self) -> TableAdapter | None:
        """The adapter that counts now and is not in the base."""
        return None if self.active is None or self.original is not None else self.adapter(self.active)

    def adapter(self, name: str) -> TableAdapter:
        """The adapter of this name."""
        return self.adapters[name]  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """(V, M): the whole table with the active adapter in it; of a tied one as it is for the output."""
        base, found = whole(self.base), self._beside
        return base if found is None else found.changed(base, self.uses[-1])

    @property
    def unchanged(self) -> Tensor:
        """(V, M): the base's own table, merged or not."""
        return whole(self.base) if self.original is None else self.original

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """A (r, M) and B (V, r): `weight` is `unchanged` + B A; None where it is `unchanged`, or merged."""
        found = None if self._beside is None else self._beside.factors(self.unchanged, self.uses[-1])
        return None if found is None else (found[0] * found[2], found[1])

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., M), of an embedding."""
        y: Tensor = self.base(ids)
        if (found := self._beside) is None:
            return y
        if (part := found.input) is not None:
            y = (y + F.embedding(ids, part.B) @ part.A * part.scaling).to(y.dtype)
        if found.rows is None:
            return y
        place = found.place[ids]
        return torch.where((place >= 0)[..., None], F.embedding(place.clamp_min(0), found.rows).to(y.dtype), y)

    def product(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., V), as an output layer; without a copy of the table."""
        y = self.base.product(x) if isinstance(self.base, QuantizedLinear) else x @ self.base.weight.to(x.dtype).T
        if (found := self._beside) is None:
            return y
        if (part := found.output) is not None:
            y = part(x, y, self.base)
        return y if found.rows is None else y.index_copy(-1, found.indices, (x @ found.rows.to(x.dtype).T).to(y.dtype))

    def check_mergeable(self) -> None:
        """UserError where the base is quantized, or one table would have to be two."""
        if isinstance(self.base, QuantizedLinear):
            what = "the base model's embeddings are quantized, so no adapter can be merged into them"
            raise UserError(what, fix="keep the adapter beside it, or give the model that it was made from")
        if self.active is not None and len(self.uses) > 1 and not self.adapter(self.active).tied:
            raise UserError(
                "the model's output is tied to its embedding, and the adapter changes the two in different ways, so "
                "it cannot be merged", fix="keep the adapter beside it",
            )  # fmt: skip

    @torch.no_grad()
    def merge(self) -> None:
        """Puts a table with the active adapter in it in the base's place; the original is kept until `unmerge`."""
        if (found := self._beside) is not None:
            weight = self.base.weight
            changed = found.changed(weight.data, self.uses[-1])
            self.original, weight.data = weight.data, changed

    def unmerge(self) -> None:
        """The base's table is the one before `merge`, bit for bit."""
        if self.original is not None:
            self.base.weight.data, self.original = self.original, None


def whole(base: Any) -> Tensor:
    """(V, M) of a table, quantized or not."""
    return base.dequantized() if isinstance(base, QuantizedLinear) else base.weight


def unchanged(module: Any) -> Tensor:
    """(V, M) of a table as the base model has it, whether there are adapters or not; without a gradient."""
    return (module.unchanged if isinstance(module, TokenTable) else whole(module)).detach()


def exact_type(table: Tensor) -> torch.dtype:
    """Of an adapter's numbers: fp32, or fp64 over fp64."""
    return torch.float64 if table.dtype == torch.float64 else torch.float32


def token_tables(model: Decoder) -> dict[str, TokenTable]:
    """The adapted ones by path."""
    found = {path: model.get_submodule(path) for path in table_uses(model)}
    return {path: module for path, module in found.items() if isinstance(module, TokenTable)}


def table_uses(model: Decoder) -> dict[str, tuple[Use, ...]]:
    """Paths of the tables that a model has -> their uses."""
    if model.config.tie_embeddings:
        return {TABLES[0]: ("input", "output")}
    return {TABLES[0]: ("input",), TABLES[1]: ("output",)}


def published_embedding(model: Decoder, family: str) -> str:
    """Path of the embedding in transformers' model."""
    return tensor_names.published_name(f"{TABLES[0]}.weight", family).removesuffix(".weight")


def attach_tables(
    model: Decoder,
    rows: Mapping[str, TokenRows],
    parts: Mapping[str, Mapping[Use, Adapter]],
    name: str,
    config: LoraConfig,
) -> None:
    """Puts rows and low-rank parts, by path, beside their tables."""
    for path, uses in table_uses(model).items():
        if path not in rows and path not in parts:
            continue
        module: Any = model.get_submodule(path)
        if not isinstance(module, TokenTable):
            module = TokenTable(module, uses).train(model.training)
            replace_module(model, path, module)
        table = unchanged(module)
        given = rows.get(path)
        if given is not None:
            given = given[0], given[1].to(device=table.device, dtype=exact_type(table)).clone()
        module.adapters[name] = TableAdapter(parts.get(path, {}), given, len(table)).train(model.training)
        module.configs[name] = config


# -- new adapters


def new_parts(model: Decoder, config: LoraConfig) -> Parts:
    """Those of a new adapter, which change nothing yet: B is zero; A is normal(0, 1 / M) for an embedding, of an output
    layer alone uniform as in `nn.Linear`.

    PEFT's A of an embedding is normal(0, 1). Its first steps would then be sqrt(3 M) times those of the linear layers,
    at the one learning rate that all of them have.

    Raises:
        UserError: with DoRA.
    """
    made: Parts = {}
    for path, uses in table_uses(model).items():
        names = (path, TABLES[1]) if len(uses) > 1 else (path,)
        if not any(config.matches(name, linear=False) for name in names):
            continue
        refuse_dora(config)
        table = unchanged(model.get_submodule(path))
        r, (V, M) = config.rank(path), table.shape
        A = table.new_empty(r, M, dtype=exact_type(table))
        if "input" in uses:
            nn.init.normal_(A, std=1 / math.sqrt(M))
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        part = Adapter(A, A.new_zeros(V, r), config.scaling(path), 0.0)
        made[path] = dict.fromkeys(uses, part)
    return made


def refuse_dora(config: LoraConfig) -> None:
    """Raises `UserError` where tables are asked to have DoRA."""
    # PEFT's lengths are those of the embedding's columns and of the output's rows: no tied table has both.
    if config.dora:
        what = "DoRA of the embedding or the output layer is not supported"
        raise UserError(what, "dora", "leave embed_tokens and lm_head out of target_modules, or DoRA")


def new_rows(model: Decoder, config: LoraConfig) -> dict[str, TokenRows]:
    """Rows of a new adapter by the path of their table: the base's own.

    Raises:
        UserError: an id that the model does not have.
    """
    made: dict[str, TokenRows] = {}
    for path in table_uses(model):
        table = unchanged(model.get_submodule(path))
        indices = config.tokens_of(path.rpartition(".")[2])
        if indices and max(indices) >= len(table):
            raise UserError(f"the model has no token {max(indices)}, only {len(table):,}", "token_indices")
        if indices:
            made[path] = (indices, table[list(indices)])
    return made
