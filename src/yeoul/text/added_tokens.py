"""Tokens that a folder adds to its vocabulary, and what published tokenizer classes mean without saying it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_IDS = 2**22
"""Ids beyond are damage: the largest published vocabularies have about 2**18."""
ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is found in a text before the vocabulary's own rules cut it.

    Attributes:
        special: never made of text; left out when decoding.
        lstrip: takes the white space before it.
        rstrip: takes the white space after it.
        single_word: only where no letter or digit touches it.
        normalized: looked for in the normalized text.
    """

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, kw_only=True)
class TokenizerClass:
    """What a tokenizer class of transformers takes for granted.

    Attributes:
        roles: role to token, where `tokenizer_config.json` does not name one.
        add_bos: whether a text begins with the begin token, where no file says so.
        byte_level: the regular expression that cuts texts for byte-level BPE, or None for that of GPT-2.
        nfc: whether texts are composed first.
    """

    roles: Mapping[str, str]
    add_bos: bool = False
    byte_level: str | None = None
    nfc: bool = False


END = "<|endoftext|>"
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
CLASSES = {
    "LlamaTokenizer": TokenizerClass(roles=LLAMA, add_bos=True),
    "CodeLlamaTokenizer": TokenizerClass(roles=LLAMA, add_bos=True),
    "GemmaTokenizer": TokenizerClass(
        roles={"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}, add_bos=True
    ),
    "GPT2Tokenizer": TokenizerClass(roles={"bos": END, "eos": END, "unk": END}),
    "GPTNeoXTokenizer": TokenizerClass(roles={"bos": END, "eos": END, "unk": END, "pad": "<|padding|>"}, nfc=True),
    "Qwen2Tokenizer": TokenizerClass(
        roles={"eos": END, "unk": END, "pad": END}, byte_level=QWEN2_WORDS, nfc=True
    ),
}  # fmt: skip
"""By the value of `tokenizer_class`, without "Fast"; the values are those of transformers' classes."""


def tokenizer_class(config: Mapping[str, Any]) -> TokenizerClass | None:
    """The class that `tokenizer_config.json` names, if it is one with habits of its own."""
    name = config.get("tokenizer_class")
    return CLASSES.get(name.removesuffix("Fast")) if isinstance(name, str) else None


def named_token(value: object) -> str | None:
    """The text of a token in `tokenizer_config.json`: a string, or a mapping with "content"."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) and text else None


def special_texts(config: Mapping[str, Any]) -> set[str]:
    """Every text that the configuration calls special."""
    more = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    values = [*more.values()] if isinstance(more, Mapping) else more if isinstance(more, list) else []
    values = [*values, *(value for key, value in config.items() if key.endswith("_token"))]
    return {text for value in values if (text := named_token(value)) is not None}


def declared_tokens(config: Mapping[str, Any], added: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """The added tokens of a folder, by id.

    Args:
        config: `tokenizer_config.json`; its `added_tokens_decoder` is what counts where it is there.
        added: `added_tokens.json`, text to id.

    Raises:
        ValueError: an entry that is none, or two of the same id or text.
    """
    if isinstance(decoder := config.get("added_tokens_decoder"), Mapping):
        tokens = [_from_decoder(key, value) for key, value in decoder.items()]
    else:
        special = special_texts(config)
        tokens = [_token(number, content, special=content in special) for content, number in added.items()]
    tokens.sort(key=lambda token: token.id)
    for kind, values in (("id", [token.id for token in tokens]), ("text", [token.content for token in tokens])):
        if double := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"two added tokens have the {kind} {double[0]!r}")
    return tuple(tokens)


def _from_decoder(key: str, value: object) -> AddedToken:
    if not re.fullmatch(r"\d{1,9}", key, re.ASCII) or not isinstance(value, Mapping):
        raise ValueError(f"the added token {key[:40]!r} is not an id with its token")
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    return _token(int(key), value.get("content"), **{flag: value.get(flag) is True for flag in flags})


def _token(number: object, content: object, **flags: bool) -> AddedToken:
    if not isinstance(content, str) or not content:
        raise ValueError(f"the added token of id {str(number)[:40]} has no text")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MOST_IDS:
        raise ValueError(f"the added token {content[:40]!r} has no usable id")
    return AddedToken(id=number, content=content, **flags)


def pattern_of(tokens: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """Finds any of the tokens in a text, the longest first, each in a group named t and its id; None for no tokens."""
    parts = []
    for token in sorted(tokens, key=lambda token: len(token.content), reverse=True):
        text = re.escape(token.content)
        text = rf"(?<!\w){text}(?!\w)" if token.single_word else text
        before, after = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
        parts.append(f"(?P<t{token.id}>{before}{text}{after})")
    return re.compile("|".join(parts)) if parts else None
