"""`yeoul embed`: vectors of texts, and the texts nearest to a query."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Columns, Reading
from yeoul.errors import UserError, shown
from yeoul.files import new_file, only_writer
from yeoul.foreign_text import say
from yeoul.units import count

if TYPE_CHECKING:
    import numpy as np
    import torch

    from yeoul.infer.texts import TextEmbedder
    from yeoul.model.heads import Pooling

KINDS = (".npy", ".parquet")


@dataclass(frozen=True)
class Config:
    """Turn texts into vectors, or find the texts nearest to a query.

    Row n of the result is text n of the data. A .parquet file holds the texts with their vectors, a .npy file only
    the vectors (float32). With --query, the data may be such a file; then only the query is computed.
    """

    model: Place
    """Model folder, run folder, adapter folder, or id on the Hugging Face hub."""
    _: KW_ONLY
    data: Place = ""
    """Texts: .txt with one per line, or a table with a text column; with --query also a .parquet that embed wrote."""
    out: Path | None = None
    """File for the vectors: .npy or .parquet."""
    text_column: str | None = None
    """Column with the text; when not given, it is looked up by its usual names."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    query: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Print the texts nearest to this one."""
    top: int = 5
    """Number of nearest texts to print."""
    vectors: Path | None = None
    """Vectors of --data that embed wrote as .npy, to be searched by --query."""
    pooling: Literal["mean", "last", "cls", "max", "mean_sqrt_len", "weightedmean"] | None = None
    """Pooling over tokens: mean of all, the last one, or another way of sentence-transformers; when not given, as the
    folder says, else mean."""
    normalize: bool | None = None
    """Scale vectors to length 1, so that their products are cosines; when not given, as the folder says, else yes."""
    prompt_name: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Which of the folder's prompts to put before each text of --data; "" for none. When not given, its default prompt;
    with --query, its prompt for documents."""
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Text to put before each text of --data, instead of one of the folder's prompts."""
    query_prompt_name: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Which of the folder's prompts to put before --query; "" for none. When not given, the one named query, else its
    default prompt."""
    batch_size: int = 32
    """Texts at a time; the vectors do not depend on it."""
    context: int | None = None
    """Read at most this many tokens of each text; when not given, as many as the model allows."""
    adapter: Place | None = None
    """LoRA adapter for the model: a folder, or an id on the Hugging Face hub."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Number type of the weights: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("no data was given", "--data", "give a file, such as --data texts.txt")
        if self.out is None and self.query is None:
            raise UserError("there is nothing to do", fix="give --out vectors.npy, or --query TEXT")
        if self.out is not None and self.out.suffix not in KINDS:
            raise UserError(f"vectors are written as {' or '.join(KINDS)} files", f"--out {self.out}")
        if self.vectors is not None and (self.query is None or self.vectors.suffix != ".npy"):
            raise UserError("--vectors must be a .npy file, and needs --query", str(self.vectors))
        if self.prompt is not None and self.prompt_name is not None:
            raise UserError("a prompt is given as a text or by its name, not both", "--prompt-name", "leave one out")
        if self.query_prompt_name is not None and self.query is None:
            raise UserError("there is no query", "--query-prompt-name", "add --query TEXT")
        for flag, value in (("top", self.top), ("batch-size", self.batch_size), ("context", self.context)):
            if value is not None and value < 1:
                raise UserError(f"--{flag} is {value}, but must be at least 1")


def run(config: Config) -> int:
    """Embed, write, search."""
    from yeoul import runtime
    from yeoul.data.result_folders import refuse_inside

    runtime.set_threads()
    refuse_inside(config.out, config.data)
    with nullcontext() if config.out is None else only_writer(config.out):
        return _run(config)


def _run(config: Config) -> int:
    from yeoul.commands.terminal import note

    texts, vectors = _known(config)
    embedder = load_embedder(
        config.model, pooling=config.pooling, normalize=config.normalize, adapter=config.adapter,
        device=config.device, dtype=config.dtype,
    )  # fmt: skip
    for line in _notes(config, embedder, vectors is None):
        note(line)
    if vectors is None:
        vectors = embedder.embed(
            texts, batch_size=config.batch_size, context=config.context, prompt=config.prompt,
            prompt_name=_document_prompt(config, embedder),
        ).numpy()  # fmt: skip
    if config.out is not None:
        _write(config.out, texts, vectors)
        print(f"Wrote {count(len(vectors), 'vector')} of {vectors.shape[1]:,} numbers to {config.out}.")
    if config.query is not None:
        _search(config, embedder, texts, vectors)
    return 0


