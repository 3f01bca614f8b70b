"""Surgery: the softmax attention of a trained model becomes linear, and learns to give what it gave before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.attention import PROJECTIONS, ProjectedAttention, SoftmaxAttention
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder, make_attention, skeleton
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.parameters import added_parameters
from yeoul.model.quantized import refuse_quantized


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a softmax layer is turned into; the defaults are those of `yeoul linearize`.

    Attributes:
        attention: "hybrid" (a softmax window, linear attention before it) or "dijiang" (linear attention alone).
        window: of the hybrid, in positions.
        sinks: first positions of every text that the hybrid's softmax always sees; sliding layers keep their own.
        exact: pairs that each key-value head keeps beside the window, see `ModelConfig`.
        feature_map: of the linear part.
        keep_softmax: layers that stay as they are, counted from 0.
        state_update: "additive", or "delta": see `ModelConfig`.
        short_conv: see `ModelConfig`.
        trained_context: see `ModelConfig`.
    """

    attention: str = "hybrid"
    window: int = 64
    sinks: int = 4
    exact: tuple[int, ...] = (128,)
    feature_map: FeatureMapConfig = field(default_factory=lambda: FeatureMapConfig(name="codebook"))
    keep_softmax: tuple[int, ...] = ()
    state_update: str = "additive"
    short_conv: int = 0
    trained_context: int | None = None

    def __post_init__(self) -> None:
        if self.attention not in ("hybrid", "dijiang"):
            raise UserError(f"a model is linearized to hybrid or dijiang, not {self.attention!r}", "--attention")

    def apply(self, config: ModelConfig) -> ModelConfig:
        """The converted model's description."""
        for layer in self.keep_softmax:
            if not 0 <= layer < config.num_layers:
                raise UserError(
                    f"there is no layer {layer}: the model has 0 to {config.num_layers - 1}", "--keep-softmax"
                )
        kinds = tuple(
            self.attention if kind == "softmax" and layer not in self.keep_softmax else kind
            for layer, kind in enumerate(config.attention)
        )
        if kinds == config.attention:
            raise UserError("the model has no softmax layer to linearize", fix="give a softmax model")
        sinks, sliding_sinks = config.sinks, config.sliding_sinks
        if "hybrid" in kinds:
            sinks, sliding_sinks = self.sinks, sinks if "sliding" in kinds and sliding_sinks is None else sliding_sinks
        return config.with_(
            attention=kinds, sinks=sinks, sliding_sinks=sliding_sinks, exact=self.exact if "hybrid" in kinds else (0,),
            window=self.window, feature_map=self.feature_map,
            state_update=self.state_update, short_conv=self.short_conv,
            sliding_window=config.sliding_window or config.window, trained_context=self.trained_context,
        )  # fmt: skip


def convert(teacher: Decoder, conversion: Conversion, *, share: bool = False) -> Decoder:
    """A new model with the teacher's weights whose softmax layers are linear; feature maps are untrained.

    Args:
        teacher: stays as it is.
        conversion: what its softmax layers become.
        share: the new model's weights lie where the teacher's lie, and only what the teacher lacks takes memory:
            whoever trains one of them must give it memory of its own first (`unshare`). Otherwise all are copied.
    """
    refuse_quantized(teacher, "linearized")
    student = skeleton(conversion.apply(teacher.config))
    for layer, kind in enumerate(student.config.attention):
        if kind != teacher.config.attention[layer]:
            student.layers[layer].self_attn = make_attention(student.config, layer).to(teacher.device)
    weights = teacher.state_dict()
    if not share:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    missing, unexpected = student.load_state_dict(weights, strict=False, assign=True)
    strange = set(missing) - added_parameters(student)
    if strange or unexpected:
        raise ValueError(f"the student lacks {sorted(strange)} and the teacher has {unexpected} beside")
    return student.eval()


@torch.no_grad()
def unshare(student: Decoder, teacher: Decoder) -> None:
    """Gives every trained weight of the student memory of its own, in fp32 at least."""
    shared = {tensor.data_ptr() for tensor in teacher.parameters()}
    for parameter in student.parameters():
        if parameter.requires_grad:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            parameter.data = parameter.data.to(wide, copy=parameter.data_ptr() in shared)


def converted_layers(student: Decoder) -> list[int]:
    """Indices of the layers with linear attention."""
    return [i for i, block in enumerate(student.layers) if isinstance(block.self_attn, LinearAttention)]


def train_only_maps(student: Decoder) -> None:
    """Only what the teacher lacks is trained, feature maps, decays and gates: what alignment moves."""
    added, learned = added_parameters(student), learned_parameters(student)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in added and name in learned)


