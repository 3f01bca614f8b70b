"""Adapters of the embedding and the output layer in PEFT's files.

PEFT's matrices of an embedding are ours the other way round: `lora_embedding_A` (r, V) is our B, `lora_embedding_B`
(M, r) our A. A tied model's file has them a second time, as a linear layer's, under the name of the output.

Shapes: V vocabulary, M width, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yeoul.adapt.lora.config import OUTPUTS, LoraConfig
from yeoul.adapt.lora.embeddings import (
    TABLES,
    Parts,
    TokenRows,
    Use,
    exact_type,
    published_embedding,
    refuse_dora,
    table_uses,
    token_tables,
    unchanged,
)
from yeoul.adapt.lora.layers import Adapter
from yeoul.adapt.lora.peft_files import LEAVES, PREFIX, full_name
from yeoul.errors import UserError
from yeoul.model.decoder import Decoder
from yeoul.model.quantized import QuantizedLinear

NAMES: dict[Use, tuple[str, str]] = {"input": ("embedding_A", "embedding_B"), "output": ("A", "B")}
"""What the two matrices are called in a file, see `LEAVES`."""
ROWS = "token_adapter.trainable_tokens_delta"
"""What the rows of tokens are called in a file."""


def take_parts(
    tensors: dict[str, dict[str, Tensor]], model: Decoder, config: LoraConfig, families: Sequence[str], file: object
) -> Parts:
    """Takes the parts of tables out of an adapter's tensors (by published path and part).

    Raises:
        UserError: tensors that are missing, superfluous or do not fit; a table that the adapter brings is not the
            model's.
    """
    outputs = [path for path in tensors if path in OUTPUTS]
    spellings = [published_embedding(model, family) for family in families]
    embedding = next((path for path in spellings if path in tensors), spellings[0])
    names: dict[Use, str] = {"input": embedding, "output": outputs[0] if outputs else TABLES[1]}
    wanted: dict[Use, bool] = {
        "input": any(config.matches(name, linear=False) for name in spellings),
        "output": any(config.matches(name, linear=False) for name in OUTPUTS),
    }
    if any(wanted.values()):
        refuse_dora(config)
    tied = model.config.tie_embeddings
    found: dict[Use, Adapter] = {}
    for use, path in names.items():
        given = tensors.get(path, {})
        if not given and not wanted[use]:
            continue
        if not (any(wanted.values()) if tied else wanted[use]):
            raise UserError(f"tensor {full_name(path, next(iter(given)))} is not among the target modules", file)
        tensors.pop(path, None)
        module = model.get_submodule(TABLES[0] if tied or use == "input" else TABLES[1])
        table = unchanged(module)
        if "base" in given:
            exact = not isinstance(getattr(module, "base", module), QuantizedLinear)
            _check_table(given.pop("base"), table, exact, full_name(path, "base"), file)
        found[use] = _part(given, table, use, path, found.get("input") if tied else None, config, file)
    made: Parts = {}
    for use, part in found.items():
        made.setdefault(TABLES[0] if tied or use == "input" else TABLES[1], {})[use] = part
    return made


def _part(
    given: Mapping[str, Tensor], table: Tensor, use: Use, path: str, other: Adapter | None, config: LoraConfig,
    file: object,
) -> Adapter:  # fmt: skip
    """The part for a use out of its tensors by name; with the matrices of the `other` one where they are the same."""
    V, M = table.shape
    first, second = NAMES[use]
    for name in (first, second, *given):
        if name not in given:
            raise UserError(f"tensor {full_name(path, name)} is missing", file)
        if name not in (first, second):
            raise UserError(f"tensor {full_name(path, name)} belongs to no such module", file)
    B, A = (given[first].T, given[second].T) if use == "input" else (given[second], given[first])
    A, B = (matrix.to(table.device, exact_type(table)).contiguous() for matrix in (A, B))
    scaling = config.scaling(path)
    if other is not None and torch.equal(other.A, A) and torch.equal(other.B, B):
        return other if other.scaling == scaling else Adapter(other.A, other.B, scaling, 0.0)
    r = config.rank(path)
    shapes = {first: (r, V), second: (M, r)} if use == "input" else {first: (r, M), second: (V, r)}
    for name, shape in shapes.items():
        if tuple(given[name].shape) != shape:
            made_for = f" (the adapter was made for {config.base_model})" if config.base_model else ""
            what = f"tensor {full_name(path, name)} has shape {tuple(given[name].shape)}"
            raise UserError(f"{what}, but rank {r} and this model need {shape}{made_for}", file)
    return Adapter(A, B, scaling, 0.0)


def _check_table(given: Tensor, table: Tensor, exact: bool, name: str, file: object) -> None:
    """PEFT writes the model's own tables beside the adapter; here they are only compared, `exact` or by their shape."""
    fix = "give the model that the adapter was made for"
    if given.shape != table.shape:
        what = f"tensor {name} has shape {tuple(given.shape)}, and the model's table {tuple(table.shape)}"
        raise UserError(what, file, fix)
    given = given.to(table.device)
    if exact and not torch.equal(given.to(table.dtype), table) and not torch.equal(given, table.to(given.dtype)):
        raise UserError(f"tensor {name} is another table than the model's", file, fix)


