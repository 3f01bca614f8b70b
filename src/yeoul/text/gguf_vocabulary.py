"""A folder's tokenizer as the metadata of a GGUF file, such that llama.cpp gives the same ids.

llama.cpp has its own tokenizers: "llama" (sentencepiece's BPE, by scores), "gpt2" (byte-level BPE, by merges,
after one of the pre-tokenizers that it knows by name) and "t5" (unigram). Keys are those of the GGUF
specification, `tokenizer.ggml.*`. What llama.cpp would split otherwise is refused; where only rare text
differs, a note says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.text.backends import BYTE_PIECE, JsonBackend, ModelBackend
from yeoul.text.files import find_folder
from yeoul.text.gguf_pre_tokenizers import COMPOSED, PRE_TOKENIZERS, WHOLE, pre_tokenizer_of
from yeoul.text.sentencepiece_model import SPACE, ModelType, PieceType, read_model
from yeoul.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

Json = Mapping[str, Any]

NEVER = -1e6
"""Score of pieces that no text may become; ranks of merges and log-probabilities stay above it."""
YEOUL_WORDS = f"{SPACE}*[^{SPACE}]+|{SPACE}+"
"""Where Yeoul's own `tokenizer.json` cuts, see `hf_export`."""

PREFIX_NOTE = (
    "llama.cpp puts a space before every text and after every special token, this tokenizer only where there is none"
)

