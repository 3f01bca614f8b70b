"""Whether a `tokenizer.json` and the `tokenizer.model` beside it are certain to cut any text in the same way.

What is before the cutting (composition, the space before a text, added tokens) is taken from `tokenizer.json` alone,
see `SentencePieceIds`; so only pieces, scores and merges have to agree. They are compared one by one.

**BPE.** sentencepiece merges any two neighbours whose text is a piece, the best score first and the leftmost of equals;
tokenizers merges pairs by rank, again the leftmost of equals. Let every way to halve a piece be a merge, ranked by the
score of what it makes, and all scores be different. Then both do the same: within the place where a piece is made, the
merges are those that it would have alone, because each is the best of all and so the best there. A piece alone comes
from one pair only, the last two symbols. So whenever several places could make the same piece they have the same
pair and the same rank; the leftmost is merged by both.

**Unigram.** Both take the best path and, of equal ones, that whose last piece is the longest. sentencepiece sums
in float32: multiples of 1/256 whose sums stay below 2^16 are exact in it, as they are in tokenizers' float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from yeoul.text.added_tokens import AddedToken
from yeoul.text.hf_export import UNREACHABLE
from yeoul.text.sentencepiece_model import SPACE, ModelType, Piece, PieceType, SentencePieceModel

SCORE_STEPS = 256
"""Unigram scores are multiples of 1/256 (Yeoul's training rounds them), so that sums of thousands of them are exact in
sentencepiece's float32 as in tokenizers' float64, and equally good cuts tie in both."""
LARGEST_SUM = 2**16
"""Float32 has all multiples of 1/256 below it."""
UNKNOWN_PENALTY = 10
"""The score of a character without a piece is so much below the lowest."""
WORDS = f"{SPACE}*[^{SPACE}]+|{SPACE}+"
"""How `yeoul.text.hf_export` cuts texts into words."""
FALSE_VALUES = (None, "", False)

Form = Literal["NFC", "NFD"] | None
Prefix = Literal["always", "missing", "never"]


class Doubt(Exception):
    """Why the same ids are not certain."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """What happens to a text, by its `tokenizer.json`, before pieces are looked for.

    Attributes:
        form: of Unicode.
        prefix: a space before a text: always, only where none is there, or never.
        by_word: no piece goes on across the end of a word, so that words can be cut by themselves.
        longest: characters within which sums of scores are exact; None where there are none.
    """

    form: Form
    prefix: Prefix
    by_word: bool
    longest: int | None


def agreed(spec: Mapping[str, Any], added: Sequence[AddedToken], model: SentencePieceModel) -> Cutting:
    """How to encode with `model` as `spec` says.

    Args:
        spec: `tokenizer.json`.
        added: all added tokens, those of other files too.
        model: `tokenizer.model`.

    Raises:
        Doubt: the ids of some text may be others.
    """
    found = [token for token in added if not token.special]
    form, prefix, split = _before(spec)
    # Pieces with a space behind something else go on across the ends of words.
    by_word = not any(SPACE in piece.text.lstrip(SPACE) for piece in model.pieces if piece.type == PieceType.NORMAL)
    if split and not by_word:
        raise Doubt("tokenizer.json cuts words that have pieces in common")
    if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in found):
        raise Doubt("an added token looks at what is around it")
    if found and prefix != "never":
        raise Doubt("there are added tokens and a space before texts")
    _check_pieces(spec["model"], model, {token.content for token in found}, form is not None)
    if model.type == ModelType.UNIGRAM:
        longest = _check_unigram(spec["model"], model)
    elif model.type in (ModelType.BPE, ModelType.CHAR):
        longest = None
        _check_merges(spec["model"], model)
    else:
        raise Doubt("it is a model of words")
    return Cutting(form=form, prefix=prefix, by_word=by_word, longest=longest)


def _before(spec: Mapping[str, Any]) -> tuple[Form, Prefix, bool]:
    """The form of Unicode, the space before a text, and whether words are cut first."""
    steps, cutter = _normalizers(spec.get("normalizer")), spec.get("pre_tokenizer")
    form: Form = steps.pop(0)["type"] if steps and steps[0]["type"] in ("NFC", "NFD") else None
    if not steps and cutter is not None and cutter["type"] == "Metaspace":
        scheme = cutter.get("prepend_scheme")
        whole = cutter.get("replacement") == SPACE and cutter.get("split") is False
        if whole and scheme in ("first", "always", "never"):
            return form, "never" if scheme == "never" else "missing", False
    prepend, replace = (
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    )
    words = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    if steps in ([prepend, replace], [replace]) and cutter in (None, words):
        return form, "never" if steps == [replace] else "always", cutter is not None
    raise Doubt("tokenizer.json changes or cuts texts in a way that is not known")


def _normalizers(part: Mapping[str, Any] | None) -> list[Any]:
    if part is None:
        return []
    return list(part["normalizers"]) if part["type"] == "Sequence" else [part]


def _check_pieces(theirs: Mapping[str, Any], model: SentencePieceModel, found: set[str], composes: bool) -> None:
    """Every piece has its id, and every character of a piece is one; `found` are added tokens found in any text."""
    if model.space_behind:
        raise Doubt("spaces belong to the word before them")
    vocabulary = theirs["vocab"]
    own = {piece.text: i for i, piece in enumerate(model.pieces)}
    ids = vocabulary if isinstance(vocabulary, dict) else {entry[0]: i for i, entry in enumerate(vocabulary)}
    if len(own) != len(model.pieces) or len(ids) != len(vocabulary) or ids != own:
        raise Doubt("the vocabularies differ")
    normal = {piece.text for piece in model.pieces if piece.type == PieceType.NORMAL}
    if SPACE not in normal:
        raise Doubt("a space has no piece")
    searched = model.pieces if model.type == ModelType.UNIGRAM else [p for p in model.pieces if p.text in normal]
    if not normal.issuperset(character for piece in searched for character in piece.text):
        raise Doubt("a piece has a character that is none")
    for piece in model.pieces:
        if piece.type == PieceType.UNUSED:
            raise Doubt("there are unused pieces")
        if piece.type == PieceType.USER_DEFINED and piece.text not in found:
            raise Doubt("a symbol is no added token")
        # Behind the added tokens, only composition could make one; a single character would then be its own piece.
        if piece.type != PieceType.NORMAL and len(piece.text) == 1 and (composes or piece.text not in found):
            raise Doubt("a single character is a symbol")
    if bool(theirs.get("byte_fallback")) != model.byte_fallback:
        raise Doubt("only one of them spells characters in bytes")
    spelled = [piece.text for piece in model.pieces if piece.type == PieceType.BYTE]
    if model.byte_fallback and sorted(spelled) != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise Doubt("bytes are missing")


def _unknown(model: SentencePieceModel) -> tuple[int, str]:
    """Id and text of the piece for what is not known."""
    unknown = [(i, piece.text) for i, piece in enumerate(model.pieces) if piece.type == PieceType.UNKNOWN]
    if len(unknown) != 1:
        raise Doubt("there are several unknown pieces, or none")
    return unknown[0]


def _check_merges(theirs: Mapping[str, Any], model: SentencePieceModel) -> None:
    if (
        theirs.get("type") != "BPE"
        or theirs.get("unk_token") != _unknown(model)[1]
        or theirs.get("fuse_unk") is not True
    ):
        raise Doubt("what is not known is treated in another way")
    others = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if any(theirs.get(key) not in FALSE_VALUES for key in others):
        raise Doubt("the merges have conditions")
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == PieceType.NORMAL}
    longer = {text: score for text, score in scores.items() if len(text) > 1}
    if model.type == ModelType.CHAR:
        longer = {}
    if len(set(longer.values())) < len(longer):
        raise Doubt("two pieces have the same score")
    last, seen = float("inf"), set()
    for merge in theirs["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        score = longer.get(left + right)
        if score is None or left not in scores or right not in scores or score > last:
            raise Doubt("the merges have another order than the scores")
        last = score
        seen.add((left, right))
    halves = sum(t[:cut] in scores and t[cut:] in scores for t in longer for cut in range(1, len(t)))
    if len(seen) != halves or len(theirs["merges"]) != halves:
        raise Doubt("some ways to make a piece are no merges")


def _check_unigram(theirs: Mapping[str, Any], model: SentencePieceModel) -> int:
    """Characters within which all sums are exact."""
    if theirs.get("type") != "Unigram" or theirs.get("unk_id") != _unknown(model)[0]:
        raise Doubt("what is not known is treated in another way")
    expected = [_json_score(piece) for piece in model.pieces]
    if [entry[1] for entry in theirs["vocab"]] != expected:
        raise Doubt("the scores differ")
    scores = [piece.score for piece in model.pieces if piece.type == PieceType.NORMAL]
    if not all((score * SCORE_STEPS).is_integer() for score in scores) or max(scores) > 0:
        raise Doubt("sums of scores are not exact")
    return int(LARGEST_SUM / (UNKNOWN_PENALTY - min(scores))) - 2


def _json_score(piece: Piece) -> float:
    return piece.score if piece.type == PieceType.NORMAL else UNREACHABLE