def train_attention(student: Decoder) -> None:
    """The attention of the converted layers is trained whole, projections and what is new in it."""
    train_only_maps(student)
    added = added_parameters(student)
    for layer in converted_layers(student):
        path = f"model.layers.{layer}.self_attn"
        for name, parameter in student.layers[layer].self_attn.named_parameters():
            if f"{path}.{name}" not in added:
                parameter.requires_grad_(True)


def train_everything(student: Decoder) -> None:
    """All weights are trained, but for what the feature map's configuration freezes."""
    added, learned = added_parameters(student), learned_parameters(student)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in added or name in learned)


def learned_parameters(student: Decoder) -> frozenset[str]:
    """Names of what is trained of a new model of this description: its modules say so when they are made."""
    return frozenset(name for name, p in skeleton(student.config).named_parameters() if p.requires_grad)


class Alignment:
    """Errors of every converted layer against the teacher's softmax layer, on the teacher's own inputs.

    The teacher runs once without gradients; the student's attention gets what each softmax layer gets. The error is
    taken behind the output projection, so that heads count by what they contribute, and relative to the mean square of
    the teacher's output, so that layers count alike.
    """

    independent = True

    def __init__(self, teacher: Decoder) -> None:
        self.teacher = teacher

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        """(layers, B, T) squared relative errors."""
        return torch.stack(list(self.by_layer(student, batch)))

    def by_layer(self, student: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """(B, T) squared relative errors, layer by layer."""
        assert isinstance(student, Decoder)
        teacher = self.teacher
        with torch.no_grad():
            walk = teacher.walk(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids)
        context = walk.context
        for block, other in zip(walk, student.layers, strict=True):
            attention, linear = block.self_attn, other.self_attn
            with torch.no_grad():
                if not (isinstance(linear, LinearAttention) and isinstance(attention, SoftmaxAttention)):
                    walk.advance()
                    continue
                normed = block.attention_input(walk.hidden)
                q, k, v = attention.project(normed, context)
                wanted = attention.attend(q, k, v, context=context)  # (B, H, T, D)
                attended = attention.output(wanted)
                walk.advance(block.after_attention(walk.hidden, attended))
                scale = attended.float().square().mean((0, 1)).sum()
            if _same_projections(linear, attention):
                given = linear.attend(q, k, v, linear.gates(normed, context, k, v), context)
                gap = torch.matmul((given - wanted).transpose(1, 2).flatten(2), attention.o_proj.weight.T)
            else:
                gap = linear(normed, context) - attended
            yield _reaching(linear, gap.float().square().sum(-1) / scale)


class HiddenAlignment:
    """Errors of the hidden states behind every converted block against the teacher's.

    The student runs on its own, so that a layer also learns to make good what those before it missed. Relative to the
    mean square of the teacher's hidden states, so that layers count alike. After step 1 of RADLADS (arXiv 2505.03005).
    """

    independent = False

    def __init__(self, teacher: Decoder) -> None:
        self.teacher = teacher

    def by_layer(self, student: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """(B, T) squared relative errors, layer by layer."""
        assert isinstance(student, Decoder)
        own = student.walk(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids)
        with torch.no_grad():
            walk = self.teacher.walk(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids)
        recompute = student.gradient_checkpointing and student.training
        for _, block in zip(walk, own, strict=True):
            with torch.no_grad():
                walk.advance()
            if recompute:
                own.advance(checkpoint(block, own.hidden, own.context, use_reentrant=False))
            else:
                own.advance()
            if isinstance(block.self_attn, LinearAttention):
                wanted = walk.hidden.float()
                error = (own.hidden.float() - wanted).square().sum(-1) / wanted.square().mean((0, 1)).sum()
                yield _reaching(block.self_attn, error)


def _reaching(linear: LinearAttention, error: Tensor) -> Tensor:
    """The error, with a gradient of 0 where none reaches the layer: of a text that is all in the window."""
    if torch.is_grad_enabled() and not error.requires_grad:
        for parameter in linear.parameters():
            error = error + 0 * parameter.sum()
    return error


def _same_projections(linear: LinearAttention, attention: ProjectedAttention) -> bool:
    """Whether two layers read the same memory in all that comes before and after attention proper."""
    if linear.short_conv is not None:
        return False
    ours, theirs = (
        [
            tensor.data_ptr()
            for name in PROJECTIONS
            if (module := getattr(layer, name)) is not None
            for tensor in module.parameters()  # an adapter's count too
        ]
        for layer in (linear, attention)
    )
    return ours == theirs
