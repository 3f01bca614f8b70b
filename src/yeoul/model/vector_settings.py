"""How sentence-transformers reads texts before a model sees them, and compares the vectors: what its two files say.

`config_sentence_transformers.json` has the prompts and the likeness, `sentence_bert_config.json` the length and the
case. Keys that are not known here are refused by name, for each might change a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from yeoul.errors import UserError, shown
from yeoul.safe_json import read_object

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
SETTINGS, TEXTS = "config_sentence_transformers.json", "sentence_bert_config.json"
TEXTS_ONCE = tuple(
    f"sentence_{name}_config.json" for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""What the second file was called for other models; the first that is there counts."""
_TOKENIZER, _UNBOUNDED = "tokenizer_config.json", 10**9
_NEUTRAL_ARGUMENTS = frozenset({
    "torch_dtype", "dtype", "attn_implementation", "trust_remote_code", "device_map", "use_safetensors", "revision",
    "token", "local_files_only", "cache_dir", "low_cpu_mem_usage", "add_pooling_layer", "use_fast", "padding_side",
    "use_cache",
})  # fmt: skip
"""Arguments of transformers' loading that do not change the states of a text."""
_FIXED: dict[str, tuple[Any, ...]] = {
    "transformer_task": (None, "feature-extraction"), "module_output_name": (None, "token_embeddings"),
    "modality_config": (None, {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}),
    "unpad_inputs": (None, True, False), "processing_kwargs": (None, {}), "truncate_dim": (None,),
    "model_type": (None, "SentenceTransformer"),
}  # fmt: skip
"""Keys of newer files, and the values that mean what is done here."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts are read, and their vectors compared.

    Attributes:
        prompts: texts that may stand before a text, by name.
        default_prompt: name of the one that does where none is chosen; None for none.
        counts: the prompt's tokens are pooled with the text's.
        longest: tokens that are read of a text, with the prompt's; None for what the model's length allows.
        lower_case: texts are read in lower case.
        normalize: vectors have length 1.
        similarity: how two vectors are compared.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    counts: bool = True
    longest: int | None = None
    lower_case: bool = False
    normalize: bool = True
    similarity: Similarity = "cosine"

    def prompt(self, name: str | None) -> str:
        """The text of a prompt, that of the default one for None; "" is none.

        Raises:
            UserError: there is no prompt of this name.
        """
        name = self.default_prompt if name is None else name
        if not name:
            return ""
        if name not in self.prompts:
            listed = f"choose from {', '.join(self.prompts)}" if self.prompts else "the model's folder has none"
            raise UserError(f"there is no prompt {shown(name)}", "--prompt-name", listed)
        return self.prompts[name]


def read_settings(place: Path, *, counts: bool = True, normalize: bool = True) -> Reading:
    """What a folder's two files say; one that is not there says nothing.

    Args:
        place: folder with modules.json.
        counts, normalize: as `Reading`, from the folder's modules.

    Raises:
        UserError: a key or a value that is not known here; a damaged file.
    """
    values, prompts = _object(place / SETTINGS), dict[str, str]()
    default, similarity = values.get("default_prompt_name"), values.get("similarity_fn_name") or "cosine"
    _known(values, {"__version__", "prompts", "default_prompt_name", "similarity_fn_name"}, place / SETTINGS)
    found = values.get("prompts") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UserError("the prompts are not texts by name", place / SETTINGS)
    prompts |= found
    if default is not None and default not in {*prompts, "query", "document"}:
        raise UserError(f"the default prompt {shown(default)} is not among the prompts", place / SETTINGS)
    if similarity not in SIMILARITIES:
        raise UserError(f"the likeness {shown(similarity)} is not supported", place / SETTINGS)
    file = next((place / name for name in (TEXTS, *TEXTS_ONCE) if (place / name).is_file()), place / TEXTS)
    texts = _object(file)
    _known(texts, {"max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args"}, file)
    for key in ("model_args", "tokenizer_args", "config_args"):
        for name in texts.get(key) or {}:
            if name not in _NEUTRAL_ARGUMENTS:
                raise UserError(f"the argument {shown(name)} in {key} is not supported", file)
    return Reading(
        prompts=prompts, default_prompt=default if default in prompts else None, counts=counts,
        longest=_longest(texts.get("max_seq_length"), file, place), lower_case=bool(texts.get("do_lower_case")),
        normalize=normalize, similarity=similarity,
    )  # fmt: skip


def settings_of(reading: Reading, longest: int) -> dict[str, dict[str, Any]]:
    """The two files, by name, as `read_settings` reads them.

    Args:
        longest: tokens of a text where `reading` does not say.
    """
    files: dict[str, dict[str, Any]] = {
        TEXTS: {"max_seq_length": reading.longest or longest, "do_lower_case": reading.lower_case},
    }
    if reading.prompts or reading.similarity != "cosine":
        files[SETTINGS] = {
            "prompts": dict(reading.prompts), "default_prompt_name": reading.default_prompt,
            "similarity_fn_name": reading.similarity,
        }  # fmt: skip
    return files


def _longest(given: Any, file: Path, place: Path) -> int | None:
    """sentence-transformers takes the tokenizer's length where the file has none."""
    if given is None:
        given = _object(place / _TOKENIZER).get("model_max_length")
        return given if isinstance(given, int) and 0 < given < _UNBOUNDED else None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UserError(f"max_seq_length cannot be {shown(given)}", file)
    return given


def _object(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}


def _known(values: Mapping[str, Any], known: set[str], file: Path) -> None:
    for key, value in values.items():
        if key not in known and value not in _FIXED.get(key, ()):
            what = f"the value {shown(value)} of {shown(key)}" if key in _FIXED else f"the setting {shown(key)}"
            raise UserError(f"{what} is not supported", file, "remove it if it does not change the vectors")
