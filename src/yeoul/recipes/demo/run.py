"""`yeoul.demo`: from text to a linear-time language model and a report, in minutes."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from yeoul import runtime
from yeoul.data.builtin import generate_recall
from yeoul.data.documents import read_documents
from yeoul.errors import UserError
from yeoul.evaluate import speed
from yeoul.evaluate.recall import RECALL_SEED, score_recall
from yeoul.files import only_run, remove, replace_folder, write_json
from yeoul.recipes.command_line import command_line
from yeoul.recipes.demo import budget
from yeoul.recipes.demo.budget import Clock
from yeoul.recipes.demo.config import DemoConfig
from yeoul.recipes.demo.report import collect, samples
from yeoul.recipes.linearize.config import LinearizeConfig
from yeoul.recipes.linearize.run import linearize
from yeoul.recipes.linearize.tables import cost_table, score_table
from yeoul.recipes.model_folder import ModelFolder
from yeoul.recipes.options import Say, silent
from yeoul.recipes.pretrain.config import PretrainConfig
from yeoul.recipes.pretrain.run import pretrain
from yeoul.recipes.run_folder import made_in
from yeoul.recipes.token_data import token_shards
from yeoul.report.content import Command, Report, Sample, Stage, Text, read_metrics
from yeoul.report.page import write_report
from yeoul.safe_json import read_object
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer
from yeoul.units import count, rate, size

STEPS = ("text", "pretrain", "linearize", "write", "report")
HEADINGS = {
    "text": "text and tokenizer",
    "pretrain": "pretrain a softmax model",
    "linearize": "linearize it with DiJiang, then evaluate and time both",
    "write": "generate text and answer recall questions with both",
    "report": "report",
}
PROMPTS = ("옛날 옛적에", "어느 추운 겨울날", "아이는 강가에서", "오늘 저녁에는")
SAMPLING: dict[str, Any] = {"max_tokens": 72, "temperature": 0.7, "top_p": 0.95}
TEXT: dict[str, Any] = {"data": "builtin:5MB", "val_fraction": 0.02, "batch_size": 1, "context": 256}
"""The text, what of it is put aside, and the shape of a training step until it is planned."""
TOKENIZER_TEXT, VOCAB = "builtin:2MB", 4000
QUESTIONS = 40


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Result of a demo.

    Attributes:
        report: path of the HTML report.
        pretrained, linear: run folders of the softmax model and of the linear one.
        time: total time, as text.
        was_finished: whether there was nothing left to do.
        next_steps: commands to try, with descriptions.
    """

    report: Path
    pretrained: Path
    linear: Path
    time: str
    was_finished: bool
    next_steps: tuple[tuple[str, Text], ...]


def demo(
    config: DemoConfig | None = None,
    *,
    out: str | Path = "runs/demo",
    overwrite: bool = False,
    say: Say | None = None,
) -> DemoResult:
    """Text, tokenizer, pretraining, conversion, scores, speeds, samples and a report with plots.

    Called again with the same `out`, it resumes where it stopped.

    Args:
        config: settings; None for the defaults.
        out: folder of the demo.
        overwrite: discard a demo in `out`.
        say: called with progress messages; None for no output.

    Raises:
        UserError: the folder holds something else, or an unfinished demo with other settings.
        yeoul.train.interrupt.Interrupted: Ctrl-C or SIGTERM, with everything saved.
    """
    folder = Path(out).expanduser()
    with only_run(folder):
        return _Demo(config or DemoConfig(), folder, overwrite, say or silent).go()


