"""Training of tokenizers, by sentencepiece or by the library tokenizers, and the Hugging Face folder that holds one."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.errors import UserError
from yeoul.text.agreement import SCORE_STEPS
from yeoul.text.byte_level_training import train_byte_level
from yeoul.text.chat import CHAT_TOKENS, DEFAULT_TEMPLATE
from yeoul.text.files import put_tokenizer
from yeoul.text.hf_export import tokenizer_config, tokenizer_json
from yeoul.text.nfc import nfc_tsv, nfd_tsv
from yeoul.text.sentencepiece_model import SPACE, Piece, PieceType, read_model, rewrite_model
from yeoul.text.tokenizer import Tokenizer

PAD, UNKNOWN, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
"""Ids 0 to 3; the chat tokens follow, then the user symbols, the bytes, and what was learned."""

SENTENCE_BYTES = 4000
"""Longer lines are trained in parts: sentencepiece drops what is longer than its limit."""
THREADS = 2
"""Fixed, because the sums of unigram training depend on it."""
KINDS = ("bpe", "unigram", "char", "byte-level")
NORMALIZATIONS = ("nfc", "nfd", "identity")
JAMO = tuple(
    chr(c) for c in (*range(0x1100, 0x1200), *range(0xA960, 0xA97D), *range(0xD7B0, 0xD7C7), *range(0xD7CB, 0xD7FC))
)
"""All conjoining jamo, those of old Hangul too (Unicode standard, section 18.6); 357."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What is trained.

    Raises:
        UserError: values that do not go together.
    """

    vocab_size: int = 8000
    """Number of ids, special tokens and bytes included."""
    model_type: Literal["bpe", "unigram", "char", "byte-level"] = "bpe"
    """Kind of tokenizer: bpe, unigram, char (each character a token, at most --vocab-size of them) or byte-level (BPE
    over bytes, as in GPT-2 and Llama 3)."""
    character_coverage: float = 0.9995
    """Share of the text's characters that become pieces; the rest are spelled in bytes."""
    byte_fallback: bool = True
    """Spell unknown characters in bytes instead of losing them."""
    normalization: Literal["nfc", "nfd", "identity"] = "nfc"
    """nfc composes decomposed Hangul and accents; nfd takes syllables apart into jamo, which are composed again when
    ids become text; identity leaves the text as it is."""
    old_hangul: bool = False
    """Give each jamo of old Hangul a piece, whether the text has it or not: 357 ids. Otherwise a rare one is spelled in
    three bytes."""
    user_symbols: tuple[str, ...] = ()
    """Strings that are always one token, wherever they occur."""
    split_digits: bool = False
    """Make every digit a token of its own."""
    add_dummy_prefix: bool = False
    """Put a space before every text, as Llama 2 does."""
    max_sentences: int = 2_000_000
    """Train on at most this many lines, drawn evenly from the text."""
    model_max_length: Annotated[int | None, Parameter(parse=False)] = None
    """Noted in `tokenizer_config.json`."""

    def __post_init__(self) -> None:
        if self.model_type not in KINDS:
            what = f'there is no kind of tokenizer called "{self.model_type}"'
            raise UserError(what, "--model-type", f"use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if self.normalization not in NORMALIZATIONS:
            what = f'there is no normalization "{self.normalization}"'
            raise UserError(what, "--normalization", "use nfc, nfd or identity")
        self._check_byte_level()
        if not 0.98 <= self.character_coverage <= 1:
            raise UserError("the character coverage must be between 0.98 and 1", "--character-coverage", "use 0.9995")
        if self.max_sentences <= 100:
            raise UserError("the tokenizer needs more than 100 lines", "--max-sentences", "raise it")
        smallest = len(self.fixed_tokens) + 1
        if self.vocab_size < smallest:
            raise UserError(
                f"a vocabulary of {self.vocab_size:,} has no room for {smallest - 1} special tokens and bytes",
                "--vocab-size",
                f"use at least {smallest} and room for the characters of the text",
            )
        self._check_user_symbols()

    def _check_byte_level(self) -> None:
        if self.model_type != "byte-level":
            return
        for flag, given, what in (
            ("--no-byte-fallback", not self.byte_fallback, "byte-level BPE is made of bytes"),
            ("--old-hangul", self.old_hangul, "byte-level BPE has no characters that could be given a piece"),
            ("--add-dummy-prefix", self.add_dummy_prefix, "byte-level BPE is trained without a space before texts"),
        ):
            if given:
                raise UserError(what, flag, "leave it out")

    @property
    def fixed_tokens(self) -> tuple[str, ...]:
        """Special tokens, user symbols and bytes, in the order of their ids."""
        own_bytes = tuple(f"<0x{byte:02X}>" for byte in range(256)) if self.byte_fallback else ()
        return (PAD, UNKNOWN, BOS, EOS, *CHAT_TOKENS, *self.user_symbols, *own_bytes)

    def _check_user_symbols(self) -> None:
        import unicodedata

        for symbol in self.user_symbols:
            if not symbol or " " in symbol or SPACE in symbol or "\0" in symbol:
                problem = "is empty or has a space in it"
            elif (self.fixed_tokens + (symbol,)).count(symbol) > 2:
                problem = "is there already"
            elif (form := _form(self.normalization)) and unicodedata.normalize(form, symbol) != symbol:
                problem = f"is not in {form}"
            else:
                continue
            raise UserError(f'the symbol "{symbol}" {problem}', "--user-symbols", "give another one")
        if self.user_symbols and self.add_dummy_prefix:
            raise UserError(
                "user symbols cannot be combined with a space before every text",
                "--add-dummy-prefix",
                "leave one of them out",
            )


def _form(normalization: str) -> Literal["NFC", "NFD"] | None:
    """The name that Unicode has for it."""
    return {"nfc": "NFC", "nfd": "NFD"}.get(normalization)  # type: ignore[return-value]


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, folder: str | Path) -> Tokenizer:
    """Train on texts and write `tokenizer.model` (not of byte-level BPE), `tokenizer.json` and `tokenizer_config.json`.

    The same texts and configuration give the same bytes. Nothing is written unless all of it is.

    Args:
        texts: documents, read once; their lines are the unit of training.
        config: what to train.
        folder: made when missing; tokenizer files in it are replaced.

    Returns:
        the tokenizer, loaded from `folder`.

    Raises:
        UserError: no text, or a vocabulary too large or too small for it.
    """
    if config.model_type == "byte-level":
        vocabulary = {"tokenizer.json": _byte_level(texts, config).encode()}
    else:
        model = _train(texts, config)
        own = tokenizer_json(read_model(model), form=_form(config.normalization))
        vocabulary = {"tokenizer.model": model, "tokenizer.json": own.encode()}
    files = vocabulary | {
        "tokenizer_config.json": tokenizer_config(
            special={"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": BOS, "eos_token": EOS},
            chat_tokens=CHAT_TOKENS,
            chat_template=DEFAULT_TEMPLATE,
            model_max_length=config.model_max_length,
        ).encode(),
    }
    put_tokenizer(Path(folder), files)
    return Tokenizer.load(folder)