PROBES = (
    "The quick brown fox's DON'T we'LL it'd I'm you've THEY'RE o'clock 'tis",
    "한국어 텍스트, 안녕하세요! 그는 말했다. \u1112\u1161\u11ab\u1100\u1173\u11af ㅋㅋㅋ ㅠㅠ 中文字符 日本語テキスト",
    "1 12 123 1234 12345 3.14 1,000,000원 2024년 10월 ½ ٣٤٥ x86_64 abc123def 99bottles",
    "a  b   c\td\n\ne \n f\r\n\r\n  g   \n\n\n   h     ",
    "foo(bar);\n\n  return x/y//z;\n/* ok? */ !!!\n... --\r\n[]{}<>\n a_b __init__ #tag @me 50% $5 €3",
    "CamelCase HTTPServer iPhone ǅungla Éclair ÀÇ naïve e\u0301te\u0301 straße Ελληνικά ДОМ дом العربية हिन्दी",
    "🙂🙂 👨‍👩‍👧 ❤️ x🙂y\u00a0nbsp\u3000wide\u200bzero \u2028 sep … “quotes” ‘single’ –—",
    " leading 'S 'll'x ''s 't1 1's\n's /\n\n/ /\r 한/\n글/ ",
)
"""Texts that the known ways of cutting part on."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """`tokenizer.*` metadata (key -> str, int, bool, list or bytes), and what a user should know."""

    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class _Pieces:
    """Text, score and type of each id, from 0."""

    texts: list[str]
    scores: list[float]
    types: list[PieceType]

    def cut(self, size: int) -> None:
        """As many as the model has rows: what is beyond goes, what is missing is marked unused."""
        for i in range(len(self.texts), size):
            self.texts.append(f"[no token {i}]")
            self.scores.append(NEVER)
            self.types.append(PieceType.UNUSED)
        del self.texts[size:], self.scores[size:], self.types[size:]


def gguf_vocabulary(
    folder: Path,
    size: int,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
    end_ids: Sequence[int] = (),
) -> Vocabulary:
    """The tokenizer of a folder for a model with `size` rows of embeddings.

    Args:
        folder: with `tokenizer.json` or `tokenizer.model`.
        size: tokens of the model; missing ids are marked unused.
        bos_id: the model's own, where the tokenizer names none; `eos_id` and `pad_id` alike.
        end_ids: further tokens that end a text, by the model; llama.cpp knows one beside `eos_id`.

    Raises:
        UserError: no tokenizer, one of a kind that llama.cpp does not have, without an end token, or with ordinary
            pieces beyond the model's tokens: without them a text would be cut otherwise, or not at all.
    """
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_fits(size)
    place = (find_folder(folder) or folder) / tokenizer.source
    backend = tokenizer._backend
    notes: list[str] = []
    whole = None
    if isinstance(backend, JsonBackend):
        # As the library holds it, with the added tokens that other files of the folder name.
        spec = json.loads(backend._tokenizer.to_str())
        model = place.with_name("tokenizer.model")
        pieces, metadata = _from_json(spec, model.read_bytes() if model.is_file() else None, place, notes)
        if notes or (metadata.get("pre") in COMPOSED and not spec.get("normalizer")):
            whole = backend._tokenizer.to_str()  # for who reads it: llama.cpp cuts some texts otherwise
    else:
        assert isinstance(backend, ModelBackend)
        pieces, metadata = _from_model(backend, place, notes)
    framing = tokenizer.framing
    ends = bool(framing.end) and framing.end == (tokenizer.eos_id,)
    metadata |= {"add_bos_token": tokenizer.add_bos, "add_eos_token": ends}
    if framing.end and not ends:
        last = tokenizer.spelled(framing.end)
        notes.append(f"llama.cpp leaves out {last} behind texts that are embedded or classified")
    if len(pieces.texts) > size:
        notes.append(f"{len(pieces.texts) - size} ids beyond the model's {size:,} tokens were left out")
    pieces.cut(size)
    ids = {
        "bos_token_id": _first(tokenizer.bos_id, bos_id),
        "eos_token_id": _first(tokenizer.eos_id, eos_id),
        "eot_token_id": None,
        "unknown_token_id": tokenizer.unk_id,
        "padding_token_id": _first(tokenizer.pad_id, pad_id),
    }
    if ids["eos_token_id"] is None:
        fix = 'name it in tokenizer_config.json ("eos_token")'
        raise UserError("the tokenizer has no end token, and llama.cpp would take another for it", place, fix)
    over = [i for i in dict.fromkeys((*tokenizer.stop_ids, *end_ids)) if i != ids["eos_token_id"] and i < size]
    ids["eot_token_id"] = _first(*over)
    if len(over) > 1:
        others = ", ".join(repr(pieces.texts[i]) for i in over[1:])
        notes.append(f"of the tokens that end a text, llama.cpp is told two; it is not told of {others}")
    metadata |= {key: i for key, i in ids.items() if i is not None and i < size}
    metadata |= {"tokens": pieces.texts, "scores": pieces.scores, "token_type": [int(t) for t in pieces.types]}
    result = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    if whole is not None:
        result[WHOLE] = whole
    if tokenizer.chat_template is not None:
        result["tokenizer.chat_template"] = tokenizer.chat_template
    return Vocabulary(metadata=result, notes=tuple(notes))


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _from_json(spec: Json, model: bytes | None, place: Path, notes: list[str]) -> tuple[_Pieces, dict[str, Any]]:
    """Pieces and metadata of a `tokenizer.json`."""
    kind = spec["model"].get("type", "BPE")
    cutters = list(_steps(spec.get("pre_tokenizer"), "pretokenizers"))
    normalizers = list(_steps(spec.get("normalizer"), "normalizers"))
    if kind == "Unigram":
        return _unigram(spec, normalizers, cutters, model, place, notes)
    if kind != "BPE":
        raise UserError(f"a {kind} tokenizer cannot be exported", place, "use a BPE or unigram tokenizer")
    for habit in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if spec["model"].get(habit):
            raise UserError(f"llama.cpp's BPE has no {habit!r}", place)
    if any(step["type"] == "ByteLevel" for step in (*cutters, *_steps(spec.get("decoder"), "decoders"))):
        return _byte_level(spec, normalizers, cutters, place, notes)
    return _sentencepiece_bpe(spec, normalizers, cutters, place, notes)


def _steps(part: Json | None, inner: str) -> Iterator[Json]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences unrolled."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for step in part[inner]:
            yield from _steps(step, inner)
    else:
        yield part


def _pieces(vocabulary: Mapping[str, int], spec: Json, scores: Mapping[str, float]) -> _Pieces:
    """Pieces by id: special tokens, added tokens that are found in any text, the unknown token, the rest."""
    size = 1 + max([*vocabulary.values(), *(token["id"] for token in spec["added_tokens"])])
    pieces = _Pieces([], [], [])
    pieces.cut(size)
    for text, i in vocabulary.items():
        pieces.texts[i], pieces.scores[i], pieces.types[i] = text, scores.get(text, 0.0), PieceType.NORMAL
    for token in spec["added_tokens"]:
        i, text = token["id"], token["content"]
        pieces.texts[i] = text
        # Runs of spaces are made by merging; what is looked for in the text itself would be U+2581.
        if not token["special"] and SPACE in text and text in scores:
            continue
        pieces.types[i] = PieceType.CONTROL if token["special"] else PieceType.USER_DEFINED
        pieces.scores[i] = NEVER
    return pieces


def _byte_level(
    spec: Json, normalizers: list[Json], cutters: list[Json], place: Path, notes: list[str]
) -> tuple[_Pieces, dict[str, Any]]:
    _check_normalizers(normalizers, place, notes)
    name = pre_tokenizer_name(spec, place)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    pieces = _pieces(spec["model"]["vocab"], spec, {})
    return pieces, {"model": "gpt2", "pre": name, "merges": merges}


def pre_tokenizer_name(spec: Json, place: Path) -> str:
    """llama.cpp's name for the way a byte-level `tokenizer.json` cuts text, found by what it does to `PROBES`.

    Raises:
        UserError: llama.cpp has none that cuts alike.
    """
    from tokenizers import Tokenizer as Backend

    cut = Backend.from_str(json.dumps(spec)).pre_tokenizer
    found = [_cuts(cut, text) for text in PROBES]
    ignore_merges = bool(spec["model"].get("ignore_merges"))
    for name, whole_words, how in PRE_TOKENIZERS:
        if whole_words == ignore_merges and all(
            _cuts(pre_tokenizer_of(how), text) == cuts for text, cuts in zip(PROBES, found, strict=True)
        ):
            return name
    known = ", ".join(name for name, _, _ in PRE_TOKENIZERS)
    raise UserError(
        "the tokenizer cuts text in a way that none of the pre-tokenizers of llama.cpp known here does, and its "
        f"ids would differ (known: {known})",
        place,
    )


def _cuts(how: PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in how.pre_tokenize_str(text)]


def _check_normalizers(normalizers: list[Json], place: Path, notes: list[str]) -> None:
    """Refuse what changes common text; llama.cpp normalizes nothing."""
    for step in normalizers:
        if step["type"] != "NFC":
            raise UserError(f"llama.cpp does not normalize text, and this tokenizer does ({step['type']})", place)
        notes.append("llama.cpp does not compose characters (NFC): give it composed text, as nearly all text is")


def _space_habits(
    normalizers: list[Json], cutters: list[Json], pieces: Mapping[str, Any], place: Path, notes: list[str]
) -> tuple[list[Json], bool]:
    """Take off the steps that turn spaces into U+2581; the rest, and whether a space is put before the text.

    Raises:
        UserError: spaces stay spaces, or text is cut where a piece goes on.
    """
    rest, prefix, replaced = [], False, False
    for step in normalizers:
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            replaced = True
        else:
            rest.append(step)
    for step in cutters:
        if step["type"] == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix, replaced = prefix or scheme != "never", True
            notes += [PREFIX_NOTE] if scheme != "never" else []
            crossing = (piece for piece in pieces if SPACE in piece[1:]) if step.get("split", True) else iter(())
        elif step["type"] == "Split" and step["pattern"] == {"Regex": YEOUL_WORDS}:
            crossing = (piece for piece in pieces if SPACE in piece.lstrip(SPACE))
        elif step["type"] == "Split" and step["pattern"] == {"String": " "} and replaced:
            continue  # no space is left
        else:
            raise UserError(f"llama.cpp cannot cut text as this tokenizer does ({step['type']})", place)
        if (piece := next(crossing, None)) is not None:
            raise UserError(f"llama.cpp would not cut text before the spaces inside {piece!r}", place)
    if not replaced:
        raise UserError("llama.cpp has no tokenizer that keeps spaces as they are", place)
    return rest, prefix


def _sentencepiece_bpe(
    spec: Json, normalizers: list[Json], cutters: list[Json], place: Path, notes: list[str]
) -> tuple[_Pieces, dict[str, Any]]:
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    rest, prefix = _space_habits(normalizers, cutters, vocabulary, place, notes)
    _check_normalizers(rest, place, notes)
    halves = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in spec["model"]["merges"])
    merges = [(left, right) for left, right in halves]
    added = {token["content"] for token in spec["added_tokens"]}
    pieces = _pieces(vocabulary, spec, merge_scores(vocabulary, merges, added, place))
    _mark_unknown_and_bytes(pieces, spec["model"].get("unk_token"), bool(spec["model"].get("byte_fallback")))
    _check_bytes(pieces, place)
    return pieces, {"model": "llama", "pre": "default", "add_space_prefix": prefix}


def merge_scores(
    vocabulary: Mapping[str, int], merges: list[tuple[str, str]], added: set[str], place: Path
) -> dict[str, float]:
    """Scores of pieces from merges: sentencepiece joins any two neighbours that make a piece, best score first.

    Raises:
        UserError: the merges are not those of a sentencepiece model, so that no scores give the same ids.
    """
    foreign = UserError("the tokenizer's merges are not those of a sentencepiece model", place)
    scores: dict[str, float] = {}
    before = None
    for rank, (left, right) in enumerate(merges):
        piece = left + right
        if piece != before and piece in scores:
            raise foreign
        scores.setdefault(piece, -float(rank + 1))
        before = piece
    known = set(merges)
    for piece in vocabulary.keys() - added:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in known:
                if BYTE_PIECE.fullmatch(piece) or left in added or right in added:
                    continue
                raise foreign
    return scores


def _unigram(
    spec: Json, normalizers: list[Json], cutters: list[Json], model: bytes | None, place: Path, notes: list[str]
) -> tuple[_Pieces, dict[str, Any]]:
    entries: list[tuple[str, float]] = spec["model"]["vocab"]
    vocabulary = {text: i for i, (text, _) in enumerate(entries)}
    rest, prefix = _space_habits(normalizers, cutters, vocabulary, place, notes)
    charsmap = read_model(model).charsmap if model and rest else b""
    _check_normalizers(rest, place, [] if charsmap else notes)
    pieces = _pieces(vocabulary, spec, dict(entries))
    unknown = spec["model"].get("unk_id")
    _mark_unknown_and_bytes(pieces, None if unknown is None else entries[unknown][0], False)
    return pieces, _unigram_metadata(prefix, charsmap, bool(spec["model"].get("byte_fallback")), place)


def _unigram_metadata(prefix: bool, charsmap: bytes, has_bytes: bool, place: Path) -> dict[str, Any]:
    if has_bytes:
        raise UserError(
            "llama.cpp's unigram tokenizer does not spell characters in bytes: what has no piece would become <unk>",
            place,
            "use a BPE tokenizer, or a unigram one without byte fallback",
        )
    values = {"model": "t5", "pre": "default", "add_space_prefix": prefix, "remove_extra_whitespaces": False}
    return values | ({"precompiled_charsmap": charsmap} if charsmap else {})


def _mark_unknown_and_bytes(pieces: _Pieces, unknown: str | None, has_bytes: bool) -> None:
    for i, text in enumerate(pieces.texts):
        if text == unknown:
            pieces.types[i] = PieceType.UNKNOWN
        elif has_bytes and pieces.types[i] == PieceType.NORMAL and BYTE_PIECE.fullmatch(text):
            pieces.types[i], pieces.scores[i] = PieceType.BYTE, NEVER


def _check_bytes(pieces: _Pieces, place: Path) -> None:
    if sum(kind == PieceType.BYTE for kind in pieces.types) != 256:
        raise UserError(
            "llama.cpp stops at a character that has no piece, and this tokenizer has no bytes to spell it in",
            place,
            "train one with byte fallback",
        )


def _from_model(backend: ModelBackend, place: Path, notes: list[str]) -> tuple[_Pieces, dict[str, Any]]:
    """Pieces and metadata of a `tokenizer.model`, with the tokens that other files add to it."""
    model = backend.model
    pieces = _Pieces([], [], [])
    pieces.cut(1 + max(backend._pieces))
    for i, text in backend._pieces.items():
        own = model.pieces[i] if i < len(model.pieces) else None
        kind = PieceType.USER_DEFINED if own is None else own.type
        if text in backend.special and kind != PieceType.UNKNOWN:
            kind = PieceType.CONTROL
        score = own.score if own is not None and kind == PieceType.NORMAL else NEVER
        pieces.texts[i], pieces.scores[i], pieces.types[i] = text, score, kind
    prefix = model.add_dummy_prefix and backend._prefix != "never"
    if model.type == ModelType.UNIGRAM:
        return pieces, _unigram_metadata(prefix, model.charsmap, model.byte_fallback, place)
    if model.type != ModelType.BPE:
        raise UserError(f"a sentencepiece model of type {model.type.name.lower()} cannot be exported", place)
    if model.charsmap:
        notes.append("llama.cpp does not normalize text as this sentencepiece model does: give it composed text (NFC)")
    _check_bytes(pieces, place)
    return pieces, {"model": "llama", "pre": "default", "add_space_prefix": prefix}
