"""A report's page as a reader of one language sees it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "hr", "link"}


class Reader(HTMLParser):
    """Collects the texts that are shown in one language; `open` are the tags that are open, as they were opened."""

    def __init__(self, language: str) -> None:
        super().__init__()
        self.language = language
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[
            tuple[str, str]
        ] = []  # (tags from the outside in, and "given" for a text of its own language, text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        hidden = any(a.get("class") == "in" and a.get("lang") != self.language for _, a in self.open)
        given = any("lang" in a and tag != "html" and a.get("class") != "in" for tag, a in self.open)
        tags = [tag for tag, _ in self.open]
        if data.strip() and not hidden and not {"script", "style", "title"} & set(tags):
            self.texts.append((" ".join(tags) + (" given" if given else ""), " ".join(data.split())))


def seen(page: str, language: str) -> list[tuple[str, str]]:
    """What is shown of a page in "en" or "ko": (tags, text) pairs."""
    reader = Reader(language)
    reader.feed(page)
    assert reader.open == []
    return reader.texts


NAMES = {
    "DiJiang", "Yeoul", "EN", "CPU", "GPU", "KL", "align", "distil", "finetune", "s", "k", "M", "B", "KiB", "MiB",
    "GiB", "pip", "install", "yeoul", "viz", "matplotlib", "top", "p", "여울", "txt", "jsonl", "csv", "parquet",
}  # fmt: skip
"""Words that belong into the sentences of either language."""


def foreign(page: str, language: str) -> list[str]:
    """Texts in the other language; commands, settings, samples and the machine's own names are nobody's language."""
    found = []
    for tags, text in seen(page, language):
        if {"pre", "dd", "details", "given"} & set(tags.split()):
            continue
        words = re.findall(r"[가-힣]+" if language == "en" else r"[A-Za-z]+", text)
        if any(word not in NAMES for word in words):
            found.append(text)
    return found
