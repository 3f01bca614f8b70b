"""A folder with results that are written as they come, so that what is known is not computed again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yeoul.errors import UserError
from yeoul.files import remove, write_json, write_text
from yeoul.recipes.run_folder import made_in
from yeoul.safe_json import parse, read_object

SETTINGS, RESULTS = "settings.json", "results.jsonl"


def claim(folder: Path, asked: Mapping[str, Any], what: str, words: Mapping[str, str], *, overwrite: bool) -> None:
    """Takes a folder for the results of what is asked: one that has such results, or one that is ours to empty.

    Args:
        folder: the place.
        asked: all that decides a result, as values that JSON can hold.
        what: what the folder is of, for people: "sweep".
        words: what the keys of `asked` are called in messages.
        overwrite: discard what is there.

    Raises:
        UserError: the folder holds something else, or results of something else that was asked.
    """
    ours = (folder / SETTINGS).is_file()
    if made_in(folder) and not ours:
        raise UserError(f"the folder is not that of a {what}", f"--out {folder}", "choose another folder")
    if ours and not overwrite:
        before = read_object(folder / SETTINGS, finite=False, fix="start over with --overwrite")
        if other := [words.get(name, name) for name, value in asked.items() if before.get(name) != value]:
            raise UserError(
                f"the folder has results of a {what} with another {', '.join(other)}", f"--out {folder}",
                "choose another --out, or start over with --overwrite",
            )  # fmt: skip
        return
    for entry in sorted(made_in(folder), key=lambda entry: entry.name == SETTINGS):
        remove(entry)
    write_json(folder / SETTINGS, dict(asked))


class ResultsFolder:
    """`settings.json` says what was asked, `results.jsonl` has a line for each result.

    Args:
        folder: the place.
        asked, what, words: as for `claim`.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], what: str, words: Mapping[str, str]) -> None:
        self.folder, self.asked, self.what, self.words = folder, dict(asked), what, words
        self.file = folder / RESULTS

    def open(self, overwrite: bool, take: Callable[[dict[str, Any]], None]) -> None:
        """Hands on the results that are there, or begins afresh; a last line torn by a kill is dropped.

        Args:
            overwrite: discard what is there.
            take: is given each result; what it raises (ValueError, KeyError, TypeError) says that it is damaged.

        Raises:
            UserError: see `claim`.
        """
        claim(self.folder, self.asked, self.what, self.words, overwrite=overwrite)
        if not self.file.is_file():
            return
        kept = []
        for line in self.file.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                take(parse(line))
            except (ValueError, KeyError, TypeError):
                continue
            kept.append(line)
        write_text(self.file, "".join(line + "\n" for line in kept))

    def append(self, value: Mapping[str, Any]) -> None:
        """Writes one result down."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