class _Demo:
    """One demo in its folder."""

    def __init__(self, config: DemoConfig, out: Path, overwrite: bool, say: Say) -> None:
        self.config, self.out, self.say = config, out, say
        self.log: Say = silent if say is silent else self._log
        self.state = begin(config, out, overwrite)
        self.clock = Clock(
            config.minutes * 60, spent=dict(self.state["seconds"]), estimates=dict(self.state["estimates"])
        )

    @property
    def plan(self) -> dict[str, Any]:
        """What was chosen so that it fits the time."""
        chosen: dict[str, Any] = self.state["plan"]
        return chosen

    def go(self) -> DemoResult:
        """All steps that are not done."""
        state, say, clock = self.state, self.say, self.clock
        if state.get("finished"):
            return self._result(was_finished=True)
        runtime.set_threads(self.plan.get("threads"))
        with contextlib.suppress(OSError):
            (self.out / "demo.log").unlink()
        work = {
            "text": self.text, "pretrain": self.pretrain, "linearize": self.linearize, "write": self.write,
            "report": self.report,
        }  # fmt: skip
        for number, step in enumerate(STEPS, start=1):
            if step in state["seconds"]:
                say(f"[{number}/{len(STEPS)}] {HEADINGS[step]}: already done")
                continue
            say(f"[{number}/{len(STEPS)}] {HEADINGS[step]} ... about {clock.left()} left")
            start = time.monotonic()
            work[step]()
            state["seconds"][step] = clock.finish(step, time.monotonic() - start)
            state["finished"] = step == STEPS[-1]
            self._save()
        return self._result(was_finished=False)

    def _result(self, *, was_finished: bool) -> DemoResult:
        return DemoResult(
            report=self.out / "report.html", pretrained=self.out / "pretrain", linear=self.out / "linear",
            time=self.clock.total(), was_finished=was_finished, next_steps=next_steps(self.out),
        )  # fmt: skip

    def _save(self) -> None:
        write_json(self.out / "demo.json", self.state)

    def _log(self, text: str) -> None:
        """What the recipes say goes to OUT/demo.log; their progress lines (standard error) stay on the screen."""
        with (self.out / "demo.log").open("a", encoding="utf-8") as log:
            print(text, file=log)

    # -- the steps

    def text(self) -> None:
        """Train the tokenizer and store the corpus as tokens where pretraining will look for them."""
        plan = self.plan
        plan |= TEXT
        folder = self.out / "tokenizer"

        def write(new: Path) -> None:
            train_tokenizer(read_documents(TOKENIZER_TEXT), TokenizerConfig(vocab_size=VOCAB), new)

        replace_folder(folder, write)
        tokenizer = Tokenizer.load(folder)
        target = self.out / "pretrain" / "data"
        shards, _ = token_shards(plan["data"], target, tokenizer, val_fraction=plan["val_fraction"], say=self.log)
        each = shards.num_bytes / max(1, shards.num_tokens)
        self.say(
            f"      {count(shards.num_documents, 'document')}, {size(shards.num_bytes)} of Korean, "
            f"{shards.num_tokens:,} tokens from a vocabulary of {tokenizer.vocab_size:,} ({each:.1f} bytes each)"
        )
        plan["corpus_tokens"] = shards.num_tokens

    def pretrain(self) -> None:
        """The softmax model."""
        plan, clock = self.plan, self.clock
        if "pretrain_tokens" not in plan:
            make = lambda more: pretrain_config(self.config, self.out, {**plan, **more})  # noqa: E731
            plan |= budget.plan_pretraining(make, plan, clock, VOCAB)
            self._planned(
                f"      this machine trains at {rate(plan['tokens_per_second'])}: "
                f'{plan["pretrain_tokens"]:,} tokens for a model of size "{plan["preset"]}"; '
            )
        settings = pretrain_config(self.config, self.out, plan)
        pretrain(plan["data"], settings, out=self.out / "pretrain", say=self.log)
        lines = read_metrics(self.out / "pretrain" / "metrics.jsonl")
        last = [line for line in lines if line["kind"] == "val"][-1]
        bits = f"{last['bits_per_byte']:.3f} bits per byte"
        self.say(f"      perplexity {last['perplexity']:.2f}, {bits} of held-out text")

    def _planned(self, what: str) -> None:
        """Saves what was planned, and says it."""
        self.state["estimates"] = dict(self.clock.estimates)
        self._save()
        self.say(f"{what}about {self.clock.left()} left")

    def linearize(self) -> None:
        """The linear model, its scores and speeds."""
        plan = self.plan
        if "linear_tokens" not in plan:
            teacher = ModelFolder.open(self.out / "pretrain").load(dtype=torch.float32)
            settings = linearize_config(self.config, plan)
            plan |= budget.plan_linearizing(teacher, settings, plan, self.clock)
            self._planned(f"      {plan['linear_tokens']:,} tokens; ")
        target = self.out / "linear" / "data"
        if not target.exists():  # the same text and tokenizer: no need to do it twice
            made = self.out / "pretrain" / "data"
            replace_folder(target, lambda new: shutil.copytree(made, new, dirs_exist_ok=True))
        result = linearize(
            str(self.out / "pretrain"), plan["data"], linearize_config(self.config, plan), out=self.out / "linear",
            say=self.log,
        )  # fmt: skip
        scores = score_table({name: value.as_dict() for name, value in result.scores.items()})
        speeds = speed.table(result.speeds, "teacher")
        self.log(f"{cost_table({name: stage.as_dict() for name, stage in result.stages.items()})}\n")
        for table in (scores, speeds):
            self.say("\n" + "\n".join(f"      {line}" for line in table.split("\n")))
        self.say("")

    def write(self) -> None:
        """Samples and questions for both models."""
        folders = [ModelFolder.open(self.out / name) for name in ("pretrain", "linear")]
        before, after = (folder.load() for folder in folders)
        tokenizer = folders[0].needed_tokenizer()
        texts = samples(before, after, tokenizer, PROMPTS, seed=self.config.seed, **SAMPLING)
        self.say(
            f"      {texts[0].prompt}\n        softmax: {_one_line(texts[0].before)}\n"
            f"        DiJiang: {_one_line(texts[0].after)}"
        )
        questions = list(islice(generate_recall(seed=RECALL_SEED), 8 * QUESTIONS))
        recall = {}
        for name, model in (("teacher", before), ("converted", after)):
            recall[name] = score_recall(model, tokenizer, questions, ask=QUESTIONS, context=512).as_dict()
        self.state["texts"] = [asdict(sample) for sample in texts]
        self.state["recall"] = recall
        self.state["parameters"] = before.num_parameters()

    def report(self) -> None:
        """The page, and Markdown beside it."""
        write_report(self._report(), self.out)

    def _report(self) -> Report:
        config, out, state, recall = self.config, self.out, self.state, self.state["recall"]
        questions = recall["teacher"]["questions"]
        found = collect(out / "pretrain", out / "linear")
        found["models"] = tuple(
            replace(row, recall=recall[row.role]["accuracy"]) if row.role in recall else row for row in found["models"]
        )
        tokens = state["plan"]["corpus_tokens"]
        result = Text(f"vocabulary of {VOCAB:,}, {tokens:,} tokens of text", f"어휘 {VOCAB:,}개, 텍스트 {tokens:,}토큰")
        first = Stage(name="text", seconds=state["seconds"]["text"], result=result)
        found["stages"] = (first, *found["stages"])
        again, data = Path(f"{out}-again"), state["plan"]["data"]
        before, after = pretrain_config(config, out, state["plan"]), linearize_config(config, state["plan"])
        return Report(
            **found,
            parameters=state["parameters"],
            seconds=self.clock.elapsed(),
            recall_chance=recall["teacher"]["chance"],
            samples=tuple(Sample(**values) for values in state["texts"]),
            sample_settings=Text(
                f"Temperature {SAMPLING['temperature']}, top-p {SAMPLING['top_p']}, seed {config.seed}.",
                f"온도 {SAMPLING['temperature']}, top-p {SAMPLING['top_p']}, 시드 {config.seed}.",
            ),
            reproduce=(
                Command(
                    line=f"{demo_command(config, out)} --overwrite",
                    what=Text("Everything, within the given time", "전체를 주어진 시간 안에"),
                ),
                Command(
                    line=command_line("pretrain", data, settings=before, out=again / "pretrain"),
                    what=Text("Or step by step, with the same budgets", "또는 같은 예산으로 한 단계씩"),
                ),
                Command(
                    line=command_line("linearize", again / "pretrain", settings=after, data=data, out=again / "linear")
                ),
            ),
            next_steps=tuple(Command(line=line, what=what) for line, what in next_steps(out)),
            notes=(
                Text(
                    "Bits per byte are measured on held-out documents; no model was trained on them.",
                    "바이트당 비트는 따로 떼어 둔 문서로 측정했고, 어느 모델도 그 문서로 학습하지 않았습니다.",
                ),
                Text(
                    "Speeds are measured after a real prefill of random tokens, alternating between the models, with "
                    "batch size 1; contexts longer than in training only show speed and memory.",
                    "속도는 무작위 토큰을 실제로 프리필한 뒤 배치 크기 1로 두 모델을 번갈아 측정했습니다. "
                    "학습할 때보다 긴 문맥의 값은 속도와 메모리만 나타냅니다.",
                ),
                Text(
                    f"Recall is choosing the right answer out of four, on {questions} built-in questions.",
                    f"회상은 보기 네 개 가운데 정답을 고르는 방식이며, 내장 질문 {questions}개로 측정했습니다.",
                ),
            ),
        )


