"""Vectors of texts: the model that makes them, files of them, and the texts nearest to a query."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yeoul.data.arrays import open_npy
from yeoul.data.labelled import read_texts
from yeoul.data.reading import Columns, Reading
from yeoul.data.record_files import read_records
from yeoul.errors import UserError, shown
from yeoul.evaluate.similarity import nearest
from yeoul.files import new_file
from yeoul.gguf_header import gguf_file
from yeoul.hub import local_folder
from yeoul.infer.texts import TextEmbedder
from yeoul.model.gguf_folder import gguf_pooling
from yeoul.model.heads import Pooling, TextVectors
from yeoul.model.pooling_folder import vectors_of
from yeoul.model.vector_settings import Reading as VectorReading
from yeoul.recipes.loading import load
from yeoul.units import count

DOCUMENTS = ("document", "passage", "corpus")
"""What sentence-transformers calls the prompt for texts that are looked through, the first that is there."""


def load_embedder(
    path: str | Path,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    adapter: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> TextEmbedder:
    """A model that turns texts into vectors: `embedder(texts)` is (len(texts), width) fp32.

    Args:
        path, adapter, device, dtype: as for `yeoul.load`.
        pooling: None takes what the model's or the adapter's folder says, else "mean".
        normalize: vectors of length 1; None as the folder says, else so.

    Raises:
        UserError: as `yeoul.load`; no tokenizer; a folder whose vectors are made in a way that is not known here.
    """
    folder = local_folder(path)
    model, tokenizer = load(folder, device=device, dtype=dtype, adapter=adapter)
    if tokenizer is None:
        raise UserError("the model's folder has no tokenizer", folder, "copy the tokenizer files into it")
    hidden = model.config.hidden_size
    found = vectors_of((folder,) if adapter is None else (local_folder(adapter), folder), hidden, pooling)
    file = gguf_file(folder)
    said = found is not None
    if not said and file is not None and pooling is None:
        pooling = gguf_pooling(file)
        said = pooling is not None
    vectors, reading = found or (TextVectors(pooling or "mean"), VectorReading())
    reading = reading if normalize is None else replace(reading, normalize=normalize)
    return TextEmbedder(model, tokenizer, vectors.to(model.device).eval(), reading, said)


def document_prompt(reading: VectorReading, name: str | None, *, searched: bool) -> str | None:
    """Name of the prompt before texts.

    Args:
        name: the one that is asked for, if any.
        searched: whether a query is looked for among the texts.
    """
    if name is not None or not searched or not reading.prompts:
        return name
    return next((known for known in DOCUMENTS if known in reading.prompts), "")


def query_prompt(reading: VectorReading, name: str | None) -> str | None:
    """Name of the prompt before a query, where `name` is asked for, if any."""
    return "query" if name is None and "query" in reading.prompts else name


def prompt_lines(reading: VectorReading, of_texts: str | None, of_query: str | None) -> list[str]:
    """What stands before texts and query, for people, because it decides the vectors and is not to be seen in them.

    Args:
        of_texts, of_query: the prompts themselves; None where none is computed.
    """
    before = [f"{shown(text)} before {what}" for text, what in ((of_texts, "each text"), (of_query, "the query"))
              if text]  # fmt: skip
    if before:
        return [f"Prompts: {', '.join(before)}."]
    if any(reading.prompts.values()):
        return [f"No prompt is used; --prompt-name chooses one of the model's: {', '.join(reading.prompts)}."]
    return []


def search(
    embedder: TextEmbedder, query: str, vectors: np.ndarray, top: int = 5, where: object = None, *,
    prompt_name: str | None = None, context: int | None = None,
) -> list[tuple[int, float]]:  # fmt: skip
    """The rows of `vectors` nearest to a query, with their likeness (the cosine, as a rule), the nearest first.

    Args:
        vectors: (N, d), of `embedder`.
        top: how many.
        prompt_name: of the prompt before the query; None takes the one named query, else the folder's default one.
        context: tokens of the query that are read.
        where: where the vectors are from, for the sentence that refuses.

    Raises:
        UserError: vectors of another model.
    """
    name = query_prompt(embedder.reading, prompt_name)
    found = embedder.embed([query], context=context, prompt_name=name).numpy()
    if found.shape[1] != vectors.shape[1]:
        what = f"the vectors have {vectors.shape[1]:,} numbers, but this model's have {found.shape[1]:,}"
        raise UserError(what, where, "give vectors of this model")
    rows, scores = nearest(found, vectors, top, embedder.reading.similarity)
    return [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True)]


# -- files


def write_vectors(file: Path, texts: list[str], vectors: np.ndarray) -> None:
    """Write vectors as a .npy file, or texts with their vectors as a .parquet file; never half of it.

    Args:
        file: its ending says which.
        vectors: (N, d).

    Raises:
        UserError: it cannot be written; a .parquet file without the package pyarrow.
    """
    values = vectors.astype(np.float32)
    with new_file(file) as beside:
        if file.suffix == ".npy":
            with beside.open("wb") as opened:  # a name would get another suffix
                np.save(opened, values, allow_pickle=False)
            return
        pa, pq = _arrow(file)
        columns = {
            "text": texts,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]),
        }
        pq.write_table(pa.table(columns), beside)


def read_known(
    data: str, vectors: Path | None, *, searched: bool, text_column: str | None, reading: Reading
) -> tuple[list[str], np.ndarray | None]:
    """Texts, and their vectors where they were computed before.

    Args:
        data: texts; where they are `searched` also a .parquet file of `write_vectors`.
        vectors: a .npy file of `write_vectors`, if there is one.

    Raises:
        UserError: what there is cannot be read, or does not fit together.
    """
    file = Path(data)
    if searched and file.suffix == ".parquet" and file.is_file():
        if found := read_vectors_with_texts(file):
            return found
    texts = read_texts(data, text_column=text_column, reading=reading)
    return texts, None if vectors is None else read_vectors(vectors, len(texts))


def read_vectors(file: Path, texts: int) -> np.ndarray:
    """The vectors of a .npy file, (texts, d) float32.

    Raises:
        UserError: they are not those of so many texts, or not finite.
    """
    vectors = open_npy(file, "let embed write the vectors again")
    if vectors.ndim != 2 or len(vectors) != texts:
        what = f"the vectors have shape {vectors.shape}, which does not fit {count(texts, 'text')}"
        raise UserError(what, file, "give the vectors of this --data")
    return _checked(vectors, file)


def _arrow(file: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("a .parquet file needs the package pyarrow", file, "pip install pyarrow") from error
    return pyarrow, pyarrow.parquet


def read_vectors_with_texts(file: Path) -> tuple[list[str], np.ndarray] | None:
    """Texts and vectors of a .parquet file of `write_vectors`; None where it has no vectors."""
    names: list[str] = []

    def check_columns(columns: Columns, path: Path) -> list[str]:
        names.extend(columns.names)
        return ["text", "vector"] if {"text", "vector"} <= {*names} else names[:1]

    texts, vectors = [], []
    for where, row in read_records(file, ".parquet", check_columns):
        if not {"text", "vector"} <= {*names}:
            return None
        if isinstance(row, UserError):
            raise row
        try:
            vectors.append(np.asarray(row["vector"], dtype=np.float32))
        except (ValueError, TypeError):
            raise UserError("the vector column does not hold lists of numbers", where) from None
        texts.append(row["text"])
        if vectors[-1].ndim != 1 or vectors[-1].shape != vectors[0].shape:
            raise UserError("the vector column does not hold lists of numbers of equal length", where)
        if not isinstance(texts[-1], str):
            raise UserError("the text column does not hold text", where)
    return (texts, _checked(np.stack(vectors), file)) if vectors else None


def _checked(vectors: np.ndarray, file: Path) -> np.ndarray:
    """Vectors from a file as float32; UserError where they are none."""
    if vectors.dtype.kind not in "fiu":
        raise UserError(f"the vectors are not numbers but of type {vectors.dtype}", file)
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise UserError("the vectors have numbers that are not finite", file, "let embed write them again")
    return vectors