def _byte_level(texts: Iterable[str], config: TokenizerConfig) -> str:
    """The text of `tokenizer.json`."""
    sentences = _Sentences(texts)
    return train_byte_level(
        sentences, vocab_size=config.vocab_size, special=(PAD, UNKNOWN, BOS, EOS, *CHAT_TOKENS),
        symbols=config.user_symbols, normalization=config.normalization, split_digits=config.split_digits,
        most_lines=config.max_sentences,
    )  # fmt: skip


def _train(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """The serialized sentencepiece model."""
    from sentencepiece import SentencePieceTrainer

    sentences = _Sentences(texts)
    output = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch:
        options = _options(config)
        if config.normalization != "identity":
            rules = Path(scratch) / "rules.tsv"
            rules.write_text(nfc_tsv() if config.normalization == "nfc" else nfd_tsv(), encoding="ascii")
            options["normalization_rule_tsv"] = str(rules)
        try:
            SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=output, **options)
        except RuntimeError as error:
            if sentences.failure is not None:
                raise sentences.failure from None
            raise _user_error(str(error), config) or error from None

    def score(piece: Piece) -> float:
        if config.model_type == "char" and piece.type == PieceType.NORMAL:
            return 0.0  # no piece competes with another; that of a character which the text lacks would be -infinity
        if config.model_type == "bpe" or piece.type != PieceType.NORMAL:
            return piece.score
        return math.floor(piece.score * SCORE_STEPS + 0.5) / SCORE_STEPS

    return rewrite_model(output.getvalue(), score)


