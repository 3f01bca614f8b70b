"""Does a model find again what it read once? Pairs of words, asked for after some distance.

Multi-query associative recall (MQAR: Arora and others 2023, Zoology, arXiv 2312.04927) on the words of any tokenizer,
and a needle, one pair in a line of its own somewhere in a text. Nothing is generated: the model reads the whole item,
and its prediction behind each key is compared with the key's value.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from yeoul.errors import UserError
from yeoul.evaluate import perplexity
from yeoul.evaluate.perplexity import autocast
from yeoul.evaluate.words import line_break, whole_words

if TYPE_CHECKING:
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

Kind = Literal["mqar", "needle"]
Metric = Literal["exact", "choice"]

PAIRS = (4, 16, 64)
DISTANCES = (0, 128, 512, 2048)
LENGTHS = (512, 1024, 2048, 4096, 8192)
DEPTHS = (0.1, 0.5, 0.9)
NUMBERS = (
    "{name}: {number}", "{name} = {number}", "{name}의 번호는 {number}입니다.", "{name} {number}번",
    "The number of {name} is {number}.", "{name} has the code {number}.", "Call {name} at {number}.",
    "비밀번호 {number} ({name})",
)  # fmt: skip
"""Sentences that give a number, for `recall_rows`."""
CANDIDATES = 16
"""Values that a needle's is chosen from, itself included."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sequence: behind `ids[places[i]]` the right token is `values[i]`, to be chosen among `candidates`."""

    ids: tuple[int, ...]
    places: tuple[int, ...]
    values: tuple[int, ...]
    candidates: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Items of one kind and size, all of the same length.

    Attributes:
        pairs: pairs in an item.
        distance: filler tokens between the last stored pair and the first question ("mqar"), or from the value to the
            question ("needle").
        length: tokens of an item.
        depth: where in the text a needle is, 0 to 1; None for "mqar".
        beyond_window: every stored pair is farther back than the window when it is asked for.
    """

    pairs: int
    distance: int
    length: int
    depth: float | None
    beyond_window: bool
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Cells to ask models, the same for every model; `left_out` says in sentences which do not exist and why."""

    kind: Kind
    window: int
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CellScore:
    """What one model answered to one cell; see `Cell`.

    Attributes:
        exact: share of answers where the value is the likeliest token of the vocabulary; guessing gives 0.
        choice: share where it is the likeliest of the candidates; guessing gives `chance`.
        exact_stderr, choice_stderr: standard errors over items, at least those of independent questions.
    """

    pairs: int
    distance: int
    length: int
    depth: float | None
    beyond_window: bool
    items: int
    questions: int
    exact: float
    exact_stderr: float
    choice: float
    choice_stderr: float
    chance: float

    def above_chance(self, metric: Metric) -> bool:
        """Whether the accuracy is more than two standard errors above guessing."""
        if metric == "exact":
            return self.exact - 2 * self.exact_stderr > 0
        guessing = math.sqrt(self.chance * (1 - self.chance) / self.questions)
        return self.choice - self.chance > 2 * max(self.choice_stderr, guessing)


@dataclass(frozen=True, kw_only=True)
class RetainedShare:
    """A model's accuracy over another's; None where the other does no better than chance.

    Attributes:
        exact: mean accuracy over the other's mean.
        choice: the same of what is above chance.
        cells: how many cells were compared in "exact"; `excluded` had the other at chance.
    """

    exact: float | None
    choice: float | None
    cells: int
    excluded: int


