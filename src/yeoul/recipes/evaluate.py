"""`yeoul.evaluate_model` and `yeoul.compare`: how a model predicts text, what it recalls, what a conversion kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from yeoul import runtime
from yeoul.config import Settings
from yeoul.data.documents import check_documents
from yeoul.data.reading import Reading
from yeoul.errors import UserError
from yeoul.recipes.command_line import command_line
from yeoul.recipes.evaluation_report import check_out, leave_evaluation
from yeoul.recipes.evaluation_result import EvaluateResult
from yeoul.recipes.options import Say, silent

if TYPE_CHECKING:
    from yeoul.data.batch import Batch
    from yeoul.data.shards import TokenShards
    from yeoul.evaluate.associative import RecallGrid
    from yeoul.evaluate.compare import Comparison
    from yeoul.evaluate.korean import KoreanScore
    from yeoul.evaluate.perplexity import LMScore
    from yeoul.evaluate.recall import RecallScore
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

    Loadable = str | Path | tuple[Decoder, Tokenizer | None]
    """A folder, a run, or an id on the hub; or what `yeoul.load` gave."""
    Batches = Callable[[], Iterable[Batch]]
    """Makes the same batches each time."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """What is measured of a model, and on how much text."""

    text_column: str | None = None
    """Column of tables and JSON objects that holds the text; when not given, it is looked up by its usual names."""
    join_by: str | None = None
    """Column by which records are joined: equal values make one document."""
    reading: Annotated[Reading, Parameter(name="*")] = field(default_factory=Reading)
    """Files of data."""
    context: int | None = None
    """Tokens per sequence; when not given, the model's own length, but at most 2,048."""
    batch_size: int = 8
    """Sequences at a time."""
    max_tokens: int | None = None
    """Score at most this many tokens, from the beginning of the text; all when not given."""
    isolate_documents: bool = False
    """Keep documents from seeing one another; otherwise they follow one another in a row."""
    by_position: bool = False
    """Also print the loss by position in the sequence, in buckets that double in size: does more context help?"""
    recall: int = 0
    """Number of built-in questions about facts told earlier in the text; 0 asks none."""
    recall_method: Literal["rank", "generate"] = "rank"
    """rank: is the answer more likely than other answers; generate: does the model say it."""
    mqar: bool = False
    """Recall of pairs of words over a grid of pairs and distances (MQAR)."""
    needle: bool = False
    """Recall of one pair of words somewhere in a text."""
    window: int | None = None
    """Window that recall must reach beyond, and to which the teacher is cut; when not given, MODEL's own, or 64."""
    sinks: int = 4
    """Number of first positions that the cut teacher still sees."""
    korean: int = 0
    """Passages of the text that MODEL continues by random draws, to count mistakes in Korean by rule; 0 for none."""
    prompts: int = 16
    """Number of prompts that teacher and MODEL continue greedily; 0 for none."""
    new_tokens: int = 64
    """Tokens generated for each of these prompts."""
    dtype: str = "auto"
    """Dtype of matrix products: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("context", self.context, 2),
            ("batch-size", self.batch_size, 1),
            ("max-tokens", self.max_tokens, 1),
            ("recall", self.recall, 0),
            ("korean", self.korean, 0),
            ("window", self.window, 1),
            ("sinks", self.sinks, 0),
            ("prompts", self.prompts, 0),
            ("new-tokens", self.new_tokens, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"--{flag} is {value}, but must be at least {least}")


def evaluate(
    model: Loadable,
    data: str | None = None,
    config: EvaluateConfig | None = None,
    *,
    teacher: Loadable | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    say: Say | None = None,
) -> EvaluateResult:
    """Score a model on a text: loss, perplexity and bits per byte; with a teacher, also compare it with that.

    Bits per byte can be compared between models with different tokenizers; loss and perplexity cannot.

    Args:
        model: a folder, a run, or an id on the hub; or what `yeoul.load` gave.
        data: a file, a folder, a Hub dataset or "builtin"; None is the text that the run held out.
        config: what is measured; None for the defaults.
        teacher: the softmax model that `model` was converted from.
        out: folder for evaluate.json and a report; None leaves nothing. If the disk is full then, `say` is told, and
            the result is returned all the same.
        device: "auto", "cpu", "cuda" or "cuda:N"; models that are loaded are scored where they are.
        say: called with progress messages; None for no output.

    Raises:
        UserError: no such model or text, no tokenizer, a teacher with another one, or `out` holds something else.
    """
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        check_out(folder)
    run = _Evaluation(model, data, config or EvaluateConfig(), teacher, device, say or silent)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    recall = run.recall() if run.config.recall else None
    with run.text() as (name, batches):
        score = run.score(batches)
        korean = run.korean(batches) if run.config.korean else {}
        compared = None if run.teacher is None else run.compare(run.teacher, batches)
        grids = run.grids(batches) if compared is None else {}
    result = EvaluateResult(
        model=run.name, teacher=None if teacher is None else _name(teacher), data=name, context=run.context,
        tokenizer=run.tokenizer, score=score, recall=recall, korean=korean, grids=grids,
        comparison=compared,
    )  # fmt: skip
    if folder is not None:
        flags = dict(data=data, teacher=result.teacher, out=folder)
        loaded = isinstance(model, tuple) or isinstance(teacher, tuple)  # which no command names
        line = "" if loaded else command_line("evaluate", run.name, settings=run.config, **flags)
        try:
            page = leave_evaluation(result, folder, line)
        except OSError as error:  # a full disk takes nothing of what has been measured
            run.say(f"The report could not be written ({error}).")
        else:
            run.say(f"The report: {page} (or {page.with_suffix('.md')})")
    return result


def compare(
    teacher: Loadable, converted: Loadable, data: str | None = None, config: EvaluateConfig | None = None, *,
    device: str = "auto", say: Say | None = None,
) -> Comparison:  # fmt: skip
    """Compare a converted model with its teacher: use of distant text, recall, free generation and speed.

    Args:
        teacher: the softmax model that the other was converted from, as in `evaluate`.
        converted: the linearized model.
        data: text that neither was trained on, as in `evaluate`.
        config: on how much; what is measured of one model alone is left out.
        device: as in `evaluate`.
        say: called with progress messages; None for no output.

    Raises:
        UserError: as in `evaluate`.
    """
    run = _Evaluation(converted, data, config or EvaluateConfig(), teacher, device, say or silent)
    assert run.teacher is not None
    with run.text() as (_, batches):
        return run.compare(run.teacher, batches)


def _name(model: Loadable) -> str:
    return "model" if isinstance(model, tuple) else str(model)


class _Evaluation:
    """A model and what it is evaluated on."""

    def __init__(
        self, model: Loadable, data: str | None, config: EvaluateConfig, teacher: Loadable | None, device: str, say: Say
    ) -> None:
        runtime.set_threads()
        self.config, self.data, self.say, self.name = config, data, say, _name(model)
        self.source = None if isinstance(model, tuple) else Path(model)
        self._check_data()
        self.device = device
        self.model, tokenizer = self._loaded(model)
        if tokenizer is None:
            raise UserError("the model has no tokenizer, so no text can be scored", self.name)
        self.tokenizer: Tokenizer = tokenizer
        self.context = self._context()
        self.teacher = None if teacher is None else self._teacher(teacher)
        self.dtype = runtime.resolve_dtype(config.dtype, self.model.device)

    def _loaded(self, model: Loadable) -> tuple[Decoder, Tokenizer | None]:
        from yeoul.recipes.loading import load

        if isinstance(model, tuple):
            return model
        # Products in float32 want their weights so, too.
        return load(model, device=self.device, dtype="float32" if self.config.dtype == "float32" else "auto")

    def _context(self) -> int:
        context = self.config.context or min(self.model.config.max_position_embeddings, 2048)
        self.model.config.check_context(context)
        return context

    def _teacher(self, given: Loadable) -> Decoder:
        """The teacher, which must read the same tokens as the model."""
        teacher, own = self._loaded(given)
        if own is not None and own.fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                "the teacher and the model have different tokenizers",
                f"--teacher {_name(given)}",
                "give the model that it was converted from",
            )
        self.tokenizer.check_fits(teacher.config.vocab_size)
        longest, context = teacher.config.bounded_context, self.context
        if longest is not None and context > longest and teacher.config.positions != "rotary":
            raise UserError(
                f"the context of {context:,} is longer than the teacher's {longest:,} positions", "--context"
            )
        return teacher

    def _check_data(self) -> None:
        """What is wrong with the text from its first line on is said before the model is loaded."""
        c = self.config
        if self.data is not None:
            check_documents(self.data, text_column=c.text_column, join_by=c.join_by, reading=c.reading)
        elif self.source is None or self.source.exists():
            self._kept()

    def _kept(self) -> Path:
        """The tokens that a run has put aside."""
        kept = None if self.source is None else self.source / "data" / "val"
        if kept is None or not kept.is_dir():
            raise UserError("there is no text to score", "--data", 'give a file, a folder or "builtin"')
        return kept

    @contextmanager
    def text(self) -> Iterator[tuple[str, Batches]]:
        """What the text is called, and its batches; made of it here, they are gone afterwards."""
        from yeoul.recipes.token_data import held_out

        with tempfile.TemporaryDirectory(prefix="yeoul-") as folder:
            shards, name = self._shards(Path(folder))
            yield name, held_out(
                shards, batch_size=self.config.batch_size, context=self.context, max_tokens=self.config.max_tokens,
                isolate_documents=self.config.isolate_documents,
            )  # fmt: skip

    def _shards(self, folder: Path) -> tuple[TokenShards, str]:
        """The tokens to score and where they come from."""
        from yeoul.data.shards import TokenShards
        from yeoul.recipes.token_data import token_shards

        if self.data is not None:
            shards, _ = token_shards(
                self.data, folder / "data", self.tokenizer, text_column=self.config.text_column,
                join_by=self.config.join_by, reading=self.config.reading,
            )  # fmt: skip
            return shards, self.data
        kept = self._kept()
        shards = TokenShards.open(kept, self.tokenizer.framing.begin)
        if shards.meta.fingerprint != self.tokenizer.fingerprint:
            raise UserError("the held-out text was made with another tokenizer", kept, "give --data")
        return shards, str(kept)

    def score(self, batches: Batches) -> LMScore:
        """Loss, perplexity, bits per byte."""
        from yeoul.evaluate.perplexity import score

        self.say(f"Scoring {self.name} in sequences of {self.context:,} tokens ...")
        lengths = self.tokenizer.byte_lengths()
        return score(self.model, batches(), lengths, dtype=self.dtype, by_position=self.config.by_position)

    @property
    def _window(self) -> int:
        hybrid = "hybrid" in self.model.config.attention
        return self.config.window or (self.model.config.window if hybrid else 64)

    def compare(self, teacher: Decoder, batches: Batches) -> Comparison:
        """The model beside its teacher."""
        from yeoul.evaluate import compare as comparing

        return comparing.compare(
            teacher, self.model, self.tokenizer, batches, context=self.context, window=self._window,
            sinks=self.config.sinks,
            budget=comparing.Budget(prompts=self.config.prompts, new_tokens=self.config.new_tokens),
            dtype=self.dtype, progress=lambda what: self.say(f"Measuring {what} ..."),
        )  # fmt: skip

    def grids(self, batches: Batches) -> dict[str, RecallGrid]:
        """The recall of one model, without a teacher."""
        from yeoul.evaluate.associative import Material, ask, mqar_questions, needle_questions
        from yeoul.evaluate.words import TEXT_TOKENS, text_ids

        kinds = (("mqar", self.config.mqar, mqar_questions), ("needle", self.config.needle, needle_questions))
        if not (self.config.mqar or self.config.needle):
            return {}
        material = Material(
            self.tokenizer, text_ids(self.tokenizer, batches(), TEXT_TOKENS), lead=self.config.sinks
        )  # fmt: skip
        grids = {}
        for kind, wanted, make in kinds:
            if not wanted:
                continue
            self.say(f"Asking {kind} ...")
            questions = make(material, context=self.context, window=self._window)
            if not questions.cells:
                raise UserError("nothing fits: " + "; ".join(questions.left_out), f"--{kind}")
            grids[kind] = ask(self.model, questions, dtype=self.dtype)
        return grids

    def korean(self, batches: Batches) -> dict[str, KoreanScore]:
        """Mistakes in continuations of passages of the text, drawn as `yeoul generate` does, and in the text itself."""
        from yeoul.evaluate.korean import judge_all
        from yeoul.evaluate.sampling import Continuation, judged_text
        from yeoul.evaluate.words import TEXT_TOKENS, text_ids
        from yeoul.infer.engine import run
        from yeoul.infer.params import SamplingParams

        self.say(f"Continuing {self.config.korean} passages, for mistakes in Korean ...")
        ids = text_ids(self.tokenizer, batches(), TEXT_TOKENS)
        new = min(self.config.new_tokens, self.context // 2)
        length = min(self.context - new, 64, max(1, len(ids) - new))
        count = max(1, min(self.config.korean, len(ids) // (length + new)))
        starts = [i * (len(ids) - length - new) // max(count - 1, 1) for i in range(count)]
        passages = [ids[start : start + length] for start in starts]
        texts = [self.tokenizer.decode(passage) for passage in passages]
        prompts: list[str | list[int]] = [self.tokenizer.framing.prompt(passage) for passage in passages]
        results = run(self.model, self.tokenizer, prompts, SamplingParams(max_tokens=new, seed=0))
        written = [judged_text(text, Continuation.of(result)) for text, result in zip(texts, results, strict=True)]
        own = [self.tokenizer.decode(ids[start : start + length + new]) for start in starts]
        return {"written": judge_all(written), "text": judge_all(own)}

    def recall(self) -> RecallScore:
        """Built-in questions about facts told earlier."""
        from yeoul.data.builtin import generate_recall
        from yeoul.evaluate.recall import RECALL_SEED, score_recall

        config = self.config
        items = list(islice(generate_recall(seed=RECALL_SEED), 8 * config.recall))
        return score_recall(
            self.model, self.tokenizer, items, method=config.recall_method, ask=config.recall, context=config.context,
            batch_size=config.batch_size,
        )  # fmt: skip
