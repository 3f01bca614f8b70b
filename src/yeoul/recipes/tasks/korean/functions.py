"""What the task files here call: their items, their prompts, macro F1. lm-eval loads this file by its path.

Prompts are those of lm-eval's `kobest`, so that a figure on these few items means the same as one on all of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONNECTORS = {"원인": " 왜냐하면", "결과": " 그래서"}


def items(file: str, **_: Any) -> Any:
    """A `datasets.DatasetDict` with the lines of a file beside this one as its split "test"."""
    import datasets

    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return datasets.DatasetDict({"test": datasets.Dataset.from_list([json.loads(line) for line in lines])})


def copa_prompt(doc: Mapping[str, Any]) -> str:
    """The premise and the word that asks for its cause or its effect."""
    return f"{doc['premise']} {CONNECTORS[doc['question'].strip()]}"


def copa_choices(doc: Mapping[str, Any]) -> list[str]:
    """The two alternatives."""
    return [doc["alternative_1"], doc["alternative_2"]]


def hellaswag_choices(doc: Mapping[str, Any]) -> list[str]:
    """The four endings."""
    return [doc[f"ending_{number}"] for number in range(1, 5)]


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Mean of the classes' F1, of (right, predicted) pairs."""
    from sklearn.metrics import f1_score

    right, predicted = zip(*pairs, strict=True)
    return float(f1_score(right, predicted, average="macro"))
