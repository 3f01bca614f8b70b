"""Losses that make one model follow another: KL to the teacher's logits, and the alignment of its attention layers.

Shapes: N tokens, d and e widths of student and teacher, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from yeoul.data.batch import IGNORE, Batch
from yeoul.model.decoder import Decoder
from yeoul.ops.first_order import first_order
from yeoul.train.loss import (
    Loss,
    Objective,
    capped_,
    keep_gradients,
    linear_cross_entropy,
    logit_rows,
    scaled_gradients,
    softcap_of,
)

_ROWS = 256
"""Rows of logits at a time at most; fewer where the vocabulary is large."""
_SLICE = 2**23
"""Numbers of a table's gradient that are made at a time."""


class _LinearKL(torch.autograd.Function):
    """Forward computes the loss and the gradients a chunk of rows at a time; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, goal: Tensor, goal_weight: Tensor, temperature: float,
        softcaps: tuple[float | None, float | None], once: bool,
    ) -> Tensor:  # fmt: skip
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.float64 if compute == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        train_weight = ctx.needs_input_grad[1]
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if train_weight else None
        with torch.autocast(device, enabled=False):
            h, w = hidden.to(compute), weight.to(compute)
            g, u = goal.to(compute), goal_weight.to(compute)
            rows = divergence_rows(hidden.device, weight.shape[0])
            for start in range(0, h.shape[0], rows):
                part = slice(start, start + rows)
                logits, slope = capped_((h[part] @ w.t()).to(exact), softcaps[0])  # (C, V)
                student = _log_softmax(logits, temperature)
                del logits
                teacher = _log_softmax(capped_((g[part] @ u.t()).to(exact), softcaps[1])[0], temperature)
                wanted = teacher.exp()
                total += teacher.sub_(student).mul_(wanted).sum() * temperature**2
                del teacher
                gradient = student.exp_().sub_(wanted).mul_(temperature)
                gradient = (gradient if slope is None else gradient.mul_(slope)).to(compute)
                del student, wanted
                grad_hidden[part] = gradient @ w
                if grad_weight is not None:
                    _add_in_slices(grad_weight, gradient, h[part])
        given = None if grad_weight is None else grad_weight.to(weight.dtype)
        keep_gradients(ctx, [grad_hidden, given], once)
        return total

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        grad_hidden, grad_weight = scaled_gradients(ctx, grad_total)
        return grad_hidden, grad_weight, None, None, None, None, None


def divergence_rows(device: torch.device, vocabulary: int) -> int:
    """Rows of both models' logits at a time."""
    return min(_ROWS, logit_rows(device, vocabulary))


