"""What a quantization leaves beside its result: what it was made from, and its scores or that there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yeoul.safe_json import read_object

RECORD = "quantize.json"
"""In the result's folder."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `yeoul quantize` left beside a model: its source, and perplexities; None where there is no such record.

    Returns:
        "model" (str), "scored" (bool), "before" and "after", each a perplexity or None.
    """
    if not (folder / RECORD).is_file():
        return None
    found = read_object(folder / RECORD)
    sides = [found.get(name) for name in ("before", "after")]
    scores = [side.get("perplexity") if isinstance(side, dict) else None for side in sides]
    before, after = (score if isinstance(score, int | float) else None for score in scores)
    scored = before is not None and after is not None
    return {"model": str(found.get("model")), "scored": scored, "before": before, "after": after}
