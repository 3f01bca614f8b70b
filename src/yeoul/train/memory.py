"""How much memory training takes at its worst moment, from shapes alone, and what is chosen so that it fits.

Everything here is arithmetic in bytes. What one block keeps for its gradient is counted elsewhere
(`yeoul.train.activations`), because it depends on too much to be written down.

With W the weights in memory (a teacher's too), P the bytes of what is trained, in fp32, S the optimizer's state, K what
all blocks keep for r rows of T positions, V the vocabulary and d the width, a step has two worst moments:

- when the loss is known and the first gradient is made: W + S + K + the output layer's part, and P too where gradients
  of earlier micro-batches are there;
- when the last gradient is made, and nothing of K is left: W + S + P + what the embedding's gradient takes.

Shapes: r rows of a micro-batch, T positions, d width, V vocabulary, C rows of logits at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from yeoul.train.activations import BlockCost

FLOAT = 4
"""Bytes of a number in fp32: gradients, the optimizer's averages and logits are in it."""
LOGIT_ARRAYS = {"cross-entropy": 2, "divergence": 4}
"""Arrays of C x V that a chunk of logits comes to at its worst moment, in `linear_cross_entropy` and `linear_kl`."""
HIDDEN_ARRAYS = 6
"""Arrays of r x T x d around the output layer: the final norm's three, the rows that have a label, their gradient, and
the gradient that goes back into the last block."""
HEAP = 32 * 2**20
"""Tensors below this size lie in glibc's heap, where one that is let go often leaves a hole that the next one does not
fit into, because a little more is asked for its alignment. Larger ones are given back at once."""
HOLES = 0.45
"""Bytes of holes over the geometric mean of what is kept in the heap and what passes through it: an empirical factor,
0.3 to 0.85 over nine models, four of them with frozen weights."""
FULL = 0.9
"""Share of the free memory that a plan may fill: an estimate is not exact, and others need memory too."""
COMFORTABLE = 0.5
"""Share of it that a plan with smaller micro-batches aims at on a CPU, where they cost next to no speed."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of a model decides the memory of its training.

    Attributes:
        vocabulary: V.
        width: d.
        weights: bytes of all weights in memory, each once; a teacher's too.
        trained: numbers that are trained; they and their gradients are in fp32.
        muon: how many of these Muon trains, with one average instead of two.
        table: numbers of the output layer that are trained, V d or 0.
        tied: whether the embedding is trained and is the output layer, so that two gradients come together in it.
        embedding: numbers of the embedding that are trained, V d or 0.
        low: numbers of the output layer's low-rank parts.
    """

    vocabulary: int
    width: int
    weights: int
    trained: int
    muon: int = 0
    table: int = 0
    tied: bool = False
    embedding: int = 0
    low: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one micro-batch is.

    Attributes:
        rows: r.
        context: T.
        micro_batches: in a step; from the second on, gradients of those before lie in memory.
        checkpointing: whether blocks are computed again in the backward pass.
        loss: "cross-entropy", "divergence" (with the logits of a teacher), "states" (of hidden states, without
            logits), "hidden" (the same, and validation needs no logits either) or "layers" ("states" layer by layer).
        chunk: C.
        itemsize: bytes of a hidden state's number.
        compute: bytes of a number in products where that is another type than the weights', else 0: copies are made.
        holes: whether what is freed leaves holes, see `HEAP`: on a CPU, unless every large tensor is given back.
    """

    rows: int
    context: int
    micro_batches: int = 1
    checkpointing: bool = False
    loss: str = "cross-entropy"
    chunk: int = 64
    itemsize: int = 4
    compute: int = 0
    holes: bool = False

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch."""
        return self.rows * self.context


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one phase of a run takes at its worst moment.

    Attributes:
        phase: for people, such as "training" or "distil".
        parts: name -> bytes.
    """

    phase: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def with_base(self, name: str, size: int) -> Need:
        """The same with one more part, the first."""
        return replace(self, parts={name: size, **self.parts})


def gradients(sizes: Sizes) -> int:
    """P: one number in fp32 for each that is trained."""
    return FLOAT * sizes.trained


def optimizer_state(sizes: Sizes) -> int:
    """S: two averages of AdamW, one of Muon, in fp32; there from the end of the first step on."""
    return FLOAT * (2 * (sizes.trained - sizes.muon) + sizes.muon)


def activations(blocks: Sequence[BlockCost], work: Work, width: int) -> int:
    """K: what all blocks keep, and the most that one of them takes beside it while its gradient is made.

    With checkpointing it is each block's input, and one block whole.
    """
    if not blocks:
        return 0
    if work.checkpointing:
        return len(blocks) * work.tokens * width * work.itemsize + one_layer(blocks, work)
    kept = sum(block.copies + work.rows * block.kept for block in blocks)
    return kept + work.rows * max(block.backward for block in blocks) + holes(blocks, work)


def holes(blocks: Sequence[BlockCost], work: Work) -> int:
    """What the heap loses between tensors that are kept and tensors that pass, see `HEAP`."""
    if not work.holes:
        return 0
    kept, passing = (
        sum(size * work.rows for block in blocks for size in getattr(block, name) if size * work.rows < HEAP)
        for name in ("tensors", "passing")
    )
    return round(HOLES * math.sqrt(kept * passing))


def one_layer(blocks: Sequence[BlockCost], work: Work) -> int:
    """What the costliest of all blocks takes alone, from its forward pass to its gradient."""
    return max((block.copies + work.rows * (block.kept + block.backward) for block in blocks), default=0)


def output_layer(sizes: Sizes, work: Work) -> int:
    """From hidden states to a loss: a chunk of logits, hidden states and their gradients, that of the table, and copies
    of the table in the type of the products."""
    if work.loss not in LOGIT_ARRAYS:
        return HIDDEN_ARRAYS * work.tokens * sizes.width * work.itemsize
    models = 2 if work.loss == "divergence" else 1
    logits = LOGIT_ARRAYS[work.loss] * FLOAT * min(work.chunk, work.tokens) * sizes.vocabulary
    states = (HIDDEN_ARRAYS + 2 * (models - 1)) * work.tokens * sizes.width * work.itemsize
    copies = models * sizes.vocabulary * sizes.width * work.compute
    return logits + states + copies + FLOAT * (sizes.table + sizes.low)


def embedding_gradient(sizes: Sizes, work: Work) -> int:
    """What lies beside P when the embedding's gradient is made, last of all: it is a whole table, added to the output
    layer's where the two are tied, and to that of earlier micro-batches."""
    earlier = work.micro_batches > 1
    return FLOAT * sizes.embedding * (int(sizes.tied) + int(earlier))


