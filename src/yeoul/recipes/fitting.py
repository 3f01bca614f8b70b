"""Whether a training run fits into memory: the estimate before it starts, and the settings chosen so that it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from yeoul.errors import UserError
from yeoul.safe_json import read_object
from yeoul.units import count, size

if TYPE_CHECKING:
    import torch
    from torch import nn

    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.train.activations import BlockCost
    from yeoul.train.config import TrainConfig
    from yeoul.train.memory import Choice, Need, Sizes

RECORD = "memory.json"
"""In the run's folder: what was chosen, which a run that goes on must have too."""
TRAINED = 16
"""Bytes per trained parameter: the weight, its gradient and the two AdamW moments in fp32."""
PROGRAM = "program and text"
"""The part of an estimate that is there before a model is."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run has to fit.

    Attributes:
        device: that of the model.
        program: bytes of everything but weights: interpreter, libraries, tokenizer, text; 0 on a GPU.
        free: bytes that the run may have altogether, what it has already included.
    """

    device: torch.device
    program: int
    free: int


def resident() -> int:
    """Bytes of this process, all libraries included that training will import."""
    import torch

    from yeoul import runtime

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first one imports a compiler
    return runtime.memory_resident()


def check_weights(config: ModelConfig, device: torch.device, bytes_each: int, *, where: object, fix: str) -> None:
    """Refuse a model of which not even the weights have room, before any of them is made or read.

    Args:
        config: of the model.
        device: where it goes.
        bytes_each: of a parameter: what is certain to be needed.
        where, fix: of the sentence that refuses.

    Raises:
        UserError: the weights alone take more than there is.
    """
    import torch

    from yeoul import runtime
    from yeoul.model.decoder import skeleton

    needed = bytes_each * skeleton(config).num_parameters()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else runtime.memory_available()
    if needed > free:
        what = f"the model needs at least {size(needed)} of memory, but only {size(free)} is free"
        raise UserError(what, where, fix)


def place_of(device: torch.device, weights: int, before: int) -> Place:
    """What there is, with models loaded and text read.

    Args:
        device: of the models.
        weights: bytes of their weights, which may lie in a file that is mapped and not yet read.
        before: what `resident` gave before they were loaded.
    """
    import torch

    from yeoul import runtime

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Place(device=device, program=0, free=free + torch.cuda.memory_reserved(device))
    runtime.return_freed_memory()
    now = runtime.memory_resident()
    return Place(device=device, program=max(before, now - weights), free=now + runtime.memory_available())


def sizes_of(models: Sequence[nn.Module], trained: nn.Module, settings: TrainConfig, *, extra: int = 0) -> Sizes:
    """What of some models, one of which is trained, decides the memory.

    Args:
        models: all that are in memory; weights that they share count once.
        trained: one of them, what is trained of it marked by `requires_grad`. Of that, weights that others share or
            that are not in fp32 get memory of their own in fp32.
        settings: of the training.
        extra: further numbers that are trained.
    """
    import torch
    from torch import nn

    from yeoul.train.memory import FLOAT, Sizes

    owners: dict[int, set[int]] = {}
    bytes_of: dict[int, int] = {}
    for number, model in enumerate(models):
        for tensor in (*model.parameters(), *model.buffers()):
            key = tensor.data_ptr() or id(tensor)
            owners.setdefault(key, set()).add(number)
            bytes_of[key] = tensor.numel() * tensor.element_size()
    weights = sum(bytes_of.values())
    wanted = [p for p in trained.parameters() if p.requires_grad]
    for parameter in wanted:
        key = parameter.data_ptr() or id(parameter)
        shared = len(owners[key]) > 1
        if shared or parameter.dtype.itemsize < FLOAT:
            weights += FLOAT * parameter.numel() - (0 if shared else bytes_of[key])
    decoder: Decoder = trained  # type: ignore[assignment]
    V, d = decoder.config.vocab_size, decoder.config.hidden_size
    tables = {id(p): p.numel() for p in decoder.output_table.parameters() if p.requires_grad}
    whole = sum(n for n in tables.values() if n == V * d)
    entering = sum(p.numel() for p in decoder.model.embed_tokens.parameters() if p.requires_grad and p.numel() == V * d)
    hidden = {id(m.weight) for block in decoder.layers for m in block.modules() if isinstance(m, nn.Linear)}
    muon = sum(p.numel() for p in wanted if id(p) in hidden) if settings.optimizer == "muon" else 0
    assert all(isinstance(p, torch.Tensor) for p in wanted)
    return Sizes(
        vocabulary=V, width=d, weights=weights, trained=sum(p.numel() for p in wanted) + extra, muon=muon, table=whole,
        tied=bool(whole and entering and decoder.config.tie_embeddings), embedding=entering,
        low=sum(tables.values()) - whole,
    )  # fmt: skip