def _add_in_slices(accumulator: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """`accumulator` (V, d) += `gradient` (C, V) transposed @ `hidden` (C, d), a slice of the table at a time."""
    rows = max(1, _SLICE // hidden.shape[1])
    for start in range(0, len(accumulator), rows):
        part = slice(start, start + rows)
        accumulator[part].add_((gradient[:, part].t() @ hidden).to(accumulator.dtype))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return logits.div_(temperature).log_softmax(1)


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    goal: Tensor,
    goal_weight: Tensor,
    *,
    temperature: float = 1.0,
    softcaps: tuple[float | None, float | None] = (None, None),
    once: bool = False,
) -> Tensor:
    """Sum over rows of KL(teacher || student) between softmax(`goal @ goal_weight.T` / temperature) and the student's.

    Multiplied by temperature^2, so that gradients keep their size (Hinton and others 2015, section 2). The logits of
    all tokens are never held at once; differentiable once in `hidden` and `weight`.

    Args:
        hidden: (N, d) of the student; weight (V, d).
        weight: the student's output projection.
        goal: (N, e) of the teacher; goal_weight (V, e).
        goal_weight: the teacher's output projection.
        temperature: above 0.
        softcaps: of the student's and the teacher's logits, see `linear_cross_entropy`.
        once: see there, too.
    """
    return cast(
        Tensor, _LinearKL.apply(hidden, weight, goal.detach(), goal_weight.detach(), temperature, softcaps, once)
    )


def distillation_objective(
    teacher: nn.Module, *, kl_weight: float = 1.0, temperature: float = 1.0, positions: float = 1.0
) -> Objective:
    """`kl_weight` times KL to the teacher's predictions plus (1 - kl_weight) times cross-entropy with the text.

    The log gets both parts ("kl", "cross_entropy") of what is computed. Below 1, `positions` is the share of the
    tokens at which predictions are made, for a part of what a large vocabulary costs: half of them any, half drawn in
    proportion to how far the student's last hidden state is from the teacher's, squared, where both are as wide. So
    positions that the student gets wrong count for more than their share, and losses are higher than over all tokens.
    """

    def objective(model: nn.Module, batch: Batch) -> Loss:
        student, goal = cast(Decoder, model), cast(Decoder, teacher)
        target = given = None
        if kl_weight > 0:  # before the student fills the memory with what its gradient needs
            target, given = _follow(goal, batch, shared_blocks(student, goal))
            target = target.flatten(0, 1)
        hidden = student.hidden(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids, given=given)
        hidden = hidden.flatten(0, 1)
        labels = batch.labels.flatten()
        if positions < 1:
            labels = _sampled(labels, positions, _distances(hidden, target))
        valid = labels != IGNORE
        total, parts = hidden.new_zeros((), dtype=torch.float32), {}
        if target is not None:
            kl = linear_kl(
                hidden[valid], student.output_weight, target[valid], goal.output_weight, temperature=temperature,
                softcaps=(softcap_of(student), softcap_of(goal)), once=True,
            )  # fmt: skip
            total, parts["kl"] = total + kl_weight * kl, float(kl.detach())
        if kl_weight < 1:
            entropy, _ = linear_cross_entropy(
                hidden, student.output_weight, labels, softcap=softcap_of(student), once=True
            )
            total, parts["cross_entropy"] = total + (1 - kl_weight) * entropy, float(entropy.detach())
        return Loss(total=total, count=int(valid.sum()), parts=parts)

    return objective


def shared_blocks(student: Decoder, teacher: Decoder) -> int:
    """How many blocks from the first on are the teacher's own, weights in the same memory and none of them trained:
    there both compute the same."""
    pairs = zip(_stages(student), _stages(teacher), strict=False)
    return max(0, sum(1 for _ in itertools.takewhile(lambda pair: _is_same(*pair), pairs)) - 1)


def _stages(model: Decoder) -> Iterator[Sequence[nn.Module]]:
    """What a batch goes through: the embeddings, and block after block."""
    inner = model.model
    yield [module for name, module in inner.named_children() if name.startswith("embed_")]
    yield from ([block] for block in model.layers)


def _is_same(ours: Sequence[nn.Module], theirs: Sequence[nn.Module]) -> bool:
    """Whether two stages are of the same make, with weights in the same memory that nobody trains."""

    def traits(modules: Sequence[nn.Module]) -> list[object]:
        found: list[object] = []
        for part in itertools.chain.from_iterable(module.modules() for module in modules):
            found.append((type(part), getattr(part, "window", None), getattr(part, "sinks", None)))
            found += [(name, p.data_ptr(), p.shape, p.dtype) for name, p in part.named_parameters(recurse=False)]
        return found

    trained = any(p.requires_grad for module in ours for p in module.parameters())
    return not trained and traits(ours) == traits(theirs)


@torch.no_grad()
def _follow(teacher: Decoder, batch: Batch, shared: int) -> tuple[Tensor, tuple[int, Tensor] | None]:
    """The teacher's hidden states behind the final norm, (B, T, hidden), and those behind its first `shared` blocks."""
    if not shared:
        return teacher.hidden(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids), None
    walk = teacher.walk(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids)
    for number, _ in enumerate(walk):
        if number == shared:
            between = walk.hidden
    return teacher.model.norm(walk.hidden), (shared, between if shared < len(teacher.layers) else walk.hidden)


def _distances(hidden: Tensor, goal: Tensor | None) -> Tensor | None:
    """(N,) squared distances of two models' hidden states (N, d); None where there is nothing to compare."""
    if goal is None or goal.shape != hidden.shape:
        return None
    return (hidden.detach().float() - goal.float()).square().sum(1)


def _sampled(labels: Tensor, share: float, distances: Tensor | None) -> Tensor:
    """Labels (N,) of which about this share are left, at least one, the others `IGNORE`.

    Half of them are any, the others drawn in proportion to the distances (N,), where given; the same for the same
    labels and distances.
    """
    places = (labels != IGNORE).nonzero()[:, 0].cpu()
    if not len(places):
        return labels
    generator = torch.Generator().manual_seed(int(labels.sum()) % 2**63)
    wanted = max(1, round(share * len(places)))
    order = places[torch.randperm(len(places), generator=generator)]
    evenly = wanted if distances is None else (wanted + 1) // 2
    chosen, rest = order[:evenly], order[evenly:]
    if evenly < wanted:
        assert distances is not None
        chances = distances.cpu()[rest].double()
        chances += chances.mean() * 1e-6 + torch.finfo(torch.float32).tiny  # so that there are always enough
        chosen = torch.cat([chosen, rest[torch.multinomial(chances, wanted - evenly, generator=generator)]])
    left = torch.full_like(labels, IGNORE)
    chosen = chosen.to(labels.device)
    left[chosen] = labels[chosen]
    return left


class LayerErrors(Protocol):
    """Errors of the converted layers against a teacher's.

    Attributes:
        independent: whether no parameter has a part in the errors of two layers, and no layer reads another's graph.
    """

    independent: bool

    def by_layer(self, model: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """(B, T) squared relative errors at every token with a gradient, layer by layer."""


def alignment_objective(errors: LayerErrors) -> Objective:
    """The mean over layers of their errors, summed over tokens; the log gets each layer's ("layer_0", ...).

    Where layers are independent, the gradient of each is taken as soon as its error is known and its graph let go, so
    that activations of one layer are held at a time; `backward` then only hands the gradients out.
    """

    def objective(model: nn.Module, batch: Batch) -> Loss:
        valid = batch.labels != IGNORE
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients: list[Tensor | None] = [None] * len(trained)
        sums = []
        for error in errors.by_layer(model, batch):
            total = (error * valid).sum()
            if errors.independent and total.requires_grad:
                with torch.autocast(total.device.type, enabled=False):  # as in backward(), which the loop calls outside
                    found = torch.autograd.grad(total, trained, allow_unused=True)
                for i, (known, new) in enumerate(zip(gradients, found, strict=True)):
                    gradients[i] = new if known is None else known if new is None else known + new
                total = total.detach()
            sums.append(total)
        by_layer = torch.stack(sums)  # (layers,)
        parts = {f"layer_{i}": value for i, value in enumerate(by_layer.tolist())}
        mean = by_layer.mean()
        if any(gradient is not None for gradient in gradients):
            mean = cast(Tensor, _Differentiated.apply(mean, gradients, 1 / len(sums), *trained))
        return Loss(total=mean, count=int(valid.sum()), parts=parts)

    return objective


class _Differentiated(torch.autograd.Function):
    """A value whose gradients in some parameters, up to a factor, are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], factor: float, *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.factor = gradients, factor
        return value.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else g * (grad * ctx.factor).to(g.dtype) for g in ctx.gradients)
        return None, None, None, *scaled
