"""The two libraries that turn text into ids, behind one interface.

`JsonBackend` reads `tokenizer.json` with tokenizers, `ModelBackend` reads `tokenizer.model` with sentencepiece.
Neither ever turns text into a special token: whoever wants one puts its id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from yeoul.text.sentencepiece_model import SPACE, PieceType, SentencePieceModel, read_model

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Decoding(NamedTuple):
    """How ids become text: the bytes of each, and two habits of sentencepiece (see `StreamDecoder`)."""

    table: list[bytes]
    space_mark: bool
    strip_first_space: bool
    byte_ids: frozenset[int]


class Backend(Protocol):
    """What `Tokenizer` needs of a library."""

    special: dict[str, int]
    """Special tokens and their ids."""

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and for each the index in `text` of its first character."""
        ...

    def piece(self, token: int) -> str: ...

    def token_id(self, piece: str) -> int | None: ...

    def decoding(self) -> Decoding: ...

    def role_ids(self) -> dict[str, int]:
        """Ids of "bos", "eos", "pad", "unk", as far as the vocabulary's own file names them."""
        ...


class JsonBackend:
    """A `tokenizer.json`: sentencepiece-like (BPE, unigram), byte-level BPE, or WordPiece."""

    def __init__(self, data: bytes) -> None:
        """Raises ValueError when `data` is damaged."""
        from tokenizers import Tokenizer

        try:
            self.spec: dict[str, Any] = json.loads(data)
            self._tokenizer = Tokenizer.from_buffer(data)
        except BaseException as error:  # a panic of the Rust library is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise ValueError(" ".join(str(error).split())[:200]) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self.special = {token.content: i for i, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    def token_id(self, piece: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(piece)
        return found

    def role_ids(self) -> dict[str, int]:
        unknown = self.spec["model"].get("unk_token")
        by_id = self.spec["model"].get("unk_id")
        found = self.token_id(unknown) if isinstance(unknown, str) else by_id
        return {} if found is None else {"unk": found}

    def decoding(self) -> Decoding:
        """Raises ValueError when the decoder is of a kind that Yeoul does not know."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        steps = _steps(self.spec.get("decoder"))
        kinds = {step["type"] for step in steps}
        if unknown := kinds - KNOWN_DECODERS:
            raise ValueError(f"its decoder {sorted(unknown)[0]} is not supported")
        with_bytes = bool(self.spec["model"].get("byte_fallback")) or "ByteFallback" in kinds
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        byte_ids: set[int] = set()
        for piece, i in vocabulary.items():
            is_byte = BYTE_PIECE.fullmatch(piece) if with_bytes and i not in self._added else None
            if is_byte:
                table[i] = bytes([int(is_byte[1], 16)])
                byte_ids.add(i)
            elif i in self._added:
                table[i] = piece.encode()
            else:
                table[i] = _piece_bytes(piece, steps)
        space_mark = "ByteLevel" not in kinds and "WordPiece" not in kinds
        return Decoding(table, space_mark, any(map(_strips_first_space, steps)), frozenset(byte_ids))


KNOWN_DECODERS = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"}


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _steps(inner)]
    return [decoder]


def _piece_bytes(piece: str, steps: list[dict[str, Any]]) -> bytes:
    """Bytes that a piece stands for, by the decoder of its `tokenizer.json`."""
    for step in steps:
        if step["type"] == "ByteLevel":
            alphabet = byte_level_alphabet()
            if all(character in alphabet for character in piece):
                return bytes(alphabet[character] for character in piece)
        elif step["type"] == "Metaspace":
            piece = piece.replace(step.get("replacement", SPACE), " ")
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            piece = piece.replace(step["pattern"]["String"], step["content"])
        elif step["type"] == "WordPiece":
            prefix = step.get("prefix", "##")
            piece = piece.removeprefix(prefix) if piece.startswith(prefix) else " " + piece
    return piece.encode()


def _strips_first_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        return bool(scheme != "never")
    if step["type"] == "Strip":
        return step.get("content") == " " and step.get("start", 0) > 0
    return bool(step["type"] == "WordPiece")


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(rest)}


class ModelBackend:
    """A `tokenizer.model`."""

    def __init__(self, data: bytes) -> None:
        """Raises ValueError when `data` is damaged."""
        from sentencepiece import SentencePieceProcessor

        self.model: SentencePieceModel = read_model(data)
        try:
            self._processor = SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        hidden = (PieceType.CONTROL, PieceType.UNKNOWN)
        self.special = {p.text: i for i, p in enumerate(self.model.pieces) if p.type in hidden}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text, out_type=int)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(list(texts), out_type=int, num_threads=-1)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        found = self._processor.encode(text, out_type="offset_mapping")
        return found["ids"], [start for start, _ in found["offsets"]]

    def piece(self, token: int) -> str:
        return self.model.pieces[token].text if 0 <= token < len(self.model.pieces) else ""

    def token_id(self, piece: str) -> int | None:
        found: int = self._processor.piece_to_id(piece)
        return found if self.piece(found) == piece else None

    def role_ids(self) -> dict[str, int]:
        processor = self._processor
        ids = {
            "bos": processor.bos_id(),
            "eos": processor.eos_id(),
            "pad": processor.pad_id(),
            "unk": processor.unk_id(),
        }
        return {role: i for role, i in ids.items() if i >= 0}

    def decoding(self) -> Decoding:
        table = [
            bytes([int(piece.text[3:5], 16)])
            if piece.type == PieceType.BYTE
            else piece.text.replace(SPACE, " ").encode()
            for piece in self.model.pieces
        ]
        byte_ids = frozenset(i for i, p in enumerate(self.model.pieces) if p.type == PieceType.BYTE)
        return Decoding(table, True, self.model.add_dummy_prefix, byte_ids)
