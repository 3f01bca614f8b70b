"""A sentencepiece model as `tokenizer.json` and `tokenizer_config.json`, which transformers reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from yeoul.text.sentencepiece_model import SPACE, ModelType, Piece, PieceType, SentencePieceModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

UNREACHABLE = -1e6
"""Unigram score of pieces that text must never become, such as `<s>` and `<0x41>` typed by somebody: any way
around them is better. tokenizers puts them into its trie, sentencepiece does not."""


def tokenizer_json(model: SentencePieceModel, *, form: Literal["NFC", "NFD"] | None) -> str:
    """The text of a `tokenizer.json` that gives the ids of the sentencepiece library; see `backend_of`."""
    return backend_of(model, form=form).to_str()


def backend_of(model: SentencePieceModel, *, form: Literal["NFC", "NFD"] | None) -> Backend:
    """A tokenizer of the library tokenizers that gives the ids of the sentencepiece library.

    Composition is tokenizers' own NFC (or NFD) and not the model's charsmap: its `Precompiled` takes the first match
    instead of the longest, and only within 5 bytes, so it cannot compose jamo.

    Args:
        model: BPE, unigram or single characters.
        form: of Unicode, into which the model brings its input.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    backend = Tokenizer(_unigram(model) if model.type == ModelType.UNIGRAM else _bpe(model))
    steps: list[Any] = [] if form is None else [normalizers.NFC() if form == "NFC" else normalizers.NFD()]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if not any(SPACE in piece.text.lstrip(SPACE) for piece in model.pieces if piece.type == PieceType.NORMAL):
        # No piece has a space after something else, so cutting there changes no id; it lets tokenizers cache.
        words = Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
        backend.pre_tokenizer = pre_tokenizers.Split(words, behavior="isolated")
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [p.text for p in model.pieces if p.type in (PieceType.CONTROL, PieceType.UNKNOWN)]
    user = [p.text for p in model.pieces if p.type == PieceType.USER_DEFINED]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in user])
    _check_ids(backend, model)
    return backend


def tokenizer_config(
    *,
    special: dict[str, str],
    chat_tokens: tuple[str, ...],
    chat_template: str,
    model_max_length: int | None,
) -> str:
    """The text of `tokenizer_config.json`.

    Args:
        special: roles ("bos_token", ...) and their tokens.
        chat_tokens: further special tokens.
        chat_template: Jinja source.
        model_max_length: tokens that the model can take, if known.
    """
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "additional_special_tokens": list(chat_tokens),
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "chat_template": chat_template,
    }
    if model_max_length is not None:
        values["model_max_length"] = model_max_length
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


def _bpe(model: SentencePieceModel) -> Any:
    from tokenizers.models import BPE

    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next(p.text for p in model.pieces if p.type == PieceType.UNKNOWN)
    return BPE(
        vocab=vocabulary,
        merges=[] if model.type == ModelType.CHAR else bpe_merges(model.pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def bpe_merges(pieces: tuple[Piece, ...]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best-scored result first.

    sentencepiece merges any two neighbours whose text is a piece, best score first and leftmost among equals;
    tokenizers merges by rank of the pair. Pairs with the same result stand together here, the longer left
    part first, which is what merging from the left makes. They could differ only where two such pairs overlap
    (a+ba and ab+a in "a ba a").
    """
    scores = {piece.text: piece.score for piece in pieces if piece.type == PieceType.NORMAL}
    merges = [
        (text[:cut], text[cut:])
        for text in sorted(scores, key=lambda text: -scores[text])
        for cut in range(len(text) - 1, 0, -1)
        if text[:cut] in scores and text[cut:] in scores
    ]
    return merges


def _unigram(model: SentencePieceModel) -> Any:
    from tokenizers.models import Unigram

    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == PieceType.UNKNOWN)
    vocabulary = [
        (piece.text, piece.score if piece.type == PieceType.NORMAL else UNREACHABLE) for piece in model.pieces
    ]
    return Unigram(vocab=vocabulary, unk_id=unknown, byte_fallback=model.byte_fallback)


def _check_ids(backend: Backend, model: SentencePieceModel) -> None:
    wrong = [p.text for i, p in enumerate(model.pieces) if backend.token_to_id(p.text) != i]
    if wrong or backend.get_vocab_size() != len(model.pieces):
        raise RuntimeError(f"tokenizer.json has other ids for {wrong[:5]}")
