"""NFC, and NFD, as sentencepiece's normalization rules, so that a `tokenizer.model` alone composes what it reads.

sentencepiece replaces, from left to right, the longest match in a finite table, while NFC also sorts runs of
combining marks of any length. The table here has every spelling of every composed character (so all of
Hangul, Latin, Greek, kana, ...) and every two marks in the wrong order. It is therefore NFC for text that is
composed, decomposed (NFD) or spelled in between; what it leaves alone are marks between a letter and the mark
that composes with it. `tokenizer.json` has the full algorithm, so there Yeoul's own encoding is always NFC.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache

Rules = dict[str, str]


def nfc_rules() -> Rules:
    """All rules, source text to NFC text (about 35,000)."""
    rules = _hangul_rules()
    characters = [chr(c) for c in range(1, sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    for character in characters:
        decomposition = unicodedata.decomposition(character)
        if decomposition and not decomposition.startswith("<"):  # "<compat> ..." is not canonical
            for spelling in _spellings(character):
                rules[spelling] = _nfc(spelling)
    marks = [character for character in characters if unicodedata.combining(character)]
    for late, early in itertools.product(marks, marks):
        same_script = ord(late) >> 8 == ord(early) >> 8
        wrong = unicodedata.combining(late) > unicodedata.combining(early)
        if same_script and wrong:
            rules.setdefault(late + early, _nfc(late + early))
    return rules


@cache
def nfc_tsv() -> str:
    """The rules as sentencepiece's `normalization_rule_tsv`: hexadecimal code points, source, tab, target."""
    return "".join(f"{_hex(source)}\t{_hex(target)}\n" for source, target in sorted(nfc_rules().items()))


@cache
def nfd_tsv() -> str:
    """Rules that decompose, in the same form: all of Hangul into jamo, accents into letters and marks.

    Two marks in the wrong order are sorted, as in `nfc_rules`.
    """
    decomposed = {source: _nfd(source) for source in nfc_rules()}
    for character in map(chr, (*range(1, 0xD800), *range(0xE000, sys.maxunicode + 1))):
        if (apart := _nfd(character)) != character:
            decomposed[character] = apart
    rules = sorted((source, target) for source, target in decomposed.items() if source != target)
    return "".join(f"{_hex(source)}\t{_hex(target)}\n" for source, target in rules)


def is_nfd(charsmap: bytes) -> bool:
    """Whether sentencepiece's compiled rules take Hangul apart, as these here do."""
    size = int.from_bytes(charsmap[:4], "little")
    targets = {text for text in charsmap[4 + size :].decode("utf-8", "replace").split("\0") if text}
    return all(_nfd(chr(code)) in targets for code in range(0xAC00, 0xAC00 + 19 * 21 * 28))


def is_nfc(charsmap: bytes) -> bool:
    """Whether sentencepiece's compiled rules compose texts and do no more, as these here and its own "nfc" do.

    They are a trie of so many bytes as the first four say, and behind it the texts that replace others. All syllables
    of Hangul are among these; of plain letters and digits, which NFKC makes of others, hardly any.
    """
    size = int.from_bytes(charsmap[:4], "little")
    targets = {text for text in charsmap[4 + size :].decode("utf-8", "replace").split("\0") if text}
    composed = all(chr(code) in targets for code in range(0xAC00, 0xAC00 + 19 * 21 * 28))
    return composed and not {"0", "A", "a"} & targets


def _hangul_rules() -> Rules:
    """Conjoining jamo L+V, LV+T and L+V+T to syllables (Unicode standard, section 3.12)."""
    rules: Rules = {}
    for lead, vowel in itertools.product(range(19), range(21)):
        pair = chr(0x1100 + lead) + chr(0x1161 + vowel)
        syllable = chr(0xAC00 + (lead * 21 + vowel) * 28)
        rules[pair] = syllable
        for tail in range(1, 28):
            rules[pair + chr(0x11A7 + tail)] = chr(ord(syllable) + tail)
            rules[syllable + chr(0x11A7 + tail)] = chr(ord(syllable) + tail)
    return rules


def _spellings(character: str) -> Iterator[str]:
    """Texts canonically equivalent to `character` that are not NFC: marks in any order, partly composed."""
    full = unicodedata.normalize("NFD", character)
    for order in set(itertools.permutations(full[1:])):
        text = full[0] + "".join(order)
        if unicodedata.normalize("NFD", text) != full:
            continue
        for size in range(1, len(text) + 1):
            prefix = _nfc(text[:size])
            spelling = prefix + text[size:]
            if len(prefix) == 1 and _nfc(spelling) != spelling:
                yield spelling
    if _nfc(character) != character:
        yield character


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
