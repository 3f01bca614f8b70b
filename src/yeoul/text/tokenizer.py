"""Text to ids and back, from the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from yeoul.errors import UserError
from yeoul.text.backends import Backend, Decoding, JsonBackend, ModelBackend
from yeoul.text.files import find_folder, read_files, replace_files
from yeoul.text.sentencepiece_model import SPACE
from yeoul.text.streaming import StreamDecoder, token_bytes

T = TypeVar("T")

ROLES = ("bos", "eos", "pad", "unk")
USUAL_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "[BOS]"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]"),
    "pad": ("<pad>", "[PAD]", "<|padding|>", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
}
"""For folders without `tokenizer_config.json`."""
TURN_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "[|endofturn|]")
"""Special tokens that end an answer in a chat, in the templates that are in use."""


class Tokenizer:
    """A tokenizer that was loaded from a folder; it never changes.

    `encode` gives plain text only: a text that looks like a special token ("</s>") becomes ordinary pieces.
    User symbols of the vocabulary are recognised in any text, which is what they are for.

    Args:
        files: contents of the folder's tokenizer files by name.
        where: the folder, for messages.
    """

    def __init__(self, files: Mapping[str, bytes], where: Path) -> None:
        self._files = dict(files)
        self._where = where
        self._config = self._json("special_tokens_map.json") | self._json("tokenizer_config.json")
        self._backend: Backend
        if "tokenizer.json" in files:
            self._backend = self._loaded("tokenizer.json", JsonBackend)
        else:
            self._backend = self._loaded("tokenizer.model", ModelBackend)
        self._roles = self._role_ids()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load from a folder with `tokenizer.json` or `tokenizer.model`, or from a run folder with `model/`.

        Raises:
            UserError: no such folder, no tokenizer in it, or a damaged one.
        """
        path = Path(folder)
        found = find_folder(path)
        if found is None:
            if not path.exists():
                raise UserError("there is no such tokenizer folder", path, "check the path")
            fix = "give a folder with tokenizer.json or tokenizer.model"
            raise UserError("there is no tokenizer", path, fix)
        return cls(read_files(found), found)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether `load` would find files there."""
        return find_folder(folder) is not None

    def save(self, folder: str | Path) -> None:
        """Write the files that it was loaded from, unchanged; the folder is made when missing."""
        replace_files(Path(folder), self._files)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of a text; a begin or end token is added when wanted and when the tokenizer has one.

        Half a surrogate pair, which no UTF-8 can hold, becomes U+FFFD.
        """
        ids = self._robustly(self._backend.encode, text)
        start = [self.bos_id] if bos and self.bos_id is not None else []
        end = [self.eos_id] if eos and self.eos_id is not None else []
        return start + ids + end

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all threads; no begin or end tokens."""
        try:
            return self._backend.encode_batch(texts)
        except (TypeError, RuntimeError, UnicodeEncodeError):
            return self._backend.encode_batch([without_surrogates(text) for text in texts])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and the index in `text` of the first character of each."""
        return self._robustly(self._backend.encode_with_offsets, text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. Special tokens are left out or written out.

        The inverse of `encode`, but for its normalization, and U+2581, which sentencepiece keeps for spaces.
        """
        how = self._decoding
        table = self._text_table if skip_special else how.table
        text = b"".join(token_bytes(table, token) for token in ids).decode("utf-8", "replace")
        text = text.replace(SPACE, " ") if how.space_mark else text
        return text.removeprefix(" ") if how.strip_first_space else text

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time and shows only whole characters."""
        how = self._decoding
        table = self._text_table if skip_special else how.table
        return StreamDecoder(table, space_mark=how.space_mark, strip_first_space=how.strip_first_space)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text as the vocabulary writes them."""
        return [self.piece(token) for token in self.encode(text)]

    def piece(self, token: int) -> str:
        """How the vocabulary writes an id; "" for an id beyond it."""
        return self._backend.piece(token)

    def token_id(self, piece: str) -> int | None:
        """Id of a piece or special token, None when it is not there."""
        return self._backend.token_id(piece)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return len(self._decoding.table)

    @property
    def bos_id(self) -> int | None:
        return self._roles.get("bos")

    @property
    def eos_id(self) -> int | None:
        return self._roles.get("eos")

    @property
    def pad_id(self) -> int | None:
        return self._roles.get("pad")

    @property
    def unk_id(self) -> int | None:
        return self._roles.get("unk")

    @property
    def add_bos(self) -> bool:
        """Whether texts of its model begin with the begin token (`add_bos_token` of its configuration)."""
        return bool(self._config.get("add_bos_token", False)) and self.bos_id is not None

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens and their ids: never made of text, left out when decoding."""
        return self._special

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids after which a generated answer is over: the end token, and the end of a turn in a chat."""
        ends = [self.eos_id, *(self._special.get(text) for text in TURN_ENDS)]
        return tuple(dict.fromkeys(token for token in ends if token is not None))

    @property
    def byte_ids(self) -> frozenset[int]:
        """Ids that stand for one byte of a character without a piece of its own; empty for byte-level BPE."""
        return self._decoding.byte_ids

    def byte_lengths(self) -> list[int]:
        """For each id, the UTF-8 bytes of text that it stands for: 0 for special tokens, 1 for a byte."""
        return [len(text) for text in self._text_table]

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes of text that an id stands for, perhaps a part of a character."""
        return token_bytes(self._text_table, token)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides which ids a text becomes; the chat template has no part in it."""
        if "tokenizer.json" in self._files:
            spec = self._json("tokenizer.json")
            kept = {key: spec[key] for key in spec if key not in ("padding", "truncation", "post_processor")}
            vocabulary = json.dumps(kept, sort_keys=True).encode()
        else:
            vocabulary = self._files["tokenizer.model"]
        roles = json.dumps(self._roles, sort_keys=True).encode()
        return hashlib.sha256(vocabulary + b"\0" + roles).hexdigest()

    @cached_property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template, None when the folder has none."""
        if "chat_template.jinja" in self._files:
            return self._text("chat_template.jinja")
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else None

    @cached_property
    def special_names(self) -> dict[str, str]:
        """Role ("bos_token", ...) to token, as chat templates know them."""
        return {f"{role}_token": self.piece(token) for role, token in self._roles.items()}

    def _role_ids(self) -> dict[str, int]:
        roles = self._backend.role_ids()
        for role in ROLES:
            named = self._config.get(f"{role}_token")
            text = named.get("content") if isinstance(named, dict) else named
            if isinstance(text, str):
                found = self._backend.token_id(text)
                if found is not None:
                    roles[role] = found
            elif role not in roles and f"{role}_token" not in self._config:
                usual = (self._backend.special.get(name) for name in USUAL_NAMES[role])
                found = next((i for i in usual if i is not None), None)
                if found is not None:
                    roles[role] = found
        return roles

    @cached_property
    def _special(self) -> dict[str, int]:
        return dict(self._backend.special) | {self.piece(i): i for i in self._roles.values()}

    @cached_property
    def _decoding(self) -> Decoding:
        return self._loaded("tokenizer.json", lambda _: self._backend.decoding())

    @cached_property
    def _text_table(self) -> list[bytes]:
        table = list(self._decoding.table)
        for token in self._special.values():
            table[token] = b""
        return table

    def _loaded(self, name: str, load: Callable[[bytes], T]) -> T:
        try:
            return load(self._files.get(name, b""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the tokenizer cannot be used: {error}", self._where / name, DAMAGED) from None

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            return {}
        try:
            values = json.loads(self._files[name])
        except ValueError as error:
            raise UserError(f"the file is not JSON: {error}", self._where / name, DAMAGED) from None
        if not isinstance(values, dict):
            raise UserError("the file holds no JSON object", self._where / name, DAMAGED)
        return values

    def _text(self, name: str) -> str:
        try:
            return self._files[name].decode("utf-8")
        except UnicodeDecodeError:
            raise UserError("the file is not UTF-8", self._where / name, DAMAGED) from None

    def _robustly(self, encode: Callable[[str], T], text: str) -> T:
        try:
            return encode(text)
        except (TypeError, RuntimeError, UnicodeEncodeError):
            return encode(without_surrogates(text))


DAMAGED = "copy the tokenizer again"


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