@dataclass(frozen=True, kw_only=True)
class RecallGrid:
    """One model's accuracies."""

    kind: Kind
    window: int
    cells: tuple[CellScore, ...]
    left_out: tuple[str, ...]

    def mean(self, metric: Metric = "exact", *, beyond_window: bool = False) -> float | None:
        """Mean accuracy over cells, or over those beyond the window; None where there are none."""
        values = [getattr(cell, metric) for cell in self.cells if cell.beyond_window or not beyond_window]
        return sum(values) / len(values) if values else None

    def share_of(self, reference: RecallGrid, *, beyond_window: bool = False) -> RetainedShare:
        """How much of another model's accuracy on the same questions is retained.

        Cells where the other model is not above chance say nothing and are excluded.
        """
        both = [
            (own, other) for own, other in zip(self.cells, reference.cells, strict=True)
            if other.beyond_window or not beyond_window
        ]  # fmt: skip
        known = [pair for pair in both if pair[1].above_chance("exact")]
        chosen = [pair for pair in both if pair[1].above_chance("choice")]
        return RetainedShare(
            exact=sum(own.exact for own, _ in known) / sum(other.exact for _, other in known) if known else None,
            choice=sum(own.choice - own.chance for own, _ in chosen)
            / sum(other.choice - other.chance for _, other in chosen)
            if chosen
            else None,
            cells=len(known),
            excluded=len(both) - len(known),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Material:
    """Words and held-out text that items are made of.

    Args:
        tokenizer: any.
        text: ids of held-out text without special tokens: fillers are pieces of it.
        lead: filler tokens before everything else, so that attention sinks see no pair.
        words: what `whole_words` finds, where it is known: a large vocabulary takes seconds.

    Raises:
        UserError: the tokenizer has fewer than 8 whole words, or the text is shorter than `lead`.
    """

    def __init__(
        self, tokenizer: Tokenizer, text: Sequence[int], *, lead: int = 4, words: list[int] | None = None
    ) -> None:
        self.words = whole_words(tokenizer) if words is None else words
        self.text, self.lead = list(text), lead
        self.newline = line_break(tokenizer)
        self.begin = list(tokenizer.framing.begin)
        if len(self.words) < 8:
            raise UserError(f"only {len(self.words)} pieces of the tokenizer are whole words, which is too few")
        if len(self.text) < lead:
            raise UserError(f"the held-out text has {len(self.text)} tokens, fewer than the {lead} before the pairs")

    def filler(self, length: int, rng: random.Random) -> list[int]:
        """So many consecutive tokens from a random place of the text."""
        start = rng.randint(0, len(self.text) - length)
        return self.text[start : start + length]

    def draw(self, count: int, text: Sequence[int], rng: random.Random) -> list[int]:
        """Different words that are not in `text`, in random order; any where too few are left."""
        present = set(text)
        free = [word for word in self.words if word not in present]
        return rng.sample(free if len(free) >= count else self.words, count)


def mqar_questions(
    material: Material,
    *,
    context: int,
    window: int = 64,
    pairs: Sequence[int] = PAIRS,
    distances: Sequence[int] = DISTANCES,
    questions: int = 256,
    seed: int = 0,
) -> Questions:
    """MQAR: some text, pairs "k v k v ..." of different words, text, then the pairs again in another order.

    Each key comes twice, so that a model that remembers knows each value of the second part. Lines are broken between
    the parts where the tokenizer has a line break.

    Args:
        context: longest item in tokens; what does not fit is left out.
        window: of the model, for `Cell.beyond_window`.
        pairs, distances: the grid; distances are tokens of text between the parts.
        questions: at least so many in a cell: smaller items are asked more often, but at least 8 items are.
        seed: the same seed makes the same items.
    """
    cells, left_out = [], []
    frame = len(material.begin) + material.lead + 2 * len(material.newline)
    for count in pairs:
        for distance in distances:
            length = frame + 4 * count + distance + (len(material.newline) if distance else 0)
            name = f"{count} pairs, {distance:,} apart"
            if length > context:
                left_out.append(f"{name}: {length:,} tokens are more than the context of {context:,}")
            elif 2 * count > len(material.words):
                left_out.append(
                    f"{name}: the tokenizer has {len(material.words)} whole words, but {2 * count} are needed"
                )
            elif distance > len(material.text):
                left_out.append(f"{name}: the held-out text has {len(material.text):,} tokens")
            else:
                rng = random.Random(f"mqar {seed} {count} {distance}")
                number = max(8, -(-questions // count))
                items = tuple(_mqar_item(material, count, distance, rng) for _ in range(number))
                cells.append(
                    Cell(
                        pairs=count, distance=distance, length=length, depth=None, items=items,
                        beyond_window=distance + 1 >= window,
                    )
                )  # fmt: skip
    return Questions(kind="mqar", window=window, cells=tuple(cells), left_out=tuple(left_out))


def _mqar_item(material: Material, pairs: int, distance: int, rng: random.Random) -> Item:
    lead, filler = material.filler(material.lead, rng), material.filler(distance, rng)
    words = material.draw(2 * pairs, lead + filler, rng)
    stored = list(zip(words[::2], words[1::2], strict=True))
    asked = rng.sample(stored, pairs)
    ids = [*material.begin, *lead, *material.newline, *words, *material.newline]
    if distance:
        ids += [*filler, *material.newline]
    first = len(ids)
    ids += [word for pair in asked for word in pair]
    return Item(
        ids=tuple(ids),
        places=tuple(range(first, first + 2 * pairs, 2)),
        values=tuple(value for _, value in asked),
        candidates=tuple(value for _, value in stored),
    )


def recall_rows(
    tokenizer: Tokenizer,
    text: Sequence[int],
    *,
    rows: int,
    length: int,
    pairs: int = 16,
    seed: int = 0,
    words: list[int] | None = None,
) -> list[list[int]]:
    """Texts whose end asks for what their beginning said, to fit or to train a memory on.

    In turns pairs of words, as of `mqar_questions` but other ones, and short sentences that give numbers
    (`NUMBERS`); between them text of the length that makes all as long as asked.

    Args:
        tokenizer: of the model.
        text: ids of text without special tokens, for what stands between.
        rows: how many.
        length: tokens of each.
        pairs: at most; fewer in short texts, and where the tokenizer has few whole words.
        seed: the same seed makes the same texts.
        words: see `Material`.

    Returns:
        The ids of each; none where the tokenizer or the text has too little for them.
    """
    try:
        material = Material(tokenizer, text, words=words)
    except UserError:
        return []
    pairs = min(pairs, length // 8, len(material.words) // 2)
    distance = length - (len(material.begin) + material.lead + 3 * len(material.newline) + 4 * pairs)
    if not 0 < distance <= len(material.text):
        return []
    rng = random.Random(f"rows {seed} {length}")
    made = []
    for number in range(rows):
        told = _numbers_row(material, tokenizer, pairs, length, rng) if number % 2 else None
        made.append(told or list(_mqar_item(material, pairs, distance, rng).ids))
    return made


def _numbers_row(
    material: Material, tokenizer: Tokenizer, facts: int, length: int, rng: random.Random
) -> list[int] | None:
    """Sentences of one form that give numbers, text, and the same sentences in another order; None if too long."""
    form = rng.choice(NUMBERS)
    words = rng.sample(material.words, 2 * facts)
    names = [tokenizer.decode([word]).strip() for word in words[:facts]]
    digits = rng.randint(2, 6)
    lines = [form.format(name=name, number="".join(rng.choice("0123456789") for _ in range(digits))) for name in names]
    parts = [
        tokenizer.encode("\n".join(order)) for order in (lines, rng.sample(lines, facts))
    ]  # fmt: skip
    room = length - len(material.begin) - sum(map(len, parts)) - 2 * len(material.newline)
    if facts > 1 and room < length // 2:
        return _numbers_row(material, tokenizer, facts // 2, length, rng)
    if not 0 < room <= len(material.text):
        return None
    before, after = parts
    return [*material.begin, *before, *material.newline, *material.filler(room, rng), *material.newline, *after]


def needle_questions(
    material: Material,
    *,
    context: int,
    window: int = 64,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    items: int = 16,
    seed: int = 0,
) -> Questions:
    """A line "k v" at a relative depth of a text, and "k" in a new line behind the text.

    Args:
        context: longest item in tokens; what does not fit is left out.
        window: of the model, for `Cell.beyond_window`.
        lengths: tokens of an item, the question included.
        depths: 0 is the beginning of the text, 1 its end.
        items: of a cell.
        seed: the same seed makes the same items.
    """
    cells, left_out = [], []
    frame = len(material.begin) + 3 * len(material.newline) + 3  # the line, the question, and no text
    for length in lengths:
        text = length - frame
        if length > context:
            left_out.append(f"{length:,} tokens: more than the context of {context:,}")
        elif not material.lead < text <= len(material.text):
            left_out.append(f"{length:,} tokens: the held-out text has {len(material.text):,} tokens")
        else:
            for depth in depths:
                rng = random.Random(f"needle {seed} {length} {depth}")
                before = max(material.lead, round(depth * text))
                made = tuple(_needle_item(material, text, before, rng) for _ in range(items))
                distance = made[0].places[0] - (len(material.begin) + before + len(material.newline) + 1)
                cells.append(
                    Cell(
                        pairs=1, distance=distance, length=len(made[0].ids), depth=depth, items=made,
                        beyond_window=distance >= window,
                    )
                )  # fmt: skip
    return Questions(kind="needle", window=window, cells=tuple(cells), left_out=tuple(left_out))


def _needle_item(material: Material, length: int, before: int, rng: random.Random) -> Item:
    text = material.filler(length, rng)
    key, *values = material.draw(1 + min(CANDIDATES, len(material.words) - 1), text, rng)
    line = [*material.newline, key, values[0], *material.newline]
    ids = [*material.begin, *text[:before], *line, *text[before:], *material.newline, key]
    return Item(ids=tuple(ids), places=(len(ids) - 1,), values=(values[0],), candidates=tuple(values))


def ask(
    model: Decoder, questions: Questions, *, batch_tokens: int = 8192, dtype: torch.dtype | None = None
) -> RecallGrid:
    """A model's accuracy in every cell.

    Args:
        model: is left in the mode (train or eval) in which it came.
        batch_tokens: tokens that go through the model at once, but at least one item.
        dtype: run under autocast in this type; None or float32 runs as the weights are.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(model.output_weight.device, dtype):
            cells = tuple(_cell_score(model, cell, batch_tokens) for cell in questions.cells)
    finally:
        model.train(was_training)
    return RecallGrid(kind=questions.kind, window=questions.window, cells=cells, left_out=questions.left_out)


def _cell_score(model: Decoder, cell: Cell, batch_tokens: int) -> CellScore:
    size = max(1, batch_tokens // cell.length)
    found = [_answers(model, cell.items[start : start + size]) for start in range(0, len(cell.items), size)]
    exact, choice = (torch.cat([pair[i] for pair in found]).double() for i in (0, 1))  # (items, questions) each
    return CellScore(
        pairs=cell.pairs, distance=cell.distance, length=cell.length, depth=cell.depth,
        beyond_window=cell.beyond_window, items=len(cell.items), questions=exact.numel(),
        exact=float(exact.mean()), exact_stderr=_stderr(exact),
        choice=float(choice.mean()), choice_stderr=_stderr(choice), chance=1 / len(cell.items[0].candidates),
    )  # fmt: skip


def _answers(model: Decoder, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Which answers are right, "exact" and "choice": (items, questions) bool each, on the CPU."""
    device = model.output_weight.device
    hidden = model.hidden(torch.tensor([item.ids for item in items], device=device))  # (B, T, hidden)
    places, values, candidates = (
        torch.tensor([getattr(item, name) for item in items], device=device)
        for name in ("places", "values", "candidates")
    )  # (B, Q), (B, Q), (B, C)
    rows = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))  # (B, Q, hidden)
    exact, choice = torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values, dtype=torch.bool)
    step = perplexity.logits_at_once(int(model.output_weight.shape[0]))
    for row in range(len(items)):
        for start in range(0, values.shape[1], step):
            part = slice(start, start + step)
            logits = model.unembed(rows[row, part])  # (chunk, V)
            exact[row, part] = logits.argmax(1) == values[row, part]
            choice[row, part] = candidates[row][logits[:, candidates[row]].argmax(1)] == values[row, part]
    return exact.cpu(), choice.cpu()


def _stderr(right: Tensor) -> float:
    """Of the mean of (items, questions): the larger of that over items and that of independent questions."""
    mean = float(right.mean())
    independent = math.sqrt(mean * (1 - mean) / right.numel())
    items = right.shape[0]
    return max(independent, float(right.mean(1).std()) / math.sqrt(items)) if items > 1 else independent
