"""The ways in which llama.cpp cuts text for byte-level BPE, by its names for them; and the key of a whole tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

WHOLE = "tokenizer.huggingface.json"
"""The key of the GGUF specification for a whole `tokenizer.json`, which llama.cpp does not read."""

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_MARKS = r"| ?[^\s\p{L}\p{N}]+"
PRE_TOKENIZERS: tuple[tuple[str, bool, str], ...] = (
    ("gpt-2", False, "bytes"),
    ("smollm", False, "digits"),
    ("llama-bpe", True, rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_MARKS}[\r\n]*{_TAIL}"),
    ("smaug-bpe", False, rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_MARKS}[\r\n]*{_TAIL}"),
    ("qwen2", False, rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_MARKS}[\r\n]*{_TAIL}"),
    ("tekken", True, _CASED % ("", "") + rf"|\p{{N}}{_MARKS}[\r\n/]*{_TAIL}"),
    ("gpt-4o", False, _CASED % (_ENDINGS + "?", _ENDINGS + "?") + rf"|\p{{N}}{{1,3}}{_MARKS}[\r\n/]*{_TAIL}"),
)
"""Names in llama.cpp, whether a whole word of the vocabulary is taken without merging, and how text is cut:
GPT-2's way, the same after single digits, or at a pattern before GPT-2's bytes."""
ALIKE = {
    "gpt-2": (
        "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
        "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
    ),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "llama-bpe": (
        "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    ),
    "smaug-bpe": ("dbrx", "glm4", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
    "tekken": (),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
}  # fmt: skip
"""Names of `PRE_TOKENIZERS`, and llama.cpp's other names for the same way of cutting."""
BEGINS = frozenset({"llama-bpe", "tekken"})
"""Ways of cutting of tokenizers that put a begin token before texts, where the file does not say."""


COMPOSED = frozenset({"qwen2"})
"""Names of tokenizers that compose text first, as published (Qwen's own); llama.cpp composes nothing."""


def cut_name(name: str) -> str | None:
    """The name in `PRE_TOKENIZERS` of llama.cpp's pre-tokenizer; None where it is not known here."""
    return next((way for way, others in ALIKE.items() if name == way or name in others), None)


def pre_tokenizer_of(how: str) -> PreTokenizer:
    """One of `PRE_TOKENIZERS` as the library tokenizers has it."""
    from tokenizers import Regex, pre_tokenizers

    first = {"bytes": [], "digits": [pre_tokenizers.Digits(individual_digits=True)]}.get(
        how, [pre_tokenizers.Split(Regex(how), behavior="isolated")]
    )
    plain = how in ("bytes", "digits")
    return pre_tokenizers.Sequence([*first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)])
