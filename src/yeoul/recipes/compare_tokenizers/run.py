"""`yeoul.compare_tokenizers`: each tokenizer counted, timed, and a small model trained with it; stopped, it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.config import flat_values
from yeoul.errors import UserError
from yeoul.files import delete, only_run, write_json
from yeoul.recipes.command_line import command_line
from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig
from yeoul.recipes.compare_tokenizers.old_hangul import tokens_per_old_jamo
from yeoul.recipes.compare_tokenizers.report import comparison_report
from yeoul.recipes.compare_tokenizers.result import TokenizerComparison, TokenizerScore
from yeoul.recipes.compare_tokenizers.serving import serving_cost
from yeoul.recipes.compare_tokenizers.small_model import SmallModel, train_small_model
from yeoul.recipes.compare_tokenizers.texts import Corpus, read_corpus, segments
from yeoul.recipes.options import Say, given_or_temporary, silent
from yeoul.recipes.results_folder import claim
from yeoul.recipes.run_folder import read_record
from yeoul.recipes.tokenizer import open_tokenizer
from yeoul.report.page import write_report
from yeoul.text.inspection import corpus_fit
from yeoul.text.token_labels import token_labels
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.tokenizer_speed import tokenizer_speed

if TYPE_CHECKING:
    Comparable = str | Path | Tokenizer
    """A folder or file, an id on the hub, or a tokenizer itself."""

VERSION = 1
"""Of the measures: results of another version are not mixed with these."""
RESULTS, SUMMARY = "results", "tokenizers.json"
GENERIC = {"tokenizer", "model", "hf"}
"""Names of folders that say nothing without the one above."""
EXAMPLE = "아버지가 방에 들어가셨다. 값싼 커피를 세 잔 마셨다."
"""Shown as each tokenizer cuts it."""
UNDECIDED = {"text_column", "join_by", "encoding", "record_mib", "val_data", "serve"}
"""Settings that decide no score by themselves: the text that was read is compared instead."""


def compare_tokenizers(
    tokenizers: Sequence[Comparable],
    data: str = "builtin",
    config: CompareTokenizersConfig | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> TokenizerComparison:
    """Compare tokenizers over one text: tokens per syllable and word, bits per byte, bytes, cost of serving, speed.

    A small model of the same shape is trained with each on the same bytes in the same order, so that its bits per byte
    of held-out text say how well each cuts text for a model to learn from. Only the embedding differs in size.

    Args:
        tokenizers: one or more: a folder or file of one, of a model or run, or an id on the hub; or itself.
        data: a file, a folder, a Hub dataset "org/name", "builtin" or "builtin:5MB"; several with commas.
        config: how much text, and which model; None for the defaults.
        out: folder for tokenizers.json, the report and what is known so far; a comparison that was stopped there goes
            on. None leaves nothing on disk.
        overwrite: discard the comparison in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N", of the small model.
        say: called with progress messages; None for no output.

    Raises:
        UserError: no such tokenizer, no text, or a folder with other results.
        yeoul.train.interrupt.Interrupted: Ctrl-C or SIGTERM; what is known is kept, and a training goes on.
    """
    config, say = config or CompareTokenizersConfig(), say or silent
    if not tokenizers:
        raise UserError("no tokenizer was given", fix="give one or more folders")
    opened = [own if isinstance(own, Tokenizer) else open_tokenizer(own) for own in tokenizers]
    places = [f"tokenizer {i}" if isinstance(own, Tokenizer) else str(own) for i, own in enumerate(tokenizers, 1)]
    named = list(zip(short_names(places), places, opened, strict=True))
    serving_cost(config, opened[0].vocab_size, 1.0)  # presets are checked before anything is read
    config.small_shape(opened[0].vocab_size, config.segment_bytes)
    corpus = read_corpus(data, config)
    with given_or_temporary(out) as folder, only_run(folder):
        _begin(folder, corpus, config, device, overwrite)
        work = _Comparison(corpus, config, folder, device, say)
        scores = tuple(work.score(*one) for one in named)
        result = TokenizerComparison(
            data=data, config=config, train_bytes=_size(corpus.train), val_bytes=_size(corpus.held_out), scores=scores
        )
        if out is not None:
            known = not any(isinstance(own, Tokenizer) for own in tokenizers)
            line = command_line("tokenizer", "compare", *places, settings=config, data=data, out=folder)
            write_json(folder / SUMMARY, result.as_dict())
            write_report(comparison_report(result, line if known else ""), folder)
    return result


def short_names(places: Sequence[str]) -> list[str]:
    """The last part of each path, and more of it where that says nothing or two have the same."""

    def name(place: str, parts: int) -> str:
        own = [part for part in Path(place).parts if part not in ("/", "..", ".")] or [place]
        if parts == 1 and (own[-1] in GENERIC or own[-1] in ("tokenizer.json", "tokenizer.model")):
            parts = 2
        return "/".join(own[-parts:])

    names = [name(place, 1) for place in places]
    for parts in range(2, 2 + max((len(Path(place).parts) for place in places), default=0)):
        twice = {own for own in names if names.count(own) > 1}
        names = [name(place, parts) if own in twice else own for own, place in zip(names, places, strict=True)]
    return names


class _Comparison:
    """One comparison: the text, and where what is known of it lies."""

    def __init__(self, corpus: Corpus, config: CompareTokenizersConfig, folder: Path, device: str, say: Say) -> None:
        self.corpus, self.config, self.folder, self.device, self.say = corpus, config, folder, device, say
        size = config.segment_bytes
        self.train, self.held_out = segments(corpus.train, size), segments(corpus.held_out, size)

    def score(self, name: str, place: str, tokenizer: Tokenizer) -> TokenizerScore:
        """One tokenizer; from the folder where it is known already."""
        key = tokenizer.fingerprint[:16]
        file = self.folder / RESULTS / f"{key}.json"
        known = self._known(file, name, place)
        if known is not None:
            self.say(f"{name} is already measured.")
            return known
        texts = self.corpus.held_out
        fit = corpus_fit(tokenizer, texts)
        self.say(f"{name}: {fit.tokens:,} tokens for {fit.characters:,} characters of held-out text.")
        back = [tokenizer.decode(tokenizer.encode(text)) == text for text in texts]
        score = TokenizerScore(
            name=name, place=place, kind=tokenizer.kind + (" over jamo" if tokenizer.composes else ""), fit=fit,
            same=sum(back) / len(back), old_jamo=tokens_per_old_jamo(tokenizer),
            speed=tokenizer_speed(tokenizer, texts), model=self._model(name, key, tokenizer),
            serving=serving_cost(self.config, tokenizer.vocab_size, fit.tokens_per_character or 0.0),
            example=" | ".join(map(str, token_labels(tokenizer, tokenizer.encode(EXAMPLE)))),
        )  # fmt: skip
        write_json(file, score.as_dict())
        delete(self._run(key))
        return score

    def _known(self, file: Path, name: str, place: str) -> TokenizerScore | None:
        try:
            known = TokenizerScore.from_dict(read_record(file) | {"name": name, "place": place})
        except (KeyError, TypeError):
            return None
        fit = known.fit  # --serve may be another one
        return replace(known, serving=serving_cost(self.config, fit.vocab_size, fit.tokens_per_character or 0.0))

    def _run(self, key: str) -> Path:
        """Where the training of a small model is kept until its result is."""
        return self.folder / f"training-{key}"

    def _model(self, name: str, key: str, tokenizer: Tokenizer) -> SmallModel | None:
        if not self.config.train_bytes:
            return None
        result = train_small_model(
            tokenizer, self.train, self.held_out, self.config, self._run(key), device=self.device, name=name,
            say=self.say,
        )  # fmt: skip
        self.say(f"{name}: {result.bits_per_byte:.3f} bits per byte of held-out text.")
        return result


def _begin(
    folder: Path, corpus: Corpus, config: CompareTokenizersConfig, device: str, overwrite: bool
) -> None:  # fmt: skip
    """Go on with a comparison of the same text and model, or begin one.

    Raises:
        UserError: the folder holds something else.
    """
    settings = {key: value for key, value in flat_values(config).items() if key not in UNDECIDED}
    asked = {"version": VERSION, "text": _digest(corpus), "device": device} | settings
    words = {key: "--" + key.replace("_", "-") for key in settings}
    claim(folder, asked, "comparison", words, overwrite=overwrite)


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _digest(corpus: Corpus) -> str:
    """Changes when a text does."""
    return hashlib.sha256(json.dumps([corpus.train, corpus.held_out]).encode()).hexdigest()
