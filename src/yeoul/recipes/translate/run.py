"""`yeoul.translate`: the same sentences by two systems, written down as they come, scored and shown side by side."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.errors import UserError
from yeoul.evaluate.translation import compare_translations, make_metrics, sentence_scores
from yeoul.files import only_run, write_json
from yeoul.recipes.command_line import command_line
from yeoul.recipes.loading import load
from yeoul.recipes.model_folder import model_name
from yeoul.recipes.options import Say, silent
from yeoul.recipes.results_folder import ResultsFolder
from yeoul.recipes.translate.config import TranslateConfig
from yeoul.recipes.translate.pairs import Pair
from yeoul.recipes.translate.report import translate_report
from yeoul.recipes.translate.result import TranslateResult
from yeoul.recipes.translate.systems import Asking, Endpoint, LocalSystem, System, is_endpoint
from yeoul.report.page import write_report
from yeoul.train.interrupt import StopRequests
from yeoul.train.log import Progress
from yeoul.units import count, duration

if TYPE_CHECKING:
    from yeoul.recipes.translate.systems import Loadable

VERSION = 1
"""Of the prompts: results of another version are not mixed with these."""
SUMMARY = "translate.json"


def translate(
    model: Loadable,
    pairs: Sequence[tuple[str, str]],
    config: TranslateConfig | None = None,
    *,
    against: Loadable | None = None,
    examples: Sequence[tuple[str, str]] | None = None,
    given: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> TranslateResult:
    """Translate sentences by examples in the prompt, by two systems side by side.

    Args:
        model: a folder, a run, an id on the hub, or the address of an OpenAI-compatible endpoint
            ("http://localhost:8000/v1#MODEL"); or what `yeoul.load` gave.
        pairs: (sentence, reference); references are "" where there are none.
        config: how they are asked; None for the defaults.
        against: the second system; None for the same model without examples, or with `config.shots_b`.
        examples: (sentence, translation) for the prompts, the first `config.shots` of them; None takes them from the
            beginning of `pairs`, which are then not translated.
        given: flags of the command line that say where pairs and examples came from, for the command in the report;
            None leaves it out.
        out: folder for results.jsonl, translate.json and the report; what was stopped there goes on. None leaves
            nothing on disk.
        overwrite: discard what is in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N"; models that are loaded stay where they are.
        say: called with progress messages; None for no output.

    Raises:
        UserError: no such model or endpoint, too few pairs or examples, prompts that do not fit, sacrebleu is missing,
            or a folder with other results.
        yeoul.train.interrupt.Interrupted: Ctrl-C or SIGTERM; what was translated is kept.
    """
    config = config or TranslateConfig()
    rest, shown = _split([Pair(*pair) for pair in pairs], examples, config)
    if all(pair.target for pair in rest):
        make_metrics(config.bleu_tokenize)  # what is missing is said before anything is computed
    elif any(pair.target for pair in rest):
        raise UserError("some sentences have a reference and others have none", fix="give all of them one, or none")
    runtime.set_threads()
    systems = _systems(model, against, shown, config, device)
    work = _Translating(systems, rest, shown, config, say or silent)
    if out is None:
        return work.go()
    folder = Path(out).expanduser()
    with only_run(folder):
        work.keep_in(folder, overwrite)
        result = work.go()
        line = ""
        if given is not None and not isinstance(model, tuple) and not isinstance(against, tuple):
            line = command_line("translate", model, settings=config, against=against, **given, out=folder)
        write_json(folder / SUMMARY, result.as_dict())
        write_report(translate_report(result, line), folder)
    return result


def _split(
    pairs: list[Pair], examples: Sequence[tuple[str, str]] | None, config: TranslateConfig
) -> tuple[list[Pair], list[tuple[str, str]]]:
    """What is translated, and the examples."""
    most = max(config.shots, config.shots_b or 0)
    shown = [tuple(pair) for pair in (pairs[:most] if examples is None else examples[:most])]
    if len(shown) < most or not all(a and b for a, b in shown):
        what = f"{count(most, 'example')} asked for, but {len([1 for a, b in shown if a and b])} there"
        raise UserError(what, "--shots", "give more pairs, --examples-source and --examples-target, or fewer --shots")
    rest = (pairs[most:] if examples is None else pairs)[: config.limit]
    if not rest:
        raise UserError("there is no sentence to translate", fix="give more pairs than examples")
    return rest, [(a, b) for a, b in shown]


def _systems(
    model: Loadable, against: Loadable | None, shown: list[tuple[str, str]], config: TranslateConfig, device: str
) -> list[System]:
    """Both, ready, with different names.

    Raises:
        UserError: they are the same.
    """
    own = config.shots_b if config.shots_b is not None else 0 if against is None else config.shots
    chats = config.chat if config.chat_b is None else config.chat_b
    if against is None and (own, chats) == (config.shots, config.chat):
        what = f"both systems are the same model with {count(own, 'example')}"
        raise UserError(what, "--shots-b", "give --against, or another number")
    first = _system(model, _asking(shown[: config.shots], config, config.chat), config, device)
    asking = _asking(shown[:own], config, chats)
    if against is None and isinstance(first, LocalSystem):
        second: System = LocalSystem(first.name, first.model, first.tokenizer, asking, config.batch_size)
    else:
        second = _system(model if against is None else against, asking, config, device)
    if first.name == second.name:
        for system, shots in ((first, config.shots), (second, own)):
            system.name = f"{system.name}, {shots}-shot"
    if first.name == second.name:
        first.name, second.name = f"{first.name} (1)", f"{second.name} (2)"
    return [first, second]


def _asking(shown: list[tuple[str, str]], config: TranslateConfig, chat: bool) -> Asking:
    return Asking(
        examples=tuple(shown), languages=(config.source_language, config.target_language),
        chat=chat, max_tokens=config.max_tokens,
    )  # fmt: skip


def _system(model: Loadable, asking: Asking, config: TranslateConfig, device: str) -> System:
    """A system that is ready."""
    if is_endpoint(model):
        return Endpoint(str(model), asking, config.timeout)
    loaded, tokenizer = model if isinstance(model, tuple) else load(model, device=device, dtype=config.dtype)
    name = "model" if isinstance(model, tuple) else model_name(model)
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it writes no text", name)
    return LocalSystem(name, loaded, tokenizer, asking, config.batch_size)


class _Translating:
    """The sentences, and what is known of them so far."""

    def __init__(
        self, systems: list[System], pairs: list[Pair], examples: list[tuple[str, str]], config: TranslateConfig,
        say: Say,
    ) -> None:  # fmt: skip
        self.systems, self.pairs, self.examples, self.config, self.say = systems, pairs, examples, config, say
        self.done: list[dict[int, str]] = [{} for _ in systems]
        self.results: ResultsFolder | None = None
        self.seconds = 0.0

    def keep_in(self, folder: Path, overwrite: bool) -> None:
        """Results are read from a folder, and written into it from here on."""
        asked = {
            "version": VERSION, "models": [system.fingerprint for system in self.systems],
            "sentences": [list(pair) for pair in self.pairs], "examples": [list(pair) for pair in self.examples],
            "config": {name: value for name, value in asdict(self.config).items() if name in DECISIVE},
        }  # fmt: skip
        words = {"models": "model or dtype", "config": "way of asking", "version": "version of the prompts"}
        self.results = ResultsFolder(folder, asked, "translation", words)
        self.results.open(overwrite, self._take)

    def _take(self, value: dict[str, Any]) -> None:
        self.done[value["system"]][value["sentence"]] = str(value["translation"])
        self.seconds += float(value["seconds"])

    def go(self) -> TranslateResult:
        """Translate what is not known yet, and score."""
        total, known = len(self.pairs) * len(self.systems), sum(map(len, self.done))
        if known:
            self.say(f"{known:,} of {count(total, 'translation')} are there already.")
        progress = Progress("translate", total, stream=io.StringIO() if self.say is silent else None)
        start = time.monotonic()
        with StopRequests() as stop:
            stop.at_once = True  # what is there is written
            for number in range(len(self.systems)):
                missing = [i for i in range(len(self.pairs)) if i not in self.done[number]]
                for first in range(0, len(missing), self.config.batch_size):
                    self._translate(number, missing[first : first + self.config.batch_size])
                    finished = sum(map(len, self.done))
                    if progress.due() or finished == total:
                        each = (time.monotonic() - start) / (finished - known)
                        progress.write(finished, [f"{duration(each * (total - finished))} left"])
            progress.end()
        return self._result()

    def _translate(self, number: int, places: list[int]) -> None:
        began = time.monotonic()
        found = self.systems[number].translate([self.pairs[i].source for i in places])
        each = (time.monotonic() - began) / len(places)
        self.seconds += each * len(places)
        for place, text in zip(places, found, strict=True):
            self.done[number][place] = text
            if self.results is not None:
                self.results.append({"system": number, "sentence": place, "translation": text, "seconds": each})

    def _result(self) -> TranslateResult:
        references = tuple(pair.target for pair in self.pairs)
        texts = [[own[i] for i in range(len(self.pairs))] for own in self.done]
        scored, config = all(references), self.config
        scores = compare_translations(
            texts, references, tokenize=config.bleu_tokenize, resamples=config.resamples
        ) if scored else []  # fmt: skip
        return TranslateResult(
            systems=tuple(system.name for system in self.systems), config=config,
            sources=tuple(pair.source for pair in self.pairs), references=references,
            translations=tuple(map(tuple, texts)), scores=tuple(scores),
            sentences=tuple(tuple(sentence_scores(own, references)) for own in texts) if scored else (),
            examples=tuple(self.examples[: config.shots]), seconds=self.seconds,
        )  # fmt: skip


DECISIVE = ("shots", "shots_b", "chat", "chat_b", "source_language", "target_language", "max_tokens")
"""Settings that decide a translation."""
