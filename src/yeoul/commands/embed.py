"""`yeoul embed`: vectors of texts, and the texts nearest to a query."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.files import only_writer
from yeoul.foreign_text import say
from yeoul.units import count


@dataclass(frozen=True)
class Config:
    """Turn texts into vectors, or find the texts nearest to a query.

    Row n of the result is text n of the data. A .parquet file holds the texts with their vectors, a .npy file only
    the vectors (float32). With --query, the data may be such a file; then only the query is computed.
    """

    model: Place
    """Model folder, GGUF file, run folder, adapter folder, or id on the Hugging Face hub."""
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
    """Dtype of the weights: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("no data was given", "--data", "give a file, such as --data texts.txt")
        if self.out is None and self.query is None:
            raise UserError("there is nothing to do", fix="give --out vectors.npy, or --query TEXT")
        if self.out is not None and self.out.suffix not in (".npy", ".parquet"):
            raise UserError("vectors are written as .npy or .parquet files", f"--out {self.out}")
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
        _run(config)
    return 0


def _run(config: Config) -> None:
    from yeoul.commands.terminal import note
    from yeoul.recipes import embed

    query, searched = config.query, config.query is not None
    texts, vectors = embed.read_known(
        config.data, config.vectors, searched=searched, text_column=config.text_column, reading=config.reading
    )
    embedder = embed.load_embedder(
        config.model, pooling=config.pooling, normalize=config.normalize, adapter=config.adapter,
        device=config.device, dtype=config.dtype,
    )  # fmt: skip
    reading = embedder.reading
    name = embed.document_prompt(reading, config.prompt_name, searched=searched)
    before = reading.prompt(name) if config.prompt is None else config.prompt
    asked = None if query is None else reading.prompt(embed.query_prompt(reading, config.query_prompt_name))
    if not embedder.made_for_it:
        ways, train = " and ".join(embedder.vectors.pooling), f"yeoul finetune {shlex.quote(config.model)} --task embed"
        what = f"This model was not trained for vectors of texts: they are the {ways} of its last states."
        note(f"{what} To train it: {train} --data PAIRS")
    for line in embed.prompt_lines(reading, before if vectors is None else None, asked):
        note(line)
    if vectors is None:
        vectors = embedder(texts, batch_size=config.batch_size, context=config.context, prompt=before).numpy()
    if config.out is not None:
        embed.write_vectors(config.out, texts, vectors)
        print(f"Wrote {count(len(vectors), 'vector')} of {vectors.shape[1]:,} numbers to {config.out}.")
    if query is not None:
        how: Any = {"prompt_name": config.query_prompt_name, "context": config.context}
        for row, score in embed.search(embedder, query, vectors, config.top, config.vectors or config.data, **how):
            say(f"{score:.4f}\t{row + 1}\t{' '.join(texts[row].split())}")
