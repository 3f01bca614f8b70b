"""`yeoul evaluate`: how well a model predicts text, what it recalls, and what a conversion has kept."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.data.reading import Reading
from yeoul.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from yeoul.data.batch import Batch
    from yeoul.data.shards import TokenShards
    from yeoul.evaluate.associative import RecallGrid
    from yeoul.evaluate.compare import Comparison
    from yeoul.evaluate.perplexity import LMScore
    from yeoul.evaluate.recall import RecallScore
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    """Score a model on a text: loss, perplexity and bits per byte.

    Bits per byte can be compared between models with different tokenizers; loss and perplexity cannot. With
    --teacher, a converted model is judged against the model it was made from: how much it keeps of the use of
    distant text, of recall, and of free generation.
    """

    model: Place
    """Model: a Hugging Face folder, a run's folder, or an id on the hub."""
    _: KW_ONLY
    data: Place | None = None
    """Text: a file, a folder, a hub data set or "builtin"; when not given, the text that the run held out."""
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
    teacher: Place | None = None
    """Softmax model that MODEL was converted from; measures what MODEL kept, including --mqar and --needle."""
    window: int | None = None
    """Window that recall must reach beyond, and to which the teacher is cut; when not given, MODEL's own, or 64."""
    sinks: int = 4
    """Number of first positions that the cut teacher still sees."""
    prompts: int = 16
    """Number of prompts that teacher and MODEL continue greedily; 0 for none."""
    new_tokens: int = 64
    """Tokens generated for each of these prompts."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Number type of matrix products: auto, float32, bfloat16 or float16."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("context", self.context, 2),
            ("batch-size", self.batch_size, 1),
            ("max-tokens", self.max_tokens, 1),
            ("recall", self.recall, 0),
            ("window", self.window, 1),
            ("sinks", self.sinks, 0),
            ("prompts", self.prompts, 0),
            ("new-tokens", self.new_tokens, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"--{flag} is {value}, but must be at least {least}")


def run(config: Config) -> int:
    """Print the scores."""
    import yeoul
    from yeoul import runtime

    runtime.set_threads()
    _check_data(config)
    model, tokenizer = yeoul.load(config.model, device=config.device, dtype=_held(config))
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so no text can be scored", config.model)
    context = _context(config, model)
    teacher = None if config.teacher is None else _teacher(config, config.teacher, tokenizer, context)
    recall = _recall(config, model, tokenizer) if config.recall else None
    with tempfile.TemporaryDirectory(prefix="yeoul-") as folder:
        shards, name = _shards(config, tokenizer, Path(folder))
        batches = _batches(config, shards, context)
        result = _score(config, model, tokenizer, batches, context)
        judgement, grids = None, {}
        if teacher is not None:
            judgement = _judgement(config, teacher, model, tokenizer, batches, context)
        elif config.mqar or config.needle:
            grids = _grids(config, model, tokenizer, batches, context)
    begin = tokenizer.spelled(tokenizer.framing.begin) or None
    values: dict[str, Any] = {"model": config.model, "data": name, "context": context, "begins_with": begin}
    values |= result.as_dict()
    if recall is not None:
        values["recall"] = recall.as_dict()
    if config.json:
        values |= {kind: grid.as_dict() for kind, grid in grids.items()}
        if judgement is not None:
            values |= {"teacher": config.teacher, "comparison": judgement.as_dict()}
        print(json.dumps(values, ensure_ascii=False, indent=2))
        return 0
    print(f"{describe(values)}\n{tokenizer.begins}")
    for grid in grids.values():
        print("\n" + _described(grid))
    if judgement is not None:
        from yeoul.evaluate.compare_table import comparison_table

        print("\n" + comparison_table(judgement))
    return 0


def _held(config: Config) -> str:
    """Type of the weights: products in float32 want them so, too."""
    return "float32" if config.dtype == "float32" else "auto"


def _context(config: Config, model: Decoder) -> int:
    longest = model.config.bounded_context
    context = config.context or min(model.config.max_position_embeddings, 2048)
    if longest is not None and context > longest:
        raise UserError(f"the context of {context:,} is longer than the model's {longest:,} positions", "--context")
    return context


def _check_data(config: Config) -> None:
    """What is wrong with the text from its first line on is said before the model is loaded."""
    from yeoul.data.documents import check_documents

    if config.data is not None:
        check_documents(config.data, text_column=config.text_column, join_by=config.join_by, reading=config.reading)
    elif Path(config.model).exists():
        _kept(config)


def _kept(config: Config) -> Path:
    """The tokens that a run has put aside."""
    kept = Path(config.model) / "data" / "val"
    if not kept.is_dir():
        raise UserError("there is no text to score", "--data", 'give a file, a folder or "builtin"')
    return kept


def _shards(config: Config, tokenizer: Tokenizer, folder: Path) -> tuple[TokenShards, str]:
    """The tokens to score and where they come from."""
    from yeoul.data.shards import TokenShards
    from yeoul.recipes.token_data import token_shards

    if config.data is not None:
        shards, _ = token_shards(
            config.data, folder / "data", tokenizer,
            text_column=config.text_column, join_by=config.join_by, reading=config.reading,
        )  # fmt: skip
        return shards, config.data
    kept = _kept(config)
    shards = TokenShards.open(kept, tokenizer.framing.begin)
    if shards.meta.fingerprint != tokenizer.fingerprint:
        raise UserError("the held-out text was made with another tokenizer", kept, "give --data")
    return shards, str(kept)


def _batches(config: Config, shards: TokenShards, context: int) -> Callable[[], Iterable[Batch]]:
    from yeoul.recipes.token_data import held_out

    return held_out(
        shards,
        batch_size=config.batch_size,
        context=context,
        max_tokens=config.max_tokens,
        isolate_documents=config.isolate_documents,
    )


def _score(
    config: Config, model: Decoder, tokenizer: Tokenizer, batches: Callable[[], Iterable[Batch]], context: int
) -> LMScore:
    from yeoul import runtime
    from yeoul.evaluate.perplexity import score

    _say(config, f"Scoring {config.model} in sequences of {context:,} tokens ...")
    dtype = runtime.resolve_dtype(config.dtype, model.device)
    return score(model, batches(), tokenizer.byte_lengths(), dtype=dtype, by_position=config.by_position)


def _say(config: Config, what: str) -> None:
    if not config.json:
        print(what, file=sys.stderr, flush=True)


def _teacher(config: Config, name: str, tokenizer: Tokenizer, context: int) -> Decoder:
    """The teacher, which must read the same tokens as the model."""
    import yeoul

    teacher, own = yeoul.load(name, device=config.device, dtype=_held(config))
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise UserError(
            "the teacher and the model have different tokenizers",
            f"--teacher {name}",
            "give the model that it was converted from",
        )
    tokenizer.check_fits(teacher.config.vocab_size)
    longest = teacher.config.bounded_context
    if longest is not None and context > longest and teacher.config.positions != "rotary":
        raise UserError(f"the context of {context:,} is longer than the teacher's {longest:,} positions", "--context")
    return teacher


def _window(config: Config, model: Decoder) -> int:
    hybrid = "hybrid" in model.config.attention
    return config.window or (model.config.window if hybrid else 64)


def _judgement(
    config: Config,
    teacher: Decoder,
    model: Decoder,
    tokenizer: Tokenizer,
    batches: Callable[[], Iterable[Batch]],
    context: int,
) -> Comparison:
    from yeoul import runtime
    from yeoul.evaluate.compare import Budget, compare

    return compare(
        teacher,
        model,
        tokenizer,
        batches,
        context=context,
        window=_window(config, model),
        sinks=config.sinks,
        budget=Budget(prompts=config.prompts, new_tokens=config.new_tokens),
        dtype=runtime.resolve_dtype(config.dtype, model.device),
        progress=lambda what: _say(config, f"Measuring {what} ..."),
    )


def _grids(
    config: Config, model: Decoder, tokenizer: Tokenizer, batches: Callable[[], Iterable[Batch]], context: int
) -> dict[str, RecallGrid]:
    """The recall of one model, without a teacher."""
    from yeoul import runtime
    from yeoul.evaluate.associative import Material, ask, mqar_questions, needle_questions
    from yeoul.evaluate.words import TEXT_TOKENS, text_ids

    material = Material(tokenizer, text_ids(tokenizer, batches(), TEXT_TOKENS), lead=config.sinks)
    dtype = runtime.resolve_dtype(config.dtype, model.device)
    grids = {}
    for kind, wanted, make in (
        ("mqar", config.mqar, mqar_questions),
        ("needle", config.needle, needle_questions),
    ):
        if not wanted:
            continue
        _say(config, f"Asking {kind} ...")
        questions = make(material, context=context, window=_window(config, model))
        if not questions.cells:
            raise UserError("nothing fits: " + "; ".join(questions.left_out), f"--{kind}")
        grids[kind] = ask(model, questions, dtype=dtype)
    return grids


def _described(grid: RecallGrid) -> str:
    from yeoul.evaluate.compare_table import recall_table

    return recall_table({"accuracy": grid})


def _recall(config: Config, model: Decoder, tokenizer: Tokenizer) -> RecallScore:
    from itertools import islice

    from yeoul.data.corpus import generate_recall
    from yeoul.evaluate.recall import RECALL_SEED, score_recall

    items = list(islice(generate_recall(seed=RECALL_SEED), 8 * config.recall))
    return score_recall(
        model,
        tokenizer,
        items,
        method=config.recall_method,
        ask=config.recall,
        context=config.context,
        batch_size=config.batch_size,
    )


def describe(values: dict[str, Any]) -> str:
    """The scores as text."""
    bits = "not known" if values["bits_per_byte"] is None else f"{values['bits_per_byte']:.4f}"
    lines = [
        f"{values['data']}: {values['tokens']:,} tokens, {values['bytes'] or 0:,} bytes, context {values['context']:,}",
        f"loss            {values['loss']:.4f} nats per token",
        f"perplexity      {values['perplexity']:,.3f}",
        f"bits per byte   {bits}",
    ]
    if "by_position" in values:
        lines += ["", f"{'position':>15}  {'loss':>8}  {'tokens':>10}"]
        for bucket in values["by_position"]:
            place = (
                f"{bucket['first']:,}"
                if bucket["first"] == bucket["last"]
                else f"{bucket['first']:,}-{bucket['last']:,}"
            )
            lines.append(f"{place:>15}  {bucket['loss']:>8.4f}  {bucket['tokens']:>10,}")
    if "recall" in values:
        r = values["recall"]
        lines += [
            "",
            f"recall ({r['method']})   {100 * r['accuracy']:.1f} % +- {100 * r['stderr']:.1f} "
            f"of {r['questions']} questions, "
            f"guessing gives {100 * r['chance']:.0f} %" + (f", {r['skipped']} did not fit" if r["skipped"] else ""),
        ]
    return "\n".join(lines)
