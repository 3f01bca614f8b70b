"""The head of a model card: what `README.md` of a published folder says about its model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LONGEST = 65_536
"""Bytes of the card that are read."""
LONGEST_HEADER = 16_384
LONGEST_SUMMARY = 400
"""Characters of the first paragraph."""
KEYS = ("license", "license_name", "license_link", "language", "base_model", "tags")
MOST_VALUES = 30


def read_card(folder: Path) -> dict[str, Any] | None:
    """Licence, languages, base model, tags and the first paragraph; None where there is no readable card.

    Values are texts or lists of texts. A header that is not YAML is left out: a card is for people.
    """
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(LONGEST).decode("utf-8", "replace").removeprefix("\ufeff")
    except OSError:
        return None
    header, body = _split(text.replace("\r\n", "\n"))
    values = _header(header)
    facts = {key: value for key in KEYS if (value := _plain(values.get(key)))}
    summary = _first_paragraph(body)
    return facts | ({"summary": summary} if summary else {})


def _split(text: str) -> tuple[str, str]:
    if not text.startswith("---\n"):
        return "", text
    end = text.find("\n---", 3)
    return (text[4 : end + 1], text[end + 4 :].partition("\n")[2]) if end >= 0 else ("", text)


def _header(text: str) -> dict[str, Any]:
    """The YAML header with every scalar as text: a language called "no" stays "no"."""
    import yaml

    # Anchors are refused: a few lines of them can stand for more text than there is memory.
    if len(text) > LONGEST_HEADER or re.search(r"(^|[\s\[{,:-])[&*]\w", text):
        return {}
    try:
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _plain(value: object) -> str | list[str] | None:
    if isinstance(value, str):
        return _printable(value)[:200] or None
    if isinstance(value, list):
        return [_printable(item)[:100] for item in value if isinstance(item, str)][:MOST_VALUES] or None
    return None


def _printable(text: str) -> str:
    """One line without control characters, which could write anywhere on a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _first_paragraph(body: str) -> str:
    """The first paragraph that is prose: no heading, table, picture, list or HTML."""
    lines: list[str] = []
    fenced = commented = False
    for line in (line.strip() for line in body.split("\n")):
        if line.startswith(("```", "~~~")):
            fenced = not fenced
        prose = not fenced and not commented and bool(line) and not line.startswith(_NO_PROSE)
        commented = (commented or line.startswith("<!--")) and "-->" not in line
        if prose:
            lines.append(line)
        elif lines:
            break
    text = " ".join(lines)[: 10 * LONGEST_SUMMARY]
    text = re.sub(r"\[([^][]{1,200})\]\([^()]{0,400}\)", r"\1", text)  # links
    text = _printable(text.replace("**", "").replace("__", "").replace("`", ""))
    return text if len(text) <= LONGEST_SUMMARY else text[:LONGEST_SUMMARY].rpartition(" ")[0] + " ..."


_NO_PROSE = ("#", "<", "|", "![", "[![", "---", "===", "***", "```", "~~~", "- ", "* ", "+ ", ">")
