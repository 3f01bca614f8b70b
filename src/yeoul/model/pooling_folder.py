"""How a folder's model is pooled to sentence vectors, in the files of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yeoul.errors import UserError, shown
from yeoul.model.checkpoint import read_json
from yeoul.model.config import ModelConfig
from yeoul.model.heads import Pooling

FOLDER = "1_Pooling"
_MODES: dict[str, Pooling] = {"mean": "mean", "lasttoken": "last"}
_FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Keys of 1_Pooling/config.json, true for the way that is taken, and its name; newer files have only the name."""


def save_pooling(folder: Path | str, config: ModelConfig, pooling: Pooling, *, modules: bool) -> None:
    """Writes 1_Pooling/config.json, and modules.json beside it.

    Args:
        folder: of the model.
        config: its description.
        pooling: see `yeoul.model.heads.pool`.
        modules: also say what sentence-transformers is to load (transformer, pooling, vectors of length 1); not for
            models that transformers does not know.
    """
    folder = Path(folder)
    wanted = next(name for name, ours in _MODES.items() if ours == pooling)
    flags = {flag: name == wanted for flag, name in _FLAGS.items()}
    _write(folder / FOLDER / "config.json", {"word_embedding_dimension": config.hidden_size, **flags})
    if not modules:
        return
    kinds = (("Transformer", ""), ("Pooling", FOLDER), ("Normalize", "2_Normalize"))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds)
    ]
    _write(folder / "modules.json", listed)
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
    )


def load_pooling(folder: Path | str) -> Pooling | None:
    """What a folder, or the `model/` or `adapter/` of a run, says of its pooling; None where it says nothing.

    Raises:
        UserError: a pooling that is not "mean" or "last".
    """
    places = (Path(folder), Path(folder) / "model", Path(folder) / "adapter")
    file = next(
        (place / FOLDER / "config.json" for place in places if (place / FOLDER / "config.json").is_file()), None
    )
    if file is None:
        return None
    values = read_json(file)
    names = values.get("pooling_mode") or [name for flag, name in _FLAGS.items() if values.get(flag)]
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or len(names) != 1 or names[0] not in _MODES:
        raise UserError(f"the pooling {shown(names)} is not supported", file, "choose one with --pooling")
    return _MODES[names[0]]


def _write(file: Path, values: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.tmp")
    beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)
