"""The two libraries that turn text into ids, behind one interface.

`JsonBackend` reads `tokenizer.json` with tokenizers, `ModelBackend` reads `tokenizer.model` with sentencepiece.
Neither ever turns text into a special token: whoever wants one puts its id.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from yeoul.safe_json import parse_object
from yeoul.text.added_tokens import MOST_IDS, AddedToken, pattern_of
from yeoul.text.byte_level import byte_level_alphabet
from yeoul.text.nfc import is_nfd
from yeoul.text.sentencepiece_ids import SentencePieceIds
from yeoul.text.sentencepiece_model import SPACE, ModelType, PieceType, SentencePieceModel, read_model, without_text

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
THEIR_ENUM = re.compile(r"data did not match any variant of untagged enum (?:Py)?(\w+?)(?:Untagged|Wrapper|Type)?\b")
"""How the library says that nothing it knows looks so."""
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
PROBE = "a 가\n1"
"""A text that shows at once what is damaged."""
COMPARED_FROM = 16
"""Characters of text for each id, from which the comparison with `tokenizer.model` is worth its time."""
TEXT_TYPES = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


class Decoding(NamedTuple):
    """How ids become text: the bytes of each, two habits of sentencepiece, and whether jamo and accents are composed
    again (see `StreamDecoder`)."""

    table: list[bytes]
    space_mark: bool
    strip_first_space: bool
    byte_ids: frozenset[int]
    composes: bool = False


class Backend(Protocol):
    """What `Tokenizer` needs of a library."""

    size: int
    """The largest id plus one."""
    special: dict[str, int]
    """Special tokens and their ids."""
    added: frozenset[int]
    """Ids that were added to the vocabulary, the special ones among them."""
    strips: dict[int, tuple[bool, bool]]
    """Added tokens that take the white space before and after them."""

    def expect(self, characters: int) -> None:
        """So much text is about to come: time for what pays only then."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def encode_in_parts(self, text: str) -> Iterable[list[int]]:
        """As `encode`, some ids at a time where that is possible."""
        ...

    def encode_with_spans(self, text: str, *, first: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and where each begins and ends in `text`; `first` is False behind a special token."""
        ...

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Tokens that the vocabulary's own file puts before and behind every text; None where it does not say."""
        ...

    def piece(self, token: int) -> str: ...

    def token_id(self, piece: str) -> int | None: ...

    def decoding(self) -> Decoding: ...

    def kind(self) -> str:
        """What cuts the text, in the field's terms."""
        ...

    def role_ids(self) -> dict[str, int]:
        """Ids of "bos", "eos", "pad", "unk", as far as the vocabulary's own file names them."""
        ...


class JsonBackend:
    """A `tokenizer.json`: sentencepiece-like (BPE, unigram), byte-level BPE, or WordPiece."""

    def __init__(self, data: bytes, declared: Sequence[AddedToken] = (), beside: bytes | None = None) -> None:
        """`declared` are added tokens that other files of the folder name, `beside` is `tokenizer.model`.

        Raises:
            ValueError: `data` is damaged.
        """
        from tokenizers import AddedToken as TheirToken
        from tokenizers import Tokenizer

        with _one_error(), _without_stderr():
            self.spec: dict[str, Any] = parse_object(data)
            if not isinstance(model := self.spec.get("model"), dict):
                raise ValueError("it has no model")
            _check_merges(model)
            self._tokenizer = Tokenizer.from_buffer(data)
            self._tokenizer.encode(PROBE, add_special_tokens=False)
        largest = _largest_id(self._tokenizer.get_vocab(with_added_tokens=True))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        there = {token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special}
        for token in declared:
            known = self._tokenizer.token_to_id(token.content)
            # Beyond a gap the library would give it another id than its row in the model's table.
            if known == token.id or (known is None and token.id == self._tokenizer.get_vocab_size()):
                theirs = TheirToken(token.content, **{flag: getattr(token, flag) for flag in FLAGS})
                if known is None or (token.special and token.content not in there):
                    self._tokenizer.add_tokens([theirs])
        added = self._tokenizer.get_added_tokens_decoder()
        self.added = frozenset(added)
        self.size = max(largest, *added) + 1 if added else largest + 1
        self.special = {token.content: i for i, token in added.items() if token.special}
        self.strips = {i: (token.lstrip, token.rstrip) for i, token in added.items() if token.lstrip or token.rstrip}
        self._beside, self._seen = beside, 0
        self._faster: SentencePieceIds | None = None

    def expect(self, characters: int) -> None:
        """Compares with the `tokenizer.model` beside it once there has been enough text for that to be worth it."""
        self._seen += characters
        if self._beside is None or self._seen < COMPARED_FROM * self.size:
            return
        added = self._tokenizer.get_added_tokens_decoder().items()
        tokens = [AddedToken(id=i, content=t.content, **{flag: getattr(t, flag) for flag in FLAGS}) for i, t in added]
        beside, self._beside = self._beside, None
        self._faster = SentencePieceIds.where_certain(self.spec, tokens, beside, self._by_tokenizers)

    def encode(self, text: str) -> list[int]:
        if self._beside is not None:
            self.expect(len(text))
        if self._faster is not None and (ids := self._faster.encode(text)) is not None:
            return ids
        return self._by_tokenizers(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._beside is not None:
            self.expect(sum(map(len, texts)))
        found = [None] * len(texts) if self._faster is None else self._faster.encode_batch(texts)
        if None not in found:
            return found  # type: ignore[return-value]
        left = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        others = iter(self._tokenizer.encode_batch_fast(left, add_special_tokens=False))
        return [next(others).ids if ids is None else ids for ids in found]

    def encode_in_parts(self, text: str) -> Iterable[list[int]]:
        if self._beside is not None:
            self.expect(len(text))
        found = None if self._faster is None else self._faster.encode_in_parts(text)
        return [self._by_tokenizers(text)] if found is None else found

    def _by_tokenizers(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_spans(self, text: str, *, first: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        tokenizer = self._tokenizer if first else self._continuing
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @cached_property
    def _continuing(self) -> Any:
        """The tokenizer for text behind a special token: without the space that only stands before a whole text."""
        from tokenizers import Tokenizer

        steps = _steps(self.spec.get("pre_tokenizer"), "pretokenizers")
        if not any(step["type"] == "Metaspace" and step.get("prepend_scheme") == "first" for step in steps):
            return self._tokenizer
        spec = json.loads(self._tokenizer.to_str())
        for step in _steps(spec["pre_tokenizer"], "pretokenizers"):
            if step["type"] == "Metaspace" and step["prepend_scheme"] == "first":
                step["prepend_scheme"] = "never"
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        steps = _steps(self.spec.get("post_processor"), "processors")
        if all(step["type"] == "ByteLevel" for step in steps):  # which only moves offsets
            return None
        encoding = self._tokenizer.encode(PROBE, add_special_tokens=False)
        ids = self._tokenizer.post_process(encoding, None, True).ids
        plain, count = encoding.ids, len(encoding.ids)
        place = next((i for i in range(len(ids) - count + 1) if ids[i : i + count] == plain), None)
        if place is None:
            raise ValueError("its post-processor changes the tokens of a text")
        return tuple(ids[:place]), tuple(ids[place + count :])

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

    def kind(self) -> str:
        parts = (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders"))
        steps = [step["type"] for part, plural in parts for step in _steps(self.spec.get(part), plural)]
        model = self.spec["model"]
        if "ByteLevel" not in steps and model["type"] == "BPE" and not model.get("merges"):
            return "char"
        return ("byte-level " if "ByteLevel" in steps else "") + str(model["type"])

    def decoding(self) -> Decoding:
        """Raises ValueError when the decoder is of a kind that Yeoul does not know."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        steps = _steps(self.spec.get("decoder"), "decoders")
        kinds = {step["type"] for step in steps}
        if unknown := kinds - KNOWN_DECODERS:
            raise ValueError(f"its decoder {sorted(unknown)[0]} is not supported")
        with_bytes = bool(self.spec["model"].get("byte_fallback")) or "ByteFallback" in kinds
        table = [b""] * self.size
        byte_ids: set[int] = set()
        for piece, i in vocabulary.items():
            is_byte = BYTE_PIECE.fullmatch(piece) if with_bytes and i not in self.added else None
            if is_byte:
                table[i] = bytes([int(is_byte[1], 16)])
                byte_ids.add(i)
            elif i in self.added:
                table[i] = piece.encode()
            else:
                table[i] = _piece_bytes(piece, steps)
        space_mark = "ByteLevel" not in kinds and "WordPiece" not in kinds
        forms = {step["type"] for step in _steps(self.spec.get("normalizer"), "normalizers")}
        # Others that decompose take accents off or change letters, and are not undone.
        composes = "NFD" in forms and forms <= {"NFD", "Replace", "Prepend"}
        return Decoding(table, space_mark, any(map(_strips_first_space, steps)), frozenset(byte_ids), composes)


KNOWN_DECODERS = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"}


def _steps(part: dict[str, Any] | None, plural: str) -> list[dict[str, Any]]:
    """The steps of a part of `tokenizer.json` that may be a sequence of them, under the key `plural`."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[plural] for step in _steps(inner, plural)]
    return [part]


def _largest_id(vocabulary: Mapping[str, int]) -> int:
    """Raises ValueError for ids out of all proportion, or two pieces with one id."""
    largest = max(vocabulary.values(), default=-1)
    if largest >= MOST_IDS:
        raise ValueError(f"it has the id {largest:,}, which no vocabulary needs")
    if len(set(vocabulary.values())) < len(vocabulary):
        seen: dict[int, str] = {}
        for piece, i in vocabulary.items():
            if i in seen:
                raise ValueError(f"the pieces {seen[i]!r} and {piece!r} have the same id {i}")
            seen[i] = piece
    return largest


def _check_merges(model: Mapping[str, Any]) -> None:
    """Raises ValueError for right halves that lack the prefix which the library cuts off unseen, at any byte."""
    if prefix := model.get("continuing_subword_prefix"):
        for merge in model.get("merges", ()):
            right = merge.partition(" ")[2] if isinstance(merge, str) else merge[1]
            if not right.startswith(prefix):
                raise ValueError(f"the merge {merge!r} lacks continuing_subword_prefix")


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Keeps a panic of the Rust library from printing its own report: the error is told in one sentence."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no standard error
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Whatever goes wrong in the Rust library leaves as a ValueError; its panics are not Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        reason = THEIR_ENUM.sub(r"a part of it (\1) has no form that is known", reason)
        raise ValueError(reason[:200]) from None


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


class ModelBackend:
    """A `tokenizer.model`, and the tokens that other files add to it.

    Args:
        data: the file.
        declared: added tokens; their texts stand for what the model has at their ids.
        prefix: what the model's space before a text stands before: "always" every text between added tokens (the
            `legacy` of transformers), "first" only a whole text, "never" none.

    Raises:
        ValueError: `data` is damaged.
    """

    def __init__(self, data: bytes, declared: Sequence[AddedToken] = (), *, prefix: str = "first") -> None:
        self.model: SentencePieceModel = read_model(data)
        pieces = {i: piece.text for i, piece in enumerate(self.model.pieces)}
        types = {i: piece.type for i, piece in enumerate(self.model.pieces)}
        hidden = {t.id for t in declared if types.get(t.id) in TEXT_TYPES and (t.special or t.content != pieces[t.id])}
        self._data, self._prefix = without_text(data, hidden, dummy_prefix=True) if hidden else data, prefix
        self._processor = self._loaded(self._data)
        self._pieces = pieces | {token.id: token.content for token in declared}
        self.size = max(self._pieces) + 1
        self._ids = {text: i for i, text in reversed(self._pieces.items())}
        unsaid = {i for i, kind in types.items() if kind in (PieceType.CONTROL, PieceType.UNKNOWN)}
        unsaid |= {token.id for token in declared if token.special}
        self.special = {self._pieces[i]: i for i in sorted(unsaid)}
        self.added = frozenset(token.id for token in declared)
        self.strips = {token.id: (token.lstrip, token.rstrip) for token in declared if token.lstrip or token.rstrip}
        found_by_model = {i for i, kind in types.items() if kind == PieceType.USER_DEFINED} - hidden
        self._own = pattern_of(t for t in declared if t.id not in unsaid and t.id not in found_by_model)

    @staticmethod
    def _loaded(data: bytes) -> Any:
        from sentencepiece import SentencePieceProcessor

        try:
            return SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    @cached_property
    def _continuing(self) -> Any:
        """The model without its space before a text."""
        return self._loaded(without_text(self._data, (), dummy_prefix=False))

    def _of(self, first: bool) -> Any:
        plain = self._prefix == "always" or (self._prefix == "first" and first)
        return self._processor if plain or not self.model.add_dummy_prefix else self._continuing

    def expect(self, characters: int) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        if self._own is not None:
            return self.encode_with_spans(text)[0]
        ids: list[int] = self._of(True).encode(text, out_type=int)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._own is not None:
            return [self.encode(text) for text in texts]
        ids: list[list[int]] = self._of(True).encode(list(texts), out_type=int, num_threads=-1)
        return ids

    def encode_in_parts(self, text: str) -> Iterable[list[int]]:
        return [self.encode(text)]

    def encode_with_spans(self, text: str, *, first: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for match in [*(self._own.finditer(text) if self._own else ()), None]:
            part = text[at : match.start() if match else len(text)]
            found = self._of(first and at == 0).encode(part, out_type="offset_mapping")
            ids += found["ids"]
            spans += [(at + start, at + end) for start, end in found["offsets"]]
            if match is not None:
                assert match.lastgroup is not None
                ids.append(int(match.lastgroup[1:]))
                spans.append(match.span())
                at = match.end()
        return ids, spans

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        return None

    def piece(self, token: int) -> str:
        return self._pieces.get(token, "")

    def token_id(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def role_ids(self) -> dict[str, int]:
        processor = self._processor
        ids = {
            "bos": processor.bos_id(),
            "eos": processor.eos_id(),
            "pad": processor.pad_id(),
            "unk": processor.unk_id(),
        }
        return {role: i for role, i in ids.items() if i >= 0}

    def kind(self) -> str:
        return {ModelType.BPE: "BPE", ModelType.UNIGRAM: "Unigram"}.get(self.model.type, self.model.type.name.lower())

    def decoding(self) -> Decoding:
        table = [b""] * self.size
        for i, text in self._pieces.items():
            table[i] = text.replace(SPACE, " ").encode()
        byte_ids = frozenset(i for i, p in enumerate(self.model.pieces) if p.type == PieceType.BYTE)
        for i in byte_ids:
            table[i] = bytes([int(self.model.pieces[i].text[3:5], 16)])
        strip = self.model.add_dummy_prefix and self._prefix != "never"
        return Decoding(table, True, strip, byte_ids, bool(self.model.charsmap) and is_nfd(self.model.charsmap))
