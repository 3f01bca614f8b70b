"""Tokenised documents on disk, memory-mapped: `tokens.bin`, `offsets.npy` and `meta.json` in one folder."""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from yeoul.data.arrays import open_npy
from yeoul.data.windows import TextStream
from yeoul.errors import UserError
from yeoul.files import replace_folder, write_json
from yeoul.safe_json import read_object

FORMAT_VERSION = 1
_CHARACTERS = 2**21
"""Of the documents that are encoded together."""
_DAMAGED = "delete the folder and prepare the data again"
EncodeBatch = Callable[[list[str]], list[list[int]]]
EncodeInParts = Callable[[str], Iterable[list[int]]]
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ShardMeta:
    """What `meta.json` says.

    Attributes:
        tokens, documents: how many; `tokens` counts the end-of-sequence token after each document.
        bytes: UTF-8 bytes of the text of the documents.
        eos_id, vocab_size, fingerprint: of the tokenizer.
        source_key: what the caller says that the documents come from; None is never reused.
        val_fraction, seed: how documents were divided between training and validation.
    """

    version: int
    tokens: int
    documents: int
    bytes: int
    eos_id: int
    vocab_size: int
    fingerprint: str
    source_key: str | None
    val_fraction: float
    seed: int


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenShards:
    """Documents as token ids, each followed by the end-of-sequence id, memory-mapped read-only.

    Begin tokens are not stored, so that the files depend on nothing but text and vocabulary; `begin` is what the
    sequences that are made of them begin with.
    """

    def __init__(
        self, folder: Path, meta: ShardMeta, tokens: np.ndarray, offsets: np.ndarray, begin: Sequence[int] = ()
    ) -> None:
        self.folder, self.meta, self.begin = folder, meta, tuple(begin)
        self.tokens = tokens
        """(num_tokens,) uint16 or uint32."""
        self.offsets = offsets
        """(num_documents + 1,) int64: where each document begins, and the end."""

    @classmethod
    def open(cls, folder: str | Path, begin: Sequence[int] = ()) -> TokenShards:
        """Open a folder that `build_shards` wrote.

        Args:
            folder: with `tokens.bin`, `offsets.npy` and `meta.json`.
            begin: tokens that stand before every text of the model, `Tokenizer.framing.begin`.

        Raises:
            UserError: not there, damaged, or cut off.
        """
        folder = Path(folder)
        meta = _read_meta(folder)
        path = folder / "tokens.bin"
        dtype = _dtype(meta.vocab_size)
        expected = meta.tokens * dtype.itemsize
        try:
            size = path.stat().st_size
            if size != expected:
                raise UserError(f"the token file has {size} bytes instead of {expected}", path, _DAMAGED)
            tokens = np.memmap(path, dtype=dtype, mode="r", shape=(meta.tokens,))
        except (OSError, ValueError) as error:
            raise UserError(f"the token folder is damaged: {error}", folder, _DAMAGED) from error
        offsets = open_npy(folder / "offsets.npy", _DAMAGED)
        if offsets.dtype != np.int64 or offsets.shape != (meta.documents + 1,) or offsets[-1] != meta.tokens:
            raise UserError("the table of documents does not fit the tokens", folder / "offsets.npy", _DAMAGED)
        return cls(folder, meta, tokens, offsets, begin)

    @property
    def num_tokens(self) -> int:
        """Tokens, the end-of-sequence token of each document included."""
        return self.meta.tokens

    @property
    def stream(self) -> TextStream:
        """The documents as sequences are cut from them."""
        return TextStream(self.tokens, self.offsets, self.begin)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return self.meta.bytes

    @property
    def num_documents(self) -> int:
        return self.meta.documents

    @property
    def eos_id(self) -> int:
        return self.meta.eos_id

    def document(self, index: int) -> np.ndarray:
        """Ids of one document, its end-of-sequence id included: (n,) uint16 or uint32, read-only."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def _read_meta(folder: Path) -> ShardMeta:
    path = folder / "meta.json"
    if not path.exists():
        raise UserError("this is not a folder of tokens: it has no meta.json", folder)
    values = read_object(path, fix=_DAMAGED)
    try:
        if values.get("version", FORMAT_VERSION) != FORMAT_VERSION:
            raise UserError(f"the token folder has format {values['version']}, not {FORMAT_VERSION}", path, _DAMAGED)
        return ShardMeta(**{field.name: values[field.name] for field in fields(ShardMeta)})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("the description of the tokens is damaged", path, _DAMAGED) from error


class _Writer:
    """One split while it is being written."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.dtype = folder, dtype
        self.file: IO[bytes] = (folder / "tokens.bin").open("wb")
        self.ends: list[int] = [0]
        self.bytes = 0

    def add(self, ids: np.ndarray, num_bytes: int) -> None:
        self.file.write(ids.astype(self.dtype, copy=False).tobytes())
        self.ends.append(self.ends[-1] + len(ids))
        self.bytes += num_bytes

    def finish(self, **meta: Any) -> None:
        self.file.close()
        np.save(self.folder / "offsets.npy", np.asarray(self.ends, dtype=np.int64), allow_pickle=False)
        values = ShardMeta(tokens=self.ends[-1], documents=len(self.ends) - 1, bytes=self.bytes, **meta)
        write_json(self.folder / "meta.json", asdict(values), indent=2)


