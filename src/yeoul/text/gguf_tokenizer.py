"""The tokenizer of a GGUF file as the files of a Hugging Face folder: the inverse of `gguf_vocabulary`.

It cuts text as llama.cpp does, whose format this is: by the scores of sentencepiece ("llama"), by merges after one of
the pre-tokenizers that llama.cpp knows by name ("gpt2"), or as a unigram model ("t5"). A pre-tokenizer that is unknown
here is refused by name. Text never becomes a special token, and tokens of the type user-defined are found in any text.
What a file does not say has llama.cpp's default. A whole `tokenizer.json` in the file goes before its lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError, shown
from yeoul.gguf_header import Header, read_header
from yeoul.text.backends import BYTE_PIECE
from yeoul.text.gguf_pre_tokenizers import ALIKE, BEGINS, COMPOSED, PRE_TOKENIZERS, WHOLE, cut_name, pre_tokenizer_of
from yeoul.text.hf_export import backend_of
from yeoul.text.nfc import is_nfc
from yeoul.text.sentencepiece_model import SPACE, ModelType, Piece, PieceType, SentencePieceModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

USUAL: dict[str, dict[str, int]] = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "t5": {"eos": 1, "unknown": 2}}
"""Ids that llama.cpp takes where the file names none, by the kind of the tokenizer."""
ROLES = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
TURN_ENDS = ("eot", "eom")
DAMAGED = "convert the model again"


def has_tokenizer(file: Path) -> bool:
    """Whether a GGUF file has one; those without take and give ids."""
    return read_header(file).get("tokenizer.ggml.model", str, "none") not in ("none", "no_vocab")


def gguf_tokenizer_files(file: Path) -> dict[str, bytes]:
    """`tokenizer.json`, `tokenizer_config.json` and `generation_config.json` of a GGUF file.

    Raises:
        UserError: a kind or a pre-tokenizer that is not known here, or lists that do not fit together.
    """
    header = read_header(file)
    kind = header.need("tokenizer.ggml.model", str)
    if kind not in ("llama", "gpt2", "t5"):
        what = f"the tokenizer of the GGUF file is of a kind that is not read: {shown(kind)}"
        raise UserError(what, file, "known are llama, gpt2 and t5")
    pieces = _pieces(header, kind)
    roles = _roles(header, kind, len(pieces))
    begins, ends = ([(pieces[i].text, i) for i in ids] for ids in _around(header, kind, roles))
    try:
        backend = _whole(header, pieces)
        if backend is None:
            made = _byte_level if kind == "gpt2" else _sentencepiece
            backend = made(header, pieces, roles)
        framed = type(backend.post_processor).__name__ not in ("NoneType", "ByteLevel")
        if (begins or ends) and not framed and not any(":" in text for text, _ in (*begins, *ends)):
            backend.post_processor = _post_processor(begins, ends)
    except (UserError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # panics of the library tokenizers are no Exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer of the GGUF file cannot be used: {reason}", file, DAMAGED) from None
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {name: pieces[roles[role]].text for role, name in ROLES.items() if role in roles}
    config |= {"add_bos_token": bool(begins), "add_eos_token": bool(ends), "clean_up_tokenization_spaces": False}
    if (template := header.get("tokenizer.chat_template", str)) is not None:
        config["chat_template"] = template
    stops = [roles[role] for role in ("eos", *TURN_ENDS) if role in roles]
    values: dict[str, Any] = {"tokenizer_config.json": config}
    if stops:
        values["generation_config.json"] = {"eos_token_id": list(dict.fromkeys(stops))}
    files = {name: json.dumps(value, ensure_ascii=False, indent=2).encode() for name, value in values.items()}
    return {"tokenizer.json": backend.to_str().encode(), **files}


def _pieces(header: Header, kind: str) -> list[Piece]:
    """The vocabulary; tokens at its end that stand for rows without one are left out."""

    def values(name: str, default: Any) -> list[Any]:
        found = header.get(f"tokenizer.ggml.{name}", list)
        found = [default] * len(texts) if found is None else found
        if len(found) < len(texts):
            what = f"tokenizer.ggml.{name} of the metadata has {len(found):,} values for {len(texts):,} tokens"
            raise UserError(what, header.file, DAMAGED)
        return found

    texts = header.need("tokenizer.ggml.tokens", list)
    if not all(isinstance(text, str) for text in texts):
        raise UserError("tokenizer.ggml.tokens of the metadata is no list of texts", header.file, DAMAGED)
    # llama.cpp takes what it does not know for a plain piece; 0 is its undefined type
    types = [_TYPES.get(value, PieceType.NORMAL) for value in values("token_type", int(PieceType.NORMAL))]
    scores = values("scores", 0.0)
    size = len(texts)
    while size and types[size - 1] == PieceType.UNUSED:
        size -= 1
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts[:size])]
    if len(set(texts)) < size:
        twice = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise UserError(f"the tokenizer of the GGUF file has {shown(twice)} twice", header.file, DAMAGED)
    if kind == "llama" and header.get("tokenizer.ggml.token_type", list) is None:
        types = [PieceType.BYTE if BYTE_PIECE.fullmatch(text) else PieceType.NORMAL for text in texts]
    for i in range(size):
        if types[i] == PieceType.USER_DEFINED:
            texts[i] = _raw(texts[i])
    triples = zip(texts, scores[:size], types[:size], strict=True)
    return [Piece(text=text, score=float(score), type=type) for text, score, type in triples]


_TYPES = {int(kind): kind for kind in PieceType}


def _raw(text: str) -> str:
    """A user-defined run of spaces as it stands in a text; older files have it as sentencepiece writes it."""
    return " " * len(text) if set(text) == {SPACE} else text


def _roles(header: Header, kind: str, size: int) -> dict[str, int]:
    found = {}
    for role in (*ROLES, *TURN_ENDS):
        number = header.get(f"tokenizer.ggml.{role}_token_id", int, USUAL.get(kind, {}).get(role))
        if number is not None and number < size:
            found[role] = number
    return found


def _around(header: Header, kind: str, roles: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """What stands before and behind every text."""
    way = cut_name(header.get("tokenizer.ggml.pre", str, "") or "")
    begins = header.get("tokenizer.ggml.add_bos_token", bool, kind == "llama" or (kind == "gpt2" and way in BEGINS))
    ends = header.get("tokenizer.ggml.add_eos_token", bool, kind == "t5")
    wanted = (("bos", begins), ("eos", ends))
    first, last = ([roles[role]] if is_wanted and role in roles else [] for role, is_wanted in wanted)
    return first, last


def _special(pieces: list[Piece], roles: Mapping[str, int]) -> set[int]:
    """Ids that are never made of text: those of the type control, and those that end or begin texts."""
    named = {i for role, i in roles.items() if role != "unknown"}
    return named | {i for i, piece in enumerate(pieces) if piece.type == PieceType.CONTROL}


def _whole(header: Header, pieces: list[Piece]) -> Tokenizer | None:
    """The `tokenizer.json` that is in the file; None where there is none, or of other tokens than the file's list."""
    from tokenizers import Tokenizer

    if (text := header.get(WHOLE, str)) is None:
        return None
    try:
        backend = Tokenizer.from_str(text)
    except Exception:  # the library's only kind
        return None
    known = (piece.type == PieceType.UNUSED or backend.id_to_token(i) == piece.text for i, piece in enumerate(pieces))
    return backend if all(known) else None


