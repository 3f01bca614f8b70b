"""One small model trained with a tokenizer, and what it needs for a byte of text it has not seen."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from yeoul import runtime
from yeoul.data.text_batches import Item, TextLoader, text_batches
from yeoul.errors import UserError
from yeoul.model.decoder import Decoder
from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig
from yeoul.recipes.options import Say, progress_line
from yeoul.recipes.saving import save_folder
from yeoul.train.compute import autocast_dtype
from yeoul.train.loop import train
from yeoul.train.loss import language_model_objective

if TYPE_CHECKING:
    from yeoul.text.tokenizer import Tokenizer

START = 0
"""The row that stands before each sequence, so that its first token is predicted too; tokens have the rows behind."""
LOST_BITS = 8
"""Charged for each byte of text that a tokenizer loses: what it takes to write it down."""
SCORED = 64
"""Sequences scored at a time."""


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """A model trained with one tokenizer on the same text as with the others.

    Attributes:
        bits_per_byte: of held-out text: the bits of all its tokens, and `LOST_BITS` for each byte that the tokenizer
            loses, over its UTF-8 bytes.
        lost_bytes: of held-out text.
        inner: parameters without the embedding, which is the output projection too: the same with all tokenizers.
        embedding: parameters of the embedding.
        rows: of the embedding; fewer than the vocabulary where only the tokens of the text have one.
        trained_bytes, trained_tokens: that were read.
        seconds: of training.
        read_rate: megabytes of held-out text that it scores in a second; on the CPU, of processor time.
    """

    bits_per_byte: float
    lost_bytes: int
    inner: int
    embedding: int
    rows: int
    trained_bytes: int
    trained_tokens: int
    seconds: float
    read_rate: float

    @property
    def parameters(self) -> int:
        return self.inner + self.embedding

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"parameters": self.parameters}


def train_small_model(
    tokenizer: Tokenizer,
    train_texts: Sequence[str],
    held_out: Sequence[str],
    config: CompareTokenizersConfig,
    folder: Path,
    *,
    device: str,
    name: str,
    say: Say,
) -> SmallModel:
    """Train on the texts once, in an order that is the same for every tokenizer, and score the held-out ones.

    Called again with the same folder it goes on where it stopped.

    Raises:
        UserError: the texts, shape or folder cannot be used.
    """
    place = runtime.resolve_device(device)
    runtime.set_threads()
    ids, unseen = tokenizer.encode_batch(train_texts), tokenizer.encode_batch(held_out)
    rows = _rows(tokenizer, [*ids, *unseen], config.most_rows)
    items, scored = ([_item(own, rows) for own in texts] for texts in (ids, unseen))
    longest = max(len(item[0]) for item in (*items, *scored))
    runtime.seed_everything(config.seed)
    model = Decoder(config.small_shape(int(rows.max()) + 1, longest)).to(place)
    if model.output_weight is not model.model.embed_tokens.weight:
        raise UserError(f"the preset {config.preset} has an output projection of its own", "--preset", "use another")
    settings = config.training(len(items))
    loader = TextLoader(
        items, None, batch_size=config.batch_size, seed=config.seed, pad_id=START, bucket_by_length=False
    )
    result = train(
        model, loader, language_model_objective, settings, folder,
        save_model=lambda target: save_folder(model, None, target), name=name,
        identity={**model.config.to_dict(), "tokenizer": tokenizer.fingerprint},
        progress=progress_line(name, settings.steps, say),
    )  # fmt: skip
    model.eval()
    clock = time.process_time if place.type == "cpu" else time.perf_counter
    start = clock()
    nats = _nats(model, scored, settings.dtype, place)
    seconds = clock() - start
    size = sum(len(text.encode()) for text in held_out)
    lost = sum(lost_bytes(tokenizer, text) for text in held_out)
    embedding = model.output_weight.numel()
    return SmallModel(
        bits_per_byte=(nats / math.log(2) + LOST_BITS * lost) / size, lost_bytes=lost,
        inner=model.num_parameters() - embedding, embedding=embedding, rows=len(model.output_weight),
        trained_bytes=sum(len(text.encode()) for text in train_texts), trained_tokens=sum(map(len, ids)),
        seconds=result.seconds, read_rate=size / seconds / 1e6,
    )  # fmt: skip


def lost_bytes(tokenizer: Tokenizer, text: str) -> int:
    """UTF-8 bytes of a text that became unknown tokens."""
    unknown = tokenizer.unk_id
    if unknown is None or unknown not in tokenizer.encode(text):
        return 0
    ids, spans = tokenizer.encode_with_spans(text)
    return sum(len(text[a:b].encode()) for token, (a, b) in zip(ids, spans, strict=True) if token == unknown)


def _rows(tokenizer: Tokenizer, ids: Sequence[Sequence[int]], most: int) -> np.ndarray:
    """(V,) int64: the row of each id; -1 where it has none, because a large vocabulary is cut to what occurs."""
    size = tokenizer.vocab_size
    if size <= most:
        return np.arange(1, size + 1, dtype=np.int64)
    used = np.unique(np.concatenate([np.asarray(own, dtype=np.int64) for own in ids]))
    rows = np.full(size, -1, dtype=np.int64)
    rows[used] = np.arange(1, len(used) + 1)
    return rows


def _item(ids: Sequence[int], rows: np.ndarray) -> Item:
    return (np.concatenate([[START], rows[np.asarray(ids, dtype=np.int64)]]),)


def _nats(model: Decoder, items: Sequence[Item], dtype: Any, device: torch.device) -> float:
    """The negative log-likelihood of all tokens together."""
    to = autocast_dtype(CompareTokenizersConfig(dtype=dtype).training(1), device)
    total = 0.0
    for _, batch in text_batches(items, None, batch_size=SCORED, pad_id=START):
        with torch.no_grad(), torch.autocast(device.type, to, enabled=to is not None):
            total += float(language_model_objective(model, batch.to(device)).total)
    return total