def training(
    phase: str, sizes: Sizes, blocks: Sequence[BlockCost], work: Work, beside: Sequence[BlockCost] = ()
) -> Need:
    """The larger of a step's two peaks, see the top of this module.

    Args:
        phase: for people.
        sizes: of the models.
        blocks: of what is trained.
        work: one micro-batch.
        beside: a teacher's blocks, of which alignment layer by layer computes each before the student's.
    """
    held = {"weights": sizes.weights, "optimizer": optimizer_state(sizes)}
    earlier = gradients(sizes) if work.micro_batches > 1 else 0
    other = work.rows * max((block.forward for block in beside), default=0)
    states = HIDDEN_ARRAYS * work.tokens * sizes.width * work.itemsize
    if work.loss == "layers":
        first = {"gradients": gradients(sizes), "activations": max(one_layer(blocks, work), other) + states}
    else:
        kept = activations(blocks, work, sizes.width)
        first = {"gradients": earlier, "activations": kept, "output layer": output_layer(sizes, work)}
    last = {
        "gradients": gradients(sizes),
        "activations": work.rows * max((block.backward for block in blocks), default=0),
        "output layer": embedding_gradient(sizes, work),
    }
    worst = max(first, last, key=lambda parts: sum(parts.values()))
    return Need(phase=phase, parts=held | worst)


