"""`yeoul.sweep`: a grid of sampling settings over prompts, each setting written down as soon as it is measured."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.errors import UserError
from yeoul.evaluate.nucleus import nucleus
from yeoul.evaluate.sampling import GREEDY, PLAIN, Continuation, Reader, Setting, SettingScore, load_bleu, score_setting
from yeoul.evaluate.tradeoff import tradeoff
from yeoul.files import only_run, write_json
from yeoul.infer.engine import prompt_ids
from yeoul.infer.engine import run as generate
from yeoul.recipes.command_line import command_line
from yeoul.recipes.fingerprint import fingerprint
from yeoul.recipes.loading import load
from yeoul.recipes.model_folder import model_name
from yeoul.recipes.options import Say, silent
from yeoul.recipes.results_folder import ResultsFolder
from yeoul.recipes.sweep.config import SweepConfig
from yeoul.recipes.sweep.prompts import prompts_of
from yeoul.recipes.sweep.report import sweep_report
from yeoul.recipes.sweep.result import SweepResult
from yeoul.report.page import write_report
from yeoul.train.interrupt import StopRequests
from yeoul.train.log import Progress
from yeoul.units import count, duration, rate

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.recipes.sweep.prompts import Prompts
    from yeoul.text.tokenizer import Tokenizer

    Loadable = str | Path | tuple[Decoder, Tokenizer | None]
    """A folder, a run, or an id on the hub; or what `yeoul.load` gave."""

VERSION = 1
"""Of the measures: results of another version are not mixed with these."""
SUMMARY = "sweep.json"


def sweep(
    model: Loadable,
    prompts: Prompts | None = None,
    config: SweepConfig | None = None,
    *,
    judge: Loadable | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    say: Say | None = None,
) -> SweepResult:
    """Measure what temperature, top-k, top-p and min-p do to a model's texts: accuracy against diversity.

    Every setting of the grid continues the same prompts with the same seeds, as rows of common batches, and so do
    greedy decoding and plain sampling (temperature 1, nothing ruled out).

    Args:
        model: a folder, a run, or an id on the hub; or what `yeoul.load` gave.
        prompts: a file, or texts, some with the answer that they tell: (text, answer); None for the built-in ones.
        config: which settings, and on how much text; None for the defaults.
        judge: a second model that says how likely the texts are; its perplexity then stands for accuracy.
        out: folder for results.jsonl, sweep.json and the report; a sweep that was stopped there goes on. None leaves
            nothing on disk.
        overwrite: discard the sweep in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N"; models that are loaded are measured where they are.
        say: called with progress messages; None for no output.

    Raises:
        UserError: no such model, no tokenizer, prompts that cannot be read or do not fit, sacrebleu is missing, or a
            folder with other results.
        yeoul.train.interrupt.Interrupted: Ctrl-C or SIGTERM; every setting that was measured is kept.
    """
    config = config or SweepConfig()
    if config.self_bleu:
        load_bleu()  # it is said before anything is computed if it is missing
    asked = prompts_of(prompts)
    runtime.set_threads()
    own = _reader(model, "", device, config)
    second = None if judge is None else _reader(judge, "--judge", device, config)
    names = (_name(model), None if judge is None else _name(judge))
    work = _Sweep(own, second, names, asked, config, say or silent)
    if out is None:
        return work.go()
    folder = Path(out).expanduser()
    with only_run(folder):
        work.kept_in(folder, overwrite)
        result = work.go()
        line = command_line(
            "sweep", *([] if isinstance(model, tuple) else [model]), settings=config,
            judge=None if judge is None or isinstance(judge, tuple) else judge,
            prompts=prompts if isinstance(prompts, str | Path) else None, out=folder,
        )  # fmt: skip
        write_json(folder / SUMMARY, result.as_dict())
        write_report(sweep_report(result, "" if isinstance(model, tuple) else line), folder)
    return result


def _name(model: Loadable) -> str:
    return "model" if isinstance(model, tuple) else model_name(model)


def _reader(model: Loadable, flag: str, device: str, config: SweepConfig) -> Reader:
    loaded, tokenizer = model if isinstance(model, tuple) else load(model, device=device, dtype=config.dtype)
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it writes no text", f"{flag} {_name(model)}".strip())
    return Reader(loaded, tokenizer)


class _Sweep:
    """One sweep: what is asked, and what is known of it so far."""

    def __init__(
        self, own: Reader, judge: Reader | None, names: tuple[str, str | None], prompts: list[Any],
        config: SweepConfig, say: Say,
    ) -> None:  # fmt: skip
        self.own, self.judge, self.names, self.config, self.say = own, judge, names, config, say
        self.distinct = prompts
        self.prompts = [prompt for prompt in prompts for _ in range(config.samples)]
        self.ids = [prompt_ids(own.tokenizer, prompt.text) for prompt in self.prompts]
        self.settings = list(config.grid())
        self.done: dict[Setting, tuple[SettingScore, list[Continuation]]] = {}
        self.seconds = 0.0
        self.results: ResultsFolder | None = None

    def go(self) -> SweepResult:
        """Measure what is not known yet."""
        start, known = time.monotonic(), len([s for s in self.settings if s in self.done])
        if known:
            self.say(f"{known} of {count(len(self.settings), 'setting')} are already measured.")
        stream = io.StringIO() if self.say is silent else None
        progress = Progress("sweep", len(self.settings), stream=stream)
        with StopRequests() as stop:
            stop.at_once = True  # what is measured is written
            if missing := [setting for setting in (GREEDY, PLAIN) if setting not in self.done]:
                self._measure(missing)
            for batch in self._batches([setting for setting in self.settings if setting not in self.done]):
                began = time.monotonic()
                tokens = self._measure(batch)
                finished = sum(setting in self.done for setting in self.settings)
                each = (time.monotonic() - start) / (finished - known)
                if progress.due() or finished == len(self.settings):
                    seconds = each * (len(self.settings) - finished)
                    progress.write(
                        finished, [f"{duration(seconds)} left", rate(tokens / max(time.monotonic() - began, 1e-9))]
                    )
            progress.end()
        self.seconds += time.monotonic() - start
        return self._result()

    def _batches(self, settings: Sequence[Setting]) -> Iterator[list[Setting]]:
        """As many settings together as fit into a batch of texts."""
        size = max(1, self.config.batch_size // len(self.prompts))
        for first in range(0, len(settings), size):
            yield list(settings[first : first + size])

    def _measure(self, settings: list[Setting]) -> int:
        """Continue the prompts under some settings, score each, and write it down; how many tokens were written."""
        config, each = self.config, len(self.prompts)
        params = [
            setting.params(max_tokens=config.max_tokens, seed=config.seed + row, ignore_eos=config.ignore_eos)
            for setting in settings
            for row in range(each)
        ]
        results = generate(
            self.own.model, self.own.tokenizer, self.ids * len(settings), params,
            batch_size=config.batch_size,
        )  # fmt: skip
        written = [Continuation.of(result) for result in results]
        for number, setting in enumerate(settings):
            texts = written[number * each : (number + 1) * each]
            greedy = texts if setting == GREEDY else self.done[GREEDY][1]
            score = score_setting(
                setting, self.prompts, self.ids, texts, greedy, self.own, judge=self.judge, bleu=config.self_bleu
            )
            self.done[setting] = score, texts
            self._write(score, texts)
        return sum(len(own.ids) for own in written)

    def _result(self) -> SweepResult:
        scores = tuple(self.done[setting][0] for setting in self.settings)
        greedy, plain = self.done[GREEDY][0], self.done[PLAIN][0]
        return SweepResult(
            model=self.names[0], judge=self.names[1], config=self.config, prompts=tuple(self.distinct),
            scores=scores, greedy=greedy, plain=plain, tradeoff=tradeoff(scores, greedy, plain),
            nucleus=nucleus(self.own.model, self.own.tokenizer, self.distinct[0].text),
            texts={setting: tuple(own.text for own in texts) for setting, (_, texts) in self.done.items()},
            seconds=self.seconds,
        )  # fmt: skip

    # -- what is on disk

    def kept_in(self, folder: Path, overwrite: bool) -> None:
        """Results are read from a folder, and written into it from here on.

        Raises:
            UserError: it holds something else, or the results of another model, other prompts or other lengths.
        """
        words = {"version": "way of measuring", "model": "model or dtype", "judge": "second model"}
        self.results = ResultsFolder(folder, self._asked(), "sweep", words)
        self.results.open(overwrite, self._take)

    def _asked(self) -> dict[str, Any]:
        """All that decides the score of a setting, beside the setting itself."""
        config, judge = self.config, self.judge
        return {
            "version": VERSION,
            "model": fingerprint(self.own.model, self.own.tokenizer),
            "judge": None if judge is None else fingerprint(judge.model, judge.tokenizer),
            "prompts": [asdict(prompt) for prompt in self.distinct],
            "max-tokens": config.max_tokens, "samples": config.samples, "ignore-eos": config.ignore_eos,
            "self-bleu": config.self_bleu, "seed": config.seed,
        }  # fmt: skip

    def _take(self, value: dict[str, Any]) -> None:
        score = SettingScore.from_dict(value["score"])
        self.done[score.setting] = score, [Continuation(**own) for own in value["continuations"]]

    def _write(self, score: SettingScore, texts: Sequence[Continuation]) -> None:
        if self.results is not None:
            self.results.append({"score": score.as_dict(), "continuations": [asdict(text) for text in texts]})
