"""Surgery: the softmax attention of a trained model becomes linear, and learns to give what it gave before."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from yeoul.data.batch import Batch
from yeoul.errors import UserError
from yeoul.model.attention import SoftmaxAttention
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.delta import DeltaDiJiangAttention
from yeoul.model.dijiang import DiJiangAttention


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a softmax layer is turned into.

    Attributes:
        attention: "hybrid" (a softmax window, linear attention before it) or "dijiang" (linear attention alone).
        window: of the hybrid, in positions.
        feature_map: of the linear part.
        keep_softmax: layers that stay as they are, counted from 0.
        state_update: "additive", or "delta": see `ModelConfig`.
    """

    attention: str = "hybrid"
    window: int = 64
    feature_map: FeatureMapConfig = field(default_factory=FeatureMapConfig)
    keep_softmax: tuple[int, ...] = ()
    state_update: str = "additive"

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
        return config.with_(
            attention=kinds, window=self.window, feature_map=self.feature_map, state_update=self.state_update,
            sliding_window=config.sliding_window or config.window,
        )  # fmt: skip


def convert(teacher: Decoder, conversion: Conversion) -> Decoder:
    """A new model with the teacher's weights (copied) whose softmax layers are linear; feature maps are untrained."""
    student = Decoder(conversion.apply(teacher.config)).to(teacher.device)
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    strange = [name for name in missing if not _in_map(name)]
    if strange or unexpected:
        raise ValueError(f"the student lacks {strange} and the teacher has {unexpected} beside")
    dtype = teacher.output_weight.dtype
    for name, parameter in student.named_parameters():
        if name not in missing:
            parameter.data = parameter.data.to(dtype)
    return student.eval()


def converted_layers(student: Decoder) -> list[int]:
    """Indices of the layers with DiJiang attention."""
    return [i for i, block in enumerate(student.layers) if isinstance(block.self_attn, DiJiangAttention)]


def train_only_maps(student: Decoder) -> None:
    """Only what the teacher lacks is trained, feature maps, decays and gates: what alignment moves."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(_in_map(name) and _is_learned(student, name))


def train_everything(student: Decoder) -> None:
    """All weights are trained, but for what the feature map's configuration freezes."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(not _in_map(name) or _is_learned(student, name))


def _in_map(name: str) -> bool:
    """Whether a parameter belongs to the linear attention and not to the projections taken over."""
    inside = (".feature_map.", ".beta_proj.", ".decay_proj.")
    return any(part in name for part in inside) or name.endswith((".decay_logit", ".decay_log", ".read_weight"))


def _is_learned(student: Decoder, name: str) -> bool:
    config = student.config.feature_map
    part = {"frequencies": "frequencies", "log_weights": "weights", "directions": "directions"}.get(name.split(".")[-1])
    if name.endswith("log_mass"):
        return student.config.state_update == "additive"  # the delta rule's features have length 1
    if name.endswith("decay_logit"):
        return config.decay == "learned"
    return part in config.learn if part else True


class Alignment:
    """Errors of every converted layer against the teacher's softmax layer, on the teacher's own inputs.

    The teacher runs once without gradients; each layer's queries, keys and values go through the student's linear
    attention as well. The error is taken behind the output projection, so that heads count by what they contribute,
    and relative to the mean square of the teacher's output, so that layers count alike.
    """

    def __init__(self, teacher: Decoder) -> None:
        self.teacher = teacher

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        """(layers, B, T) squared relative errors."""
        assert isinstance(student, Decoder)
        teacher, errors = self.teacher, []
        with torch.no_grad():
            layout = teacher.layout(batch.input_ids, None, batch.positions, batch.seq_ids, None)
            x = teacher.embed(batch.input_ids, layout.positions)
        for block, other in zip(teacher.layers, student.layers, strict=True):
            attention, linear = block.self_attn, other.self_attn
            with torch.no_grad():
                normed = block.enter(x)
                if not (isinstance(linear, DiJiangAttention) and isinstance(attention, SoftmaxAttention)):
                    x = block(x, layout)
                    continue
                q, k, v = attention.project(normed, layout)
                wanted = attention.mix(q, k, v, layout, None)  # (B, H, T, D)
                attended = attention.o_proj(_merge(wanted))
                x = block.finish(x, attended)
                scale = attended.float().square().mean((0, 1)).sum()
            values = linear.gated(v, normed) if isinstance(linear, DeltaDiJiangAttention) else v
            given = linear.mix(q, k, values, layout, None)
            gap = torch.matmul(_merge(given - wanted), attention.o_proj.weight.T)  # (B, T, hidden)
            errors.append(gap.float().square().sum(-1) / scale)
        return torch.stack(errors)


def _merge(y: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H D)."""
    return y.transpose(1, 2).flatten(2)
