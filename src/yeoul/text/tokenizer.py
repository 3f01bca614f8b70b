"""Text to ids and back, from the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from yeoul.errors import UserError
from yeoul.safe_json import JSONError, parse_object
from yeoul.text.added_tokens import CLASSES, ROLES, declared_tokens, named_token, special_texts, tokenizer_class
from yeoul.text.backends import Backend, Decoding, JsonBackend, ModelBackend
from yeoul.text.byte_level import byte_level_json
from yeoul.text.files import GENERATION, PAIR, find_folder, put_tokenizer, read_files
from yeoul.text.framing import Framing, frame
from yeoul.text.sentencepiece_model import SPACE
from yeoul.text.short_pieces import short_pieces
from yeoul.text.streaming import StreamDecoder, composed, composed_bytes, token_bytes

T = TypeVar("T")

USUAL_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "[BOS]"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]"),
    "pad": ("<pad>", "[PAD]", "<|padding|>", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
}
"""For folders without `tokenizer_config.json`."""
TURN_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "[|endofturn|]")
"""Tokens, special or added, that end an answer in a chat, in the templates that are in use."""


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
        self._config = self._read_config()
        self._class = tokenizer_class(self._config)
        self._source = next(name for name in ("tokenizer.json", "tokenizer.model", PAIR[0]) if name in files)
        self._declared = self._loaded(
            "tokenizer_config.json" if "added_tokens_decoder" in self._config else "added_tokens.json",
            lambda _: declared_tokens(self._config, self._json("added_tokens.json")),
        )
        self._backend = self._loaded(self._source, self._load_backend)
        self._roles = self._loaded(self._source, lambda _: self._role_ids())
        self.framing: Framing = self._loaded(self._source, lambda _: self._framing())
        """What stands around the texts of its model."""
        self._stops = self._generation_stops()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load from a folder with `tokenizer.json`, `tokenizer.model`, or `vocab.json` and `merges.txt`.

        A run's folder with such a folder `model` in it will do, too, and a single file NAME.json or NAME.model.

        Raises:
            UserError: no such folder, no tokenizer in it, or a damaged one.
        """
        path = Path(folder)
        found = find_folder(path)
        if found is None:
            if not path.exists():
                raise UserError("there is no such tokenizer folder", path, "check the path")
            fix = "give a folder with tokenizer.json, tokenizer.model, or vocab.json and merges.txt"
            raise UserError("there is no tokenizer", path, fix)
        return cls(read_files(found), found)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether `load` would find files there."""
        return find_folder(folder) is not None

    def save(self, folder: str | Path) -> None:
        """Write the files that it was loaded from, unchanged; the folder is made when missing.

        `generation_config.json` is among them: it names the tokens that end a text.
        """
        put_tokenizer(Path(folder), self._files)

    def with_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template, which `save` writes as `chat_template.jinja`."""
        return Tokenizer({**self._files, "chat_template.jinja": source.encode("utf-8")}, self._where)

    def with_short_pieces(self, longest: int) -> Tokenizer:
        """The same tokenizer, ids and all, which cuts texts into pieces of at most `longest` characters.

        Special and added tokens stay whole.

        Raises:
            UserError: a tokenizer that cannot do without its long pieces.
        """
        table = self._decoding.table
        files = self._loaded(self._source, lambda _: short_pieces(self._files, table, longest))
        return Tokenizer(files, self._where)

    def expect(self, characters: int) -> None:
        """Say that so much text is to be encoded: what makes it faster is looked for at once, and not after a while."""
        self._backend.expect(characters)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of a text; a begin or end token is added when wanted and when the tokenizer has one.

        Half a surrogate pair, which no UTF-8 can hold, becomes U+FFFD.
        """
        ids = self._robustly(self._backend.encode, text)
        if not (bos or eos):
            return ids
        start = [self.bos_id] if bos and self.bos_id is not None else []
        end = [self.eos_id] if eos and self.eos_id is not None else []
        return start + ids + end

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all threads; no begin or end tokens."""
        with self._one_sentence():
            try:
                return self._backend.encode_batch(texts)
            except (TypeError, RuntimeError, UnicodeEncodeError):
                return self._backend.encode_batch([without_surrogates(text) for text in texts])

    def encode_in_parts(self, text: str) -> Iterator[list[int]]:
        """The ids of a text, some at a time where the tokenizer allows that, for texts of many megabytes.

        Only for text that UTF-8 can hold.
        """
        with self._one_sentence():
            yield from self._backend.encode_in_parts(text)

    def encode_with_offsets(self, text: str, *, first: bool = True) -> tuple[list[int], list[int]]:
        """Ids, and the index in `text` of the first character of each.

        Args:
            first: False for text that follows a special token, where some tokenizers leave out the space that
                they put before a whole text.
        """
        ids, spans = self.encode_with_spans(text, first=first)
        return ids, [start for start, _ in spans]

    def encode_with_spans(self, text: str, *, first: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the first character in `text` of each and the one behind its last; `first` as above."""
        return self._robustly(lambda text: self._backend.encode_with_spans(text, first=first), text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. Special tokens are left out or written out.

        The inverse of `encode`, but for its normalization, and U+2581, which sentencepiece keeps for spaces.
        """
        how = self._decoding
        table = self._text_table if skip_special else how.table
        text = b"".join(token_bytes(table, token) for token in ids).decode("utf-8", "replace")
        text = text.replace(SPACE, " ") if how.space_mark else text
        text = text.removeprefix(" ") if how.strip_first_space else text
        return composed(text) if how.composes else text

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time and shows only whole characters."""
        how = self._decoding
        table = self._text_table if skip_special else how.table
        return StreamDecoder(
            table, space_mark=how.space_mark, strip_first_space=how.strip_first_space, composes=how.composes
        )

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text as the vocabulary writes them."""
        return [self.piece(token) for token in self.encode(text)]

    def piece(self, token: int) -> str:
        """How the vocabulary writes an id; "" for an id beyond it."""
        return self._backend.piece(token)

    def spelled(self, ids: Iterable[int]) -> str:
        """Ids as the vocabulary writes them, special tokens too, for the screen."""
        return "".join(c if c.isprintable() else "\ufffd" for c in "".join(map(self.piece, ids)))

    def token_id(self, piece: str) -> int | None:
        """Id of a piece or special token, None when it is not there."""
        return self._backend.token_id(piece)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self._backend.size

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
        """Whether texts of its model begin with the begin token; see `framing`."""
        return self.bos_id is not None and self.framing.begin[:1] == (self.bos_id,)

    @property
    def begins(self) -> str:
        """A sentence that says how each sequence of its model begins."""
        begin = self.spelled(self.framing.begin)
        return f"Each sequence begins with {begin}." if begin else "No begin token stands before a sequence."

    @property
    def kind(self) -> str:
        """What cuts the text: "BPE", "byte-level BPE", "Unigram", "WordPiece" ..."""
        return self._backend.kind()

    @property
    def source(self) -> str:
        """The file with the vocabulary."""
        return self._source

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens and their ids: never made of text, left out when decoding."""
        return self._special

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Tokens that are added to the vocabulary but not special: found in any text."""
        return self._added

    @property
    def added_ids(self) -> frozenset[int]:
        """Ids of `added_tokens`."""
        return frozenset(self._added.values())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids after which an answer is over: the end token, those of `generation_config.json`, the end of a turn."""
        known = {**self._added, **self._special}
        ends = [self.eos_id, *self.framing.end, *self._stops, *(known.get(text) for text in TURN_ENDS)]
        return tuple(dict.fromkeys(token for token in ends if token is not None))

    @property
    def stripping(self) -> Mapping[int, tuple[bool, bool]]:
        """Tokens that take the white space before and after them in a text: id to (before, after)."""
        return self._backend.strips

    @property
    def text_size(self) -> int:
        """The largest id of an ordinary piece plus one: the rows that a model needs at least to read any text."""
        added = self._backend.added | set(self._special.values())
        return max((i + 1 for i, own in enumerate(self._text_table) if own and i not in added), default=0)

    def fits(self, rows: int) -> bool:
        """Whether a model whose vocabulary has `rows` ids can read any text.

        Added tokens may lie beyond: many published folders have some that their model never saw.
        """
        return self.vocab_size <= rows or self.text_size <= rows

    def check_fits(self, rows: int) -> None:
        """UserError where a model whose vocabulary has `rows` ids cannot read every text."""
        if not self.fits(rows):
            what = f"the tokenizer produces ids up to {self.text_size - 1:,} of text, but the model knows only {rows:,}"
            raise UserError(what, self._where, "use the tokenizer that the model was trained with")

    @property
    def byte_ids(self) -> frozenset[int]:
        """Ids that stand for one byte of a character without a piece of its own; empty for byte-level BPE."""
        return self._decoding.byte_ids

    def byte_lengths(self) -> list[int]:
        """For each id, the UTF-8 bytes of text that it stands for: 0 for special tokens, 1 for a byte.

        Where the tokenizer takes syllables apart, they are those of the composed text: the three bytes of a syllable
        count with its first jamo.
        """
        if self._decoding.composes:
            return [composed_bytes(text) for text in self._text_table]
        return [len(text) for text in self._text_table]

    @property
    def composes(self) -> bool:
        """Whether it takes syllables apart into jamo (NFD), which `decode` composes again."""
        return self._decoding.composes

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes of text that an id stands for, perhaps a part of a character."""
        return token_bytes(self._text_table, token)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides which ids a text becomes; the chat template has no part in it."""
        if isinstance(self._backend, JsonBackend):
            spec = self._backend.spec
            kept = {key: spec[key] for key in spec if key not in ("padding", "truncation", "post_processor")}
            vocabulary = json.dumps(kept, sort_keys=True).encode()
        else:
            vocabulary = self._files["tokenizer.model"]
            if self._declared:
                vocabulary += repr(self._declared).encode()
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
        return template.removeprefix("\ufeff") if isinstance(template, str) else None

    @cached_property
    def special_names(self) -> dict[str, str]:
        """Role ("bos_token", ...) to token, as chat templates know them."""
        return {f"{role}_token": self.piece(token) for role, token in self._roles.items()}

    def _read_config(self) -> dict[str, Any]:
        """`tokenizer_config.json`; `special_tokens_map.json` counts where that has no `added_tokens_decoder`."""
        config = self._json("tokenizer_config.json")
        if "added_tokens_decoder" in config:
            return config
        return config | self._json("special_tokens_map.json")

    def _load_backend(self, data: bytes) -> Backend:
        if self._source == "tokenizer.json":
            return JsonBackend(data, self._declared, self._files.get("tokenizer.model"))
        if self._source == "tokenizer.model":
            return ModelBackend(data, self._declared, prefix=self._prefix())
        special = special_texts(self._config) | set((self._class or CLASSES["GPT2Tokenizer"]).roles.values())
        return JsonBackend(byte_level_json(data, self._files[PAIR[1]], self._class, special), self._declared)

    def _prefix(self) -> str:
        if self._config.get("add_prefix_space") is False:
            return "never"
        return "always" if self._config.get("legacy") is True else "first"

    def _role_ids(self) -> dict[str, int]:
        habits = self._class
        if habits is None and self._source == PAIR[0]:
            habits = CLASSES["GPT2Tokenizer"]
        roles = self._backend.role_ids()
        for role in ROLES:
            key = f"{role}_token"
            if key in self._config:
                names = [named_token(self._config[key])]
            elif role in roles:
                continue
            elif habits is not None:
                names = [habits.roles.get(role)]
            else:
                names = [name for name in USUAL_NAMES[role] if name in self._backend.special]
            found = (self._backend.token_id(name) for name in names if name is not None)
            known = next((i for i in found if i is not None), None)
            if known is not None:
                roles[role] = known
        return roles

    def _framing(self) -> Framing:
        """As the post-processor of `tokenizer.json` says.

        Where it says nothing, by `add_bos_token` and `add_eos_token` of the configuration, and without a
        `tokenizer.json` by the habit of the tokenizer's class.
        """
        habit = self._source != "tokenizer.json" and self._class is not None and self._class.add_bos
        wanted = (self._config.get(key) for key in ("add_bos_token", "add_eos_token"))
        add_bos, add_eos = (
            value if isinstance(value, bool) else usual for value, usual in zip(wanted, (habit, False), strict=True)
        )
        return frame(self._backend.around(), bos_id=self.bos_id, eos_id=self.eos_id, add_bos=add_bos, add_eos=add_eos)

    def _generation_stops(self) -> tuple[int, ...]:
        """The end tokens of `generation_config.json`, one or several."""
        named = self._json(GENERATION).get("eos_token_id")
        values = named if isinstance(named, list) else [named]
        return tuple(i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0)

    @cached_property
    def _special(self) -> dict[str, int]:
        return dict(self._backend.special) | {self.piece(i): i for i in self._roles.values()}

    @cached_property
    def _added(self) -> dict[str, int]:
        special = set(self._special.values())
        return {self.piece(i): i for i in sorted(self._backend.added) if i not in special}

    @cached_property
    def _decoding(self) -> Decoding:
        return self._loaded(self._source, lambda _: self._backend.decoding())

    @cached_property
    def _text_table(self) -> list[bytes]:
        table = list(self._decoding.table)
        for token in self._special.values():
            table[token] = b""
        return table

    def _loaded(self, name: str, load: Callable[[bytes], T]) -> T:
        try:
            return load(self._files.get(name, b""))
        except UnicodeDecodeError:
            reason = "it is not UTF-8 text"
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
        except (LookupError, TypeError, AttributeError, RecursionError):
            reason = "a part of it has another form than in a tokenizer"
        raise UserError(f"the tokenizer cannot be used: {reason}", self._where / name, DAMAGED)

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            return {}
        try:
            return parse_object(self._files[name])
        except JSONError as error:
            raise UserError(f"the file {error.reason}", self._where / name, DAMAGED) from None

    def _text(self, name: str) -> str:
        try:
            return self._files[name].decode("utf-8")
        except UnicodeDecodeError:
            raise UserError("the file is not UTF-8", self._where / name, DAMAGED) from None

    def _robustly(self, encode: Callable[[str], T], text: str) -> T:
        try:  # the usual case without a context manager, which would take longer than a short text
            return encode(text)
        except (TypeError, RuntimeError, UnicodeEncodeError):
            with self._one_sentence():
                return encode(without_surrogates(text))
        except BaseException:
            with self._one_sentence():
                raise

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """What the libraries find wrong in a damaged tokenizer only when they use it."""
        try:
            yield
        except BaseException as error:
            if type(error) not in (Exception, RuntimeError) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())[:200]
            where = self._where / self._source
            raise UserError(f"the tokenizer fails on a text: {reason}", where, DAMAGED) from None


DAMAGED = "copy the tokenizer again"


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
