"""`yeoul.evaluate_tasks`: standard tasks, by lm-eval: its own by name, ours, and whatever task files a user has."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul import runtime
from yeoul.config import Settings
from yeoul.errors import UserError
from yeoul.recipes.options import Say, changed, silent

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

    Loadable = str | Path | tuple[Decoder, Tokenizer | None]
    """A folder, a run, or an id on the hub; or what `yeoul.load` gave."""

KOREAN = Path(__file__).parent / "korean"
"""Small tasks of our own, in the formats of KoBEST, KMMLU and HAE-RAE: nothing is downloaded for them."""

READ = ("batch_size", "context", "dtype")
"""Settings of other evaluations that these have, too."""


@dataclass(frozen=True, kw_only=True)
class TasksConfig(Settings):
    """How standard tasks are asked."""

    fewshot: int | None = None
    """Solved examples before each question of --tasks; when not given, as many as the task says."""
    limit: int | None = None
    """Ask only the first so many questions of each of --tasks, for a trial."""
    apply_chat_template: bool = False
    """Ask --tasks as a user's messages, by the model's chat template."""
    system_instruction: str | None = None
    """System message before the questions of --tasks."""

    def __post_init__(self) -> None:
        for flag, value, least in (("fewshot", self.fewshot, 0), ("limit", self.limit, 1)):
            if value is not None and value < least:
                raise UserError(f"--{flag} is {value}, but must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a task.

    Attributes:
        name: acc, acc_norm, f1, exact_match ...
        filter: what was done to the answers before; "none" for nothing.
        value: the figure.
        stderr: its standard error as lm-eval computes it; None where it has no formula for it.
    """

    name: str
    filter: str
    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """What came of a task, or of a group of tasks together.

    Attributes:
        name: of the task.
        version: of its definition; None for a group.
        questions: how many were asked.
        fewshot: solved examples before each; None for a group.
        metrics: in the order of the task's own list.
    """

    name: str
    version: str | None
    questions: int
    fewshot: int | None
    metrics: tuple[Metric, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: metrics by name, with their filter where there is one."""
        figures = {}
        for metric in self.metrics:
            key = metric.name if metric.filter == "none" else f"{metric.name},{metric.filter}"
            figures[key] = {"value": metric.value, "stderr": metric.stderr}
        return {
            "version": self.version, "questions": self.questions, "fewshot": self.fewshot, "metrics": figures,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TasksResult:
    """What came of all tasks.

    Attributes:
        model: what it is called.
        tasks, groups: in the order in which they were named.
        samples: of each task, what lm-eval records of every question: the request, the answers, the right one.
        harness: version of lm-eval.
    """

    model: str
    tasks: tuple[TaskScore, ...]
    groups: tuple[TaskScore, ...]
    samples: dict[str, list[dict[str, Any]]]
    harness: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the samples."""
        return {
            "model": self.model, "lm_eval": self.harness,
            "tasks": {score.name: score.as_dict() for score in self.tasks},
            "groups": {score.name: score.as_dict() for score in self.groups},
        }  # fmt: skip

    def table(self) -> str:
        """The figures as text, with their standard errors."""
        rows = [("task", "questions", "few-shot", "metric", "value", "stderr")]
        for score in (*self.groups, *self.tasks):
            for number, metric in enumerate(score.metrics):
                name = metric.name if metric.filter == "none" else f"{metric.name} ({metric.filter})"
                first = number == 0
                rows.append((
                    score.name if first else "", f"{score.questions:,}" if first else "",
                    str(score.fewshot) if first and score.fewshot is not None else "", name,
                    f"{metric.value:.4f}", "" if metric.stderr is None else f"+- {metric.stderr:.4f}",
                ))  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        left = (0, 3, 5)
        lines = ("  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in
                 enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)  # fmt: skip
        return "\n".join(lines)


def alone(settings: Settings, **given: object) -> None:
    """Checks that nothing else is asked for: other evaluations are their own, and their flags would not be read.

    Args:
        settings: of other evaluations.
        given: their arguments, by the names of their flags.

    Raises:
        UserError: one of them is not as it is by default.
    """
    others = [flag for flag in changed(settings) if flag[2:].replace("-", "_") not in READ]
    others += [f"--{name}" for name, value in given.items() if value is not None]
    if others:
        what = "standard tasks are an evaluation of their own"
        raise UserError(what, f"--tasks with {others[0]}", "give one of them")


def evaluate_tasks(
    model: Loadable | LM,
    tasks: Sequence[str] | str,
    config: TasksConfig | None = None,
    *,
    batch_size: int = 8,
    context: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    say: Say | None = None,
) -> TasksResult:
    """Run standard tasks by lm-eval.

    Args:
        model: a folder, a run, or an id on the hub; or what `yeoul.load` gave; or any other model of lm-eval.
        tasks: names of tasks and groups, lm-eval's (they are downloaded) and ours ("yeoul_korean" is all of them);
            YAML files of tasks, and folders of these. A text may name several, separated by commas.
        config: how they are asked; None for the defaults.
        batch_size: rows at a time.
        context: tokens that are read of a question with its examples; None for the model's own length.
        device: "auto", "cpu", "cuda" or "cuda:N"; a model that is loaded stays where it is.
        dtype: of the weights; "auto" as `yeoul.load`.
        say: called with progress messages; None for no output.

    Raises:
        UserError: lm-eval is not installed; no such model or task; data of a task that cannot be had.
    """
    say, config = say or silent, config or TasksConfig()
    names = [name.strip() for text in ([tasks] if isinstance(tasks, str) else tasks) for name in text.split(",")]
    with _lm_eval(quiet=say is silent):
        manager, loaded = _loaded([name for name in names if name])
        return _run(_opened(model, batch_size, context, device, dtype), manager, loaded, config, say)


@contextmanager
def _lm_eval(quiet: bool) -> Iterator[None]:
    """lm-eval inside, without its reports of what it does; its progress bars go to standard error, or nowhere."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        from yeoul.recipes.doctor import install_hint

        raise UserError("standard tasks need lm-eval", "--tasks", install_hint("lm_eval")) from None
    logger = logging.getLogger("lm_eval")
    level, stream = logger.level, io.StringIO() if quiet else sys.stderr
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        logger.setLevel(level)


def _loaded(names: Sequence[str]) -> tuple[TaskManager, list[Any]]:
    """What is to be run, with its questions, and the index in which it was found.

    lm-eval's own tasks are thousands of files: they are read only where something is not found without them.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise UserError("no task is named", "--tasks", 'for example "yeoul_korean"')
    folders = [Path(name).expanduser() for name in names if Path(name).expanduser().is_dir()]
    for complete in (False, True):
        manager = TaskManager(include_path=[str(each) for each in (KOREAN, *folders)], include_defaults=complete)
        unknown = [name for name in names if not _is_path(name) and name not in manager.task_index]
        if unknown and not complete:
            continue
        if unknown:
            raise UserError(f'there is no task "{unknown[0]}"', "--tasks", _advice(unknown[0], manager.task_index))
        wanted = dict.fromkeys(task for name in names for task in _named(manager, name))
        try:
            return manager, [each for name in wanted for each in _opened_task(manager, name)]
        except UserError:  # perhaps a group that names tasks of lm-eval
            if complete:
                raise
    raise AssertionError


def _is_path(name: str) -> bool:
    return Path(name).expanduser().is_dir() or name.endswith((".yaml", ".yml"))


def _named(manager: TaskManager, name: str) -> list[str]:
    """Names of tasks, or a file of one."""
    path = Path(name).expanduser()
    if path.is_dir():
        own = [task for task in manager.all_subtasks if _lies_in(manager.task_index[task].yaml_path, path)]
        if not own:
            raise UserError("there is no task in this folder", path, "put lm-eval's YAML files of tasks there")
        return own
    if not _is_path(name):
        return [name]
    if not path.is_file():
        raise UserError("there is no such task file", path, "check the path")
    return [str(path)]


def _lies_in(file: Path | None, folder: Path) -> bool:
    return file is not None and folder.resolve() in file.resolve().parents


def _advice(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=3)
    return f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them; ours: yeoul_korean"


def _opened_task(manager: TaskManager, name: str) -> list[Any]:
    """A task, a group of tasks, or the tasks with a tag, with their questions."""
    try:
        found = manager.load(name)
    except Exception as error:  # of lm-eval, datasets, the hub, or of the task's own code
        lines = str(error).strip().splitlines()
        what = f"the task cannot be loaded ({type(error).__name__}: {lines[0] if lines else 'nothing more is said'})"
        raise UserError(what, name, "check the task file, and the connection if its data is on the hub") from error
    return [found["groups"][name]] if name in found.get("groups", {}) else list(found["tasks"].values())


def _opened(model: Loadable | LM, batch_size: int, context: int | None, device: str, dtype: str) -> LM:
    from lm_eval.api.model import LM

    from yeoul.recipes.tasks.harness import YeoulLM

    if isinstance(model, LM):
        return model
    runtime.set_threads()
    return YeoulLM(model, device=device, dtype=dtype, batch_size=batch_size, max_length=context)


def _run(model: LM, manager: TaskManager, loaded: list[Any], config: TasksConfig, say: Say) -> TasksResult:
    import lm_eval

    say(f"Asking {', '.join(manager.load(loaded)['tasks'])} ...")
    found = lm_eval.simple_evaluate(
        model=model, tasks=loaded, task_manager=manager, num_fewshot=config.fewshot, limit=config.limit,
        apply_chat_template=config.apply_chat_template, system_instruction=config.system_instruction,
        log_samples=True,
    )  # fmt: skip
    assert found is not None
    groups = found.get("groups", {})
    count = {name: sizes["effective"] for name, sizes in found["n-samples"].items()}
    leaves = {name: [name] for name in count}
    for name in reversed(list(found.get("group_subtasks", {}))):
        members = found["group_subtasks"][name]
        leaves.setdefault(name, [leaf for member in members for leaf in leaves.get(member, [])])
    for name in groups:
        count[name] = sum(count[leaf] for leaf in set(leaves.get(name, [])))

    def scores(part: Any, names: Iterable[str]) -> tuple[TaskScore, ...]:
        return tuple(
            TaskScore(
                name=name, version=_text(found["versions"].get(name)), questions=count.get(name, 0),
                fewshot=found["n-shot"].get(name), metrics=_metrics(part[name]),
            )
            for name in names
        )  # fmt: skip

    return TasksResult(
        model=str(getattr(model, "_path", type(model).__name__)), tasks=scores(found["results"], found["n-samples"]),
        groups=scores(groups, groups), samples=dict(found["samples"]), harness=lm_eval.__version__,
    )  # fmt: skip


def _text(value: object) -> str | None:
    return None if value in (None, "N/A") else str(value)


def _metrics(values: dict[str, Any]) -> tuple[Metric, ...]:
    """lm-eval writes "acc,none" and "acc_stderr,none" beside one another."""
    metrics = []
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{name}_stderr,{kind}")
            stderr = float(error) if isinstance(error, int | float) and error == error else None
            metrics.append(Metric(name=name, filter=kind, value=float(value), stderr=stderr))
    return tuple(metrics)