def scoring(phase: str, sizes: Sizes, blocks: Sequence[BlockCost], work: Work, chunk: int) -> Need:
    """Validation: weights and optimizer, one block without gradients, and a chunk of logits."""
    logits = 0 if work.loss == "hidden" else 3 * FLOAT * min(chunk, work.tokens) * sizes.vocabulary
    states = work.rows * max((block.forward for block in blocks), default=0)
    states += 3 * work.tokens * sizes.width * work.itemsize
    held = {"weights": sizes.weights, "optimizer": optimizer_state(sizes)}
    return Need(phase=phase, parts=held | {"activations": states, "output layer": logits})


def saving(phase: str, sizes: Sizes, copies: int) -> Need:
    """A checkpoint: weights and optimizer are written from where they are, `copies` in the type of the file."""
    held = {"weights": sizes.weights, "optimizer": optimizer_state(sizes)}
    return Need(phase=phase, parts=held | {"copies for the file": copies})


def rounding(rows: int, columns: int, calibrated: bool) -> int:
    """Of one weight (rows, columns) that is rounded: in fp32, divided into groups, its steps, and what it becomes.

    Calibrated, its columns stand in another order too, beside the moments of its inputs and their factors in fp64.
    """
    return FLOAT * rows * columns * (6 if calibrated else 4) + (4 * 2 * FLOAT * columns**2 if calibrated else 0)


def calibration(blocks: Sequence[BlockCost], states: int, rows: int, moments: int) -> int:
    """Of a text on its way through a model: its hidden states, a batch of rows in one block, and the moments of the
    block's inputs in fp32."""
    return states + rows * max((block.forward for block in blocks), default=0) + FLOAT * moments


def predictions(blocks: Sequence[BlockCost], context: int, logits: int) -> int:
    """Of one row whose gradient is asked down to its embeddings: all blocks, so many logits, what is drawn from them,
    and their gradient."""
    work = Work(rows=1, context=context)
    return activations(blocks, work, 0) + 4 * FLOAT * logits


def worst(needs: Sequence[Need]) -> Need:
    """The phase that takes most."""
    return max(needs, key=lambda need: need.total)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may be chosen so that a run fits.

    Attributes:
        micro_batch: rows (examples) that are computed at once; the whole batch by default.
        checkpointing: whether blocks are computed again in the backward pass.
        context: positions of a row.
    """

    micro_batch: int
    checkpointing: bool
    context: int


def candidates(
    asked: Choice, *, batch: int, may_split: bool = True, may_checkpoint: bool = True, contexts: Sequence[int] = ()
) -> Iterator[Choice]:
    """From what was asked for to what takes least: smaller micro-batches first, which cost nothing but launches; then
    recomputing, which costs a third of the time; then a shorter context, which changes what is learned.

    Args:
        asked: the first candidate.
        batch: rows of the whole batch; micro-batches are even parts of it.
        may_split, may_checkpoint: whether nobody has asked for something else.
        contexts: shorter ones that may be taken.
    """
    parts = [rows for rows in range(asked.micro_batch, 0, -1) if batch % rows == 0] if may_split else []
    parts = [asked.micro_batch, *(rows for rows in parts if rows != asked.micro_batch)]
    recompute = [asked.checkpointing, True] if may_checkpoint and not asked.checkpointing else [asked.checkpointing]
    for context in (asked.context, *contexts):
        for checkpointing in recompute:
            for rows in parts:
                yield Choice(micro_batch=rows, checkpointing=checkpointing, context=context)


def choose(
    options: Sequence[Choice], need: Callable[[Choice], int], free: int, *, comfortable: float = COMFORTABLE
) -> Choice | None:
    """The first option where it fits; else, of the options with the fewest changes, the first that is comfortable or
    the one that takes least; None where nothing fits.

    Args:
        options: from `candidates`.
        need: bytes that an option takes at its worst moment.
        free: bytes that may be had altogether.
        comfortable: share of `free` that is aimed at.
    """
    if need(options[0]) <= FULL * free:
        return options[0]
    kinds: dict[tuple[int, bool], list[Choice]] = {}
    for option in options:
        kinds.setdefault((option.context, option.checkpointing), []).append(option)
    for alike in kinds.values():
        sizes = [need(option) for option in alike]
        if min(sizes) <= FULL * free:
            fits = [o for o, size in zip(alike, sizes, strict=True) if size <= comfortable * free]
            return fits[0] if fits else alike[sizes.index(min(sizes))]
    return None
