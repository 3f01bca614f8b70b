"""Rows of the embedding, and of an output layer of its own, that an adapter trains: PEFT's trainable tokens.

A low-rank part cannot teach a model a token that it has never met, such as those of a chat template: its row of the
output lies where training left all that never came, and the frozen states tell it from nothing. So an adapter may bring
whole rows for a few tokens, which take the place of the base's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from yeoul.adapt.lora.layers import OUTPUTS, LoraConfig
from yeoul.adapt.lora.tables import TABLES, TokenRows, published_embedding, table_uses, unchanged
from yeoul.errors import UserError
from yeoul.model.decoder import Decoder

LEAF = "token_adapter.trainable_tokens_delta"


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
            raise UserError(f"the rows of {path!r} belong to no tokens of this model that the adapter names", file)
        wanted = (len(indices), model.config.hidden_size)
        if rows.shape != wanted or max(indices) >= model.config.vocab_size:
            raise UserError(f"the rows of {path!r} have shape {tuple(rows.shape)}, but {wanted} are asked for", file)
        made[names[path]] = (indices, rows)
    missing = [path for path in names if config.tokens_of(path.rpartition(".")[2]) and path not in given]
    if missing:
        raise UserError(f"the rows of {missing[0]!r} are missing", file)
    return made
