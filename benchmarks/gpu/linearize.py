"""The model of `train`, linearized by the product with a sixteenth of its tokens, and compared with it."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu import train
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.setting import Setting

import yeoul
from yeoul.recipes.linearize.config import LinearizeConfig

SHARE = 16


def run(bench: Setting, book: Report) -> None:
    """The default conversion, and linear attention alone, of what was pretrained in this run."""
    conversions: dict[str, dict[str, Any]] = {"hybrid": {}, "dijiang": {"attention": "dijiang"}}
    for name, given in conversions.items():
        what = {"model": "160m", "kind": name, "method": "yeoul.linearize"}
        book.measure("linearize", what, bench.deadline, lambda given=given: convert(bench, given))
    book.finish(
        "linearize",
        {
            "model": "model", "kind": "attention", "tokens": "tokens", "whole_seconds": "seconds in all",
            "teacher_loss": "teacher", "loss": "held out", "retained": "gain retained", "stages": "stages",
        },
    )  # fmt: skip


def convert(bench: Setting, given: dict[str, Any]) -> Row:
    """A conversion, its losses on held-out text and what it retains of the long-context gain."""
    if bench.run_folder is None:
        return {"skipped": "no model: the stage train has made none in this run"}
    tokens = bench.train_tokens // SHARE
    small: dict[str, Any] = dict(batch_size=1, context=16, contexts=(16,), val_tokens=200, compare_tokens=100)
    data = "builtin:200KB" if bench.tiny else f"builtin:{train.BYTES}"
    config = LinearizeConfig.of(tokens=tokens, **(given | (small if bench.tiny else dict(contexts=(2048, 8192)))))
    begin = time.perf_counter()
    result = yeoul.linearize(bench.run_folder, data, config, device=bench.device.type)
    row: Row = {"tokens": tokens, "whole_seconds": round(time.perf_counter() - begin, 2)}
    row |= {"teacher_loss": result.scores["teacher"].loss, "loss": result.scores["converted"].loss}
    row["stages"] = [f"{name} {stage.tokens:,}" for name, stage in result.stages.items()]
    row["speeds"] = [record.as_dict() for record in result.speeds]
    if result.comparison is not None:
        row["comparison"] = result.comparison.as_dict()
        score = result.comparison.long_context
        if score is not None and score.measurable:
            row["retained"] = [r.retained.value for r in score.rows if r.name not in ("teacher", "cut teacher")]
    return row
