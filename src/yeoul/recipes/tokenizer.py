"""`yeoul.train_tokenizer`: a tokenizer from files; and how a tokenizer cuts a text, and fits a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from yeoul.config import Settings
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.files import only_writer
from yeoul.recipes.options import Say, silent
from yeoul.text.training import TokenizerConfig

if TYPE_CHECKING:
    from yeoul.text.inspection import CorpusFit, PieceOfText
    from yeoul.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class DocumentOptions(Settings):
    """How the documents of a text are read."""

    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    join_by: str | None = None
    """Column by which records are joined: equal values make one document."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""

    def documents(self, data: str) -> Iterator[str]:
        """The texts."""
        from yeoul.data.documents import read_documents

        return read_documents(data, text_column=self.text_column, join_by=self.join_by, reading=self.reading)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(Settings):
    """What tokenizer is trained, and how its text is read.

    `TrainTokenizerConfig.of(vocab_size=4000, text_column="body")` takes settings by the names of the flags.
    """

    vocabulary: Annotated[TokenizerConfig, Parameter(name="*")] = field(default_factory=TokenizerConfig)
    """The tokenizer."""
    text: Annotated[DocumentOptions, Parameter(name="*")] = field(default_factory=DocumentOptions)
    """The text."""


def train_tokenizer(
    data: str,
    out: str | Path,
    config: TrainTokenizerConfig | None = None,
    *,
    overwrite: bool = False,
    say: Say | None = None,
) -> Tokenizer:
    """Train a tokenizer on text and save it as a Hugging Face folder.

    Args:
        data: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas.
        out: folder for `tokenizer.model` (not of byte-level BPE), an equivalent `tokenizer.json`, and
            `tokenizer_config.json` with a chat template.
        config: what is trained; None for the defaults.
        overwrite: replace the tokenizer in `out`.
        say: called with progress messages; None for no output.

    Raises:
        UserError: no text, a vocabulary too large or too small for it, or a tokenizer that is there already.
    """
    from yeoul.text import training
    from yeoul.text.tokenizer import Tokenizer

    config, say, out = config or TrainTokenizerConfig(), say or silent, Path(out).expanduser()
    with only_writer(out):
        if out.exists() and not out.is_dir():
            raise UserError("this is a file, not a folder", f"--out {out}")
        if Tokenizer.exists(out) and not overwrite:
            raise UserError("there is already a tokenizer", out, "replace it (--overwrite) or choose another --out")
        texts, wanted = config.text.documents(data), config.vocabulary
        most = "at most " if wanted.model_type == "char" else ""
        say(f"Training a {wanted.model_type} tokenizer of {most}{wanted.vocab_size:,} pieces ...")
        return training.train_tokenizer(texts, wanted, out)


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """A tokenizer, and what was asked of it.

    Attributes:
        tokenizer: itself.
        pieces: of a text.
        fit: to a corpus.
    """

    tokenizer: Tokenizer
    pieces: list[PieceOfText] | None
    fit: CorpusFit | None

    def figures(self) -> dict[str, Any]:
        """The tokenizer's own."""
        special = self.tokenizer.special_tokens.items()
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "special_tokens": dict(sorted(special, key=lambda item: item[1])),
            "byte_pieces": len(self.tokenizer.byte_ids),
            "chat_template": self.tokenizer.chat_template is not None,
            "fingerprint": self.tokenizer.fingerprint,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        report: dict[str, Any] = {"tokenizer": self.figures()}
        if self.pieces is not None:
            report["pieces"] = [
                {"id": p.id, "piece": p.piece, "text": p.text, "bytes": p.bytes.hex(" ").upper()} for p in self.pieces
            ]
        if self.fit is not None:
            report["corpus"] = self.fit.as_dict()
        return report


def inspect_tokenizer(
    tokenizer: str | Path | Tokenizer,
    *,
    text: str | None = None,
    data: str | None = None,
    options: DocumentOptions | None = None,
    max_documents: int | None = None,
) -> TokenizerReport:
    """How a text is tokenized, and how well a tokenizer fits a corpus.

    Args:
        tokenizer: itself, or the folder or file of one, the folder of a model or of a run, or an id on the hub.
        text: whose pieces are wanted.
        data: corpus to count over, as in `train_tokenizer`.
        options: how it is read.
        max_documents: count over the first documents only.

    Raises:
        UserError: there is no such tokenizer or corpus.
    """
    from yeoul.text.inspection import corpus_fit, pieces_of
    from yeoul.text.tokenizer import Tokenizer

    loaded = tokenizer if isinstance(tokenizer, Tokenizer) else open_tokenizer(tokenizer)
    documents = None if data is None else (options or DocumentOptions()).documents(data)
    return TokenizerReport(
        tokenizer=loaded, pieces=None if text is None else pieces_of(loaded, text),
        fit=None if documents is None else corpus_fit(loaded, islice(documents, max_documents)),
    )  # fmt: skip


def open_tokenizer(place: str | Path) -> Tokenizer:
    """The tokenizer of a folder, of a model or run, of a file NAME.json, NAME.model or NAME.gguf, or of a hub id.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from yeoul.hub import local_folder
    from yeoul.text.tokenizer import Tokenizer

    path = Path(place).expanduser()
    return Tokenizer.load(path if Tokenizer.exists(path) else local_folder(place))