def _options(config: TokenizerConfig) -> dict[str, Any]:
    """Arguments of sentencepiece's trainer."""
    # A space must have a piece: spelled in bytes it would come back as "▁". The newline is no accident of the
    # text either. Unigram needs every character of the special tokens, see hf_export.UNREACHABLE.
    required = SPACE + "\n" + ("".join(JAMO) if config.old_hangul else "")
    if config.model_type == "unigram":
        required += "".join(sorted(set("".join(config.fixed_tokens)) - set(required)))
    return {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hard_vocab_limit": config.model_type != "char",  # of which a text may have fewer
        "character_coverage": config.character_coverage,
        "byte_fallback": config.byte_fallback,
        "user_defined_symbols": list(config.user_symbols),
        "control_symbols": list(CHAT_TOKENS),
        "required_chars": required,
        "split_digits": config.split_digits,
        "add_dummy_prefix": config.add_dummy_prefix,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "pad_piece": PAD,
        "unk_piece": UNKNOWN,
        "bos_piece": BOS,
        "eos_piece": EOS,
        # sentencepiece draws with a fixed seed
        "input_sentence_size": config.max_sentences,
        "shuffle_input_sentence": True,
        "max_sentence_length": 4 * SENTENCE_BYTES,
        "num_threads": THREADS,
        "minloglevel": 3,
    }


class _Sentences:
    """Lines of texts, none longer than `SENTENCE_BYTES`; remembers what went wrong while reading.

    sentencepiece turns an exception of its iterator into a RuntimeError with a traceback as its text.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self.texts:
                # U+2585 is sentencepiece's own mark for unknown; it drops lines that have it.
                for line in re.split("[\n\u2585]", text):
                    yield from _parts(line.encode("utf-8", "replace").decode())
        except BaseException as error:
            self.failure = error
            raise


def _parts(line: str) -> Iterator[str]:
    """Cut a long line before spaces, or anywhere when there are none."""
    limit = SENTENCE_BYTES // 4
    while len(line) > limit:
        cut = line.rfind(" ", 1, limit)
        cut = cut if cut > 0 else limit
        yield line[:cut]
        line = line[cut:]
    if line:
        yield line


def _user_error(message: str, config: TokenizerConfig) -> UserError | None:
    """The sentence for sentencepiece's message; None when it is not about the user's input."""
    if "!sentences_.empty()" in message or "(all_chars_count) > (0)" in message:
        return UserError("there is no text to train a tokenizer on", "--data", "give some text")
    if match := re.search(r"too high \(\d+\).*?<= (\d+)", message):
        return UserError(
            f"the vocabulary of {config.vocab_size:,} is larger than this text allows",
            "--vocab-size",
            f"use at most {match[1]}, or give more text",
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"the vocabulary of {config.vocab_size:,} is too small for the characters of this text",
            "--vocab-size",
            f"use more than {match[1]}, or lower --character-coverage",
        )
    return None
