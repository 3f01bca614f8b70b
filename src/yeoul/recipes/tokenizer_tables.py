"""What `inspect_tokenizer` found, as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from yeoul.text.inspection import CorpusFit, PieceOfText


def pieces_table(pieces: list[PieceOfText]) -> Table:
    """Ids, pieces and bytes of a text."""
    from rich.table import Table
    from rich.text import Text

    from yeoul.units import count

    table = Table(title=count(len(pieces), "token"))
    table.add_column("id", justify="right")
    table.add_column("piece")
    table.add_column("bytes")
    for piece in pieces:
        table.add_row(str(piece.id), Text(_visible(piece.piece)), piece.bytes.hex(" ").upper())
    return table


def fit_table(fit: CorpusFit, title: str) -> Table:
    """How a tokenizer fits a corpus."""
    rows = [
        ("Tokens", f"{fit.tokens:,}"),
        ("Bytes per token", _ratio(fit.bytes_per_token)),
        ("Tokens per character", _ratio(fit.tokens_per_character)),
        ("Tokens per Hangul syllable", _ratio(fit.tokens_per_syllable)),
        ("Tokens per word", _ratio(fit.tokens_per_word)),
        ("Byte-fallback tokens", "–" if fit.byte_share is None else f"{fit.byte_share:.2%}"),
        ("Unused pieces", f"{fit.unused:,} of {fit.vocab_size:,}"),
    ]
    if fit.unused_examples:
        rows.append(("Such as", "  ".join(map(_visible, fit.unused_examples))))
    return rows_table(title, rows)


def rows_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """Names and values."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _visible(piece: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in piece)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
