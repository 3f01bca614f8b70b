"""Train a tokenizer, or inspect one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.files import only_writer
from yeoul.foreign_text import say
from yeoul.units import count

if TYPE_CHECKING:
    from yeoul.text.inspection import CorpusFit, PieceOfText
    from yeoul.text.tokenizer import Tokenizer

SAMPLE_DOCUMENTS = 2000
"""Documents of the training text that the summary after training is counted on."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a tokenizer on text and save it as a Hugging Face folder.

    Writes tokenizer.model, an equivalent tokenizer.json and tokenizer_config.json with a chat template.
    """

    data: Place = "builtin"
    """Text: a file, a folder, a hub data set "org/name", "builtin" or "builtin:5MB"; several with commas."""
    _: KW_ONLY
    out: Path = Path("runs/tokenizer")
    """Folder for the tokenizer."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""
    overwrite: bool = False
    """Replace the tokenizer in --out, if there is one."""
    vocab_size: int = 8000
    """Number of ids, special tokens and bytes included."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Kind of tokenizer."""
    character_coverage: float = 0.9995
    """Share of the text's characters that become pieces; the rest are spelled in bytes."""
    byte_fallback: bool = True
    """Spell unknown characters in bytes instead of losing them."""
    normalization: Literal["nfc", "identity"] = "nfc"
    """nfc composes decomposed Hangul and accents; identity leaves the text as it is."""
    user_symbols: tuple[str, ...] = ()
    """Strings that are always one token, wherever they occur."""
    split_digits: bool = False
    """Make every digit a token of its own."""
    add_dummy_prefix: bool = False
    """Put a space before every text, as Llama 2 does."""
    max_sentences: int = 2_000_000
    """Train on at most this many lines, drawn evenly from the text."""
    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    join_by: str | None = None
    """Column by which records are joined: equal values make one document."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""


@dataclass(frozen=True)
class InspectConfig:
    """Show how a text is tokenized, or how well a tokenizer fits a corpus."""

    tokenizer: Place
    """Folder of the tokenizer, of a model or of a run, or an id on the hub."""
    _: KW_ONLY
    text: str | None = None
    """Text whose pieces are shown, with ids and bytes."""
    data: Place | None = None
    """Corpus to count over, given as in `yeoul tokenizer train`."""
    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    join_by: str | None = None
    """Column by which records are joined: equal values make one document."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    max_documents: int | None = None
    """Count over the first documents only."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"--max-documents is {self.max_documents}, but must be at least 1")


def run_train(config: TrainConfig) -> int:
    """Train, save and say how the tokenizer fits its text."""
    with only_writer(config.out):
        return _train(config)


def _train(config: TrainConfig) -> int:
    from yeoul.data.documents import read_documents
    from yeoul.text.inspection import corpus_fit
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    settings = TokenizerConfig(
        vocab_size=config.vocab_size,
        model_type=config.model_type,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        normalization=config.normalization,
        user_symbols=config.user_symbols,
        split_digits=config.split_digits,
        add_dummy_prefix=config.add_dummy_prefix,
        max_sentences=config.max_sentences,
    )
    if config.out.exists() and not config.out.is_dir():
        raise UserError("this is a file, not a folder", f"--out {config.out}")
    if Tokenizer.exists(config.out) and not config.overwrite:
        fix = "replace it (--overwrite) or choose another --out"
        raise UserError("there is already a tokenizer", config.out, fix)

    def documents() -> Iterator[str]:
        return read_documents(
            config.data, text_column=config.text_column, join_by=config.join_by, reading=config.reading
        )

    texts = documents()
    print(f"Training a {config.model_type} tokenizer of {config.vocab_size:,} pieces ...", flush=True)
    tokenizer = train_tokenizer(texts, settings, config.out)
    fit = corpus_fit(tokenizer, islice(documents(), SAMPLE_DOCUMENTS))
    _print_fit(fit, f"On the first {count(fit.documents, 'document')} of {config.data}")
    print(f"Saved in {config.out}; try: yeoul tokenizer inspect {config.out} --text 안녕하세요")
    return 0


def run_inspect(config: InspectConfig) -> int:
    """Print the pieces of --text and the fit to --data, or without either the tokenizer's own figures."""
    from yeoul.data.documents import read_documents
    from yeoul.hub import local_folder
    from yeoul.text.inspection import corpus_fit, pieces_of
    from yeoul.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(local_folder(config.tokenizer))
    pieces = None if config.text is None else pieces_of(tokenizer, config.text)
    fit = None
    if config.data is not None:
        texts = read_documents(
            config.data, text_column=config.text_column, join_by=config.join_by, reading=config.reading
        )
        fit = corpus_fit(tokenizer, islice(texts, config.max_documents))
    if config.json:
        say(json.dumps(_report(tokenizer, pieces, fit), ensure_ascii=False, indent=2))
        return 0
    if pieces is None and fit is None:
        _print_rows("Tokenizer", [(key, str(value)) for key, value in _figures(tokenizer).items()])
    if pieces is not None:
        _print_pieces(pieces)
    if fit is not None:
        _print_fit(fit, f"{config.data}: {count(fit.documents, 'document')}")
    return 0


def _figures(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": dict(sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])),
        "byte_pieces": len(tokenizer.byte_ids),
        "chat_template": tokenizer.chat_template is not None,
        "fingerprint": tokenizer.fingerprint,
    }


def _report(tokenizer: Tokenizer, pieces: list[PieceOfText] | None, fit: CorpusFit | None) -> dict[str, Any]:
    report: dict[str, Any] = {"tokenizer": _figures(tokenizer)}
    if pieces is not None:
        report["pieces"] = [
            {"id": p.id, "piece": p.piece, "text": p.text, "bytes": p.bytes.hex(" ").upper()} for p in pieces
        ]
    if fit is not None:
        report["corpus"] = fit.as_dict()
    return report


def _print_pieces(pieces: list[PieceOfText]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=count(len(pieces), "token"))
    table.add_column("id", justify="right")
    table.add_column("piece")
    table.add_column("bytes")
    for piece in pieces:
        table.add_row(str(piece.id), Text(_visible(piece.piece)), piece.bytes.hex(" ").upper())
    _print(table)


def _print_fit(fit: CorpusFit, title: str) -> None:
    rows = [
        ("Tokens", f"{fit.tokens:,}"),
        ("Bytes per token", _ratio(fit.bytes_per_token)),
        ("Tokens per character", _ratio(fit.tokens_per_character)),
        ("Tokens per Hangul syllable", _ratio(fit.tokens_per_syllable)),
        ("Byte-fallback tokens", "–" if fit.byte_share is None else f"{fit.byte_share:.2%}"),
        ("Unused pieces", f"{fit.unused:,} of {fit.vocab_size:,}"),
    ]
    if fit.unused_examples:
        rows.append(("Such as", "  ".join(map(_visible, fit.unused_examples))))
    _print_rows(title, rows)


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    _print(table)


def _print(table: Any) -> None:
    from rich.console import Console

    Console(highlight=False, emoji=False).print(table)


def _visible(piece: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in piece)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


SUBCOMMANDS = {"train": (TrainConfig, run_train), "inspect": (InspectConfig, run_inspect)}