class Phases:
    """What the phases of a training take, for any choice.

    Args:
        name: of the training, for people.
        model: that is trained, or one like it whose trained weights are not yet in memory of their own.
        sizes: from `sizes_of`.
        settings: of the training.
        batch: rows of a batch; with `ways` rows to each example.
        loss: as `yeoul.train.memory.Work` has it.
        packed: whether rows hold several sequences or padding that must not be seen.
        teacher: of a distillation or an alignment, which computes beside the model.
        copies: bytes of the weights that are made for a checkpoint's files.
        ways: rows of an example.
    """

    def __init__(
        self, name: str, model: Decoder, sizes: Sizes, settings: TrainConfig, *, batch: int,
        loss: str = "cross-entropy", packed: bool = False, teacher: Decoder | None = None, copies: int = 0,
        ways: int = 1,
    ) -> None:  # fmt: skip
        from yeoul.train.compute import autocast_dtype

        self.name, self.model, self.sizes, self.settings, self.batch = name, model, sizes, settings, batch
        self.loss, self.packed, self.teacher, self.copies, self.ways = loss, packed, teacher, copies, ways
        self.narrow, self.asked = autocast_dtype(settings, model.device), asked_of(settings)
        self._known: dict[int, tuple[list[BlockCost], list[BlockCost]]] = {}

    def blocks(self, context: int) -> tuple[list[BlockCost], list[BlockCost]]:
        """Of what is trained, and of what computes without gradients at its largest."""
        from yeoul.train.activations import block_costs

        if context not in self._known:
            alone = self.loss == "layers"
            own = block_costs(self.model, context, packed=self.packed, dtype=self.narrow, attention_alone=alone)
            other = own
            if self.teacher is not None:
                other = block_costs(self.teacher, context, packed=self.packed, dtype=self.narrow)
            self._known[context] = own, other
        return self._known[context]

    def __call__(self, choice: Choice) -> list[Need]:
        """Training, validation, and writing a checkpoint."""
        from yeoul.evaluate.perplexity import logits_at_once
        from yeoul.train import memory
        from yeoul.train.distill import divergence_rows
        from yeoul.train.loss import logit_rows

        own, other = self.blocks(choice.context)
        device, V = self.model.device, self.sizes.vocabulary
        work = memory.Work(
            rows=choice.micro_batch * self.ways, context=choice.context,
            micro_batches=-(-self.batch // choice.micro_batch) * self.settings.accumulate,
            checkpointing=choice.checkpointing, loss=self.loss,
            chunk=(divergence_rows if self.loss == "divergence" else logit_rows)(device, V),
            itemsize=4, holes=self.model.device.type == "cpu" and choice == self.asked,
            compute=0 if self.narrow is None else self.narrow.itemsize,
        )  # fmt: skip
        return [
            memory.training(self.name, self.sizes, own, work, other),
            memory.scoring(f"validation ({self.name})", self.sizes, other, work, logits_at_once(V)),
            memory.saving(f"writing a checkpoint ({self.name})", self.sizes, self.copies),
        ]


# -- what is chosen


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was chosen and what it takes.

    Attributes:
        choice: micro-batch, recomputing, context.
        asked: what would have been taken with memory without end.
        needs: of each phase of the run, the program included.
        place: where.
        recorded: whether an earlier session of the run had chosen.
        batch: rows of the whole batch.
    """

    choice: Choice
    asked: Choice
    needs: tuple[Need, ...]
    place: Place
    recorded: bool
    batch: int

    @property
    def peak(self) -> Need:
        """The worst phase."""
        from yeoul.train.memory import worst

        return worst(self.needs)

    def prepare(self) -> None:
        """Where memory is short on a CPU, give it back at once: what was estimated counts on it."""
        from yeoul import runtime

        if self.choice != self.asked and self.place.device.type == "cpu":
            runtime.return_large_blocks()

    def lines(self) -> list[str]:
        """For people: the worst moment with its parts, and what is done so that it fits."""
        peak = self.peak
        parts = ", ".join(f"{name} {size(n)}" for name, n in peak.parts.items() if n >= peak.total / 100)
        where = "" if self.place.device.type == "cpu" else f" on {self.place.device}"
        lines = [f"Memory{where}: peak of about {size(peak.total)}, in {peak.phase} ({parts}); "
                 f"{size(self.place.free)} free."]  # fmt: skip
        changes = []
        if self.choice.micro_batch < self.batch:
            micro = self.choice.micro_batch
            changes.append(f"micro-batches of {micro} of {count(self.batch, 'sequence')} (--micro-batch)")
        if self.choice.checkpointing and not self.asked.checkpointing:
            changes.append("activations recomputed in the backward pass (--gradient-checkpointing)")
        if self.choice.context != self.asked.context:
            changes.append(f"a context of {self.choice.context:,} instead of {self.asked.context:,} (--context)")
        if changes:
            why = "As chosen when the run started" if self.recorded else "To fit"
            lines.append(f"{why}: {', '.join(changes)}.")
        if self.recorded and peak.total > self.place.free:
            lines.append("That is more than is free now; a resumed run cannot use smaller micro-batches.")
        return lines


def fit(
    needs: Callable[[Choice], Sequence[Need]],
    asked: Choice,
    place: Place,
    *,
    batch: int,
    settings: TrainConfig | None,
    out: Path,
    goes_on: bool,
    may_split: bool = True,
    contexts: Sequence[int] = (),
    flags: str,
) -> Fitted:
    """What of a run is chosen so that it fits.

    Args:
        needs: of each phase, without the program.
        asked: what is taken where it fits.
        place: where it has to fit.
        batch: rows of a batch.
        settings: what people gave: a micro-batch or recomputing that is set is not changed.
        out: the run's folder, whose earlier choice counts where the run goes on.
        goes_on: whether there are checkpoints.
        may_split: whether the loss of a batch is the sum over its parts.
        contexts: shorter ones that may be taken as a last resort.
        flags: what takes less memory, for the sentence that refuses.

    Raises:
        UserError: nothing fits.
    """
    from yeoul.train.memory import COMFORTABLE, FULL, candidates, choose, worst

    with_program = lambda choice: [need.with_base(PROGRAM, place.program) for need in needs(choice)]  # noqa: E731
    if goes_on:
        # A run from before this was recorded took its batches whole.
        found = _recorded(out)
        choice = found or asked
        given = tuple(with_program(choice))
        return Fitted(choice=choice, asked=asked, needs=given, place=place, recorded=True, batch=batch)
    free_to_split = may_split and (settings is None or settings.micro_batch is None)
    free_to_recompute = settings is None or settings.gradient_checkpointing is None
    options = list(candidates(
        asked, batch=batch, may_split=free_to_split, may_checkpoint=free_to_recompute, contexts=contexts
    ))  # fmt: skip
    known: dict[Choice, tuple[Need, ...]] = {}

    def total(choice: Choice) -> int:
        if choice not in known:
            known[choice] = tuple(with_program(choice))
        return worst(known[choice]).total

    comfortable = COMFORTABLE if place.device.type == "cpu" else FULL
    chosen = choose(options, total, place.free, comfortable=comfortable)
    if chosen is None:
        _refuse(worst(known[min(options, key=total)]), place, flags)
    return Fitted(choice=chosen, asked=asked, needs=known[chosen], place=place, recorded=False, batch=batch)


def check(needs: Sequence[Need], place: Place, *, flags: str) -> str:
    """What work without choices takes, for people.

    Args:
        needs: of each phase, without the program.
        place: where it has to fit.
        flags: what takes less memory, for the sentence that refuses.

    Raises:
        UserError: it does not fit.
    """
    from yeoul.train.memory import FULL, Choice, worst

    found = tuple(need.with_base(PROGRAM, place.program) for need in needs)
    if (most := worst(found)).total > FULL * place.free:
        _refuse(most, place, flags)
    nothing = Choice(micro_batch=1, checkpointing=False, context=1)
    return Fitted(choice=nothing, asked=nothing, needs=found, place=place, recorded=False, batch=1).lines()[0]


def _refuse(need: Need, place: Place, flags: str) -> NoReturn:
    largest = max((n, name) for name, n in need.parts.items())[1]
    raise UserError(
        f"this needs at least about {size(need.total)} of memory, most of it for {largest}, but only "
        f"{size(place.free)} is free", None, f"give {flags}",
    )  # fmt: skip


def _recorded(out: Path) -> Choice | None:
    from yeoul.train.memory import Choice

    try:
        values = read_object(out / RECORD)
        return Choice(
            micro_batch=int(values["micro_batch"]), checkpointing=bool(values["gradient_checkpointing"]),
            context=int(values["context"]),
        )  # fmt: skip
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


def record(fitted: Fitted, out: Path) -> None:
    """Note in the run's folder what was chosen."""
    from yeoul.files import write_json

    write_json(out / RECORD, {
        "micro_batch": fitted.choice.micro_batch, "gradient_checkpointing": fitted.choice.checkpointing,
        "context": fitted.choice.context, "bytes": fitted.peak.total, "phase": fitted.peak.phase,
        "parts": fitted.peak.parts, "free": fitted.place.free,
    })  # fmt: skip


def asked_of(settings: TrainConfig) -> Choice:
    """What settings ask for, the whole batch at a time where nothing else is said."""
    from yeoul.train.memory import Choice

    return Choice(
        micro_batch=min(settings.micro_batch or settings.batch_size, settings.batch_size),
        checkpointing=bool(settings.gradient_checkpointing), context=settings.context,
    )  # fmt: skip


def settled(settings: TrainConfig, choice: Choice) -> TrainConfig:
    """The settings with what was chosen; their tokens stay as they are."""
    return replace(
        settings, micro_batch=choice.micro_batch, gradient_checkpointing=choice.checkpointing, context=choice.context
    )