def _byte_level(header: Header, pieces: list[Piece], roles: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of a byte-level BPE vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    named = header.get("tokenizer.ggml.pre", str)
    if named is None or (way := cut_name(named)) is None:
        what = (
            "does not say how text is cut" if named is None else f"cuts text as {shown(named)}, which is not known here"
        )
        fix = f"convert the model again with a newer llama.cpp; known are {', '.join(ALIKE)}"
        raise UserError(f"the tokenizer of the GGUF file {what}", header.file, fix)
    whole_words, how = next((words, how) for name, words, how in PRE_TOKENIZERS if name == way)
    merges = header.need("tokenizer.ggml.merges", list)
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1) if isinstance(merge, str) else -1
        if cut < 0:
            raise UserError(f"the merge {shown(merge)} of the GGUF file is no pair of pieces", header.file, DAMAGED)
        pairs.append((merge[:cut], merge[cut + 1 :]))
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=whole_words))
    if named in COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer_of(how)
    backend.decoder = decoders.ByteLevel()
    special = _special(pieces, roles)
    added = [i for i, piece in enumerate(pieces) if i in special or piece.type == PieceType.USER_DEFINED]
    backend.add_tokens([AddedToken(pieces[i].text, special=i in special, normalized=False) for i in added])
    return backend


def _sentencepiece(header: Header, pieces: list[Piece], roles: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of a sentencepiece vocabulary: BPE by scores, or unigram."""
    from tokenizers import normalizers

    kind = header.need("tokenizer.ggml.model", str)
    unknown = next((i for i, piece in enumerate(pieces) if piece.type == PieceType.UNKNOWN), roles.get("unknown"))
    if unknown is None:
        raise UserError("the tokenizer of the GGUF file has no unknown token", header.file, DAMAGED)
    special = _special(pieces, roles)

    for i, piece in enumerate(pieces):
        if i == unknown or i in special or piece.type == PieceType.UNKNOWN:
            type = PieceType.UNKNOWN if i == unknown else PieceType.CONTROL
            pieces[i] = Piece(text=piece.text, score=piece.score, type=type)
    count = sum(piece.type == PieceType.BYTE for piece in pieces)
    if kind == "llama" and count != 256:
        what = f"the tokenizer of the GGUF file has {count} of the 256 bytes that spell what has no piece"
        raise UserError(what, header.file, DAMAGED)
    if kind == "t5" and header.get("tokenizer.ggml.remove_extra_whitespaces", bool, False):
        raise UserError("the tokenizer of the GGUF file drops repeated spaces, which is not known here", header.file)
    model = SentencePieceModel(
        pieces=tuple(pieces),
        type=ModelType.BPE if kind == "llama" else ModelType.UNIGRAM,
        byte_fallback=count == 256,
        add_dummy_prefix=bool(header.get("tokenizer.ggml.add_space_prefix", bool, True)),
        charsmap=b"",
    )
    charsmap = header.get("tokenizer.ggml.precompiled_charsmap", list) if kind == "t5" else None
    rules = bytes(value & 0xFF for value in charsmap or [])
    nfc = bool(rules) and is_nfc(rules)
    backend = backend_of(model, form="NFC" if nfc else None)
    if rules and not nfc:
        backend.normalizer = normalizers.Sequence([normalizers.Precompiled(rules), backend.normalizer])
    return backend


def _post_processor(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> Any:
    """What puts tokens before and behind a text; transformers asks for it, Yeoul for tokenizer_config.json too."""
    from tokenizers import processors

    def framed(kind: str, number: int) -> list[str]:
        first, last = ([f"{text}:{number}" for text, _ in part] for part in (before, after))
        return [*first, f"${kind}:{number}", *last]

    return processors.TemplateProcessing(
        single=framed("A", 0), pair=[*framed("A", 0), *framed("B", 1)], special_tokens=[*before, *after]
    )
