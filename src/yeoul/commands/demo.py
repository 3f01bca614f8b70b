"""`yeoul demo`: from text to a linear-time language model and a report, in minutes."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.commands import conclusion, linearize
from yeoul.errors import UserError
from yeoul.foreign_text import say
from yeoul.recipes.pretrain.config import PretrainConfig
from yeoul.report.content import Text
from yeoul.safe_json import read_object
from yeoul.units import count, rate, size

if TYPE_CHECKING:
    from yeoul.data.shards import TokenShards
    from yeoul.text.tokenizer import Tokenizer

STEPS = ("text", "pretrain", "linearize", "write", "report")
HEADINGS = {
    "text": "text and tokenizer",
    "pretrain": "pretrain a softmax model",
    "linearize": "linearize it with DiJiang, then score and time both",
    "write": "let both models write and recall",
    "report": "report",
}
PROMPTS = ("옛날 옛적에", "어느 추운 겨울날", "아이는 강가에서", "오늘 저녁에는")
SAMPLING: dict[str, Any] = {"max_tokens": 72, "temperature": 0.7, "top_p": 0.95}
TEXT: dict[str, Any] = {"data": "builtin:5MB", "val_fraction": 0.02, "batch_size": 1, "context": 256}
"""The text, what of it is put aside, and the shape of a training step until it is planned."""
TOKENIZER_TEXT, VOCAB = "builtin:2MB", 4000
QUESTIONS = 40


@dataclass(frozen=True)
class Config:
    """Make a small Korean language model, turn it into linear time, and report what that cost and gained.

    Text, tokenizer, pretraining, DiJiang conversion, scores, speeds, samples and a report with plots; needs neither
    a network nor data. The machine's speed is measured first, so that training fits the given time. Run the same
    command again to continue where it stopped.
    """

    _: KW_ONLY
    out: Path = Path("runs/demo")
    """Folder of the demo, for the report, the models and their runs."""
    minutes: float = 5.0
    """Minutes for everything; more time gives better models."""
    seed: int = 0
    """Seed of weights, data order and samples."""
    overwrite: bool = False
    """Discard the demo in --out and start over."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        if not 0.2 <= self.minutes <= 24 * 60:
            raise UserError(f"--minutes is {self.minutes:g}, but must be from 0.2 to 1440")


def run(config: Config) -> int:
    """Run or continue the demo; exit code 0, or 130 and 143 when stopped by a signal."""
    from yeoul.files import only_run

    with only_run(config.out):
        return _run(config)


def _run(config: Config) -> int:
    from yeoul import runtime
    from yeoul.commands.plan import Clock

    state = _begin(config)
    if state.get("finished"):
        print(f"The demo in {config.out} is finished; its report is {config.out / 'report.html'}.")
        print(f"To start over: {_command(config)} --overwrite")
        return 0
    runtime.set_threads(state["plan"].get("threads"))
    clock = Clock(config.minutes * 60, spent=dict(state["seconds"]), estimates=dict(state["estimates"]))
    with contextlib.suppress(OSError):
        (config.out / "demo.log").unlink()
    for number, step in enumerate(STEPS, start=1):
        if step in state["seconds"]:
            print(f"[{number}/{len(STEPS)}] {HEADINGS[step]}: already done")
            continue
        print(f"[{number}/{len(STEPS)}] {HEADINGS[step]} ... about {clock.left()} left", flush=True)
        start = time.monotonic()
        try:
            code = _WORK[step](config, state, clock)
        except KeyboardInterrupt:
            code = 130
        if code:
            print(f"\nStopped; nothing that was finished is lost. To continue: {_command(config)}")
            return code
        state["seconds"][step] = clock.finish(step, time.monotonic() - start)
        state["finished"] = step == STEPS[-1]
        _save(config, state)
    _say_goodbye(config, clock)
    return 0


# -- the demo's own state
# -------------------------------------------------------------------------------------------