def begin(config: DemoConfig, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """The state of the demo in the folder, or that of a new one.

    Raises:
        UserError: the folder holds something else, or a demo with other settings.
    """
    path = out / "demo.json"
    ours = path.is_file()
    if made_in(out) and not ours:
        raise UserError("the folder is not a demo folder", f"--out {out}", "choose another folder")
    settings = {"minutes": config.minutes, "seed": config.seed}
    if ours and overwrite:
        for entry in made_in(out):
            remove(entry)
    elif ours:
        try:
            state = read_object(path, finite=False)
            before = {key: state["settings"][key] for key in settings}
        except (UserError, KeyError, TypeError):
            raise UserError("the demo's state is damaged", path, "start over with --overwrite") from None
        if before != settings and not state.get("finished"):
            same = f"--minutes {before['minutes']} --seed {before['seed']}"
            raise UserError(
                "an unfinished demo has other settings", out, f"continue with {same}, or start over with --overwrite"
            )
        return dict(state)
    out.mkdir(parents=True, exist_ok=True)
    state = {"settings": settings, "seconds": {}, "estimates": {}, "plan": {}, "finished": False}
    write_json(path, state)
    return state


def demo_command(config: DemoConfig, out: Path) -> str:
    """The command that makes this demo."""
    return command_line("demo", settings=config, out=None if out == Path("runs/demo") else out)


def pretrain_config(config: DemoConfig, out: Path, plan: dict[str, Any]) -> PretrainConfig:
    """Settings of the pretraining, as far as it is planned."""
    return PretrainConfig.of(
        tokenizer=out / "tokenizer",
        preset=plan.get("preset", "3m"),
        val_fraction=plan["val_fraction"],
        val_tokens=plan.get("val_tokens", 10_000),
        max_positions=512,
        tokens=plan.get("pretrain_tokens", 10_000),
        batch_size=plan["batch_size"],
        context=plan["context"],
        lr=plan.get("lr", 2e-3),
        warmup=0.05,
        betas=(0.9, 0.999),  # small batches are noisy
        seed=config.seed,
        log_every=plan.get("log_every", 2),
        eval_every=plan.get("eval_every", 0),
        save_every=plan.get("save_every", 50),
        keep_last=1,
    )


def linearize_config(config: DemoConfig, plan: dict[str, Any]) -> LinearizeConfig:
    """Settings of the conversion, as far as it is planned."""
    return LinearizeConfig.of(
        tokens=plan.get("linear_tokens", 10_000),
        window=16,
        map="dijiang",  # additive: a model this small has nothing far to find, and trains faster so
        batch_size=2 * plan["batch_size"],
        context=plan["context"],
        seed=config.seed,
        val_fraction=plan["val_fraction"],
        val_tokens=plan["val_tokens"],
        contexts=tuple(plan["contexts"]),
        compare_tokens=0,
        log_every=plan.get("linear_log_every", 1),
        save_every=50,
    )


def next_steps(out: Path) -> tuple[tuple[str, Text], ...]:
    """Commands to try, and what for."""
    linear, pretrained = (shlex.quote(str(out / name)) for name in ("linear", "pretrain"))
    more, mine = shlex.quote(f"{out}-30"), shlex.quote(str(out.parent / "mine"))
    return (
        (
            f'yeoul generate {linear} "{PROMPTS[0]}" --temperature 0.7',
            Text("Generate text with the linear-time model", "선형 시간 모델로 텍스트 생성하기"),
        ),
        (f"yeoul chat {linear}", Text("Chat with it", "이 모델과 대화하기")),
        (
            f"yeoul bench {pretrained} {linear} --contexts 1024 4096 16384",
            Text("Compare speed at longer contexts", "더 긴 문맥에서 속도 비교하기"),
        ),
        (
            f"yeoul evaluate {linear} --by-position",
            Text("Compare predictions by position in the text", "텍스트의 위치별 예측 성능 보기"),
        ),
        (
            f"yeoul demo --minutes 30 --out {more}",
            Text("The same with more time, for better Korean", "시간을 더 들여 더 나은 한국어 모델 만들기"),
        ),
        (
            f"yeoul pretrain YOUR_TEXT --out {mine}",
            Text(
                "Your own text: .txt, .jsonl, .csv, .parquet, a folder",
                "자신의 텍스트로 학습하기: .txt, .jsonl, .csv, .parquet, 폴더",
            ),
        ),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