def take_rows(
    tensors: dict[str, dict[str, Tensor]], model: Decoder, config: LoraConfig, families: Sequence[str], file: object
) -> dict[str, TokenRows]:
    """Takes the rows out of an adapter's tensors (by published path and part); by the path of their table.

    Raises:
        UserError: rows that are missing, superfluous or of another shape.
    """
    trained = [path for path, parts in tensors.items() if "tokens" in parts]
    given = {TABLES[1] if path in OUTPUTS else path: tensors[path].pop("tokens") for path in trained}
    for path in [path for path, parts in tensors.items() if not parts]:
        del tensors[path]
    outputs = {path: path for path in table_uses(model) if path != TABLES[0]}
    spellings = [{published_embedding(model, family): TABLES[0]} | outputs for family in families]
    names = next((names for names in spellings if given.keys() & names.keys()), spellings[0])
    made: dict[str, TokenRows] = {}
    for path, rows in given.items():
        indices = config.tokens_of(path.rpartition(".")[2])
        if path not in names or not indices:
            raise UserError(f"the rows of {path!r} do not belong to any tokens that the adapter names", file)
        wanted = (len(indices), model.config.hidden_size)
        if rows.shape != wanted or max(indices) >= model.config.vocab_size:
            raise UserError(f"the rows of {path!r} have shape {tuple(rows.shape)}, but {wanted} is needed", file)
        made[names[path]] = (indices, rows)
    missing = [path for path in names if config.tokens_of(path.rpartition(".")[2]) and path not in given]
    if missing:
        raise UserError(f"the rows of {missing[0]!r} are missing", file)
    return made


class SavedTables(NamedTuple):
    """What a file gets of the tables: tensors by full name, ranks and scalings of the low-rank parts by path, the
    value of `trainable_token_indices`, and whether embedding and output have one part."""

    tensors: dict[str, Tensor]
    ranks: dict[str, int]
    scalings: dict[str, float]
    indices: list[int] | dict[str, list[int]] | None
    tied: bool


def tables_to_save(model: Decoder, family: str, name: str) -> SavedTables:
    """An adapter's tables as PEFT has them.

    PEFT has no rows of tokens beside a low-rank part of the same table. There the rows go into the part, as a rank
    more for each: the same function.
    """
    names: dict[Use, str] = {"input": published_embedding(model, family), "output": TABLES[1]}
    leaves = {short: leaf for leaf, short in LEAVES.items()}
    tensors, indices = dict[str, Tensor](), dict[str, list[int]]()
    ranks, scalings, tied = dict[str, int](), dict[str, float](), False
    for table in token_tables(model).values():
        if name not in table.adapters:
            continue
        adapter, base = table.adapter(name), table.unchanged.detach()
        if adapter.input is None and adapter.output is None:
            assert adapter.rows is not None
            path = names[table.uses[0]]
            tensors[f"{PREFIX}{path}.{ROWS}"] = adapter.rows.detach()
            indices[path.rpartition(".")[2]] = adapter.indices.tolist()
            continue
        tied = len(table.uses) > 1 and adapter.tied
        for use in table.uses:
            factors = adapter.factors(base, use)
            if factors is None:
                continue
            A, B, scalings[names[use]] = factors
            ranks[names[use]] = len(A)
            matrices = (B.T, A.T) if use == "input" else (A, B)
            for short, matrix in zip(NAMES[use], matrices, strict=True):
                tensors[f"{PREFIX}{names[use]}.{leaves[short]}"] = matrix
    value = None if not indices else next(iter(indices.values())) if model.config.tie_embeddings else indices
    return SavedTables(tensors, ranks, scalings, value, tied)