def _draw(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the document's index."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _batches(documents: Iterable[str], most: int) -> Iterator[list[str]]:
    """At most so many documents at a time, and no more than `_CHARACTERS`, or one that is longer: ids as Python has
    them take many times the room of the text."""
    texts: list[str] = []
    characters = 0
    for text in documents:
        if texts and (len(texts) == most or characters + len(text) > _CHARACTERS):
            yield texts
            texts, characters = [], 0
        texts.append(text)
        characters += len(text)
    if texts:
        yield texts


def _encoded(
    documents: Iterable[str],
    encode_batch: EncodeBatch,
    encode_in_parts: EncodeInParts | None,
    eos_id: int,
    vocab_size: int,
    batch: int,
) -> Generator[tuple[np.ndarray, int]]:
    """(ids with the end-of-sequence id, UTF-8 bytes) of each document.

    Documents are read, and what was encoded before is written, while a thread has the libraries encode a batch, on all
    cores; two batches are in memory at most, beside the one that is being read.
    """

    def encode(texts: list[str]) -> list[tuple[np.ndarray, int]]:
        if encode_in_parts is not None and len(texts[0]) > _CHARACTERS:  # which is then alone
            return [(_row(encode_in_parts(texts[0]), eos_id, vocab_size), len(texts[0].encode()))]
        pairs = zip(texts, encode_batch(texts), strict=True)
        return [(_row([ids], eos_id, vocab_size), len(text.encode())) for text, ids in pairs]

    worker = ThreadPoolExecutor(1, "encode")
    try:
        begun: deque[Future[list[tuple[np.ndarray, int]]]] = deque()
        for texts in _batches(documents, batch):
            begun.append(worker.submit(encode, texts))
            if len(begun) == 2:
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()
    finally:
        worker.shutdown(cancel_futures=True)


def _row(parts: Iterable[list[int]], eos_id: int, vocab_size: int) -> np.ndarray:
    """The ids of a document and the end-of-sequence id, as they are stored.

    Raises:
        ValueError: ids that the vocabulary does not have.
    """
    found = []
    for ids in chain(parts, ([eos_id],)):
        part = np.asarray(ids, dtype=np.int64)
        if len(part) and (part.min() < 0 or part.max() >= vocab_size):
            raise ValueError(f"the tokenizer gave ids outside 0 ... {vocab_size - 1}")
        found.append(part.astype(_dtype(vocab_size)))
    return np.concatenate(found)


def _write_splits(
    rows: Iterable[tuple[np.ndarray, int]],
    train: _Writer,
    val: _Writer | None,
    val_fraction: float,
    seed: int,
    progress: Progress | None,
) -> None:
    """Divide documents by the hash of their index.

    The first document is always for training. So that validation gets one of few documents, the one nearest to being
    drawn is held back until another is drawn.
    """
    held: tuple[float, tuple[np.ndarray, int]] | None = None
    tokens = num_bytes = 0
    for index, row in enumerate(rows):
        tokens, num_bytes = tokens + len(row[0]), num_bytes + row[1]
        draw = _draw(seed, index)
        if val is None or index == 0:
            train.add(*row)
        elif draw < val_fraction:
            val.add(*row)
            if held:
                train.add(*held[1])
                held = None
        elif len(val.ends) == 1 and (held is None or draw < held[0]):
            if held:
                train.add(*held[1])
            held = (draw, row)
        else:
            train.add(*row)
        if progress and (index + 1) % 1000 == 0:
            progress(index + 1, tokens, num_bytes)
    if held and val is not None:
        val.add(*held[1])
    if len(train.ends) == 1:
        raise UserError("there is no text in the data")
    if progress:
        progress(len(train.ends) + (len(val.ends) if val else 1) - 2, tokens, num_bytes)


def build_shards(
    documents: Iterable[str],
    encode_batch: EncodeBatch,
    eos_id: int,
    vocab_size: int,
    fingerprint: str,
    folder: str | Path,
    val_fraction: float = 0.0,
    *,
    seed: int = 0,
    begin: Sequence[int] = (),
    source_key: str | None = None,
    progress: Progress | None = None,
    batch_documents: int = 1000,
    encode_in_parts: EncodeInParts | None = None,
) -> tuple[TokenShards, TokenShards | None]:
    """Encode documents into `folder/train` and `folder/val`, or reuse what lies there.

    The folder appears whole or not at all, see `yeoul.files`.

    Args:
        documents: texts; not touched when the shards are reused.
        encode_batch: texts -> ids without special tokens; called in a thread, a batch at a time.
        eos_id: written after each document.
        vocab_size: ids are stored as uint16 up to 65,536, else as uint32.
        fingerprint: of the tokenizer.
        folder: where to; replaced when it holds other shards.
        val_fraction: share of documents for validation, by a hash of the index with `seed`; above zero it gets at
            least one of two or more documents.
        begin: as in `TokenShards.open`; not written.
        source_key: shards with an equal key, tokenizer and division are reused; None never reuses.
        encode_in_parts: the same of one text, some ids at a time: for documents of many megabytes.
        progress: called every 1,000 documents and at the end with documents, tokens and bytes so far.

    Returns:
        training shards, and validation shards or None.

    Raises:
        UserError: no text; the folder is in use for something else; the disk does not take it.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"the share for validation is {val_fraction}, but must be from 0 to below 1", "val_fraction")
    folder = Path(folder)
    meta = dict(
        version=FORMAT_VERSION,
        eos_id=eos_id,
        vocab_size=vocab_size,
        fingerprint=fingerprint,
        source_key=source_key,
        val_fraction=val_fraction,
        seed=seed,
    )
    if source_key is not None and (found := _reusable(folder, meta, begin)):
        return found
    if folder.exists() and not _is_ours(folder):
        raise UserError("the folder for the tokens holds something else", folder, "name another folder")

    def write(new: Path) -> None:
        train = _Writer(new / "train", _dtype(vocab_size))
        val = _Writer(new / "val", _dtype(vocab_size)) if val_fraction > 0 else None
        with closing(_encoded(documents, encode_batch, encode_in_parts, eos_id, vocab_size, batch_documents)) as rows:
            _write_splits(rows, train, val, val_fraction, seed, progress)
        train.finish(**meta)
        if val is not None and len(val.ends) > 1:
            val.finish(**meta)
        elif val is not None:
            val.file.close()
            shutil.rmtree(val.folder)

    replace_folder(folder, write)
    return _open_splits(folder, begin)


def _open_splits(folder: Path, begin: Sequence[int]) -> tuple[TokenShards, TokenShards | None]:
    val = TokenShards.open(folder / "val", begin) if (folder / "val").exists() else None
    return TokenShards.open(folder / "train", begin), val


def _reusable(
    folder: Path, meta: dict[str, Any], begin: Sequence[int]
) -> tuple[TokenShards, TokenShards | None] | None:
    """The shards in the folder if they are whole and were made in the same way."""
    try:
        train, val = _open_splits(folder, begin)
    except UserError:
        return None  # what is damaged is made again
    if val is None and train.num_documents > 1 and meta["val_fraction"] > 0:
        return None
    return (train, val) if all(getattr(train.meta, key) == value for key, value in meta.items()) else None


def _is_ours(folder: Path) -> bool:
    """Whether nothing in the folder would be missed: it is empty or holds shards."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {"train", "val"}