def _begin(config: Config) -> dict[str, Any]:
    """The state of the demo in the folder, or that of a new one.

    Raises:
        UserError: the folder holds something else, or a demo with other settings.
    """
    from yeoul.files import remove
    from yeoul.recipes.run_folder import made_in

    out, path = config.out, config.out / "demo.json"
    ours = path.is_file()
    if made_in(out) and not ours:
        raise UserError("the folder is not a demo folder", f"--out {out}", "choose another folder")
    settings = {"minutes": config.minutes, "seed": config.seed}
    if ours and config.overwrite:
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
    _save(config, state)
    return state


def _save(config: Config, state: dict[str, Any]) -> None:
    from yeoul.files import write_json

    write_json(config.out / "demo.json", state)


def _command(config: Config) -> str:
    from yeoul.recipes.command_line import command_line

    return command_line("demo", settings=replace(config, overwrite=False))


@contextlib.contextmanager
def _logged(config: Config) -> Iterator[None]:
    """What the verbs print goes to OUT/demo.log; their progress lines (standard error) stay on the screen."""
    with (config.out / "demo.log").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


# -- the steps
# ------------------------------------------------------------------------------------------------------


def _pretrain_config(config: Config, plan: dict[str, Any]) -> PretrainConfig:
    return PretrainConfig.of(
        tokenizer=config.out / "tokenizer",
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


def _linear_config(config: Config, plan: dict[str, Any]) -> linearize.Config:
    return linearize.Config(
        str(config.out / "pretrain"),
        data=plan["data"],
        out=config.out / "linear",
        tokens=plan.get("linear_tokens", 10_000),
        window=16,
        map="dijiang",  # additive: a model this small has nothing far to find, and trains faster so
        batch_size=2 * plan["batch_size"],
        context=plan["context"],
        seed=config.seed,
        val_fraction=plan["val_fraction"],
        val_tokens=plan["val_tokens"],
        contexts=tuple(plan["contexts"]),
        judge_tokens=0,
        log_every=plan.get("linear_log_every", 1),
        save_every=50,
    )


def _text(config: Config, state: dict[str, Any], clock: Any) -> int:
    """Train the tokenizer and store the corpus as tokens where `yeoul pretrain` will look for them."""
    from yeoul.data.records import read_documents
    from yeoul.files import replace_folder
    from yeoul.recipes.token_data import token_shards
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    plan = state["plan"]
    plan |= TEXT
    folder = config.out / "tokenizer"

    def write(new: Path) -> None:
        train_tokenizer(read_documents(TOKENIZER_TEXT), TokenizerConfig(vocab_size=VOCAB), new)

    with _logged(config):
        replace_folder(folder, write)
        tokenizer = Tokenizer.load(folder)
        shards, _ = token_shards(
            plan["data"], config.out / "pretrain" / "data", tokenizer, val_fraction=plan["val_fraction"]
        )
    _say_text(shards, tokenizer)
    plan["corpus_tokens"] = shards.num_tokens
    return 0


def _say_text(shards: TokenShards, tokenizer: Tokenizer) -> None:
    ratio = shards.num_bytes / max(1, shards.num_tokens)
    print(
        f"      {count(shards.num_documents, 'document')}, {size(shards.num_bytes)} of Korean, "
        f"{shards.num_tokens:,} tokens from a vocabulary of {tokenizer.vocab_size:,} ({ratio:.1f} bytes each)"
    )


def _pretrain(config: Config, state: dict[str, Any], clock: Any) -> int:
    from yeoul.commands.plan import plan_pretraining
    from yeoul.recipes.pretrain.run import pretrain
    from yeoul.report.content import read_metrics
    from yeoul.train.interrupt import Interrupted

    plan = state["plan"]
    if "pretrain_tokens" not in plan:
        plan |= plan_pretraining(lambda more: _pretrain_config(config, {**plan, **more}), plan, clock, VOCAB)
        state["estimates"] = dict(clock.estimates)
        _save(config, state)
        print(
            f"      this machine trains at {rate(plan['tokens_per_second'])}: "
            f'{plan["pretrain_tokens"]:,} tokens for a model of size "{plan["preset"]}"; '
            f"about {clock.left()} left",
            flush=True,
        )
    code = 0
    try:
        with _logged(config):
            pretrain(plan["data"], _pretrain_config(config, plan), out=config.out / "pretrain", say=print)
    except Interrupted as stop:
        code = stop.exit_code
    lines = read_metrics(config.out / "pretrain" / "metrics.jsonl")
    if not code:
        last = [line for line in lines if line["kind"] == "val"][-1]
        print(f"      perplexity {last['perplexity']:.2f}, {last['bits_per_byte']:.3f} bits per byte of held-out text")
    return code


def _linearize(config: Config, state: dict[str, Any], clock: Any) -> int:
    from yeoul.commands.plan import plan_linearizing
    from yeoul.commands.results import linear_results
    from yeoul.evaluate import speed
    from yeoul.files import replace_folder

    plan = state["plan"]
    if "linear_tokens" not in plan:
        plan |= plan_linearizing(_linear_config(config, plan), plan, clock)
        state["estimates"] = dict(clock.estimates)
        _save(config, state)
        print(f"      {plan['linear_tokens']:,} tokens; about {clock.left()} left", flush=True)
    target = config.out / "linear" / "data"
    if not target.exists():  # the same text and tokenizer: no need to do it twice
        made = config.out / "pretrain" / "data"
        replace_folder(target, lambda new: shutil.copytree(made, new, dirs_exist_ok=True))
    with _logged(config):
        code = linearize.run(_linear_config(config, plan))
    if code:
        return code
    values = linear_results(config.out / "linear")
    for text in (
        conclusion.score_table(values["scores"]),
        speed.table([speed.SpeedRecord(**record) for record in values["speed"]], "teacher"),
    ):
        say("\n" + "\n".join(f"      {line}" for line in text.split("\n")))
    print(flush=True)
    return 0


def _write(config: Config, state: dict[str, Any], clock: Any) -> int:
    from dataclasses import asdict
    from itertools import islice

    import yeoul
    from yeoul.commands.evaluate import RECALL_SEED
    from yeoul.commands.results import samples
    from yeoul.data.corpus import generate_recall
    from yeoul.evaluate.recall import score_recall

    before, tokenizer = yeoul.load(config.out / "pretrain")
    after, _ = yeoul.load(config.out / "linear")
    assert tokenizer is not None  # this demo has put it there
    texts = samples(before, after, tokenizer, PROMPTS, seed=config.seed, **SAMPLING)
    print(
        f"      {texts[0].prompt}\n        softmax: {_one_line(texts[0].before)}\n"
        f"        DiJiang: {_one_line(texts[0].after)}"
    )
    questions = list(islice(generate_recall(seed=RECALL_SEED), 8 * QUESTIONS))
    recall = {}
    for name, model in (("teacher", before), ("converted", after)):
        recall[name] = score_recall(model, tokenizer, questions, ask=QUESTIONS, context=512).as_dict()
    state["texts"] = [asdict(sample) for sample in texts]
    state["recall"] = recall
    state["parameters"] = before.num_parameters()
    return 0


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _report(config: Config, state: dict[str, Any], clock: Any) -> int:
    from yeoul.commands.results import collect
    from yeoul.recipes.command_line import command_line
    from yeoul.report.content import Command, Report, Sample, Stage
    from yeoul.report.page import write_report

    out, recall = config.out, state["recall"]
    questions = recall["teacher"]["questions"]
    found = collect(out / "pretrain", out / "linear")
    found["models"] = tuple(
        replace(row, recall=recall[row.role]["accuracy"]) if row.role in recall else row for row in found["models"]
    )
    tokens = state["plan"]["corpus_tokens"]
    result = Text(f"{VOCAB:,} pieces, {tokens:,} tokens of text", f"조각 {VOCAB:,}개, 텍스트 {tokens:,}토큰")
    first = Stage(name="text", seconds=state["seconds"]["text"], result=result)
    found["stages"] = (first, *found["stages"])
    again = Path(f"{out}-again")
    before = _pretrain_config(config, state["plan"])
    after = replace(_linear_config(config, state["plan"]), model=str(again / "pretrain"), out=again / "linear")
    report = Report(
        **found,
        parameters=state["parameters"],
        seconds=clock.elapsed(),
        recall_chance=recall["teacher"]["chance"],
        samples=tuple(Sample(**values) for values in state["texts"]),
        sample_settings=Text(
            f"Temperature {SAMPLING['temperature']}, top-p {SAMPLING['top_p']}, seed {config.seed}.",
            f"온도 {SAMPLING['temperature']}, top-p {SAMPLING['top_p']}, 시드 {config.seed}.",
        ),
        reproduce=(
            Command(
                line=f"{_command(config)} --overwrite",
                what=Text("All of it, as far as the time allows", "전체를 주어진 시간만큼"),
            ),
            Command(
                line=command_line("pretrain", state["plan"]["data"], settings=before, out=again / "pretrain"),
                what=Text("Or step by step, with the same budgets", "또는 같은 예산으로 한 단계씩"),
            ),
            Command(line=command_line("linearize", settings=after)),
        ),
        next_steps=tuple(Command(line=line, what=what) for line, what in _next_steps(config)),
        notes=(
            Text(
                "Bits per byte are measured on held-out documents; no model was trained on them.",
                "바이트당 비트는 따로 둔 문서로 쟀고, 어느 모델도 그 문서로 학습하지 않았습니다.",
            ),
            Text(
                "Speeds are measured after a real prefill of random tokens, the models in turns, with batch 1; "
                "contexts beyond the training length measure speed and memory only.",
                "속도는 무작위 토큰을 실제로 프리필한 뒤 두 모델을 번갈아 배치 1로 쟀습니다. 학습 길이를 넘는 "
                "문맥에서는 속도와 메모리만 뜻이 있습니다.",
            ),
            Text(
                f"Recall ranks the right answer among four, {questions} questions of the built-in kind.",
                f"회상은 보기 네 개 가운데 정답을 고르는 방식이고, 내장 질문 {questions}개로 쟀습니다.",
            ),
        ),
    )
    write_report(report, out)
    return 0


def _next_steps(config: Config) -> tuple[tuple[str, Text], ...]:
    out = config.out
    linear, pretrained = (shlex.quote(str(out / name)) for name in ("linear", "pretrain"))
    more, mine = shlex.quote(f"{out}-30"), shlex.quote(str(out.parent / "mine"))
    return (
        (
            f'yeoul generate {linear} "{PROMPTS[0]}" --temperature 0.7',
            Text("Let the linear-time model write", "선형 시간 모델로 글쓰기"),
        ),
        (f"yeoul chat {linear}", Text("Chat with it", "이 모델과 대화하기")),
        (
            f"yeoul bench {pretrained} {linear} --contexts 1024 4096 16384",
            Text("See the gap at longer contexts", "더 긴 문맥에서 차이 보기"),
        ),
        (
            f"yeoul evaluate {linear} --by-position",
            Text("Where in the text it predicts well", "텍스트의 어느 위치를 잘 예측하는지"),
        ),
        (
            f"yeoul demo --minutes 30 --out {more}",
            Text("The same with more time: better Korean", "시간을 더 들여 더 나은 한국어로"),
        ),
        (
            f"yeoul pretrain YOUR_TEXT --out {mine}",
            Text(
                "Your own text: .txt, .jsonl, .csv, .parquet, a folder",
                "내 텍스트로: .txt, .jsonl, .csv, .parquet, 폴더",
            ),
        ),
    )


_WORK = {"text": _text, "pretrain": _pretrain, "linearize": _linearize, "write": _write, "report": _report}


def _say_goodbye(config: Config, clock: Any) -> None:
    out = config.out
    print(f"\nDone in {clock.total()}. The report: {out / 'report.html'} (or {out / 'report.md'})")
    print(f"The models: {out / 'pretrain'} (softmax) and {out / 'linear'} (DiJiang).\n\nWhat to try next:")
    for line, what in _next_steps(config):
        print(f"  {line}\n      {what.en}")
