"""Text to token shards, and the score on held-out text: what every training needs before its own work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.recipes.options import Say, TextOptions, silent
from yeoul.units import count, size

if TYPE_CHECKING:
    import torch

    from yeoul.data.batch import Batch
    from yeoul.data.reading import Reading
    from yeoul.data.shards import TokenShards
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer


def token_shards(
    data: str,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    text_column: str | None = None,
    join_by: str | None = None,
    reading: Reading | None = None,
    val_fraction: float = 0.0,
    say: Say = silent,
) -> tuple[TokenShards, TokenShards | None]:
    """Training and validation tokens of some text; what lies in `folder` already is used again where it fits.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, or the data cannot be read.
    """
    from yeoul.data.documents import read_documents
    from yeoul.data.reading import Reading
    from yeoul.data.shards import build_shards
    from yeoul.data.sources import source_key

    def progress(documents: int, tokens: int, num_bytes: int) -> None:
        if documents % 20_000 == 0:
            say(f"  {count(documents, 'document')}, {count(tokens, 'token')} ({size(num_bytes)})")

    reading = reading or Reading()
    if tokenizer.framing.separator is None:
        raise UserError("the tokenizer has no end-of-sequence token", fix="train another one")
    return build_shards(
        read_documents(data, text_column=text_column, join_by=join_by, reading=reading),
        tokenizer.encode_batch,
        tokenizer.framing.separator,
        tokenizer.vocab_size,
        tokenizer.fingerprint,
        folder,
        val_fraction,
        begin=tokenizer.framing.begin,
        source_key=source_key(data, text_column=text_column, join_by=join_by, reading=reading),
        progress=progress,
        encode_in_parts=tokenizer.encode_in_parts,
    )


def train_and_val_shards(
    data: str, options: TextOptions, out: Path, tokenizer: Tokenizer, say: Say = silent
) -> tuple[TokenShards, TokenShards | None]:
    """Training and validation tokens of a run, from OUT/data and OUT/val_data when they are there already."""
    columns: dict[str, Any] = {
        "text_column": options.text_column, "join_by": options.join_by, "reading": options.reading, "say": say,
    }  # fmt: skip
    if options.val_data is None:
        return token_shards(data, out / "data", tokenizer, **columns, val_fraction=options.val_fraction)
    train, _ = token_shards(data, out / "data", tokenizer, **columns)
    val, _ = token_shards(options.val_data, out / "val_data", tokenizer, **columns)
    return train, val


def held_out(
    shards: TokenShards, *, batch_size: int, context: int, max_tokens: int | None, isolate_documents: bool = False
) -> Callable[[], Iterable[Batch]]:
    """Makes the same evaluation batches each time it is called."""
    from yeoul.data.loader import evaluation_batches

    return lambda: evaluation_batches(
        shards, batch_size=batch_size, context=context, max_tokens=max_tokens, isolate_documents=isolate_documents
    )


def validation(
    model: Decoder, batches: Callable[[], Iterable[Batch]], tokenizer: Tokenizer, dtype: torch.dtype
) -> Callable[[], dict[str, float]]:
    """What `yeoul.train.loop.train` calls to validate: loss, perplexity and bits per byte."""
    from yeoul.evaluate.perplexity import score

    lengths = tokenizer.byte_lengths()

    def validate() -> dict[str, float]:
        result = score(model, batches(), lengths, dtype=dtype)
        values = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte}
        return {key: value for key, value in values.items() if value is not None}

    return validate
