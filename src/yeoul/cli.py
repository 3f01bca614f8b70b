"""`yeoul VERB`: imports the verb's module, fills its `Config`, runs it; user errors are one line.

`yeoul --help` must answer at once, so nothing here imports torch or a command at the top: summaries stand in
a table, and a verb's module is imported when it is called. A module has `Config` and
`run(config) -> int | None`, or `SUBCOMMANDS = {"train": (TrainConfig, run_train), ...}`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from yeoul.errors import UserError
from yeoul.lines import folded
from yeoul.version import VERSION

GROUPS: dict[str, dict[str, str]] = {
    "Start here": {
        "demo": "From text to a linear-time language model and a report, in minutes",
        "doctor": "Show what this machine has, what will be used, and what is missing",
    },
    "Make a model": {
        "tokenizer": "Train a tokenizer, inspect one, or compare several (train, inspect, compare)",
        "pretrain": "Pretrain a language model from text",
        "linearize": "Turn a model's attention into linear-time DiJiang attention",
        "finetune": "Train a model further: on conversations, text, labels or preferences",
        "quantize": "Quantize a model to 8 or 4 bits, and measure what that costs",
    },
    "Use it": {
        "generate": "Continue a text",
        "chat": "Chat with a model",
        "serve": "Serve models to OpenAI's clients and a web page",
        "classify": "Assign texts to classes",
        "embed": "Turn texts into vectors, or find the texts nearest to a query",
        "export": "Write a model for other programs: GGUF for llama.cpp, or safetensors",
    },
    "Evaluate it": {
        "evaluate": "Perplexity, bits per byte and recall; a conversion against its teacher",
        "inspect": "Where each attention head looks, as a page: softmax, linear, side by side",
        "sweep": "Settings of sampling: accuracy against diversity, and which one to take",
        "translate": "Translate by examples in the prompt: two systems side by side, scored",
        "bench": "Tokens per second and cache size at growing context lengths",
        "info": "Architecture, parameters and memory of a model",
        "runs": "The runs in a folder: how far each is, and what came of it",
        "report": "A page about a run, or one that compares several",
    },
}
VERBS = tuple(verb for group in GROUPS.values() for verb in group)

Command = tuple[type, Callable[[Any], int | None]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `yeoul` with `argv` (the process's arguments when None) and return the exit code.

    0 done, 2 something the user can mend, 130 interrupted, 141 the reader of the output went away; a command
    may return its own. Any other exception is a bug and leaves with its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 gets "?" rather than a traceback
            stream.reconfigure(errors="replace")
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _complain("interrupted.", 130)
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except Exception as error:
        if (sentence := _user_sentence(error)) is None:
            raise
        return _complain(sentence, 2)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h"):
        print(overview())
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"yeoul {VERSION}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        from yeoul.config import suggestion

        kind = "flag" if verb.startswith("-") else "command"
        fix = suggestion(verb, (*VERBS, "--help", "--version")) or "see `yeoul --help`"
        raise UserError(f'unknown {kind} "{verb}"', None, fix)
    return _run_verb(verb, rest)


def _run_verb(verb: str, argv: list[str]) -> int:
    import importlib

    from yeoul import runtime
    from yeoul.config import parse_flags

    runtime.prepare_threads()  # torch reads it when it is imported
    module = importlib.import_module(f"yeoul.commands.{verb}")
    program = f"yeoul {verb}"
    subcommands: dict[str, Command] | None = getattr(module, "SUBCOMMANDS", None)
    if subcommands is None:
        config_class, run = module.Config, module.run
    else:
        if not argv or argv[0] in ("--help", "-h"):
            print(_subcommand_overview(verb, module.__doc__ or "", subcommands))
            return 0
        config_class, run = _subcommand(verb, argv[0], subcommands)
        program, argv = f"{program} {argv[0]}", argv[1:]
    config = parse_flags(config_class, argv, program=program)
    if config is None:  # it was --help
        return 0
    return run(config) or 0


def _subcommand(verb: str, name: str, subcommands: dict[str, Command]) -> Command:
    if name not in subcommands:
        from yeoul.config import suggestion

        fix = suggestion(name, subcommands) or f"use one of {', '.join(subcommands)}"
        raise UserError(f'unknown command "{verb} {name}"', None, fix)
    return subcommands[name]


def overview() -> str:
    """The text of `yeoul --help`: verbs in the order of work."""
    lines = [
        folded("Yeoul makes GPT-style language models, Korean first, and turns them into linear-time ones."),
        "",
        "Usage: yeoul VERB [ARGUMENTS] [--flags]",
    ]
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:", *_listed(verbs, max(map(len, VERBS)))]
    return "\n".join([
        *lines,
        "",
        folded(
            "`yeoul VERB --help` explains a verb's flags. --config FILE.yaml can hold any of them; flags on the "
            "command line take precedence. `yeoul --version` prints the version. To get started: `yeoul demo`."
        ),
    ])  # fmt: skip


def _subcommand_overview(verb: str, doc: str, subcommands: dict[str, Command]) -> str:
    summaries = {
        name: ((config.__doc__ or "").strip().splitlines() or [""])[0] for name, (config, _) in subcommands.items()
    }
    lines = [f"Usage: yeoul {verb} COMMAND [ARGUMENTS] [--flags]", ""]
    if doc.strip():
        lines += [folded(doc.strip().splitlines()[0]), ""]
    lines += _listed(summaries, max(map(len, subcommands)))
    return "\n".join([*lines, "", folded(f"`yeoul {verb} COMMAND --help` explains the flags.")])


def _listed(summaries: dict[str, str], width: int) -> list[str]:
    """Names and what they are for in two columns."""
    return [
        folded(summary, first=f"  {name:<{width}}  ", others=" " * (width + 4)) for name, summary in summaries.items()
    ]


def _complain(sentence: str, code: int) -> int:
    """Print one line on stderr and give back `code`; names in it may come from anybody's files."""
    from yeoul.foreign_text import visible

    _flush_quietly()
    try:
        print(folded("yeoul: " + visible(" ".join(sentence.split())), sys.stderr), file=sys.stderr, flush=True)
    except BrokenPipeError:
        pass
    return code


def _user_sentence(error: Exception) -> str | None:
    """The sentence for an exception that the user can do something about; None for a bug."""
    import errno

    from yeoul.files import disk_error, disk_full

    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if disk_full(error) and (told := disk_error(error, getattr(error, "filename", None))) is not None:
        return str(told)
    denied = (errno.EACCES, errno.EPERM, errno.EROFS)
    if isinstance(error, OSError) and error.errno in denied and error.filename:
        return f"no permission to use {error.filename} ({error.strerror}); choose another path."
    if _is_out_of_memory(error, text):
        return "out of memory; use a smaller batch, context or model."
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("yeoul"):
        from yeoul.recipes.doctor import install_hint

        return f'the package "{error.name}" is not installed; {install_hint(error.name)}.'
    return None


def _is_out_of_memory(error: Exception, text: str) -> bool:
    # By name, because importing torch to name the class would cost seconds.
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text.lower())
    )


def _flush_quietly() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit does not complain either."""
    import os

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a captured stream has no descriptor
        pass


if __name__ == "__main__":
    sys.exit(main())