def load_embedder(
    path: str | Path,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    adapter: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> TextEmbedder:
    """A model that turns texts into vectors: `.embed(texts)`.

    Args:
        path, adapter, device, dtype: as for `yeoul.load`.
        pooling: None takes what the model's or the adapter's folder says, else "mean".
        normalize: vectors of length 1; None as the folder says, else so.

    Raises:
        UserError: as `yeoul.load`; no tokenizer; a folder whose vectors are made in a way that is not known here.
    """
    from dataclasses import replace

    from yeoul import load
    from yeoul.hub import local_folder
    from yeoul.infer.texts import TextEmbedder
    from yeoul.model.heads import TextVectors
    from yeoul.model.pooling_folder import vectors_of
    from yeoul.model.vector_settings import Reading

    folder = local_folder(path)
    model, tokenizer = load(folder, device=device, dtype=dtype, adapter=adapter)
    if tokenizer is None:
        raise UserError("the model's folder has no tokenizer", folder, "copy the tokenizer files into it")
    hidden = model.config.hidden_size
    found = vectors_of((folder,) if adapter is None else (local_folder(adapter), folder), hidden, pooling)
    vectors, reading = found or (TextVectors(pooling or "mean"), Reading())
    reading = reading if normalize is None else replace(reading, normalize=normalize)
    return TextEmbedder(model, tokenizer, vectors.to(model.device).eval(), reading, found is not None)


DOCUMENTS = ("document", "passage", "corpus")
"""What sentence-transformers calls the prompt for texts that are looked through, the first that is there."""


def _document_prompt(config: Config, embedder: TextEmbedder) -> str | None:
    """Name of the prompt before the texts of --data, where none is given as a text."""
    if config.prompt_name is not None or config.query is None or not embedder.reading.prompts:
        return config.prompt_name
    return next((name for name in DOCUMENTS if name in embedder.reading.prompts), "")


def _query_prompt(config: Config, embedder: TextEmbedder) -> str | None:
    """That before the query."""
    if config.query_prompt_name is None and "query" in embedder.reading.prompts:
        return "query"
    return config.query_prompt_name


def _notes(config: Config, embedder: TextEmbedder, computes: bool) -> list[str]:
    """What decides the vectors and is not to be seen in them."""
    reading, lines = embedder.reading, list[str]()
    if not embedder.made_for_it:
        ways = " and ".join(embedder.vectors.pooling)
        lines.append(
            f"This model was not trained for vectors of texts: they are the {ways} of its last states. To train it: "
            f"yeoul finetune {shlex.quote(config.model)} --task embed --data PAIRS"
        )
    before = []
    of_texts = reading.prompt(_document_prompt(config, embedder)) if config.prompt is None else config.prompt
    if computes and of_texts:
        before.append(f"{shown(of_texts)} before each text")
    if config.query is not None and (of_query := reading.prompt(_query_prompt(config, embedder))):
        before.append(f"{shown(of_query)} before the query")
    if before:
        lines.append(f"Prompts: {', '.join(before)}.")
    elif any(reading.prompts.values()):
        lines.append(f"No prompt is used; --prompt-name chooses one of the model's: {', '.join(reading.prompts)}.")
    return lines


def _known(config: Config) -> tuple[list[str], np.ndarray | None]:
    """The texts, and their vectors where they were computed before."""
    from yeoul.data.arrays import open_npy
    from yeoul.data.labelled import read_texts

    file = Path(config.data)
    if config.query is not None and file.suffix == ".parquet" and file.is_file() and (found := _read_parquet(file)):
        return found
    texts = read_texts(config.data, text_column=config.text_column, reading=config.reading)
    if config.vectors is None:
        return texts, None
    vectors = open_npy(config.vectors, "let embed write the vectors again")
    if vectors.ndim != 2 or len(vectors) != len(texts):
        what = f"the vectors have shape {vectors.shape}, which does not fit {count(len(texts), 'text')}"
        raise UserError(what, config.vectors, "give the vectors of this --data")
    vectors = _checked(vectors, config.vectors)
    return texts, vectors


def _write(file: Path, texts: list[str], vectors: np.ndarray) -> None:
    """The file, as a whole."""
    import numpy as np

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


def _arrow(file: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("a .parquet file needs the package pyarrow", file, "pip install pyarrow") from error
    return pyarrow, pyarrow.parquet


def _read_parquet(file: Path) -> tuple[list[str], np.ndarray] | None:
    """Texts and vectors of a file that `_write` made; None where it has no vectors."""
    import numpy as np

    from yeoul.data.record_files import read_records

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
    import numpy as np

    if vectors.dtype.kind not in "fiu":
        raise UserError(f"the vectors are not numbers but of type {vectors.dtype}", file)
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise UserError("the vectors have numbers that are not finite", file, "let embed write them again")
    return vectors


def _search(config: Config, embedder: TextEmbedder, texts: list[str], vectors: np.ndarray) -> None:
    """Print the nearest texts: likeness (the cosine, as a rule), number of the line or record, text."""
    from yeoul.evaluate.similarity import nearest

    assert config.query is not None
    query = embedder.embed([config.query], context=config.context, prompt_name=_query_prompt(config, embedder)).numpy()
    if query.shape[1] != vectors.shape[1]:
        what = f"the vectors have {vectors.shape[1]:,} numbers, but this model's have {query.shape[1]:,}"
        raise UserError(what, config.vectors or config.data, "give vectors of this model")
    rows, scores = nearest(query, vectors, config.top, embedder.reading.similarity)
    for row, score in zip(rows[0], scores[0], strict=True):
        say(f"{score:.4f}\t{row + 1}\t{' '.join(texts[row].split())}")
